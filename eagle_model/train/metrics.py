"""Metrics: one JSON line for each step in metrics.jsonl, and one line on the terminal now and then.

log = MetricsLog(run / "metrics.jsonl", steps_done=0)
log.write(StepMetrics(step=1, loss=4.2, ...))
read_metrics(run / "metrics.jsonl")                    # [{"step": 1, "loss": 4.2, ...}]
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from eagle_model.files import write_text


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """What one step was like; a line of metrics.jsonl has these names."""

    step: int  # how many steps are done: 1 after the first
    epoch: int  # of the step's last row, from 0
    loss: float  # nats a token
    learning_rate: float
    grad_norm: float  # before clipping
    num_tokens: int  # of this step
    num_supervised_tokens: int  # of this step
    tokens_per_second: float  # with the wait for data
    step_seconds: float
    data_wait_seconds: float  # of step_seconds
    num_skipped_samples: int  # since the run began
    peak_rss_bytes: int  # of this process


class MetricsLog:
    """metrics.jsonl, in which every step stands once however often the run was interrupted."""

    def __init__(self, path: Path, *, steps_done: int) -> None:
        """Drops what was logged after `steps_done`, the step that the run resumes from: that will be trained again."""
        kept = [m for m in read_metrics(path) if m["step"] <= steps_done] if path.exists() else []
        write_text(path, "".join(json.dumps(m) + "\n" for m in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, metrics: StepMetrics) -> None:
        self._file.write(json.dumps(asdict(metrics), allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict]:
    """The steps of a metrics.jsonl. A last line that a crash cut short is left out.

    Raises: ValueError with file and line for any other line that is no JSON object with a step.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    found = []
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line.endswith("\n"):
            break
        try:
            metrics = json.loads(line)
            int(metrics["step"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}:{number}: is no line of metrics ({error!r}). Move the file away to go on."
            ) from None
        found.append(metrics)
    return found


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
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, m: StepMetrics) -> None:
        self._seconds += m.step_seconds
        numbers = f"step {m.step}/{self._max_steps}  loss {m.loss:.4f}  {m.tokens_per_second:,.0f} tokens/s"
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
