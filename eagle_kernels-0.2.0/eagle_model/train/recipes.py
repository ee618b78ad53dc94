"""Recipes: functions that return a TrainConfig. `eagle train NAME --set data.recipe=FILE` runs one.

config = override(recipe("tiny"), ["data.recipe=chats.jsonl"])
Trainer(config, "runs/first").train()
"""

from __future__ import annotations

from dataclasses import replace

from eagle_model.data.loader import DataConfig
from eagle_model.data.processor import ProcessorConfig
from eagle_model.data.sampling import SamplingConfig
from eagle_model.fields import ConfigError
from eagle_model.model.lora_config import LoraConfig
from eagle_model.train.config import OptimizerConfig, TrainConfig
from eagle_model.train.memory import MemoryConfig


def tiny() -> TrainConfig:
    """A model of under a million parameters, from scratch: learns a small video task on two CPU cores in minutes.

    Its learning rate is the demo's, `examples/video_digits.py`: higher ones learned less there.
    """
    return TrainConfig(
        recipe_name="tiny",
        model="tiny",
        processor=ProcessorConfig(
            sampling=SamplingConfig(context_tokens=512, max_tiles=1, min_frames=2), tile_px=28, patch_px=7
        ),
        data=DataConfig(recipe=""),
        optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.01, warmup_ratio=0.05),
        max_steps=1000,
        save_every_steps=100,
    )


def lora() -> TrainConfig:
    """Low-rank adapters for a model that is there: `--set model=FOLDER`, a released one or a run's.

    Learning rate and no weight decay as is usual for adapters; the rest of the optimizer is that of whole models.
    """
    return TrainConfig(
        recipe_name="lora",
        model="",
        data=DataConfig(recipe=""),
        lora=LoraConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.0),
        max_steps=1000,
        dtype="bfloat16",
        memory=MemoryConfig(activations="block"),
    )


def stage1() -> TrainConfig:
    """The connector alone, between towers that are there: `--set model=FOLDER`, as `eagle assemble` makes it.

    This and the stages after it are the paper's (docs/training.md). Its batch sizes are taken as packed rows, which
    hold samples up to the context; the paper says neither rows nor samples. Weight decay and warm-up: the release's.
    """
    return _with_context(
        4096,
        TrainConfig(
            recipe_name="stage1",
            model="",
            data=DataConfig(recipe="", workers="process", num_workers=8),
            optimizer=OptimizerConfig(learning_rate=2e-4),
            num_epochs=1,
            rows_per_step=1024,  # 4,194,304 tokens
            dtype="bfloat16",
            memory=MemoryConfig(activations="block"),
            train_vision=False,
            train_llm=False,
        ),
    )


def stage1_5() -> TrainConfig:
    """The whole model, on rich and diverse data. Starts from stage 1: `--set model=RUN`."""
    start = stage1()
    whole = replace(
        start,
        recipe_name="stage1_5",
        optimizer=replace(start.optimizer, learning_rate=2e-5),
        train_vision=True,
        train_llm=True,
    )
    return _with_context(8192, whole)  # 8,388,608 tokens a step


def stage2() -> TrainConfig:
    """The whole model, on short and long data. Starts from stage 1.5, or from a released model."""
    return _with_context(32_768, replace(stage1_5(), recipe_name="stage2", rows_per_step=256))  # 8,388,608 tokens


def stage3() -> TrainConfig:
    """Stage 2's data, of which a sample may show twice as much. Starts from stage 2."""
    config = replace(stage2(), recipe_name="stage3", rows_per_step=128)  # 8,388,608 tokens
    return replace(_with_context(65_536, config), max_position_embeddings=65_536)


def stage4() -> TrainConfig:
    """Stage 2's data, of which a sample may show four times as much. Starts from stage 3."""
    config = replace(stage3(), recipe_name="stage4", max_position_embeddings=131_072)
    return _with_context(131_072, config)  # 16,777,216 tokens a step


def _with_context(context_tokens: int, config: TrainConfig) -> TrainConfig:
    sampling = replace(config.processor.sampling, context_tokens=context_tokens)
    return replace(config, processor=replace(config.processor, sampling=sampling))


def debug() -> TrainConfig:
    """`tiny` for a few steps: the whole way from file to checkpoint and report, in seconds."""
    return replace(tiny(), recipe_name="debug", max_steps=6, save_every_steps=3, log_every_steps=1)


RECIPES = {"tiny": tiny, "debug": debug, "lora": lora}
RECIPES |= {"stage1": stage1, "stage1_5": stage1_5, "stage2": stage2, "stage3": stage3, "stage4": stage4}


def recipe(name: str) -> TrainConfig:
    """The config of a recipe by its name. Raises: ConfigError that lists the recipes there are."""
    if name not in RECIPES:
        raise ConfigError(f"There is no recipe {name!r}; the recipes are {', '.join(RECIPES)}.")
    return RECIPES[name]()
