"""From annotation files to samples: what is said, and which image and video files it is said about.

Formats  Eagle recipe: {name: {root, annotation, repeat_time, ...}}; a bare annotation file is a recipe of one source.
         Annotation: JSON Lines (one row a line) or JSON (one list of rows, as LLaVA writes it).
         Row: `conversations` (from/value) with `image`, `video` or `data`, or chat `messages` (role/content) with
         media as content parts (OpenAI) or in `images`/`videos` lists (ms-swift).
Text     Every image and video is named once in the turns of system, user and observation, as `<image-k>` or
         `<video-k>`, k from 1 in the order of the file lists. `<image>` and `<video>` are numbered as they appear; what
         no turn names is inserted at the start of the first user turn. In an assistant's text they are plain text.
Paths    Media lie inside `root`: absolute paths, `..` and symbolic links that lead out are refused unless
         `allow_outside_root`. URLs are always refused: nothing here reaches the network.
Errors   DataError, its message starting with "file:line: " wherever there is a line.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": "observation",
}
PLACEHOLDER = re.compile(r"<(image|video)-([0-9]{1,9})>")  # what a Sample's turns hold
_ANY_PLACEHOLDER = re.compile(r"<(image|video)(?:-([0-9]{1,9}))?>")  # what a row's text may hold
_SURROGATE = re.compile("[\ud800-\udfff]")
_RECIPE_FIELDS = {
    "root",
    "annotation",
    "weight",
    "repeat_time",
    "length",
    "modility",  # the release's spelling
    "modality",
    "max_dynamic_tiles",
    "data_augment",
}
_VIDEO_STARTS = ("start_seconds", "start_time", "start", "video_start")
_VIDEO_ENDS = ("end_seconds", "end_time", "end", "video_end")


class DataError(ValueError):
    """Something the user's data holds that cannot be used; the message says where, what and what to do."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    path: Path


@dataclass(frozen=True, slots=True)
class VideoRef:
    """A video file or the clip [start_seconds, end_seconds) of it; None is the file's own start or end."""

    path: Path
    start_seconds: float | None = None
    end_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    role: str  # system | user | assistant | observation
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    id: str  # the row's own `id`, else "file:line"
    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...] = ()
    videos: tuple[VideoRef, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of a recipe.

    repeat_time r: of n samples, floor(n * r) are shown an epoch. Sample i (from 0) is shown
    floor((i + 1) * r) - floor(i * r) times, so a fraction takes an evenly spread share, the same in every epoch.
    """

    name: str
    root: Path
    annotation: tuple[Path, ...]
    repeat_time: Fraction = Fraction(1)
    max_tiles: int | None = None  # None: the run's own limit
    length: int | None = None  # rows that the annotation must hold, where the recipe says so

    def num_repeats(self, index: int) -> int:
        """How often sample `index` of this source is shown in an epoch."""
        return math.floor((index + 1) * self.repeat_time) - math.floor(index * self.repeat_time)


def visual_order(sample: Sample) -> list[tuple[str, int]]:
    """("image" | "video", index from 0), in the order in which the text shows them: the order of tiles."""
    return [
        (match[1], int(match[2]) - 1)
        for turn in sample.turns
        if turn.role != "assistant"
        for match in PLACEHOLDER.finditer(turn.text)
    ]


# ---- recipe


def read_recipe(path: str | Path) -> list[Source]:
    """The sources of a recipe, in its order. A JSON list or .jsonl file is itself the annotation, its folder the root.

    `root` and `annotation` (a path or a list of paths) are relative to the recipe's folder. `modility` and `modality`
    are accepted and not needed: a row says itself what it holds.

    Raises DataError for malformed JSON, fields unknown or of a wrong type, missing files, and for fields whose effect
    is not built: a weight other than 1 (the public release accepts it and ignores it) and `data_augment`.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        _need_file(path, f"{path}: the recipe")
        return [Source(path.stem, path.parent, (path,))]
    text = _read_text(path)
    if text.lstrip()[:1] == "[":
        return [Source(path.stem, path.parent, (path,))]
    try:
        recipe = json.loads(text, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON: {error.msg} at column {error.colno}.") from error
    except RecursionError:
        raise DataError(f"{path}: nested too deep.") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    if not isinstance(recipe, dict) or not recipe:
        raise DataError(f"{path}: a recipe is an object {{name: {{root, annotation, ...}}}} with at least one entry.")
    return [_source(name, fields, path) for name, fields in recipe.items()]


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    for i, (name, _) in enumerate(pairs):
        if any(name == earlier for earlier, _ in pairs[:i]):
            raise ValueError(f"the name {name!r} is given twice; rename one or remove it.")
    return dict(pairs)


def _source(name: str, fields: object, recipe: Path) -> Source:
    where = f"{recipe}: source {name!r}"
    if not isinstance(fields, dict):
        raise DataError(f"{where} is {_shown(fields)}; needs an object with root and annotation.")
    if unknown := sorted(set(fields) - _RECIPE_FIELDS):
        raise DataError(f"{where} has the unknown field {unknown[0]!r}; known are {', '.join(sorted(_RECIPE_FIELDS))}.")
    if missing := [field for field in ("root", "annotation") if field not in fields]:
        raise DataError(f"{where} lacks the field {missing[0]!r}.")

    root = fields["root"]
    if not isinstance(root, str):
        raise DataError(f"{where}: root is {_shown(root)}; needs the folder of the media, a string.")
    root_path = recipe.parent / root
    if not os.path.isdir(root_path):  # pathlib's raises where a folder may not be looked into
        raise DataError(f"{where}: root {root_path} is not a folder.")

    annotation = [fields["annotation"]] if isinstance(fields["annotation"], str) else fields["annotation"]
    if not isinstance(annotation, list) or not annotation or not all(isinstance(a, str) for a in annotation):
        raise DataError(f"{where}: annotation is {_shown(annotation)}; needs a path or a list of paths.")
    annotation_paths = tuple(recipe.parent / a for a in annotation)
    for annotation_path in annotation_paths:
        _need_file(annotation_path, f"{where}: annotation")
        if annotation_path.suffix not in (".jsonl", ".json"):
            raise DataError(f"{where}: annotation {annotation_path} must end in .jsonl or .json.")

    weight = fields.get("weight", 1)
    if isinstance(weight, bool) or weight != 1:
        raise DataError(f"{where}: weight is {_shown(weight)}; needs 1. To show it more or less use repeat_time.")
    if fields.get("data_augment", False) is not False:
        raise DataError(f"{where}: data_augment is {_shown(fields['data_augment'])}; needs false, it is not supported.")
    repeat_time = fields.get("repeat_time", 1)
    if not _is_number(repeat_time) or repeat_time <= 0:
        raise DataError(f"{where}: repeat_time is {_shown(repeat_time)}; needs a number above 0.")
    counts: dict[str, int | None] = {}
    for field, least in (("max_dynamic_tiles", 1), ("length", 0)):
        value = fields.get(field)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise DataError(f"{where}: {field} is {_shown(value)}; needs an integer of at least {least}.")
        counts[field] = value
    return Source(
        name=name,
        root=root_path,
        annotation=annotation_paths,
        repeat_time=Fraction(str(repeat_time)),  # by way of its decimal digits: 0.1 is a tenth
        max_tiles=counts["max_dynamic_tiles"],
        length=counts["length"],
    )


# ---- rows


def read_samples(
    source: Source, *, allow_outside_root: bool = False, on_bad_row: Callable[[str, DataError], None] | None = None
) -> Iterator[Sample]:
    """The training samples of one source, in file order; each has an assistant turn to learn from.

    A bad row raises DataError, or goes to on_bad_row("file:line", error) and is left out. A file that cannot be read
    at all raises in either case, and so does a number of rows other than the recipe's `length`.
    """
    num_rows = 0
    for path in source.annotation:
        rows = _json_lines(path) if path.suffix == ".jsonl" else _json_list(path)
        for where, row in rows:
            num_rows += 1
            try:
                if isinstance(row, DataError):
                    raise row
                sample = parse_sample(row, root=source.root, where=where, allow_outside_root=allow_outside_root)
                if not any(turn.role == "assistant" for turn in sample.turns):
                    raise DataError(f"{where}: no turn of the assistant (gpt); there is nothing to learn from.")
            except DataError as error:
                if on_bad_row is None:
                    raise
                on_bad_row(where, error)
            else:
                yield sample
    if source.length is not None and num_rows != source.length:
        names = ", ".join(str(path) for path in source.annotation)
        raise DataError(
            f"{names}: {num_rows} rows, but the recipe's length for source {source.name!r} is {source.length}. "
            f"Correct the length or remove it."
        )


def _json_lines(path: Path) -> Iterator[tuple[str, object]]:
    """("file:line", row) of every line that is not blank; a malformed line's row is its DataError."""
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{path}:{number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    if text.strip():
                        yield where, json.loads(text.rstrip("\r\n"))
                except UnicodeDecodeError as error:
                    yield where, DataError(f"{where}: not UTF-8: byte {error.start + 1} of the line is wrong.")
                except json.JSONDecodeError as error:
                    yield where, DataError(f"{where}: not JSON: {error.msg} at column {error.colno}.")
                except RecursionError:
                    yield where, DataError(f"{where}: nested too deep.")
                except ValueError as error:  # Python reads no integer of more than 4300 digits
                    yield where, DataError(f"{where}: not JSON that can be read: {error}.")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error


def _json_list(path: Path) -> Iterator[tuple[str, object]]:
    """("file:line", row) of a JSON list, row by row so that the line of each is known."""
    text = _read_text(path)
    decoder = json.JSONDecoder()
    line, counted = 1, 0

    def skip_space(position: int) -> int:
        while position < len(text) and text[position] in " \t\r\n":
            position += 1
        return position

    def wrong(position: int, message: str) -> DataError:
        error = json.JSONDecodeError(message, text, position)
        return DataError(f"{path}:{error.lineno}: not JSON: {message} at column {error.colno}.")

    position = skip_space(0)
    if text[position : position + 1] != "[":
        raise DataError(f"{path}:1: needs a JSON list of rows, '[{{...}}, ...]'; for one row a line name it .jsonl.")
    position = skip_space(position + 1)
    if text[position : position + 1] != "]":
        while True:
            line += text.count("\n", counted, position)
            counted = position
            try:
                row, position = decoder.raw_decode(text, position)
            except json.JSONDecodeError as error:
                raise wrong(error.pos, error.msg) from error
            except RecursionError:
                raise DataError(f"{path}:{line}: nested too deep.") from None
            except ValueError as error:
                raise DataError(f"{path}:{line}: not JSON that can be read: {error}.") from error
            yield f"{path}:{line}", row
            position = skip_space(position)
            if text[position : position + 1] == "]":
                break
            if text[position : position + 1] != ",":
                raise wrong(position, "Expecting ',' or ']'")
            position = skip_space(position + 1)
    if skip_space(position + 1) != len(text):
        raise wrong(skip_space(position + 1), "Extra data")


def parse_sample(row: object, *, root: Path, where: str, allow_outside_root: bool = False) -> Sample:
    """One row -> Sample, placeholders normalised, paths joined to `root`; no file is opened. `where` starts messages.

    Unknown fields of the row itself are ignored (data sets keep scores and origins there); unknown fields of a media
    entry are refused, since they would change what is seen.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: the row is {_shown(row)}; needs an object.")
    reader = _RowReader(root, where, allow_outside_root)
    if ("conversations" in row) == ("messages" in row):
        found = "both" if "messages" in row else "neither"
        raise DataError(f"{where}: the row has {found} of 'conversations' and 'messages'; needs one of them.")
    reader.read_media(row)
    turns = reader.conversations(row["conversations"]) if "conversations" in row else reader.messages(row["messages"])
    for i, turn in enumerate(turns):
        if turn.role == "system" and i > 0:
            raise DataError(f"{where}: turn {i + 1} is a system turn; only the first may be.")
    name = where if row.get("id") is None else row["id"]
    if not isinstance(name, (str, int)) or isinstance(name, bool) or name == "":
        raise DataError(f"{where}: id is {_shown(name)}; needs a string or an integer.")
    return Sample(str(name), reader.with_placeholders(turns), tuple(reader.images), tuple(reader.videos))


class _RowReader:
    """Collects the media of one row while its turns are read."""

    def __init__(self, root: Path, where: str, allow_outside_root: bool) -> None:
        self.root, self.where, self.allow_outside_root = root, where, allow_outside_root
        self.images: list[ImageRef] = []
        self.videos: list[VideoRef] = []
        self.order: list[str] = []  # placeholders in the order in which the row lists its media

    def fail(self, message: str) -> DataError:
        return DataError(f"{self.where}: {message}")

    # -- media

    def read_media(self, row: dict) -> None:
        keys = [key for key in ("image", "images", "video", "videos", "data") if row.get(key) is not None]
        for a, b in (("image", "images"), ("video", "videos")):
            if a in keys and b in keys:
                raise self.fail(f"the row has both {a!r} and {b!r}; needs one of them.")
        if "data" in keys and len(keys) > 1:
            raise self.fail(f"the row has both 'data' and {keys[0]!r}; needs one of them.")
        for key in keys:
            if key == "data":
                self.read_data(row["data"])
            else:
                for entry in row[key] if isinstance(row[key], list) else [row[key]]:
                    self.add(key.removesuffix("s"), entry)

    def read_data(self, groups: object) -> None:
        if not isinstance(groups, list):
            raise self.fail(
                f"data is {_shown(groups)}; needs a list of {{'type': ..., 'image_list' or 'video_list': [...]}}."
            )
        for group in groups:
            kind = group.get("type") if isinstance(group, dict) else None
            if kind not in ("image", "video"):
                raise self.fail(f"an entry of data is {_shown(group)}; needs an object of type 'image' or 'video'.")
            self.known_fields(group, {"type", f"{kind}_list"}, "an entry of data")
            entries = group.get(f"{kind}_list")
            if not isinstance(entries, list):
                raise self.fail(f"{kind}_list is {_shown(entries)}; needs a list.")
            for entry in entries:
                self.add(kind, entry)

    def add(self, kind: str, entry: object) -> str:
        """One image or video; returns its placeholder."""
        if isinstance(entry, str):
            entry = {"path": entry}
        if not isinstance(entry, dict):
            raise self.fail(f"{kind} is {_shown(entry)}; needs a path.")
        if "lmdb_file" in entry or "lmdb_key" in entry:
            raise self.fail(f"{kind} is in LMDB, which is not supported yet; write it to a file and give its path.")
        names = [name for name in ("path", kind, "url") if name in entry]
        if len(names) != 1:
            raise self.fail(f"{kind} is {_shown(entry)}; needs exactly one of the fields 'path', {kind!r} and 'url'.")
        times = (*_VIDEO_STARTS, *_VIDEO_ENDS) if kind == "video" else ()
        self.known_fields(entry, {*names, *times}, f"a {kind}" if kind == "video" else "an image")
        path = self.path(kind, entry[names[0]])
        if kind == "image":
            self.images.append(ImageRef(path))
            placeholder = f"<image-{len(self.images)}>"
        else:
            start, end = self.seconds(entry, _VIDEO_STARTS), self.seconds(entry, _VIDEO_ENDS)
            if end is not None and end <= (start or 0.0):
                raise self.fail(f"the clip of {path.name} ends at {end:g} s, not after its start at {start or 0:g} s.")
            self.videos.append(VideoRef(path, start, end))
            placeholder = f"<video-{len(self.videos)}>"
        self.order.append(placeholder)
        return placeholder

    def seconds(self, entry: dict, names: tuple[str, ...]) -> float | None:
        given = [name for name in names if entry.get(name) is not None]
        if len(given) > 1:
            raise self.fail(f"a video has both {given[0]!r} and {given[1]!r}; needs one of them.")
        if not given:
            return None
        value = entry[given[0]]
        if not _is_number(value) or value < 0:
            raise self.fail(f"{given[0]} is {_shown(value)}; needs seconds, a number of at least 0.")
        return float(value)

    def path(self, kind: str, text: object) -> Path:
        if not isinstance(text, str) or not text or "\0" in text or not _is_unicode(text):
            raise self.fail(f"{kind} is {_shown(text)}; needs the path of one file.")
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        elif re.match(r"[A-Za-z][A-Za-z0-9+.-]*://|data:", text):
            raise self.fail(f"{kind} is the URL {text[:60]!r}; nothing is fetched. Download it and give its path.")
        path = self.root / text
        if self.allow_outside_root:
            return path
        if Path(text).is_absolute() or ".." in Path(text).parts:
            raise self.fail(
                f"{kind} {text!r} leaves the root {str(self.root)!r}. "
                f"Give a path inside it, or set data.allow_outside_root=true if you trust the data."
            )
        try:
            inside = path.resolve().is_relative_to(_resolved(self.root))
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            raise self.fail(f"{kind} {text!r} cannot be resolved: {error}.") from error
        if not inside:
            raise self.fail(
                f"{kind} {text!r} is a link to {path.resolve()}, outside the root {self.root}. "
                f"Copy the file, or set allow_outside_root if you trust the data."
            )
        return path

    def known_fields(self, entry: dict, known: set[str], what: str) -> None:
        if unknown := sorted(str(field) for field in set(entry) - known):
            raise self.fail(f"{what} has the unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}.")

    # -- turns

    def conversations(self, turns: object) -> list[Turn]:
        turn_objects = self.turn_objects(turns, "from", "value")
        return [Turn(self.role(turn, "from"), self.text(turn["value"])) for turn in turn_objects]

    def messages(self, turns: object) -> list[Turn]:
        return [
            Turn(self.role(t, "role"), self.content(t["content"])) for t in self.turn_objects(turns, "role", "content")
        ]

    def turn_objects(self, turns: object, *fields: str) -> list[dict]:
        if not isinstance(turns, list) or not turns:
            raise self.fail(f"the conversation is {_shown(turns)}; needs a list of at least one turn.")
        for turn in turns:
            if not isinstance(turn, dict) or any(field not in turn for field in fields):
                raise self.fail(f"a turn is {_shown(turn)}; needs an object with {' and '.join(map(repr, fields))}.")
        return turns

    def role(self, turn: dict, field: str) -> str:
        role = turn[field]
        if not isinstance(role, str) or role not in ROLES:
            raise self.fail(f"{field} is {_shown(role)}; needs one of {', '.join(ROLES)}.")
        return ROLES[role]

    def text(self, text: object) -> str:
        if not isinstance(text, str):
            raise self.fail(f"a turn's text is {_shown(text)}; needs a string.")
        if not _is_unicode(text):
            raise self.fail(f"a turn's text {_shown(text)} has half of a surrogate pair (\\ud800 to \\udfff alone).")
        return text

    def content(self, content: object) -> str:
        """A message's text. Media parts stand where they are listed, unless the text itself places that kind."""
        if isinstance(content, str):
            return self.text(content)
        if not isinstance(content, list):
            raise self.fail(f"content is {_shown(content)}; needs a string or a list of parts.")
        texts = [p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str)]
        placed = {match[1] for text in texts for match in _ANY_PLACEHOLDER.finditer(text)}
        pieces = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                self.known_fields(part, {"type", "text"}, "a text part")
                pieces.append(self.text(part.get("text")))
            elif kind in ("image_url", "video_url"):
                self.known_fields(part, {"type", kind}, f"a part of type {kind}")
                placeholder = self.add(kind.removesuffix("_url"), part.get(kind))
                pieces.append("" if kind.removesuffix("_url") in placed else placeholder)
            elif kind in ("image", "video"):
                placeholder = self.add(kind, {name: value for name, value in part.items() if name != "type"})
                pieces.append("" if kind in placed else placeholder)
            else:
                raise self.fail(f"a part is {_shown(part)}; needs type text, image, image_url, video or video_url.")
        return "".join(pieces)

    # -- placeholders

    def with_placeholders(self, turns: list[Turn]) -> tuple[Turn, ...]:
        """The turns with every medium named exactly once."""
        named = {"image": self.numbering(turns, "image"), "video": self.numbering(turns, "video")}

        def numbered(turn: Turn) -> Turn:
            if turn.role == "assistant":
                return turn
            return replace(turn, text=_ANY_PLACEHOLDER.sub(lambda m: f"<{m[1]}-{next(named[m[1]][1])}>", turn.text))

        missing = "".join(p for p in self.order if int(PLACEHOLDER.fullmatch(p)[2]) not in named[p[1:6]][0])  # type: ignore[index]
        turns = [numbered(turn) for turn in turns]
        if missing:
            first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
            if first is None:
                raise self.fail(f"there is no user (human) turn to show {missing} in.")
            turns[first] = replace(turns[first], text=missing + turns[first].text)
        return tuple(turns)

    def numbering(self, turns: list[Turn], kind: str) -> tuple[set[int], Iterator[int]]:
        """The numbers that the text names: as a set, and one by one in the order of the text."""
        num_media = len(self.images if kind == "image" else self.videos)
        found = [
            m[2] for t in turns if t.role != "assistant" for m in _ANY_PLACEHOLDER.finditer(t.text) if m[1] == kind
        ]
        plain = found.count(None)
        if plain == 0:
            numbers = [int(number) for number in found]
        elif plain == len(found) == num_media:
            numbers = list(range(1, num_media + 1))
        elif plain == len(found):
            raise self.fail(
                f"the text has {plain} <{kind}> but the row lists {num_media} {kind}s; the numbers must match."
            )
        else:
            raise self.fail(f"the text has both <{kind}> and <{kind}-k>; use one form.")
        for i, number in enumerate(numbers):
            if not 1 <= number <= num_media:
                raise self.fail(f"the text names <{kind}-{number}> but the row lists {num_media} {kind}s.")
            if number in numbers[:i]:
                raise self.fail(f"the text names <{kind}-{number}> twice; each {kind} is shown once.")
        return set(numbers), iter(numbers)


# ---- small things


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8.") from error


def _need_file(path: Path, what: str) -> None:
    if not os.path.isfile(path):  # pathlib's raises where a folder may not be looked into
        raise DataError(f"{what} {path} does not exist or is not a file.")


def _is_unicode(text: str) -> bool:
    """JSON can write half of a surrogate pair, which no encoding of text can hold."""
    return _SURROGATE.search(text) is None


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= sys.float_info.max  # math.isfinite raises for an integer that no float can hold


@lru_cache(maxsize=16)
def _resolved(root: Path) -> Path:
    return root.resolve()


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
