"""Packed attention: documents of any length in one row, no padding, no mask in memory; exact softmax, tile by tile.

Dims    T tokens (rows of q; rows of k and v may be another number), H query heads, K key/value heads, G = H / K,
        D head width, S segments, N query tiles, M key tiles; in the reference N documents of L queries and M keys.
        A segment is a run of query rows and the run of key rows that they may see; usually a document.
Maths   s = scale * q k^T;  out = softmax(s) v;  lse = log sum exp s.
        causal: the last query of a segment sees its last key, query i sees keys j <= i + k_len - q_len
        (flash-attention >= 2.1). A row that sees no key gives out = 0 and lse = -inf, and takes no gradient.
Grads   p = exp(s - lse); dv = p^T dout; dp = dout v^T; ds = p * (dp - delta), delta = rowsum(dout * out) - dlse;
        dq = scale * ds k; dk = scale * ds^T q, summed over the G query heads of a key head.
Numbers Products of the input's dtype, sums and softmax fp32 (fp32 input: full fp32 products, no TF32).
        No atomics: each program owns its rows of out, dq, or dk and dv, and adds in one order, so that a repeat has
        the same bits. Backward therefore computes s and dp twice, once for dq and once for dk and dv.
Width   D runs in two pieces, a power of two and a smaller one: 72 = 64 + 16 (8 of them masked), never a padded 128.
Source  Dao 2023, arXiv:2307.08691; Milakov and Gimelshein 2018, arXiv:1805.02867.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any, Literal, NamedTuple, get_args, overload

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels import native
from eagle_kernels.checks import KERNEL_DTYPES, check, check_same, on_device_of

OP = "varlen_attention"
Backend = Literal["eagle", "flash_attn"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
TILE = 128  # rows that one entry of a tile table stands for; every BLOCK divides it; kTile of csrc/attention_plan.h
LN2 = tl.constexpr(0.6931471805599453)
LOG2_E = 1.4426950408889634
DELTA_BLOCK = 32  # rows a program of the backward preprocess


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """Which query rows see which key rows, and the order in which kernels take them: longest first.

    Build it once a batch and use it in every layer, forward and backward. Nothing here waits for the device: table
    sizes are bounds known from shapes, and entries beyond the last tile are idle. Whether offsets are right is checked
    for CPU tensors alone; wrong offsets on a GPU read or write outside the tensors.
    """

    segments_S4: Tensor  # int32: q_start, q_len, k_start, k_len; k_start ascends
    q_tiles_N2: Tensor  # int32: segment or -1 (idle), first row within the segment
    k_tiles_M4: Tensor  # int32: first row in k, number of rows (0: idle), first and last + 1 of the segments to look at
    num_tokens: int  # rows of q
    num_tokens_k: int  # rows of k and v
    covers_all: bool  # each query row and each key row lies in one segment
    length: int = 0  # of every segment, one after another, in `uniform` plans: no tables then. 0: as the tables say

    @cached_property
    def longest(self) -> tuple[int, int]:
        """Query rows and key rows of the longest segments. Waits for the device, once, unless the plan is uniform."""
        if self.length or not self.segments_S4.shape[0]:
            return self.length, self.length
        q_len, k_len = self.segments_S4[:, 1::2].amax(0).tolist()
        return q_len, k_len

    @staticmethod
    def uniform(num_sequences: int, length: int, *, device: torch.device | str) -> AttentionPlan:
        """num_sequences sequences of `length` rows each, one after another: the vision tower's tiles.

        The kernels read no table and, where `length` is a multiple of 128, mask nothing.

        Raises: ValueError unless num_sequences >= 0 and length >= 1.
        """
        check(num_sequences >= 0, OP, "num_sequences", num_sequences, "a number >= 0")
        check(length >= 1, OP, "length", length, "a number >= 1")
        start_S = torch.arange(num_sequences, dtype=torch.int32, device=device) * length
        length_S = torch.full_like(start_S, length)
        return AttentionPlan(
            segments_S4=torch.stack((start_S, length_S, start_S, length_S), dim=1),
            q_tiles_N2=start_S.new_empty(0, 2),
            k_tiles_M4=start_S.new_empty(0, 4),
            num_tokens=num_sequences * length,
            num_tokens_k=num_sequences * length,
            covers_all=True,
            length=length,
        )

    @staticmethod
    def from_cu_seqlens(
        cu_seqlens: Tensor,
        cu_seqlens_k: Tensor | None = None,
        *,
        num_tokens: int,
        num_tokens_k: int | None = None,
        causal: bool = True,
    ) -> AttentionPlan:
        """Document s: query rows cu_seqlens[s] to cu_seqlens[s + 1]; key rows by cu_seqlens_k, None means the same.

        Args:   cu_seqlens, cu_seqlens_k: int32 (S + 1), from 0, not decreasing, to the number of rows.
                num_tokens, num_tokens_k: the rows of q and of k; num_tokens_k None means the same.
                causal: how the plan will be used. It decides the order of work only, never a number.
        Raises: ValueError for a wrong dtype, shape or device, and for wrong offsets in CPU tensors. RuntimeError for
                CUDA tensors in a build without CUDA.
        """
        num_tokens_k = num_tokens if num_tokens_k is None else num_tokens_k
        _check_offsets(cu_seqlens, cu_seqlens_k, num_tokens, num_tokens_k)
        cu_seqlens_k = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
        segments_S4 = torch.stack((cu_seqlens[:-1], cu_seqlens.diff(), cu_seqlens_k[:-1], cu_seqlens_k.diff()), dim=1)
        return _plan(segments_S4, num_tokens, num_tokens_k, causal, covers_all=True)

    @staticmethod
    def from_segments(
        q_start: Tensor,
        q_len: Tensor,
        k_start: Tensor,
        k_len: Tensor,
        *,
        num_tokens: int,
        num_tokens_k: int | None = None,
        causal: bool = True,
    ) -> AttentionPlan:
        """Segment s: the q_len[s] query rows from q_start[s] on see the k_len[s] key rows from k_start[s] on.

        Query ranges must not overlap; key ranges may, in any order. Rows of no segment give out = 0 and lse = -inf.
        causal aligns each segment at its end.

        Args:   q_start, q_len, k_start, k_len: int32 (S).  num_tokens, num_tokens_k, causal: as in from_cu_seqlens.
        Raises: ValueError for a wrong dtype, shape or device, and for wrong ranges in CPU tensors. RuntimeError for
                CUDA tensors in a build without CUDA.
        """
        num_tokens_k = num_tokens if num_tokens_k is None else num_tokens_k
        for name, x in (("q_start", q_start), ("q_len", q_len), ("k_start", k_start), ("k_len", k_len)):
            check(x.dtype == torch.int32, OP, f"{name}'s dtype", x.dtype, "int32")
            check(x.dim() == 1, OP, f"{name}'s shape", tuple(x.shape), "(S,)")
            check(x.shape == q_start.shape, OP, f"{name}'s shape", tuple(x.shape), f"q_start's {tuple(q_start.shape)}")
            check_same(OP, name, x, "q_start", q_start)
        segments_S4 = torch.stack((q_start, q_len, k_start, k_len), dim=1)
        if segments_S4.device.type == "cpu":
            _check_segments(segments_S4, num_tokens, num_tokens_k)
        segments_S4 = segments_S4[k_start.argsort(stable=True)]
        return _plan(segments_S4, num_tokens, num_tokens_k, causal, covers_all=False)


def _check_offsets(cu_seqlens: Tensor, cu_seqlens_k: Tensor | None, num_tokens: int, num_tokens_k: int) -> None:
    _check_cu_seqlens("cu_seqlens", cu_seqlens, num_tokens)
    if cu_seqlens_k is None:
        need = "q's {}, or cu_seqlens_k"
        check(num_tokens_k == num_tokens, OP, "the number of key rows", num_tokens_k, need, num_tokens)
        return
    check_same(OP, "cu_seqlens_k", cu_seqlens_k, "cu_seqlens", cu_seqlens)
    need = f"cu_seqlens' {tuple(cu_seqlens.shape)}"
    check(cu_seqlens_k.shape == cu_seqlens.shape, OP, "cu_seqlens_k's shape", tuple(cu_seqlens_k.shape), need)
    _check_cu_seqlens("cu_seqlens_k", cu_seqlens_k, num_tokens_k)


def _check_cu_seqlens(name: str, cu_seqlens: Tensor, num_tokens: int) -> None:
    check(isinstance(cu_seqlens, Tensor), OP, name, type(cu_seqlens), "a torch tensor of int32, (S + 1,)")
    check(cu_seqlens.dtype == torch.int32, OP, f"{name}'s dtype", cu_seqlens.dtype, "int32")
    shape = tuple(cu_seqlens.shape)
    check(len(shape) == 1 and shape[0] >= 1, OP, f"{name}'s shape", shape, "(S + 1,), one dimension that starts with 0")
    if cu_seqlens.device.type != "cpu":
        return
    ends = cu_seqlens.tolist()
    check(ends[0] == 0, OP, f"{name}[0]", ends[0], "0")
    for s, (begin, end) in enumerate(pairwise(ends)):
        check(begin <= end, OP, f"{name}[{s + 1}]", end, f"at least {name}[{s}], which is {begin}")
    check(ends[-1] == num_tokens, OP, f"{name}[-1]", ends[-1], f"the number of rows, {num_tokens}")


def _check_segments(segments_S4: Tensor, num_tokens: int, num_tokens_k: int) -> None:
    segments = segments_S4.tolist()
    for s, (q_start, q_len, k_start, k_len) in enumerate(segments):
        for name, start, length, rows in (("q", q_start, q_len, num_tokens), ("k", k_start, k_len, num_tokens_k)):
            got = f"{name}_start {start} and {name}_len {length}"
            need = f"both >= 0 and an end within the {rows} rows of {name}"
            check(start >= 0 and length >= 0 and start + length <= rows, OP, f"segment {s}", got, need)
    row = 0
    for q_start, q_len, _, _ in sorted(segment for segment in segments if segment[1]):
        need = f"query ranges that do not overlap; the one before ends at {row}"
        check(q_start >= row, OP, "a segment's q_start", q_start, need)
        row = q_start + q_len


def _plan(segments_S4: Tensor, num_tokens: int, num_tokens_k: int, causal: bool, *, covers_all: bool) -> AttentionPlan:
    q_tiles_N2, k_tiles_M4 = _tiles(segments_S4, num_tokens, num_tokens_k, causal, covers_all)
    return AttentionPlan(
        segments_S4=segments_S4,
        q_tiles_N2=q_tiles_N2,
        k_tiles_M4=k_tiles_M4,
        num_tokens=num_tokens,
        num_tokens_k=num_tokens_k,
        covers_all=covers_all,
    )


def _num_tiles(num_rows: int, num_ranges: int) -> int:
    """At least the sum of ceil(length / TILE) over ranges that share num_rows, whatever their lengths."""
    return num_rows // TILE + min(num_rows, num_ranges) if num_ranges else 0


def _num_key_ranges(num_segments: int, covers_all: bool) -> int:
    return num_segments if covers_all else 2 * num_segments + 1


def _tiles_ref(
    segments_S4: Tensor, num_tokens: int, num_tokens_k: int, causal: bool, covers_all: bool
) -> tuple[Tensor, Tensor]:
    """Both tile tables in plain torch, longest first, idle entries last: (-1, 0) and zeros.

    A query tile lies in one segment. A key tile lies between two neighbouring ends of key ranges, so that a segment
    sees all rows of the tile or none: its program adds up the segments that do, in their order, and no row mixes with
    another document's. With cu_seqlens these are simply the tiles of each document.
    """
    _, q_len, k_start, k_len = segments_S4.long().t().contiguous().unbind()
    k_end = k_start + k_len
    num_segments = len(q_len)

    segment_N, row_N = _cut(q_len, _num_tiles(num_tokens, num_segments))
    idle_N = segment_N == num_segments
    s_N = segment_N.clamp(max=num_segments - 1)
    seen_N = k_len[s_N]  # keys that the tile's rows see: the length of its work
    if causal:
        seen_N = torch.minimum(seen_N, row_N + TILE + k_len[s_N] - q_len[s_N])
    order_N = seen_N.masked_fill(idle_N, torch.iinfo(torch.int64).min).argsort(descending=True, stable=True)
    q_tiles_N2 = torch.stack((segment_N.masked_fill(idle_N, -1), row_N.masked_fill(idle_N, 0)), dim=1)

    edges = torch.cat((k_start, k_end, k_start.new_zeros(1), k_start.new_full((1,), num_tokens_k))).sort().values
    num_ranges = _num_key_ranges(num_segments, covers_all)
    range_M, row_M = _cut(edges.diff(), _num_tiles(num_tokens_k, num_ranges))
    idle_M = range_M == len(edges) - 1
    first_M = edges[range_M.clamp(max=len(edges) - 2)] + row_M
    num_M = (edges[(range_M + 1).clamp(max=len(edges) - 1)] - first_M).clamp(max=TILE)
    # Queries that see the tile's first row. A segment adds q_len of them from k_start on; where it is causal, one fewer
    # for each row beyond k_end - q_len; and none from k_end on. Sums over sorted ends: no table of tiles x segments.
    knee = torch.maximum(k_start, k_end - q_len) if causal else k_end
    one = torch.ones_like(k_end)
    num_past_knee_M = _sum_up_to(first_M, knee, one) - _sum_up_to(first_M, k_end, one)
    rows_M = _sum_up_to(first_M, k_start, q_len) + _sum_up_to(first_M, knee, k_end - q_len)
    rows_M -= _sum_up_to(first_M, k_end, k_end) + first_M * num_past_knee_M
    order_M = rows_M.masked_fill(idle_M, -1).argsort(descending=True, stable=True)
    end_M = torch.searchsorted(k_start, first_M, right=True)
    begin_M = torch.searchsorted(k_end.cummax(0).values, first_M, right=True).minimum(end_M)
    k_tiles_M4 = torch.stack((first_M, num_M, begin_M, end_M), dim=1).masked_fill(idle_M[:, None], 0)
    return q_tiles_N2[order_N].int(), k_tiles_M4[order_M].int()


def _sum_up_to(first_M: Tensor, key_S: Tensor, value_S: Tensor) -> Tensor:
    """For each of first_M: the sum of the values whose key is at or below it."""
    key_S, order_S = key_S.sort(stable=True)
    return F.pad(value_S[order_S].cumsum(0), (1, 0))[torch.searchsorted(key_S, first_M, right=True)]


def _cut(lengths: Tensor, num_tiles: int) -> tuple[Tensor, Tensor]:
    """For each of num_tiles tiles: the range it lies in (len(lengths) where idle), its first row within the range."""
    ends = ((lengths + TILE - 1) // TILE).cumsum(0)  # the tile after each range's last
    tile_N = torch.arange(num_tiles, device=lengths.device)
    range_N = torch.searchsorted(ends, tile_N, right=True)
    begins = F.pad(ends, (1, 0))
    return range_N, (tile_N - begins[range_N]) * TILE


@torch.library.custom_op("eagle::attention_tiles", mutates_args=())
def _tiles(
    segments_S4: Tensor, num_tokens: int, num_tokens_k: int, causal: bool, covers_all: bool
) -> tuple[Tensor, Tensor]:
    """What _tiles_ref means, by csrc/attention_plan: one launch on a GPU."""
    q_tiles_N2, k_tiles_M4 = _tiles_fake(segments_S4, num_tokens, num_tokens_k, causal, covers_all)
    extension = native.load()
    plan = extension.AttentionPlan(
        segments=native.view(segments_S4),
        q_tiles=native.view(q_tiles_N2),
        k_tiles=native.view(k_tiles_M4),
        num_tokens_k=num_tokens_k,
        causal=causal,
    )
    if not segments_S4.is_cuda:
        extension.attention_plan_cpu(plan)
        return q_tiles_N2, k_tiles_M4
    native.require_cuda(OP)
    workspace = segments_S4.new_empty(extension.attention_plan_workspace_ints(plan))
    device = segments_S4.device
    stream = torch.cuda.current_stream(device).cuda_stream
    extension.attention_plan_cuda(plan, native.view(workspace), device.index, stream)
    return q_tiles_N2, k_tiles_M4


@_tiles.register_fake
def _tiles_fake(
    segments_S4: Tensor, num_tokens: int, num_tokens_k: int, causal: bool, covers_all: bool
) -> tuple[Tensor, Tensor]:
    num_segments = segments_S4.shape[0]
    num_k_tiles = _num_tiles(num_tokens_k, _num_key_ranges(num_segments, covers_all))
    return (
        segments_S4.new_empty(_num_tiles(num_tokens, num_segments), 2),
        segments_S4.new_empty(num_k_tiles, 4),
    )


def varlen_attention_ref(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor | AttentionPlan,
    *,
    cu_seqlens_k: Tensor | None = None,
    causal: bool = True,
    softmax_scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """What the kernels mean, in plain torch: SDPA a run of equal documents. Any device, fp64 too; reads cu_seqlens.
    As the kernels, it computes in the dtype of its inputs, under torch.autocast too."""
    with torch.autocast(q_THD.device.type, enabled=False):
        return _varlen_attention_ref(q_THD, k_TKD, v_TKD, cu_seqlens, cu_seqlens_k, causal, softmax_scale, return_lse)


def _varlen_attention_ref(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor | AttentionPlan,
    cu_seqlens_k: Tensor | None,
    causal: bool,
    softmax_scale: float | None,
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    if isinstance(cu_seqlens, AttentionPlan) and cu_seqlens.length:
        length = cu_seqlens.length  # nothing is read, so that torch.compile takes the whole
        segments = [(row, length, row, length) for row in range(0, cu_seqlens.num_tokens, length)]
    elif isinstance(cu_seqlens, AttentionPlan):
        segments = cu_seqlens.segments_S4.tolist()
    else:
        ends_q = cu_seqlens.tolist()
        ends_k = ends_q if cu_seqlens_k is None else cu_seqlens_k.tolist()
        segments = [(a, b - a, c, d - c) for a, b, c, d in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False)]
    # Neighbours of equal lengths become one batched call: all tiles of the vision tower in one.
    runs = _runs_of_equal_segments(sorted(segment for segment in segments if segment[1]))
    q_parts = _row_ranges(q_THD, [(q_start, num * q_len) for num, q_start, q_len, _, _ in runs])
    k_parts = _row_ranges(k_TKD, [(k_start, num * k_len) for num, _, _, k_start, k_len in runs])
    v_parts = _row_ranges(v_TKD, [(k_start, num * k_len) for num, _, _, k_start, k_len in runs])
    scale = q_THD.shape[2] ** -0.5 if softmax_scale is None else softmax_scale
    lse_dtype = torch.float64 if q_THD.dtype == torch.float64 else torch.float32
    outs, lses, row = [], [], 0
    for (num, q_start, q_len, _, k_len), q, k, v in zip(runs, q_parts, k_parts, v_parts, strict=True):
        if q_start > row:  # rows of no segment
            outs.append(q_THD.new_zeros(q_start - row, *q_THD.shape[1:]))
            lses.append(q_THD.new_full((q_THD.shape[1], q_start - row), -torch.inf, dtype=lse_dtype))
        row = q_start + num * q_len
        out_NLHD, lse_NHL = _attend(
            q.unflatten(0, (num, q_len)), k.unflatten(0, (num, k_len)), v.unflatten(0, (num, k_len)),
            causal, scale, lse_dtype if return_lse else None,
        )  # fmt: skip
        outs.append(out_NLHD.flatten(0, 1))
        if lse_NHL is not None:
            lses.append(lse_NHL.transpose(0, 1).flatten(1))
    if row < q_THD.shape[0] or not outs:
        outs.append(q_THD.new_zeros(q_THD.shape[0] - row, *q_THD.shape[1:]))
        lses.append(q_THD.new_full((q_THD.shape[1], q_THD.shape[0] - row), -torch.inf, dtype=lse_dtype))
    out_THD = outs[0] if len(outs) == 1 else torch.cat(outs)
    return (out_THD, torch.cat(lses, dim=1)) if return_lse else out_THD


def _runs_of_equal_segments(segments: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int, int]]:
    """(number, q_start, q_len, k_start, k_len) of each run of adjoining segments that share both lengths."""
    numbered = [
        # Adjoining segments of one shape share (q_start - i * q_len, k_start - i * k_len).
        ((q_len, k_len, q_start - i * q_len, k_start - i * k_len), q_start, k_start)
        for i, (q_start, q_len, k_start, k_len) in enumerate(segments)
    ]
    runs = []
    for (q_len, k_len, _, _), group in groupby(numbered, key=lambda item: item[0]):
        members = list(group)
        runs.append((len(members), members[0][1], q_len, members[0][2], k_len))
    return runs


def _row_ranges(x: Tensor, ranges: list[tuple[int, int]]) -> list[Tensor]:
    """num rows of x from start on, for each (start, num). One split, with one cat as backward, if they are all of x."""
    row = 0
    for start, num in ranges:
        if start != row:
            return [x[start : start + num] for start, num in ranges]
        row += num
    if row != x.shape[0]:
        return [x[start : start + num] for start, num in ranges]
    return list(x.split([num for _, num in ranges])) if len(ranges) > 1 else [x] * len(ranges)


def _attend(
    q_NLHD: Tensor, k_NMKD: Tensor, v_NMKD: Tensor, causal: bool, scale: float, lse_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """out (N, L, H, D) and, where a dtype is given, lse (N, H, L) of N documents of L queries and M keys each."""
    N, L, H, _ = q_NLHD.shape
    M, K = k_NMKD.shape[1:3]
    num_blind = max(L - M, 0) if causal else L * (M == 0)  # leading rows that see no key
    if num_blind == L:
        lse_NHL = None if lse_dtype is None else q_NLHD.new_full((N, H, L), -torch.inf, dtype=lse_dtype)
        return torch.zeros_like(q_NLHD), lse_NHL
    q, k, v = q_NLHD[:, num_blind:].transpose(1, 2), k_NMKD.transpose(1, 2), v_NMKD.transpose(1, 2)
    num_rows = L - num_blind
    mask_LM = None
    if causal and 1 < num_rows < M:  # one row, the last, sees every key; a square needs no mask in memory
        mask_LM = torch.ones(num_rows, M, dtype=torch.bool, device=q.device).tril(M - num_rows)
    out_NHLD = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask_LM, is_causal=causal and num_rows == M, scale=scale, enable_gqa=H != K
    )
    out_NLHD = F.pad(out_NHLD.transpose(1, 2), (0, 0, 0, 0, num_blind, 0)) if num_blind else out_NHLD.transpose(1, 2)
    if lse_dtype is None:
        return out_NLHD, None
    scores_NHLM = q.to(lse_dtype) @ k.to(lse_dtype).repeat_interleave(H // K, 1).transpose(2, 3) * scale
    if causal:
        visible_LM = torch.ones(num_rows, M, dtype=torch.bool, device=q.device).tril(M - num_rows)
        scores_NHLM = scores_NHLM.masked_fill(~visible_LM, -torch.inf)
    return out_NLHD, F.pad(scores_NHLM.logsumexp(3), (num_blind, 0), value=-torch.inf)


@triton.jit
def _load(ptr, rows, ok, stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """(rows, WIDTH) from column FIRST on; 0 beyond column D and in rows that are not ok. rows are int64."""
    cols = FIRST + tl.arange(0, WIDTH)
    mask = ok[:, None]
    if FIRST + WIDTH > D:
        mask = mask & (cols < D)[None, :]
    return tl.load(ptr + rows[:, None] * stride + cols[None, :], mask=mask, other=0.0)


@triton.jit
def _store(ptr, rows, ok, stride, value, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    cols = FIRST + tl.arange(0, WIDTH)
    mask = ok[:, None] & (cols < D)[None, :]
    tl.store(ptr + rows[:, None] * stride + cols[None, :], value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _dot(a, b, acc):  # type: ignore[no-untyped-def]
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _segment(segments_ptr, segment):  # type: ignore[no-untyped-def]
    """q_start, q_len, k_start, k_len; the starts int64, for what is multiplied by a stride."""
    ptr = segments_ptr + segment * 4
    return tl.load(ptr).to(tl.int64), tl.load(ptr + 1), tl.load(ptr + 2).to(tl.int64), tl.load(ptr + 3)


@triton.jit
def _within(i, length, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """i < length. Where whole tiles make it so (WHOLE), a constant: the compiler drops the mask."""
    if WHOLE:
        ok = tl.full(i.shape, True, tl.int1)
    else:
        ok = i < length
    return ok


@triton.jit
def _query_block(  # type: ignore[no-untyped-def]
    block, segments_ptr, tiles_ptr, num_tokens, length,
    CAUSAL: tl.constexpr, UNIFORM: tl.constexpr, TILE: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Of the block-th BLOCK_M query rows: their segment, as _segment gives it, and the first row within the segment;
    q_len is 0 where there is nothing to do."""
    if UNIFORM:
        num_blocks = tl.cdiv(length, BLOCK_M)
        if CAUSAL:  # longest first: the last block of every sequence, then the last but one
            num_sequences = num_tokens // length
            sequence, first = block % num_sequences, (num_blocks - 1 - block // num_sequences) * BLOCK_M
        else:  # a sequence's blocks side by side in time: its keys come from L2
            sequence, first = block // num_blocks, block % num_blocks * BLOCK_M
        q_start, q_len = sequence.to(tl.int64) * length, length
        k_start, k_len = q_start, q_len
    else:
        entry = tiles_ptr + (block // (TILE // BLOCK_M)).to(tl.int64) * 2
        segment = tl.load(entry)
        first = tl.load(entry + 1) + block % (TILE // BLOCK_M) * BLOCK_M
        q_start, q_len, k_start, k_len = _segment(segments_ptr, tl.maximum(segment, 0))
        q_len = tl.where(segment < 0, 0, q_len)
    return q_start, q_len, k_start, k_len, first


# Strides come in units of UNIT elements: multiplied in the kernel, the compiler knows that rows of 8 * n elements start
# at multiples of 16 bytes and loads 16 bytes at once, which the bare stride of a head, 72, would not tell it.


@triton.jit
def _fwd_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, segments_ptr, tiles_ptr,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, num_tokens, length, scale_log2,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    UNIT: tl.constexpr, CAUSAL: tl.constexpr, UNIFORM: tl.constexpr, WHOLE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out and lse of BLOCK_M query rows of one head."""
    head = tl.program_id(0) % H
    q_start, q_len, k_start, k_len, first = _query_block(
        tl.program_id(0) // H, segments_ptr, tiles_ptr, num_tokens, length, CAUSAL, UNIFORM, TILE, BLOCK_M
    )
    if first >= q_len:
        return
    q_ptr += head.to(tl.int64) * stride_qh * UNIT
    k_ptr += (head // G).to(tl.int64) * stride_kh * UNIT
    v_ptr += (head // G).to(tl.int64) * stride_vh * UNIT
    step_q, step_k, step_v = stride_qt * UNIT, stride_kt * UNIT, stride_vt * UNIT

    i = first + tl.arange(0, BLOCK_M)
    rows, ok = q_start + i, _within(i, q_len, WHOLE)
    q = _load(q_ptr, rows, ok, step_q, 0, MAIN, D)
    acc = tl.zeros([BLOCK_M, MAIN], tl.float32)
    if TAIL > 0:
        q_tail = _load(q_ptr, rows, ok, step_q, MAIN, TAIL, D)
        acc_tail = tl.zeros([BLOCK_M, TAIL], tl.float32)
    max_log2 = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)

    shift = k_len - q_len
    end, num_seen_by_all = k_len, k_len
    if CAUSAL:
        end = tl.minimum(k_len, first + BLOCK_M + shift)
        num_seen_by_all = tl.minimum(k_len, first + shift + 1)
    for n in range(0, end, BLOCK_N):
        j = n + tl.arange(0, BLOCK_N)
        j_ok = _within(j, k_len, WHOLE)
        k = _load(k_ptr, k_start + j, j_ok, step_k, 0, MAIN, D)
        s = _dot(q, tl.trans(k), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
        if TAIL > 0:
            s = _dot(q_tail, tl.trans(_load(k_ptr, k_start + j, j_ok, step_k, MAIN, TAIL, D)), s)
        if CAUSAL or not WHOLE:  # noqa: SIM102  known to the compiler, the next is not
            if n + BLOCK_N > num_seen_by_all:
                seen = j_ok[None, :]
                if CAUSAL:
                    seen = seen & (j[None, :] <= i[:, None] + shift)
                s = tl.where(seen, s, float("-inf"))
        new_max = tl.maximum(max_log2, tl.max(s, 1) * scale_log2)
        base = tl.where(new_max == float("-inf"), 0.0, new_max)  # a row that has seen no key yet
        p = tl.exp2(s * scale_log2 - base[:, None])
        shrink = tl.exp2(max_log2 - base)
        total = total * shrink + tl.sum(p, 1)
        max_log2 = new_max
        v = _load(v_ptr, k_start + j, j_ok, step_v, 0, MAIN, D)
        p = p.to(v.dtype)
        acc = _dot(p, v, acc * shrink[:, None])
        if TAIL > 0:
            v_tail = _load(v_ptr, k_start + j, j_ok, step_v, MAIN, TAIL, D)
            acc_tail = _dot(p, v_tail, acc_tail * shrink[:, None])

    blind = total == 0.0
    total = tl.where(blind, 1.0, total)
    inverse = 1.0 / total
    lse = tl.where(blind, float("-inf"), (max_log2 + tl.log2(total)) * LN2)
    tl.store(lse_ptr + head.to(tl.int64) * num_tokens + rows, lse, mask=ok)
    out_ptr += head * D
    _store(out_ptr, rows, ok, H * D, acc * inverse[:, None], 0, MAIN, D)
    if TAIL > 0:
        _store(out_ptr, rows, ok, H * D, acc_tail * inverse[:, None], MAIN, TAIL, D)


@triton.jit
def _delta_kernel(  # type: ignore[no-untyped-def]
    dout_ptr, out_ptr, lse_ptr, dlse_ptr, delta_ptr, stride_dt, stride_dh, num_tokens,
    H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(dout * out) - dlse of BLOCK rows of a head; 0 where no key is seen, even if dlse is NaN there."""
    head = tl.program_id(0) % H
    rows = (tl.program_id(0) // H).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = rows < num_tokens
    dout_ptr += head.to(tl.int64) * stride_dh * UNIT
    dout = _load(dout_ptr, rows, ok, stride_dt * UNIT, 0, WIDTH, D).to(tl.float32)
    out = _load(out_ptr + head * D, rows, ok, H * D, 0, WIDTH, D).to(tl.float32)
    at = head.to(tl.int64) * num_tokens + rows
    delta = tl.sum(dout * out, 1) - tl.load(dlse_ptr + at, mask=ok, other=0.0)
    blind = tl.load(lse_ptr + at, mask=ok, other=0.0) == float("-inf")
    tl.store(delta_ptr + at, tl.where(blind, 0.0, delta), mask=ok)


@triton.jit
def _probability(s, lse, scale_log2):  # type: ignore[no-untyped-def]
    """exp(scale * s - lse), and 0 in rows that see no key, whose lse is -inf."""
    return tl.exp2(s * scale_log2 - tl.where(lse == float("-inf"), float("inf"), lse / LN2))


@triton.jit
def _dq_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, dq_ptr, segments_ptr, tiles_ptr,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_dt, stride_dh,
    num_tokens, length, scale, scale_log2,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    UNIT: tl.constexpr, CAUSAL: tl.constexpr, UNIFORM: tl.constexpr, WHOLE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dq of BLOCK_M query rows of one head."""
    head = tl.program_id(0) % H
    q_start, q_len, k_start, k_len, first = _query_block(
        tl.program_id(0) // H, segments_ptr, tiles_ptr, num_tokens, length, CAUSAL, UNIFORM, TILE, BLOCK_M
    )
    if first >= q_len:
        return
    q_ptr += head.to(tl.int64) * stride_qh * UNIT
    k_ptr += (head // G).to(tl.int64) * stride_kh * UNIT
    v_ptr += (head // G).to(tl.int64) * stride_vh * UNIT
    dout_ptr += head.to(tl.int64) * stride_dh * UNIT
    step_q, step_k, step_v, step_d = stride_qt * UNIT, stride_kt * UNIT, stride_vt * UNIT, stride_dt * UNIT

    shift = k_len - q_len
    i = first + tl.arange(0, BLOCK_M)
    rows, ok = q_start + i, _within(i, q_len, WHOLE)
    sees = ok
    if CAUSAL and not UNIFORM:
        sees = ok & (i + shift >= 0)  # a key: dq of other rows is 0, whatever q and dout hold there
    at = head.to(tl.int64) * num_tokens + rows
    lse = tl.load(lse_ptr + at, mask=ok, other=float("-inf"))
    delta = tl.load(delta_ptr + at, mask=ok, other=0.0)
    q = _load(q_ptr, rows, sees, step_q, 0, MAIN, D)
    dout = _load(dout_ptr, rows, sees, step_d, 0, MAIN, D)
    acc = tl.zeros([BLOCK_M, MAIN], tl.float32)
    if TAIL > 0:
        q_tail = _load(q_ptr, rows, sees, step_q, MAIN, TAIL, D)
        dout_tail = _load(dout_ptr, rows, sees, step_d, MAIN, TAIL, D)
        acc_tail = tl.zeros([BLOCK_M, TAIL], tl.float32)

    end, num_seen_by_all = k_len, k_len
    if CAUSAL:
        end = tl.minimum(k_len, first + BLOCK_M + shift)
        num_seen_by_all = tl.minimum(k_len, first + shift + 1)
    for n in range(0, end, BLOCK_N):
        j = n + tl.arange(0, BLOCK_N)
        j_ok = _within(j, k_len, WHOLE)
        k = _load(k_ptr, k_start + j, j_ok, step_k, 0, MAIN, D)
        v = _load(v_ptr, k_start + j, j_ok, step_v, 0, MAIN, D)
        s = _dot(q, tl.trans(k), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
        dp = _dot(dout, tl.trans(v), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
        if TAIL > 0:
            k_tail = _load(k_ptr, k_start + j, j_ok, step_k, MAIN, TAIL, D)
            v_tail = _load(v_ptr, k_start + j, j_ok, step_v, MAIN, TAIL, D)
            s = _dot(q_tail, tl.trans(k_tail), s)
            dp = _dot(dout_tail, tl.trans(v_tail), dp)
        if CAUSAL or not WHOLE:  # noqa: SIM102  known to the compiler, the next is not
            if n + BLOCK_N > num_seen_by_all:
                seen = j_ok[None, :]
                if CAUSAL:
                    seen = seen & (j[None, :] <= i[:, None] + shift)
                s = tl.where(seen, s, float("-inf"))
        ds = (_probability(s, lse[:, None], scale_log2) * (dp - delta[:, None])).to(k.dtype)
        acc = _dot(ds, k, acc)
        if TAIL > 0:
            acc_tail = _dot(ds, k_tail, acc_tail)

    dq_ptr += head * D
    _store(dq_ptr, rows, ok, H * D, acc * scale, 0, MAIN, D)
    if TAIL > 0:
        _store(dq_ptr, rows, ok, H * D, acc_tail * scale, MAIN, TAIL, D)


@triton.jit
def _dkdv_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, segments_ptr, tiles_ptr,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_dt, stride_dh,
    num_tokens, length, scale, scale_log2,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    UNIT: tl.constexpr, CAUSAL: tl.constexpr, UNIFORM: tl.constexpr, WHOLE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dk and dv of BLOCK_N key rows of one key head: all segments that see them, all query heads of the group."""
    kv_head = tl.program_id(0) % K
    block = tl.program_id(0) // K
    if UNIFORM:
        if CAUSAL:  # longest first, as in _query_block: the first keys of a sequence are seen by all its queries
            num_sequences = num_tokens // length
            sequence, offset = block % num_sequences, block // num_sequences * BLOCK_N
        else:
            sequence, offset = block // tl.cdiv(length, BLOCK_N), block % tl.cdiv(length, BLOCK_N) * BLOCK_N
        start = sequence.to(tl.int64) * length
        first, num_rows = start + offset, length - offset
        begin_segment, end_segment = 0, 1
    else:
        entry = tiles_ptr + (block // (TILE // BLOCK_N)).to(tl.int64) * 4
        offset = block % (TILE // BLOCK_N) * BLOCK_N
        first = tl.load(entry).to(tl.int64) + offset
        num_rows = tl.load(entry + 1) - offset
        begin_segment, end_segment = tl.load(entry + 2), tl.load(entry + 3)
        if num_rows <= 0:
            return
    k_ptr += kv_head.to(tl.int64) * stride_kh * UNIT
    v_ptr += kv_head.to(tl.int64) * stride_vh * UNIT
    step_q, step_k, step_v, step_d = stride_qt * UNIT, stride_kt * UNIT, stride_vt * UNIT, stride_dt * UNIT

    r = tl.arange(0, BLOCK_N)
    rows, ok = first + r, _within(r, num_rows, WHOLE)
    k = _load(k_ptr, rows, ok, step_k, 0, MAIN, D)
    v = _load(v_ptr, rows, ok, step_v, 0, MAIN, D)
    dk = tl.zeros([BLOCK_N, MAIN], tl.float32)
    dv = tl.zeros([BLOCK_N, MAIN], tl.float32)
    if TAIL > 0:
        k_tail = _load(k_ptr, rows, ok, step_k, MAIN, TAIL, D)
        v_tail = _load(v_ptr, rows, ok, step_v, MAIN, TAIL, D)
        dk_tail = tl.zeros([BLOCK_N, TAIL], tl.float32)
        dv_tail = tl.zeros([BLOCK_N, TAIL], tl.float32)

    for segment in range(begin_segment, end_segment):
        if UNIFORM:
            q_start, q_len, k_start, k_len = start, length, start, length
        else:
            q_start, q_len, k_start, k_len = _segment(segments_ptr, segment)
        j = (rows - k_start).to(tl.int32)  # within the segment, for all rows or for none
        j_first = (first - k_start).to(tl.int32)
        if CAUSAL and not UNIFORM:  # without the first rows where they see no key, whatever q and dout hold there
            num_blind = tl.maximum(q_len - k_len, 0)
            q_start, q_len = q_start + num_blind, q_len - num_blind
        shift = k_len - q_len
        begin, end = 0, tl.where((j_first >= 0) & (j_first < k_len), q_len, 0)
        if CAUSAL:
            begin = tl.maximum(j_first - shift, 0) // BLOCK_M * BLOCK_M
        for group in range(G):
            head = kv_head * G + group
            q_head = q_ptr + head.to(tl.int64) * stride_qh * UNIT
            dout_head = dout_ptr + head.to(tl.int64) * stride_dh * UNIT
            for m in range(begin, end, BLOCK_M):
                i = m + tl.arange(0, BLOCK_M)
                q_rows, q_ok = q_start + i, _within(i, q_len, WHOLE)
                at = head.to(tl.int64) * num_tokens + q_rows
                lse = tl.load(lse_ptr + at, mask=q_ok, other=float("-inf"))
                delta = tl.load(delta_ptr + at, mask=q_ok, other=0.0)
                q = _load(q_head, q_rows, q_ok, step_q, 0, MAIN, D)
                dout = _load(dout_head, q_rows, q_ok, step_d, 0, MAIN, D)
                s = _dot(k, tl.trans(q), tl.zeros([BLOCK_N, BLOCK_M], tl.float32))  # rows are keys here
                dp = _dot(v, tl.trans(dout), tl.zeros([BLOCK_N, BLOCK_M], tl.float32))
                if TAIL > 0:
                    q_tail = _load(q_head, q_rows, q_ok, step_q, MAIN, TAIL, D)
                    dout_tail = _load(dout_head, q_rows, q_ok, step_d, MAIN, TAIL, D)
                    s = _dot(k_tail, tl.trans(q_tail), s)
                    dp = _dot(v_tail, tl.trans(dout_tail), dp)
                if CAUSAL and m + shift < j_first + BLOCK_N - 1:
                    s = tl.where(j[:, None] <= i[None, :] + shift, s, float("-inf"))
                p = _probability(s, lse[None, :], scale_log2)
                ds = (p * (dp - delta[None, :])).to(q.dtype)
                p = p.to(q.dtype)
                dv = _dot(p, dout, dv)
                dk = _dot(ds, q, dk)
                if TAIL > 0:
                    dv_tail = _dot(p, dout_tail, dv_tail)
                    dk_tail = _dot(ds, q_tail, dk_tail)

    dk_ptr += kv_head * D
    dv_ptr += kv_head * D
    _store(dk_ptr, rows, ok, K * D, dk * scale, 0, MAIN, D)
    _store(dv_ptr, rows, ok, K * D, dv, 0, MAIN, D)
    if TAIL > 0:
        _store(dk_ptr, rows, ok, K * D, dk_tail * scale, MAIN, TAIL, D)
        _store(dv_ptr, rows, ok, K * D, dv_tail, MAIN, TAIL, D)


class Launch(NamedTuple):
    block_m: int  # query rows
    block_n: int  # key rows
    num_warps: int
    num_stages: int
    max_registers: int | None = None  # a thread; 128 let two blocks of 8 warps share a multiprocessor


class Launches(NamedTuple):
    fwd: Launch
    dq: Launch
    dkdv: Launch


def pieces(head_width: int) -> tuple[int, int]:
    """Powers of two (main, tail) that hold the head width, tail 0 or 16 <= tail < main: 72 -> (64, 16)."""
    main = 1 << (head_width.bit_length() - 1)
    if main == head_width:
        return main, 0
    tail = max(16, triton.next_power_of_2(head_width - main))
    return (main, tail) if tail < main else (2 * main, 0)


def launches(head_width: int, dtype: torch.dtype, *, sm: int, whole: bool, causal: bool) -> Launches:
    """By width, dtype and chip (80, 90, 100 ...): what the compiler keeps in registers, or nearly, and what fits the
    163 KB of shared memory of sm_80 (bench/results/static). Why these: docs/notes/attention.md."""
    main, tail = pieces(head_width)
    width = main + tail
    if dtype == torch.float32:  # full fp32 products do not use the tensor cores
        launch = Launch(32, 32, 8 if width > 128 else 4, 1)
        return Launches(fwd=launch, dq=launch, dkdv=launch)
    hopper_up = 90 <= sm < 120  # 227 KB of shared memory; wgmma and tcgen05 leave registers free
    if width <= 80:
        fwd = Launch(128, 64, 8, 2, max_registers=128 if hopper_up and whole else None)  # masks would spill
        fits = hopper_up or not causal or not tail  # else 3 KB would spill
        dkdv = Launch(64 if fits else 32, 128, 8, 2)
        return Launches(fwd=fwd, dq=Launch(128, 64, 8, 2), dkdv=dkdv)
    if width <= 128:
        fwd = Launch(128, 128 if hopper_up else 64, 8, 2)
        dq = Launch(128, 64, 8, 2) if hopper_up else Launch(64, 64, 4, 2)
        return Launches(fwd=fwd, dq=dq, dkdv=Launch(32, 128, 8, 2))
    dkdv = Launch(32, 64, 8, 1) if hopper_up or width == 256 else Launch(32, 32, 4, 1)  # 3 KB would spill
    return Launches(fwd=Launch(64, 64, 8, 2), dq=Launch(64, 32, 8, 1), dkdv=dkdv)


def _sm(tensor: Tensor) -> int:
    """Of the GPU that runs the kernel, 80, 90, 100 ...; the interpreter, on a CPU, takes a Hopper GPU's launches."""
    if not tensor.is_cuda:
        return 90
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def _strides(unit: int, *tensors: Tensor) -> list[int]:
    return [x.stride(dim) // unit for x in tensors for dim in (0, 1)]


def _unit(*tensors: Tensor) -> int:
    """8 where every stride is a multiple of 8 elements, else 1."""
    return 8 if all(x.stride(dim) % 8 == 0 for x in tensors for dim in (0, 1)) else 1


def _num_blocks(num_rows: int, length: int, tiles: Tensor, block: int) -> int:
    """Blocks that cover each sequence of `length` rows; with length 0, each tile of the table."""
    return num_rows // length * triton.cdiv(length, block) if length else tiles.shape[0] * (TILE // block)


def _is_whole(length: int) -> bool:
    """Every sequence is whole tiles: no block has a row too many."""
    return length > 0 and length % TILE == 0


@torch.library.custom_op("eagle::attention_fwd", mutates_args=())
def _fwd(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    segments_S4: Tensor,
    q_tiles_N2: Tensor,
    k_tiles_M4: Tensor,
    covers_all: bool,
    causal: bool,
    softmax_scale: float,
    length: int = 0,
) -> tuple[Tensor, Tensor]:
    """out (T, H, D) and lse (H, T), fp32. The key tiles are here for backward alone."""
    T, H, D = q_THD.shape
    out_THD = q_THD.new_empty(T, H, D) if covers_all else q_THD.new_zeros(T, H, D)
    lse_HT = q_THD.new_full((H, T), -torch.inf, dtype=torch.float32)
    main, tail = pieces(D)
    unit = _unit(q_THD, k_TKD, v_TKD)
    launch = launches(D, q_THD.dtype, sm=_sm(q_THD), whole=_is_whole(length), causal=causal).fwd
    if num_programs := _num_blocks(T, length, q_tiles_N2, launch.block_m) * H:
        with on_device_of(q_THD):
            _fwd_kernel[(num_programs,)](
                q_THD, k_TKD, v_TKD, out_THD, lse_HT, segments_S4, q_tiles_N2,
                *_strides(unit, q_THD, k_TKD, v_TKD), T, length, softmax_scale * LOG2_E,
                H=H, G=H // k_TKD.shape[1], D=D, MAIN=main, TAIL=tail, UNIT=unit, CAUSAL=causal, UNIFORM=length > 0,
                WHOLE=_is_whole(length), TILE=TILE, BLOCK_M=launch.block_m, BLOCK_N=launch.block_n,
                num_warps=launch.num_warps, num_stages=launch.num_stages, maxnreg=launch.max_registers,
            )  # fmt: skip
    return out_THD, lse_HT


@_fwd.register_fake
def _(q_THD: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    T, H, D = q_THD.shape
    return q_THD.new_empty(T, H, D), q_THD.new_empty(H, T, dtype=torch.float32)


@torch.library.custom_op("eagle::attention_bwd", mutates_args=())
def _bwd(
    dout_THD: Tensor,
    dlse_HT: Tensor,
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    segments_S4: Tensor,
    q_tiles_N2: Tensor,
    k_tiles_M4: Tensor,
    covers_all: bool,
    causal: bool,
    softmax_scale: float,
    length: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq (T, H, D), dk and dv (T, K, D)."""
    T, H, D = q_THD.shape
    K = k_TKD.shape[1]
    if dout_THD.stride(2) != 1:  # a gradient expanded from a sum
        dout_THD = dout_THD.contiguous()
    dlse_HT = dlse_HT.contiguous()
    dq_THD = q_THD.new_empty(T, H, D) if covers_all else q_THD.new_zeros(T, H, D)
    dk_TKD, dv_TKD = k_TKD.new_empty(k_TKD.shape), v_TKD.new_empty(v_TKD.shape)
    delta_HT = torch.empty_like(lse_HT)
    main, tail = pieces(D)
    unit = _unit(q_THD, k_TKD, v_TKD, dout_THD)
    strides = _strides(unit, q_THD, k_TKD, v_TKD, dout_THD)
    numbers = (T, length, softmax_scale, softmax_scale * LOG2_E)
    sizes = {"G": H // K, "D": D, "MAIN": main, "TAIL": tail, "UNIT": unit, "CAUSAL": causal, "TILE": TILE}
    sizes |= {"UNIFORM": length > 0, "WHOLE": _is_whole(length)}
    _, dq, dkdv = launches(D, q_THD.dtype, sm=_sm(q_THD), whole=_is_whole(length), causal=causal)
    if T and H:
        with on_device_of(q_THD):
            _delta_kernel[(triton.cdiv(T, DELTA_BLOCK) * H,)](
                dout_THD, out_THD, lse_HT, dlse_HT, delta_HT, *_strides(unit, dout_THD), T,
                H=H, D=D, WIDTH=triton.next_power_of_2(D), UNIT=unit, BLOCK=DELTA_BLOCK, num_warps=4,
            )  # fmt: skip
    if num_programs := _num_blocks(T, length, q_tiles_N2, dq.block_m) * H:
        with on_device_of(q_THD):
            _dq_kernel[(num_programs,)](
                q_THD, k_TKD, v_TKD, dout_THD, lse_HT, delta_HT, dq_THD, segments_S4, q_tiles_N2, *strides, *numbers,
                H=H, **sizes, BLOCK_M=dq.block_m, BLOCK_N=dq.block_n,
                num_warps=dq.num_warps, num_stages=dq.num_stages, maxnreg=dq.max_registers,
            )  # fmt: skip
    if num_programs := _num_blocks(k_TKD.shape[0], length, k_tiles_M4, dkdv.block_n) * K:
        with on_device_of(q_THD):
            _dkdv_kernel[(num_programs,)](
                q_THD, k_TKD, v_TKD, dout_THD, lse_HT, delta_HT, dk_TKD, dv_TKD, segments_S4, k_tiles_M4,
                *strides, *numbers, K=K, **sizes, BLOCK_M=dkdv.block_m, BLOCK_N=dkdv.block_n,
                num_warps=dkdv.num_warps, num_stages=dkdv.num_stages, maxnreg=dkdv.max_registers,
            )  # fmt: skip
    return dq_THD, dk_TKD, dv_TKD


@_bwd.register_fake
def _(_dout: Tensor, _dlse: Tensor, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return q_THD.new_empty(q_THD.shape), k_TKD.new_empty(k_TKD.shape), v_TKD.new_empty(v_TKD.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q_THD, k_TKD, v_TKD, segments_S4, q_tiles_N2, k_tiles_M4, *ctx.options = inputs
    ctx.save_for_backward(q_THD, k_TKD, v_TKD, *output, segments_S4, q_tiles_N2, k_tiles_M4)


def _backward(ctx: Any, dout_THD: Tensor, dlse_HT: Tensor) -> tuple[Tensor | None, ...]:
    grads = _bwd(dout_THD, dlse_HT, *ctx.saved_tensors, *ctx.options)
    return (*grads, *[None] * 7)


_fwd.register_autograd(_backward, setup_context=_setup_context)


def _flash_attn(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    plan: AttentionPlan,
    causal: bool,
    softmax_scale: float,
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """The same by flash-attn's own kernels. Raises ValueError for what they cannot do, ImportError without them."""
    check(plan.covers_all, OP, "the plan", "one of segments", "cu_seqlens or a uniform plan for backend='flash_attn'")
    dtypes = (torch.bfloat16, torch.float16)
    need = "torch.bfloat16 or torch.float16 for backend='flash_attn'"
    check(q_THD.dtype in dtypes, OP, "q's dtype", q_THD.dtype, need)
    takes_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q_THD, k_TKD, v_TKD))
    need = "return_lse=False, torch.no_grad() or backend='eagle': flash-attn drops the gradient of lse"
    check(not (return_lse and takes_grad), OP, "return_lse", "True for inputs that take gradients", need)
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:
        raise ImportError(
            f"{OP}: backend='flash_attn' needs the package flash-attn (pip install 'eagle-kernels[flash-attn]'), or "
            f"take backend='eagle'. Importing it said: {error}"
        ) from error
    # cu_seqlens again: the starts of the segments and the number of rows.
    cu_seqlens = F.pad(plan.segments_S4[:, 0], (0, 1), value=plan.num_tokens)
    cu_seqlens_k = F.pad(plan.segments_S4[:, 2], (0, 1), value=plan.num_tokens_k)
    result = flash_attn_varlen_func(
        q_THD, k_TKD, v_TKD, cu_seqlens, cu_seqlens_k, *plan.longest,
        softmax_scale=softmax_scale, causal=causal, return_attn_probs=return_lse,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    if not return_lse:
        return result
    out_THD, lse_HT, _ = result
    return out_THD, lse_HT.masked_fill(lse_HT == torch.inf, -torch.inf)  # flash-attn's sign for a row that sees no key


def _varlen_attention(
    q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, plan: AttentionPlan, causal: bool, softmax_scale: float
) -> tuple[Tensor, Tensor]:
    """The kernels, on any device: CPU tensors under Triton's interpreter."""
    return _fwd(
        q_THD, k_TKD, v_TKD, plan.segments_S4, plan.q_tiles_N2, plan.k_tiles_M4, plan.covers_all,
        causal, softmax_scale, plan.length,
    )  # fmt: skip


@overload
def varlen_attention(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor | AttentionPlan,
    *,
    cu_seqlens_k: Tensor | None = ...,
    causal: bool = ...,
    softmax_scale: float | None = ...,
    return_lse: Literal[False] = ...,
    backend: Backend = ...,
) -> Tensor: ...


@overload
def varlen_attention(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor | AttentionPlan,
    *,
    cu_seqlens_k: Tensor | None = ...,
    causal: bool = ...,
    softmax_scale: float | None = ...,
    return_lse: Literal[True],
    backend: Backend = ...,
) -> tuple[Tensor, Tensor]: ...


def varlen_attention(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor | AttentionPlan,
    *,
    cu_seqlens_k: Tensor | None = None,
    causal: bool = True,
    softmax_scale: float | None = None,
    return_lse: bool = False,
    backend: Backend = "eagle",
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * q k^T) v within each document: (T, H, D), and with return_lse also the fp32 lse, (H, T).

    Differentiable in q, k and v, through the lse too. CPU tensors take `varlen_attention_ref`, of which torch.compile
    makes one graph for a uniform plan alone: it reads other offsets. There, an lse takes memory for all scores of a
    document; out does not.

    Args:   q_THD, k_TKD, v_TKD: bf16, fp16 or fp32 (on a CPU fp64 too, whose lse is fp64). The last dimension is
            contiguous, other strides are free, so that views of one fused projection need no copy (multiples of 8
            elements load fastest). H is a multiple of K; D is a multiple of 8 from 16 to 256.
            cu_seqlens: int32 (S + 1) as in AttentionPlan.from_cu_seqlens, or a plan, which is built once a batch
            instead of once a call.  cu_seqlens_k: the same for k and v, where their lengths differ.
            causal: query i of a document sees keys j <= i + k_len - q_len; otherwise all of its document.
            softmax_scale: > 0; None means D ** -0.5.
            backend: who computes on a GPU. "eagle": the kernels of this file. "flash_attn": flash-attn 2, the extra of
            that name, for bf16 and fp16 without segments; its lse takes no gradient, its backward repeats bit for bit
            only under torch.use_deterministic_algorithms, and the lengths of a plan are read on the host once.
    Raises: ValueError for a wrong dtype, device, shape, stride or head ratio, for wrong offsets in CPU tensors, and for
            what the backend cannot do. Offsets on a GPU are trusted: to check them would stop the host.
            ImportError where flash-attn is asked for and not installed. RuntimeError where offsets are CUDA tensors and
            this package was built without CUDA.
    """
    _check_inputs(q_THD, k_TKD, v_TKD, softmax_scale)
    check(backend in BACKENDS, OP, "backend", repr(backend), f"one of {', '.join(BACKENDS)}")
    need = "a CUDA device for backend='flash_attn'"
    check(backend == "eagle" or q_THD.is_cuda, OP, "q's device", q_THD.device, need)
    num_rows, num_rows_k = q_THD.shape[0], k_TKD.shape[0]
    plan = cu_seqlens
    if isinstance(plan, AttentionPlan):
        check(cu_seqlens_k is None, OP, "cu_seqlens_k", "a tensor beside a plan", "None: the plan holds its lengths")
        got, need = (plan.num_tokens, plan.num_tokens_k), f"the rows of q and of k, {(num_rows, num_rows_k)}"
        check(got == (num_rows, num_rows_k), OP, "the plan's (num_tokens, num_tokens_k)", got, need)
        device = plan.segments_S4.device
        check(device == q_THD.device, OP, "the plan's device", device, f"q's {q_THD.device}")
    else:
        _check_offsets(plan, cu_seqlens_k, num_rows, num_rows_k)
        check(plan.device == q_THD.device, OP, "cu_seqlens' device", plan.device, f"q's {q_THD.device}")
    if not q_THD.is_cuda:
        return varlen_attention_ref(
            q_THD, k_TKD, v_TKD, plan,
            cu_seqlens_k=cu_seqlens_k, causal=causal, softmax_scale=softmax_scale, return_lse=return_lse,
        )  # fmt: skip
    if not isinstance(plan, AttentionPlan):
        plan = AttentionPlan.from_cu_seqlens(
            plan, cu_seqlens_k, num_tokens=num_rows, num_tokens_k=num_rows_k, causal=causal
        )
    scale = q_THD.shape[2] ** -0.5 if softmax_scale is None else softmax_scale
    if backend == "flash_attn":
        return _flash_attn(q_THD, k_TKD, v_TKD, plan, causal, scale, return_lse)
    out_THD, lse_HT = _varlen_attention(q_THD, k_TKD, v_TKD, plan, causal, scale)
    return (out_THD, lse_HT) if return_lse else out_THD


def _check_inputs(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, softmax_scale: float | None) -> None:
    for name, x in (("q", q_THD), ("k", k_TKD), ("v", v_TKD)):
        check(x.dim() == 3, OP, f"{name}'s shape", tuple(x.shape), "three dimensions, (tokens, heads, head width)")
        check(x.stride(2) == 1, OP, f"{name}'s strides", x.stride(), "a contiguous last dimension")
    check_same(OP, "k", k_TKD, "q", q_THD)
    check_same(OP, "v", v_TKD, "q", q_THD)
    dtypes = KERNEL_DTYPES if q_THD.is_cuda else (*KERNEL_DTYPES, torch.float64)
    check(q_THD.dtype in dtypes, OP, "q's dtype", q_THD.dtype, f"one of {', '.join(str(d) for d in dtypes)}")
    _, H, D = q_THD.shape
    check(D % 8 == 0 and 16 <= D <= 256, OP, "the head width", D, "a multiple of 8 from 16 to 256")
    check(k_TKD.shape[2] == D, OP, "k's head width", k_TKD.shape[2], f"q's {D}")
    check(v_TKD.shape == k_TKD.shape, OP, "v's shape", tuple(v_TKD.shape), f"k's {tuple(k_TKD.shape)}")
    K = k_TKD.shape[1]
    check(K > 0 and H % K == 0, OP, "the number of query heads", H, f"a multiple of the {K} key/value heads")
    check(softmax_scale is None or softmax_scale > 0, OP, "softmax_scale", softmax_scale, "None or a number > 0")
