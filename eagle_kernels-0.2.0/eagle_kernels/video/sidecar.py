"""The index of a video, kept in a folder beside the data set: numbers only, as JSON and zlib.

    index = read("walk.mp4", "indexes") or make("walk.mp4", "indexes", read_index)

Layout  MAGIC, u32 length of the header, u32 CRC-32 of all that follows, the header (JSON, UTF-8), then the arrays'
        bytes, each compressed by itself. The header names the video by its size and the time it was last changed, the
        scalars, and each array's dtype, length and compressed length; an array whose steps are all the same is just
        (first, step), and times are kept as their steps.

A sidecar that does not fit its video any more, or is damaged, is no sidecar: `read` gives None and `make` replaces it.
The arrays that only a decoder needs are unpacked when one is opened.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eagle_kernels.video.info import Orientation, PacketClock, PacketIndex, Samples
from eagle_kernels.video.ranged import RangedFile, stamp_of

MAGIC = b"eagle-video-5\n"  # the number is the format's; another one is another file
SUFFIX = ".eagleindex"
COMPRESSION = 6  # zlib's own middle
PLAIN = (
    *("stream", "codec", "last_duration", "scaled_width_px", "scaled_height_px", "rotation_degrees", "damage"),
    "decoder_tells_keys",
)
ARRAYS = ("pts_N", "place_N", "key_pts_K", "key_seek_K", "key_place_K", "key_position_K")
SAMPLE_ARRAYS = ("pts_D", "is_key_D", "offset_D", "size_D")
CLOCK_ARRAYS = {"clock_pts_D": "pts_D", "num_stored_D": "num_stored_D", "clock_is_key_D": "is_key_D"} | {
    "is_damaged_D": "is_damaged_D"
}  # of a PacketClock, by their names here
LONG = ("pts_N", "key_pts_K", "key_seek_K", "key_position_K", "pts_D", "offset_D", "clock_pts_D")
FLAGS = ("is_key_D", "clock_is_key_D", "is_damaged_D")
DTYPES = dict.fromkeys(("place_N", "key_place_K", "size_D", "num_stored_D"), "<i4")
DTYPES |= dict.fromkeys(LONG, "<i8") | dict.fromkeys(FLAGS, "|b1")
STEP_DTYPES = ("|i1", "<i2", "<i4", "<i8")
MAX_ARRAY_LENGTH = 1 << 24  # 77 hours at 60 frames a second: a damaged header must not ask for memory


def sidecar_path(
    path: str | Path, index_folder: str | Path, stream: int | None = None, ranged: RangedFile | None = None
) -> Path:
    """Where the sidecar of the video `path` lies: its name, and a hash of where it is and of the stream asked for."""
    whole = os.path.abspath(path) if ranged is None else ranged.name
    digest = hashlib.sha256(os.fsencode(whole) + (b"" if stream is None else b"\0%d" % stream)).hexdigest()[:16]
    return Path(index_folder) / f"{os.path.basename(path)[:100]}-{digest}{SUFFIX}"


def read(
    path: str | Path, index_folder: str | Path, stream: int | None = None, ranged: RangedFile | None = None
) -> PacketIndex | None:
    """The index kept for the video, of that stream of it, or None if there is none, it is damaged, or the video was
    changed."""
    path = Path(path)
    try:
        content = sidecar_path(path, index_folder, stream, ranged).read_bytes()
        if not content.startswith(MAGIC):
            return None
        start = len(MAGIC) + 8
        num_bytes, check = struct.unpack_from("<II", content, len(MAGIC))
        if check != zlib.crc32(memoryview(content)[start:]):
            return None
        header = json.loads(content[start : start + num_bytes])
        if header["video"] != stamp_of(path, ranged):
            return None
        packed = memoryview(content)[start + num_bytes :]
        plain: dict[str, Any] = {name: header[name] for name in PLAIN}
        arrays: dict[str, Any] = {name: _unpack(header["arrays"][name], packed, name) for name in ARRAYS}
        lengths = {name: header["arrays"][name]["length"] for name in header["arrays"]}
        alike = [ARRAYS[:2], ARRAYS[2:], *([SAMPLE_ARRAYS] if header["head"] is not None else [])]
        alike += [tuple(CLOCK_ARRAYS)] if header["has_clock"] else []
        if any(len({lengths[name] for name in names}) != 1 for names in alike) or lengths["pts_N"] < 1:
            return None
        samples: Callable[[], Samples] | None = None
        if header["head"] is not None:
            head, num_head_samples = base64.b64decode(header["head"], validate=True), int(header["num_head_samples"])

            @cache
            def unpacked() -> Samples:
                late = {name: _unpack(header["arrays"][name], packed, name) for name in SAMPLE_ARRAYS}
                return Samples(**late, head=head, num_head_samples=num_head_samples)

            samples = unpacked

        clock = None
        if header["has_clock"]:
            kept = {field: _unpack(header["arrays"][name], packed, name) for name, field in CLOCK_ARRAYS.items()}
            clock = PacketClock(**kept)
        return PacketIndex(
            path=path,
            time_base=Fraction(*header["time_base"]),
            orientation=Orientation(*header["orientation"]),
            samples=samples,
            clock=clock,
            ranged=ranged,
            **plain,
            **arrays,
        )
    except (OSError, ValueError, KeyError, TypeError, IndexError, struct.error, zlib.error, ZeroDivisionError):
        return None


def make(
    path: str | Path,
    index_folder: str | Path,
    read_index: Callable[[str | Path], PacketIndex],
    stream: int | None = None,
    ranged: RangedFile | None = None,
) -> PacketIndex:
    """Reads the index of the video, of that stream, and keeps it; the folder is made if need be, and an older sidecar
    is replaced in one step.

    Raises what `read_index` does; OSError if the folder cannot be written.
    """
    path = Path(path)
    video = (
        stamp_of(path, ranged) if ranged is not None or path.exists() else None
    )  # before it is read: a change meanwhile must be noticed
    index = read_index(path)
    _write(index, video, sidecar_path(path, index_folder, stream, ranged))
    return index


def _write(index: PacketIndex, video: list[int | str] | None, target: Path) -> None:
    samples = index.samples() if index.samples is not None else None
    arrays = {name: getattr(index, name) for name in ARRAYS}
    if samples is not None:
        arrays |= {name: getattr(samples, name) for name in SAMPLE_ARRAYS}
    if index.clock is not None:
        arrays |= {name: getattr(index.clock, field) for name, field in CLOCK_ARRAYS.items()}
    described: dict[str, Any] = {}
    parts: list[bytes] = []
    for name, values in arrays.items():
        described[name], part = _pack(values, DTYPES[name], sum(map(len, parts)))
        parts.append(part)
    packed = b"".join(parts)
    header = {
        "video": video,
        "time_base": [index.time_base.numerator, index.time_base.denominator],
        "orientation": list(index.orientation),
        "head": base64.b64encode(samples.head).decode() if samples is not None else None,
        "has_clock": index.clock is not None,
        "num_head_samples": samples.num_head_samples if samples is not None else 0,
        "arrays": described,
        **{name: getattr(index, name) for name in PLAIN},
    }
    encoded = json.dumps(header).encode()
    check = zlib.crc32(encoded + packed)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=SUFFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(MAGIC + struct.pack("<II", len(encoded), check) + encoded + packed)
        os.replace(beside, target)
    except BaseException:
        os.unlink(beside)
        raise


def _pack(values: NDArray[Any], dtype: str, at: int) -> tuple[dict[str, Any], bytes]:
    """How an array is kept, and its bytes. `at` is where these will begin."""
    about: dict[str, Any] = {"length": len(values), "at": at, "bytes": 0, "steps": None}
    if dtype == "|b1":
        part = zlib.compress(np.packbits(values).tobytes(), COMPRESSION)
        return {**about, "bytes": len(part)}, part
    numbers = values.astype(np.int64)
    first, steps = (int(numbers[0]) if len(numbers) else 0), np.diff(numbers)
    about["first"] = first
    if len(steps) == 0 or bool((steps == steps[0]).all()):
        return {**about, "step": int(steps[0]) if len(steps) else 0}, b""
    for kept in STEP_DTYPES:
        if bool((steps.astype(kept) == steps).all()):
            break
    part = zlib.compress(steps.astype(kept).tobytes(), COMPRESSION)
    return {**about, "bytes": len(part), "steps": kept}, part


def _unpack(about: dict[str, Any], packed: memoryview, name: str) -> NDArray[Any]:
    """Raises what `read` knows as damage."""
    length, at = int(about["length"]), int(about["at"])
    if not 0 <= length <= MAX_ARRAY_LENGTH:
        raise ValueError(f"{name} has {length} values")
    part = packed[at : at + int(about["bytes"])]
    dtype = DTYPES[name]
    if dtype == "|b1":
        bits = np.frombuffer(_inflate(part, (length + 7) // 8), np.uint8)
        return np.unpackbits(bits, count=length).astype(np.bool_)
    first = int(about["first"])
    if about["steps"] is None:
        return (first + int(about["step"]) * np.arange(length)).astype(dtype)
    if about["steps"] not in STEP_DTYPES:
        raise ValueError(f"{name} has steps of {about['steps']}")
    kept = np.dtype(about["steps"])
    if length < 1:
        raise ValueError(f"{name} has steps and no values")
    values = np.empty(length, dtype)
    values[0] = first
    np.cumsum(np.frombuffer(_inflate(part, (length - 1) * kept.itemsize), kept), out=values[1:])
    values[1:] += first
    return values


def _inflate(part: memoryview, num_bytes: int) -> bytes:
    inflater = zlib.decompressobj()
    content = inflater.decompress(part, num_bytes + 1)  # never more memory than the header states
    if len(content) != num_bytes:
        raise ValueError(f"{len(content)} bytes came out, {num_bytes} were kept")
    return content
