"""Media inside a container (a tar, a table, LMDB, a data: URL), and the files that converting makes of them.

    store = MediaStore(Path("out/media"))
    store.put(Embedded(jpeg_bytes))          # "3f/3f9a...e1.jpg": named by its SHA-256, so the same bytes are one file

Why files: training reads media at random, a sample here and one there, for many epochs. A tar or a parquet row group
gives no such access, LMDB's pages are trusted by its library whatever they hold, and a video has to be sought in. As
files they are read by the one path that everything else takes, and a repeated image is stored once. The price is one
more copy on the disk, and one file for each medium: 65,536 folders at most, so 100 million are 1,500 a folder.

What a file is called is decided by its first bytes, never by the name that a container gives it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from eagle_model.data.sample import DataError

MAX_MEDIUM_BYTES = 1 << 30  # limit: of one medium inside a container, which is held whole; longer videos are files
MAX_BASE64_CHARS = 64 << 20  # limit: 48 MiB of image in a text; JSON rows have a lower one of their own
_STARTS = (  # (at, bytes, suffix): by the order given
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"\x89PNG\r\n\x1a\n", ".png"),
    (0, b"GIF8", ".gif"),
    (0, b"BM", ".bmp"),
    (0, b"II*\0", ".tif"),
    (0, b"MM\0*", ".tif"),
    (0, b"\0\0\0\x0cjP  ", ".jp2"),
    (0, b"%PDF-", ".pdf"),
    (0, b"\x1a\x45\xdf\xa3", ".mkv"),
    (0, b"FLV", ".flv"),
    (0, b"\0\0\x01\xba", ".mpg"),
    (0, b"G", ".ts"),
)
_IMAGE_BRANDS = {b"avif": ".avif", b"avis": ".avif", b"heic": ".heic", b"heix": ".heic", b"mif1": ".heic"}
IMAGE_SUFFIXES = {
    ".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff",
    ".webp",
}  # fmt: skip
VIDEO_SUFFIXES = {
    ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv",
}  # fmt: skip
_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,", re.ASCII)


class BrokenMediumError(DataError):
    """Bytes, or a file, that are no medium which can be read."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The bytes of one image, video or document."""

    data: bytes


def kind_of(name: str) -> str | None:
    """ "image" or "video" by a file's name; a document counts as a video, as in rows. None: neither."""
    suffix = Path(name).suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return "video" if suffix in VIDEO_SUFFIXES or suffix == ".pdf" else None


def suffix_of(data: bytes) -> str | None:
    """The suffix that a file of these bytes takes; None where they are no medium that is known."""
    if data[4:8] == b"ftyp":
        return _IMAGE_BRANDS.get(data[8:12], ".mov" if data[8:12] == b"qt  " else ".mp4")
    if data[:4] == b"RIFF":
        return {b"WEBP": ".webp", b"AVI ": ".avi"}.get(data[8:12])
    if data[:2] in (b"P5", b"P6") and data[2:3].isspace():
        return ".ppm"
    found = next((suffix for at, start, suffix in _STARTS if data[at : at + len(start)] == start), None)
    if found == ".ts" and data[188:189] not in (b"G", b""):  # MPEG-TS begins each of its packets of 188 bytes so
        return None
    return found


def from_base64(text: str) -> Embedded:
    """Of base64, with or without "data:...;base64," before it. Raises ValueError, the reason alone."""
    if len(text) > MAX_BASE64_CHARS:
        raise ValueError(f"base64 of {len(text)} characters, more than {MAX_BASE64_CHARS}; write it to a file")
    if text.startswith("data:"):
        head = _DATA_URL.match(text)
        if head is None:
            raise ValueError(f"the data: URL {text[:40]!r} is not base64")
        text = text[head.end() :]
    try:
        return Embedded(base64.b64decode(text, validate=True))
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from None


class MediaStore:
    """A folder of media named by their content. Several processes may put into one: equal names hold equal bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_files = self.num_bytes = 0  # written, not counting those that were there

    def put(self, medium: Embedded) -> str:
        """Writes the bytes unless they are there already; returns the path inside the folder.

        Raises BrokenMediumError, the reason alone, for what is too large or no known image, video or document.
        """
        data = medium.data
        if len(data) > MAX_MEDIUM_BYTES:
            raise BrokenMediumError(f"a medium has {len(data)} bytes, more than {MAX_MEDIUM_BYTES}; give it as a file.")
        suffix = suffix_of(data)
        if suffix is None:
            raise BrokenMediumError(f"{len(data)} bytes that begin with {data[:8]!r} are no known image, video or PDF.")
        name = hashlib.sha256(data).hexdigest()
        path = self.folder / name[:2] / name[2:4] / (name + suffix)
        if not path.is_file() or path.stat().st_size != len(data):  # a crash of the machine may leave it empty
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            beside.write_bytes(data)
            os.replace(beside, path)
            self.num_files += 1
            self.num_bytes += len(data)
        return str(path.relative_to(self.folder))

    def flush(self) -> None:
        """Returns when all that was put is on the disk. Once at the end: a flush of each of a million takes hours."""
        os.sync()
