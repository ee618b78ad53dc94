"""Frame times of a video: an array of seconds, or, where all frames last equally long, three numbers that stand for it.

    times = EvenTimes(num=108_000, step_ticks=512, tick_seconds=1 / 15_360)
    len(times), times[-1], times.searchsorted(np.array([1.0]))     # the array's, bit for bit; 24 bytes, not 864,000

An index of a million videos holds them so, and a plan computes the few hundred times that it needs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class EvenTimes:
    """Frame k, from 0, is at ((first + k) * step_ticks) * tick_seconds. Behaves as a float64 array where plans ask."""

    num: int  # frames, at least 1
    step_ticks: int  # at least 1, unless there is one frame
    tick_seconds: float
    first: int = 0  # of the file's frames, where a clip of it begins

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, at: Any) -> Any:
        """One time, an array of them by their numbers, or a slice of neighbours."""
        if isinstance(at, slice):
            begin, end, _ = at.indices(self.num)
            return replace(self, num=max(0, end - begin), first=self.first + begin)
        if isinstance(at, (int, np.integer)):
            return ((self.first + (int(at) + self.num if at < 0 else int(at))) * self.step_ticks) * self.tick_seconds
        return ((self.first + at.astype(np.int64)) * self.step_ticks) * self.tick_seconds

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray:
        return np.asarray(self[np.arange(self.num)], dtype)

    def searchsorted(self, seconds: Any, side: str = "left") -> Any:
        """As np.searchsorted: how many times are below (side="right": not above) each of these."""
        wanted = np.atleast_1d(np.asarray(seconds, np.float64))
        period = self.step_ticks * self.tick_seconds or 1.0
        found = (np.ceil(wanted / period) - self.first).clip(0, self.num).astype(np.int64)

        def is_before(times: NDArray) -> NDArray:
            return times < wanted if side == "left" else times <= wanted

        for _ in range(1 if side == "left" else 2):  # rounding puts it off by one at most, and so do equal times
            found += (found < self.num) & is_before(self[found])
            found -= (found > 0) & ~is_before(self[found - 1])
        return found if np.ndim(seconds) else found[0]


FrameTimes = NDArray[np.float64] | EvenTimes


def frame_times(ticks: NDArray[np.int64], tick_seconds: float) -> FrameTimes:
    """Times of frames at these ticks from the first shown one, which is at 0; bit for bit `ticks * tick_seconds`."""
    steps = np.diff(ticks)
    if len(ticks) == 1 or (steps[0] > 0 and (steps == steps[0]).all()):
        return EvenTimes(len(ticks), int(steps[0]) if len(steps) else 0, tick_seconds)
    return ticks.astype(np.float64) * tick_seconds
