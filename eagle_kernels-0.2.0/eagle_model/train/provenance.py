"""Where and with what something was made: date, machine, versions, commit.

about = provenance("cuda")                   # {"date": ..., "machine": ..., "python": ..., "commit": ...}
sentence(about)                              # one line of it
"""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import torch

import eagle_kernels

_NAMES = ("date", "machine", "device", "python", "torch", "eagle_kernels", "commit")
GIT_SECONDS = 5  # that asking for the commit may take, as on a slow disk


def provenance(device: torch.device | str) -> dict[str, str]:
    """All but the commit are always known; that is there where the package lies in a git checkout."""
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    found = {
        "date": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "machine": f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "eagle_kernels": eagle_kernels.__version__,
    }
    commit = _commit(Path(__file__).resolve().parents[2])
    return found | ({"commit": commit} if commit else {})


def sentence(about: Mapping[str, object]) -> str:
    """Of what there is; other names are left out."""
    plain = ("date", "machine", "device")
    return "; ".join(f"{about[key]}" if key in plain else f"{key} {about[key]}" for key in _NAMES if about.get(key))


def _commit(checkout: Path) -> str:
    """With a + where files have changed since; empty where there is no checkout, or no git."""
    if not (checkout / ".git").exists():
        return ""
    try:
        commit, changed = (
            subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True, timeout=GIT_SECONDS).stdout
            for words in (["rev-parse", "--short=10", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return commit.strip() + ("+" if commit and changed.strip() else "")
