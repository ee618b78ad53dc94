"""Packed rows: which samples share one (`pack`, numbers only), and the batch made of them (`pack_row`).

    pack([300, 200, 500, 100], 600)       # rows of indices, e.g. [[2, 3], [0, 1]]: 600 and 500 of 600 tokens

`pack` takes nearly the fewest rows, and fills them about equally.
Two greedy rules, both from the longest sample to the shortest. Best fit (the fullest row with room) needs few rows
but leaves the last ones nearly empty; worst fit (the emptiest row) makes rows equal but strands space too small for
long samples. So best fit says how many rows there are and places the longest samples, as few of them as leave room
for all the rest; worst fit then levels the rows with the short ones.

Source: the need for balance, arXiv:2504.15271; the rules are the textbook's best-fit and worst-fit decreasing.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.data.chat import TokenizedSample

Rows = list[list[int]]


def pack(lengths: Sequence[int], capacity: int, *, seed: int = 0) -> Rows:
    """Every sample in exactly one row, no row over capacity.

    Args:    lengths: tokens of each sample, 1 to capacity.  capacity: tokens a row holds.
             seed: orders the rows and mixes samples of about equal length; take another each epoch.
    Returns: rows of indices into lengths, the same for the same arguments.
    Raises:  ValueError if capacity is below 1 or a length is not in 1..capacity.
    """
    if capacity < 1:
        raise ValueError(f"pack: capacity is {capacity}; needs at least 1 token.")
    for i, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"pack: sample {i} has length {length}; needs at least 1 token. Leave empty samples out.")
        if length > capacity:
            raise ValueError(
                f"pack: sample {i} has {length} tokens and a row holds {capacity}. "
                "Plan it with context_tokens no larger than the row, or leave it out."
            )

    # Longest first, but lengths within a few per cent in any order: else samples of one row would meet in every epoch.
    # Measured on 10,000 mixed lengths: 2 % parts most pairs and costs at most a row in a thousand.
    shuffler = random.Random(seed)
    about = [length * shuffler.uniform(0.98, 1.02) for length in lengths]
    order = sorted(range(len(lengths)), key=lambda i: -about[i])

    rows = _best_fit(order, lengths, capacity)
    num_rows = len(rows)
    # The fewest samples for best fit, to 1/256 of all: with `high` of them everything fits, with `low` it did not.
    low, high = -1, len(order)
    while high - low > 1 + len(order) // 256:
        middle = (low + high) // 2
        packed = _worst_fit(_best_fit(order[:middle], lengths, capacity), num_rows, order[middle:], lengths, capacity)
        if packed is None:
            low = middle
        else:
            rows, high = packed, middle

    shuffler.shuffle(rows)
    return rows


def pack_row(samples: Sequence[TokenizedSample], patches_IPK: Tensor) -> PackedBatch:
    """One row: documents end to end, labels shifted within each, positions from 0 in each.

    patches_IPK: the pixels of all samples, in their order. Raises ValueError when `samples` is empty.
    """
    if not samples:
        raise ValueError("pack_row: no samples; needs at least one.")
    lengths = [sample.token_ids_T.numel() for sample in samples]
    starts = [0, *accumulate(lengths)]
    shifted = [torch.cat([s.labels_T[1:], s.labels_T.new_full((1,), IGNORE_INDEX)]) for s in samples]
    labels_T = torch.cat(shifted)
    return PackedBatch(
        token_ids_T=torch.cat([sample.token_ids_T for sample in samples]),
        labels_T=labels_T,
        positions_T=torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths]),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        patches_IPK=patches_IPK,
        visual_rows_N=torch.cat([s.visual_positions_N + start for s, start in zip(samples, starts)]),
        sample_ids=tuple(sample.id for sample in samples),
        num_labelled=int((labels_T != IGNORE_INDEX).sum()),
    )


def _best_fit(order: Sequence[int], lengths: Sequence[int], capacity: int) -> Rows:
    """Each sample to the fullest row that has room for it, or to a new row."""
    rows: Rows = []
    room: list[tuple[int, int]] = []  # (tokens left, row), ascending
    for i in order:
        k = bisect_left(room, (lengths[i], 0))
        if k < len(room):
            left, row = room.pop(k)
        else:
            left, row = capacity, len(rows)
            rows.append([])
        rows[row].append(i)
        insort(room, (left - lengths[i], row))
    return rows


def _worst_fit(rows: Rows, num_rows: int, order: Sequence[int], lengths: Sequence[int], capacity: int) -> Rows | None:
    """`rows` made up to num_rows, each sample added to the emptiest; None if one does not fit there."""
    rows = rows + [[] for _ in range(num_rows - len(rows))]
    fill = [(sum(lengths[i] for i in row), k) for k, row in enumerate(rows)]
    heapq.heapify(fill)
    for i in order:
        used, row = fill[0]
        if used + lengths[i] > capacity:
            return None
        rows[row].append(i)
        heapq.heapreplace(fill, (used + lengths[i], row))
    return [row for row in rows if row]
