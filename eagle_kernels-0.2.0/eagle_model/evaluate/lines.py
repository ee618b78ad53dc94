"""Files of one JSON object a line that grow while a run goes on and outlive its kill.

    cut_off(path); append(file, json.dumps(row) + "\\n"); rows = list(read_lines(path))

A line without its end is what a kill left behind: readers pass over it, and a writer cuts it off before it goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_LINE_BYTES = 16 << 20  # limit: an answer of 4,096 tokens and what it is of has some 30 KB


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of whole lines, each with an `id`. Raises ValueError, naming file and line, for another content."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
                row["id"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: no row of a run ({type(error).__name__}: {error}).") from None
            yield row


def cut_off(path: Path) -> None:
    """Takes a line without an end from the end of the file."""
    whole = 0
    with path.open("r+b") as file:
        for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
            if line.endswith(b"\n"):
                whole += len(line)
        file.truncate(whole)
