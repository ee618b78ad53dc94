"""Loader: a recipe -> packed rows, for ever, in an order that a saved state continues exactly.

    with Loader(DataConfig(recipe="recipe.json"), processor) as loader:
        batch = next(loader)                  # a PackedBatch
        state = loader.state_dict()           # load_state_dict(state) goes on with the row after it

All samples are planned once, at the start (index.py). Each epoch packs them anew (schedule.py). Threads load the coming
rows ahead (prefetch.py), and rows are given out in their order whatever finishes first, so neither threads nor
prefetching show in the stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from eagle_model.batch import PackedBatch
from eagle_model.data.index import plan_recipe, skip_entry
from eagle_model.data.packing import pack_row
from eagle_model.data.prefetch import Prefetch
from eagle_model.data.processor import Processor
from eagle_model.data.sample import DataError
from eagle_model.data.schedule import Schedule, ScheduledRow

STATE_FORMAT = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where samples come from and how they are read; what is seen of them says ProcessorConfig."""

    recipe: str  # an Eagle recipe, or an annotation file: recipe.read_recipe
    seed: int = 0  # of the order of samples
    on_bad_sample: Literal["raise", "skip"] = "raise"  # skip: counted, listed in Loader.skipped and in the state
    num_workers: int = 2  # threads, and rows that are loaded ahead
    num_decode_workers: int = 1  # threads for each video that is being decoded, inside each of num_workers
    video_time_limit_seconds: float | None = None  # to read or decode one video: one that takes longer is a bad sample
    index_folder: str | None = None  # keeps what planning finds in videos, for decoding and for the next start
    allow_outside_root: bool = False  # true: images and videos may lie outside their recipe's root

    def __post_init__(self) -> None:
        if self.on_bad_sample not in ("raise", "skip"):
            raise ValueError(f"DataConfig: on_bad_sample is {self.on_bad_sample!r}; needs 'raise' or 'skip'.")
        for name in ("num_workers", "num_decode_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"DataConfig: {name} is {getattr(self, name)}; needs at least 1.")
        if self.video_time_limit_seconds is not None and not self.video_time_limit_seconds > 0:
            raise ValueError(
                f"DataConfig: video_time_limit_seconds is {self.video_time_limit_seconds}; needs more than 0, or None."
            )


class _LoadedRow(NamedTuple):
    batch: PackedBatch | None  # None: no sample of the row could be loaded
    skipped: list[tuple[str, str]]


class Loader:
    """An endless iterator of PackedBatch, epoch after epoch; use it as a context manager, or call close().

    A row holds as many tokens as a sample may: processor.config.sampling.context_tokens.

    on_bad_sample="raise": DataError with the sample and the cause, while planning (here) or while loading (in `next`;
    calling `next` again tries the same row again). "skip": the sample is left out, a row that it was in gets shorter,
    and (sample id, reason) goes to `skipped` once. Files alone decide what fails, so a resume skips the same.

    Raises DataError if the recipe is unusable or no sample is left; OSError if index_folder cannot be made.
    """

    def __init__(self, config: DataConfig, processor: Processor) -> None:
        if config.index_folder is not None:  # here, since for each video it would count as a bad sample
            try:
                Path(config.index_folder).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OSError(
                    f"DataConfig: index_folder is {config.index_folder!r}, which cannot be made ({error.strerror}); "
                    "needs a folder that can be written."
                ) from error
        self.config = config
        self.processor = processor
        self._prefetch = Prefetch(config.num_workers)
        try:
            index = plan_recipe(
                config.recipe,
                processor,
                self._prefetch,
                skip_bad=config.on_bad_sample == "skip",
                allow_outside_root=config.allow_outside_root,
                index_folder=config.index_folder,
                video_time_limit_seconds=config.video_time_limit_seconds,
            )
        except BaseException:
            self.close()
            raise
        self._plans = index.shown
        self.contents = index.contents()  # how many images and videos, and fields of rows that are not used
        self._skipped, self._known_bad = list(index.skipped), set(index.skipped)
        self._fingerprint = index.fingerprint(processor.config, config.seed)
        lengths = [plan.num_tokens for plan in self._plans]
        self._schedule = Schedule(lengths, processor.config.sampling.context_tokens, seed=config.seed)
        self._epoch, self._next_row = 0, 0  # the row that comes next, in the epoch of the row that came last
        self._coming = self._load_ahead()

    # -- what there is

    @property
    def num_samples(self) -> int:
        """Samples that one epoch shows, repeats counted."""
        return len(self._plans)

    @property
    def num_rows(self) -> int:
        """Rows of the current epoch."""
        return len(self._schedule.rows(self._epoch))

    @property
    def epoch(self) -> int:
        """The epoch, from 0, of the batch given last."""
        return self._epoch

    def rows_left(self, num_epochs: int) -> int:
        """Rows from the next one to the end of the first `num_epochs` epochs; those that cannot be loaded count too."""
        if self._epoch >= num_epochs:
            return 0
        return sum(len(self._schedule.rows(epoch)) for epoch in range(self._epoch, num_epochs)) - self._next_row

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(sample id, reason with file and line), in the order of the stream: those that were come to until now."""
        return list(self._skipped)

    # -- rows

    def _load_ahead(self) -> Iterator[tuple[ScheduledRow, Future[_LoadedRow]]]:
        """The rows from the next one on, loaded when the first is asked for.

        Put in the place of an earlier one it ends that: what was to be loaded and is not begun never is.
        """
        rows = self._schedule.rows_from(self._epoch, self._next_row)
        return self._prefetch.ahead(self._load_row, rows, at_once=self.config.num_workers)

    def _load_row(self, row: ScheduledRow) -> _LoadedRow:
        """In a worker thread."""
        loaded, plans, skipped = [], [], []
        for i in row.samples:
            plan = self._plans[i]
            try:
                sample = self.processor.load_sample(
                    plan,
                    num_decode_workers=self.config.num_decode_workers,
                    index_folder=self.config.index_folder,
                    video_time_limit_seconds=self.config.video_time_limit_seconds,
                    stop=self._prefetch.stop,
                )
                loaded.append(sample)
                plans.append(plan)
            except DataError as error:
                if self.config.on_bad_sample == "raise":
                    raise
                skipped.append(skip_entry(plan.sample, error))
        if not loaded:
            return _LoadedRow(None, skipped)
        patches_IPK = torch.cat([sample.patches_IPK for sample in loaded])
        batch = replace(
            pack_row([sample.tokens for sample in loaded], patches_IPK),
            datasets=tuple(plan.dataset for plan in plans),
            num_reduced=sum(plan.visual.is_reduced for plan in plans),
        )
        return _LoadedRow(batch, skipped)

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> PackedBatch:
        num_bad_rows = 0
        while True:
            if self._prefetch.stop.is_set():
                raise ValueError("Loader: it was closed; make a new one.")
            try:
                row, loading = next(self._coming)
                loaded = loading.result()
            except BaseException:  # an interrupt too
                self._coming = self._load_ahead()  # so that a later `next` tries this row again
                raise
            self._epoch, self._next_row = row.epoch, row.row + 1
            for entry in loaded.skipped:
                if entry not in self._known_bad:
                    self._skipped.append(entry)
                    self._known_bad.add(entry)
            if loaded.batch is not None:
                return loaded.batch
            num_bad_rows += 1
            if num_bad_rows > self.num_rows:
                raise DataError(f"no sample of an epoch could be loaded; the last: {self.skipped[-1][1]}")

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
        self._epoch, self._next_row = state["epoch"], state["next_row"]
        self._coming = self._load_ahead()
        self._skipped = [(where, reason) for where, reason in state["skipped"]]
        self._known_bad = set(self._skipped)

    # -- end

    def close(self) -> None:
        """Ends the threads; a sample that is being decoded stops at its next frame. May be called again."""
        self._prefetch.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
