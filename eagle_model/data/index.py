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
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eagle_model.data.prefetch import Prefetch
from eagle_model.data.processor import Processor, ProcessorConfig, SamplePlan
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import read_samples
from eagle_model.data.sample import DataError

_PLANNED_AT_ONCE = 64  # samples that are read and not planned yet: bounds memory where reading is faster


@dataclass(frozen=True, slots=True)
class Index:
    shown: tuple[SamplePlan, ...]  # what one epoch shows, in the recipe's order; a repeated sample stands repeatedly
    skipped: tuple[tuple[str, str], ...]  # (sample id or file:line, reason) of those that could not be planned

    def fingerprint(self, config: ProcessorConfig, seed: int) -> str:
        """Of all that decides the stream of rows; a saved state continues only where it is the same.

        Of files the names alone, and no sample's id, which may be its file and line: data may move to another folder.
        """
        digest = hashlib.sha256()

        def add(*values: object) -> None:
            digest.update(json.dumps(values).encode())

        add(config.sampling.context_tokens, config.tile_px, config.patch_px, config.mean, config.std, config.system)
        add(seed)
        for plan in self.shown:
            add(plan.num_tokens, plan.visual.grids, plan.visual.timestamps_seconds)
            for turn in plan.sample.turns:
                parts = [part if isinstance(part, str) else [part.number, part.path.name] for part in turn.parts]
                add(turn.role, parts)
        return digest.hexdigest()


def plan_recipe(
    recipe: str | Path,
    processor: Processor,
    prefetch: Prefetch,
    *,
    skip_bad: bool = False,
    allow_outside_root: bool = False,
    index_folder: str | Path | None = None,
) -> Index:
    """All samples of a recipe, planned.

    Args:   skip_bad: leaves out rows and samples that cannot be read or planned, and lists them.
            allow_outside_root: as `rows.read_samples`.  index_folder: as `Processor.plan_sample`.
    Raises: DataError for the first bad one, unless skip_bad; for a recipe that cannot be used, and where no sample is
            left, in either case.
    """
    shown: list[SamplePlan] = []
    skipped: dict[tuple[str, str], None] = {}  # a set that keeps its order

    def on_bad_row(where: str, error: DataError) -> None:
        skipped[where, str(error)] = None

    for source in read_recipe(recipe):
        plan = partial(processor.plan_sample, max_tiles=source.max_tiles, index_folder=index_folder)
        samples = read_samples(
            source, allow_outside_root=allow_outside_root, on_bad_row=on_bad_row if skip_bad else None
        )
        for i, (sample, planning) in enumerate(prefetch.ahead(plan, samples, at_once=_PLANNED_AT_ONCE)):
            try:
                planned = planning.result()
            except DataError as error:
                if not skip_bad:
                    raise
                skipped[sample.id, str(error)] = None
            else:
                shown.extend([planned] * source.num_repeats(i))
    if not shown:
        first = f"; {len(skipped)} were skipped, the first: {next(iter(skipped))[1]}" if skipped else "."
        raise DataError(f"{recipe}: no sample to train on{first}")
    return Index(tuple(shown), tuple(skipped))
