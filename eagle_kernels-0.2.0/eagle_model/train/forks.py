"""Processes forked from this one, to do one thing together and end: each with a log of its own, none left behind.

    failures = fork(work, 8, folder, seconds=240)       # work(rank) in each; none, where all have done it
    print(failures[0].how, failures[0].said)            # "exit status 1", and its traceback

When one fails the others have GRACE_SECONDS, as they may have something to say too; then they are killed. So are those
that are not done in time, whatever they wait for. Who is killed first writes where it is. To be forked, a process must
not have computed gradients, nor started threads that hold what its children need.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

GRACE_SECONDS = 5.0
MAX_SAID = 6000  # characters of what a process wrote


class Failure(NamedTuple):
    rank: int
    how: str  # "exit status 1", "died of SIGKILL", "killed, not done in 240 s"
    said: str  # the end of what it wrote


def fork(work: Callable[[int], None], num_processes: int, folder: Path, *, seconds: float) -> list[Failure]:
    """work(rank) in so many processes, whose logs go to folder/<rank>.log. Returns when none is left: what went wrong,
    the first failure first."""
    deadline = time.monotonic() + seconds
    running: dict[int, int] = {}
    failed: dict[int, str] = {}
    try:
        for rank in range(num_processes):
            pid = os.fork()
            if pid == 0:
                _run(work, rank, _log(folder, rank))
            running[pid] = rank
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in running:
                rank = running.pop(pid)
                if status and rank not in failed:
                    code = os.waitstatus_to_exitcode(status)
                    failed[rank] = f"died of {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
            elif time.monotonic() > deadline:
                waited = "it waited for the others" if failed else f"not done in {seconds:g} s"
                failed |= dict.fromkeys(running.values(), f"killed, {waited}")
                _dump_and_kill(running)
            else:
                time.sleep(0.005)
    finally:  # an interrupt leaves nothing running
        for pid in running:
            os.kill(pid, signal.SIGKILL)
        for pid in running:
            os.waitpid(pid, 0)
    return [Failure(rank, how, _end_of(_log(folder, rank))) for rank, how in failed.items()]


def _dump_and_kill(running: dict[int, int]) -> None:
    for ask in (signal.SIGUSR1, signal.SIGKILL):  # where they are, then
        for pid in running:
            os.kill(pid, ask)
        time.sleep(0.3)


def _log(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.log"


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-MAX_SAID:] if log.exists() else ""


def _run(work: Callable[[int], None], rank: int, log: Path) -> None:
    """Never returns."""
    code = 1
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        faulthandler.register(signal.SIGUSR1, file=2)
        work(rank)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
