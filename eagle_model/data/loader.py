"""Loader: a recipe -> packed rows, for ever, in an order that a saved state continues exactly.

All samples are planned once, at the start: image headers, video indexes and token counts, no pixels. Each epoch packs
them anew with a seed of its own. Threads load the coming rows ahead (decoding releases the interpreter's lock), and
rows are given out in their order whatever finishes first, so neither threads nor prefetching show in the stream.
Plans are kept in memory, about 2 KB a sample, and are made again at each start: 500 short videos take seconds.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from eagle_model.batch import PackedBatch
from eagle_model.data.media import DataError, Sample, read_recipe, read_samples
from eagle_model.data.packing import pack
from eagle_model.data.processor import Processor, SamplePlan
from eagle_model.data.tokens import pack_row

STATE_FORMAT = 1
_PLANNED_AT_ONCE = 64  # samples that are read but not yet planned, at most


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where samples come from and how they are read; what is seen of them says ProcessorConfig."""

    recipe: str  # an Eagle recipe, or an annotation file: media.read_recipe
    seed: int = 0
    on_bad_sample: Literal["raise", "skip"] = "raise"  # skip: counted, listed in Loader.skipped and in the state
    num_workers: int = 2  # threads, and rows that are loaded ahead
    num_decode_workers: int = 1  # threads for each video that is being decoded, inside each of num_workers
    index_folder: str | None = None  # keeps what planning finds in videos, for decoding and for the next start
    allow_outside_root: bool = False

    def __post_init__(self) -> None:
        if self.on_bad_sample not in ("raise", "skip"):
            raise ValueError(f"DataConfig: on_bad_sample is {self.on_bad_sample!r}; needs 'raise' or 'skip'.")
        for name in ("num_workers", "num_decode_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"DataConfig: {name} is {getattr(self, name)}; needs at least 1.")


class _Row(NamedTuple):
    """What a worker made of one row."""

    batch: PackedBatch | None  # None: no sample of the row could be loaded
    skipped: list[tuple[str, str]]


class _Ahead(NamedTuple):
    epoch: int
    row: int
    loading: Future[_Row]


class Loader:
    """An endless iterator of PackedBatch, epoch after epoch; use it as a context manager, or call close().

    A row holds as many tokens as a sample may: processor.config.sampling.context_tokens.

    on_bad_sample="raise": DataError with the sample and the cause, while planning (here) or while loading (in `next`;
    calling `next` again tries the same row again). "skip": the sample is left out, a row that it was in gets shorter,
    and (sample id, reason) goes to `skipped` once. Files alone decide what fails, so a resume skips the same.

    Raises DataError if the recipe is unusable or no sample is left; OSError if index_folder cannot be made.
    """

    def __init__(self, config: DataConfig, processor: Processor) -> None:
        self.config = config
        if config.index_folder is not None:  # here, since for each video it would count as a bad sample
            try:
                Path(config.index_folder).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OSError(
                    f"DataConfig: index_folder is {config.index_folder!r}, which cannot be made ({error.strerror}); "
                    "needs a folder that can be written."
                ) from error
        self.processor = processor
        self._skipped: dict[tuple[str, str], None] = {}  # a set that keeps its order
        self._plans: list[SamplePlan] = []
        self._entries: list[int] = []  # indices of _plans: what one epoch shows, repeats included
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(config.num_workers, thread_name_prefix="eagle-data")
        self._ahead: deque[_Ahead] = deque()
        self._epoch, self._next_row = 0, 0  # the row that comes next, in the epoch of the row that came last
        self._rows: dict[int, list[list[int]]] = {}  # epoch -> rows of indices of _entries
        try:
            self._plan_all()
            self._fingerprint = self._make_fingerprint()
            self._rows_of(0)
        except BaseException:
            self.close()
            raise

    # -- what there is

    @property
    def num_samples(self) -> int:
        """Samples that one epoch shows, repeats counted."""
        return len(self._entries)

    @property
    def num_rows(self) -> int:
        """Rows of the current epoch."""
        return len(self._rows_of(self._epoch))

    @property
    def epoch(self) -> int:
        """The epoch, from 0, of the batch given last."""
        return self._epoch

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(sample id, reason), in the order of the stream; a sample that no batch has come to yet is not listed."""
        return list(self._skipped)

    # -- planning

    def _plan_all(self) -> None:
        skip = self.config.on_bad_sample == "skip"

        def on_bad_row(where: str, error: DataError) -> None:
            self._skipped[where, str(error)] = None

        for source in read_recipe(self.config.recipe):
            samples = read_samples(
                source,
                allow_outside_root=self.config.allow_outside_root,
                on_bad_row=on_bad_row if skip else None,
            )
            planned = self._plan_ahead(samples, source.max_tiles)
            for index, (sample, future) in enumerate(planned):
                try:
                    plan = future.result()
                except DataError as error:
                    if not skip:
                        raise
                    self._skipped[sample.id, str(error)] = None
                    continue
                self._plans.append(plan)
                self._entries.extend([len(self._plans) - 1] * source.num_repeats(index))
        if not self._entries:
            raise DataError(
                f"{self.config.recipe}: no sample to train on"
                + (f"; {len(self.skipped)} were skipped, the first: {self.skipped[0][1]}" if self.skipped else ".")
            )

    def _plan_ahead(
        self, samples: Iterable[Sample], max_tiles: int | None
    ) -> Iterator[tuple[Sample, Future[SamplePlan]]]:
        """Samples in their order, each with its plan in the making, a bounded number at once."""
        waiting: deque[tuple[Sample, Future[SamplePlan]]] = deque()
        for sample in samples:
            plan = self._threads.submit(
                self.processor.plan_sample, sample, max_tiles=max_tiles, index_folder=self.config.index_folder
            )
            waiting.append((sample, plan))
            if len(waiting) >= _PLANNED_AT_ONCE:
                yield waiting.popleft()
        yield from waiting

    def _make_fingerprint(self) -> str:
        """Of all that decides the stream; a state continues only where it is the same.

        Of files the names alone, and no sample's id, which may be its file and line: data may move to another folder.
        """
        digest = hashlib.sha256()

        def add(*values: object) -> None:
            digest.update(json.dumps(values).encode())

        config = self.processor.config
        add(config.sampling.context_tokens, config.tile_px, config.patch_px, config.mean, config.std, config.system)
        add(self.config.seed)
        for entry in self._entries:
            plan = self._plans[entry]
            sample = plan.sample
            add(plan.num_tokens, [(turn.role, turn.text) for turn in sample.turns])
            add([image.path.name for image in sample.images], [video.path.name for video in sample.videos])
            add(plan.visual.grids, plan.visual.timestamps_seconds)
        return digest.hexdigest()

    # -- rows

    def _rows_of(self, epoch: int) -> list[list[int]]:
        if epoch not in self._rows:
            mixed = hashlib.sha256(json.dumps([self.config.seed, epoch]).encode()).digest()
            lengths = [self._plans[entry].num_tokens for entry in self._entries]
            rows = pack(
                lengths, self.processor.config.sampling.context_tokens, seed=int.from_bytes(mixed[:4], "little")
            )
            self._rows = {kept: r for kept, r in self._rows.items() if kept >= self._epoch}
            self._rows[epoch] = rows
        return self._rows[epoch]

    def _load_row(self, row: list[int]) -> _Row:
        """In a worker thread."""
        loaded, skipped = [], []
        for i in row:
            plan = self._plans[self._entries[i]]
            try:
                sample = self.processor.load_sample(
                    plan,
                    num_decode_workers=self.config.num_decode_workers,
                    index_folder=self.config.index_folder,
                    stop=self._stop,
                )
                loaded.append(sample)
            except DataError as error:
                if self.config.on_bad_sample == "raise":
                    raise
                skipped.append((plan.sample.id, str(error)))
        if not loaded:
            return _Row(None, skipped)
        patches_IPK = torch.cat([sample.patches_IPK for sample in loaded])
        return _Row(pack_row([sample.tokens for sample in loaded], patches_IPK), skipped)

    def _load_ahead(self) -> None:
        if self._ahead:
            epoch, row = self._ahead[-1].epoch, self._ahead[-1].row + 1
        else:
            epoch, row = self._epoch, self._next_row
        while len(self._ahead) < self.config.num_workers:
            if row >= len(self._rows_of(epoch)):
                epoch, row = epoch + 1, 0
            self._ahead.append(_Ahead(epoch, row, self._threads.submit(self._load_row, self._rows_of(epoch)[row])))
            row += 1

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> PackedBatch:
        num_bad_rows = 0
        while True:
            if self._stop.is_set():
                raise ValueError("Loader: it was closed; make a new one.")
            self._load_ahead()
            ahead = self._ahead[0]
            try:
                row = ahead.loading.result()
            except Exception:
                self._drop_ahead()  # so that a later `next` tries this row again
                raise
            self._ahead.popleft()
            self._epoch, self._next_row = ahead.epoch, ahead.row + 1
            self._skipped.update(dict.fromkeys(row.skipped))
            if row.batch is not None:
                return row.batch
            num_bad_rows += 1
            if num_bad_rows > self.num_rows:
                raise DataError(f"no sample of an epoch could be loaded; the last: {self.skipped[-1][1]}")

    def _drop_ahead(self) -> None:
        for ahead in self._ahead:
            ahead.loading.cancel()
        self._ahead.clear()

    # -- state

    def state_dict(self) -> dict:
        """JSON-able. After batch k was given, it is the state that batch k + 1 follows, whatever was loaded ahead."""
        return {
            "format": STATE_FORMAT,
            "data": self._fingerprint,
            "num_samples": self.num_samples,
            "epoch": self._epoch,
            "next_row": self._next_row,
            "skipped": [list(entry) for entry in self.skipped],
        }

    def load_state_dict(self, state: dict) -> None:
        """Continues where the state was taken. Raises ValueError when the data or its config are not the same."""
        if state.get("format") != STATE_FORMAT:
            raise ValueError(f"Loader: the state's format is {state.get('format')!r}; needs {STATE_FORMAT}.")
        if state["data"] != self._fingerprint:
            raise ValueError(
                f"Loader: the state is of other data: {state['num_samples']} samples an epoch then, {self.num_samples} "
                f"now, or other rows, files, sizes or seed. Restore the data and its config, or start anew."
            )
        self._drop_ahead()
        self._epoch, self._next_row = state["epoch"], state["next_row"]
        self._skipped = dict.fromkeys((sample_id, reason) for sample_id, reason in state["skipped"])

    # -- end

    def close(self) -> None:
        """Ends the threads; a sample that is being decoded stops at its next frame. May be called again."""
        self._stop.set()
        self._drop_ahead()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
