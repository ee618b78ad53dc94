"""What ends decoding early: time that is used up, another thread, a caller that has gone."""

import math
import threading
import time
from collections.abc import Generator
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")


from eagle_kernels.video import VideoError, decode
from eagle_kernels.video.budget import Budget, CallerHasGone
from eagle_kernels.video.libav import reader
from tests.video.make import (
    GoldenSet,
)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_time_limit_ends_the_work(golden: GoldenSet, num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = golden.good["long_gop.mp4"].path
    frames = decode(path, [0.0, 11.0], num_workers=num_workers, time_limit_seconds=1.5)
    whole = reader.decode
    monkeypatch.setattr(reader, "decode", lambda packet, decoder: time.sleep(0.05) or whole(packet, decoder))
    assert next(frames).timestamp_seconds == 0.0
    time.sleep(1.6 if num_workers == 1 else 0.5)  # the caller's own time does not count
    with pytest.raises(VideoError, match=r"long_gop\.mp4: decoding took more than time_limit_seconds = 1\.5 s"):
        next(frames)


def test_what_ends_the_work_is_told_apart() -> None:
    budget, stop = Budget(Path("a.mp4"), 2.0), threading.Event()
    budget.check()
    budget.deadline = time.monotonic() - 1
    with pytest.raises(VideoError, match=r"a\.mp4: decoding took more than time_limit_seconds = 2 s"):
        budget.check()
    budget.leave()
    assert budget.has_gone
    with pytest.raises(CallerHasGone):
        budget.check()
    stopped = Budget(Path("a.mp4"), None, stop)
    stopped.check()
    stop.set()
    with pytest.raises(CancelledError):
        stopped.check()


def test_the_clock_stands_still_while_the_caller_works() -> None:
    budget, closed = Budget(Path("a.mp4"), 0.2), []

    def results() -> Generator[float, None, None]:
        try:
            for _ in range(3):
                assert budget.deadline < math.inf
                time.sleep(0.03)
                budget.check()
                yield budget.deadline
        finally:
            closed.append(True)

    for _ in budget.timed(results()):
        assert budget.deadline == math.inf
        time.sleep(0.15)
    assert closed == [True]
    timed = budget.timed(results())
    next(timed)
    timed.close()
    assert closed == [True, True]
