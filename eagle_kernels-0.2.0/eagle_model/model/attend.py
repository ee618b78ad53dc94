"""Attention as an object that layers are handed: a layer projects and rotates, then calls attend(layer, q, k, v).

    plan = AttentionPlan.from_cu_seqlens(batch.cu_seqlens, num_tokens=batch.num_tokens)
    out_THW = Packed(plan=plan, causal=True)(layer, q_THW, k_TKW, v_TKW)

So no layer knows who sees whom, where the keys of earlier tokens lie, or who computes: that is the object's, and a new
way to attend is a new class here. `Packed` serves training; `Spread` serves training where several ranks share a row;
`Prefill` and `Decode` share a cache and serve generation; `Paged` serves many requests that share the blocks of one.

Dims     T tokens of this call, H query heads, K key/value heads, W head width, N layers, L rows of a cache,
         S sequences that go on; of `Spread`: P blocks, each of U ranks, B = U * T tokens of a block, C chunks of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

from eagle_kernels.attention import (
    Backend,
    varlen_attention,
    varlen_attention_backward,
    varlen_attention_backward_ref,
    varlen_attention_ref,
)
from eagle_kernels.attention_plan import AttentionPlan
from eagle_kernels.decode_attention import decode_attention, decode_attention_ref
from eagle_kernels.merge_attention import merge_attention, merge_attention_ref
from eagle_model.model import exchange

KERNEL_HEAD_WIDTHS = range(16, 257, 8)  # what attention's kernels take; on a CPU the references take any
PIECE_ROWS = 4096  # of earlier keys that a chunk reads at once: at most 16 MB of a layer, and scores of 8 MB a head


class Attend(Protocol):
    def __call__(self, layer: int, q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor) -> Tensor:
        """What the tokens' queries find, (T, H, W). layer: which layer of its tower asks, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """Documents of one packed row, each by itself, with gradients."""

    plan: AttentionPlan
    causal: bool
    backend: Backend = "eagle"

    def __call__(self, layer: int, q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor) -> Tensor:
        return _attention(q_THW, k_TKW, v_TKW, self.plan, causal=self.causal, backend=self.backend)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cache:
    """Keys and values of all layers. Which rows belong to which sequence, `Prefill` and `Decode` are told."""

    keys_NLKW: Tensor
    values_NLKW: Tensor

    @classmethod
    def zeros(cls, like: Tensor, *, num_layers: int, num_rows: int, num_heads: int, head_dim: int) -> Cache:
        """An empty cache with the dtype and on the device of `like`."""
        shape = (num_layers, num_rows, num_heads, head_dim)
        return cls(keys_NLKW=like.new_zeros(shape), values_NLKW=like.new_zeros(shape))

    def write(self, layer: int, rows_T: Tensor, k_TKW: Tensor, v_TKW: Tensor) -> tuple[Tensor, Tensor]:
        """Puts this call's keys and values into rows_T; returns all keys and values of the layer, (L, K, W) each."""
        keys_LKW, values_LKW = self.keys_NLKW[layer], self.values_NLKW[layer]
        keys_LKW[rows_T] = k_TKW
        values_LKW[rows_T] = v_TKW
        return keys_LKW, values_LKW


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefill:
    """Whole prompts, which leave their keys in a cache."""

    cache: Cache
    rows_T: Tensor  # int64: the cache's row of each token
    plan: AttentionPlan  # its keys are rows of the cache

    def __call__(self, layer: int, q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor) -> Tensor:
        keys_LKW, values_LKW = self.cache.write(layer, self.rows_T, k_TKW, v_TKW)
        return _attention(q_THW, keys_LKW, values_LKW, self.plan, causal=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decode:
    """One token of each sequence, which sees a run of the cache's rows, its own the last of them. No gradients."""

    cache: Cache
    rows_S: Tensor  # int64: the cache's row of each sequence's token
    start_S: Tensor  # int32: where its run begins
    length_S: Tensor  # int32: how long its run is
    longest: int  # at least every length; the host knows it

    def __call__(self, layer: int, q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor) -> Tensor:
        keys_LKW, values_LKW = self.cache.write(layer, self.rows_S, k_TKW, v_TKW)
        if _needs_reference(q_THW):
            return decode_attention_ref(q_THW, keys_LKW, values_LKW, self.start_S, self.length_S)[0]
        return decode_attention(q_THW, keys_LKW, values_LKW, self.start_S, self.length_S, max_k_len=self.longest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Neighbouring tokens of one prompt, which see each other and what is before them."""

    first: int  # among the tokens of the call
    num_tokens: int
    rows_L: Tensor  # int64: the cache's rows of its sequence, from the first token of all to the chunk's last
    plan: AttentionPlan  # of its own keys and those of the last piece before it
    piece_plan: AttentionPlan | None  # of a whole piece before it; None: there is none

    @classmethod
    def of(cls, first: int, num_tokens: int, rows_L: Tensor) -> Chunk:
        num_pieces = (len(rows_L) - num_tokens) // PIECE_ROWS
        plan = _one_document(num_tokens, len(rows_L) - num_pieces * PIECE_ROWS, rows_L.device)
        piece_plan = _one_document(num_tokens, PIECE_ROWS, rows_L.device) if num_pieces else None
        return cls(first=first, num_tokens=num_tokens, rows_L=rows_L, plan=plan, piece_plan=piece_plan)


@dataclass(frozen=True, kw_only=True, slots=True)
class Paged:
    """Tokens of many sequences, whose keys lie in blocks of the cache's rows. No gradients.

    First S sequences with one token each, then chunks of prompts. Earlier keys of a chunk are read PIECE_ROWS at a
    time, each piece a softmax of its own, which are merged: the memory does not grow with the prompt.
    """

    cache: Cache
    rows_T: Tensor  # int64: the cache's row of each token
    start_SB: Tensor  # int32: the cache's first row of each block of each of the S sequences
    length_S: Tensor  # int32: their tokens, the new one included
    longest: int  # at least every length; the host knows it
    block_tokens: int
    chunks: Sequence[Chunk] = ()

    def __call__(self, layer: int, q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor) -> Tensor:
        keys_LKW, values_LKW = self.cache.write(layer, self.rows_T, k_TKW, v_TKW)
        num = len(self.length_S)
        outs = [self._decode(q_THW[:num], keys_LKW, values_LKW)] if num else []
        for chunk in self.chunks:
            own = slice(chunk.first, chunk.first + chunk.num_tokens)
            if chunk.num_tokens == len(chunk.rows_L):
                outs.append(_attention(q_THW[own], k_TKW[own], v_TKW[own], chunk.plan, causal=True))
            else:
                outs.append(self._continue(chunk, q_THW[own], keys_LKW, values_LKW))
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _decode(self, q_SHW: Tensor, keys_LKW: Tensor, values_LKW: Tensor) -> Tensor:
        where = (self.start_SB, self.length_S)
        if _needs_reference(q_SHW):
            return decode_attention_ref(q_SHW, keys_LKW, values_LKW, *where, block_rows=self.block_tokens)[0]
        return decode_attention(
            q_SHW, keys_LKW, values_LKW, *where, max_k_len=self.longest, block_rows=self.block_tokens,
            num_threads=torch.get_num_threads(),
        )  # fmt: skip

    def _continue(self, chunk: Chunk, q_THW: Tensor, keys_LKW: Tensor, values_LKW: Tensor) -> Tensor:
        last = len(chunk.rows_L) - chunk.plan.num_tokens_k
        rows = chunk.rows_L[last:]
        if chunk.piece_plan is None:
            return _attention(q_THW, keys_LKW[rows], values_LKW[rows], chunk.plan, causal=True)
        out_THW, lse_HT = _with_lse(q_THW, keys_LKW[rows], values_LKW[rows], chunk.plan, causal=True)
        merged = out_THW.to(lse_HT.dtype), lse_HT
        for rows in chunk.rows_L[:last].split(PIECE_ROWS):
            out_THW, lse_HT = _with_lse(q_THW, keys_LKW[rows], values_LKW[rows], chunk.piece_plan, causal=False)
            merged = _merged(*merged, out_THW.to(lse_HT.dtype), lse_HT)
        return merged[0].to(q_THW.dtype)


def _one_document(num_tokens: int, num_keys: int, device: torch.device) -> AttentionPlan:
    cu, cu_k = (torch.tensor([0, n], dtype=torch.int32, device=device) for n in (num_tokens, num_keys))
    return AttentionPlan.from_cu_seqlens(cu, cu_k, num_tokens=num_tokens, num_tokens_k=num_keys)


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Causal documents of a packed row that several ranks share, with gradients (context parallelism).

    Ranks form blocks. Within a block they share out heads (Ulysses): each then has a part of the heads of the block's
    tokens, ascending. Between blocks, keys and values come to the queries: `gather`, all of them head by head, so that
    one is computed while the next one comes; or `ring`, block by block, each merged into what was there. What a rank
    gets beside its own keys it does not keep for backward, where it comes again.

    Memory   gather: keys and values of the row, K / U heads of each. ring: those of two blocks, and out in fp32.
    Sources  Llama 3, arXiv:2407.21783, 3.3.2; Liu et al. 2023, arXiv:2310.01889; Jacobs et al. 2023, arXiv:2309.14509.
    """

    plans: tuple[AttentionPlan, ...]  # gather: of the row's keys; ring: of the own keys, the block's before, and so on
    block: int
    num_blocks: int
    within: dist.ProcessGroup | None  # this rank's block, in order; None: of one
    between: dist.ProcessGroup | None  # those with its part of the heads, block after block; None: one block
    in_block: Tensor | None  # int64: chunks of the ranks of this block, in the order in which the block holds them
    in_row: Tensor  # int64 (C,): chunks of the blocks, one block after another, in the row's order
    chunk_tokens: int
    is_kept: bool = False  # the gathered keys are kept for backward: of a layer that is run again there

    @torch.compiler.disable
    def __call__(self, layer: int, q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor) -> Tensor:
        if self.within is None:
            return self._between(q_THW, k_TKW, v_TKW)
        sizes = [x.shape[1] // self.within.size() for x in (q_THW, k_TKW, v_TKW)]
        parts = [x.unflatten(1, (self.within.size(), -1)) for x in (q_THW, k_TKW, v_TKW)]
        heads = exchange.heads_for_tokens(torch.cat(parts, dim=2).flatten(1, 2), self.within)
        assert self.in_block is not None
        heads = _by_chunks(heads, self.in_block, self.chunk_tokens)
        out = self._between(*heads.split(sizes, dim=1))
        out = _by_chunks(out, self.in_block.argsort(), self.chunk_tokens)
        return exchange.tokens_for_heads(out, self.within)

    def _between(self, q_BHW: Tensor, k_BKW: Tensor, v_BKW: Tensor) -> Tensor:
        if self.between is None:
            return _attention(q_BHW, k_BKW, v_BKW, self.plans[0], causal=True)
        function = _Gathered if len(self.plans) == 1 else _Ring
        return cast(Tensor, function.apply(q_BHW, k_BKW, v_BKW, self))


def _by_chunks(x: Tensor, order_C: Tensor, chunk_tokens: int) -> Tensor:
    """Rows of x, chunk by chunk in another order."""
    return x.unflatten(0, (-1, chunk_tokens)).index_select(0, order_C).flatten(0, 1)


class _Gathered(torch.autograd.Function):
    """Attention of this block's queries to all keys; heads of keys come one after another."""

    @staticmethod
    def forward(ctx: Any, q_BHW: Tensor, k_BKW: Tensor, v_BKW: Tensor, how: Spread) -> Tensor:
        gathered = _gather_heads(k_BKW, v_BKW, how)
        kept, outs, lses = [], [], []
        for q_BGW in q_BHW.chunk(k_BKW.shape[1], dim=1):
            k_T1W, v_T1W = _in_row(gathered.pop(0), how)
            out_BGW, lse_GB = _with_lse(q_BGW, k_T1W, v_T1W, how.plans[0], causal=True)
            outs.append(out_BGW)
            lses.append(lse_GB)
            kept += [k_T1W, v_T1W] if how.is_kept else []
        out_BHW, lse_HB = torch.cat(outs, dim=1), torch.cat(lses)
        ctx.how = how
        ctx.save_for_backward(q_BHW, k_BKW, v_BKW, out_BHW, lse_HB, *kept)
        return out_BHW

    @staticmethod
    def backward(ctx: Any, dout_BHW: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        how = ctx.how
        q_BHW, k_BKW, v_BKW, out_BHW, lse_HB, *kept = ctx.saved_tensors
        num_heads = k_BKW.shape[1]
        gathered = [] if kept else _gather_heads(k_BKW, v_BKW, how)
        by_block, dqs, sums = how.in_row.argsort(), [], []
        of_queries = (x.chunk(num_heads, dim=1) for x in (dout_BHW, q_BHW, out_BHW))
        for dout_BGW, q_BGW, out_BGW, lse_GB in zip(*of_queries, lse_HB.chunk(num_heads), strict=True):
            k_T1W, v_T1W = (kept.pop(0), kept.pop(0)) if kept else _in_row(gathered.pop(0), how)
            dq_BGW, *dkv = _backward(dout_BGW, q_BGW, k_T1W, v_T1W, out_BGW, lse_GB, how.plans[0], causal=True)
            dqs.append(dq_BGW)
            blocks = [_by_chunks(x, by_block, how.chunk_tokens).unflatten(0, (how.num_blocks, -1)) for x in dkv]
            sums.append(exchange.start_sum(torch.stack(blocks, dim=1), how.between, "sum of gradients of keys"))
        dkvs = [exchange.finish_sum(pending) for pending in sums]
        dk_BKW, dv_BKW = torch.cat(dkvs, dim=2).unbind(0)
        return torch.cat(dqs, dim=1), dk_BKW, dv_BKW, None


def _gather_heads(k_BKW: Tensor, v_BKW: Tensor, how: Spread) -> list[tuple[Tensor, exchange.Work]]:
    """Each head's keys and values of all blocks, (P, 2, B, 1, W), on their way."""
    heads = zip(k_BKW.split(1, dim=1), v_BKW.split(1, dim=1), strict=True)
    assert how.between is not None
    return [exchange.gather(torch.stack(pair), how.between, "gather of keys") for pair in heads]


def _in_row(pending: tuple[Tensor, exchange.Work], how: Spread) -> list[Tensor]:
    """Keys and values of one head in the row's order, when they have come."""
    gathered, work = pending
    work.wait()
    return [_by_chunks(x.flatten(0, 1), how.in_row, how.chunk_tokens) for x in gathered.unbind(1)]


class _Ring(torch.autograd.Function):
    """Attention of this block's queries to one block's keys after another, which go around from block to block."""

    @staticmethod
    def forward(ctx: Any, q_BHW: Tensor, k_BKW: Tensor, v_BKW: Tensor, how: Spread) -> Tensor:
        merged: tuple[Tensor, Tensor] | None = None
        for step, k, v in _around(k_BKW, v_BKW, how):
            out_BHW, lse_HB = _with_lse(q_BHW, k, v, how.plans[step], causal=step == 0)
            part = out_BHW.to(lse_HB.dtype), lse_HB
            merged = part if merged is None else _merged(*merged, *part)
        assert merged is not None
        out_BHW, lse_HB = merged[0].to(q_BHW.dtype), merged[1]
        ctx.how = how
        ctx.save_for_backward(q_BHW, k_BKW, v_BKW, out_BHW, lse_HB)
        return out_BHW

    @staticmethod
    def backward(ctx: Any, dout_BHW: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        how: Spread = ctx.how
        q_BHW, k_BKW, v_BKW, out_BHW, lse_HB = ctx.saved_tensors
        group = how.between
        assert group is not None
        wide = lse_HB.dtype
        dq_BHW, dkv, pending = torch.zeros_like(q_BHW, dtype=wide), None, None
        for step, k, v in _around(k_BKW, v_BKW, how):
            dq, *dkv_part = _backward(dout_BHW, q_BHW, k, v, out_BHW, lse_HB, how.plans[step], causal=step == 0)
            dq_BHW += dq
            if dkv is None:
                dkv = torch.stack(dkv_part).to(wide)
                continue
            _add_when_there(dkv, pending)
            owner, giver = (how.block - step) % how.num_blocks, (how.block + step) % how.num_blocks
            purpose = "sum of gradients of keys"
            pending = exchange.send_and_receive(torch.stack(dkv_part), owner, giver, group, purpose)
        assert dkv is not None
        _add_when_there(dkv, pending)
        dk_BKW, dv_BKW = dkv.to(k_BKW.dtype).unbind(0)
        return dq_BHW.to(q_BHW.dtype), dk_BKW, dv_BKW, None


def _around(k_BKW: Tensor, v_BKW: Tensor, how: Spread) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(step, keys, values): the own ones, then those of the block before, and so on; the next are on their way."""
    group, here = how.between, torch.stack((k_BKW, v_BKW))
    assert group is not None
    after, before = (how.block + 1) % how.num_blocks, (how.block - 1) % how.num_blocks
    for step in range(how.num_blocks):
        coming = None
        if step + 1 < how.num_blocks:
            coming = exchange.send_and_receive(here, after, before, group, "keys around the ring")
        yield step, here[0], here[1]
        if coming is not None:
            here, works = coming
            for work in works:
                work.wait()


def _add_when_there(total: Tensor, pending: tuple[Tensor, Sequence[exchange.Work]] | None) -> None:
    if pending is not None:
        part, works = pending
        for work in works:
            work.wait()
        total += part


def _merged(*outs_and_lses: Tensor) -> tuple[Tensor, Tensor]:
    out_a = outs_and_lses[0]
    is_for_kernel = out_a.dtype != torch.float64 and not _needs_reference(out_a)
    return (merge_attention if is_for_kernel else merge_attention_ref)(*outs_and_lses)


def _with_lse(
    q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor, plan: AttentionPlan, *, causal: bool
) -> tuple[Tensor, Tensor]:
    attention = varlen_attention_ref if _needs_reference(q_THW) else varlen_attention
    return cast(tuple[Tensor, Tensor], attention(q_THW, k_TKW, v_TKW, plan, causal=causal, return_lse=True))


def _backward(
    dout_THW: Tensor,
    q_THW: Tensor,
    k_TKW: Tensor,
    v_TKW: Tensor,
    out_THW: Tensor,
    lse_HT: Tensor,
    plan: AttentionPlan,
    *,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    backward = varlen_attention_backward_ref if _needs_reference(q_THW) else varlen_attention_backward
    return backward(dout_THW, q_THW, k_TKW, v_TKW, out_THW, lse_HT, plan, causal=causal)


def _needs_reference(q_THW: Tensor) -> bool:
    """The ops refuse other widths everywhere; small models on a CPU may have any (a GPU: `eagle.check_device`)."""
    return not q_THW.is_cuda and q_THW.shape[2] not in KERNEL_HEAD_WIDTHS


def _attention(
    q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor, plan: AttentionPlan, *, causal: bool, backend: Backend = "eagle"
) -> Tensor:
    if _needs_reference(q_THW):
        return cast(Tensor, varlen_attention_ref(q_THW, k_TKW, v_TKW, plan, causal=causal))  # no lse is asked for
    return varlen_attention(q_THW, k_TKW, v_TKW, plan, causal=causal, backend=backend)
