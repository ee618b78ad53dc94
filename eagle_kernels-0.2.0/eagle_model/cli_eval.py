"""`eagle eval`: the benchmarks of the paper, of a model here or behind an endpoint; needles; data that was trained on.

    eagle eval run runs/first --task videomme --data Video-MME --out out/videomme
    eagle eval run --endpoint http://localhost:8000/v1 --model-name eagle --task docvqa --data DocVQA --out out/docvqa
    eagle eval tasks video

`eagle eval runs/first --task ...` is `eagle eval run ...`. Exit codes: as of cli.py, and 3 where `decontaminate` finds
rows that the benchmark has too.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from eagle_model.evaluate.runner import Run
    from eagle_model.evaluate.task import Question

FOUND = 3  # exit code of `decontaminate`
_EVERY = 20  # after so many answers the terminal is told how far it is


class _RunByDefault(TyperGroup):
    """`eagle eval MODEL ...` runs: a first word that is no command is run's."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = ["run", *args]
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0].startswith("--") and args[0] not in ("--help", "--install-completion", "--show-completion"):
            args = ["run", *args]  # of an endpoint, which has no folder
        return super().parse_args(ctx, args)


app = typer.Typer(help="Say how good a model is, by the paper's benchmarks.", cls=_RunByDefault)


@app.command()
def run(
    model: Annotated[
        Path | None, typer.Argument(help="A checkpoint's folder or a run's; none with --endpoint.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="eagle eval tasks lists them; as often as needed.")] = None,
    data: Annotated[Path | None, typer.Option(help="The folder of the benchmark's official files.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where it goes on, and writes; by default eval/TASK.")] = None,
    split: Annotated[str | None, typer.Option(help="By default the task's first.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many questions alone.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Low-rank adapters on the model.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="What cannot be shown counts as wrong.")] = False,
    endpoint: Annotated[str | None, typer.Option(help="An OpenAI-compatible server, up to and with /v1.")] = None,
    model_name: Annotated[str, typer.Option(help="As the server calls the model.")] = "eagle",
    max_frames: Annotated[int, typer.Option(min=1, help="Of a video that a server gets; fewer by task.")] = 512,
    image_px: Annotated[int, typer.Option(min=28, help="Longer side of pictures sent to a server.")] = 896,
    judge_url: Annotated[str | None, typer.Option(help="The server of the judge, where a task has one.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="Another judge than the task's; tables name it.")] = None,
    lengths: Annotated[str, typer.Option(help="Of needles: frames of the films, as 64,256.")] = "64,256",
    depths: Annotated[int, typer.Option(min=1, help="Of needles: places in each film.")] = 5,
    page: Annotated[bool, typer.Option(help="Write report.html, with frames.")] = True,
) -> None:
    """Asks a benchmark's questions and scores the answers. Goes on where it was ended; under torchrun in all processes.

    Example:  eagle eval runs/first --task videomme --data Video-MME
    """
    from eagle_model.evaluate.needle import TASK as NEEDLE
    from eagle_model.evaluate.tasks import TASKS

    known = {**TASKS, NEEDLE.name: NEEDLE}
    if not task or data is None:
        raise ValueError("needs --task and --data: eagle eval tasks lists the tasks and where their files come from.")
    if (model is None) == (endpoint is None):
        raise ValueError("needs a model's folder, or --endpoint; one of them.")
    if unknown := [name for name in task if name not in known]:
        raise ValueError(f"--task is {unknown[0]!r}; needs one of {', '.join(known)}.")
    if not (data.is_file() if task == [NEEDLE.name] else data.is_dir()):
        raise ValueError(f"--data is {data}; needs the benchmark's folder, or of needles alone one film.")
    about: dict[str, Any] = {"model": str(model) if model else model_name, "adapter": adapter and str(adapter)}
    if endpoint:
        about |= {"endpoint": endpoint, "max_frames": max_frames, "image_px": image_px}
    rank, num_ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    from eagle_model.evaluate.runner import Run

    made = _needles(data, lengths, depths, about) if task == [NEEDLE.name] else None
    runs = [
        Run(
            (out or Path("eval")) / name if out is None or len(task) > 1 else out, known[name], data,
            about=about, split=split, limit=limit, rank=rank, num_ranks=num_ranks, made=made,
        )
        for name in task
    ]  # fmt: skip
    folder = data if data.is_dir() else data.parent
    with contextlib.ExitStack() as stack:
        answer, seen = _answerer(stack, model, adapter, endpoint, model_name, max_frames, image_px, folder)
        for one in runs:
            one.go(answer, skip_bad=skip_bad, progress=_Progress(one.task.title) if rank == 0 else None)
            if one.is_complete():  # of several processes the last one
                if judge_url:
                    _judge(one, judge_url, judge_model)
                _report(one, about, seen if page else None)


def _answerer(
    stack: contextlib.ExitStack,
    model: Path | None,
    adapter: Path | None,
    url: str | None,
    name: str,
    max_frames: int,
    image_px: int,
    data: Path,
) -> tuple[Any, Any]:
    """Who answers, and what shows a question's frames."""
    from eagle_model.evaluate.answer import engine_of, of_endpoint, of_engine, seen_by_model, seen_by_server

    if url:
        from eagle_model.infer.endpoint import Endpoint, EndpointConfig

        config = EndpointConfig(url=url, model=name, max_frames=max_frames, image_px=image_px)
        server = stack.enter_context(Endpoint(config, root=data))
        return of_endpoint(server, data), seen_by_server(max_frames, data)
    assert model is not None
    device = f"cuda:{os.environ['LOCAL_RANK']}" if "LOCAL_RANK" in os.environ and _has_gpu() else None
    engine = stack.enter_context(engine_of(model, adapter=adapter, device=device, say=print))
    return of_engine(engine, data), seen_by_model(engine.processor, data)


def _needles(film: Path, lengths: str, depths: int, about: dict[str, Any]) -> Callable[[], Iterator[Question]]:
    from eagle_model.evaluate.needle import needles

    try:
        numbers = tuple(int(length) for length in lengths.split(","))
    except ValueError:
        raise ValueError(f"--lengths is {lengths!r}; needs numbers of frames, as 64,256.") from None
    about |= {"lengths": lengths, "depths": depths}
    return lambda: needles(film, lengths=numbers, depths=depths)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


class _Progress:
    """How far a run is, where somebody looks."""

    def __init__(self, title: str) -> None:
        self.title, self.num = title, 0

    def __call__(self, row: Mapping[str, Any]) -> None:
        self.num += 1
        if self.num % _EVERY == 0 and sys.stderr.isatty():
            print(f"\r{self.title}: {self.num} answered", end="", file=sys.stderr, flush=True)


def _judge(run: Run, url: str, model: str | None) -> None:
    from eagle_model.evaluate.judge import JUDGES, judge_rows
    from eagle_model.infer.endpoint import Endpoint, EndpointConfig

    questions = [question for question in run.questions() if question.task.judge]
    if not questions:
        return
    name = model or JUDGES[questions[0].task.judge].model
    with Endpoint(EndpointConfig(url=url, model=name), root=run.data) as endpoint:
        judge_rows(run.out, run.data, questions, run.answered(), endpoint, model=model)


def _report(run: Run, about: Mapping[str, Any], seen: Any) -> None:
    from eagle_model.evaluate.report import lines, write_report

    rows = run.rows()
    about = {**about, "split": run.split or next(iter(run.task.files), None), "limit": run.limit}
    if run.left_out:
        about = {**about, "records left out": f"{len(set(run.left_out))}, as the declaration says"}
    written = write_report(run.out, run.task, rows, about, list(run.questions()) if seen else [], seen)
    if run.made is not None:
        from eagle_model.evaluate.needle import heat_map

        heat_map(run.out / "needles.png", rows)
        written.append(run.out / "needles.png")
    print("\n".join([*lines(run.task, rows, about), "", *(f"Written: {path}" for path in written)]))
    if any(question.task.judge for question in run.questions()) and not any("judge" in row for row in rows):
        print("Some answers need a judge: run it again with --judge-url, the model stays unasked.")


@app.command()
def tasks(
    find: Annotated[str | None, typer.Argument(help="A part of a name or title.")] = None,
    long: Annotated[bool, typer.Option("--long", help="Also files and columns.")] = False,
) -> None:
    """Every benchmark: its name, where its files come from, and how it is scored.

    Example:  eagle eval tasks doc --long
    """
    from eagle_model.evaluate.tasks import TASKS

    wanted = (find or "").lower()
    found = [t for t in TASKS.values() if wanted in t.name or wanted in t.title.lower()]
    if not found:
        raise ValueError(f"no task has {find!r} in its name or title; eagle eval tasks lists all.")
    for t in found:
        print(f"{t.name}: {t.title}. {t.source}")
        if long and not t.parts:
            print(f"    files: {'; '.join(f'{split}: {chr(32).join(files)}' for split, files in t.files.items())}")
            print(f"    columns: {', '.join(f'{name} ({kind})' for name, kind in t.columns.items())}")
            print(f"    score: {t.score}, total: {t.total}, frames: {t.max_frames}; {t.revision}; seen: {t.seen}")


@app.command()
def decontaminate(
    task: Annotated[str, typer.Option(help="The benchmark.")],
    data: Annotated[Path, typer.Option(help="The folder of its official files.")],
    recipe: Annotated[
        Path | None, typer.Argument(help="The recipe of a training set, or an annotation file. None: with --hashes.")
    ] = None,
    hashes: Annotated[
        Path | None, typer.Option(help="Writes hashes of the benchmark's pictures, for `eagle annotate select`.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="By default the task's first.")] = None,
    out: Annotated[Path | None, typer.Option(help="Every match as a line of JSON.")] = None,
    allow_outside_root: Annotated[
        bool, typer.Option("--allow-outside-root", help="Media may lie outside the folder of the data: you trust it.")
    ] = False,
) -> None:
    """Finds training rows that share videos, images or questions with a benchmark. Exit code 3: there are some.

    Example:  eagle eval decontaminate mine/recipe.json --task videomme --data Video-MME --out found.jsonl
    """
    import json

    from eagle_model.data.recipe import read_recipe
    from eagle_model.data.rows import read_samples
    from eagle_model.data.sample import DataError
    from eagle_model.evaluate.decontaminate import Benchmark
    from eagle_model.evaluate.read import read
    from eagle_model.evaluate.tasks import TASKS
    from eagle_model.files import write_text

    if task not in TASKS:
        raise ValueError(f"--task is {task!r}; needs one of {', '.join(TASKS)}.")
    parts = TASKS[task].parts or (task,)
    benchmark = Benchmark.of((q for part in parts for q in read(TASKS[part], data, split=split)), data)
    if recipe is None and hashes is None:
        raise ValueError("there is nothing to do; needs the recipe of a training set, or --hashes FILE.")
    if hashes is not None:
        looks = sorted(benchmark.looks())
        write_text(hashes, "".join(f"{seen:016x}\n" for seen in looks))
        print(f"{hashes}: {len(looks)} hashes of {TASKS[task].title}")
    if recipe is None:
        return
    num_rows, unread, found = 0, 0, []
    for source in read_recipe(recipe):
        for sample in read_samples(source, allow_outside_root=allow_outside_root):
            num_rows += 1
            try:
                found += [{"row": sample.where, "id": sample.id, **m._asdict()} for m in benchmark.matches(sample)]
            except DataError as error:
                unread += 1
                print(f"{sample.where}: {error}", file=sys.stderr)
    if out is not None:
        write_text(out, "".join(json.dumps(match, ensure_ascii=False) + "\n" for match in found))
    rows = len({match["row"] for match in found})
    kinds = {kind: sum(match["kind"] == kind for match in found) for kind in ("question", "name", "file", "look")}
    print(f"{rows} of {num_rows} rows share something with {TASKS[task].title}: {kinds}; {unread} could not be read.")
    for match in found[: 0 if out else 20]:
        print(f"{match['row']}: {match['kind']} of {match['question']}: {match['value']}")
    if found:
        raise typer.Exit(FOUND)
