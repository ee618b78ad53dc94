"""The index of a data set: every sample of its recipe, planned, in order; what an epoch shows, and a fingerprint of it.

    with Prefetch(num_threads=2) as prefetch:
        index = plan_recipe("recipe.json", processor, prefetch)
    index.tokens[7], index.plan(7).visual.grids      # the numbers of sample 7, and the whole of its plan

Planning reads image headers, video indexes and text, no pixels. Plans are kept in memory, about 2 KB a sample, and are
made again at each start: 500 short videos take seconds. Where several processes train, each reads all rows and plans
its share of them, and they tell each other what they found: the index is the same on all, whatever one fails to read.

Dims    N samples of the recipe, in its order; each stands once, however often an epoch shows it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eagle_model.data.content import DIGEST_BYTES, content_digest
from eagle_model.data.prefetch import Prefetch
from eagle_model.data.processor import Processor, ProcessorConfig, SamplePlan
from eagle_model.data.proxies import Proxies
from eagle_model.data.recipe import PREPARATION, Source, read_recipe
from eagle_model.data.remote import RemoteConfig
from eagle_model.data.rows import read_samples
from eagle_model.data.sample import DataError, ImageRef, Sample, listed_names
from eagle_model.data.sampling import VisualPlan
from eagle_model.data.share import ALONE, Share
from eagle_model.data.templates import SampledVideo, Seen
from eagle_model.data.tiling import Grid
from eagle_model.fields import to_json

PREPARED_VIDEOS, PREPARED_PROCESSOR = "videos", "processor"  # in a prepared folder (prepare.py)
_PLANNED_AT_ONCE = 64  # samples a process has read and not planned yet: bounds memory where reading is faster

Skipped = tuple[str, str]  # sample id or file:line, and the reason


@dataclass(frozen=True, eq=False, kw_only=True)
class Index:
    """The samples of a recipe that can be planned; each of them once."""

    sources: tuple[Source, ...]  # of the recipe
    source_of: NDArray[np.int32]  # (N,) which of `sources` a sample is of
    tokens: NDArray[np.int64]  # (N,) of a sample, text and tiles
    tiles: NDArray[np.int64]  # (N,) that the vision encoder sees of a sample, thumbnails and frames included
    decode_seconds: NDArray[np.float32]  # (N,) an estimate of what a CPU core needs for its pixels; 0 for text
    digests: NDArray[np.void]  # (N,) 16 bytes of each sample's text and the names of its media (`content_digest`)
    plan: Callable[[int], SamplePlan]  # of sample i, 0 <= i < N
    skipped: tuple[Skipped, ...]  # (sample id or file:line, reason) of each that could not be planned
    num_images: int  # in all samples
    num_videos: int
    num_text_only: int  # samples that show neither
    unused_fields: tuple[tuple[str, int], ...]  # of rows: names that nothing reads, and in how many rows, most first

    @property
    def num_samples(self) -> int:
        return len(self.tokens)

    def contents(self) -> str:
        """What there is to see and learn, and what is in the rows beside it, in one sentence."""
        counts = [
            _counted(self.num_images, "image"),
            _counted(self.num_videos, "video"),
            _counted(self.num_text_only, "text-only sample"),
        ]
        names = [f"{name} ({num_rows})" for name, num_rows in self.unused_fields]
        return ", ".join(counts) + (f"; fields not used: {listed_names(names)}." if names else ".")

    def fingerprint(self, config: ProcessorConfig, seed: int) -> str:
        """Of all that decides the stream of rows; a saved state continues only where it is the same.

        Of files the names alone, and no sample's id, which may be its file and line: data may move to another folder.
        """
        repeats = [str(source.repeat_time) for source in self.sources]  # what each is limited to, its tokens say
        plain = to_json(ProcessorConfig())  # what is as by default is not said, so that later fields change nothing
        chosen = {name: value for name, value in to_json(config).items() if value != plain[name]}
        said = [chosen, config.sampling.context_tokens, config.system_text, seed, repeats]
        digest = hashlib.sha256(json.dumps(said).encode())
        for array in (self.source_of, self.tokens, self.tiles, self.digests):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def skip_entry(sample_id: str, where: str, why: str) -> Skipped:
    """(sample id, reason) of a sample that is left out; its file and line are in one of both, as ids may repeat."""
    return sample_id, why if where in ("", sample_id) else f"{where}: {why}"


def open_index(
    recipe: str | Path,
    processor: Processor,
    prefetch: Prefetch,
    *,
    skip_bad: bool = False,
    allow_outside_root: bool = False,
    index_folder: str | Path | None = None,
    video_time_limit_seconds: float | None = None,
    remote: RemoteConfig | None = None,
    proxies: Proxies | None = None,
    share: Share = ALONE,
) -> Index:
    """The index of a recipe, which is planned here and now, or of a folder that `eagle data prepare` made.

    Arguments and errors as of `plan_recipe`. Of a prepared folder every process reads all, whatever its share, and
    plans are of the originals, whatever proxies there are.
    """
    if is_prepared(recipe):
        from eagle_model.data.prepared import open_prepared  # here: it needs pyarrow, of the extra "data"

        return open_prepared(
            Path(recipe), processor, skip_bad=skip_bad, allow_outside_root=allow_outside_root, remote=remote
        )
    return plan_recipe(
        recipe,
        processor,
        prefetch,
        skip_bad=skip_bad,
        allow_outside_root=allow_outside_root,
        index_folder=index_folder,
        video_time_limit_seconds=video_time_limit_seconds,
        remote=remote,
        proxies=proxies,
        share=share,
    )


def is_prepared(recipe: str | Path) -> bool:
    """Whether it is a folder that `eagle data prepare` has begun, finished or not."""
    return os.path.isfile(os.path.join(recipe, PREPARATION))


def plan_recipe(
    recipe: str | Path,
    processor: Processor,
    prefetch: Prefetch,
    *,
    skip_bad: bool = False,
    allow_outside_root: bool = False,
    index_folder: str | Path | None = None,
    video_time_limit_seconds: float | None = None,
    remote: RemoteConfig | None = None,
    proxies: Proxies | None = None,
    share: Share = ALONE,
) -> Index:
    """All samples of a recipe, planned.

    Args:   skip_bad: leaves out rows and samples that cannot be read or planned, and lists them.
            allow_outside_root, remote: as `rows.read_samples`.  share: who else plans, and calls this too.
            The rest: as `Processor.plan_sample`.
    Raises: DataError for the first bad one, unless skip_bad; for a recipe that cannot be used, and where no sample is
            left, in either case.
    """
    plans: list[SamplePlan] = []
    source_of: list[int] = []
    skipped: list[Skipped] = []
    counts = Counter[str]()
    unused_fields = Counter[str]()
    sources = tuple(read_recipe(recipe))
    for k, source in enumerate(sources):
        plan = partial(
            processor.plan_sample,
            limits=source.limited(processor.config.sampling),
            index_folder=index_folder,
            video_time_limit_seconds=video_time_limit_seconds,
            stop=prefetch.stop,
            proxies=proxies,
        )
        rows = _rows(source, allow_outside_root=allow_outside_root, remote=remote, skip_bad=skip_bad)
        for row, planned in _planned(rows, plan, prefetch, share):
            if not isinstance(row, Sample):
                skipped.append(row)
                continue
            if isinstance(planned, DataError):
                if not skip_bad:
                    raise planned
                skipped.append(skip_entry(row.id, row.where, str(planned)))
            else:
                plans.append(replace(planned, dataset=source.name))
                source_of.append(k)
                images, videos = len(row.images), len(row.videos)
                counts.update(images=images, videos=videos, text_only=int(images + videos == 0))
                unused_fields.update(row.unused_fields)
    if not plans:
        first = f"; {len(skipped)} were skipped, the first: {skipped[0][1]}" if skipped else "."
        raise DataError(f"{recipe}: no sample to train on{first}")
    return Index(
        sources=sources,
        source_of=np.array(source_of, np.int32),
        tokens=np.array([plan.num_tokens for plan in plans], np.int64),
        tiles=np.array([plan.num_tiles for plan in plans], np.int64),
        decode_seconds=np.array([plan.decode_seconds for plan in plans], np.float32),
        digests=np.array([content_digest(plan.sample) for plan in plans], f"V{DIGEST_BYTES}"),
        plan=plans.__getitem__,
        skipped=tuple(skipped),
        num_images=counts["images"],
        num_videos=counts["videos"],
        num_text_only=counts["text_only"],
        unused_fields=tuple(unused_fields.most_common()),
    )


def _rows(
    source: Source, *, allow_outside_root: bool, remote: RemoteConfig | None, skip_bad: bool
) -> Iterator[Sample | Skipped]:
    """The samples of a source, and rows of which none can be made, in their order."""
    bad: list[Skipped] = []

    def on_bad_row(where: str, error: DataError) -> None:
        bad.append((where, str(error)))

    for sample in read_samples(
        source,
        allow_outside_root=allow_outside_root,
        remote=remote,
        on_bad_row=on_bad_row if skip_bad else None,
    ):
        yield from bad
        bad.clear()
        yield sample
    yield from bad


def _planned(
    rows: Iterable[Sample | Skipped], plan: Callable[[Sample], SamplePlan], prefetch: Prefetch, share: Share
) -> Iterator[tuple[Sample | Skipped, SamplePlan | DataError]]:
    """Each row in its order, and what became of its plan; of one that is skipped, why."""

    def outcome(row: Sample | Skipped) -> SamplePlan | DataError:
        if not isinstance(row, Sample):
            return DataError(row[1])
        try:
            return plan(row)
        except DataError as error:
            return error

    rank = share.data_rank * share.num_context + share.context_rank
    num_ranks = share.num_data * share.num_context
    if num_ranks == 1:
        for row, planning in prefetch.ahead(outcome, rows, at_once=_PLANNED_AT_ONCE):
            yield row, planning.result()
        return
    rows = iter(rows)
    while part := list(islice(rows, _PLANNED_AT_ONCE * num_ranks)):
        ahead = prefetch.ahead(outcome, part[rank::num_ranks], at_once=_PLANNED_AT_ONCE)
        found = share.gather([_told(planning.result()) for _, planning in ahead])
        for i, row in enumerate(part):
            yield row, _heard(row, found[i % num_ranks][i // num_ranks])


def _told(planned: SamplePlan | DataError) -> list[Any] | str:
    """What other processes need to know of a plan: they have the sample."""
    if isinstance(planned, DataError):
        return str(planned)
    visual = planned.visual
    rates = [seen.frames_per_second for seen in planned.seen if isinstance(seen, SampledVideo)]
    numbers = [
        visual.max_tiles,
        visual.num_visual_tokens,
        visual.num_text_tokens,
        visual.is_reduced,
        planned.decode_seconds,
    ]
    return [visual.grids, visual.timestamps_seconds, rates, visual.most_frames, *numbers]


def _heard(row: Sample | Skipped, told: list[Any] | str) -> SamplePlan | DataError:
    if isinstance(told, str) or not isinstance(row, Sample):
        return DataError(str(told))
    grids, times, rates, most_frames, max_tiles, num_visual_tokens, num_text_tokens, is_reduced, decode_seconds = told
    visual = VisualPlan(
        grids=tuple(Grid(*grid) for grid in grids),
        timestamps_seconds=tuple(map(tuple, times)),
        max_tiles=max_tiles,
        num_visual_tokens=num_visual_tokens,
        num_text_tokens=num_text_tokens,
        is_reduced=is_reduced,
        most_frames=most_frames,
    )
    images = iter(visual.grids)
    videos = (
        SampledVideo(seconds, rate, has_times=rate is not None)
        for seconds, rate in zip(visual.timestamps_seconds, rates, strict=True)
    )
    seen: tuple[Seen, ...] = tuple(next(images) if isinstance(m, ImageRef) else next(videos) for m in row.media)
    return SamplePlan(row, visual, seen, visual.num_tokens, decode_seconds=decode_seconds)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
