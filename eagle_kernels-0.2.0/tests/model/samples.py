"""Small models and packed batches for the model's tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.model.config import EagleConfig, tiny
from eagle_model.model.eagle import Eagle

VOCAB_SIZE, IMAGE_TOKEN_ID = 97, 96


def small_model(cfg: EagleConfig | None = None, *, seed: int = 0) -> Eagle:
    """A tiny model whose weights are all random and large enough that every one of them shows in the output."""
    torch.manual_seed(seed)
    model = Eagle(cfg or tiny(vocab_size=VOCAB_SIZE, image_token_id=IMAGE_TOKEN_ID))
    randomise(model)
    return model


def randomise(module: nn.Module, std: float = 0.1) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(std=std)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)


def document(cfg: EagleConfig, num_before: int, num_tiles: int, num_after: int, *, seed: int) -> PackedBatch:
    """A batch of one document: text, the placeholders of `num_tiles` tiles, text. Every text token is supervised."""
    generator = torch.Generator().manual_seed(seed)
    num_visual = num_tiles * cfg.tokens_per_tile
    num_tokens = num_before + num_visual + num_after
    token_ids_T = torch.randint(0, cfg.image_token_id, (num_tokens,), generator=generator)
    token_ids_T[num_before : num_before + num_visual] = cfg.image_token_id
    labels_T = torch.cat([token_ids_T[1:], torch.tensor([IGNORE_INDEX])]) if num_tokens else token_ids_T
    return PackedBatch(
        token_ids_T=token_ids_T,
        labels_T=labels_T.masked_fill(labels_T == cfg.image_token_id, IGNORE_INDEX),
        positions_T=torch.arange(num_tokens, dtype=torch.int32),
        cu_seqlens=torch.tensor([0, num_tokens], dtype=torch.int32),
        patches_IPK=torch.randn(num_tiles, cfg.vision.num_patches, cfg.vision.num_patch_values, generator=generator),
        visual_rows_N=num_before + torch.arange(num_visual),
        sample_ids=(f"sample-{seed}",),
    )


def pack(documents: Sequence[PackedBatch]) -> PackedBatch:
    """The documents as one row."""
    starts = torch.tensor([0] + [d.num_tokens for d in documents]).cumsum(0)
    return PackedBatch(
        token_ids_T=torch.cat([d.token_ids_T for d in documents]),
        labels_T=torch.cat([d.labels_T for d in documents]),
        positions_T=torch.cat([d.positions_T for d in documents]),
        cu_seqlens=starts.int(),
        patches_IPK=torch.cat([d.patches_IPK for d in documents]),
        visual_rows_N=torch.cat([d.visual_rows_N + start for d, start in zip(documents, starts[:-1], strict=True)]),
        sample_ids=tuple(sample_id for d in documents for sample_id in d.sample_ids),
    )


def mixed_documents(cfg: EagleConfig) -> list[PackedBatch]:
    """Text only, one image, one token, two tiles: the mixture in which packing goes wrong."""
    sizes = [(9, 0, 0), (3, 1, 7), (1, 0, 0), (0, 2, 5)]
    return [document(cfg, *size, seed=seed) for seed, size in enumerate(sizes)]


def with_text(cfg: EagleConfig, **changes: object) -> EagleConfig:
    return replace(cfg, text=replace(cfg.text, **changes))  # type: ignore[arg-type]


def with_vision(cfg: EagleConfig, **changes: object) -> EagleConfig:
    return replace(cfg, vision=replace(cfg.vision, **changes))  # type: ignore[arg-type]
