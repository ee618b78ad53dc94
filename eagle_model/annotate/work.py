"""The durable queue: a step works through the parts of a data set, asks what it must, and never asks twice.

    step = Step("story", inputs=("select", "segment"), settings=config.story, prompts=(caption, questions),
                columns=QUESTIONS, items=videos_of, work=annotate_video)
    run_step(Run(config), step)         # killed at any moment and called again, it goes on

A step's folder has for each part: `part-00003.jsonl`, its journal, where every answer is written as it comes, raw;
`part-00003.parquet`, its rows; and `part-00003.done.json`, which says from what they were made. `work` is a function of
its item and of answers alone (ask.py), so going on is starting again: what the journal has is not asked. A part whose
inputs, settings or prompts changed is made again, from the answers that still fit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eagle_kernels.video import VideoError
from eagle_model.annotate.ask import Ask, Asks, Postponed, Unanswered
from eagle_model.annotate.config import AnnotateConfig
from eagle_model.annotate.journal import Journal
from eagle_model.annotate.progress import Progress
from eagle_model.annotate.prompts import Prompt
from eagle_model.data.sample import DataError
from eagle_model.fields import to_json
from eagle_model.files import read_json, sha256, write_json, write_whole
from eagle_model.infer.endpoint import Budget, Endpoint, EndpointError, RequestRefused

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Step:
    name: str
    inputs: tuple[str, ...]  # names of the steps whose parts it reads, part by part
    settings: object  # the group of the config that its rows depend on
    prompts: tuple[Prompt, ...]
    columns: pa.Schema
    items: Callable[[dict[str, pa.Table]], Sequence[Any]]  # what a part's inputs give to do
    work: Callable[[Any, Ask], Rows]  # an item -> its rows; may raise DataError
    made_from: tuple[str, ...] = ()  # hashes of other files that its rows depend on


@dataclass
class Totals:
    num_parts: int = 0
    num_rows: int = 0
    num_requests: int = 0  # answered, now or earlier
    dollars: float = 0.0
    failures: list[dict[str, str]] = field(default_factory=list)  # items without rows, and why


class Run:
    """A config's folder, its endpoints and its budget. `share` (i, n): this process does every n-th part, from i."""

    def __init__(
        self,
        config: AnnotateConfig,
        *,
        share: tuple[int, int] = (0, 1),
        say: Callable[[str], object] = lambda line: None,
        annotator: Asks | None = None,
        reader: Asks | None = None,
    ) -> None:
        self.config, self.share, self.say, self.folder = config, share, say, Path(config.out)
        num_requests, dollars = spent(self.folder)
        limits = config.budget
        self.budget = Budget(limits.max_dollars, limits.max_requests, num_requests, dollars)
        self.annotator = annotator or Endpoint(config.annotator, root=config.media_root, budget=self.budget)
        own_reader = Endpoint(config.reader, budget=self.budget) if config.reader else self.annotator
        self.reader = reader or own_reader

    def ask(self, journal: Journal, *, batch: bool = False) -> Ask:
        """What `work` is given with this journal."""
        return Ask(self.config, journal, annotator=self.annotator, reader=self.reader, batch=batch, say=self.say)


def spent(folder: Path) -> tuple[int, float]:
    """Requests answered and dollars paid in a run's folder: of finished parts by their notes, of others by journals."""
    notes = [read_json(path) for path in folder.glob("*/part-*.done.json")]
    num_requests, dollars = sum(n["num_requests"] for n in notes), sum(n["dollars"] for n in notes)
    for path in folder.glob("*/part-*.jsonl"):
        if not path.with_suffix(".done.json").exists():
            with path.open("rb") as file:
                records = [json.loads(line) for line in file if line.endswith(b"\n")]
            num_requests, dollars = num_requests + len(records), dollars + sum(r["dollars"] for r in records)
    return num_requests, dollars


# ---- one step


def run_step(run: Run, step: Step) -> Totals:
    """Does the parts of this process's share that are not done. Rows, journal and note of each are on disk after it.

    Raises: EndpointError, BudgetReached among them, when the endpoint ends the work; what was answered is kept.
    """
    totals, parts = Totals(), find_parts(run.folder / step.inputs[0])
    mine = [number for number in parts if number % run.share[1] == run.share[0]]
    folder = run.folder / step.name
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(step.name, len(mine), run.budget, run.say)
    for number in mine:
        note = folder / f"{part_name(number)}.done.json"
        made_from = _fingerprint(run, step, number)
        done = read_json(note) if note.is_file() else {}
        if done.get("made_from") != made_from:
            done = _do_part(run, step, number, progress)
            refused = [f["problem"] for f in done["failures"] if "refuses" in f["problem"]]
            if refused and not totals.num_rows + done["num_rows"] and len(refused) == len(done["failures"]):
                raise EndpointError(f"{step.name}: every request is refused; the first: {refused[0]}")
            write_json(note, {"made_from": made_from, **done})
        totals.num_parts += 1
        totals.num_rows += done["num_rows"]
        totals.num_requests += done["num_requests"]
        totals.dollars += done["dollars"]
        totals.failures += done["failures"]
        progress.part_done()
    return totals


def stale(run: Run, step: Step) -> int:
    """How many of a step's parts are done, and would be done again if it ran now."""
    notes = {int(path.name[5:10]): path for path in (run.folder / step.name).glob("part-*.done.json")}
    mine = [n for n in notes if all((run.folder / i / f"{part_name(n)}.parquet").is_file() for i in step.inputs)]
    return sum(read_json(notes[n]).get("made_from") != _fingerprint(run, step, n) for n in mine)


def part_name(number: int) -> str:
    return f"part-{number:05d}"


def find_parts(folder: Path) -> list[int]:
    """The numbers of a step's finished parts. Raises ValueError when there are none."""
    found = sorted(int(path.name[5:10]) for path in folder.glob("part-*.done.json"))
    if not found:
        raise ValueError(f"{folder} has no finished part; run `eagle annotate {folder.name}` first.")
    return found


def read_part(folder: Path, number: int) -> pa.Table:
    """The rows of a finished part. Raises ValueError when it is not."""
    if not (folder / f"{part_name(number)}.done.json").is_file():
        raise ValueError(f"part {number} of {folder} is not done; run `eagle annotate {folder.name}` to its end first.")
    return pq.read_table(folder / f"{part_name(number)}.parquet")


def write_part(folder: Path, number: int, rows: Rows, columns: pa.Schema) -> Path:
    path = folder / f"{part_name(number)}.parquet"
    table = pa.Table.from_pylist(rows, schema=columns)
    write_whole(path, lambda beside: pq.write_table(table, beside, compression="zstd"))
    return path


def _fingerprint(run: Run, step: Step, number: int) -> str:
    inputs = [sha256(run.folder / name / f"{part_name(number)}.parquet") for name in step.inputs]
    settings = to_json(step.settings) if step.settings is not None else None
    asked: list[Any] = []
    if step.prompts:  # else it asks nothing, and no model's name changes its rows
        shown = run.annotator.config
        models = [shown.model, run.reader.config.model, shown.image_px, shown.jpeg_quality]
        asked = [[p.version for p in step.prompts], models, run.config.seed, run.config.max_attempts]
    return hashlib.sha256(json.dumps([step.name, inputs, step.made_from, settings, *asked]).encode()).hexdigest()


def _do_part(run: Run, step: Step, number: int, progress: Progress) -> dict[str, Any]:
    folder = run.folder / step.name
    items = step.items({name: read_part(run.folder / name, number) for name in step.inputs})
    progress.begin(len(items))
    with Journal(folder / f"{part_name(number)}.jsonl") as journal:
        (folder / f"{part_name(number)}.done.json").unlink(missing_ok=True)  # what is spent is counted by it
        ask = run.ask(journal, batch=run.config.batch)
        results = _do_items(run, step, items, ask, progress)
        while ask.waiting:
            ask.send_batches()
            ask.left_out.clear()
            progress.begin(len(items))
            results = _do_items(run, step, items, ask, progress)
        rows = [row for result in results if isinstance(result, list) for row in result]
        failures = [result for result in results if isinstance(result, dict)]
        failures += sorted(ask.left_out, key=lambda one: one["item"])
        path = write_part(folder, number, rows, step.columns)
        about = {"num_rows": len(rows), "num_requests": len(journal), "dollars": journal.dollars}
        return {**about, "sha256": sha256(path), "failures": failures}


def _do_items(
    run: Run, step: Step, items: Sequence[Any], ask: Ask, progress: Progress
) -> list[Rows | dict[str, str] | None]:
    with ThreadPoolExecutor(run.annotator.config.max_concurrent) as pool:
        futures = [pool.submit(_do_item, step, item, ask) for item in items]
        try:
            results = []
            for future in futures:
                results.append(future.result())
                progress.item_done()
        except BaseException:
            ask.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)  # what is in flight is paid for: its answers are kept
            raise
    return results


def _do_item(step: Step, item: Any, ask: Ask) -> Rows | dict[str, str] | None:
    try:
        return step.work(item, ask)
    except Postponed:
        return None
    except (DataError, VideoError, Unanswered, RequestRefused) as error:
        return {"item": str(item["id"]), "problem": str(error)}
