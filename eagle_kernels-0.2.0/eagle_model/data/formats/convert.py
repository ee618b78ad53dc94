"""Any data set -> a recipe that training reads: `eagle data convert`.

    done = convert(Path("shards"), Path("out"))
    done.num_rows                                # eagle train stage2 --set data.recipe=out/recipe.json

    out/recipe.json            an entry, or two, for each data set
    out/NAME.jsonl             rows whose media are files already: they stay where they are, root is their folder
    out/NAME.stored.jsonl      rows whose media were inside a container: root is out/media
    out/media/3f/9a/3f9a...jpg the media, named by their SHA-256 (media.py says why they become files)
    out/skipped.jsonl          rows that were left out and why, where on_bad_row is "skip"

Rows are written one by one, each read back first as training reads it, so what is written can be trained on. The recipe
comes last: a folder without one is unfinished, and the same command goes on with it, its media written once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from eagle_model.data.formats.media import MediaStore
from eagle_model.data.formats.opening import DataSet, Settler, open_data
from eagle_model.data.rows import training_sample
from eagle_model.data.sample import DataError
from eagle_model.files import write_json

RECIPE, SKIPPED, MEDIA = "recipe.json", "skipped.jsonl", "media"


@dataclass(slots=True)
class Converted:
    num_rows: int = 0
    num_skipped: int = 0
    num_media: int = 0  # files written; those of earlier rows or runs are not counted again
    num_media_bytes: int = 0
    notes: tuple[str, ...] = ()


def convert(
    path: Path,
    out: Path,
    *,
    layout: str | None = None,
    only: tuple[str, ...] = (),
    on_bad_row: Literal["raise", "skip"] = "raise",
    allow_outside_root: bool = False,
    progress: Callable[[int], object] = lambda num_rows: None,
) -> Converted:
    """Writes a data set as a recipe, its rows and its media.

    Args:   path, layout, only: as `open_data`.  out: a new folder, or one that this left unfinished.
            on_bad_row: "skip" leaves out what cannot be read and lists it in skipped.jsonl. Media that are files are
            not opened: `check` does that.
    Raises: DataError for the first bad row, unless it is skipped, and where no row is left; ValueError where out is
            used.
    """
    data_sets = open_data(path, layout=layout, only=only, allow_outside_root=allow_outside_root)
    _need_free(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / SKIPPED).unlink(missing_ok=True)
    store, done = MediaStore(out / MEDIA), Converted()
    recipe: dict[str, dict] = {}
    taken = {SKIPPED}
    with ExitStack() as stack:
        skipped = stack.enter_context((out / SKIPPED).open("x", encoding="utf-8"))

        def bad(where: str, error: DataError) -> None:
            if on_bad_row == "raise":
                raise error
            done.num_skipped += 1
            skipped.write(json.dumps({"where": where, "reason": str(error)}, ensure_ascii=False) + "\n")

        for data_set in data_sets:
            done.notes += data_set.notes
            recipe |= _convert_set(data_set, out, store, done, bad, allow_outside_root, progress, taken)
    if not done.num_skipped:
        (out / SKIPPED).unlink()
    if not done.num_rows:
        raise DataError(f"{path}: no row is left; {done.num_skipped} were skipped, as {out / SKIPPED} lists.")
    store.flush()
    done.num_media, done.num_media_bytes = store.num_files, store.num_bytes
    write_json(out / RECIPE, recipe)
    return done


def _need_free(out: Path) -> None:
    ours = {RECIPE, SKIPPED, MEDIA}
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; needs a new folder.")
    if (out / RECIPE).exists():
        raise ValueError(f"{out} holds a recipe already; needs a new folder.")
    if out.is_dir() and (others := [n for n in os.listdir(out) if n not in ours and not n.endswith(".jsonl")]):
        raise ValueError(f"{out} holds {others[0]!r}, which is not of an unfinished conversion; needs a new folder.")


def _convert_set(
    data_set: DataSet,
    out: Path,
    store: MediaStore,
    done: Converted,
    bad: Callable[[str, DataError], None],
    allow_outside_root: bool,
    progress: Callable[[int], object],
    taken: set[str],
) -> dict[str, dict]:
    """The recipe's entries of one data set, its rows written; taken: the names of files of other sets."""
    files: dict[bool, tuple[IO[str], Path]] = {}  # by whether media are in the store
    counts = {False: 0, True: 0}
    with ExitStack() as stack:
        settler = stack.enter_context(Settler(data_set, store, allow_outside_root=allow_outside_root))
        for where, row in data_set.rows():
            try:
                row, root = settler.settled(row, where)
                training_sample(row, root=root, where=where, allow_outside_root=allow_outside_root)
                line = json.dumps(row, ensure_ascii=False, default=_unsaid) + "\n"
            except DataError as error:
                bad(where, error)
                continue
            is_stored = root == store.folder
            if is_stored not in files:
                path = _free_path(out, f"{_file_name(data_set.name)}{'.stored' if is_stored else ''}", taken)
                files[is_stored] = (stack.enter_context(path.open("w", encoding="utf-8")), path)
            files[is_stored][0].write(line)
            counts[is_stored] += 1
            done.num_rows += 1
            progress(done.num_rows)
        for file, _ in files.values():
            file.flush()
            os.fsync(file.fileno())
    entries = {}
    for is_stored, (_, path) in sorted(files.items()):
        place = MEDIA if is_stored else os.path.relpath(data_set.root.resolve(), out.resolve())
        if is_stored:
            store.folder.mkdir(exist_ok=True)
        entry: dict[str, object] = {"root": place, "annotation": path.name, "length": counts[is_stored]}
        if data_set.source is not None:
            if data_set.source.repeat_time != 1:
                entry["repeat_time"] = float(data_set.source.repeat_time)
            if data_set.source.max_tiles is not None:
                entry["max_dynamic_tiles"] = data_set.source.max_tiles
        entries[f"{data_set.name}{' (stored)' if is_stored and len(files) > 1 else ''}"] = entry
    return entries


def _free_path(out: Path, name: str, taken: set[str]) -> Path:
    """NAME.jsonl, or NAME-2.jsonl where another set's name came out the same."""
    free = next(f for i in range(1, 1 << 20) if (f := f"{name}{'' if i == 1 else f'-{i}'}.jsonl") not in taken)
    taken.add(free)
    return out / free


def _file_name(name: str) -> str:
    """A data set's name as a file's: others put slashes into it."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".")[:100] or "rows"


def _unsaid(value: object) -> str:
    """Of a table's cells that JSON has no word for: dates and the like as texts; bytes that are no medium by length."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else str(value)
