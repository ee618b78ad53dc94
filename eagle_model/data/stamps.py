"""Whether a medium is still the file that was prepared: by its size and time, or by its content where that was kept.

    stamp = stamp_of(Path("a.png"), with_digest=True)        # Stamp(812, 1733..., b"...")
    need_same(replace(image, stamp=stamp))                   # DataError where another file has its name now

A plan says which tiles and frames are seen of a file of some size and length. Were another put under its name, it would
be seen by that plan, cut otherwise than it should be, and nothing would tell. Media that lie elsewhere are pinned by
what their service calls them (remote.py).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from eagle_model.data.sample import DataError, ImageRef, Sample, Stamp, VideoRef

CONTENT_BYTES = 16  # of a digest
_READ_BYTES = 1 << 20


def stamp_of(path: str | Path, *, with_digest: bool = False) -> Stamp:
    """Raises OSError. With a digest the whole file is read."""
    found = os.stat(path)
    digest = digest_of(str(path), found.st_size, found.st_mtime_ns) if with_digest else b""
    return Stamp(found.st_size, found.st_mtime_ns, digest)


@lru_cache(maxsize=1 << 14)
def digest_of(path: str, num_bytes: int, mtime_ns: int) -> bytes:
    """CONTENT_BYTES of BLAKE2b of a file that has this size and time, read once a process. Raises OSError."""
    digest = hashlib.blake2b(digest_size=CONTENT_BYTES)
    with open(path, "rb") as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.digest()


def is_same(path: str | Path, stamp: Stamp) -> bool:
    """Whether a file is the one that was stamped. Raises OSError."""
    found = os.stat(path)
    if found.st_size != stamp.num_bytes:
        return False
    if found.st_mtime_ns == stamp.mtime_ns:
        return True
    return bool(stamp.digest) and digest_of(str(path), found.st_size, found.st_mtime_ns) == stamp.digest


def need_same(medium: ImageRef | VideoRef) -> None:
    """Raises DataError where the file is another one than was prepared. One that is missing is left to who opens it."""
    stamp = medium.stamp
    try:
        if stamp is None or is_same(medium.path, stamp):
            return
        num_bytes = os.stat(medium.path).st_size
    except (OSError, ValueError):
        return
    kind = "image" if isinstance(medium, ImageRef) else "video"
    if num_bytes != stamp.num_bytes:
        what = f"it had {stamp.num_bytes:,} bytes then and has {num_bytes:,} now"
    elif stamp.digest:
        what = "it has other content"
    else:
        what = "its time is another one, and its content was not kept (--hash) to tell whether it is the same"
    raise DataError(
        f"{kind} {medium.path} has changed since it was prepared: {what}. Run eagle data prepare with --again, which "
        "looks at what has changed."
    )


def stamped(sample: Sample, stamps: Iterator[Stamp | None]) -> Sample:
    """The sample with media that must be those which had these stamps, one for each of sample.media."""

    def stamp(part: str | ImageRef | VideoRef) -> str | ImageRef | VideoRef:
        if isinstance(part, str):
            return part
        return part if (found := next(stamps)) is None else replace(part, stamp=found)

    turns = [replace(turn, parts=tuple(map(stamp, turn.parts))) for turn in sample.turns]
    return replace(sample, turns=tuple(turns))
