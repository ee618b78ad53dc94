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


def debug() -> TrainConfig:
    """`tiny` for a few steps: the whole way from file to checkpoint and report, in seconds."""
    return replace(tiny(), recipe_name="debug", max_steps=6, save_every_steps=3, log_every_steps=1)


RECIPES = {"tiny": tiny, "debug": debug, "lora": lora}


def recipe(name: str) -> TrainConfig:
    """The config of a recipe by its name. Raises: ConfigError that lists the recipes there are."""
    if name not in RECIPES:
        raise ConfigError(f"There is no recipe {name!r}; the recipes are {', '.join(RECIPES)}.")
    return RECIPES[name]()
