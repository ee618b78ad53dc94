"""Every result file says where it was measured: GPU, driver, versions, beside pytest-benchmark's machine and commit."""

import contextlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
from typing import Any

import pytest
import torch
import triton

# A script that holds no bench, of the name that pytest collects: where it cannot be imported, nothing is lost.
collect_ignore = [] if importlib.util.find_spec("av") else ["bench_decode.py"]

RIVALS = ("cut-cross-entropy", "flash-attn", "flash-attn-4", "liger-kernel", "nvidia-cutlass-dsl", "quack-kernels")


@pytest.fixture(scope="session")
def rehearsed(request: pytest.FixtureRequest) -> bool:
    """Whether nothing is measured: benches are tests (--benchmark-disable), or a session is rehearsed (--count-each).
    What takes long on a CPU then takes smaller sizes."""
    option = request.config.getoption
    return bool(option("--benchmark-disable") or option("--count-each", None))


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    machine_info |= {"torch": torch.__version__, "triton": triton.__version__, "torch_threads": torch.get_num_threads()}
    for private in ("node", "release"):  # a result file is for sharing: what the machine is, not its name
        machine_info.pop(private, None)
    for package in RIVALS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            machine_info[package] = importlib.metadata.version(package)
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        machine_info |= {"gpu": p.name, "sm": f"{p.major}{p.minor}", "gpu_memory_bytes": p.total_memory}
        machine_info |= {"cuda": torch.version.cuda}
    if smi := shutil.which("nvidia-smi"):
        query = [smi, "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
        machine_info["nvidia_smi"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
