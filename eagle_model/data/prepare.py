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
        videos/: the indexes of videos, which decoding uses too.  rows.arrow, videos.arrow: the tables of all parts, as
        a start maps them into memory.  prepared.json: written last, by `finish`.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eagle_model.data.annotations import BLANK, json_line, json_rows
from eagle_model.data.index import PREPARED_PROCESSOR as PROCESSOR
from eagle_model.data.index import PREPARED_VIDEOS
from eagle_model.data.part_table import ROW_SCHEMA, VIDEO_SCHEMA, PartTable, videos_path
from eagle_model.data.pool import in_pool
from eagle_model.data.processor import Processor
from eagle_model.data.recipe import PREPARATION as PLAN
from eagle_model.data.recipe import Source, read_recipe
from eagle_model.data.remote import RemoteConfig
from eagle_model.data.rows import training_sample
from eagle_model.data.sample import DataError, Stamp
from eagle_model.data.stamps import digest_of, is_same
from eagle_model.fields import from_json, to_json
from eagle_model.files import read_json, write_json, write_whole

FORMAT = 3
DONE, PARTS, ROWS, LOCK = "prepared.json", "parts", "rows", "prepare.lock"
ALL_ROWS, ALL_VIDEOS = "rows.arrow", "videos.arrow"
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
    folder: str  # where this was when it was begun: paths are as seen from there
    recipe: str
    sources: list[dict[str, Any]]  # name, root, and of each annotation file its path, size, time and digest
    tokens: dict[str, Any]  # all that the number of text tokens depends on
    options: dict[str, Any]  # allow_outside_root, video_time_limit_seconds, remote, content_hashes
    parts: list[list[int]]
    moved_to: str | None = None  # where it is now, where data and folder were moved together; in no file

    @property
    def num_parts(self) -> int:
        return len(self.parts)

    def place(self, path: str) -> str:
        """Where a file is that was at `path`."""
        if self.moved_to is None:
            return path
        return os.path.normpath(os.path.join(self.moved_to, os.path.relpath(path, self.folder)))


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
    content_hashes: bool = False,
    again: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Prepares a recipe with num_workers processes, and goes on where an earlier call was interrupted.

    Rows and samples that are bad are listed in the parts; training refuses them or leaves them out, as it is told.
    allow_outside_root, video_time_limit_seconds, remote: as of DataConfig.  content_hashes, again: as of `begin`.
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
            content_hashes=content_hashes,
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


def begin(
    recipe: Path,
    processor: Processor,
    out: Path,
    *,
    allow_outside_root: bool = False,
    video_time_limit_seconds: float | None = None,
    remote: RemoteConfig | None = None,
    content_hashes: bool = False,
    again: bool = False,
) -> Preparation:
    """Makes the folder and cuts the rows into parts. Parts that are there already stay where nothing has changed.

    content_hashes: media are read whole, so that a file that was copied, and has another time, is known again.
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
        "content_hashes": content_hashes,
    }
    said = {"format": FORMAT, "recipe": os.path.abspath(recipe), "sources": described, "tokens": tokens}
    said["options"] = options
    if (out / PLAN).is_file() and not again and (before := _of_the_same(out, said)) is not None:
        return before
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
            described[k]["annotation"][j]["digest"] = _content(path)
    plan = Preparation(**said, folder=os.path.abspath(out), parts=[list(part) for part in parts])  # type: ignore[arg-type]
    write_json(out / PLAN, {name: value for name, value in asdict(plan).items() if name != "moved_to"})
    return plan


def read_plan(out: Path) -> Preparation:
    """What `begin` wrote, its paths as they are now: as they were, or as seen from the folder, where it was moved and
    all of its data with it. Raises DataError where another version wrote it."""
    said = read_json(out / PLAN)
    if said.get("format") != FORMAT:
        raise DataError(f"{out} was prepared by another version of this program. Run eagle data prepare again.")
    plan, folder = Preparation(**said), os.path.abspath(out)
    if folder == plan.folder:
        return plan
    moved = replace(plan, moved_to=folder)
    named = [plan.recipe, *(s["root"] for s in plan.sources)]
    named += [file["path"] for source in plan.sources for file in source["annotation"]]
    if not all(os.path.exists(moved.place(path)) for path in named):
        return plan  # the folder alone was moved, or copied
    sources = []
    for source in plan.sources:
        files = [{**file, "path": moved.place(file["path"])} for file in source["annotation"]]
        sources.append({**source, "root": moved.place(source["root"]), "annotation": files})
    return replace(moved, recipe=moved.place(plan.recipe), sources=sources)


def _of_the_same(out: Path, said: dict[str, Any]) -> Preparation | None:
    """What was begun in the folder, where it is of these data and options."""
    try:
        before = read_plan(out)
    except (DataError, ValueError, TypeError):
        return None
    now = [{**source, "annotation": len(source["annotation"])} for source in said["sources"]]
    then = [{**source, "annotation": len(source["annotation"])} for source in before.sources]
    if any(getattr(before, name) != said[name] for name in ("recipe", "tokens", "options")) or now != then:
        return None
    files = zip(*([f for s in sources for f in s["annotation"]] for sources in (before.sources, said["sources"])))
    return before if all(old["path"] == new["path"] and _is_same(old) for old, new in files) else None


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
    plan, processor = _opened(out, os.path.abspath(out), os.stat(out / PLAN).st_mtime_ns)
    part = Part(*plan.parts[k])
    source = plan.sources[part.source]
    need_unchanged(source)
    table = PartTable(
        processor,
        out,
        key=f"{source['annotation'][part.file]['path']}:{part.begin}",
        video_time_limit_seconds=plan.options["video_time_limit_seconds"],
        with_content=plan.options["content_hashes"],
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
    plan = read_plan(out)
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
    parts = [part_path(out, k) for k in range(plan.num_parts)]
    digest = hashlib.sha256()
    merged = {
        "rows_of_parts": _merge(parts, out / ALL_ROWS, ROW_SCHEMA, digest),
        "videos_of_parts": _merge([videos_path(part) for part in parts], out / ALL_VIDEOS, VIDEO_SCHEMA, digest),
    }
    done = {"format": FORMAT, "num_parts": plan.num_parts, **totals, "unused_fields": by_number}
    write_json(out / DONE, {**done, **merged, "digest": digest.hexdigest()})
    return done


def _merge(parts: list[Path], out: Path, schema: pa.Schema, digest: Any) -> list[int]:
    """Writes the tables of all parts as one file that needs no unpacking, a part at a time; the rows of each part."""
    num_rows = []

    def write(beside: Path) -> None:
        with pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for part in parts:
                data = part.read_bytes()
                digest.update(data)
                table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).cast(schema)
                writer.write_table(table)
                num_rows.append(table.num_rows)

    write_whole(out, write)
    return num_rows


def part_path(out: Path, k: int) -> Path:
    return out / PARTS / f"{k:05d}.parquet"


def rows_path(out: Path, source: dict[str, Any], source_number: int, file: int) -> Path:
    """Where the lines of an annotation file are: itself, or the copy of a JSON list."""
    path = Path(source["annotation"][file]["path"])
    return path if path.suffix.lower() == ".jsonl" else out / ROWS / f"{source_number:03d}-{file:04d}.jsonl"


def need_unchanged(source: dict[str, Any]) -> None:
    for file in source["annotation"]:
        try:
            is_same = _is_same(file)
        except OSError as error:
            raise DataError(
                f"{file['path']} cannot be read: {error.strerror}. It was prepared from there: put it back, or run "
                "eagle data prepare again where it is now. (Data and prepared folder may move together.)"
            ) from error
        if not is_same:
            raise DataError(f"{file['path']} has changed since it was prepared. Run eagle data prepare again.")


def _is_same(file: dict[str, Any]) -> bool:
    """Whether an annotation file is the one that was described; of another time it is, where its content is the same.
    Raises OSError."""
    return is_same(file["path"], Stamp(file["bytes"], file["mtime_ns"], bytes.fromhex(file["digest"])))


def _content(path: Path) -> str:
    found = os.stat(path)
    return digest_of(str(path), found.st_size, found.st_mtime_ns).hex()


def _described(source: Source) -> dict[str, Any]:
    files = []
    for path in source.annotation:
        found = os.stat(path)
        files.append({"path": os.path.abspath(path), "bytes": found.st_size, "mtime_ns": found.st_mtime_ns})
    root = os.path.abspath(source.root)
    return {"name": source.name, "root": root, "length": source.length, "annotation": files}


@lru_cache(maxsize=2)
def _opened(out: Path, place: str, changed_ns: int) -> tuple[Preparation, Processor]:
    return read_plan(out), Processor.from_pretrained(out / PROCESSOR)


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
