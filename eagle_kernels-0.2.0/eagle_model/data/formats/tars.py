"""WebDataset tar files, also those of an Energon folder -> their records, media as bytes.

    for where, record in tar_records(Path("shard-000000.tar")): ...
    # "shard-000000.tar: 0001", {"id": "0001", "images": [Embedded(...)], "conversations": [...]}

Layout  members of one sample follow each other and have one name up to its first dot, the key: 0001.jpg, 0001.json.
        `.json` is an object of any shape that records.py knows, `.txt` a caption. Where it names media (`image`, ...),
        they are members of the sample, by their whole name, their last part or their ending; else the sample's media
        are shown in the order of their names. Energon's folder holds such tars, beside a `.nv-meta` that is not needed.
Safety  the bytes of a member are never run or unpickled: endings not listed here (.pyd, .pth, .npy, ...) are passed
        over and named in the sample's unused fields. A key is a name, never a place: absolute ones and `..` are
        refused, and so are links and devices. Nothing is extracted by its name; media.py names files by their content.
Bounds  a sample's members MAX_SAMPLE_BYTES together, its .json or .txt annotations.MAX_ROW_BYTES, a name
        MAX_NAME_BYTES, its members MAX_MEMBERS. Tars are read from the front, gzipped ones too, sample by sample.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from eagle_model.data.annotations import MAX_ROW_BYTES, need_file, without_duplicates
from eagle_model.data.formats.media import MAX_MEDIUM_BYTES, Embedded, kind_of
from eagle_model.data.sample import DataError

MAX_SAMPLE_BYTES = MAX_MEDIUM_BYTES  # limit: of all members of a sample, which are held together
MAX_MEMBERS = 4096  # limit: of a sample; a deck of slides has hundreds
MAX_NAME_BYTES = 64 << 10  # limit: a long name, or the attributes before a member; file systems end at 4 KiB
_BLOCK = 512
_CHUNK_BYTES = 1 << 20
_FILE, _OLD_FILE, _FOLDER, _LONG_NAME, _ATTRIBUTES, _GLOBAL = b"0", b"\0", b"5", b"L", b"x", b"g"


class Member(NamedTuple):
    name: str
    num_bytes: int
    file: BinaryIO  # stands at the member's first byte


def tar_records(path: Path) -> Iterator[tuple[str, object]]:
    """("file: key", record or DataError) of each sample. Raises DataError where the file is no tar that can be read."""
    need_file(path, "the tar")
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file = gzip.GzipFile(fileobj=raw) if packed else raw
            yield from _samples(path, file)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from None


def _samples(path: Path, file: BinaryIO) -> Iterator[tuple[str, object]]:
    key, num_bytes, problem = "", 0, None
    members: dict[str, tuple[str, bytes | None]] = {}
    for member in _members(path, file):
        folder, _, name = member.name.rpartition("/")
        stem, _, ending = name.partition(".")
        if not stem or name.startswith("."):
            continue  # macOS's ._ files, hidden ones
        new_key = f"{folder}/{stem}" if folder else stem
        if new_key != key:
            if key:
                yield f"{path}: {key}", problem or _record(path, key, members)
            key, members, problem, num_bytes = new_key, {}, None, 0
        ending = ending.lower()
        num_bytes += member.num_bytes
        if num_bytes > MAX_SAMPLE_BYTES or len(members) >= MAX_MEMBERS:
            members = {}
            problem = DataError(
                f"{path}: {key}: more than {MAX_SAMPLE_BYTES} bytes or {MAX_MEMBERS} members; split it."
            )
        elif (is_text := ending.rpartition(".")[2] in ("json", "txt")) and member.num_bytes > MAX_ROW_BYTES:
            problem = DataError(
                f"{path}: {key}.{ending}: has {member.num_bytes} bytes; a text or record at most {MAX_ROW_BYTES}."
            )
        elif problem is None:
            is_read = is_text or kind_of(name) is not None
            members[ending] = (name, member.file.read(member.num_bytes) if is_read else None)
    if key:
        yield f"{path}: {key}", problem or _record(path, key, members)


def _record(path: Path, key: str, members: dict[str, tuple[str, bytes | None]]) -> object:
    """One sample's members, by their endings, as a record."""
    record: dict = {}
    texts: set[str] = set()
    try:
        for ending, (_, data) in members.items():
            if data is not None and ending.rpartition(".")[2] == "json":
                found = json.loads(data.decode("utf-8-sig"), object_pairs_hook=without_duplicates)
                if not isinstance(found, dict) or found.keys() & record.keys():
                    return DataError(f"{path}: {key}.{ending}: needs an object, of names that no other has.")
                record |= found
            elif data is not None and ending.rpartition(".")[2] == "txt":
                texts.add(data.decode("utf-8-sig").strip())
    except (ValueError, RecursionError) as error:
        return DataError(f"{path}: {key}: not JSON in UTF-8: {error}.")
    if len(texts) > 1:
        return DataError(f"{path}: {key}: has {len(texts)} texts; a sample has one .txt, its caption.")
    if texts:
        record.setdefault("caption", texts.pop())  # img2dataset says it in both
    media = {name: (kind_of(name), Embedded(data)) for name, data in members.values() if data and kind_of(name)}
    passed_over = {f".{ending}": True for ending, (_, data) in members.items() if data is None}
    record.setdefault("id", key)
    named = [field for field in ("image", "images", "video", "videos", "data") if record.get(field) is not None]
    if named:
        try:
            record |= {field: _found(record[field], media) for field in named}
        except DataError as error:
            return DataError(f"{path}: {key}: {error}")
    else:
        for kind in ("image", "video"):
            if listed := [medium for _, (its, medium) in sorted(media.items()) if its == kind]:
                record[f"{kind}s"] = listed
    return record | passed_over


def _found(value: object, media: dict[str, tuple[str | None, Embedded]]) -> object:
    """With members in the places of their names."""
    if isinstance(value, list):
        return [_found(entry, media) for entry in value]
    if isinstance(value, dict):
        return {name: entry if name == "type" else _found(entry, media) for name, entry in value.items()}
    if not isinstance(value, str):
        return value
    for name, (_, medium) in media.items():
        if value.rpartition("/")[2] == name or value.lstrip(".") == name.partition(".")[2]:
            return medium
    raise DataError(f"it names the medium {value[:200]!r}, which is no member of the sample.")


def _members(path: Path, file: BinaryIO) -> Iterator[Member]:
    """The regular files of a tar, in its order; what a caller leaves unread of one is skipped."""
    name, size = None, None  # what came before a member, for it
    while len(header := file.read(_BLOCK)) == _BLOCK and header.strip(b"\0"):
        if sum(header[:148]) + sum(header[156:]) + 8 * 32 != _number(path, header[148:156]):
            raise DataError(f"{path}: a tar header is damaged; make the file anew.")
        kind, num_bytes = header[156:157], _number(path, header[124:136])
        if kind in (_LONG_NAME, _ATTRIBUTES, _GLOBAL):
            if num_bytes > MAX_NAME_BYTES:
                raise DataError(f"{path}: a name or attributes of {num_bytes} bytes; needs at most {MAX_NAME_BYTES}.")
            data = file.read(num_bytes)
            _skip(file, -num_bytes % _BLOCK)
            if kind == _LONG_NAME:
                name = data.rstrip(b"\0").decode(errors="replace")
            elif kind == _ATTRIBUTES:
                attributes = _attributes(path, data)
                name, size = attributes.get("path", name), attributes.get("size", size)
            continue
        if name is None:
            prefix = (
                header[345:500].split(b"\0")[0] if header[257:262] == b"ustar" and header[262:263] == b"\0" else b""
            )
            name = b"/".join(filter(None, [prefix, header[:100].split(b"\0")[0]])).decode(errors="replace")
        num_bytes = num_bytes if size is None else int(size)
        if kind in (_FILE, _OLD_FILE):
            name = name.removeprefix("./")
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise DataError(
                    f"{path}: the member {name[:200]!r} leads out of the tar; such a file is refused whole."
                )
            counted = _Counted(file, num_bytes)
            yield Member(name, num_bytes, counted)  # type: ignore[arg-type]
            _skip(file, counted.left + -num_bytes % _BLOCK)
        elif kind == _FOLDER:
            _skip(file, num_bytes + -num_bytes % _BLOCK)
        else:
            raise DataError(f"{path}: the member {name[:200]!r} is a link or device; a tar of samples has files alone.")
        name, size = None, None
    if header.strip(b"\0"):
        raise DataError(f"{path}: it ends in the middle of a header; it is cut off.")


class _Counted:
    """A member's bytes alone."""

    def __init__(self, file: BinaryIO, num_bytes: int) -> None:
        self._file, self.left = file, num_bytes

    def read(self, num_bytes: int) -> bytes:
        data = self._file.read(min(num_bytes, self.left))
        if len(data) < min(num_bytes, self.left):
            raise EOFError("it is cut off")
        self.left -= len(data)
        return data


def _number(path: Path, field: bytes) -> int:
    """An octal number, or one of base 256 as GNU tar writes large ones."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0")[0].strip()
    if not text.isdigit() or text.strip(b"01234567"):
        raise DataError(f"{path}: no tar: a header's number is {field!r}.")
    return int(text, 8)


def _attributes(path: Path, data: bytes) -> dict[str, str]:
    """Of a pax header: "length name=value\\n" each."""
    found, position = {}, 0
    while position < len(data):
        length, _, _ = data[position : position + 20].partition(b" ")
        if not length.isdigit() or int(length) < len(length) + 3:
            raise DataError(f"{path}: a tar's attributes are damaged.")
        entry = data[position + len(length) + 1 : position + int(length) - 1]
        name, _, value = entry.partition(b"=")
        found[name.decode(errors="replace")] = value.decode(errors="replace")
        position += int(length)
    if "size" in found and not (found["size"].isdigit() and len(found["size"]) < 19):
        raise DataError(f"{path}: a tar's attributes have the size {found['size'][:40]!r}.")
    return found


def _skip(file: BinaryIO, num_bytes: int) -> None:
    while num_bytes > 0:
        read = file.read(min(num_bytes, _CHUNK_BYTES))
        if not read:
            raise EOFError("it is cut off")
        num_bytes -= len(read)
