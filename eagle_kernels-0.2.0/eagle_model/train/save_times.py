"""Saving by the clock: every so many minutes, and in good time before a job's time is over.

    times = SaveTimes(save_every_minutes=10, time_limit_minutes=24 * 60)
    times.step_done(longest_save_seconds=4.0)    # after each step
    times.is_save_due, times.is_up               # save; save and stop
    times.saved()

What a step and a save take is what the longest ones so far took: stopping leaves room for two more of each, and for the
way out. One process of a run looks at the clock, and tells the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable

RESERVE_SECONDS = 60.0  # beside steps and saves: the report, the end of processes, clocks that differ
MAX_RESERVE_SHARE = 0.1  # of the limit: a short job has no minute to spare


class SaveTimes:
    """Of one job, whose time begins when this is made."""

    def __init__(
        self,
        *,
        save_every_minutes: float | None,
        time_limit_minutes: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every = None if save_every_minutes is None else 60 * save_every_minutes
        self._limit = None if time_limit_minutes is None else 60 * time_limit_minutes
        self._clock = clock
        self._start = self._saved = clock()
        self._last_step: float | None = None  # when it was done
        self._longest_step = self._longest_save = 0.0

    @property
    def looks_at_clock(self) -> bool:
        """Whether there is anything to ask."""
        return self._every is not None or self._limit is not None

    def step_done(self, *, longest_save_seconds: float) -> None:
        """longest_save_seconds: of a save, from its begin until all was on the disk; 0 before the first."""
        now = self._clock()
        if self._last_step is not None:
            self._longest_step = max(self._longest_step, now - self._last_step)
        self._last_step, self._longest_save = now, longest_save_seconds

    def saved(self) -> None:
        """A save has begun."""
        self._saved = self._clock()

    @property
    def is_save_due(self) -> bool:
        return self._every is not None and self._clock() - self._saved >= self._every

    @property
    def is_up(self) -> bool:
        """Whether there is no time for another step and the saves around it."""
        if self._limit is None:
            return False
        reserve = min(RESERVE_SECONDS, MAX_RESERVE_SHARE * self._limit)
        needs = 2 * (self._longest_step + self._longest_save) + reserve
        return self._clock() - self._start + needs >= self._limit
