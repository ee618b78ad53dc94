"""Which samples make up which row, epoch after epoch. Numbers only: lengths, costs and a seed give rows.

    schedule = Schedule([300, 200, 500, 100], capacity=600, seed=0)
    schedule.rows(epoch=0)                       # rows of indices into the lengths, each sample in exactly one
    next(schedule.rows_from(Place(epoch=3)))     # ScheduledRow(place, samples); then the rows after it, without end

An epoch's samples are shuffled and cut into blocks of about BLOCK_SAMPLES, and each block is packed by itself: so the
rows after any place are known as soon as its own block is packed, 20 ms, and the next one is packed in a thread before
it is wanted. Epochs pack anew.

Rows that are trained on side by side should cost the same, and a step should show a bit of everything. So rows stand
in waves: of `rows_per_step` rows each, from the cheapest to the dearest and, in the next wave, back again. Neighbours
are then alike, wherever a step begins and however many ranks share it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eagle_model.data.mixing import Indices, Mix, seeded
from eagle_model.data.packing import Rows, pack

BLOCK_SAMPLES = 16_384  # samples that are packed together: at 128K tokens a row a hundred rows or more, filled to 0.99
# What a sample costs to train on, in tokens of linear layers: 8B parameters, 15.2 GFLOP a token. Only which rows of a
# step stand side by side depends on it.
TOKENS_PER_TILE = 57  # a tile's 1024 patches through SigLIP2, 0.87 TFLOP
TOKENS_PER_ATTENTION = 76_000  # tokens of a document at which causal attention costs as much as the layers' products


class Place(NamedTuple):
    """Where a row stands."""

    epoch: int = 0
    block: int = 0
    row: int = 0  # in the block; as many as it has: after its last
    rows_before: int = 0  # of the epoch, in the blocks before


class ScheduledRow(NamedTuple):
    place: Place
    samples: list[int]  # indices into the lengths
    skipped: tuple[tuple[str, str], ...] = ()  # (id, reason) of samples of a stream that are left out from here on

    @property
    def after(self) -> Place:
        return self.place._replace(row=self.place.row + 1)


def training_cost(tokens_N: ArrayLike, tiles_N: ArrayLike) -> NDArray[np.float64]:
    """Of each sample, in tokens: layers, vision encoder, attention among its own tokens."""
    tokens, tiles = np.asarray(tokens_N, dtype=np.float64), np.asarray(tiles_N, dtype=np.float64)
    return tokens + TOKENS_PER_TILE * tiles + tokens * tokens / TOKENS_PER_ATTENTION


class Schedule:
    """Equal arguments give equal rows, for ever, whatever the number of ranks and workers.

    tokens_N: of each sample.  capacity: tokens a row holds, at least the longest sample's.
    mix: how often each is shown, and in which order; None: each once an epoch.
    tiles_N, decode_seconds_N: of each sample, for balance alone.  rows_per_step: the length of a wave.
    """

    def __init__(
        self,
        tokens_N: Sequence[int] | NDArray[np.int64],
        capacity: int,
        *,
        seed: int,
        mix: Mix | None = None,
        tiles_N: ArrayLike | None = None,
        decode_seconds_N: ArrayLike | None = None,
        rows_per_step: int = 1,
        block_samples: int = BLOCK_SAMPLES,
    ) -> None:
        self._tokens = np.asarray(tokens_N, dtype=np.int64)
        self._capacity, self._seed, self._rows_per_step = capacity, seed, rows_per_step
        n = len(self._tokens)
        if mix is None:
            mix = Mix(np.zeros(n, dtype=np.int32), repeats=[Fraction(1)], weights=[1.0], seed=seed)
        self._mix = mix
        cost = training_cost(self._tokens, np.zeros(n) if tiles_N is None else tiles_N)
        decode = np.zeros(n) if decode_seconds_N is None else np.asarray(decode_seconds_N, dtype=np.float64)
        self._cost = cost / max(cost.sum(), 1e-30) + decode / max(decode.sum(), 1e-30)  # each as a share of the whole
        self.num_blocks = max(1, round(mix.num_shown / block_samples))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="eagle-packing")
        self._order: tuple[int, Indices] = (-1, np.empty(0, dtype=np.int64))  # of the epoch that was asked for last
        self._blocks: dict[tuple[int, int], Future[Rows]] = {}  # the one that is read and the one after it
        self._num_rows: dict[int, int] = {}  # by epoch, once counted

    def block(self, epoch: int, block: int) -> Rows:
        """The rows of a block; the block after it is begun in a thread."""
        following = (epoch, block + 1) if block + 1 < self.num_blocks else (epoch + 1, 0)
        wanted = [(epoch, block), following]
        begun = {key: self._blocks.get(key) or self._thread.submit(self._pack, *key) for key in wanted}
        self._blocks = begun
        return begun[epoch, block].result()

    def rows(self, epoch: int) -> Rows:
        """All rows of an epoch."""
        return [row for block in range(self.num_blocks) for row in self.block(epoch, block)]

    def num_rows(self, epoch: int) -> int:
        """Of an epoch: all of it is packed, a second for a million samples, once."""
        if epoch not in self._num_rows:
            self._num_rows[epoch] = sum(len(self.block(epoch, block)) for block in range(self.num_blocks))
        return self._num_rows[epoch]

    def rows_from(self, place: Place) -> Iterator[ScheduledRow]:
        """All rows from this one on, without end."""
        while True:
            rows = self.block(place.epoch, place.block)
            for k in range(place.row, len(rows)):
                yield ScheduledRow(place._replace(row=k), rows[k])
            if place.block + 1 < self.num_blocks:
                place = Place(place.epoch, place.block + 1, 0, place.rows_before + len(rows))
            else:
                place = Place(place.epoch + 1)

    def _pack(self, epoch: int, block: int) -> Rows:
        """In the thread, which alone touches `_order`."""
        if self._order[0] != epoch:
            self._order = epoch, self._mix.order(epoch)
        order = self._order[1]
        first, end = (len(order) * k // self.num_blocks for k in (block, block + 1))
        samples = order[first:end]
        seed = int(seeded(self._seed, epoch, block).randint(1 << 31))
        rows = pack(self._tokens[samples], self._capacity, seed=seed)
        if not rows:
            return []
        placed = samples[np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=len(samples))]
        starts = [0, *accumulate(map(len, rows))]
        costs = np.add.reduceat(self._cost[placed], starts[:-1]).tolist()
        indices = placed.tolist()
        return [indices[starts[k] : starts[k + 1]] for k in waves(costs, self._rows_per_step)]

    def close(self) -> None:
        """Ends the thread. May be called again."""
        self._thread.shutdown(wait=True, cancel_futures=True)


def waves(costs: Sequence[float], length: int) -> list[int]:
    """The order of rows: neighbours, `length` of them at a time, from the cheapest to the dearest and then back."""
    order: list[int] = []
    for number, first in enumerate(range(0, len(costs), length)):
        wave = sorted(range(first, min(first + length, len(costs))), key=costs.__getitem__)
        order += reversed(wave) if number % 2 else wave
    return order
