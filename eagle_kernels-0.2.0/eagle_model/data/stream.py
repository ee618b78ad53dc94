"""Rows of a stream: samples are planned and packed as they come, block after block; none is known beforehand.

    rows = StreamedRows(recipe_stream(read_recipe("recipe.json"), seed=0), plan, processor.config, seed=0)
    next(rows.rows_from(Place()))

For sources without end, and for those with too many samples to plan before the first step. `stream(start)` gives the
samples from number `start` on, each with its source or None, and always the same ones for the same number; in place of
one that cannot be read (id, reason) stands. Where it ends a new epoch begins, with stream(0). BLOCK_SAMPLES of them at
a time are planned in a thread while the rows before are trained on, and packed as a block of a schedule is: memory
holds three blocks' plans, and a place is the number of the block and the row in it.

Every rank reads and plans all samples: for very many ranks, prepare the data instead (`eagle data prepare`). Going on
at sample n of a recipe's stream reads the rows before it once more, some 10 us each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np

from eagle_model.data.annotations import json_rows
from eagle_model.data.index import Skipped, skip_entry
from eagle_model.data.mixing import seeded
from eagle_model.data.processor import ProcessorConfig, SamplePlan
from eagle_model.data.recipe import Source
from eagle_model.data.remote import RemoteConfig
from eagle_model.data.rows import training_sample
from eagle_model.data.sample import DataError, Sample
from eagle_model.data.schedule import Place, Schedule, ScheduledRow
from eagle_model.data.substitutes import Substitutes
from eagle_model.fields import to_json

BLOCK_SAMPLES = 2048  # a block must be planned before its first row is read; 0.99 full for samples of half a row
ROUND_SAMPLES = 1000  # of a recipe's stream, in which each source has exactly its share

Incoming = tuple[Sample | Skipped, Source | None]
StreamOf = Callable[[int], Iterator[Incoming]]


class _Block(NamedTuple):
    plans: dict[int, SamplePlan]  # by number in the stream
    augmented: set[int]  # numbers of those whose images are shown as JPEGs
    rows: list[list[int]]
    skipped: tuple[Skipped, ...]
    substitutes: Substitutes
    numbers: list[int]  # of `plans`, as substitutes count them
    is_last: bool  # of its epoch


class StreamedRows:
    """As epochs.RowSource. plan: of a sample, or DataError.  skip_bad: leaves such samples out and lists them."""

    def __init__(
        self,
        stream: StreamOf,
        plan: Callable[[Sample, Source | None], SamplePlan],
        config: ProcessorConfig,
        *,
        seed: int,
        rows_per_step: int = 1,
        skip_bad: bool = False,
        block_samples: int = BLOCK_SAMPLES,
    ) -> None:
        self._stream, self._plan, self._seed, self._skip_bad = stream, plan, seed, skip_bad
        self._capacity, self._rows_per_step = config.sampling.context_tokens, rows_per_step
        self.num_samples = block_samples
        self.contents = f"a stream, {block_samples} samples of which are packed at a time."
        self.skipped: Sequence[Skipped] = ()
        said = json.dumps(["stream", to_json(config), seed, rows_per_step, block_samples])
        self.fingerprint = hashlib.sha256(said.encode()).hexdigest()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="eagle-stream")
        self._open: tuple[int, int, Iterator[Incoming]] | None = None  # epoch, number that comes next, the rest
        self._blocks: dict[tuple[int, int], Future[_Block]] = {}
        self._known: dict[int, _Block] = {}  # by block, of the epoch that is being read: the newest three
        self._is_closed = False

    def rows_from(self, place: Place) -> Iterator[ScheduledRow]:
        """Raises DataError where a sample cannot be read or planned, unless skip_bad."""
        while True:
            block = self._block(place.epoch, place.block)
            for k in range(place.row, len(block.rows)):
                yield ScheduledRow(place._replace(row=k), block.rows[k], block.skipped if k == 0 else ())
            before = place.rows_before + len(block.rows)
            place = Place(place.epoch + 1) if block.is_last else Place(place.epoch, place.block + 1, 0, before)

    def num_rows(self, epoch: int) -> int:
        return max((len(block.rows) for block in self._known.values()), default=1)

    def rows_left(self, place: Place, num_epochs: int) -> int:
        raise ValueError("StreamedRows: nobody knows how long a stream is. Set max_steps in place of num_epochs.")

    def plan(self, sample: int) -> SamplePlan:
        return self._known[sample // self.num_samples].plans[sample]

    def num_tiles(self, samples: Sequence[int]) -> int:
        return sum(self.plan(i).num_tiles for i in samples)

    def substitute(self, sample: int, attempt: int) -> int | None:
        block = self._known[sample // self.num_samples]
        found = block.substitutes.of(block.numbers.index(sample), attempt)
        return None if found is None else block.numbers[found]

    def is_augmented(self, sample: int) -> bool:
        return sample in self._known[sample // self.num_samples].augmented

    def _block(self, epoch: int, block: int) -> _Block:
        made = self._begun(epoch, block)
        found = made.result()
        if not found.plans and (block == 0 or not found.is_last):  # else an endless search
            first = f"; the first that was skipped: {found.skipped[0][1]}" if found.skipped else "."
            raise DataError(f"the stream has no sample to train on from number {block * self.num_samples} on{first}")
        following = (epoch + 1, 0) if found.is_last else (epoch, block + 1)
        self._blocks = {(epoch, block): made, following: self._begun(*following)}
        newest = {block: found, **{k: b for k, b in self._known.items() if k != block}}
        self._known = dict(islice(newest.items(), 3))  # rows of the block before may still be loading
        return found

    def _begun(self, epoch: int, block: int) -> Future[_Block]:
        return self._blocks.get((epoch, block)) or self._thread.submit(self._made, epoch, block)

    def _made(self, epoch: int, block: int) -> _Block:
        """In the thread, which alone touches `_open`."""
        first = block * self.num_samples
        if self._open is None or self._open[:2] != (epoch, first):
            self._open = (epoch, first, self._stream(first))
        coming = self._open[2]
        plans: dict[int, SamplePlan] = {}
        augmented: set[int] = set()
        skipped: list[Skipped] = []
        number = first
        for one, source in islice(coming, self.num_samples):
            if self._is_closed:
                break
            try:
                if not isinstance(one, Sample):
                    raise DataError(one[1])
                plans[number] = self._plan(one, source)
                if source is not None and source.data_augment:
                    augmented.add(number)
            except DataError as error:
                if not self._skip_bad:
                    raise
                entry = skip_entry(one.id, one.where, str(error)) if isinstance(one, Sample) else one
                skipped.append(entry)
            number += 1
        self._open = (epoch, number, coming)
        numbers = list(plans)
        tokens = np.array([plan.num_tokens for plan in plans.values()], dtype=np.int64)
        tiles = np.array([plan.num_tiles for plan in plans.values()], dtype=np.int64)
        schedule = Schedule(
            tokens,
            self._capacity,
            seed=int(seeded(self._seed, epoch, block).randint(1 << 31)),
            tiles_N=tiles,
            rows_per_step=self._rows_per_step,
        )
        rows = [[numbers[i] for i in row] for row in schedule.rows(0)] if numbers else []
        schedule.close()
        datasets = sorted({plan.dataset for plan in plans.values()})
        source_of = np.array([datasets.index(plan.dataset) for plan in plans.values()], dtype=np.int64)
        is_last = number - first < self.num_samples
        return _Block(plans, augmented, rows, tuple(skipped), Substitutes(source_of, tokens, tiles), numbers, is_last)

    def close(self) -> None:
        """Ends the thread, after the sample that is being planned. May be called again."""
        self._is_closed = True
        self._thread.shutdown(wait=True, cancel_futures=True)


def recipe_stream(
    sources: Sequence[Source], *, seed: int, allow_outside_root: bool = False, remote: RemoteConfig | None = None
) -> Callable[[int], Iterator[Incoming]]:
    """All sources for ever, each from its first row again after its last, in shares as weight * repeat_time.

    ROUND_SAMPLES at a time hold each source in exactly its share, in an order of their own. A source's rows keep the
    order of their files.
    """
    shares = [source.weight * float(source.repeat_time) for source in sources]
    each = _largest_remainder(shares, ROUND_SAMPLES)

    def stream(start: int) -> Iterator[Incoming]:
        number, first = divmod(start, ROUND_SAMPLES)
        order = _order(seed, number, each)
        given = [number * count + order[:first].count(k) for k, count in enumerate(each)]
        coming = [
            _rows(source, skip=skip, allow_outside_root=allow_outside_root, remote=remote)
            for source, skip in zip(sources, given, strict=True)
        ]
        while True:
            for k in order[first:]:
                yield next(coming[k]), sources[k]
            number, first = number + 1, 0
            order = _order(seed, number, each)

    return stream


def _largest_remainder(shares: Sequence[float], total: int) -> list[int]:
    """At least one for each."""
    exact = np.array(shares) / sum(shares) * total
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    most_left = np.argsort(counts - exact, kind="stable")
    counts[most_left[: max(0, total - counts.sum())]] += 1
    return [int(count) for count in counts]


def _order(seed: int, number: int, each: Sequence[int]) -> list[int]:
    """Which source comes when, in this round."""
    in_turn = np.repeat(np.arange(len(each)), each)
    return seeded(seed, "stream", number).permutation(in_turn)[:ROUND_SAMPLES].tolist()


def _rows(
    source: Source, *, skip: int, allow_outside_root: bool, remote: RemoteConfig | None
) -> Iterator[Sample | Skipped]:
    """A source's rows for ever, from the skip-th on."""
    num_read = 0
    while True:
        before = num_read
        for path in source.annotation:
            for where, row in json_rows(path):
                num_read += 1
                if num_read <= skip:
                    continue
                try:
                    sample = training_sample(
                        row, root=source.root, where=where, allow_outside_root=allow_outside_root, remote=remote
                    )
                except DataError as error:
                    yield where, str(error)
                else:
                    yield sample
        if num_read == before:
            raise DataError(f"{source.annotation[0]}: source {source.name!r} has no rows; a stream needs some.")
