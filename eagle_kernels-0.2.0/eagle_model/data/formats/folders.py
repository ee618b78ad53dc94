"""A plain folder of images and videos with captions beside them -> their records.

    clips/walk.mp4, clips/walk.txt, clips/walk.srt       # a video, what it shows, what is said in it
    for where, record in folder_records(Path("clips")): ...

Beside  a medium X.mp4 may lie X.txt (its caption), X.json (a record of any shape: question and answer, messages; see
        records.py), X.srt or X.vtt (subtitles, shown as text before the question). Or the folder has a
        metadata.csv, metadata.jsonl or metadata.parquet, as Hugging Face's ImageFolder: a record a row, its `file_name`
        relative to that file. A medium without a caption is an error, since nothing can be learned from it.
Order   by name, folder by folder, those inside a folder after its files. Hidden files and links to folders are passed
        over. The names of one folder are held at a time, about 100 bytes each.
Bounds  a caption or record MAX_CAPTION_BYTES.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from eagle_model.data.annotations import json_rows, without_duplicates
from eagle_model.data.formats.media import kind_of
from eagle_model.data.formats.records import DESCRIBE
from eagle_model.data.formats.subtitles import SUFFIXES, subtitles_text
from eagle_model.data.formats.tables import csv_records, parquet_records
from eagle_model.data.sample import DataError, OutsideRootError

MAX_CAPTION_BYTES = 16 << 20  # limit: as of an annotation's row
MAX_DEPTH = 32  # limit: of folders in folders
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def folder_records(root: Path, *, allow_outside_root: bool = False) -> Iterator[tuple[str, object]]:
    """(file, record or DataError) of each medium, its path relative to root.

    A caption or record that is a link to a file outside of root is an OutsideRootError, unless allow_outside_root.
    """
    yield from _records(root, root, 0, None if allow_outside_root else root.resolve())


def _records(root: Path, folder: Path, depth: int, inside: Path | None) -> Iterator[tuple[str, object]]:
    if depth > MAX_DEPTH:
        raise DataError(f"{folder}: folders in folders, more than {MAX_DEPTH} deep.")
    try:
        with os.scandir(folder) as entries:
            kinds = {e.name: e.is_dir(follow_symlinks=False) for e in entries if not e.name.startswith(".")}
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}.") from error
    names = {name for name, is_folder in kinds.items() if not is_folder}
    metadata = [name for name in METADATA if name in names]
    if metadata:
        yield from _of_metadata(root, folder / metadata[0], inside)
    else:
        for name in sorted(names):
            if (kind := kind_of(name)) is not None:
                path = folder / name
                try:
                    yield str(path), _record(root, path, kind, names, inside)
                except DataError as error:
                    yield str(path), error
    for name in sorted(name for name, is_folder in kinds.items() if is_folder):
        yield from _records(root, folder / name, depth + 1, inside)


def _of_metadata(root: Path, path: Path, inside: Path | None) -> Iterator[tuple[str, object]]:
    need_inside(path, inside)
    read = {".jsonl": json_rows, ".csv": csv_records, ".parquet": parquet_records}[path.suffix]
    for where, record in read(path):
        if not isinstance(record, dict) or not isinstance(record.get("file_name"), str):
            yield where, record if isinstance(record, DataError) else DataError(f"{where}: needs a file_name, a text.")
            continue
        folder = path.parent.relative_to(root)
        yield where, record | {"file_name": str(folder / record["file_name"])}


def _record(root: Path, path: Path, kind: str, names: set[str], inside: Path | None) -> dict:
    stem = path.stem
    record: dict = {"id": str(path.relative_to(root))}
    if (beside := _beside(path, ".json", names)) is not None:
        try:
            found = json.loads(_text(beside, inside), object_pairs_hook=without_duplicates)
        except (ValueError, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{beside}: not JSON: {error}.") from None
        if not isinstance(found, dict):
            raise DataError(f"{beside}: needs an object.")
        return record | {kind: str(path.relative_to(root))} | found
    if (beside := _beside(path, ".txt", names)) is None:
        raise DataError(f"{path}: has no caption; needs {stem}.txt or {stem}.json beside it, or a metadata file.")
    question, caption = DESCRIBE[kind], _text(beside, inside).strip()
    subtitles = [found for suffix in SUFFIXES if (found := _beside(path, suffix, names)) is not None]
    if kind == "video" and subtitles:
        need_inside(subtitles[0], inside)
        question = f"Subtitles:\n{subtitles_text(subtitles[0])}\n\n{question}"
    return record | {kind: str(path.relative_to(root)), "question": question, "answer": caption}


def _beside(path: Path, suffix: str, names: set[str]) -> Path | None:
    """The file beside a medium that is named as it is but for this suffix, as cameras and scripts write it."""
    named = [f"{path.stem}{written}" for written in (suffix, suffix.upper(), suffix.title())]
    return next((path.with_name(name) for name in named if name in names), None)


def need_inside(path: Path, root: Path | None) -> None:
    """Raises OutsideRootError where a file, links followed, is not in a folder, resolved; None: any place will do."""
    if root is not None and not path.resolve().is_relative_to(root):
        raise OutsideRootError(f"{path}: a link to {path.resolve()}, outside of {root}. Copy the file.")


def _text(path: Path, inside: Path | None) -> str:
    need_inside(path, inside)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CAPTION_BYTES + 1)
        if len(data) > MAX_CAPTION_BYTES:
            raise DataError(f"{path}: larger than {MAX_CAPTION_BYTES} bytes; no caption.")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: byte {error.start + 1}.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
