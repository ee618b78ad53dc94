"""A journal: records on disk, one a line, each there whole once `put` has returned, whenever the process is killed.

with Journal(Path("part-00000.jsonl")) as journal:
    journal.put("5d1f", {"key": "5d1f", "dollars": 0.01, "text": "yes"})
    journal.get("5d1f"), len(journal), journal.dollars
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLUSH_SECONDS = 1.0  # so much work at most is lost with the machine's power; a killed process loses none


class Journal:
    """Answers on disk, one a line: what `put` returned from is there after any kill. One process at a time."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError when another process has it, or a line is no JSON; a last line that was cut short goes."""
        self._path, self._lock, self.dollars = path, threading.Lock(), 0.0
        self._file = io.FileIO(path, "a+")
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"{path} is in use by another process that does the same part.") from None
            self._end = self._num_records = 0  # one key may have two records, where two threads asked at once
            self._lines = dict(self._read())
        except BaseException:
            self._file.close()
            raise
        self._flushed = time.monotonic()

    def _read(self) -> Iterator[tuple[str, bytes]]:
        with self._path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):  # the process ended while it wrote
                    self._file.truncate(self._end)
                    return
                try:
                    record = json.loads(line)
                    self.dollars += record["dollars"]
                    yield record["key"], line
                except (ValueError, KeyError, TypeError):
                    raise ValueError(f"{self._path}:{number}: no line of a journal; the file is damaged.") from None
                self._end += len(line)
                self._num_records += 1

    @property
    def name(self) -> str:
        """The same in every process that opens this journal, and no other's."""
        return hashlib.sha256(os.fsencode(self._path.resolve())).hexdigest()[:32]

    def __len__(self) -> int:
        return self._num_records

    def get(self, key: str) -> dict[str, Any] | None:
        line = self._lines.get(key)
        return None if line is None else json.loads(line)

    def put(self, key: str, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"  # JSON's own escape
        with self._lock:
            rest = line
            try:
                while rest:  # a disk that fills up takes a part, and raises at the next
                    rest = rest[self._file.write(rest) :]
            except OSError:
                self._file.truncate(self._end)
                raise
            self._end += len(line)
            self._lines[key] = line
            self._num_records += 1
            self.dollars += record["dollars"]
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                os.fsync(self._file.fileno())
                self._flushed = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            os.fsync(self._file.fileno())
