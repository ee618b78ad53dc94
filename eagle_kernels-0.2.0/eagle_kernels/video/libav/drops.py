"""Whether a file keeps its word on what may be left out: one frame is decoded both ways, once a file and process.

    drop = drops_are_safe(index, groups, budget)      # then reader.frames(group, drop=drop)

What its packets say of themselves decides what is left out (bitstream/). A file that lies would give wrong pictures, so
the first call that asks for enough of it pays for a check; its verdict is remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np
import torch

from eagle_kernels.video.budget import Budget
from eagle_kernels.video.info import PacketIndex
from eagle_kernels.video.libav.picture import Scaler, to_rgb
from eagle_kernels.video.libav.reader import Reader
from eagle_kernels.video.plan import Group, plan
from eagle_kernels.video.ranged import stamp_of

CODECS = ("h264", "hevc", "av1")
WORTH_A_CHECK = 8  # times the packets of the check must be asked for: below that decoding all is cheaper
GROUPS_TRIED = 16  # each a quarter longer than the last, until one leaves out enough: bounds the reading
DROPS_CHECKED = 8  # packets that must have been left out without a change in the frame after them
MAX_VERDICTS = 4096  # files whose check is remembered: bounds the memory

_verdicts: dict[tuple[str | int, ...], bool] = {}  # of (path, bytes, time changed or another tag)


def drops_are_safe(index: PacketIndex, groups: Sequence[Group], budget: Budget) -> bool:
    """Decodes one frame from all the packets before it and from those alone that it needs; True if it is the same to
    the byte. False, too, if nothing is known of the file yet and the check would be too large a part of the work."""
    if index.codec not in CODECS:
        return False
    file = (str(index.path.resolve()), *stamp_of(index.path, index.ranged))
    if file not in _verdicts:
        to_check = _groups_to_check(index, groups)
        if not to_check:
            return False
        if len(_verdicts) >= MAX_VERDICTS:
            _verdicts.clear()
        _verdicts[file] = _check(index, to_check, budget)
    return _verdicts[file]


def _groups_to_check(index: PacketIndex, groups: Sequence[Group]) -> list[Group]:
    """Groups of one frame each, the cheapest first; [] if none is cheap enough."""
    apart = plan(index, np.unique([i for group in groups for i in group.frames]), join=False)
    num_packets = sum(g.end_place - g.first_place for g in apart)
    ways = [Group(g.key, g.first_place, int(index.place_N[i]) + 1, (i,)) for g in apart for i in g.frames]
    chosen: list[Group] = []
    longest: float = DROPS_CHECKED
    for length, group in sorted((g.end_place - g.first_place, g) for g in ways):
        if length > longest and WORTH_A_CHECK * length <= num_packets:
            chosen.append(group)
            longest = 1.25 * length
    return chosen[:GROUPS_TRIED]


def _check(index: PacketIndex, groups: Sequence[Group], budget: Budget) -> bool:
    """By the first of the groups that leaves out DROPS_CHECKED packets; False if none does."""
    scaler = Scaler()
    with closing(Reader(index, budget)) as reader:
        group = next((g for g in groups if reader.num_needless(g) >= DROPS_CHECKED), None)
        if group is None:
            return False
        (without,) = reader.frames(group, drop=True)
        (whole,) = reader.frames(group, drop=False)
        if without is None or whole is None or reader.num_missed:
            return False
        return torch.equal(to_rgb(without, index, scaler), to_rgb(whole, index, scaler))
