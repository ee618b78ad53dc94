"""Where a result was made: machine, versions, commit.

machine("torch", "numpy")                    # {"cpu": ..., "num_cores": 2, ..., "versions": {...}, "commit": "c3af58c"}
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("eagle_kernels", "eagle_model", "csrc")


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
