"""Where tests run: kernels on the GPU where there is one, else Triton's interpreter on CPU tensors. Golden videos."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

from tests.rounds import SLOW, SLOW_SECONDS, Rounds

if TYPE_CHECKING:
    from tests.video.make import GoldenSet

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is decorated: Triton reads it then
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as nohup leaves it, and runs too then; tests send it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow-seconds", type=float, default=SLOW_SECONDS, help="CPU seconds of tests that go by rounds")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; this machine has none (run `make gpu` on one)"))


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run: "cuda", or "cpu" under Triton's interpreter. Call the op itself, not its public function,
    which sends CPU tensors to the reference."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _no_real_time_priority() -> Iterator[None]:
    """An encoder may take it for good (tests/video/make.py); then whatever else runs is starved."""
    yield
    assert os.sched_getscheduler(0) != os.SCHED_FIFO, "write videos by tests.video.make.ordinary_priority()"


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> Rounds:
    """Of tests marked `by_rounds`."""
    most = None if request.param == SLOW else request.param
    return Rounds(most, seconds=request.config.getoption("--slow-seconds"))


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> GoldenSet:
    """The golden set, built once a session (about two seconds)."""
    from tests.video.make import av, make  # here: without PyAV the tests are skipped, and a conftest cannot be

    av.logging.set_level(None)  # libav prints about every damaged file
    return make(tmp_path_factory.mktemp("golden"))
