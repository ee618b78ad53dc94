"""Which row each sample goes to: rows of a fixed number of tokens, nearly as few as can be, filled about equally.

    pack_rows(torch.tensor([500, 300, 200, 100]), 600)     # tensor([0, 1, 1, 0]): rows of 600 and 500 tokens

Dims    N samples.
Rules   Best fit (the fullest row with room; of several the one that came to this much room last) says how many rows
        there are. Then as few samples as possible, from the first on, are placed by it, and the rest by worst fit (the
        emptiest row) into as many rows. Best fit alone needs few rows but leaves the last ones nearly empty; worst fit
        alone makes rows equal but strands space too small for long samples. "As few" is found by bisection, to N / 256.
Cost    O(N log N) for any capacity: rows are kept by their room, and which amounts of room occur in a tree of bits.
        CPU alone, integers alone; the interpreter's lock is free meanwhile.
Source  The textbook's best-fit and worst-fit decreasing.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import torch
from torch import Tensor

from eagle_kernels import native


def pack_rows_ref(lengths_N: Tensor, capacity: int) -> Tensor:
    """What the native code means, in plain Python; the same rows."""
    lengths = lengths_N.tolist()
    rows, num_rows = _placed(lengths, capacity, len(lengths), 0)
    assert rows is not None
    low, high = -1, len(lengths)  # with `high` samples by best fit all fit; with `low` they did not
    while high - low > 1 + len(lengths) // 256:
        middle = (low + high) // 2
        tried, _ = _placed(lengths, capacity, middle, num_rows)
        if tried is None:
            low = middle
        else:
            rows, high = tried, middle
    number = {row: n for n, row in enumerate(sorted(set(rows)))}
    return torch.tensor([number[row] for row in rows], dtype=torch.int32)


def _placed(lengths: list[int], capacity: int, num_best: int, num_rows: int) -> tuple[list[int] | None, int]:
    """The first num_best by best fit, the others by worst fit into num_rows rows; None where one does not fit."""
    rows_of: dict[int, list[int]] = {}  # by the room they have
    rooms: list[int] = []  # that occur, ascending
    rows: list[int] = []
    n = 0

    def push(room: int, row: int) -> None:
        if not rows_of.setdefault(room, []):
            insort(rooms, room)
        rows_of[room].append(row)

    def pop(k: int) -> int:
        row = rows_of[rooms[k]].pop()
        if not rows_of[rooms[k]]:
            del rooms[k]
        return row

    for length in lengths[:num_best]:
        k = bisect_left(rooms, length)
        room = rooms[k] if k < len(rooms) else capacity
        row = pop(k) if k < len(rooms) else n
        n = max(n, row + 1)
        push(room - length, row)
        rows.append(row)
    for row in range(n, num_rows):
        push(capacity, row)
    for length in lengths[num_best:]:
        room = rooms[-1]
        if room < length:
            return None, 0
        row = pop(-1)
        push(room - length, row)
        rows.append(row)
    return rows, max(n, num_rows)


def pack_rows(lengths_N: Tensor, capacity: int) -> Tensor:
    """The row of each sample, int32 (N), rows counted from 0 and none of them empty.

    lengths_N: tokens of each sample, int64 on the CPU, contiguous, each 1 to capacity, in the order in which they are
    placed: longest first packs best.  capacity: tokens that a row holds, 1 to 2**26.

    Raises ValueError when they are not so.
    """
    if lengths_N.is_cuda:
        raise ValueError("pack_rows: lengths is on a CUDA device; needs a CPU tensor.")
    rows_N = torch.empty(lengths_N.shape, dtype=torch.int32)
    if not lengths_N.numel():  # numpy's empty arrays have a stride of 0
        return rows_N
    native.load().pack_rows(native.view(lengths_N), capacity, native.view(rows_N))
    return rows_N
