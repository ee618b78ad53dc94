"""Logs of what is done every so many steps, as validation: JSON lines, each with its step, of which none stands twice.

log = StepLog(run / "validation.jsonl", steps_done=100)    # what was logged after step 100 is dropped
log.write({"step": 200, "loss": 1.25})
read_log(run / "validation.jsonl")                         # [{"step": 100, ...}, {"step": 200, ...}]
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eagle_model.files import append, write_text

MAX_LINE_BYTES = 1 << 20  # an answer has some thousand


class StepLog:
    """A log of a run; making it drops what was logged after the step that the run resumes from, to be done again."""

    def __init__(self, path: Path, *, steps_done: int) -> None:
        self._path = path
        if path.exists():
            kept = [line for line in read_log(path) if line["step"] <= steps_done]
            write_text(path, "".join(map(_line, kept)))

    def write(self, record: dict[str, Any]) -> None:
        """Adds a line, which needs a "step". Raises OSError where the disk is full."""
        with self._path.open("ab", buffering=0) as file:
            append(file, _line(record))


def read_log(path: Path, damaged: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """The lines of a log; none where there is no file. A last line that a crash cut short is left out.

    Args:   damaged: is told, by file and line, of each line that is none of a log, which is then left out.
    Raises: ValueError for the first such line where `damaged` is not given.
    """
    found: list[dict[str, Any]] = []
    if not path.exists():
        return found
    with path.open("rb") as file:
        number = 0
        while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
            number += 1
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            if isinstance(record, dict) and type(record.get("step")) is int:
                found.append(record)
                continue
            problem = f"{path}:{number}: is no line of a log; needs a JSON object with a step."
            if damaged is None:
                raise ValueError(f"{problem} Move the file away to go on.")
            damaged(problem)
    return found


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
