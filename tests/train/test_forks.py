"""Processes that are forked to do one thing: how each ended is told, and none is left. Forked from `tests.ranks`."""

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from eagle_model.train.forks import fork
from tests.ranks import run


def ends(how: str) -> list[list]:
    def work(rank: int) -> None:
        print(f"here is {rank}")
        if rank == 0 or how == "all do it":
            return
        if how == "raises":
            raise LookupError("nothing there")
        if how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        while True:  # as a process that waits for another's bytes, whatever is asked of it
            time.sleep(0.1)

    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        failures = fork(work, 2, Path(folder), seconds=1.0)
        assert time.monotonic() - begun < 60
    with pytest.raises(ChildProcessError):  # none is left
        os.waitpid(-1, os.WNOHANG)
    return [list(failure) for failure in failures]


@pytest.mark.parametrize(
    ("how", "told", "said"),
    [
        ("raises", "exit status 1", "LookupError: nothing there"),
        ("dies", "died of SIGKILL", ""),
        ("hangs", "killed, not done in 1 s", "in work"),
    ],
)
def test_who_failed_is_told_with_what_it_wrote(how, told, said):
    ((failure,),) = run(ends, 1, how)
    assert failure[:2] == [1, told]
    assert said in failure[2]


def test_nothing_is_told_of_those_that_did_it():
    assert run(ends, 1, "all do it") == [[]]
