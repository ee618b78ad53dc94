"""Runs that train adapters: the model under them, as little of it as need be, and whether it is still the same.

    model = adapted(read_model_config(base), base, config, ranks)      # config.lora, config.base_weights, config.dtype
    base_of(model)                               # {"folder": "Eagle2.5-8B", "sha256": "..."}: what a checkpoint keeps
    same_base({"folder": ..., "sha256": ...}, checkpoint)              # its folder, or CheckpointError

A checkpoint of such a run holds the adapters, and the model's folder by its name and fingerprint, not the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle_model.checkpoints import CheckpointError
from eagle_model.fields import shown
from eagle_model.model.config import EagleConfig
from eagle_model.model.eagle import Eagle, build, load
from eagle_model.model.lora import add_lora, draw, trained_whole
from eagle_model.model.nf4 import projections, to_nf4
from eagle_model.model.weights import fingerprint
from eagle_model.train.config import TrainConfig
from eagle_model.train.parallel import laid_out
from eagle_model.train.precision import DTYPES
from eagle_model.train.ranks import Ranks


def adapted(cfg: EagleConfig, base: Path, config: TrainConfig, ranks: Ranks) -> Eagle:
    """The model of a folder with new adapters, laid over the processes.

    What is trained is fp32; the rest is in the config's dtype, or in 4 bits, as soon as it is read: no more of it is
    ever held in fp32 than one tensor.
    """
    assert config.lora is not None
    model = build(cfg)
    add_lora(model, config.lora, base=str(base))
    laid_out(model, config, ranks)
    trained, dtype = set(trained_whole(model, config.lora)), DTYPES[config.dtype]
    in_4_bits = {f"llm.{name}" for name in projections(model.llm)} if config.base_weights == "nf4" else set()

    def convert(name: str, weight: Tensor) -> Tensor:
        if name in trained:
            return weight
        return to_nf4(weight.to(dtype)) if name in in_4_bits else weight.to(dtype)

    load(model, base, dtype=torch.float32, device=ranks.device, convert=convert)
    draw(model)
    return model


def base_of(model: Eagle) -> dict[str, str] | None:
    """The folder of the model under the adapters, and the fingerprint of its files; None for a model without any."""
    if model.adapter is None:
        return None
    return {"folder": model.adapter.base, "sha256": fingerprint(Path(model.adapter.base))}


def same_base(base: Any, checkpoint: Path) -> Path:
    """The folder of the model under a checkpoint's adapters. base: what `base_of` said when it was written.

    Raises: CheckpointError unless it is there, and its files are as they were.
    """
    try:
        folder, was = Path(base["folder"]), base["sha256"]
        now = fingerprint(folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{checkpoint} holds adapters of {shown(base)}, which cannot be read: {error}. Put that model back."
        ) from error
    if now != was:
        raise CheckpointError(
            f"{checkpoint} holds adapters of {folder}, whose files are others now: SHA-256 {now}, was {was}. Put that "
            f"model back, or begin a new run with adapter={checkpoint}."
        )
    return folder
