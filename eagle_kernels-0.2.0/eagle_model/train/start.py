"""What a new run starts from: a config with its paths made whole, the model with its first weights, its processor.

config = with_absolute_paths(config)
model, processor = new_model(config)         # of a preset, drawn anew, or of a folder
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from eagle_model.checkpoints import read_newest, steps, verify_listed
from eagle_model.data.chat import ChatEncoder
from eagle_model.data.index import PREPARED_PROCESSOR, is_prepared
from eagle_model.data.processor import CONFIG_FILE, TOKENIZER_FILE, Processor
from eagle_model.data.processor_files import read_kept
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import read_samples
from eagle_model.data.sample import ROLES
from eagle_model.data.templates import DEFAULT_SYSTEM
from eagle_model.data.tokenizer import read_released_tokenizer, read_tokenizer, train_tokenizer
from eagle_model.fields import ConfigError
from eagle_model.model import lora
from eagle_model.model.config import PRESETS, EagleConfig
from eagle_model.model.eagle import Eagle, build, load, read_model_config
from eagle_model.train.adapters import adapted
from eagle_model.train.config import TrainConfig
from eagle_model.train.parallel import Layout, laid_out
from eagle_model.train.ranks import Ranks, start

OWN_VOCAB_SIZE = 512  # of a tokenizer that is trained on the recipe's text


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """The config with its files and folders as seen from here, so that it means the same from anywhere else."""

    def absolute(path: str) -> str:
        return str(Path(path).absolute()) if path else path

    data = config.data
    return replace(
        config,
        model=config.model if config.model in PRESETS else absolute(config.model),
        adapter=absolute(config.adapter),
        tokenizer=absolute(config.tokenizer),
        data=replace(
            data,
            recipe=absolute(data.recipe),
            index_folder=None if data.index_folder is None else absolute(data.index_folder),
            proxies=None if data.proxies is None else absolute(data.proxies),
            remote=data.remote and replace(data.remote, cache_folder=absolute(data.remote.cache_folder)),
        ),
        validation=config.validation and replace(config.validation, recipe=absolute(config.validation.recipe)),
        answers=config.answers and replace(config.answers, prompts=absolute(config.answers.prompts)),
    )


def new_model(
    config: TrainConfig, *, ranks: Ranks | None = None, say: Callable[[str], object] = print
) -> tuple[Eagle, Processor]:
    """The model that a new run starts from, and its processor. New weights come from torch's global generator.

    What is trained is fp32; with adapters, the weights under them are in the config's dtype.

    ranks: the processes that it is laid over, and their devices; none: this one, on the CPU.
    say: is told of damaged checkpoints of another run, from which this one starts, that were passed over.
    Raises: ConfigError when the model, its tokenizer and the processor do not fit each other, ValueError when one of
            their files cannot be read.
    """
    ranks = ranks or start(Layout(), "cpu")
    folder, ours = Path(config.model), config.processor
    if config.model not in PRESETS or config.lora is not None:
        if not config.model or not ((folder / "config.json").is_file() or steps(folder / "checkpoints")):
            presets = "" if config.lora else f"a preset ({', '.join(PRESETS)}) or "
            raise ConfigError(f"model is {config.model!r}; needs {presets}a folder with config.json.")
        return read_newest(folder, lambda checkpoint: _model_of(checkpoint, config, ranks), say)
    own = not config.tokenizer
    tokenizer = _tokenizer_of_the_recipe(config) if own else read_tokenizer(Path(config.tokenizer))
    cfg = PRESETS[config.model](
        vocab_size=tokenizer.get_vocab_size(),
        image_token_id=ChatEncoder(tokenizer).context_id,
        tile_px=ours.tile_px,
        patch_px=ours.patch_px,
    )
    cfg = replace(cfg.trained_on_tiles(ours.sampling.max_tiles), use_pixel_shuffle=ours.use_pixel_shuffle)
    cfg = _with_positions(cfg, config)
    return placed(cfg, None, config, ranks), Processor(tokenizer, ours)


def _model_of(folder: Path, config: TrainConfig, ranks: Ranks) -> tuple[Eagle, Processor]:
    """The model of a folder, to be trained with a config's processor."""
    ours = config.processor
    verify_listed(folder, [] if config.tokenizer else [TOKENIZER_FILE])
    tokenizer = read_tokenizer(Path(config.tokenizer)) if config.tokenizer else read_released_tokenizer(folder)
    theirs = Processor.from_pretrained(folder).config if (folder / CONFIG_FILE).is_file() else ours
    cfg = read_model_config(folder)
    for name, got, need in (
        ("processor.tile_px", ours.tile_px, cfg.vision.tile_px),
        ("processor.patch_px", ours.patch_px, cfg.vision.patch_px),
        ("processor.use_pixel_shuffle", ours.use_pixel_shuffle, cfg.use_pixel_shuffle),
        ("processor.mean", ours.mean, theirs.mean),
        ("processor.std", ours.std, theirs.std),
        ("the tokenizer's id of <IMG_CONTEXT>", ChatEncoder(tokenizer).context_id, cfg.image_token_id),
    ):
        if got != need:
            raise ConfigError(f"{name} is {got}; the model in {folder} needs {need}.")
    if tokenizer.get_vocab_size() > cfg.text.vocab_size:
        raise ConfigError(
            f"The tokenizer of {config.tokenizer or folder} has {tokenizer.get_vocab_size()} tokens; the model in "
            f"{folder} has room for {cfg.text.vocab_size}. Use the tokenizer that belongs to the model."
        )
    cfg = _with_positions(cfg.trained_on_tiles(ours.sampling.max_tiles), config)
    processor = Processor(tokenizer, ours, kept={} if config.tokenizer else read_kept(folder))
    if config.lora is None:
        return placed(cfg, folder, config, ranks), processor
    model = adapted(cfg, folder, config, ranks)
    if config.adapter:
        lora.load_adapter(model, config.adapter, dtype=torch.float32)
    return model, processor


def _with_positions(cfg: EagleConfig, config: TrainConfig) -> EagleConfig:
    """The model's config, for documents as long as the run's context. Raises ConfigError where they may not be."""
    context, has = config.processor.sampling.context_tokens, cfg.text.max_position_embeddings
    needs = max(has, config.max_position_embeddings or 0)
    if needs < context:
        raise ConfigError(
            f"processor.sampling.context_tokens is {context}; the model in {config.model} is for documents of {has} "
            f"tokens (max_position_embeddings). Set max_position_embeddings={context}, which changes no weight and "
            "lets it learn longer ones, or lower the context."
        )
    scaling = cfg.text.rope_scaling
    if needs > has and scaling is not None and scaling.rope_type == "dynamic":
        raise ConfigError(
            f"max_position_embeddings is {needs}, the model's {has}; its rope_scaling is dynamic, which depends on "
            f"that number, so that raising it would change what the model does. Keep to {has}, and to that context."
        )
    return replace(cfg, text=replace(cfg.text, max_position_embeddings=needs)) if needs > has else cfg


def placed(
    cfg: EagleConfig, source: Path | None, config: TrainConfig, ranks: Ranks, *, is_verified: bool = False
) -> Eagle:
    """Built, laid over the processes, then loaded, in fp32: what masters are taken from."""
    model = laid_out(build(cfg), config, ranks)
    load(model, source, dtype=torch.float32, device=ranks.device, is_verified=is_verified)
    return model


def _tokenizer_of_the_recipe(config: TrainConfig) -> Tokenizer:
    """A byte-level BPE of at most OWN_VOCAB_SIZE tokens, trained on what chats about the recipe's samples hold; of a
    prepared folder the tokenizer that it was prepared for."""
    if is_prepared(config.data.recipe):
        return read_tokenizer(Path(config.data.recipe) / PREPARED_PROCESSOR / TOKENIZER_FILE)
    texts = [DEFAULT_SYSTEM, *ROLES, "<image 1>"]
    texts += [f"The first video sampled with 2.00 fps: Frame {i} sample at {i / 4:.2f}s: " for i in range(1, 17)]
    for source in read_recipe(config.data.recipe):
        # A row that cannot be read is the loader's to report: it has the policy for bad samples.
        for sample in read_samples(
            source,
            allow_outside_root=config.data.allow_outside_root,
            remote=config.data.remote,
            on_bad_row=lambda where, error: None,
        ):
            texts += [turn.text for turn in sample.turns]
    return train_tokenizer(sorted(texts), OWN_VOCAB_SIZE)
