"""Every result file says where it was measured: GPU, driver, versions, beside pytest-benchmark's machine and commit."""

import importlib.util
from typing import Any

import pytest

from bench.machine import add_gpu_and_versions

# A script that holds no bench, of the name that pytest collects: where it cannot be imported, nothing is lost.
collect_ignore = [] if importlib.util.find_spec("av") else ["bench_decode.py"]


@pytest.fixture(scope="session")
def rehearsed(request: pytest.FixtureRequest) -> bool:
    """Whether nothing is measured: benches are tests (--benchmark-disable), or a session is rehearsed (--count-each).
    What takes long on a CPU then takes smaller sizes."""
    option = request.config.getoption
    return bool(option("--benchmark-disable") or option("--count-each", None))


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    add_gpu_and_versions(machine_info)
