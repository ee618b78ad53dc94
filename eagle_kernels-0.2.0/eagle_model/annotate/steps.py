"""The steps by their names, in order: what `eagle annotate STEP` runs.

run_named(Run(config), "clip").num_rows
"""

from __future__ import annotations

from eagle_model.annotate.build import build
from eagle_model.annotate.clip import clip_step
from eagle_model.annotate.filter import filter_step
from eagle_model.annotate.segment import segment_step
from eagle_model.annotate.select import run_select
from eagle_model.annotate.story import story_step
from eagle_model.annotate.work import Run, Totals, run_step, stale

STEPS = ("select", "segment", "story", "clip", "filter", "build")
_BY_PARTS = {"segment": segment_step, "story": story_step, "clip": clip_step, "filter": filter_step}


def run_named(run: Run, name: str) -> Totals:
    """Raises: ValueError for another name, and what the step raises.

    Says so where a step before was done with other settings, prompts or inputs than now: its rows are used as they are.
    """
    for earlier in STEPS[2 : STEPS.index(name) if name in STEPS else 0]:  # segment would read its files of chapters
        if old := stale(run, _BY_PARTS[earlier](run)):
            run.say(f"{name}: {old} parts of {earlier} are of other settings or inputs; annotate {earlier} renews them")
    if name == "select":
        return run_select(run)
    if name == "build":
        built = build(run)
        return Totals(num_rows=sum(built.num_rows.values()))
    if name not in _BY_PARTS:
        raise ValueError(f"there is no step {name!r}; the steps are {', '.join(STEPS)}.")
    return run_step(run, _BY_PARTS[name](run))
