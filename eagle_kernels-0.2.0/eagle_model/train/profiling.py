"""A trace of one step, and of memory where a step does not fit.

    with traced(run / "trace-step-000003.json"):        # chrome://tracing, or ui.perfetto.dev, opens it
        ...
    write_memory_snapshot(run / "out-of-memory-step-000003.json", device)

The snapshot is what torch.cuda.memory knows, as JSON: segments and blocks with their sizes, and with `--profile` who
asked for them. torch's own form of it is a pickle, which nothing here writes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from eagle_model.files import write_text

STEP = 3  # that is traced: the first two allocate and compile
MAX_EVENTS = 100_000  # of memory that are remembered: about 100 MB


def is_traced(step: int, *, steps_done: int, max_steps: int) -> bool:
    """Whether `step`, from 1, is the one to trace: the third since the start, or the last where there are fewer."""
    return step == min(steps_done + STEP, max_steps)


@contextlib.contextmanager
def traced(path: Path) -> Iterator[None]:
    """Writes a Chrome trace of what is done within: operators and kernels, with shapes. Raises OSError."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # or the trace ends before the kernels
    part = path.with_suffix(".part.json")
    profile.export_chrome_trace(str(part))
    part.rename(path)


def remember_memory(device: torch.device) -> None:
    """From now on a snapshot says where each block was asked for."""
    if device.type == "cuda":
        torch.cuda.memory._record_memory_history(max_entries=MAX_EVENTS)


def write_memory_snapshot(path: Path, device: torch.device) -> Path | None:
    """What a GPU's memory is taken by; returns `path`, or None where there is no GPU. Raises OSError."""
    if device.type != "cuda":
        return None
    snapshot = torch.cuda.memory._snapshot(device)
    summary = torch.cuda.memory_summary(device).splitlines()
    write_text(path, json.dumps({"summary": summary, "snapshot": snapshot}, default=str) + "\n")
    return path
