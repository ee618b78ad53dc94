r"""Rows of annotation files -> samples: who speaks, what is said, and which file is shown where.

    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog."}]
    sample = parse_sample({"image": "a.png", "conversations": turns}, root=Path("photos"), where="rows.jsonl:1")
    sample.turns[0].parts       # (ImageRef(Path("photos/a.png")), "\nWhat is it?")

Files   JSON Lines (one row a line) or JSON (one list of rows, as LLaVA writes it).
Rows    `conversations` (from/value) with media listed beside them in `image`, `video` or `data`, as Eagle and LLaVA
        write them; or chat `messages` (role/content) with media as content parts (OpenAI), or listed beside them in
        `images` and `videos` (ms-swift).
Tags    Where media are listed beside the turns, a turn's `<image-k>` or `<video-k>` shows the k-th of the list,
        `<image>` or `<video>` the next one, and what no tag shows comes at the start of the first user turn. A
        backslash makes a tag text: `\<image>` is read as `<image>`, and `\\<image>` as a backslash and an image. All
        `conversations` are read so, with media or without. Beside content parts, and in what an assistant says, a tag
        is text.
Paths   Media lie inside `root`: absolute paths, `..` and symbolic links that lead out are refused unless
        `allow_outside_root`. URLs are always refused: nothing here reaches the network.
Errors  DataError, its message starting with "file:line: " wherever there is a line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from eagle_model.data.recipe import Source, is_number, read_text
from eagle_model.data.sample import DataError, ImageRef, Media, Sample, Turn, VideoRef, shown

_ROLES = {  # as rows name them -> as a Turn does
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": "observation",
}
_TAG = re.compile(r"(\\*)<(image|video)(?:-([0-9]{1,9}))?>")
_SURROGATE = re.compile("[\ud800-\udfff]")
_VIDEO_STARTS = ("start_seconds", "start_time", "start", "video_start")
_VIDEO_ENDS = ("end_seconds", "end_time", "end", "video_end")


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
    text = read_text(path)
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
    """One row -> Sample, paths joined to `root`; no file is opened. `where` starts messages.

    Unknown fields of the row itself are ignored (data sets keep scores and origins there); unknown fields of a media
    entry are refused, since they would change what is seen.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: the row is {shown(row)}; needs an object.")
    if ("conversations" in row) == ("messages" in row):
        found = "both" if "messages" in row else "neither"
        raise DataError(f"{where}: the row has {found} of 'conversations' and 'messages'; needs one of them.")
    turns = _RowReader(root, where, allow_outside_root).turns(row)
    for i, turn in enumerate(turns):
        if turn.role == "system" and i > 0:
            raise DataError(f"{where}: turn {i + 1} is a system turn; only the first may be.")
    name = where if row.get("id") is None else row["id"]
    if not isinstance(name, (str, int)) or isinstance(name, bool) or name == "":
        raise DataError(f"{where}: id is {shown(name)}; needs a string or an integer.")
    return Sample(str(name), tuple(turns))


class _Tag(NamedTuple):
    kind: str  # image | video
    number: int | None  # None: the next one

    def __str__(self) -> str:
        return f"<{self.kind}>" if self.number is None else f"<{self.kind}-{self.number}>"


class _RowReader:
    """Reads one row; numbers its images and its videos as they come."""

    def __init__(self, root: Path, where: str, allow_outside_root: bool) -> None:
        self.root, self.where, self.allow_outside_root = root, where, allow_outside_root
        self.num_media = {"image": 0, "video": 0}

    def fail(self, message: str) -> DataError:
        return DataError(f"{self.where}: {message}")

    def turns(self, row: dict) -> list[Turn]:
        listed = self.listed_media(row)
        if "conversations" in row:
            spoken = self.turn_objects(row["conversations"], "from", "value")
            return self.placed(listed, [(self.role(turn, "from"), self.text(turn["value"])) for turn in spoken])
        turns = [self.message(message) for message in self.turn_objects(row["messages"], "role", "content")]
        if not listed:
            return turns
        if any(not isinstance(part, str) for turn in turns for part in turn.parts):
            raise self.fail("media are listed beside the messages and are parts of them too; needs one of both.")
        return self.placed(listed, [(turn.role, turn.text) for turn in turns])

    # -- media

    def listed_media(self, row: dict) -> list[Media]:
        """What the row lists beside its turns, in its order."""
        keys = [key for key in ("image", "images", "video", "videos", "data") if row.get(key) is not None]
        for a, b in (("image", "images"), ("video", "videos")):
            if a in keys and b in keys:
                raise self.fail(f"the row has both {a!r} and {b!r}; needs one of them.")
        if "data" in keys and len(keys) > 1:
            raise self.fail(f"the row has both 'data' and {keys[0]!r}; needs one of them.")
        listed: list[Media] = []
        for key in keys:
            if key == "data":
                listed += self.data_groups(row["data"])
            else:
                entries = row[key] if isinstance(row[key], list) else [row[key]]
                listed += [self.medium(key.removesuffix("s"), entry) for entry in entries]
        return listed

    def data_groups(self, groups: object) -> Iterator[Media]:
        if not isinstance(groups, list):
            raise self.fail(
                f"data is {shown(groups)}; needs a list of {{'type': ..., 'image_list' or 'video_list': [...]}}."
            )
        for group in groups:
            kind = group.get("type") if isinstance(group, dict) else None
            if kind not in ("image", "video"):
                raise self.fail(f"an entry of data is {shown(group)}; needs an object of type 'image' or 'video'.")
            self.known_fields(group, {"type", f"{kind}_list"}, "an entry of data")
            entries = group.get(f"{kind}_list")
            if not isinstance(entries, list):
                raise self.fail(f"{kind}_list is {shown(entries)}; needs a list.")
            for entry in entries:
                yield self.medium(kind, entry)

    def medium(self, kind: str, entry: object) -> Media:
        """One image or video, numbered."""
        if isinstance(entry, str):
            entry = {"path": entry}
        if not isinstance(entry, dict):
            raise self.fail(f"{kind} is {shown(entry)}; needs a path.")
        if "lmdb_file" in entry or "lmdb_key" in entry:
            raise self.fail(f"{kind} is in LMDB, which is not supported yet; write it to a file and give its path.")
        names = [name for name in ("path", kind, "url") if name in entry]
        if len(names) != 1:
            raise self.fail(f"{kind} is {shown(entry)}; needs exactly one of the fields 'path', {kind!r} and 'url'.")
        times = (*_VIDEO_STARTS, *_VIDEO_ENDS) if kind == "video" else ()
        self.known_fields(entry, {*names, *times}, f"a {kind}" if kind == "video" else "an image")
        path = self.path(kind, entry[names[0]])
        self.num_media[kind] += 1
        if kind == "image":
            return ImageRef(path, self.num_media[kind])
        start, end = self.seconds(entry, _VIDEO_STARTS), self.seconds(entry, _VIDEO_ENDS)
        if end is not None and end <= (start or 0.0):
            raise self.fail(f"the clip of {path.name} ends at {end:g} s, not after its start at {start or 0:g} s.")
        return VideoRef(path, start, end, self.num_media[kind])

    def seconds(self, entry: dict, names: tuple[str, ...]) -> float | None:
        given = [name for name in names if entry.get(name) is not None]
        if len(given) > 1:
            raise self.fail(f"a video has both {given[0]!r} and {given[1]!r}; needs one of them.")
        if not given:
            return None
        value = entry[given[0]]
        if not is_number(value) or value < 0:
            raise self.fail(f"{given[0]} is {shown(value)}; needs seconds, a number of at least 0.")
        return float(value)

    def path(self, kind: str, text: object) -> Path:
        if not isinstance(text, str) or not text or "\0" in text or not _is_unicode(text):
            raise self.fail(f"{kind} is {shown(text)}; needs the path of one file.")
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

    def turn_objects(self, turns: object, *fields: str) -> list[dict]:
        if not isinstance(turns, list) or not turns:
            raise self.fail(f"the conversation is {shown(turns)}; needs a list of at least one turn.")
        for turn in turns:
            if not isinstance(turn, dict) or any(field not in turn for field in fields):
                raise self.fail(f"a turn is {shown(turn)}; needs an object with {' and '.join(map(repr, fields))}.")
        return turns

    def role(self, turn: dict, field: str) -> str:
        role = turn[field]
        if not isinstance(role, str) or role not in _ROLES:
            raise self.fail(f"{field} is {shown(role)}; needs one of {', '.join(_ROLES)}.")
        return _ROLES[role]

    def text(self, text: object) -> str:
        if not isinstance(text, str):
            raise self.fail(f"a turn's text is {shown(text)}; needs a string.")
        if not _is_unicode(text):
            raise self.fail(f"a turn's text {shown(text)} has half of a surrogate pair (\\ud800 to \\udfff alone).")
        return text

    def message(self, message: dict) -> Turn:
        """A chat message: its content is a text, or parts in their order."""
        role, content = self.role(message, "role"), message["content"]
        if isinstance(content, str):
            return Turn(role, _without_empty([self.text(content)]))
        if not isinstance(content, list):
            raise self.fail(f"content is {shown(content)}; needs a string or a list of parts.")
        parts: list[str | Media] = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                self.known_fields(part, {"type", "text"}, "a text part")
                parts.append(self.text(part.get("text")))
            elif role == "assistant":
                raise self.fail(
                    f"a part of the assistant's is {shown(part)}; needs type text, which is what is learned."
                )
            elif kind in ("image_url", "video_url"):
                self.known_fields(part, {"type", kind}, f"a part of type {kind}")
                parts.append(self.medium(kind.removesuffix("_url"), part.get(kind)))
            elif kind in ("image", "video"):
                parts.append(self.medium(kind, {name: value for name, value in part.items() if name != "type"}))
            else:
                raise self.fail(f"a part is {shown(part)}; needs type text, image, image_url, video or video_url.")
        return Turn(role, _without_empty(parts))

    # -- tags

    def placed(self, listed: list[Media], spoken: list[tuple[str, str]]) -> list[Turn]:
        """Turns of (role, text), every medium of the list shown once: where its tag stands, else at the start."""
        cut = [[text] if role == "assistant" else _split_at_tags(text) for role, text in spoken]
        tags = [piece for pieces in cut for piece in pieces if isinstance(piece, _Tag)]
        by_kind: dict[str, list[Media]] = {
            "image": [medium for medium in listed if isinstance(medium, ImageRef)],
            "video": [medium for medium in listed if isinstance(medium, VideoRef)],
        }
        tagged = {kind: self.tagged(kind, [tag for tag in tags if tag.kind == kind], by_kind[kind]) for kind in by_kind}
        untagged = [medium for medium in listed if medium not in chain(*tagged.values())]
        coming = {kind: iter(media) for kind, media in tagged.items()}
        turns = []
        for (role, _), pieces in zip(spoken, cut, strict=True):
            parts = [next(coming[piece.kind]) if isinstance(piece, _Tag) else piece for piece in pieces]
            if role == "user" and untagged:
                parts, untagged = [*untagged, *parts], []
            turns.append(Turn(role, _without_empty(parts)))
        if untagged:
            names = ", ".join(
                str(_Tag("image" if isinstance(medium, ImageRef) else "video", medium.number)) for medium in untagged
            )
            raise self.fail(f"there is no user (human) turn to show {names} in.")
        return turns

    def tagged(self, kind: str, tags: list[_Tag], media: list[Media]) -> list[Media]:
        """What each of the tags of one kind shows."""
        plain = sum(tag.number is None for tag in tags)
        if plain and plain != len(tags):
            raise self.fail(f"the text has both <{kind}> and <{kind}-k>; use one form.")
        if plain and plain != len(media):
            raise self.fail(
                f"the text has {plain} <{kind}> but the row lists {len(media)} {kind}s; the numbers must match. "
                f"(Where the text means no {kind}, write \\<{kind}>.)"
            )
        if plain:
            return media
        for i, tag in enumerate(tags):
            if not 1 <= (tag.number or 0) <= len(media):
                raise self.fail(f"the text names {tag} but the row lists {len(media)} {kind}s.")
            if tag in tags[:i]:
                raise self.fail(f"the text names {tag} twice; each {kind} is shown once.")
        return [media[tag.number - 1] for tag in tags if tag.number is not None]


def _split_at_tags(text: str) -> list[str | _Tag]:
    """A turn's text, cut where its tags stand; escaped tags are text, without the backslash."""
    pieces: list[str | _Tag] = []
    before, end = "", 0
    for match in _TAG.finditer(text):
        backslashes, kind, number = match.groups()
        before += text[end : match.start()] + backslashes[: len(backslashes) // 2]
        end = match.end()
        if len(backslashes) % 2:
            before += match[0][len(backslashes) :]
        else:
            pieces += [before, _Tag(kind, None if number is None else int(number))]
            before = ""
    return [*pieces, before + text[end:]]


def _without_empty(parts: Sequence[str | Media]) -> tuple[str | Media, ...]:
    return tuple(part for part in parts if part != "")


def _is_unicode(text: str) -> bool:
    """JSON can write half of a surrogate pair, which no encoding of text can hold."""
    return _SURROGATE.search(text) is None


@lru_cache(maxsize=16)
def _resolved(root: Path) -> Path:
    return root.resolve()
