"""`eagle data prepare`: reads every row and opens every medium once, and writes what planning needs of them.

    prepare(Path("recipe.json"), processor, Path("prepared"), num_workers=8)     # a run reads it: prepared.py

    plan = begin(Path("recipe.json"), processor, Path("prepared"))               # the same in pieces, on many machines
    for k in range(plan.num_parts): prepare_part(Path("prepared"), k)            # in any order, anywhere, again
    finish(Path("prepared"))

The rows are cut into parts of PART_BYTES. Each part is prepared by itself into files that are written whole, so what
was interrupted goes on with the parts that are missing, and a part costs the same memory however many there are. What
is known of media is kept beside the parts, and used again while a file's size and time are the same.

Folder  preparation.json: the sources, the parts, what counts tokens.  processor/: its tokenizer and config.
        parts/00000.parquet: a line each row; parts/00000.videos.parquet: a line each video of them (`part_table`).
        rows/: annotation files that are one JSON list, as a line each row.  images/: sizes of images.
        videos/: the indexes of videos, which decoding uses too.  prepared.json: written last, by `finish`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from eagle_model.data.annotations import BLANK, json_line, json_rows
from eagle_model.data.index import PREPARED_PROCESSOR as PROCESSOR
from eagle_model.data.index import PREPARED_VIDEOS
from eagle_model.data.part_table import PartTable
from eagle_model.data.processor import Processor
from eagle_model.data.recipe import PREPARATION as PLAN
from eagle_model.data.recipe import Source, read_recipe
from eagle_model.data.remote import RemoteConfig
from eagle_model.data.rows import training_sample
from eagle_model.data.sample import DataError
from eagle_model.fields import from_json, to_json
from eagle_model.files import read_json, write_json, write_whole

FORMAT = 2
DONE, PARTS, ROWS, LOCK = "prepared.json", "parts", "rows", "prepare.lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without locks answer
PART_BYTES = 4 << 20  # of rows: some thousands, which take a second or two; little is lost where one is interrupted
_READ_BYTES = 1 << 22


class Part(NamedTuple):
    """A run of whole lines of one file."""

    source: int
    file: int  # of the source's annotation files
    begin: int  # byte
    end: int
    first_line: int  # its number, from 1


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What preparation.json says: what is prepared, and how it is cut."""

    format: int
    recipe: str
    sources: list[dict[str, Any]]  # name, root, and of each annotation file its path, size and time
    tokens: dict[str, Any]  # all that the number of text tokens depends on
    options: dict[str, Any]  # allow_outside_root, video_time_limit_seconds, remote
    parts: list[list[int]]

    @property
    def num_parts(self) -> int:
        return len(self.parts)


@dataclass(frozen=True)
class Progress:
    """How far `prepare` is. Rows are those of this call; bytes of rows say how much of all is done."""

    num_parts: int
    num_parts_done: int
    num_rows: int
    num_skipped: int
    done_bytes: int
    all_bytes: int
    seconds: float
    found_bytes: int  # of `done_bytes`, what an earlier call had prepared

    @property
    def seconds_left(self) -> float | None:
        done = self.done_bytes - self.found_bytes
        return self.seconds * (self.all_bytes - self.done_bytes) / done if done else None


def prepare(
    recipe: Path,
    processor: Processor,
    out: Path,
    *,
    num_workers: int = 1,
    allow_outside_root: bool = False,
    video_time_limit_seconds: float | None = None,
    remote: RemoteConfig | None = None,
    again: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Prepares a recipe with num_workers processes, and goes on where an earlier call was interrupted.

    Rows and samples that are bad are listed in the parts; training refuses them or leaves them out, as it is told.
    allow_outside_root, video_time_limit_seconds, remote: as of DataConfig.  again: as of `begin`.
    Returns: what `finish` writes.
    Raises:  DataError where the recipe cannot be used, another process prepares the folder, or one was killed: call it
             again to go on.
    """
    with _alone(out):
        plan = begin(
            recipe,
            processor,
            out,
            allow_outside_root=allow_outside_root,
            video_time_limit_seconds=video_time_limit_seconds,
            remote=remote,
            again=again,
        )
        _prepare_missing(plan, out, num_workers, progress)
        return finish(out)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Raises DataError where another call of `prepare` has the folder; the kernel frees it, however that ends."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{out} is being prepared by another process. Wait for it, or give another folder; many machines share "
                "one by examples/prepare_cluster.py."
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield


def _prepare_missing(
    plan: Preparation, out: Path, num_workers: int, progress: Callable[[Progress], None] | None
) -> None:
    started = time.monotonic()
    sizes = [end - begin_ for _, _, begin_, end, _ in plan.parts]
    missing = [k for k in range(plan.num_parts) if not part_path(out, k).is_file()]
    found_bytes = sum(sizes) - sum(sizes[k] for k in missing)
    num_rows = num_skipped = done_bytes = num_done = 0

    def say(k: int | None, counts: dict[str, int]) -> None:
        nonlocal num_rows, num_skipped, done_bytes, num_done
        if k is not None:
            num_rows, num_skipped = num_rows + counts["rows"], num_skipped + counts["skipped"]
            done_bytes, num_done = done_bytes + sizes[k], num_done + 1
        if progress is not None:
            progress(
                Progress(
                    num_parts=plan.num_parts,
                    num_parts_done=plan.num_parts - len(missing) + num_done,
                    num_rows=num_rows,
                    num_skipped=num_skipped,
                    done_bytes=found_bytes + done_bytes,
                    all_bytes=sum(sizes),
                    seconds=time.monotonic() - started,
                    found_bytes=found_bytes,
                )
            )

    say(None, {})
    if num_workers == 1 or len(missing) <= 1:
        for k in missing:
            say(k, prepare_part(out, k))
        return
    context = multiprocessing.get_context("forkserver")  # torch is imported once, and no thread of ours is forked
    context.set_forkserver_preload(["eagle_model.data.prepare"])
    with ProcessPoolExecutor(min(num_workers, len(missing)), mp_context=context, initializer=in_pool) as pool:
        coming = {pool.submit(prepare_part, out, k): k for k in missing}
        try:
            for future in as_completed(coming):
                say(coming[future], future.result())
        except BrokenProcessPool:
            left = sum(not part_path(out, k).is_file() for k in missing)
            raise DataError(
                f"{out}: a process that prepares was killed, by lack of memory for instance; {left} of "
                f"{plan.num_parts} parts are missing. Run it again to go on, with fewer workers if memory was short."
            ) from None
        except BaseException:
            for future in coming:
                future.cancel()
            raise


def in_pool() -> None:
    """Begins a process of a pool. The tokenizer would start as many threads as there are cores in each; and one whose
    parent was killed would wait for work for ever."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, name="eagle-parent", daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        wait([parent.sentinel])
        os._exit(1)  # parts are written whole: nothing is left half done but a temporary file


def begin(
    recipe: Path,
    processor: Processor,
    out: Path,
    *,
    allow_outside_root: bool = False,
    video_time_limit_seconds: float | None = None,
    remote: RemoteConfig | None = None,
    again: bool = False,
) -> Preparation:
    """Makes the folder and cuts the rows into parts. Parts that are there already stay where nothing has changed.

    again: makes all parts anew, for media that have changed; those of the same size and time are not opened.
    """
    sources = read_recipe(recipe)
    for folder in (PARTS, ROWS, "images", PREPARED_VIDEOS):
        (out / folder).mkdir(parents=True, exist_ok=True)
    described = [_described(source) for source in sources]
    tokens = token_settings(processor)
    options: dict[str, Any] = {
        "allow_outside_root": allow_outside_root,
        "video_time_limit_seconds": video_time_limit_seconds,
        "remote": None if remote is None else to_json(remote),
    }
    said = {"format": FORMAT, "recipe": os.path.abspath(recipe), "sources": described, "tokens": tokens}
    said["options"] = options
    if (out / PLAN).is_file() and not again:
        before = read_json(out / PLAN)
        if isinstance(before, dict) and {name: before.get(name) for name in said} == said:
            return Preparation(**before)
    for name in (DONE, PLAN):
        (out / name).unlink(missing_ok=True)
    for path in (out / PARTS).iterdir():  # of other data, or counted otherwise
        path.unlink()
    shutil.rmtree(out / PROCESSOR, ignore_errors=True)
    processor.save_pretrained(out / PROCESSOR)
    parts = []
    for k, source in enumerate(sources):
        for j, path in enumerate(source.annotation):
            lines = path
            if path.suffix.lower() != ".jsonl":
                lines = _as_lines(path, out / ROWS / f"{k:03d}-{j:04d}.jsonl")
            parts += [Part(k, j, *cut) for cut in _cut(lines)]
    plan = Preparation(**said, parts=[list(part) for part in parts])  # type: ignore[arg-type]
    write_json(out / PLAN, asdict(plan))
    return plan


def token_settings(processor: Processor) -> dict[str, Any]:
    """All that the number of text tokens depends on, beside the text."""
    config = processor.config
    tokenizer = hashlib.sha256(processor.tokenizer.to_str().encode()).hexdigest()
    return {
        "tokenizer": tokenizer,
        "template": config.template,
        "system": config.system_text,
        "auto_thinking_prompt": config.auto_thinking_prompt,
    }


def prepare_part(out: Path, k: int) -> dict[str, int]:
    """Prepares part k of what `begin` cut, wherever it is called; returns how many rows there are, and are skipped.

    Raises DataError where the annotation file is not the one that was cut any more.
    """
    plan, processor = _opened(out, os.stat(out / PLAN).st_mtime_ns)
    part = Part(*plan.parts[k])
    source = plan.sources[part.source]
    need_unchanged(source)
    table = PartTable(
        processor,
        out,
        key=f"{source['annotation'][part.file]['path']}:{part.begin}",
        video_time_limit_seconds=plan.options["video_time_limit_seconds"],
    )
    root, allow = Path(source["root"]), plan.options["allow_outside_root"]
    said = plan.options["remote"]
    remote = None if said is None else from_json(RemoteConfig, said)
    for line in _lines(out, plan, part):
        row = json_line(line.where, line.data, is_first=line.number == 1 and line.offset == 0)
        if row is BLANK:
            continue
        try:
            sample = training_sample(row, root=root, where=line.where, allow_outside_root=allow, remote=remote)
        except DataError as error:
            table.add_bad(line.number, line.offset, len(line.data), line.where, str(error))
        else:
            table.add(line.number, line.offset, len(line.data), sample)
    return table.write(part_path(out, k))


def finish(out: Path) -> dict[str, Any]:
    """Counts what the parts hold and says in prepared.json that all is there. Raises DataError where a part is not."""
    plan = Preparation(**read_json(out / PLAN))
    missing = [k for k in range(plan.num_parts) if not part_path(out, k).is_file()]
    if missing:
        raise DataError(f"{out}: {len(missing)} of {plan.num_parts} parts are missing, the first {missing[0]}.")
    rows_of = [0] * len(plan.sources)
    totals = dict.fromkeys(("skipped", "images", "videos", "text_only", "rows"), 0)  # of no part at all, too
    unused: dict[str, int] = {}
    for k, part in enumerate(plan.parts):
        counts = json.loads(pq.read_schema(part_path(out, k)).metadata[b"eagle"])
        for name, num in counts.pop("unused_fields").items():
            unused[name] = unused.get(name, 0) + num
        for name, num in counts.items():
            totals[name] = totals.get(name, 0) + num
        rows_of[part[0]] += counts["rows"]
    for source, num in zip(plan.sources, rows_of):
        if source["length"] not in (None, num):
            raise DataError(
                f"{source['name']}: {num} rows, but the recipe's length for it is {source['length']}. Correct the "
                "length or remove it."
            )
    by_number = sorted(unused.items(), key=lambda item: -item[1])
    done = {"format": FORMAT, "num_parts": plan.num_parts, **totals, "unused_fields": by_number}
    write_json(out / DONE, done)
    return done


def part_path(out: Path, k: int) -> Path:
    return out / PARTS / f"{k:05d}.parquet"


def rows_path(out: Path, source: dict[str, Any], source_number: int, file: int) -> Path:
    """Where the lines of an annotation file are: itself, or the copy of a JSON list."""
    path = Path(source["annotation"][file]["path"])
    return path if path.suffix.lower() == ".jsonl" else out / ROWS / f"{source_number:03d}-{file:04d}.jsonl"


def need_unchanged(source: dict[str, Any]) -> None:
    for file in source["annotation"]:
        try:
            found = os.stat(file["path"])
        except OSError as error:
            raise DataError(
                f"{file['path']} cannot be read: {error.strerror}. It was prepared from there: put it back, or run "
                "eagle data prepare again where it is now."
            ) from error
        if [found.st_size, found.st_mtime_ns] != [file["bytes"], file["mtime_ns"]]:
            raise DataError(f"{file['path']} has changed since it was prepared. Run eagle data prepare again.")


def _described(source: Source) -> dict[str, Any]:
    files = []
    for path in source.annotation:
        found = os.stat(path)
        files.append({"path": os.path.abspath(path), "bytes": found.st_size, "mtime_ns": found.st_mtime_ns})
    root = os.path.abspath(source.root)
    return {"name": source.name, "root": root, "length": source.length, "annotation": files}


@lru_cache(maxsize=2)
def _opened(out: Path, changed_ns: int) -> tuple[Preparation, Processor]:
    return Preparation(**read_json(out / PLAN)), Processor.from_pretrained(out / PROCESSOR)


class _Line(NamedTuple):
    where: str  # "file:line", of the annotation file
    number: int
    offset: int  # in the file that holds lines
    data: bytes


def _lines(out: Path, plan: Preparation, part: Part) -> Iterator[_Line]:
    source = plan.sources[part.source]
    path = rows_path(out, source, part.source, part.file)
    name = source["annotation"][part.file]["path"]
    numbers = None
    if str(path) != name:  # a list's rows may share a line, or have several
        numbers = np.load(path.with_suffix(".npy"), mmap_mode="r")
    offset, number = part.begin, part.first_line
    with path.open("rb") as file:
        file.seek(offset)
        while offset < part.end:
            data = file.readline()
            own = int(numbers[number - 1]) if numbers is not None else number
            yield _Line(f"{name}:{own}", own, offset, data)
            offset, number = offset + len(data), number + 1


def _cut(path: Path) -> Iterator[tuple[int, int, int]]:
    """(begin, end, number of the first line) of runs of whole lines, about PART_BYTES each."""
    begin = position = 0
    first_line = line = 1
    with path.open("rb") as file:
        while data := file.read(_READ_BYTES):
            last = data.rfind(b"\n") + 1
            if last and position + last - begin >= PART_BYTES:
                line += data.count(b"\n", 0, last)
                yield begin, position + last, first_line
                begin, first_line = position + last, line
                line += data.count(b"\n", last)
            else:
                line += data.count(b"\n")
            position += len(data)
    if position > begin:
        yield begin, position, first_line


def _as_lines(path: Path, out: Path) -> Path:
    """The rows of a JSON list, a line each, and beside them the number of the line that each begins on."""
    numbers = []

    def write(beside: Path) -> None:
        with beside.open("w", encoding="utf-8") as file:
            for where, row in json_rows(path):
                if isinstance(row, DataError):
                    raise row
                numbers.append(int(where.rpartition(":")[2]))
                file.write(json.dumps(row) + "\n")

    write_whole(out, write)
    write_whole(out.with_suffix(".npy"), lambda beside: _save(beside, np.array(numbers, np.int64)))
    return out


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # np.save would add a suffix to a name
        np.save(file, array)
