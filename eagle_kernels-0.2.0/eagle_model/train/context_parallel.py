"""Context parallelism: how the ranks that share a row share out its tokens, its tiles and its attention.

    context = share(batch, model, ranks)         # once a row, of a batch on the CPU; None where each rank has its own
    loss = model(batch.to(device), mass, context=context)
    loss.backward()                              # gradients of the ranks add up to those of one process

Tokens are placed in equal chunks that balance attention's work (placement.py), tiles by number (batch.tile_range).
Everything follows from the row's numbers, which all ranks have: nothing is agreed upon, nothing depends on pixels.

Dims     T tokens of a row, R those of this rank, N visual tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from eagle_kernels.attention_plan import AttentionPlan
from eagle_model.batch import IGNORE_INDEX, PackedBatch, tile_range
from eagle_model.model.attend import Spread
from eagle_model.model.config import TextConfig
from eagle_model.model.context import Context
from eagle_model.model.eagle import Eagle
from eagle_model.model.exchange import VisualExchange
from eagle_model.model.placement import Ints, Order, Placement, place
from eagle_model.train.layout import Layout
from eagle_model.train.ranks import Ranks


def share(batch: PackedBatch, model: Eagle, ranks: Ranks) -> Context | None:
    """This rank's share of a row; None where no other rank shares it.

    batch: on the CPU, or the host waits for the device once. Its tiles may be all of the row's, or this rank's alone.
    """
    if ranks.context_group is None:
        return None
    num_ranks, rank, device = ranks.num_context, ranks.context_rank, ranks.device
    cu_seqlens = batch.cu_seqlens.cpu().numpy().astype(np.int64)
    order: Order = "zigzag" if ranks.layout.method == "ring" else "balanced"
    placement = place(cu_seqlens, num_ranks=num_ranks, order=order, row_multiple=model.row_multiple)
    rows_R = placement.rows(rank)
    labels_R = batch.labels_T.cpu().numpy()[rows_R]
    visual_rows_N = batch.visual_rows_N.cpu().numpy()
    visual, visual_rows_M = _visual(visual_rows_N, model.tokens_per_tile, placement, ranks)
    return Context(
        rank=rank,
        num_ranks=num_ranks,
        attend=_attend(cu_seqlens, placement, ranks),
        rows_R=_to(rows_R, device),
        tokens_per_rank=placement.tokens_per_rank,
        num_labelled=int((labels_R != IGNORE_INDEX).sum()),
        visual=visual,
        visual_rows_M=_to(visual_rows_M, device),
    )


def sent_bytes(
    layout: Layout, text: TextConfig, *, tokens_per_rank: int, bytes_a_number: int = 2, recomputes: bool = True
) -> dict[str, int]:
    """What a rank sends to others for one decoder layer, forward and backward, by purpose as exchange.py counts it.

        sum(sent_bytes(Layout(context=8), eagle2_5_8b().text, tokens_per_rank=16384).values()) / 2**20  # 672 MiB

    L tokens a rank, H heads, K of keys, W wide, u ranks a block, g blocks:
        heads    (u - 1) / u * L * (2 H + 2 K) * W, in forward, in backward, and where the layer is computed again
        gather   (g - 1) * L * 2 K * W, in forward and once more for backward, either way
        ring     (g - 1) * L * 2 K * W, in forward, in backward, and where the layer is computed again
        sum      (g - 1) * L * 2 K * W, in backward
    """
    u, g = layout.ulysses, layout.context // layout.ulysses
    row = text.head_dim * bytes_a_number
    heads = tokens_per_rank * 2 * (text.num_attention_heads + text.num_key_value_heads) * row
    keys = (g - 1) * tokens_per_rank * 2 * text.num_key_value_heads * row
    passes = {"gather": ("gather of keys", 2), "ring": ("keys around the ring", 2 + recomputes)}
    name, times = passes[layout.method]
    sent = {"heads": (2 + recomputes) * heads * (u - 1) // u, name: times * keys, "sum of gradients of keys": keys}
    return {purpose: count for purpose, count in sent.items() if count}


def _attend(cu_seqlens: Ints, placement: Placement, ranks: Ranks) -> Spread:
    per_block = ranks.layout.ulysses
    num_blocks, block = placement.num_ranks // per_block, ranks.context_rank // per_block
    chunks = [placement.chunks(rank) for rank in range(placement.num_ranks)]
    blocks = [np.concatenate(chunks[i * per_block : (i + 1) * per_block]) for i in range(num_blocks)]
    num_queries = placement.tokens_per_rank * per_block

    def plan(segments: Ints, num_keys: int, causal: bool) -> AttentionPlan:
        columns = _to(segments.astype(np.int32), ranks.device).unbind(1)
        return AttentionPlan.from_segments(*columns, num_tokens=num_queries, num_tokens_k=num_keys, causal=causal)

    def plans() -> Iterator[AttentionPlan]:
        if ranks.layout.method == "gather" or num_blocks == 1:
            yield plan(placement.segments(cu_seqlens, block, per_block), num_queries * num_blocks, True)
            return
        for step in range(num_blocks):
            keys_of = (block - step) % num_blocks
            yield plan(placement.ring_segments(cu_seqlens, block, keys_of, per_block), num_queries, step == 0)

    return Spread(
        plans=tuple(plans()),
        block=block,
        num_blocks=num_blocks,
        within=ranks.ulysses_group,
        between=ranks.outer_group,
        in_block=_to(np.argsort(blocks[block]), ranks.device) if per_block > 1 else None,
        in_row=_to(np.argsort(np.concatenate([np.sort(chunks) for chunks in blocks])), ranks.device),
        chunk_tokens=placement.chunk_tokens,
    )


def _visual(rows_N: Ints, tokens_per_tile: int, placement: Placement, ranks: Ranks) -> tuple[VisualExchange, Ints]:
    """How visual tokens travel, and which of this rank's rows take those that come."""
    num_ranks, rank = placement.num_ranks, ranks.context_rank
    ends = [tile_range(len(rows_N) // tokens_per_tile, r, num_ranks)[1] * tokens_per_tile for r in range(num_ranks)]
    source_N = np.searchsorted(ends, np.arange(len(rows_N)), side="right")
    owner_N = placement.ranks_of(rows_N)
    sent, received = owner_N[source_N == rank], source_N[owner_N == rank]
    assert ranks.context_group is not None
    exchange = VisualExchange(
        group=ranks.context_group,
        order_N=_to(np.argsort(sent, kind="stable"), ranks.device),
        send=tuple(np.bincount(sent, minlength=num_ranks).tolist()),
        receive=tuple(np.bincount(received, minlength=num_ranks).tolist()),
    )
    return exchange, np.searchsorted(placement.rows(rank), rows_N[owner_N == rank])


def _to(numbers: Ints, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(numbers)).to(device, non_blocking=True)
