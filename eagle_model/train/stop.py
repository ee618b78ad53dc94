"""Requests to stop after the step that is being trained: signals, and an output that nobody reads any more.

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
from collections.abc import Callable
from types import FrameType
from typing import Any


class Stop:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a request; a second one acts as it always would.

    SIGHUP that was ignored before, as `nohup` does, stays ignored.
    """

    def __init__(self) -> None:
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
                _warn(f"The output cannot be written ({error.strerror}): stopping after this step, then saving.")

        return guarded

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        self._restore()
        _warn(f"\n{self.signal.name}: stopping after this step, then saving. Once more stops at once.")

    def _restore(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)


def _warn(message: str) -> None:
    # Not print: a signal may have come in the middle of one, and Python's streams cannot be entered twice.
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, f"{message}\n".encode())
