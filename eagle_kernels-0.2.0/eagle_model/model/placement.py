"""Which tokens of a packed row each rank has, so that all have as many tokens and as much attention to compute.

    placement = place(np.array([0, 3000, 8192]), num_ranks=4)    # two documents
    placement.rows(0)                                            # the rows of the first rank, ascending
    placement.imbalance(cu_seqlens)                              # 1.0: every rank has the mean of the work
    placement.segments(cu_seqlens, 0)                            # whom its queries see, for AttentionPlan.from_segments

A row is cut into equal chunks and every rank gets as many of them, wherever they lie: documents end where they like.
Chunks go by their causal attention work, the largest first, each to the rank with the least so far. Rows are added at
the end so that all chunks are whole; they are of no document, so nobody sees them.

Ranks may form blocks of neighbours that attend together (inner Ulysses); a block has its ranks' chunks, ascending.

Dims     T tokens, N chunks, S documents, M segments. Plain numpy on the host: a plan takes about a millisecond.
Source   docs/notes/parallel.md has the measured balance beside zigzag's.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Order = Literal["balanced", "zigzag"]

NUM_CHUNKS = (8, 16, 32)  # a rank: more of them balance better, fewer make longer runs for the kernels
MAX_IMBALANCE = 1.05  # where fewer chunks reach it, they are taken
MIN_CHUNK_TOKENS = 128  # a query tile of the kernels: chunks are not cut smaller for the sake of balance


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    num_tokens: int  # T, without those added
    num_ranks: int
    chunk_tokens: int
    owners_N: Ints  # the rank of each chunk; every rank has as many

    @property
    def tokens_per_rank(self) -> int:
        """Of every rank, with those added at the row's end."""
        return self.chunk_tokens * (len(self.owners_N) // self.num_ranks)

    def chunks(self, rank: int) -> Ints:
        return np.flatnonzero(self.owners_N == rank)

    def rows(self, rank: int) -> Ints:
        """The rows of the packed row that this rank has, ascending, without those added."""
        rows = self.chunks(rank)[:, None] * self.chunk_tokens + np.arange(self.chunk_tokens)
        return rows[rows < self.num_tokens]

    def ranks_of(self, rows: Ints) -> Ints:
        return self.owners_N[rows // self.chunk_tokens]

    def work(self, cu_seqlens: Ints) -> Ints:
        """Of each chunk: how many keys its queries see, causally, each in its document."""
        edges = np.arange(len(self.owners_N) + 1) * self.chunk_tokens
        return np.diff(_work_before(cu_seqlens, np.minimum(edges, self.num_tokens)))

    def imbalance(self, cu_seqlens: Ints) -> float:
        """Attention work of the rank with the most over the mean, >= 1."""
        work = np.bincount(self.owners_N, self.work(cu_seqlens), self.num_ranks)
        return float(work.max() / work.mean()) if work.any() else 1.0

    def segments(self, cu_seqlens: Ints, block: int, ranks_per_block: int = 1) -> Ints:
        """(M, 4) q_start, q_len, k_start, k_len: the queries of a block, as it holds them, and the keys of the whole
        row. For causal attention, which aligns each at its end."""
        begins, ends, first_keys = self._pieces(cu_seqlens, block, ranks_per_block)
        q_start = self._num_before(begins, block, ranks_per_block)
        return np.stack((q_start, ends - begins, first_keys, ends - first_keys), axis=1)

    def ring_segments(self, cu_seqlens: Ints, block: int, keys_of: int, ranks_per_block: int = 1) -> Ints:
        """The same for keys of one block alone, as that block holds them: causal where it is the queries' own, and
        where not, without a mask, because its chunks lie before a query's or after it as a whole."""
        begins, ends, first_keys = self._pieces(cu_seqlens, block, ranks_per_block)
        q_start = self._num_before(begins, block, ranks_per_block)
        k_start = self._num_before(first_keys, keys_of, ranks_per_block)
        k_end = self._num_before(ends if keys_of == block else begins, keys_of, ranks_per_block)
        segments = np.stack((q_start, ends - begins, k_start, k_end - k_start), axis=1)
        return segments[segments[:, 3] > 0]

    def _pieces(self, cu_seqlens: Ints, block: int, ranks_per_block: int) -> tuple[Ints, Ints, Ints]:
        """Runs of rows within one document that a block has without a gap: first, end, and the document's first."""
        blocks_N = self.owners_N // ranks_per_block
        changes = (np.flatnonzero(np.diff(blocks_N)) + 1) * self.chunk_tokens
        edges = np.unique(np.concatenate((cu_seqlens, changes[changes < self.num_tokens])))
        begins, ends = edges[:-1], edges[1:]
        mine = blocks_N[begins // self.chunk_tokens] == block
        begins, ends = begins[mine], ends[mine]
        return begins, ends, cu_seqlens[np.searchsorted(cu_seqlens, begins, side="right") - 1]

    def _num_before(self, rows: Ints, block: int, ranks_per_block: int) -> Ints:
        """How many rows of a block come before each of `rows`: where it holds them, if they are its own."""
        is_its = self.owners_N // ranks_per_block == block
        num_chunks = np.concatenate(([0], np.cumsum(is_its)))
        chunk, within = np.divmod(rows, self.chunk_tokens)
        inside = np.append(is_its, False)[chunk]
        return num_chunks[chunk] * self.chunk_tokens + np.where(inside, within, 0)


def place(
    cu_seqlens: Ints, *, num_ranks: int, order: Order = "balanced", row_multiple: int = 1, num_chunks: int | None = None
) -> Placement:
    """The placement of a row of documents.

        place(np.array([0, 3000, 8192]), num_ranks=4).tokens_per_rank  # 2048

    Args:    cu_seqlens: (S + 1,) from 0 to the row's tokens.  order: "balanced", or "zigzag": rank r of P has chunks r
             and 2P - 1 - r of 2P, as ring attention for one document wants them.  row_multiple: what every rank's
             number of tokens is a multiple of (FP8).  num_chunks: of a rank, for "balanced"; None: the fewest of
             NUM_CHUNKS that reach MAX_IMBALANCE, as long as they have MIN_CHUNK_TOKENS.
    Raises:  ValueError unless num_ranks and row_multiple are >= 1 and offsets begin with 0 and do not decrease.
    """
    cu_seqlens = np.asarray(cu_seqlens, np.int64)
    if num_ranks < 1 or row_multiple < 1:
        raise ValueError(f"place: num_ranks is {num_ranks} and row_multiple {row_multiple}; both need to be >= 1.")
    if not (len(cu_seqlens) and cu_seqlens[0] == 0 and (np.diff(cu_seqlens) >= 0).all()):
        raise ValueError(f"place: cu_seqlens is {cu_seqlens.tolist()[:8]}; needs offsets from 0 that do not decrease.")
    if order == "zigzag":
        owners = np.concatenate((np.arange(num_ranks), np.arange(num_ranks)[::-1]))
        return _cut(cu_seqlens, num_ranks, 2, row_multiple, owners)
    best: Placement | None = None
    for chunks in NUM_CHUNKS if num_chunks is None else (num_chunks,):
        even = _cut(cu_seqlens, num_ranks, chunks, row_multiple, np.repeat(np.arange(num_ranks), chunks))
        if best is not None and even.chunk_tokens < MIN_CHUNK_TOKENS:
            break
        best = _balanced(even, even.work(cu_seqlens))
        if best.imbalance(cu_seqlens) <= MAX_IMBALANCE:
            break
    assert best is not None
    return best


def _cut(cu_seqlens: Ints, num_ranks: int, num_chunks: int, row_multiple: int, owners: Ints) -> Placement:
    num_tokens = int(cu_seqlens[-1])
    multiple = row_multiple // math.gcd(row_multiple, num_chunks)
    chunk_tokens = max(1, -(-num_tokens // (num_ranks * num_chunks * multiple))) * multiple
    return Placement(num_tokens=num_tokens, num_ranks=num_ranks, chunk_tokens=chunk_tokens, owners_N=owners)


def _balanced(even: Placement, work_N: Ints) -> Placement:
    owners, left = np.empty_like(even.owners_N), [len(work_N) // even.num_ranks] * even.num_ranks
    loads = [(0, rank) for rank in range(even.num_ranks)]  # a heap: the least loaded that has room for a chunk
    work = work_N.tolist()
    for chunk in np.argsort(-work_N, kind="stable").tolist():
        load, rank = heapq.heappop(loads)
        owners[chunk] = rank
        left[rank] -= 1
        if left[rank]:
            heapq.heappush(loads, (load + work[chunk], rank))
    return Placement(
        num_tokens=even.num_tokens, num_ranks=even.num_ranks, chunk_tokens=even.chunk_tokens, owners_N=owners
    )


def _work_before(cu_seqlens: Ints, rows: Ints) -> Ints:
    """Keys that the queries of all rows before each of `rows` see."""
    lengths = np.diff(cu_seqlens)
    whole = np.concatenate(([0], np.cumsum(lengths * (lengths + 1) // 2)))
    document = np.searchsorted(cu_seqlens, rows, side="right") - 1
    within = rows - cu_seqlens[document]  # 0 where a row is the end of all
    return whole[document] + within * (within + 1) // 2
