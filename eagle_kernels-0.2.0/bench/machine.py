"""Where a result was made: machine, versions, commit.

machine("torch", "numpy")                    # {"cpu": ..., "num_cores": 2, ..., "versions": {...}, "commit": "c3af58c"}
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("eagle_kernels", "eagle_model", "csrc")
RIVALS = ("cut-cross-entropy", "flash-attn", "flash-attn-4", "liger-kernel", "nvidia-cutlass-dsl", "quack-kernels")


def machine(*packages: str) -> dict[str, Any]:
    """packages: whose versions are named, as far as they are installed. A commit ends in + where sources have changed
    since."""
    commit, changes = (
        subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        for words in (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", *SOURCES])
    )
    return {
        "cpu": _cpu(),
        "num_cores": os.cpu_count(),
        "kernel": platform.release(),
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: version for name in packages if (version := _version(name))},
        "commit": commit + ("+" if changes else ""),
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def add_gpu_and_versions(machine_info: dict[str, Any]) -> None:
    """Adds to what pytest-benchmark knows of a machine: GPU, driver, versions. Takes out its name."""
    import torch
    import triton

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
