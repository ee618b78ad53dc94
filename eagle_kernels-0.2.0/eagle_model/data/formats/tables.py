"""Tables -> their records: CSV and TSV files with a header, and parquet files, whose cells may hold media.

    for where, record in csv_records(Path("qa.csv")): ...           # "qa.csv:2", {"video": "a.mp4", "question": ...}
    for where, record in parquet_records(Path("train.parquet")): ...   # "train.parquet: row 1", {"images": [...], ...}

CSV     UTF-8, the names in the first line; an empty cell is no field. A cell of a field that holds a list in rows
        (conversations, messages, images, choices, ...) is JSON where it begins with "[" or "{".
Parquet read by pyarrow (the extra "data"), a few rows at a time; a row group is decoded in parts.
Bounds  a CSV cell MAX_CELL_CHARS; a parquet row group MAX_ROW_GROUP_BYTES as it is unpacked, its file's footer
        MAX_FOOTER_BYTES. Neither file is ever held whole.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from eagle_model.data.annotations import MAX_ROW_BYTES, need_file
from eagle_model.data.rows import VIDEO_BOUNDS
from eagle_model.data.sample import DataError

MAX_CELL_CHARS = 64 << 20  # limit: an image in base64; texts are a thousandth
MAX_ROW_GROUP_BYTES = 8 << 30  # limit: hubs write groups of 100 to 1,000 rows of media, some 500 MB
MAX_FOOTER_BYTES = 64 << 20  # limit: a footer has some 100 bytes for each column of each row group
_BATCH_BYTES = 64 << 20  # of records at once
_MAX_BATCH_ROWS = 1024
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")  # seconds, as cells of a CSV say them
_JSON_FIELDS = {
    "choices", "conversations", "data", "history", "image", "images", "messages", "options", "texts", "tools", "video",
    "videos",
}  # fmt: skip


def csv_records(path: Path) -> Iterator[tuple[str, object]]:
    """("file:line", record) of each row; a DataError in a record's place where its cells do not fit the header.

    Raises DataError where the file is no CSV in UTF-8, or a cell is too long.
    """
    need_file(path, "the table")
    csv.field_size_limit(MAX_CELL_CHARS)  # of the process: the csv module has no other place for it
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            names = next(reader, None)
            if not names or len(set(names)) < len(names) or not all(names):
                raise DataError(f"{path}:1: needs a header of different names; got {str(names)[:200]}.")
            for cells in reader:
                if cells:
                    yield f"{path}:{reader.line_num}", _record(path, reader.line_num, names, cells)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: no CSV: {error}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error}.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error


def _record(path: Path, line: int, names: list[str], cells: list[str]) -> object:
    if len(cells) != len(names):
        return DataError(f"{path}:{line}: {len(cells)} cells, but the header has {len(names)}.")
    record: dict[str, object] = {}
    for name, cell in zip(names, cells):
        if cell == "":
            continue
        record[name] = float(cell) if name in VIDEO_BOUNDS and _NUMBER.fullmatch(cell) else cell
        if name in _JSON_FIELDS and cell[0] in "[{":
            if len(cell) > MAX_ROW_BYTES:  # as Python objects it takes up to 20 times that
                return DataError(f"{path}:{line}: {name} has {len(cell)} characters; JSON at most {MAX_ROW_BYTES}.")
            try:
                record[name] = json.loads(cell)
            except (ValueError, RecursionError) as error:
                return DataError(f"{path}:{line}: {name} begins as JSON and is not: {error}.")
    return record


def parquet_records(path: Path) -> Iterator[tuple[str, object]]:
    """("file: row n", record) of each row, from 1. Raises DataError where the file cannot be read, ModuleNotFoundError
    where pyarrow is not installed."""
    import pyarrow
    import pyarrow.parquet as pq

    need_file(path, "the table")
    number = 0
    try:
        _need_footer(path)
        with pq.ParquetFile(
            path, thrift_string_size_limit=MAX_FOOTER_BYTES, thrift_container_size_limit=1 << 20, pre_buffer=False
        ) as table:
            for group in range(table.metadata.num_row_groups):
                about = table.metadata.row_group(group)
                if about.total_byte_size > MAX_ROW_GROUP_BYTES:
                    raise DataError(
                        f"{path}: row group {group + 1} has {about.total_byte_size} bytes, more than "
                        f"{MAX_ROW_GROUP_BYTES}; write the table with smaller row groups."
                    )
                row_bytes = max(1, about.total_byte_size // max(1, about.num_rows))
                at_once = max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // row_bytes))
                for batch in table.iter_batches(at_once, row_groups=[group], use_threads=False):
                    for i in range(batch.num_rows):  # one at a time: as Python objects all would stand twice
                        number += 1
                        yield f"{path}: row {number}", batch.slice(i, 1).to_pylist()[0]
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: no parquet that can be read: {str(error).splitlines()[0]}") from None


def _need_footer(path: Path) -> None:
    """Looks at the footer's length, which is stored in the file's last 8 bytes."""
    num_bytes = os.path.getsize(path)
    with path.open("rb") as file:
        file.seek(max(0, num_bytes - 8))
        end = file.read(8)
    if len(end) < 8 or end[4:] != b"PAR1":
        raise DataError(f"{path}: no parquet: its end is cut off, or it is another file.")
    if (footer_bytes := int.from_bytes(end[:4], "little")) > min(MAX_FOOTER_BYTES, num_bytes):
        raise DataError(
            f"{path}: its footer has {footer_bytes} bytes; needs at most {MAX_FOOTER_BYTES}, and the file's."
        )
