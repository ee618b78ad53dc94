"""A recipe: which annotation files make up a data set, where their media lie and how often each is shown.

    {"pages": {"root": "pages", "annotation": "pages.jsonl", "repeat_time": 2, "max_dynamic_tiles": 6},
     "films": {"root": "films", "annotation": ["a.jsonl", "b.jsonl"]}}

    for source in read_recipe("recipe.json"): ...      # rows.read_samples(source) reads its rows

That is Eagle's format. A bare annotation file is a recipe of one source. Errors are DataErrors that name the file.
"""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from eagle_model.data.annotations import is_json_list, need_file, without_duplicates
from eagle_model.data.sample import DataError, shown
from eagle_model.data.sampling import SamplingConfig

PREPARATION = "preparation.json"  # in a folder that `eagle data prepare` made (prepare.py)
MAX_RECIPE_BYTES = 16 << 20  # limit: a source takes about 100 bytes
_RECIPE_FIELDS = {
    "root",
    "annotation",
    "weight",
    "repeat_time",
    "length",
    "modility",  # the release's spelling
    "modality",
    "max_dynamic_tiles",
    "max_frames",  # this and the next are ours; the release has no limit of frames for a set
    "frames_per_second",
    "data_augment",
}


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of a recipe.

    repeat_time r: of n samples, floor(n * r) are shown an epoch. Sample i (from 0) is shown
    floor((i + 1) * r) - floor(i * r) times, so a fraction takes an evenly spread share, the same in every epoch.
    weight: how often it is shown compared with other sources of its size; an epoch gets no longer (mixing.Mix).
    data_augment: its images are shown as JPEGs of a quality of 75 to 100, another in every epoch (augment.py).
    max_tiles (of an image), max_frames and frames_per_second (of a video): what the run allows, where that is less.
    """

    name: str
    root: Path
    annotation: tuple[Path, ...]
    repeat_time: Fraction = Fraction(1)
    max_tiles: int | None = None  # None: the run's own limit
    length: int | None = None  # rows that the annotation must hold, where the recipe says so
    weight: float = 1.0
    data_augment: bool = False
    max_frames: int | None = None
    frames_per_second: float | None = None

    def limited(self, run: SamplingConfig) -> SamplingConfig:
        """What its samples may take in a run: the smaller of both limits, each."""
        max_frames = min(run.max_frames, self.max_frames or run.max_frames)
        return replace(
            run,
            max_tiles=min(run.max_tiles, self.max_tiles or run.max_tiles),
            max_frames=max_frames,
            min_frames=min(run.min_frames, max_frames),
            frames_per_second=min(run.frames_per_second, self.frames_per_second or run.frames_per_second),
        )

    def num_repeats(self, index: int) -> int:
        """How often sample `index` of this source is shown in an epoch."""
        return math.floor((index + 1) * self.repeat_time) - math.floor(index * self.repeat_time)


def read_recipe(path: str | Path) -> list[Source]:
    """The sources of a recipe, in its order. A JSON list or .jsonl file is itself the annotation, its folder the root.

    `root` and `annotation` (a path or a list of paths) are relative to the recipe's folder. `modility` and `modality`
    are accepted and not needed: a row says itself what it holds.

    Raises DataError for malformed JSON, fields unknown or of a wrong type, and missing files.
    """
    path = Path(path)
    if os.path.isfile(path / PREPARATION):
        raise DataError(
            f"{path} is a prepared folder, which training reads (without data.streaming) and eagle data report; "
            "here the recipe is needed that it was made of."
        )
    need_file(path, "the recipe")
    if path.suffix.lower() == ".jsonl" or is_json_list(path):
        return [Source(path.stem, path.parent, (path,))]
    try:
        recipe = json.loads(_read_text(path), object_pairs_hook=without_duplicates)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}.") from error
    except RecursionError:
        raise DataError(f"{path}: nested too deep.") from None
    except MemoryError:
        raise DataError(f"{path}: there is not enough memory to read it.") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    if not isinstance(recipe, dict) or not recipe:
        raise DataError(f"{path}: a recipe is an object {{name: {{root, annotation, ...}}}} with at least one entry.")
    return [_source(name, fields, path) for name, fields in recipe.items()]


def _source(name: str, fields: object, recipe: Path) -> Source:
    where = f"{recipe}: source {name!r}"
    if not isinstance(fields, dict):
        raise DataError(f"{where} is {shown(fields)}; needs an object with root and annotation.")
    fields = {field: value for field, value in fields.items() if value is not None}
    if unknown := sorted(set(fields) - _RECIPE_FIELDS):
        raise DataError(f"{where} has the unknown field {unknown[0]!r}; known are {', '.join(sorted(_RECIPE_FIELDS))}.")
    if missing := [field for field in ("root", "annotation") if field not in fields]:
        raise DataError(f"{where} lacks the field {missing[0]!r}.")

    root = fields["root"]
    if not isinstance(root, str):
        raise DataError(f"{where}: root is {shown(root)}; needs the folder of the media, a string.")
    root_path = recipe.parent / root
    if not os.path.isdir(root_path):  # pathlib's raises where a folder may not be looked into
        raise DataError(f"{where}: root {root_path} is not a folder.")

    annotation = [fields["annotation"]] if isinstance(fields["annotation"], str) else fields["annotation"]
    if not isinstance(annotation, list) or not annotation or not all(isinstance(a, str) for a in annotation):
        raise DataError(f"{where}: annotation is {shown(annotation)}; needs a path or a list of paths.")
    annotation_paths = tuple(recipe.parent / a for a in annotation)
    for annotation_path in annotation_paths:
        need_file(annotation_path, f"{where}: annotation")
        if annotation_path.suffix.lower() not in (".jsonl", ".json"):
            raise DataError(f"{where}: annotation {annotation_path} must end in .jsonl or .json.")

    data_augment = fields.get("data_augment", False)
    if not isinstance(data_augment, bool):
        raise DataError(f"{where}: data_augment is {shown(data_augment)}; needs true or false.")
    numbers: dict[str, int | float] = {}
    for field in ("weight", "repeat_time", "frames_per_second"):
        number = fields.get(field, 1)
        if not is_number(number) or number <= 0:
            raise DataError(f"{where}: {field} is {shown(number)}; needs a number above 0.")
        numbers[field] = number
    counts: dict[str, int | None] = {}
    for field, least in (("max_dynamic_tiles", 1), ("max_frames", 1), ("length", 0)):
        value = fields.get(field)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise DataError(f"{where}: {field} is {shown(value)}; needs an integer of at least {least}.")
        counts[field] = value
    return Source(
        name=name,
        root=root_path,
        annotation=annotation_paths,
        repeat_time=Fraction(str(numbers["repeat_time"])),  # by way of its decimal digits: 0.1 is a tenth
        weight=float(numbers["weight"]),
        data_augment=data_augment,
        max_tiles=counts["max_dynamic_tiles"],
        length=counts["length"],
        max_frames=counts["max_frames"],
        frames_per_second=float(numbers["frames_per_second"]) if "frames_per_second" in fields else None,
    )


def _read_text(path: Path) -> str:
    """A recipe's text, UTF-8 with or without a byte order mark. Raises DataError with the file, and the line."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RECIPE_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    if len(data) > MAX_RECIPE_BYTES:
        raise DataError(f"{path}: larger than {MAX_RECIPE_BYTES} bytes; no recipe. Rows one a line are named .jsonl.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8.") from error


def is_number(value: object) -> bool:
    """Whether a JSON value is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max  # math.isfinite raises for an integer that no float can hold
