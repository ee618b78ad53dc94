"""Names of published data sets -> how their official layout is read: `eagle data convert IN OUT --layout nextqa`.

    for where, row in LAYOUTS["nextqa"](Path("nextqa")): ...          # of all annotation files in the folder, or of one

A layout is the pattern of its annotation files, looked for at any depth, what their records are, and the rows of one.
Sets that need none (ALLaVA, LongAlign, FineVision, ...) are read by what they look like: table.py says which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from eagle_model.data.annotations import json_members, json_rows
from eagle_model.data.formats.tables import csv_records, parquet_records
from eagle_model.data.sample import DataError
from eagle_model.data.sources import moments, pages, questions
from eagle_model.data.sources.questions import Place, Rows

MAX_LINE_BYTES = 1 << 20  # limit: of a line of text; Charades-STA's have 100
_NOT_OF_IT = (KeyError, TypeError, ValueError, IndexError, AttributeError)  # where a record is of another layout


@dataclass(frozen=True, slots=True)
class Layout:
    pattern: str  # of annotation files
    records: Callable[[Path], Iterator[tuple[str, str, object]]]  # "file:line", name or "", record or DataError
    rows: Callable[[object, str, Place], Rows]

    def __call__(self, path: Path) -> Iterator[tuple[str, object]]:
        """("file:line", row or DataError) of each row. path: an annotation file, whose folder is the root, or the root.

        Raises DataError where there is no annotation file, or one that cannot be read on.
        """
        root = path if path.is_dir() else path.parent
        files = sorted(path.rglob(self.pattern)) if path.is_dir() else [path]
        if not files:
            raise DataError(f"{path}: holds no {self.pattern}; give the annotation file itself, or the folder of it.")
        for file in files:
            place = Place(root, file)
            for where, name, record in self.records(file):
                if isinstance(record, DataError):
                    yield where, record
                    continue
                try:
                    rows = list(self.rows(record, name, place))
                except DataError as error:
                    yield where, type(error)(f"{where}: {error}")
                except _NOT_OF_IT as error:
                    yield where, DataError(f"{where}: not of this layout ({type(error).__name__}: {error}).")
                else:
                    yield from ((where, row) for row in rows)


def _unnamed(
    read: Callable[[Path], Iterator[tuple[str, object]]],
) -> Callable[[Path], Iterator[tuple[str, str, object]]]:
    return lambda path: ((where, "", record) for where, record in read(path))


def _members(under: str | None = None) -> Callable[[Path], Iterator[tuple[str, str, object]]]:
    return lambda path: json_members(path, under)


def _lines(path: Path) -> Iterator[tuple[str, str, object]]:
    """Lines of text that are not empty."""
    with path.open("rb") as file:
        for number, data in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
            if text := data.decode("utf-8", "replace").strip():
                yield f"{path}:{number}", "", text


_LIST, _CSV, _PARQUET = _unnamed(json_rows), _unnamed(csv_records), _unnamed(parquet_records)
_JSON_LINES = _unnamed(lambda path: json_rows(path, lines=True))
LAYOUTS = {
    "activitynet_captions": Layout("*.json", _members(), moments.captions),
    "charades_sta": Layout("charades_sta_*.txt", _lines, moments.charades_sta),
    "clevrer": Layout("*.json", _LIST, questions.clevrer),
    "dude": Layout("*.json", _members("data"), pages.dude),
    "finevideo": Layout("*.parquet", _PARQUET, questions.finevideo),
    "kinetics": Layout("*.csv", _CSV, questions.kinetics),
    "llava_video_178k": Layout("*_processed.json", _LIST, questions.llava_video),
    "mp_docvqa": Layout("*.json", _members("data"), pages.mp_docvqa),
    "nextqa": Layout("*.csv", _CSV, questions.nextqa),
    "perception_test": Layout("*.json", _members(), questions.perception_test),
    "qvhighlights": Layout("highlight_*_release.jsonl", _JSON_LINES, moments.qvhighlights),
    "segments": Layout(
        "*.json", _members("database"), moments.segments
    ),  # ActivityNet, COIN, FineAction, HACS, YouCook2
    "slidevqa": Layout("*.parquet", _PARQUET, pages.slidevqa),
    "something_something_v2": Layout("*.json", _LIST, questions.something_something),
    "star": Layout("STAR_*.json", _LIST, questions.star),
    "vidchapters": Layout("*.json", _members(), moments.vidchapters),
    "vitt": Layout("ViTT-annotations.json", _JSON_LINES, moments.vitt),
    "vript": Layout("*_caption.json", _members("data"), moments.vript),
}
