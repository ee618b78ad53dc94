"""Requests to stop after the step that is being trained: signals, an output that nobody reads any more, a time limit.

with Stop() as stop:
    while not stop.requested:
        ...                    # Ctrl-C, SIGTERM, SIGHUP: ends this loop; a second one ends the process
exit_code = 128 + stop.signal  # as shells count
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from eagle_model.train.ranks import Ranks

REPEAT_SECONDS = 5.0  # within which a signal that comes again to one of several processes is the same one


class Stop:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a request; a second one acts as it always would.

    SIGHUP that was ignored before, as `nohup` does, stays ignored.
    """

    def __init__(self, *, is_first: bool = True, is_alone: bool = True) -> None:
        """is_first: of several processes, the one that speaks.  is_alone: else one signal may come more than once, from
        a scheduler and from a launcher."""
        self._warn = _warn if is_first else _silent
        self._is_alone = is_alone
        self._asked: float | None = None  # when
        self.signal: signal.Signals | None = None  # which asked; SIGPIPE for an output that is closed
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # Python sets handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def when_closed(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """`say`, which from the first failure on says nothing: a reader that went away is a request to stop."""

        def guarded(message: str) -> None:
            if self.signal is signal.SIGPIPE:
                return
            try:
                say(message)
            except OSError as error:
                self.signal = self.signal or signal.SIGPIPE
                self._warn(f"The output cannot be written ({error.strerror}): stopping after this step, then saving.")

        return guarded

    def agreed(self, ranks: Ranks) -> bool:
        """Whether any process was asked to stop: all are, then. All call it, at the same place."""
        asked = [number for number in ranks.gather(self.signal and int(self.signal)) if number]
        if asked and self.signal is None:
            self.signal = signal.Signals(asked[0])
        return bool(asked)

    def time_is_up(self) -> None:
        """Asks as the SIGTERM that is about to come would: whoever reads the exit code need not tell them apart."""
        if self.signal is None:
            self.signal = signal.SIGTERM
            self._warn("time_limit_minutes is nearly over: saving, then stopping.")

    def _request(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked is None:
            self._asked, self.signal = now, signal.Signals(number)
            if self._is_alone:
                self._restore()
            self._warn(f"\n{self.signal.name}: stopping after this step, then saving. Once more stops at once.")
        elif now - self._asked >= REPEAT_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)


def _warn(message: str) -> None:
    # Not print: a signal may have come in the middle of one, and Python's streams cannot be entered twice.
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, f"{message}\n".encode())


def _silent(message: str) -> None:
    """Of processes other than the first."""
