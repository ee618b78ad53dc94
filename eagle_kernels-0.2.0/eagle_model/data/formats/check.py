"""What is in a data set and what is wrong with it, without changing anything: `eagle data check`.

    report = check(Path("recipe.json"))
    report.num_rows, report.num_good         # 1000, 997
    print("\n".join(report.lines()))

Each row is read as training would read it, each medium opened as planning would open it: an image's header, a video's
index; with `pixels` each image is decoded too. The report is bounded: of each kind of problem the first EXAMPLES and
how many there are. Memory does not grow with the rows.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from eagle_model.data.clips import open_clip
from eagle_model.data.documents import num_pages
from eagle_model.data.formats.media import BrokenMediumError, MediaStore
from eagle_model.data.formats.opening import DataSet, Settler, open_data
from eagle_model.data.formats.tally import Quantiles, Repeats
from eagle_model.data.images import image_size, load_image
from eagle_model.data.rows import training_sample
from eagle_model.data.sample import (
    DOCUMENT_SUFFIX,
    DataError,
    ImageRef,
    Media,
    NothingToLearnError,
    OutsideRootError,
    PlaceholderError,
    Sample,
)

EXAMPLES = 20  # of each kind of problem, in the report
MAX_MESSAGE_CHARS = 500  # of one
_MAX_FIELDS = 1000  # different names that are counted; a data set has dozens
_REMEMBERED = 1 << 16  # media that are not opened again where rows show them again
KINDS = {  # of problems, in the order of the report
    "row": "rows that cannot be read",
    "placeholder": "rows whose places for media do not match",
    "nothing_to_learn": "rows without an answer to learn",
    "outside_root": "rows with media outside of the root",
    "missing": "rows with a medium that is missing",
    "broken": "rows with a medium that is broken",
}


@dataclass(slots=True)
class Report:
    """num_good: rows without a problem. Lengths are of characters, megapixels and seconds; see tally.Quantiles."""

    path: str
    sets: dict[str, int] = field(default_factory=dict)  # rows of each data set
    num_rows: int = 0
    num_good: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    media: Counter[str] = field(default_factory=Counter)
    num_duplicates: int = 0
    duplicates: list[list[int]] = field(default_factory=list)
    unused_fields: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, Quantiles] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        return self.num_rows > 0 and not self.problems

    def to_json(self) -> dict:
        """As `eagle data check --json` prints it."""
        return {
            "path": self.path,
            "rows": self.num_rows,
            "good": self.num_good,
            "sets": self.sets,
            "media": dict(self.media),
            "problems": {
                kind: {"rows": self.problems[kind], "examples": self.examples[kind]}
                for kind in KINDS
                if self.problems[kind]
            },
            "duplicates": {"rows": self.num_duplicates, "examples": self.duplicates},
            "unused_fields": dict(self.unused_fields.most_common()),
            "lengths": {name: q.summary() for name, q in self.lengths.items()},
            "notes": self.notes,
        }

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"{self.path}: {self.num_rows} rows, {self.num_good} good"]
        if len(self.sets) > 1:
            lines.append("Sets: " + ", ".join(f"{name} ({rows})" for name, rows in self.sets.items()))
        lines.append("Media shown: " + (", ".join(f"{n} {kind}s" for kind, n in self.media.most_common()) or "none"))
        for name, quantiles in self.lengths.items():
            if (s := quantiles.summary()) and s["max"] > 0:
                lines.append(f"{name}: {s['min']:g} to {s['max']:g}, median {s['median']:g}, 99 % up to {s['p99']:g}")
        if self.unused_fields:
            fields = [f"{_printable(name)} ({n})" for name, n in self.unused_fields.most_common(EXAMPLES)]
            lines.append("Fields not used: " + ", ".join(fields))
        if self.num_duplicates:
            rows = "; ".join(" = ".join(map(str, group)) for group in self.duplicates[:5])
            lines.append(f"Duplicates: {self.num_duplicates} rows equal an earlier one, such as rows {rows}")
        for kind, what in KINDS.items():
            if self.problems[kind]:
                lines += [f"{self.problems[kind]} {what}:", *(f"  {message}" for message in self.examples[kind])]
        return [*lines, *self.notes]


def check(
    path: Path,
    *,
    layout: str | None = None,
    only: tuple[str, ...] = (),
    pixels: bool = False,
    allow_outside_root: bool = False,
    progress: Callable[[int], object] = lambda num_rows: None,
) -> Report:
    """Reads all rows at a path and opens all media that they show.

    Args:   path, layout, only: as `open_data`.  pixels: decodes each image, which finds those that are cut off.
            progress: told the number of rows after each.
    Raises: DataError where the path itself cannot be used; what is wrong with rows is in the report.
    """
    report = Report(str(path))
    report.lengths = {name: Quantiles() for name in ("Characters", "Turns", "Image megapixels", "Video seconds")}
    with Repeats() as repeats, tempfile.TemporaryDirectory(prefix="eagle-check-") as folder:
        looker = _Looker(pixels, report)
        for data_set in open_data(path, layout=layout, only=only, allow_outside_root=allow_outside_root):
            report.notes += data_set.notes
            _check_set(data_set, Path(folder), looker, repeats, allow_outside_root, progress)
        report.num_duplicates, report.duplicates = repeats.found(EXAMPLES)
    if not report.num_rows:
        report.notes.append("There are no rows.")
    return report


def _check_set(
    data_set: DataSet,
    folder: Path,
    looker: _Looker,
    repeats: Repeats,
    allow_outside_root: bool,
    progress: Callable[[int], object],
) -> None:
    report, store = looker.report, MediaStore(folder)
    before = report.num_rows
    with Settler(data_set, store, allow_outside_root=allow_outside_root) as settler:
        try:
            for where, row in data_set.rows():
                report.num_rows += 1
                try:
                    row, root = settler.settled(row, where)
                    sample = training_sample(row, root=root, where=where, allow_outside_root=allow_outside_root)
                    repeats.add(_content(sample, root))
                    looker.look(sample, is_temporary=bool(settler.put))
                    report.num_good += 1
                except DataError as error:
                    looker.note(error)
                for name in settler.put:
                    (folder / name).unlink(missing_ok=True)
                progress(report.num_rows)
        except DataError as error:  # of a file that cannot be read on
            looker.note(error)
    if (source := data_set.source) is not None and source.length not in (None, report.num_rows - before):
        looker.note(
            DataError(
                f"{report.num_rows - before} rows, but the recipe's length of {source.name!r} is {source.length}."
            )
        )
    report.sets[data_set.name] = report.sets.get(data_set.name, 0) + report.num_rows - before


class _MissingError(DataError):
    pass


_KIND_OF = (
    (PlaceholderError, "placeholder"),
    (NothingToLearnError, "nothing_to_learn"),
    (OutsideRootError, "outside_root"),
    (_MissingError, "missing"),
    (BrokenMediumError, "broken"),
)


class _Looker:
    """Opens media and counts what it finds."""

    def __init__(self, pixels: bool, report: Report) -> None:
        self.report = report
        self._pixels = pixels
        self._remembered = lru_cache(maxsize=_REMEMBERED)(self._opened)

    def note(self, error: DataError) -> None:
        kind = next((kind for class_, kind in _KIND_OF if isinstance(error, class_)), "row")
        self.report.problems[kind] += 1
        examples = self.report.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(_printable(str(error)[:MAX_MESSAGE_CHARS]))

    def look(self, sample: Sample, *, is_temporary: bool) -> None:
        """Raises DataError for the first medium that is missing or broken."""
        lengths = self.report.lengths
        lengths["Characters"].add(sum(len(turn.text) for turn in sample.turns))
        lengths["Turns"].add(len(sample.turns))
        for name in sample.unused_fields:
            if name in self.report.unused_fields or len(self.report.unused_fields) < _MAX_FIELDS:
                self.report.unused_fields[name] += 1
        for medium in sample.media:
            kind, size, error = (self._opened if is_temporary else self._remembered)(medium)
            self.report.media[kind] += 1
            if error is not None:
                raise (BrokenMediumError if medium.path.is_file() else _MissingError)(f"{sample.where}: {error}")
            if kind != "document":
                lengths["Image megapixels" if kind == "image" else "Video seconds"].add(size)

    def _opened(self, medium: Media) -> tuple[str, float, str | None]:
        """(kind, megapixels or seconds, what is wrong)."""
        is_image, is_document = isinstance(medium, ImageRef), medium.path.suffix.lower() == DOCUMENT_SUFFIX
        kind = "image" if is_image else "document" if is_document else "video"
        try:
            if isinstance(medium, ImageRef):
                width, height = image_size(medium.path)
                if self._pixels:
                    load_image(medium.path)
                return kind, width * height / 1e6, None
            if is_document:
                return kind, float(num_pages(medium.path)), None
            return kind, open_clip(medium).duration_seconds or 0.0, None
        except DataError as error:
            return kind, 0.0, str(error)


def _printable(text: str) -> str:
    """Without what would move a terminal's cursor: names of members and fields are a stranger's."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _content(sample: Sample, root: Path) -> bytes:
    """What the sample says and shows, without its name: of two samples that are the same, the same."""
    parts = [
        [turn.role, turn.learned, *(part if isinstance(part, str) else _shown(part, root) for part in turn.parts)]
        for turn in sample.turns
    ]
    return json.dumps([parts, sample.tools]).encode()


def _shown(medium: Media, root: Path) -> list:
    times = [] if isinstance(medium, ImageRef) else [medium.start_seconds, medium.end_seconds]
    return [str(medium.path.relative_to(root)) if medium.path.is_relative_to(root) else str(medium.path), *times]
