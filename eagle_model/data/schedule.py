"""Which samples make up which row, epoch after epoch. Numbers only: a seed, an epoch and lengths give rows.

schedule = Schedule([300, 200, 500, 100], capacity=600, seed=0)
schedule.rows(epoch=0)                     # rows of indices into the lengths, each sample in exactly one
next(schedule.rows_from(epoch=3, row=1))   # ScheduledRow(epoch=3, row=1, samples=[...]); then the rows after it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import NamedTuple

from eagle_model.data.packing import Rows, pack

_KEPT_EPOCHS = 2  # packings: that of the epoch that is being read, and of the next one, which is loaded ahead


class ScheduledRow(NamedTuple):
    epoch: int
    row: int
    samples: list[int]  # indices into the lengths


class Schedule:
    """Each epoch packs all samples anew, in an order of its own. Equal arguments give equal rows, for ever.

    lengths: tokens of each sample that an epoch shows.  capacity: tokens a row holds, at least the longest sample's.
    """

    def __init__(self, lengths: Sequence[int], capacity: int, *, seed: int) -> None:
        self._lengths, self._capacity, self._seed = lengths, capacity, seed
        self.rows = lru_cache(maxsize=_KEPT_EPOCHS)(self._rows)

    def _rows(self, epoch: int) -> Rows:
        mixed = hashlib.sha256(json.dumps([self._seed, epoch]).encode()).digest()
        return pack(self._lengths, self._capacity, seed=int.from_bytes(mixed[:4], "little"))

    def rows_from(self, epoch: int, row: int) -> Iterator[ScheduledRow]:
        """All rows from this one on, without end; `row` may be the number of rows, after the epoch's last."""
        for number in count(epoch):
            for k, samples in enumerate(self.rows(number)):
                if number > epoch or k >= row:
                    yield ScheduledRow(number, k, samples)
