"""Counts of a stream that is too long to keep: quantiles of numbers, and which entries came twice.

    lengths = Quantiles()
    for text in texts: lengths.add(len(text))
    lengths.summary()                        # {"min": 3, "median": 812, "p99": 9040, "max": 22114, "count": 1000000}

Neither grows in memory with what is counted: quantiles are of buckets 2 % wide, so right to 1 %, and the hashes of
entries are kept in a temporary file, 8 bytes each, and sorted there.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections import Counter

import numpy as np

_STEP = math.log(1.02)  # width of a bucket
_AT_ONCE = 1 << 16  # hashes


class Quantiles:
    """Of numbers >= 0. At most some 2,000 buckets up to 10**18."""

    def __init__(self) -> None:
        self.count = 0
        self.least, self.most = math.inf, 0.0
        self._buckets = Counter[int]()

    def add(self, value: float) -> None:
        self.count += 1
        self.least, self.most = min(self.least, value), max(self.most, value)
        self._buckets[0 if value < 1e-3 else 1 + round(math.log(value * 1e3) / _STEP)] += 1

    def quantile(self, share: float) -> float:
        """The least value that this share does not exceed, to 1 %; needs at least one."""
        left = share * self.count
        for bucket, count in sorted(self._buckets.items()):
            left -= count
            if left <= 0:
                value = 0.0 if bucket == 0 else math.exp((bucket - 1) * _STEP) / 1e3
                return min(max(value, self.least), self.most)
        return self.most

    def summary(self) -> dict[str, float]:
        """Rounded to four digits; empty where nothing was counted."""
        if not self.count:
            return {}
        values = {"min": self.least, "median": self.quantile(0.5), "p99": self.quantile(0.99), "max": self.most}
        return {name: float(f"{value:.4g}") for name, value in values.items()} | {"count": self.count}


class Repeats:
    """Which entries of a stream equal an earlier one. A context manager: it holds a temporary file."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._coming: list[bytes] = []
        self.count = 0

    def add(self, entry: bytes) -> None:
        self.count += 1
        self._coming.append(hashlib.blake2b(entry, digest_size=8).digest())
        if len(self._coming) >= _AT_ONCE:
            self._write()

    def found(self, most: int) -> tuple[int, list[list[int]]]:
        """(entries that repeat an earlier one, the places of the first `most` such groups, counted from 1).

        Two different entries of a million are taken for equal with a chance of 3 in 100 million.
        """
        self._write()
        if self.count < 2:
            return 0, []
        with tempfile.TemporaryFile() as beside:
            hashes = np.memmap(self._file, np.uint64, mode="r", shape=(self.count,))
            ordered = np.memmap(beside, np.uint64, mode="w+", shape=(self.count,))
            for start in range(0, self.count, _AT_ONCE):
                ordered[start : start + _AT_ONCE] = hashes[start : start + _AT_ONCE]
            ordered.sort()
            repeats = 0
            examples: list[int] = []
            for start in range(1, self.count, _AT_ONCE):
                end = min(start + _AT_ONCE, self.count)
                twice = ordered[start:end] == ordered[start - 1 : end - 1]
                repeats += int(twice.sum())
                examples += np.unique(ordered[start:end][twice])[: most - len(set(examples))].tolist()
            places: dict[int, list[int]] = {value: [] for value in examples[:most]}
            for start in range(0, self.count if places else 0, _AT_ONCE):
                part = np.asarray(hashes[start : start + _AT_ONCE])
                for i in np.flatnonzero(np.isin(part, np.array(list(places), np.uint64))).tolist():
                    if len(group := places[int(part[i])]) < 10:
                        group.append(start + i + 1)
            del hashes, ordered
        return repeats, sorted(places.values())

    def _write(self) -> None:
        self._file.write(b"".join(self._coming))
        self._file.flush()
        self._coming = []

    def __enter__(self) -> Repeats:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
