"""The index of a data set: every sample of its recipe, planned, in order; what an epoch shows, and a fingerprint of it.

    with Prefetch(num_threads=2) as prefetch:
        index = plan_recipe("recipe.json", processor, prefetch)
    [plan.num_tokens for plan in index.shown]

Planning reads image headers, video indexes and text, no pixels. Plans are kept in memory, about 2 KB a sample, and are
made again at each start: 500 short videos take seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from eagle_model.data.prefetch import Prefetch
from eagle_model.data.processor import Processor, ProcessorConfig, SamplePlan
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import read_samples
from eagle_model.data.sample import DataError, Sample, listed_names
from eagle_model.data.templates import DEFAULT_TEMPLATE

_PLANNED_AT_ONCE = 64  # samples that are read and not planned yet: bounds memory where reading is faster


@dataclass(frozen=True, slots=True)
class Index:
    shown: tuple[SamplePlan, ...]  # what one epoch shows, in the recipe's order; a repeated sample stands repeatedly
    skipped: tuple[tuple[str, str], ...]  # (sample id or file:line, reason) of each that could not be planned
    num_images: int  # in all samples that could be, a repeated one counted once
    num_videos: int
    num_text_only: int  # samples that show neither
    unused_fields: tuple[tuple[str, int], ...]  # of rows: names that nothing reads, and in how many rows, most first

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
        digest = hashlib.sha256()

        def add(*values: object) -> None:
            digest.update(json.dumps(values).encode())

        add(
            config.sampling.context_tokens, config.tile_px, config.patch_px, config.mean, config.std, config.system_text
        )
        if (config.template, config.auto_thinking_prompt) != (DEFAULT_TEMPLATE, False):  # as states of old say nothing
            add(config.template, config.auto_thinking_prompt)
        add(seed)
        for plan in self.shown:
            add(plan.num_tokens, plan.visual.grids, plan.visual.timestamps_seconds)
            for turn in plan.sample.turns:
                parts = [part if isinstance(part, str) else [part.number, part.path.name] for part in turn.parts]
                add(turn.role, parts, *([] if turn.learned else ["context"]))
            if plan.sample.tools:
                add(plan.sample.tools)
        return digest.hexdigest()


def skip_entry(sample: Sample, error: DataError) -> tuple[str, str]:
    """(sample id, reason) of a sample that is left out; its file and line are in one of both, as ids may repeat."""
    reason = str(error) if sample.where in ("", sample.id) else f"{sample.where}: {error}"
    return sample.id, reason


def plan_recipe(
    recipe: str | Path,
    processor: Processor,
    prefetch: Prefetch,
    *,
    skip_bad: bool = False,
    allow_outside_root: bool = False,
    index_folder: str | Path | None = None,
    video_time_limit_seconds: float | None = None,
) -> Index:
    """All samples of a recipe, planned.

    Args:   skip_bad: leaves out rows and samples that cannot be read or planned, and lists them.
            allow_outside_root: as `rows.read_samples`.  The rest: as `Processor.plan_sample`.
    Raises: DataError for the first bad one, unless skip_bad; for a recipe that cannot be used, and where no sample is
            left, in either case.
    """
    shown: list[SamplePlan] = []
    skipped: list[tuple[str, str]] = []
    counts = Counter[str]()
    unused_fields = Counter[str]()

    def on_bad_row(where: str, error: DataError) -> None:
        skipped.append((where, str(error)))

    for source in read_recipe(recipe):
        plan = partial(
            processor.plan_sample,
            max_tiles=source.max_tiles,
            index_folder=index_folder,
            video_time_limit_seconds=video_time_limit_seconds,
            stop=prefetch.stop,
        )
        samples = read_samples(
            source, allow_outside_root=allow_outside_root, on_bad_row=on_bad_row if skip_bad else None
        )
        for i, (sample, planning) in enumerate(prefetch.ahead(plan, samples, at_once=_PLANNED_AT_ONCE)):
            try:
                planned = planning.result()
            except DataError as error:
                if not skip_bad:
                    raise
                skipped.append(skip_entry(sample, error))
            else:
                shown.extend([replace(planned, dataset=source.name)] * source.num_repeats(i))
                images, videos = len(sample.images), len(sample.videos)
                counts.update(images=images, videos=videos, text_only=int(images + videos == 0))
                unused_fields.update(sample.unused_fields)
    if not shown:
        first = f"; {len(skipped)} were skipped, the first: {skipped[0][1]}" if skipped else "."
        raise DataError(f"{recipe}: no sample to train on{first}")
    return Index(
        tuple(shown),
        tuple(skipped),
        num_images=counts["images"],
        num_videos=counts["videos"],
        num_text_only=counts["text_only"],
        unused_fields=tuple(unused_fields.most_common()),
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
