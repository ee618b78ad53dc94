"""Metrics: one JSON line for each step in metrics.jsonl, and one line on the terminal now and then.

log = MetricsLog(run / "metrics.jsonl", steps_done=0)
log.write(StepMetrics(step=1, loss=4.2, ...))
read_metrics(run / "metrics.jsonl")                    # [{"step": 1, "loss": 4.2, ...}]
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import sys
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from eagle_model.fields import shown
from eagle_model.files import append, write_text

MAX_LINE_BYTES = 1 << 16  # of metrics.jsonl: a step has some hundred


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """What one step was like; a line of metrics.jsonl has these names."""

    step: int  # how many steps are done: 1 after the first
    epoch: int  # of the step's last row, from 0
    loss: float  # nats a token
    learning_rate: float
    grad_norm: float  # before clipping
    num_tokens: int  # of this step, over all processes
    num_supervised_tokens: int  # of this step
    tokens_per_second: float  # with the wait for data
    step_seconds: float
    data_wait_seconds: float  # of step_seconds, in the process that waited longest
    num_skipped_samples: int  # since the run began
    peak_rss_bytes: int  # of the process that has held most
    # What files of earlier versions do not have:
    grad_norms: dict[str, float] = field(default_factory=dict)  # by part of the model that is trained, before clipping
    model_flops: int | None = None  # forward and backward, without what is computed a second time (flops.py)
    mfu: float | None = None  # model_flops a second as a share of the GPU's peak in bf16; None where that is unknown
    padding_share: float | None = None  # of the rows' room that no token fills; nothing is computed there
    truncation_share: float | None = None  # of samples: that show fewer frames or tiles, for want of context
    num_frames_not_in_proxies: int | None = None  # read from originals, though the run has proxies
    peak_device_bytes: int | None = None  # that this step took of the GPU's memory
    num_left_out_steps: int | None = None  # since the run began: whose loss or gradient was not finite
    dataset_losses: dict[str, float] = field(default_factory=dict)  # nats a supervised token, by the recipe's source
    dataset_tokens: dict[str, int] = field(default_factory=dict)  # supervised ones that those are means of


class MetricsLog:
    """metrics.jsonl, in which every step stands once however often the run was interrupted."""

    def __init__(self, path: Path, *, steps_done: int) -> None:
        """Drops what was logged after `steps_done`, the step that the run resumes from: that will be trained again."""
        kept = [m for m in read_metrics(path) if m["step"] <= steps_done] if path.exists() else []
        write_text(path, "".join(_line(m) for m in kept))
        self._file = path.open("ab", buffering=0)

    def write(self, metrics: StepMetrics) -> None:
        """Raises: OSError where the disk is full; what was written of the line is left out when the file is read."""
        append(self._file, _line(asdict(metrics)))

    def close(self) -> None:
        self._file.close()


def _line(metrics: dict[str, Any]) -> str:
    """What a step does not have is left out."""
    return json.dumps({k: v for k, v in metrics.items() if v is not None and v != {}}, allow_nan=False) + "\n"


def read_metrics(path: Path, damaged: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The steps of a metrics.jsonl. A last line that a crash cut short is left out.

    Args:   damaged: is told, by file and line, of each line that is none of metrics, which is then left out.
    Raises: ValueError for the first such line where `damaged` is not given.
    """
    found = []
    with path.open("rb") as file:
        number = 0
        while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n") or len(line) == MAX_LINE_BYTES:
            number += 1
            try:
                found.append(_metrics_of(line))
            except ValueError as error:
                problem = f"{path}:{number}: is no line of metrics ({error})."
                if damaged is None:
                    raise ValueError(f"{problem} Move the file away to go on.") from None
                damaged(problem)
                if len(line) == MAX_LINE_BYTES:  # what follows is no line's beginning
                    break
    return found


def _metrics_of(line: bytes) -> dict[str, Any]:
    """Raises ValueError unless every field of StepMetrics is there, and a finite number; or, of those that have a
    default, missing, None, or numbers by name."""
    try:
        metrics = json.loads(line)
    except RecursionError as error:
        raise ValueError(f"{error}") from None
    if not isinstance(metrics, dict):
        raise ValueError("needs a JSON object")
    for f in fields(StepMetrics):
        value: Any = metrics.get(f.name)
        by_name = f.default_factory is not MISSING
        if value is None and (by_name or f.default is None):
            metrics[f.name] = {} if by_name else None
        elif by_name:
            if not isinstance(value, dict) or not all(map(_is_number, value.values())):
                raise ValueError(f"{f.name} is {shown(value)}; needs finite numbers by name")
        elif not _is_number(value):
            raise ValueError(f"{f.name} is {shown(value)}; needs a finite number")
    return metrics


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


class StepProgress:
    """A bar with the time left on a terminal; elsewhere a plain line every `log_every_steps`."""

    def __init__(self, *, steps_done: int, max_steps: int, log_every_steps: int, say: Callable[[str], None]) -> None:
        self._max_steps, self._log_every_steps, self._say = max_steps, log_every_steps, say
        self._first_step, self._seconds = steps_done, 0.0
        self._bar: Progress | None = None
        if Console().is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns)
            self._task = self._bar.add_task("", total=max_steps, completed=steps_done)

    def __enter__(self) -> StepProgress:
        if self._bar is not None:
            with contextlib.suppress(OSError):  # the terminal may be gone: SIGHUP tells
                self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()

    def show(self, m: StepMetrics) -> None:
        self._seconds += m.step_seconds
        numbers = f"step {m.step}/{self._max_steps}  loss {m.loss:.4f}  {m.tokens_per_second:,.0f} tokens/s"
        numbers += "" if m.mfu is None else f"  MFU {m.mfu:.1%}"
        if self._bar is not None:
            self._bar.update(self._task, completed=m.step, description=numbers)
        elif m.step % self._log_every_steps == 0 or m.step == self._max_steps:
            left_seconds = self._seconds / (m.step - self._first_step) * (self._max_steps - m.step)
            minutes, seconds = divmod(round(left_seconds), 60)
            self._say(f"{numbers}  lr {m.learning_rate:.2e}  grad norm {m.grad_norm:.2f}  {minutes}:{seconds:02d} left")


def peak_rss_bytes() -> int:
    """The most memory this process has held so far."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes
