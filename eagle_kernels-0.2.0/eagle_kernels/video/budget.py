"""When decoding must stop: its time is used up, another thread says so, or nobody waits for the frames any more.

budget = Budget(path, limit_seconds=30.0)
for frame in budget.timed(frames):        # the clock stands still while the caller works with a frame
    ...
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator
from concurrent.futures import CancelledError
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from eagle_kernels.video.info import VideoError

T = TypeVar("T")


class CallerHasGone(Exception):
    """Ends a worker whose frames are not wanted any more."""


class Budget:
    """One for all workers of a call. They `look` at it between packets."""

    def __init__(self, path: Path, limit_seconds: float | None, stop: threading.Event | None = None) -> None:
        self.stop = stop or threading.Event()
        self.deadline = math.inf  # of time.monotonic()
        self.limit_seconds = limit_seconds
        self._path = path

    def started(self) -> Budget:
        """Itself, with the clock running from now on: for work that is one piece."""
        if self.limit_seconds is not None:
            self.deadline = time.monotonic() + self.limit_seconds
        return self

    def look(self) -> None:
        """`check`, at little cost while nothing is due."""
        if self.stop.is_set() or time.monotonic() > self.deadline:
            self.check()

    def check(self) -> None:
        """Raises CancelledError when `stop` is set, CallerHasGone after `leave`, VideoError when the time is up."""
        if self.has_gone:
            raise CallerHasGone
        if self.stop.is_set():
            raise CancelledError
        if time.monotonic() > self.deadline:
            raise VideoError(
                f"{self._path}: decoding took more than time_limit_seconds = {self.limit_seconds:g} s. "
                f"Allow more, or leave the file out."
            )

    @property
    def has_gone(self) -> bool:
        return self.deadline == -math.inf

    def leave(self) -> None:
        """The caller wants no more."""
        self.deadline = -math.inf

    def timed(self, results: Generator[T, None, None]) -> Generator[T, None, None]:
        """`results`; the clock runs while the caller waits for the next one."""
        left_seconds = math.inf if self.limit_seconds is None else self.limit_seconds
        with closing(results):
            while True:
                self.deadline = time.monotonic() + left_seconds
                try:
                    result = next(results)
                except StopIteration:
                    return
                left_seconds = self.deadline - time.monotonic()
                self.deadline = math.inf
                yield result
