"""Loader: a recipe -> packed rows, for ever, in an order that a saved state continues exactly.

    with Loader(DataConfig(recipe="recipe.json"), processor) as loader:
        batch = next(loader)                  # a PackedBatch
        state = loader.state_dict()           # load_state_dict(state) goes on with the row after it

    for row in loader.step(8):                # the next 8 rows; with `share=ranks`, those of them that are this rank's
        model(row.batch, mass).backward()

All samples are planned once, at the start (index.py). Each epoch packs them anew (schedule.py). Threads load the coming
rows ahead (prefetch.py), and rows are given out in their order whatever finishes first, so neither threads nor
prefetching show in the stream.

Several processes: of a step, data rank d of D takes the rows d, d + D, ...; context ranks of one data rank have all
numbers of the same row, and each has the pixels of its own range of the row's tiles (batch.tile_range), so that a long
video's frames are decoded by whom they are encoded by. A sample that fails on one process is left out on all. The state
is of the whole stream: any number of processes continues it.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from eagle_model.batch import IGNORE_INDEX, PackedBatch, tile_range
from eagle_model.data.epochs import Epochs, RowSource
from eagle_model.data.executor import Executor, VideoTiles
from eagle_model.data.index import PREPARED_VIDEOS, Skipped, is_prepared, open_index, skip_entry
from eagle_model.data.packing import pack_row
from eagle_model.data.prefetch import Prefetch
from eagle_model.data.processor import PIXELS_DTYPE, Processor, SamplePlan
from eagle_model.data.proxies import Proxies
from eagle_model.data.reader import Part, ReadOptions, Wanted, joined, read_part
from eagle_model.data.recipe import Source, read_recipe
from eagle_model.data.remote import RemoteConfig
from eagle_model.data.sample import DataError, Sample, VideoRef
from eagle_model.data.schedule import Place, ScheduledRow
from eagle_model.data.share import ALONE, Share
from eagle_model.data.stream import StreamedRows, StreamOf, recipe_stream
from eagle_model.data.templates import SampledVideo
from eagle_model.data.workers import Workers

STATE_FORMAT = 3
IDLE_TOKENS = 16  # of what a rank computes that has no row while others have one: little, and nothing of it is learned


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Where samples come from and how they are read; what is seen of them says ProcessorConfig."""

    recipe: str  # an Eagle recipe, or an annotation file: recipe.read_recipe; or what `eagle data prepare` made of one
    seed: int = 0  # of the order of samples
    temperature: float = 1.0  # above 1 brings the shares of a recipe's sources closer together (mixing.Mix)
    streaming: bool = False  # rows are read as they are wanted, none is planned before (stream.py); needs max_steps
    on_bad_sample: Literal["raise", "skip", "substitute"] = "raise"  # the latter two: listed in Loader.skipped
    workers: Literal["thread", "process"] = "thread"  # process: nothing they do holds up the training process
    num_workers: int = 2  # threads or processes, and rows that are loaded ahead
    prefetch_bytes: int = 4 << 30  # of pixels that are loaded ahead; one row may be larger
    video_decoder: Literal["cpu", "dali"] = "cpu"  # dali: what it can decode right, in the training process on its GPU
    num_decode_workers: int = 1  # threads for each video that is being decoded, inside each of num_workers
    video_time_limit_seconds: float | None = None  # to read or decode one video: one that takes longer is a bad sample
    index_folder: str | None = None  # keeps what planning finds in videos, for decoding and for the next start
    allow_outside_root: bool = False  # true: images and videos may lie outside their recipe's root
    remote: RemoteConfig | None = None  # rows may name media by URL (docs/remote_media.md); none: they may not
    proxies: str | None = None  # a folder of small copies of the videos, read in their place (docs/proxies.md)

    def __post_init__(self) -> None:
        if self.on_bad_sample not in ("raise", "skip", "substitute"):
            raise ValueError(
                f"DataConfig: on_bad_sample is {self.on_bad_sample!r}; needs 'raise', 'skip' or 'substitute'."
            )
        if self.video_decoder not in ("cpu", "dali"):
            raise ValueError(f"DataConfig: video_decoder is {self.video_decoder!r}; needs 'cpu' or 'dali'.")
        if self.workers not in ("thread", "process"):
            raise ValueError(f"DataConfig: workers is {self.workers!r}; needs 'thread' or 'process'.")
        for name in ("num_workers", "num_decode_workers", "prefetch_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"DataConfig: {name} is {getattr(self, name)}; needs at least 1.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"DataConfig: temperature is {self.temperature}; needs a number above 0.")
        if self.streaming and self.temperature != 1:
            raise ValueError(
                f"DataConfig: temperature is {self.temperature} with streaming=true; needs 1, as nobody knows the "
                "sizes of sources that are streamed. Give them weights in the recipe."
            )
        if self.video_time_limit_seconds is not None and not self.video_time_limit_seconds > 0:
            raise ValueError(
                f"DataConfig: video_time_limit_seconds is {self.video_time_limit_seconds}; needs more than 0, or None."
            )


class StepRow(NamedTuple):
    """A row of a step, and its place among them."""

    number: int  # of the step's rows, from 0, whatever the number of ranks
    batch: PackedBatch  # of an idle rank a tiny one without samples and labels: its loss and gradients are 0


class _Round(NamedTuple):
    """Rows that the data ranks take at the same time, a row each; the last round of a step may have fewer."""

    rows: list[ScheduledRow]
    number: int  # of this rank's row among those of the step
    mine: ScheduledRow | None


class _Failed(NamedTuple):
    """A sample of a row, or a substitute for it, that could not be loaded."""

    place: int  # in the row
    attempt: int  # 0: the sample itself, 1: its first substitute, ...
    sample_id: str
    where: str
    error: DataError


class _LoadedRow(NamedTuple):
    batch: PackedBatch | None  # None: no sample of the row could be loaded, or there is no row
    failed: list[_Failed]
    deferred: list[VideoTiles]  # of the batch's pixels, what the executor is to decode


class Loader:
    """An endless iterator of PackedBatch, epoch after epoch; use it as a context manager, or call close().

    A row holds as many tokens as a sample may: processor.config.sampling.context_tokens.

    on_bad_sample="raise": DataError with the sample and the cause, while planning (here) or while loading (in `next`;
    calling `next` again tries the same row again). "skip": the sample is left out, a row that it was in gets shorter,
    and (sample id, reason) goes to `skipped` once. "substitute": the same, but for one that cannot be loaded another of
    its source that is no longer stands at the row's end (substitutes.py). Files alone decide what fails, so a resume
    skips the same. A row of which nothing is left is left out of its step.

    Raises DataError if the recipe is unusable or no sample is left; OSError if index_folder cannot be made.
    """

    def __init__(
        self,
        config: DataConfig,
        processor: Processor,
        *,
        share: Share = ALONE,
        rows_per_step: int = 1,
        stream: StreamOf | None = None,
        executor: Executor | None = None,
        say: Callable[[str], object] = warnings.warn,
    ) -> None:
        """share: the part that this process takes, `Ranks` for instance; all processes make the same calls.

        rows_per_step: rows of a step over all ranks, by which neighbours cost about the same (schedule.py).
        stream: where samples come from, in place of config.recipe (stream.py).
        executor: decodes videos in this process, as rows are given out; batches have their pixels on its device.
        say: is told of worker processes that end, from another thread.
        """
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
        self._share = share
        self._proxies = None
        if config.proxies is not None:
            base = None if is_prepared(config.recipe) else Path(config.recipe).parent
            self._proxies = Proxies.open(config.proxies, base=base, tile_px=processor.config.tile_px)
        self._executor = executor
        self._prefetch = Prefetch(config.num_workers)
        self._workers: Workers | None = None
        try:
            if config.workers == "process":  # they start while samples are planned
                self._workers = Workers(config.num_workers, processor, self._read_options, say=say)
            if config.streaming and stream is None:
                sources = read_recipe(config.recipe)
                stream = recipe_stream(
                    sources,
                    seed=config.seed,
                    allow_outside_root=config.allow_outside_root,
                    remote=config.remote,
                )
            self._rows: RowSource = (
                self._indexed(rows_per_step) if stream is None else self._streamed(stream, rows_per_step)
            )
        except BaseException:
            self.close()
            raise
        self.contents = self._rows.contents  # how many images and videos, and fields of rows that are not used
        self._skipped: list[Skipped] = []
        self._reasons: defaultdict[str, list[str]] = defaultdict(list)  # of `_skipped`, by id
        self._list_skipped(self._rows.skipped)
        self._next = Place()  # of the row that comes next, in the epoch of the row that came last
        self._num_left_out = 0  # rows, since one could be loaded
        self._rows_per_step = share.num_data
        self._coming = self._load_ahead()

    def _indexed(self, rows_per_step: int) -> RowSource:
        config = self.config
        index = open_index(
            config.recipe,
            self.processor,
            self._prefetch,
            skip_bad=config.on_bad_sample != "raise",
            allow_outside_root=config.allow_outside_root,
            index_folder=config.index_folder,
            video_time_limit_seconds=config.video_time_limit_seconds,
            remote=config.remote,
            proxies=self._proxies,
            share=self._share,
        )
        return Epochs(
            index,
            self.processor.config,
            seed=config.seed,
            temperature=config.temperature,
            rows_per_step=rows_per_step,
        )

    def _streamed(self, stream: StreamOf, rows_per_step: int) -> RowSource:
        def plan(sample: Sample, source: Source | None) -> SamplePlan:
            planned = self.processor.plan_sample(
                sample,
                limits=None if source is None else source.limited(self.processor.config.sampling),
                index_folder=self.config.index_folder,
                video_time_limit_seconds=self.config.video_time_limit_seconds,
                stop=self._prefetch.stop,
                proxies=self._proxies,
            )
            return planned if source is None else replace(planned, dataset=source.name)

        return StreamedRows(
            stream,
            plan,
            self.processor.config,
            seed=self.config.seed,
            rows_per_step=rows_per_step,
            skip_bad=self.config.on_bad_sample != "raise",
        )

    # -- what there is

    @property
    def num_samples(self) -> int:
        """Samples that one epoch shows, repeats counted."""
        return self._rows.num_samples

    @property
    def num_rows(self) -> int:
        """Rows of the current epoch."""
        return self._rows.num_rows(self._next.epoch)

    @property
    def epoch(self) -> int:
        """The epoch, from 0, of the row given last, to whichever rank."""
        return self._next.epoch

    def rows_left(self, num_epochs: int) -> int:
        """Rows from the next one to the end of the first `num_epochs` epochs; those that cannot be loaded count too."""
        return self._rows.rows_left(self._next, num_epochs)

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(sample id, reason with file and line), in the order of the stream: those that were come to until now."""
        return list(self._skipped)

    # -- rows

    def step(self, num_rows: int) -> Iterator[StepRow]:
        """The rows of the next step that are this rank's, each loaded when it is asked for; all ranks ask for all.

        num_rows: of the step, over all ranks. All ranks get as many: one whose row is left out, or that has none in the
        step's last round, gets a row of nothing while others have one. A step of which no row at all can be loaded is
        passed over. Raises as `next` does, on all ranks.
        """
        if num_rows != self._rows_per_step:
            self._rows_per_step = num_rows
            self._coming = self._load_ahead()
        is_empty = True
        while is_empty:
            for _ in range(0, num_rows, self._share.num_data):
                row, is_anywhere = self._next_round()
                if is_anywhere:
                    is_empty = False
                    yield row

    def __iter__(self) -> Loader:
        return self

    def __next__(self) -> PackedBatch:
        """The next row that can be loaded; for one data rank. More than one take a `step` together."""
        if self._share.num_data > 1:
            raise ValueError(f"Loader: next is for one data rank; there are {self._share.num_data}. Use step.")
        return next(self.step(1)).batch

    def _load_ahead(self) -> Iterator[tuple[_Round, Future[_LoadedRow]]]:
        """The rounds from the next row on, loaded when the first is asked for.

        Put in the place of an earlier one it ends that: what was to be loaded and is not begun never is.
        """
        return self._prefetch.ahead(
            self._load_round,
            self._rounds(),
            at_once=self.config.num_workers,
            size=self._pixel_bytes,
            max_size=self.config.prefetch_bytes,
        )

    def _pixel_bytes(self, coming: _Round) -> int:
        """Of this rank's part of its row."""
        if coming.mine is None:
            return 0
        num_tiles = -(-self._rows.num_tiles(coming.mine.samples) // self._share.num_context)
        return math.prod(self.processor.tiling.shape(num_tiles)) * PIXELS_DTYPE.itemsize

    def _rounds(self) -> Iterator[_Round]:
        D, d = self._share.num_data, self._share.data_rank
        rows = self._rows.rows_from(self._next)
        while True:
            for first in range(0, self._rows_per_step, D):
                together = list(islice(rows, min(D, self._rows_per_step - first)))
                yield _Round(together, first + d, together[d] if d < len(together) else None)

    def _load_round(self, coming: _Round) -> _LoadedRow:
        """In a worker thread."""
        return self._load_row(coming.mine, {}) if coming.mine else _LoadedRow(None, [], [])

    def _load_row(self, row: ScheduledRow, failures: Mapping[int, int]) -> _LoadedRow:
        """failures: by place in the row, how many of the sample and its substitutes are known to fail, on any rank.

        A row that several ranks share is read once, and all of it again where anything fails: the tiles are shared out
        anew. Alone, a rank reads the substitutes beside what it has.
        """
        is_shared, failures = self._share.num_context > 1, dict(failures)
        chosen = {k: i for k in range(len(row.samples)) if (i := self._chosen(row, k, failures.get(k, 0))) is not None}
        found: list[_Failed] = []
        parts: list[Part] = []
        plans: dict[int, SamplePlan] = {}
        todo = sorted(chosen, key=lambda k: (k in failures, k))  # substitutes stand at the end
        while todo:
            plans |= {k: self._rows.plan(chosen[k]) for k in todo}
            part = self._read(self._wanted(row, {k: plans[k] for k in todo}, chosen))
            parts.append(part)
            todo = sorted(part.failed)
            for k in todo:
                found.append(self._failed(row, k, failures.get(k, 0), plans.pop(k), part.failed[k]))
                failures[k] = failures.get(k, 0) + 1
                chosen.pop(k)
            if is_shared or self.config.on_bad_sample == "raise":
                break
            chosen |= {k: i for k in todo if (i := self._chosen(row, k, failures[k])) is not None}
            todo = [k for k in todo if k in chosen]
        if not plans or (found and (is_shared or self.config.on_bad_sample == "raise")):
            return _LoadedRow(None, found, [])
        part = parts[0] if len(parts) == 1 else joined(parts, key=lambda place: (place in failures, place))
        shown = [plans[one.place] for one in part.samples]
        num_tiles = sum(plan.num_tiles for plan in shown)
        batch = replace(
            pack_row([one.tokens for one in part.samples], part.patches_IPK),
            datasets=tuple(plan.dataset for plan in shown),
            num_reduced=sum(plan.visual.is_reduced for plan in shown),
            num_not_in_proxies=sum(map(self._num_not_in_proxies, shown)),
            tiles=tile_range(num_tiles, self._share.context_rank, self._share.num_context) if is_shared else None,
        )
        return _LoadedRow(batch, found, list(part.deferred))

    def _chosen(self, row: ScheduledRow, place: int, num_failures: int) -> int | None:
        """The sample that is shown in a place of the row where so many are known to fail; None for none."""
        if not num_failures:
            return row.samples[place]
        if self.config.on_bad_sample != "substitute":
            return None
        return self._rows.substitute(row.samples[place], num_failures - 1)

    def _wanted(self, row: ScheduledRow, plans: Mapping[int, SamplePlan], chosen: Mapping[int, int]) -> list[Wanted]:
        """The tiles that are this rank's of those of `plans`, by place; in their order."""
        num_tiles = sum(plan.num_tiles for plan in plans.values())
        begin, end = tile_range(num_tiles, self._share.context_rank, self._share.num_context)
        wanted, before = [], 0
        for k, plan in plans.items():
            first, last = (min(max(tile - before, 0), plan.num_tiles) for tile in (begin, end))
            before += plan.num_tiles
            jpeg_seed = None
            if self._rows.is_augmented(chosen[k]):
                digest = hashlib.sha256(json.dumps([self.config.seed, row.place.epoch, chosen[k]]).encode()).digest()
                jpeg_seed = int.from_bytes(digest[:4], "little")
            wanted.append(Wanted(k, plan, (first, last), jpeg_seed))
        return wanted

    def _read(self, wanted: list[Wanted]) -> Part:
        stop, first_ends = self._prefetch.stop, self.config.on_bad_sample == "raise"
        if self._workers is not None:
            return self._workers.read(wanted, stop=stop, first_failure_ends=first_ends)
        return read_part(self.processor, wanted, self._read_options, stop=stop, first_failure_ends=first_ends)

    @property
    def _read_options(self) -> ReadOptions:
        config = self.config
        prepared = str(Path(config.recipe) / PREPARED_VIDEOS) if is_prepared(config.recipe) else None
        return ReadOptions(
            num_decode_workers=config.num_decode_workers,
            index_folder=config.index_folder or prepared,
            video_time_limit_seconds=config.video_time_limit_seconds,
            proxies=self._proxies,
            packets_for=None if self._executor is None else self._executor.backend,
        )

    def _failed(self, row: ScheduledRow, place: int, attempt: int, plan: SamplePlan, error: DataError) -> _Failed:
        """With what is shown instead, in its error."""
        instead = self._chosen(row, place, attempt + 1)
        if instead is not None:
            sample = self._rows.plan(instead).sample
            error = DataError(f"{error} In its place: {' '.join(skip_entry(sample.id, sample.where, '')).strip(': ')}.")
        return _Failed(place, attempt, plan.sample.id, plan.sample.where, error)

    def _num_not_in_proxies(self, plan: SamplePlan) -> int:
        if self._proxies is None:
            return 0
        shown = zip(plan.sample.media, plan.seen, strict=True)
        films = [(m, s.timestamps_seconds) for m, s in shown if isinstance(m, VideoRef) and isinstance(s, SampledVideo)]
        return self._proxies.num_lacking(films)

    def _next_round(self) -> tuple[StepRow, bool]:
        """This rank's row of the next round, and whether any rank has one."""
        if self._prefetch.stop.is_set():
            raise ValueError("Loader: it was closed; make a new one.")
        try:
            coming, loading = next(self._coming)
            batch, num_loaded = self._agreed(coming.mine, loading.result())
        except BaseException:  # an interrupt too
            self._coming = self._load_ahead()  # so that a later `next` tries this round again
            raise
        for row in coming.rows:
            self._list_skipped(entry for entry in row.skipped if entry not in self._skipped)
        self._next = coming.rows[-1].after
        self._num_left_out = 0 if num_loaded else self._num_left_out + len(coming.rows)
        if self._num_left_out > 2 * self.num_rows:  # the one good row may be an epoch's first and the next one's last
            raise DataError(f"no sample of an epoch could be loaded; the last: {self.skipped[-1][1]}")
        return StepRow(coming.number, self._idle() if batch is None else batch), num_loaded > 0

    def _agreed(self, row: ScheduledRow | None, loaded: _LoadedRow) -> tuple[PackedBatch | None, int]:
        """This rank's row without what failed on any rank, and how many ranks have a row.

        With several context ranks, whoever shares a row with a bad sample loads the row again without it, which may
        find another, until nobody finds one.
        """
        C, data_rank, failures = self._share.num_context, self._share.data_rank, dict[int, int]()
        bad: dict[tuple[int, int, int], list[str]] = {}  # by data rank, place in the row, attempt: id, where, why
        while True:
            found = [[*failed[:4], str(failed.error)] for failed in loaded.failed]
            told = self._share.gather([loaded.batch is not None, found])
            news: dict[tuple[int, int, int], list[str]] = {}
            for rank, (_, failed) in enumerate(told):
                for place, attempt, *about in failed:
                    news.setdefault((rank // C, place, attempt), about)  # of context ranks, the first one's words
            if news and self.config.on_bad_sample == "raise":
                first = min(news)
                own = [f.error for f in loaded.failed if (data_rank, f.place, f.attempt) == first]
                is_told = bool(own) and str(own[0]) == news[first][2]  # of context ranks each has its own frames
                raise own[0] if is_told else DataError(news[first][2])
            bad |= news
            if C == 1 or not news:
                break
            if mine := {place: attempt + 1 for d, place, attempt in sorted(news) if d == data_rank}:
                assert row is not None
                failures |= mine
                loaded = self._load_row(row, failures)
        for _, (sample_id, where, why) in sorted(bad.items()):
            if not self._is_listed(sample_id, where):
                self._list_skipped([skip_entry(sample_id, where, why)])
        batch = loaded.batch
        if batch is not None and self._executor is not None:
            batch = replace(batch, patches_IPK=self._executor.fill(batch.patches_IPK, loaded.deferred))
        return batch, sum(has_row for has_row, _ in told[::C])

    def _is_listed(self, sample_id: str, where: str) -> bool:
        """Ids may repeat, and what is said of a sample may differ from one time to the next; file and line do not."""
        reasons = self._reasons[sample_id]
        return bool(reasons) if where in ("", sample_id) else any(reason.startswith(f"{where}: ") for reason in reasons)

    def _list_skipped(self, entries: Iterable[Skipped]) -> None:
        for sample_id, reason in entries:
            self._skipped.append((sample_id, reason))
            self._reasons[sample_id].append(reason)

    def _idle(self) -> PackedBatch:
        return PackedBatch(
            token_ids_T=torch.zeros(IDLE_TOKENS, dtype=torch.int64),
            labels_T=torch.full((IDLE_TOKENS,), IGNORE_INDEX),
            positions_T=torch.arange(IDLE_TOKENS, dtype=torch.int32),
            cu_seqlens=torch.tensor([0, IDLE_TOKENS], dtype=torch.int32),
            patches_IPK=torch.empty(self.processor.tiling.shape(0), dtype=PIXELS_DTYPE),
            visual_rows_N=torch.empty(0, dtype=torch.int64),
            sample_ids=(),
            num_labelled=0,
            tiles=(0, 0) if self._share.num_context > 1 else None,
        )

    # -- state

    def state_dict(self) -> dict:
        """JSON-able. After batch k was given, it is the state that batch k + 1 follows, whatever was loaded ahead."""
        return {
            "format": STATE_FORMAT,
            "data": self._rows.fingerprint,
            "num_samples": self.num_samples,
            **self._next._asdict(),
            "skipped": [list(entry) for entry in self.skipped],
        }

    def load_state_dict(self, state: dict) -> None:
        """Continues where the state was taken. Raises ValueError when the data or its config are not the same."""
        if state.get("format") != STATE_FORMAT:
            raise ValueError(
                f"Loader: the state's format is {state.get('format')!r}; needs {STATE_FORMAT}. Rows are packed "
                "otherwise since, so no place of that run is one of this: finish it with the version that began it, or "
                "start a new run from its checkpoint."
            )
        if state["data"] != self._rows.fingerprint:
            raise ValueError(
                f"Loader: the state is of other data: {state['num_samples']} samples an epoch then, {self.num_samples} "
                f"now, or other rows, files, sizes or seed. Restore the data and its config, or start anew."
            )
        self._next = Place(**{name: state[name] for name in Place._fields})
        self._num_left_out = 0
        self._coming = self._load_ahead()
        self._skipped.clear()
        self._reasons.clear()
        self._list_skipped(state["skipped"])

    # -- end

    def close(self) -> None:
        """Ends the threads; a sample that is being decoded stops at its next frame. May be called again."""
        self._prefetch.stop.set()
        if self._workers is not None:
            self._workers.close()
        self._prefetch.close()
        if hasattr(self, "_rows"):  # not where planning failed
            self._rows.close()

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
