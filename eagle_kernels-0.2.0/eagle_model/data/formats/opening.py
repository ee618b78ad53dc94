"""Which reader a path takes, and its rows with all media in files: what `check` and `convert` both go through.

    for data_set in open_data(Path("shards")):          # one DataSet, or several where a recipe lists them
        with Settler(data_set, store) as settler:
            for where, row in data_set.rows():
                row, root = settler.settled(row, where)        # its media lie in root

Path    .json: an Eagle recipe, a LLaMA-Factory dataset_info.json, or one list of records; .jsonl: a record a line;
        .csv, .tsv, .parquet, .tar, .tar.gz, .tgz. A folder: of tars (WebDataset, Energon), of parquet, of a
        dataset_info.json, or of media with captions. With `layout`, of a published data set: sources/layouts.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from eagle_model.data.annotations import json_rows
from eagle_model.data.formats.folders import folder_records
from eagle_model.data.formats.llama_factory import left_out, read_dataset_info
from eagle_model.data.formats.lmdb_media import LmdbFiles
from eagle_model.data.formats.media import Embedded, MediaStore
from eagle_model.data.formats.records import row_of
from eagle_model.data.formats.tables import csv_records, parquet_records
from eagle_model.data.formats.tars import tar_records
from eagle_model.data.recipe import Source, read_recipe
from eagle_model.data.sample import DataError

Records = Iterator[tuple[str, object]]  # ("file:line", record, or the DataError that it is in its place)
DATASET_INFO = "dataset_info.json"
_TARS = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True, slots=True)
class DataSet:
    """Rows that share a root.

    rows() reads them anew each time; each is a row that rows.parse_sample takes, but for media that are Embedded.
    """

    name: str
    root: Path
    rows: Callable[[], Records]
    source: Source | None = None  # the recipe's entry, whose repeat_time and limits hold
    notes: tuple[str, ...] = ()  # what is left out, to be said


def open_data(
    path: Path, *, layout: str | None = None, only: tuple[str, ...] = (), allow_outside_root: bool = False
) -> list[DataSet]:
    """The data sets at a path; no row is read yet.

    layout: of a published set, by its name in sources/layouts.py.  only: of several, those of these names.
    Raises DataError where the path is missing, of no known kind, or has no set of a name in `only`.
    """
    if layout is not None:
        from eagle_model.data.sources.layouts import LAYOUTS

        if layout not in LAYOUTS:
            raise DataError(f"no layout is named {layout!r}; there are {', '.join(sorted(LAYOUTS))}.")
        root = path if path.is_dir() else path.parent
        found = [DataSet(layout, root, lambda: LAYOUTS[layout](path))]
    else:
        found = _opened(path, allow_outside_root)
    if only and (missing := sorted(set(only) - {data_set.name for data_set in found})):
        names = ", ".join(data_set.name for data_set in found)
        raise DataError(f"{path}: there is no data set {missing[0]!r}; there are {names}.")
    return [data_set for data_set in found if not only or data_set.name in only]


def _opened(path: Path, allow_outside_root: bool) -> list[DataSet]:
    name = path.name.lower()
    if path.is_dir():
        return _of_folder(path, allow_outside_root)
    if not path.is_file():
        raise DataError(f"{path} does not exist, or is no file or folder.")
    if name == DATASET_INFO:
        return _of_dataset_info(path)
    stem = path.name.partition(".")[0] or path.name
    if name.endswith(_TARS):
        return [_of_files(stem, path.parent, [path], tar_records)]
    if path.suffix.lower() in (".csv", ".tsv", ".parquet"):
        return [_of_files(stem, path.parent, [path], _reader(path))]
    if path.suffix.lower() in (".json", ".jsonl"):
        return [_of_source(source) for source in read_recipe(path)]
    raise DataError(f"{path}: needs .json, .jsonl, .csv, .tsv, .parquet, .tar or a folder.")


def _of_folder(path: Path, allow_outside_root: bool) -> list[DataSet]:
    if (path / DATASET_INFO).is_file():
        return _of_dataset_info(path / DATASET_INFO)
    for suffixes, read in ((_TARS, tar_records), ((".parquet",), parquet_records)):
        files = sorted(f for f in path.rglob("*") if f.name.lower().endswith(suffixes) and f.is_file())
        files = [f for f in files if f.name != "metadata.parquet" and not f.name.startswith(".")]
        if files:
            notes = (f"Of the folder, its {len(files)} {suffixes[0]} files were read, and nothing else.",)
            return [_of_files(path.resolve().name, path, files, read, notes=notes)]

    def rows() -> Records:
        return _rows(folder_records(path, allow_outside_root=allow_outside_root), row_of)

    return [DataSet(path.resolve().name, path, rows)]


def _of_dataset_info(path: Path) -> list[DataSet]:
    away = left_out(path)
    notes = (f"left out, as they are on a hub and no files here: {', '.join(away)}",) if away else ()
    return [_of_files(e.name, path.parent, e.files, None, e.to_row, notes) for e in read_dataset_info(path)]


def _of_source(source: Source) -> DataSet:
    data_set = _of_files(source.name, source.root, list(source.annotation), json_rows)
    return DataSet(data_set.name, data_set.root, data_set.rows, source)


def _of_files(
    name: str,
    root: Path,
    files: list[Path],
    read: Callable[[Path], Records] | None,
    to_row: Callable[[object], dict] = row_of,
    notes: tuple[str, ...] = (),
) -> DataSet:
    """read: None where it goes by each file's name."""

    def rows() -> Records:
        for file in files:
            yield from _rows((read or _reader(file))(file), to_row)

    return DataSet(name, root, rows, notes=notes)


def _reader(path: Path) -> Callable[[Path], Records]:
    return {".csv": csv_records, ".tsv": csv_records, ".parquet": parquet_records}.get(path.suffix.lower(), json_rows)


def _rows(records: Records, to_row: Callable[[object], dict]) -> Records:
    for where, record in records:
        if isinstance(record, DataError):
            yield where, record
            continue
        try:
            yield where, to_row(record)
        except DataError as error:
            yield where, type(error)(f"{where}: {error}")


class Settler:
    """Puts the media that a data set's rows hold as bytes into a store. A context manager."""

    def __init__(self, data_set: DataSet, store: MediaStore, *, allow_outside_root: bool = False) -> None:
        self._root, self._store = data_set.root, store
        self._lmdb = LmdbFiles(data_set.root, allow_outside_root=allow_outside_root)
        self.put: list[str] = []  # paths in the store, of the row that was settled last

    def settled(self, row: object, where: str) -> tuple[dict, Path]:
        """(the row, all its media by path; the folder that the paths are relative to).

        Raises DataError, `where` before it, where the row is one, bytes are no medium, or media are bytes and files.
        """
        self.put = []
        if isinstance(row, DataError):
            raise row
        names: list[str] = []
        try:
            settled = self._value(row, names)
        except DataError as error:
            raise type(error)(f"{where}: {error}") from None
        assert isinstance(row, dict) and isinstance(settled, dict)
        if not self.put:
            return row, self._root
        if names:
            raise DataError(f"{where}: its media are bytes, and the file {names[0][:200]!r} too; needs one of both.")
        return settled, self._store.folder

    def _value(self, value: object, names: list[str]) -> object:
        if isinstance(value, Embedded):
            self.put.append(self._store.put(value))
            return self.put[-1]
        if isinstance(value, list):
            return [self._value(entry, names) for entry in value]
        if isinstance(value, dict):
            if "lmdb_file" in value:
                return self._value(self._lmdb.read(value), names)
            for field in ("image", "images", "video", "videos"):
                listed = value[field] if isinstance(value.get(field), list) else [value.get(field)]
                names += [entry for entry in listed if isinstance(entry, str)]
            return {name: self._value(entry, names) for name, entry in value.items()}
        return value

    def __enter__(self) -> Settler:
        return self

    def __exit__(self, *_: object) -> None:
        self._lmdb.close()
