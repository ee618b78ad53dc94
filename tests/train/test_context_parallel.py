"""Context parallelism against one process with the whole row: loss and all gradients of all towers, and bytes sent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from eagle_model.batch import PackedBatch, tile_range
from eagle_model.model.config import EagleConfig, eagle2_5_8b, tiny
from eagle_model.model.exchange import counted
from eagle_model.model.lora import add_lora
from eagle_model.model.lora_config import LoraConfig
from eagle_model.model.loss import sqrt_mass
from eagle_model.model.placement import place
from eagle_model.model.recompute import attention_kept, recomputed
from eagle_model.model.rope_scaling import RopeScaling
from eagle_model.train.context_parallel import sent_bytes, share
from eagle_model.train.layout import Layout
from eagle_model.train.offload import Offload, copies_of
from eagle_model.train.ranks import start
from tests.model.samples import (
    IMAGE_TOKEN_ID,
    VOCAB_SIZE,
    document,
    mixed_documents,
    pack,
    randomise,
    small_model,
    with_text,
)
from tests.ranks import run

RUN_LAYER = {
    "all": None,
    "block": recomputed,
    "attention": attention_kept,
    "offload": Offload(copies_of(torch.device("cpu"))),
}


def config(kind: str = "") -> EagleConfig:
    cfg = tiny(vocab_size=VOCAB_SIZE, image_token_id=IMAGE_TOKEN_ID)
    if kind == "dynamic":  # positions turned by each document's length
        scaling = RopeScaling(rope_type="dynamic", factor=2.0)
        return with_text(cfg, rope_scaling=scaling, max_position_embeddings=8)
    if kind == "28/4":  # Qwen2.5-7B's
        return with_text(cfg, num_attention_heads=28, num_key_value_heads=4, head_dim=16)
    return cfg


def row(cfg: EagleConfig, name: str) -> PackedBatch:
    if name == "text":
        return pack([document(cfg, 13, 0, 0, seed=1), document(cfg, 5, 0, 0, seed=2)])
    if name == "one":
        return document(cfg, 7, 3, 30, seed=3)
    return pack(mixed_documents(cfg))


def compare(layouts: list[dict[str, Any]], cases: list[dict[str, Any]]) -> list[float]:
    """The largest error of the loss and of any gradient, in parts of the largest of that tensor, of each case."""
    worst = []
    for kinds in layouts:
        ranks = start(Layout(**kinds))
        for case in cases:
            cfg = config(case.get("kind", ""))
            model = small_model(cfg)
            if case.get("lora"):
                add_lora(model, LoraConfig(rank=2, targets=("all-linear",), dropout=0.0))
                randomise(model)
            if case.get("frozen"):
                model.vision.requires_grad_(False)
                model.connector.requires_grad_(False)
            model = model.double()
            model.row_multiple = case.get("row_multiple", 1)
            model.vision_chunk_tiles = case.get("chunk_tiles")
            batch = row(cfg, case["row"])
            batch = replace(batch, patches_IPK=batch.patches_IPK.double())
            per = case.get("per", "sample")
            mass = 3 * sqrt_mass(batch.labels_T, batch.cu_seqlens, per=per)
            loss = model(batch, mass, loss_per=per)
            loss.backward()
            want = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            model.zero_grad()
            first, end = tile_range(len(batch.patches_IPK), ranks.context_rank, ranks.num_context)
            if case.get("own_tiles"):
                batch = replace(batch, patches_IPK=batch.patches_IPK[first:end], tiles=(first, end))
            part = model(
                batch,
                mass,
                loss_per=per,
                run_layer=RUN_LAYER[case.get("keep", "all")],
                context=share(batch, model, ranks),
            )
            part.backward()
            errors = [(_sum(part.detach()) - loss).abs() / loss.abs()]
            for name, p in model.named_parameters():
                if name in want:
                    errors.append((_sum(p.grad) - want[name]).abs().max() / want[name].abs().max().clamp(min=1e-30))
            worst.append(float(torch.stack(errors).max()))
    return worst


def _sum(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    torch.distributed.all_reduce(x)
    return x


CASES = [
    {"row": "mixed"},
    {"row": "text", "keep": "block"},
    {"row": "one", "keep": "block", "frozen": True},
    {"row": "mixed", "lora": True, "own_tiles": True},
    {"row": "one", "keep": "attention", "own_tiles": True},
    {"row": "mixed", "chunk_tiles": 1, "own_tiles": True, "per": "turn"},
    {"row": "one", "row_multiple": 16, "keep": "offload", "kind": "dynamic"},
]


def test_two_ranks_are_one() -> None:
    layouts = [{"context": 2}, {"context": 2, "ulysses": 2}, {"context": 2, "method": "ring"}]
    for worst in run(compare, 2, layouts, CASES):
        assert max(worst) < 1e-12, worst


def test_four_ranks_with_qwens_heads_are_one() -> None:
    """28 query heads and 4 of keys, a part of them on each rank of a pair."""
    cases = [{"row": "mixed", "kind": "28/4", "keep": "block"}]
    layouts = [{"context": 4, "ulysses": 2, "method": method} for method in ("gather", "ring")]
    for worst in run(compare, 4, layouts, cases):
        assert max(worst) < 1e-12, worst


@pytest.mark.slow
@pytest.mark.parametrize("context", [4, 8, 16])
def test_many_ranks_are_one(context: int) -> None:
    """More ranks than heads of keys, than tiles, than tokens of some documents."""
    layouts = [
        {"context": context, "ulysses": ulysses, "method": method}
        for ulysses in (1, 2, 4)
        for method in ("gather", "ring")
    ]
    cases = [{"row": "mixed", "kind": "28/4", "own_tiles": True}, {"row": "text", "kind": "28/4", "keep": "attention"}]
    for worst in run(compare, context, layouts, cases, timeout=600):
        assert max(worst) < 1e-12, worst


def sent(layouts: list[dict[str, Any]], keep: str) -> list[dict[str, int]]:
    """What this rank sends for all layers of a step, by purpose."""
    counts = []
    for kinds in layouts:
        ranks = start(Layout(**kinds))
        model, batch = small_model(config("28/4")), row(config("28/4"), "mixed")
        context = share(batch, model, ranks)
        with counted() as found:
            model(batch, torch.ones(()), run_layer=RUN_LAYER[keep], context=context).backward()
        counts.append(dict(found))
    return counts


@pytest.mark.parametrize("keep", ["all", "attention"])
def test_bytes_sent_are_the_formulas(keep: str) -> None:
    """Of keys and heads by `sent_bytes`; of visual tokens, those whose rows another rank has, there and back."""
    cfg = config("28/4")
    batch = row(cfg, "mixed")
    kinds = [
        {"context": 4, "ulysses": ulysses, "method": method} for ulysses in (1, 2, 4) for method in ("gather", "ring")
    ]
    of_ranks = run(sent, 4, kinds, keep)
    for i, layout in enumerate(Layout(**k) for k in kinds):
        tokens = place(batch.cu_seqlens.numpy(), num_ranks=4, order="zigzag" if layout.method == "ring" else "balanced")
        need = sent_bytes(
            layout, cfg.text, tokens_per_rank=tokens.tokens_per_rank, bytes_a_number=4, recomputes=keep != "all"
        )
        for found in of_ranks:
            got = {purpose: count for purpose, count in found[i].items() if count}
            got.pop("visual tokens", None)
            assert got == {purpose: count * cfg.text.num_hidden_layers for purpose, count in need.items()}
        rows_N = batch.visual_rows_N.numpy()
        ends = [tile_range(3, rank, 4)[1] * cfg.tokens_per_tile for rank in range(4)]
        source_N = np.searchsorted(ends, np.arange(len(rows_N)), side="right")
        num_moved = int((tokens.ranks_of(rows_N) != source_N).sum())
        assert sum(found[i]["visual tokens"] for found in of_ranks) == 2 * num_moved * cfg.text.hidden_size * 4


def test_the_formula_by_hand() -> None:
    """128K tokens of the 8B over 8 ranks, 4 MiB a thousand tokens and pass: 7 others, 16384 tokens, 1024 numbers."""
    text = eagle2_5_8b().text
    assert sent_bytes(Layout(context=8), text, tokens_per_rank=16384) == {
        "gather of keys": 2 * 7 * 16384 * 1024 * 2,
        "sum of gradients of keys": 7 * 16384 * 1024 * 2,
    }
    assert sent_bytes(Layout(context=4, ulysses=4), text, tokens_per_rank=16384, recomputes=False) == {
        "heads": 2 * 3 * 16384 * 16 * 128 * 2
    }


def test_one_process_shares_nothing() -> None:
    assert share(row(config(), "mixed"), small_model(config()), start(Layout())) is None


def refused() -> list[str]:
    """Tiles of another rank; flash-attn over ranks."""
    ranks, said = start(Layout(context=2)), []
    model, batch = small_model(config()), row(config(), "mixed")
    context = share(batch, model, ranks)
    first, end = tile_range(3, 1 - ranks.context_rank, 2)
    wrong = replace(batch, patches_IPK=batch.patches_IPK[first:end], tiles=(first, end))
    flash = small_model(replace(config(), attention_backend="flash_attn"))
    for its_model, its_batch in ((model, wrong), (flash, batch)):
        try:
            its_model.hidden(its_batch, context=context)
        except ValueError as error:
            said.append(str(error))
    return said


def test_what_cannot_be_is_refused_by_name() -> None:
    for rank, (tiles, flash) in enumerate(run(refused, 2)):
        first, end = tile_range(3, rank, 2)
        assert f"This rank's share of them are tiles {first} to {end}." in tiles
        assert "attention_backend is flash_attn, which attends within one rank" in flash
