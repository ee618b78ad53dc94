"""Who attends to whom: AttentionPlan, built once a batch and used by every layer, forward and backward.

    plan = AttentionPlan.from_cu_seqlens(torch.tensor([0, 3, 7], dtype=torch.int32), num_tokens=7)
    out_THD = varlen_attention(q_THD, k_TKD, v_TKD, plan)  # two documents, of 3 and 4 tokens

A segment is a run of query rows and the run of key rows that they may see; usually a document. Kernels take segments in
tiles of 128 rows, from two tables that list them longest first, so that no multiprocessor is left with a long one at
the end.

Dims    S segments, N query tiles, M key tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle_kernels import native
from eagle_kernels.checks import has_no_numbers, kind_of, refuse, refuse_types, refuse_unlike
from eagle_kernels.library import custom_op

TILE = 128  # rows that one entry of a tile table stands for; every BLOCK divides it; kTile of csrc/attention_plan.h


@dataclass(frozen=True, kw_only=True, eq=False)
class AttentionPlan:
    """Which query rows see which key rows, and the order in which kernels take them: longest first.

        cu_seqlens = torch.tensor([0, 3, 7], dtype=torch.int32)  # two documents, of 3 and 4 tokens
        plan = AttentionPlan.from_cu_seqlens(cu_seqlens, num_tokens=7)
        out_THD = varlen_attention(q_THD, k_TKD, v_TKD, plan)

    Build it once a batch, by `from_cu_seqlens`, `from_segments` or `uniform`, and use it in every layer, forward and
    backward. Nothing here waits for the device: table sizes are bounds known from shapes, and entries beyond the last
    tile are idle. Whether offsets are right is checked for CPU tensors alone; wrong offsets on a GPU read or write
    outside the tensors. Two plans are equal if they are one object: comparing their tables would wait for the device.
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

            plan = AttentionPlan.uniform(3, 1024, device="cuda")  # three tiles of 1024 patches

        The kernels read no table and, where `length` is a multiple of 128, mask nothing.

        Raises: ValueError unless num_sequences >= 0 and length >= 1.
        """
        op = "AttentionPlan.uniform"
        if not (isinstance(num_sequences, int) and num_sequences >= 0):
            refuse(op, "num_sequences", num_sequences, "a whole number >= 0")
        if not (isinstance(length, int) and length >= 1):
            refuse(op, "length", length, "a whole number >= 1")
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

            AttentionPlan.from_cu_seqlens(torch.tensor([0, 3, 7], dtype=torch.int32), num_tokens=7)

        Args:   cu_seqlens, cu_seqlens_k: (S + 1,) int32, S documents: from 0, not decreasing, to the number of rows.
                num_tokens, num_tokens_k: the rows of q and of k; num_tokens_k None means the same.
                causal: how the plan will be used. It decides the order of work only, never a number.
        Raises: ValueError for a wrong dtype, shape or device, and for wrong offsets in CPU tensors. RuntimeError for
                CUDA tensors in a build without CUDA.
        """
        op = "AttentionPlan.from_cu_seqlens"
        num_tokens_k = _check_num_tokens(op, num_tokens, num_tokens_k)
        check_offsets(op, cu_seqlens, cu_seqlens_k, num_tokens, num_tokens_k)
        cu_seqlens_k = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
        segments_S4 = torch.stack((cu_seqlens[:-1], cu_seqlens.diff(), cu_seqlens_k[:-1], cu_seqlens_k.diff()), dim=1)
        return _plan(op, segments_S4, num_tokens, num_tokens_k, causal, covers_all=True)

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

            columns = torch.tensor([[0, 3, 0, 3], [3, 4, 0, 7]], dtype=torch.int32).unbind(1)  # the second sees all
            AttentionPlan.from_segments(*columns, num_tokens=7)

        Query ranges must not overlap; key ranges may, in any order. Rows of no segment give out = 0 and lse = -inf.
        causal aligns each segment at its end.

        Args:   q_start, q_len, k_start, k_len: (S,) int32, S segments.
                num_tokens, num_tokens_k: the rows of q and of k; num_tokens_k None means the same.
                causal: how the plan will be used. It decides the order of work only, never a number.
        Raises: ValueError for a wrong dtype, shape or device, and for wrong ranges in CPU tensors. RuntimeError for
                CUDA tensors in a build without CUDA.
        """
        op = "AttentionPlan.from_segments"
        num_tokens_k = _check_num_tokens(op, num_tokens, num_tokens_k)
        if not (
            isinstance(q_start, Tensor)
            and isinstance(q_len, Tensor)
            and isinstance(k_start, Tensor)
            and isinstance(k_len, Tensor)
        ):
            refuse_types(op, q_start=q_start, q_len=q_len, k_start=k_start, k_len=k_len)
        for name, x in (("q_start", q_start), ("q_len", q_len), ("k_start", k_start), ("k_len", k_len)):
            if x.dtype != torch.int32:
                refuse(op, f"{name}'s dtype", x.dtype, "int32")
            if x.dim() != 1:
                refuse(op, f"{name}'s shape", tuple(x.shape), "(S,)")
            if x.shape != q_start.shape:
                refuse(op, f"{name}'s shape", tuple(x.shape), f"q_start's {tuple(q_start.shape)}")
            if x.dtype != q_start.dtype or x.device != q_start.device:
                refuse_unlike(op, name, x, "q_start", q_start)
        segments_S4 = torch.stack((q_start, q_len, k_start, k_len), dim=1)
        if segments_S4.device.type == "cpu" and not has_no_numbers(segments_S4):
            _check_segments(op, segments_S4, num_tokens, num_tokens_k)
        segments_S4 = segments_S4[k_start.argsort(stable=True)]
        return _plan(op, segments_S4, num_tokens, num_tokens_k, causal, covers_all=False)


def _check_num_tokens(op: str, num_tokens: int, num_tokens_k: int | None) -> int:
    """The number of key rows."""
    num_tokens_k = num_tokens if num_tokens_k is None else num_tokens_k
    if not (isinstance(num_tokens, int) and num_tokens >= 0):
        refuse(op, "num_tokens", num_tokens, "a whole number >= 0")
    if not (isinstance(num_tokens_k, int) and num_tokens_k >= 0):
        refuse(op, "num_tokens_k", num_tokens_k, "a whole number >= 0")
    return num_tokens_k


def check_offsets(op: str, cu_seqlens: Tensor, cu_seqlens_k: Tensor | None, num_tokens: int, num_tokens_k: int) -> None:
    """Raises ValueError, in the name of `op`, unless both say where documents of q and of k begin and end."""
    _check_cu_seqlens(op, "cu_seqlens", cu_seqlens, num_tokens)
    if cu_seqlens_k is None:
        if num_tokens_k != num_tokens:
            refuse(op, "the number of key rows", num_tokens_k, f"q's {num_tokens}, or cu_seqlens_k")
        return
    if not isinstance(cu_seqlens_k, Tensor):
        refuse_types(op, cu_seqlens_k=cu_seqlens_k)
    if cu_seqlens_k.dtype != cu_seqlens.dtype or cu_seqlens_k.device != cu_seqlens.device:
        refuse_unlike(op, "cu_seqlens_k", cu_seqlens_k, "cu_seqlens", cu_seqlens)
    if cu_seqlens_k.shape != cu_seqlens.shape:
        refuse(op, "cu_seqlens_k's shape", tuple(cu_seqlens_k.shape), f"cu_seqlens' {tuple(cu_seqlens.shape)}")
    _check_cu_seqlens(op, "cu_seqlens_k", cu_seqlens_k, num_tokens_k)


def _check_cu_seqlens(op: str, name: str, cu_seqlens: Tensor, num_tokens: int) -> None:
    if not isinstance(cu_seqlens, Tensor):
        refuse(op, name, kind_of(cu_seqlens), "a torch tensor of int32, (S + 1,)")
    if cu_seqlens.dtype != torch.int32:
        refuse(op, f"{name}'s dtype", cu_seqlens.dtype, "int32")
    shape = tuple(cu_seqlens.shape)
    if not (len(shape) == 1 and shape[0] >= 1):
        refuse(op, f"{name}'s shape", shape, "(S + 1,), one dimension that starts with 0")
    if cu_seqlens.device.type != "cpu" or has_no_numbers(cu_seqlens):
        return
    ends = cu_seqlens.tolist()
    if ends[0] != 0:
        refuse(op, f"{name}[0]", ends[0], "0")
    for s, (begin, end) in enumerate(pairwise(ends)):
        if begin > end:
            refuse(op, f"{name}[{s + 1}]", end, f"at least {name}[{s}], which is {begin}")
    if ends[-1] != num_tokens:
        refuse(op, f"{name}[-1]", ends[-1], f"the number of rows, {num_tokens}")


def _check_segments(op: str, segments_S4: Tensor, num_tokens: int, num_tokens_k: int) -> None:
    segments = segments_S4.tolist()
    for s, (q_start, q_len, k_start, k_len) in enumerate(segments):
        for name, start, length, rows in (("q", q_start, q_len, num_tokens), ("k", k_start, k_len, num_tokens_k)):
            got = f"{name}_start {start} and {name}_len {length}"
            if not (start >= 0 and length >= 0 and start + length <= rows):
                refuse(op, f"segment {s}", got, f"both >= 0 and an end within the {rows} rows of {name}")
    row = 0
    for q_start, q_len, _, _ in sorted(segment for segment in segments if segment[1]):
        if not q_start >= row:
            refuse(
                op, "a segment's q_start", q_start, f"query ranges that do not overlap; the one before ends at {row}"
            )
        row = q_start + q_len


def _plan(
    op: str, segments_S4: Tensor, num_tokens: int, num_tokens_k: int, causal: bool, *, covers_all: bool
) -> AttentionPlan:
    if segments_S4.is_cuda and not has_no_numbers(segments_S4) and not torch.compiler.is_compiling():
        native.require_cuda(op)
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


@custom_op("eagle::attention_tiles")
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
