"""One rising clock for packets whose own times repeat, restart, or are those of storage. Numbers only.

    starts = runs(pts_D, is_key_D, is_shown_D, None, reorders=True)   # [0, 60]: a second film, from time 0 again
    pts_D = one_after_another(stored, starts) # its times go on where the first film ends

Films that were joined without new time stamps show two pictures at one time, or the second film's pictures between the
first one's. What then is "the frame at 3 s" must not depend on the way there. So each run of packets that agree among
themselves gets its own place on one clock, in the order of storage, and equal times within a run are spread.

Dims    D packets in the order of storage; N frames in the order in which a decoder gives them.
Times   in ticks of the stream's time base.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eagle_kernels.video.info import NO_TIME

MOST_REORDERED = 16  # pictures that one may be stored ahead of those shown before it; H.264 and HEVC allow no more
REORDERING_CODECS = ("h264", "hevc")
MOST_AT_ONE_TIME = 8  # beyond it times are not rounded but missing


class Stored(NamedTuple):
    """What the container says of every packet."""

    pts_D: NDArray[np.int64]  # NO_TIME where there is none
    dts_D: NDArray[np.int64]
    duration_D: NDArray[np.int64]  # 0 if unknown
    position_D: NDArray[np.int64]  # bytes from the start of the file, -1 if unknown
    is_key_D: NDArray[np.bool_]
    is_corrupt_D: NDArray[np.bool_]
    is_shown_D: NDArray[np.bool_]
    is_second_field_D: NDArray[np.bool_]  # of the picture that the packet before began

    def joined(self) -> Stored:
        """With one packet for both fields of a picture."""
        firsts = np.flatnonzero(~self.is_second_field_D)
        return Stored(
            self.pts_D[firsts],
            self.dts_D[firsts],
            np.add.reduceat(self.duration_D, firsts),
            self.position_D[firsts],
            self.is_key_D[firsts],
            np.logical_or.reduceat(self.is_corrupt_D, firsts),
            self.is_shown_D[firsts],
            self.is_second_field_D[firsts],
        )


def runs(
    pts_D: NDArray[np.int64],
    is_key_D: NDArray[np.bool_],
    is_shown_D: NDArray[np.bool_],
    dts_D: NDArray[np.int64] | None,
    *,
    reorders: bool,
) -> list[int]:
    """Where each run of packets begins that agree on one clock; [0] for an ordinary file.

    A new one begins at a key packet where the time of decoding steps back (None: not known); and at a packet that is
    one or the other, if it is shown before the run's first packet, or before one that lies too far back to be reordered
    with it.
    """
    pts_D = np.where(is_shown_D, pts_D, NO_TIME)
    num_reordered = MOST_REORDERED if reorders else 0
    steps_back_D = np.zeros(len(pts_D), np.bool_)
    if dts_D is not None:
        steps_back_D[1:] = (dts_D[1:] < dts_D[:-1]) & (dts_D[1:] != NO_TIME)
    may_begin_D = (is_key_D | steps_back_D) & (pts_D != NO_TIME)
    may_begin_D[0] = False
    highest_D = np.maximum.accumulate(pts_D)
    before_D = np.concatenate([np.full(min(num_reordered + 1, len(pts_D)), NO_TIME), highest_D])[: len(pts_D)]
    starts, seen, highest = [0], 0, NO_TIME  # of the run, but for those that may be reordered with the next packet
    # The highest time of all runs is at least this one's: most packets are passed over at once.
    is_sure_D = steps_back_D & is_key_D
    for place in np.flatnonzero(may_begin_D & (is_sure_D | (pts_D <= before_D) | (pts_D <= pts_D[0]))).tolist():
        if place - num_reordered > seen:
            highest = max(highest, int(pts_D[seen : place - num_reordered].max()))
            seen = place - num_reordered
        if is_sure_D[place] or pts_D[place] <= max(highest, int(pts_D[starts[-1]])):
            starts.append(place)
            seen, highest = place, NO_TIME
    return starts


def one_after_another(stored: Stored, starts: list[int]) -> NDArray[np.int64]:
    """(D,) the packets' times where each run begins as the one before ends. NO_TIME stays."""
    pts_D = stored.pts_D.copy()
    ends = None
    for first, end in zip(starts, [*starts[1:], len(pts_D)]):
        run, has_time = pts_D[first:end], (pts_D[first:end] != NO_TIME) & stored.is_shown_D[first:end]
        if not has_time.any():
            continue
        if ends is not None:
            run[run != NO_TIME] += ends - run[has_time].min()
        last = int(np.where(has_time, run, NO_TIME).argmax())
        steps = np.diff(np.sort(run[has_time]))
        usual = int(np.median(steps)) if len(steps) else 1
        ends = int(run[last]) + max(1, int(stored.duration_D[first + last]) or usual)
    return pts_D


def spread(times_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], int] | None:
    """(the times of frames in the order shown, made to rise; the finer ticks that one tick is divided into); None where
    so many share one time that it tells nothing."""
    times_N = np.maximum.accumulate(times_N)
    _, first_N, num_N = np.unique(times_N, return_index=True, return_counts=True)
    finer = int(num_N.max())
    if finer > MOST_AT_ONE_TIME:
        return None
    rank_N = np.arange(len(times_N)) - np.repeat(first_N, num_N)
    return times_N * finer + rank_N, finer
