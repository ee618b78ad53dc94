r"""Rows of annotation files -> samples: who speaks, what is said, and which file is shown where.

    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog."}]
    sample = parse_sample({"image": "a.png", "conversations": turns}, root=Path("photos"), where="rows.jsonl:1")
    sample.turns[0].parts       # (ImageRef(Path("photos/a.png")), "\nWhat is it?")

Rows    `conversations` (from/value) with media listed beside them in `image`, `video` or `data`, as Eagle and LLaVA
        write them; or chat `messages` (role/content) with media as content parts (OpenAI, Hugging Face), or listed
        beside them in `images` and `videos` (ms-swift, TRL). `system` is the text of a first system turn; `start` and
        `end` (seconds) of a row are those of its one video. An assistant's turn with `loss` (or `train`, `weight`)
        false is context alone. `tools`, `tool_calls` and turns of role `tool` are as in transformers' chat templates.
        A null field is no field. Any other field of a turn or a medium is an error; of a row, it is refused where it
        would change what is seen or learned (row_fields.py), else listed in `Sample.unused_fields`.
Tags    Where media are listed beside the turns, a turn's `<image-k>` or `<video-k>` shows the k-th of the list,
        `<image>` or `<video>` the next one, and what no tag shows comes at the start of the first user turn. A
        backslash makes a tag text: `\<image>` is read as `<image>`, and `\\<image>` as a backslash and an image. All
        `conversations` are read so, with media or without. Beside content parts, and in what an assistant says, a tag
        is text.
Parts   `{"type": "text", "text": ...}` or a string; `{"type": "image", "image": path}`, or `url`, `path`, `image_url`
        in its place; `{"type": "image_url", "image_url": {"url": path, "detail": "low"}}`, low being one tile; videos
        alike. `{"type": "image"}` alone shows the next of the row's `images`. What has no type is what it names. A
        path of an image may be a PIL.Image.
Paths   A video that ends in .pdf is a document: its pages are seen as frames. Media lie inside `root`: absolute paths,
        `..` and symbolic links that lead out are refused unless `allow_outside_root`. URLs are refused unless `remote`
        allows them (remote.py); nothing here reaches the network.
Errors  DataError, its message starting with "file:line: " wherever there is a line.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from eagle_model.data.annotations import json_rows
from eagle_model.data.recipe import Source, is_number
from eagle_model.data.remote import RemoteConfig, RemoteFile
from eagle_model.data.row_fields import refusal, says_nothing
from eagle_model.data.sample import (
    DataError,
    ImageRef,
    Media,
    NothingToLearnError,
    OutsideRootError,
    PlaceholderError,
    Sample,
    Turn,
    VideoRef,
    listed_names,
    shown,
)
from eagle_model.data.templates import tool_call

_ROLES = {  # as rows name them -> as a Turn does
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": "observation",
    "tool": "tool",
}
_TAG = re.compile("<(image|video)(?:-([0-9]{1,9}))?>")
_SURROGATE = re.compile("[\ud800-\udfff]")
_VIDEO_STARTS = ("start_seconds", "start_time", "start", "video_start")
_VIDEO_ENDS = ("end_seconds", "end_time", "end", "video_end")
VIDEO_BOUNDS = (*_VIDEO_STARTS, *_VIDEO_ENDS)  # fields that give a clip of a video
_LEARNED = ("loss", "train", "weight")  # of an assistant's turn, as ms-swift, axolotl and OpenAI name it
_TURN_FIELDS = {
    "assistant": {"tool_calls"},
    "tool": {"tool_call_id", "name"},
}  # of messages, by role, beside those of all
_PARTS = ("text", "image", "image_url", "video", "video_url")
_DETAILS = {"auto": None, "high": None, "low": 1}  # of an OpenAI image -> the most tiles
_URL = r"[A-Za-z][A-Za-z0-9+.-]*://|data:"
_MAX_PATH_CHARS = 4096  # limit: Linux opens no longer one
_LISTS = {"image", "images", "video", "videos", "data"}
_ROW_FIELDS = {"id", "conversations", "messages", "system", "tools", "image", "images", "video", "videos", "data"}


def read_samples(
    source: Source,
    *,
    allow_outside_root: bool = False,
    remote: RemoteConfig | None = None,
    on_bad_row: Callable[[str, DataError], None] | None = None,
) -> Iterator[Sample]:
    """The training samples of one source, in file order; each has an assistant turn to learn from.

    A bad row raises DataError, or goes to on_bad_row("file:line", error) and is left out. A file that cannot be read
    at all raises in either case, and so does a number of rows other than the recipe's `length`.
    """
    num_rows = 0
    for path in source.annotation:
        for where, row in json_rows(path):
            num_rows += 1
            try:
                sample = training_sample(
                    row, root=source.root, where=where, allow_outside_root=allow_outside_root, remote=remote
                )
            except DataError as error:
                if on_bad_row is None:
                    raise
                on_bad_row(where, error)
            else:
                yield sample
    if source.length is not None and num_rows != source.length:
        names = listed_names([str(path) for path in source.annotation])
        raise DataError(
            f"{names}: {num_rows} rows, but the recipe's length for source {source.name!r} is {source.length}. "
            f"Correct the length or remove it."
        )


def training_sample(
    row: object, *, root: Path, where: str, allow_outside_root: bool = False, remote: RemoteConfig | None = None
) -> Sample:
    """`parse_sample` of what json_rows gives, a row or why there is none; with an assistant turn to learn from."""
    if isinstance(row, DataError):
        raise row
    sample = parse_sample(row, root=root, where=where, allow_outside_root=allow_outside_root, remote=remote)
    _need_answers(sample)
    return sample


def _need_answers(sample: Sample) -> None:
    """Raises DataError where a sample teaches nothing, or an answer that is to be learned is empty."""
    learned = [turn for turn in sample.turns if turn.role == "assistant" and turn.learned]
    if not learned:
        raise NothingToLearnError(
            f"{sample.where}: no turn of the assistant (gpt) to learn; there is nothing to learn from."
        )
    if not all(any(isinstance(part, str) and part.strip() for part in turn.parts) for turn in learned):
        raise NothingToLearnError(
            f"{sample.where}: a turn of the assistant (gpt) is empty; there is nothing to learn from it. "
            f"Give it a text, or 'loss': false where it is context alone."
        )


def parse_sample(
    row: object, *, root: Path, where: str, allow_outside_root: bool = False, remote: RemoteConfig | None = None
) -> Sample:
    """One row -> Sample, paths joined to `root`; no file is opened. `where` starts messages. remote: which URLs may
    stand for media; None: none."""
    try:
        return _parse_row(row, _RowReader(root, where, allow_outside_root, remote))
    except RecursionError:
        raise DataError(f"{where}: nested too deep.") from None
    except MemoryError:
        raise DataError(f"{where}: there is not enough memory for the row.") from None


def _parse_row(row: object, reader: _RowReader) -> Sample:
    where = reader.where
    if not isinstance(row, dict):
        raise DataError(f"{where}: the row is {shown(row)}; needs an object.")
    row = _given(row)
    if ("conversations" in row) == ("messages" in row):
        found = "both" if "messages" in row else "neither"
        raise DataError(f"{where}: the row has {found} of 'conversations' and 'messages'; needs one of them.")
    turns = reader.turns(row)
    for i, turn in enumerate(turns):
        if turn.role == "system" and i > 0:
            raise DataError(f"{where}: turn {i + 1} is a system turn; only the first may be.")
    name = row.get("id", where)
    if not isinstance(name, (str, int)) or isinstance(name, bool) or name == "":
        raise DataError(f"{where}: id is {shown(name)}; needs a string or an integer.")
    return Sample(str(name), tuple(turns), where, reader.unused_fields(row), reader.tools(row))


def _given(entry: dict) -> dict:
    """Without its null fields: Hugging Face's `datasets` gives every row the fields of all rows."""
    return {name: value for name, value in entry.items() if value is not None}


class Tag(NamedTuple):
    kind: str  # image | video
    number: int | None  # None: the next one

    def __str__(self) -> str:
        return f"<{self.kind}>" if self.number is None else f"<{self.kind}-{self.number}>"


class _RowReader:
    """Reads one row; numbers its images and its videos as they come."""

    def __init__(self, root: Path, where: str, allow_outside_root: bool, remote: RemoteConfig | None = None) -> None:
        self.root, self.where, self.allow_outside_root, self.remote = root, where, allow_outside_root, remote
        self.num_media = {"image": 0, "video": 0}
        self.listed: dict[str, Iterator[Media]] = {}  # what parts that name no file show next
        self.num_unnamed = 0  # such parts

    def fail(self, message: str, kind: type[DataError] = DataError) -> DataError:
        return kind(f"{self.where}: {message}")

    def turns(self, row: dict) -> list[Turn]:
        listed = self.clipped(row, self.listed_media(row))
        images, videos = ([m for m in listed if isinstance(m, kind)] for kind in (ImageRef, VideoRef))
        self.listed = {"image": iter(images), "video": iter(videos)}
        if "conversations" in row:
            spoken = self.turn_objects(row["conversations"], "from", "value")
            turns = [self.turn(turn, self.role(turn, "from"), [self.text(turn["value"])]) for turn in spoken]
            turns = self.placed(listed, turns)
        else:
            turns = [self.message(message) for message in self.turn_objects(row["messages"], "role", "content")]
            num_shown = sum(not isinstance(part, str) for turn in turns for part in turn.parts)
            if listed and num_shown > self.num_unnamed:
                raise self.fail("media are listed beside the messages and are parts of them too; needs one of both.")
            if num_shown and num_shown < len(listed):
                raise self.fail(
                    f"the row lists {len(listed)} media, but parts of its messages show {num_shown}.", PlaceholderError
                )
            if not num_shown and (listed or _LISTS & row.keys()):  # a list of none too: what a tag meant is lost
                turns = self.placed(listed, turns)
        if bounds := [name for name in VIDEO_BOUNDS if name in row and self.num_media["video"] and not listed]:
            raise self.fail(f"the row has {bounds[0]!r}, but its videos are parts of messages; write it there.")
        return [*self.system(row, turns), *turns]

    def system(self, row: dict, turns: list[Turn]) -> list[Turn]:
        """The turn that a row's `system` says; an empty one says nothing."""
        text = self.text(row.get("system", ""))
        if not text.strip():
            return []
        if turns[0].role == "system":
            raise self.fail("the row has 'system' and a system turn too; needs one of them.")
        return [Turn("system", (text,))]

    def unused_fields(self, row: dict) -> tuple[str, ...]:
        """The row's fields that nothing reads. Raises where one would change what is seen or learned."""
        has_video = self.num_media["video"] > 0
        has_media = has_video or self.num_media["image"] > 0
        unused = []
        for name, value in row.items():
            is_read = name in _ROW_FIELDS and not (name == "tools" and says_nothing(value))
            if is_read or (has_video and name in VIDEO_BOUNDS):
                continue
            if why := refusal(str(name), value, has_media=has_media, has_video=has_video):
                raise self.fail(f"the row has the field {shown(name)}: {why}. Change it, or take it out.")
            unused.append(sys.intern(str(name)[:80]))  # once for all rows
        return tuple(unused)

    def tools(self, row: dict) -> tuple[str, ...]:
        """The functions that a row offers, each as the JSON that a prompt shows."""
        tools = self.json_of(row.get("tools"), "tools")
        if tools is None or says_nothing(tools):
            return ()
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise self.fail(f"tools is {shown(tools)}; needs a list of objects, each a function's JSON schema.")
        return tuple(self.json_text(tool, "a tool") for tool in tools)

    def json_of(self, value: object, name: str) -> object:
        """A value that may be written as JSON in a string."""
        if not isinstance(value, str) or not value.strip():
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            raise self.fail(f"{name} is {shown(value)}, which is not JSON: {error}.") from None

    def json_text(self, value: object, name: str) -> str:
        """As transformers' templates write a value."""
        try:
            return self.text(json.dumps(value, ensure_ascii=False))
        except (TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise self.fail(f"{name} is {shown(value)}, which JSON cannot say: {error}.") from None

    # -- media

    def listed_media(self, row: dict) -> list[Media]:
        """What the row lists beside its turns, in its order."""
        keys = [key for key in ("image", "images", "video", "videos", "data") if key in row]
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

    def clipped(self, row: dict, listed: list[Media]) -> list[Media]:
        """With the clip that the row itself gives, of its one video."""
        videos = [medium for medium in listed if isinstance(medium, VideoRef)]
        bounds = [name for name in VIDEO_BOUNDS if name in row]
        if not videos or not bounds:
            return listed
        if len(videos) > 1 or (videos[0].start_seconds, videos[0].end_seconds) != (None, None):
            raise self.fail(f"the row has {bounds[0]!r}, and {len(videos)} videos or a clip of its own in its video.")
        start, end = self.clip(row, videos[0].path)
        return [replace(m, start_seconds=start, end_seconds=end) if isinstance(m, VideoRef) else m for m in listed]

    def data_groups(self, groups: object) -> Iterator[Media]:
        if not isinstance(groups, list):
            raise self.fail(
                f"data is {shown(groups)}; needs a list of {{'type': ..., 'image_list' or 'video_list': [...]}}."
            )
        for group in groups:
            group = _given(group) if isinstance(group, dict) else group
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
        if isinstance(entry, (str, Image.Image)):
            entry = {"path": entry}
        if not isinstance(entry, dict):
            raise self.fail(f"{kind} is {shown(entry)}; needs a path.")
        entry = _given(entry)
        max_tiles = self.most_tiles(entry) if kind == "image" else None
        if "lmdb_file" in entry or "lmdb_key" in entry:
            raise self.fail(f"{kind} is in LMDB; `eagle data convert` writes it to a file.")
        if "base64" in entry:
            raise self.fail(f"{kind} is base64; `eagle data convert` writes it to a file.")
        names = [name for name in ("path", kind, "url") if name in entry]
        if len(names) != 1:
            raise self.fail(f"{kind} is {shown(entry)}; needs exactly one of the fields 'path', {kind!r} and 'url'.")
        times = VIDEO_BOUNDS if kind == "video" else ()
        self.known_fields(entry, {*names, *times}, f"a {kind}" if kind == "video" else "an image")
        given = entry[names[0]]
        if kind == "image" and isinstance(given, Image.Image):
            self.num_media[kind] += 1
            name = Path(f"{self.num_media[kind]} in memory")
            return ImageRef(name, self.num_media[kind], max_tiles, given)
        remote = self.remote_file(kind, given)
        path = self.path(kind, given) if remote is None else remote.path
        self.num_media[kind] += 1
        if kind == "image":
            return ImageRef(path, self.num_media[kind], max_tiles, remote=remote)
        start, end = self.clip(entry, path)
        return VideoRef(path, start, end, self.num_media[kind], remote)

    def most_tiles(self, entry: dict) -> int | None:
        """The limit that OpenAI's `detail` says, which is taken out of `entry`."""
        detail = entry.pop("detail", "auto")
        if not isinstance(detail, str) or detail not in _DETAILS:
            raise self.fail(f"detail of an image is {shown(detail)}; needs low (one tile), high or auto.")
        return _DETAILS[detail]

    def clip(self, entry: dict, path: Path) -> tuple[float | None, float | None]:
        start, end = self.seconds(entry, _VIDEO_STARTS), self.seconds(entry, _VIDEO_ENDS)
        if end is not None and end <= (start or 0.0):
            raise self.fail(f"the clip of {path.name} ends at {end:g} s, not after its start at {start or 0:g} s.")
        return start, end

    def seconds(self, entry: dict, names: tuple[str, ...]) -> float | None:
        given = [name for name in names if name in entry]
        if len(given) > 1:
            raise self.fail(f"a video has both {given[0]!r} and {given[1]!r}; needs one of them.")
        if not given:
            return None
        value = entry[given[0]]
        if not is_number(value) or value < 0:
            raise self.fail(f"{given[0]} is {shown(value)}; needs seconds, a number of at least 0.")
        return float(value)

    def remote_file(self, kind: str, text: object) -> RemoteFile | None:
        if self.remote is None or not isinstance(text, str) or not re.match(_URL, text) or text.startswith("file://"):
            return None
        try:
            return self.remote.file(text)
        except DataError as error:
            raise self.fail(f"{kind}: {error}", OutsideRootError) from None

    def path(self, kind: str, text: object) -> Path:
        if not isinstance(text, str) or not text or "\0" in text or not _is_unicode(text):
            raise self.fail(f"{kind} is {shown(text)}; needs the path of one file.")
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        elif re.match(_URL, text):
            raise self.fail(
                f"{kind} is the URL {text[:60]!r}; nothing is fetched. Download it and give its path, or set "
                "data.remote.",
                OutsideRootError,
            )
        if len(text) > _MAX_PATH_CHARS:
            count = f"{shown(text)[:40]}..., {len(text):,} characters"
            raise self.fail(f"{kind} is {count}, which is no path; if it is base64, write it to a file.")
        path = self.root / text
        if self.allow_outside_root:
            return path
        if os.path.isabs(text) or ".." in text.split(os.sep):
            raise self.fail(
                f"{kind} {text!r} leaves the root {str(self.root)!r}. "
                f"Give a path inside it, or set data.allow_outside_root=true if you trust the data.",
                OutsideRootError,
            )
        try:
            if _is_plainly_inside(str(self.root), os.path.dirname(path)) and not os.path.islink(path):
                return path
            inside = path.resolve().is_relative_to(_resolved(self.root))
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            raise self.fail(f"{kind} {text!r} cannot be resolved: {error}.") from error
        if not inside:
            raise self.fail(
                f"{kind} {text!r} is a link to {path.resolve()}, outside the root {self.root}. "
                f"Copy the file, or set allow_outside_root if you trust the data.",
                OutsideRootError,
            )
        return path

    def known_fields(self, entry: dict, known: set[str], what: str) -> None:
        if unknown := sorted(str(field) for field in set(entry) - known):
            raise self.fail(f"{what} has the unknown field {shown(unknown[0])}; known are {', '.join(sorted(known))}.")

    # -- turns

    def turn_objects(self, turns: object, *fields: str) -> list[dict]:
        if not isinstance(turns, list) or not turns:
            raise self.fail(f"the conversation is {shown(turns)}; needs a list of at least one turn.")
        found = []
        for turn in turns:
            given = _given(turn) if isinstance(turn, dict) else {}
            more = _TURN_FIELDS.get(str(given.get("role")), set())
            known = {*fields, *_LEARNED, *more}
            self.known_fields({k: v for k, v in given.items() if k in known or not says_nothing(v)}, known, "a turn")
            if given.get("tool_calls") and "tool_calls" in more and not says_nothing(given["tool_calls"]):
                given.setdefault("content", "")
            if any(field not in given for field in fields):
                raise self.fail(f"a turn is {shown(turn)}; needs an object with {' and '.join(map(repr, fields))}.")
            found.append(given)
        return found

    def turn(self, turn: dict, role: str, parts: Sequence[str | Media]) -> Turn:
        """A turn with its parts, learned unless it says otherwise."""
        given = [name for name in _LEARNED if name in turn]
        if len(given) > 1:
            raise self.fail(f"a turn has both {given[0]!r} and {given[1]!r}; needs one of them.")
        for name in given:
            if not isinstance(turn[name], (bool, int, float)) or turn[name] not in (0, 1):
                raise self.fail(f"{name} of a turn is {shown(turn[name])}; needs true or false, 1 or 0.")
            if turn[name] and role != "assistant":
                raise self.fail(f"{name} of a turn of role {role!r} is {turn[name]}; only the assistant's are learned.")
        return Turn(role, _without_empty(parts), learned=all(turn[name] for name in given))

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
        """A chat message: its content is a text, or parts in their order; then what tools it calls."""
        role, content = self.role(message, "role"), message["content"]
        if not isinstance(content, (str, list)):
            raise self.fail(f"content is {shown(content)}; needs a string or a list of parts.")
        parts = [self.part(part, role) for part in ([content] if isinstance(content, str) else content)]
        calls = message.get("tool_calls")
        if calls is not None and not says_nothing(calls):
            if not isinstance(calls, list):
                raise self.fail(f"tool_calls is {shown(calls)}; needs a list of calls.")
            said = "".join(part for part in parts if isinstance(part, str))
            parts = ["\n".join([*filter(None, [said]), *map(self.tool_call, calls)])]
        return self.turn(message, role, parts)

    def part(self, part: object, role: str) -> str | Media:
        """One part of a message's content."""
        if isinstance(part, str):
            return self.text(part)
        part = _given(part) if isinstance(part, dict) else part
        kind, named = None, []
        if isinstance(part, dict):
            named = [name for name in _PARTS if name in part]
            kind = part.get("type", named[0] if len(named) == 1 else None)
        if not isinstance(part, dict) or kind not in _PARTS:
            if role == "assistant":
                raise self.fail(
                    f"a part of the assistant's is {shown(part)}; needs type text, which is what is learned."
                )
            raise self.fail(f"a part is {shown(part)}; needs type text, image, image_url, video or video_url.")
        if kind == "text":
            self.known_fields(part, {"type", "text"}, "a text part")
            return self.text(part.get("text"))
        if role == "assistant":
            raise self.fail(f"a part of the assistant's is {shown(part)}; needs type text, which is what is learned.")
        entry = {name: value for name, value in part.items() if name != "type"}
        medium = kind.removesuffix("_url")
        if not entry:
            return self.next_listed(medium)
        if f"{medium}_url" in entry:
            self.known_fields(entry, {f"{medium}_url"}, f"a part of type {kind}")
            return self.medium(medium, entry[f"{medium}_url"])
        return self.medium(medium, entry)

    def next_listed(self, kind: str) -> Media:
        """What a part that names no file shows."""
        self.num_unnamed += 1
        found = next(self.listed[kind], None)
        if found is None:
            raise self.fail(
                f"a part of type {kind} names no file, and the row's {kind}s list none for it; needs 'path', {kind!r} "
                f"or 'url', or one more in {kind}s.",
                PlaceholderError,
            )
        return found

    def tool_call(self, call: object) -> str:
        """A call as an assistant's text says it."""
        entry = _given(call) if isinstance(call, dict) else {}
        if "function" in entry:
            self.known_fields(entry, {"id", "type", "index", "function"}, "a tool call")
            entry = _given(entry["function"]) if isinstance(entry["function"], dict) else {}
        self.known_fields(entry, {"name", "arguments"}, "a tool call's function")
        name, arguments = entry.get("name"), self.json_of(entry.get("arguments", {}), "arguments of a tool call")
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise self.fail(
                f"a tool call is {shown(call)}; needs {{'function': {{'name': ..., 'arguments': {{...}}}}}}, the "
                "arguments an object, or one as JSON."
            )
        return tool_call(self.text(name), self.json_text(arguments, "arguments of a tool call"))

    # -- tags

    def placed(self, listed: list[Media], turns: list[Turn]) -> list[Turn]:
        """Turns of text alone, every medium of the list shown once: where its tag stands, else at the start."""
        texts = ["".join(map(str, turn.parts)) for turn in turns]
        cut = [[text] if turn.role == "assistant" else split_at_tags(text) for turn, text in zip(turns, texts)]
        tags = [piece for pieces in cut for piece in pieces if isinstance(piece, Tag)]
        by_kind: dict[str, list[Media]] = {
            "image": [medium for medium in listed if isinstance(medium, ImageRef)],
            "video": [medium for medium in listed if isinstance(medium, VideoRef)],
        }
        tagged = {kind: self.tagged(kind, [tag for tag in tags if tag.kind == kind], by_kind[kind]) for kind in by_kind}
        shown_there = set(chain(*tagged.values()))
        untagged = [medium for medium in listed if medium not in shown_there]
        coming = {kind: iter(media) for kind, media in tagged.items()}
        placed = []
        for turn, pieces in zip(turns, cut, strict=True):
            parts = [next(coming[piece.kind]) if isinstance(piece, Tag) else piece for piece in pieces]
            if turn.role == "user" and untagged:
                parts, untagged = [*untagged, *parts], []
            placed.append(replace(turn, parts=_without_empty(parts)))
        if untagged:
            kinds = ["image" if isinstance(medium, ImageRef) else "video" for medium in untagged]
            names = [str(Tag(kind, medium.number)) for kind, medium in zip(kinds, untagged, strict=True)]
            raise self.fail(f"there is no user (human) turn to show {listed_names(names)} in.", PlaceholderError)
        return placed

    def tagged(self, kind: str, tags: list[Tag], media: list[Media]) -> list[Media]:
        """What each of the tags of one kind shows."""
        plain = sum(tag.number is None for tag in tags)
        if plain and plain != len(tags):
            raise self.fail(f"the text has both <{kind}> and <{kind}-k>; use one form.", PlaceholderError)
        if plain and plain != len(media):
            raise self.fail(
                f"the text has {plain} <{kind}> but the row lists {len(media)} {kind}s; the numbers must match. "
                f"(Where the text means no {kind}, write \\<{kind}>.)",
                PlaceholderError,
            )
        if plain:
            return media
        named: set[Tag] = set()
        for tag in tags:
            if not 1 <= (tag.number or 0) <= len(media):
                raise self.fail(f"the text names {tag} but the row lists {len(media)} {kind}s.", PlaceholderError)
            if tag in named:
                raise self.fail(f"the text names {tag} twice; each {kind} is shown once.", PlaceholderError)
            named.add(tag)
        return [media[tag.number - 1] for tag in tags if tag.number is not None]


def split_at_tags(text: str) -> list[str | Tag]:
    """A turn's text, cut where its tags stand; escaped tags are text, without the backslash."""
    if "<" not in text:
        return [text]
    pieces: list[str | Tag] = []
    since_tag: list[str] = []  # texts
    end = 0
    for match in _TAG.finditer(text):
        start = match.start()
        while start > end and text[start - 1] == "\\":  # here, as a regular expression would look at each many times
            start -= 1
        num_backslashes = match.start() - start
        since_tag += [text[end:start], "\\" * (num_backslashes // 2)]
        end = match.end()
        kind, number = match.groups()
        if num_backslashes % 2:
            since_tag.append(match[0])
        else:
            pieces += ["".join(since_tag), Tag(kind, None if number is None else int(number))]
            since_tag = []
    return [*pieces, "".join([*since_tag, text[end:]])]


def _without_empty(parts: Sequence[str | Media]) -> tuple[str | Media, ...]:
    return tuple(part for part in parts if part != "")


def _is_unicode(text: str) -> bool:
    """JSON can write half of a surrogate pair, which no encoding of text can hold."""
    return _SURROGATE.search(text) is None


@lru_cache(maxsize=4096)  # folders: a data set has many files in each
def _is_plainly_inside(root: str, folder: str) -> bool:
    """Whether a folder lies in the root once links are followed; False too where that takes a closer look."""
    real_root = os.path.realpath(root)
    return os.path.isdir(folder) and os.path.commonpath([real_root, os.path.realpath(folder)]) == real_root


@lru_cache(maxsize=16)
def _resolved(root: Path) -> Path:
    return root.resolve()
