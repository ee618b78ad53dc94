"""`eagle annotate STEP --config run.toml`: questions about videos, from a model behind an endpoint, as training rows.

    eagle annotate estimate --config run.toml --videos 110000
    eagle annotate all --config run.toml --max-dollars 20

The steps are select, segment, story, clip, filter, build, each of which goes on where it stopped; `all` runs them in
turn, `estimate` tells what they may take. Exit codes: as of cli.py; a budget that is reached is a 2, and nothing lost.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

_MAX_FAILURES = 5  # said, of each step


def annotate(
    step: Annotated[str, typer.Argument(help="select, segment, story, clip, filter, build; all; or estimate.")],
    config: Annotated[Path, typer.Option(help="A TOML or JSON file.")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="path.to.field=value, as often as needed.")] = None,
    max_dollars: Annotated[float | None, typer.Option(help="What all steps together may cost.")] = None,
    max_requests: Annotated[int | None, typer.Option(help="How many answers all steps together may take.")] = None,
    videos: Annotated[int | None, typer.Option(help="estimate: of so many, in place of those of the config.")] = None,
    mean_seconds: Annotated[
        float, typer.Option(help="estimate: how long they are on average, before select knows.")
    ] = 600.0,
    part: Annotated[
        str, typer.Option(help="I/N: of N processes, the I-th, from 0, does its share of the parts.")
    ] = "0/1",
) -> None:
    """Makes training rows from videos: a model behind an OpenAI-compatible endpoint writes and checks questions.

    Example:  eagle annotate all --config run.toml --max-dollars 20
    """
    from eagle_model.annotate.config import read_config
    from eagle_model.annotate.estimate import Collection, estimate
    from eagle_model.annotate.steps import STEPS, run_named
    from eagle_model.annotate.work import Run

    limits = [("max_dollars", max_dollars), ("max_requests", max_requests)]
    given = [f"budget.{name}={value}" for name, value in limits if value is not None]
    read = read_config(config, [*(set_ or ()), *given])
    if step == "estimate":
        collection = None if videos is None else Collection(videos, mean_seconds)
        print("\n".join(estimate(read, collection, mean_seconds=mean_seconds).lines()))
        return
    if step not in (*STEPS, "all"):
        raise ValueError(f"there is no step {step!r}; the steps are {', '.join(STEPS)}, all and estimate.")
    run = Run(read, share=_share(part), say=lambda line: print(line, file=sys.stderr, flush=True))
    for name in STEPS if step == "all" else (step,):
        totals = run_named(run, name)
        cost = f"{run.budget.num_requests:,} requests and {run.budget.dollars:.2f} dollars so far"
        print(f"{name}: {totals.num_rows:,} rows, {len(totals.failures):,} left out; {cost}")
        for failure in totals.failures[:_MAX_FAILURES]:
            print(f"  {failure['item']}: {failure['problem']}")
        if len(totals.failures) > _MAX_FAILURES:
            print(f"  and {len(totals.failures) - _MAX_FAILURES:,} more, in {run.folder / name}/*.done.json")


def _share(part: str) -> tuple[int, int]:
    index, slash, count = part.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"--part is {part!r}; needs I/N with I from 0 to N - 1, as in 0/4.")
    return int(index), int(count)
