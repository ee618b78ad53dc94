"""The tables of an MP4 or MOV file: when every sample is shown, where its bytes lie, where a decoder may start.

    tables = read_tables(Path("walk.mp4"))    # None where they do not apply
    tables.samples.pts_D[:3], tables.samples.offset_D[:3]     # times in ticks of tables.time_base; bytes

Dims    D samples in the order of storage (which is the order of decoding).
Source  ISO/IEC 14496-12: stts, ctts, stss, stsz, stz2, stsc, stco, co64, elst, sgpd, sbgp; 8.4 to 8.9.

The tables are used where they say everything and say it simply, and every count in them agrees; `read_tables` gives
None for all other files, and these are read packet by packet. Such files are: fragmented ones; more or less than one
video track; pictures encrypted, in another file or of several descriptions; an edit list that does more than delay the
picture and cut its beginning; two samples shown at one time, none at the start that a decoder can begin with, or one
that the file is too short for.

A player's clock is kept: the time of a sample is its composition time, less where the edit begins, plus the delay.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from eagle_kernels.video.info import Samples, Tables

FORMATS = (b"avc1", b"avc3", b"hvc1", b"hev1", b"vp09", b"av01")  # codecs of one picture a sample
FIRST_BOXES = (b"ftyp", b"moov", b"wide", b"mdat", b"free", b"skip")
MAX_MOOV_BYTES = 1 << 28  # read at once: a damaged size must not ask for memory
MAX_TOP_BOXES = 256  # looked at: a file of tiny boxes must not take for ever
BOXES_A_CHECK = 256  # of time and stop: some milliseconds of work
MAX_BOXES = 1 << 20  # looked at for refusals: ten days of fragments of a second
MOST_SOUND_SAMPLES = 16  # of QuickTime's compressed sound to a byte: its tables count waves
MAX_SAMPLES = 1 << 24  # 77 hours at 60 frames a second: a damaged count must not ask for memory
HEAD_SAMPLES = 16  # in the small file that opens a decoder: libav learns from them how far pictures are reordered
MAX_HEAD_BYTES = 1 << 20  # of these samples: large ones tell no more


Boxes = dict[bytes, list[memoryview]]


class _NotSimple(Exception):
    """The tables do not apply; the message says why."""


def read_tables(path: Path, opened: Callable[[], BinaryIO] | None = None) -> Tables | None:
    """The video track's tables, or None where the file is no MP4 or the rule above sends it to the packet scan (which
    says what is wrong with a file that cannot be read). opened: gives its bytes in another way than as a local file."""
    try:
        with open(path, "rb") if opened is None else opened() as file:
            return _read(file)
    except (_NotSimple, OSError, struct.error, ValueError, IndexError, OverflowError):  # a damaged table is no table
        return None


def _read(file: BinaryIO) -> Tables:
    file_bytes = file.seek(0, 2)
    moov = _moov(file, file_bytes)
    top = _children(moov)
    _require(b"mvex" not in top, "fragmented")
    tracks = [_children(trak) for trak in top[b"trak"]] if b"trak" in top else []
    video = [t for t in tracks if _one(_children(_one(t, b"mdia")), b"hdlr")[8:12] == b"vide"]
    _require(len(video) == 1, f"{len(video)} video tracks")
    (track,) = video
    mdia = _children(_one(track, b"mdia"))
    minf = _children(_one(mdia, b"minf"))
    stbl = _children(_one(minf, b"stbl"))
    stsd = _one(stbl, b"stsd")
    _require(_u32(stsd, 4) == 1 and stsd[12:16] in FORMATS, "sample descriptions")
    references = _one(_children(_one(minf, b"dinf")), b"dref")
    _require(_u32(references, 4) == 1 and _u32(references, 16) & 1 == 1, "pictures in another file")
    timescale, _ = _clock(_one(mdia, b"mdhd"))
    movie_timescale, _ = _clock(_one(top, b"mvhd"))
    _require(timescale > 0 and movie_timescale > 0, "no clock")

    size_D = _sizes(stbl)
    num_samples = len(size_D)
    _require(0 < num_samples <= min(MAX_SAMPLES, file_bytes) and int(size_D.min()) > 0, "sizes")
    duration_D = _runs(_one(stbl, b"stts"), ">u4", num_samples)
    pts_D = np.zeros(num_samples, np.int64)
    np.cumsum(duration_D[:-1], out=pts_D[1:])
    if b"ctts" in stbl:
        pts_D += _runs(_one(stbl, b"ctts"), ">i4", num_samples)
    offset_D = _offsets(stbl, size_D)
    _require(int(offset_D.min()) > 0 and int((offset_D + size_D).max()) <= file_bytes, "offsets")
    is_key_D = _keys(stbl, num_samples)
    delay, start, end = _edit(track, timescale, movie_timescale)
    is_shown_D = pts_D >= start
    _require(bool(is_key_D[0]) and pts_D[0] == pts_D.min(), "the first sample is no place to start")
    _require(int(pts_D.max()) < end, "an edit cuts the end away")
    _require(bool(is_shown_D.any()), "nothing is shown")
    steps = np.diff(np.sort(pts_D, kind="stable"))
    _require(len(steps) == 0 or int(steps.min()) > 0, "two samples at one time")
    num_head_samples = max(1, int((np.cumsum(size_D[:HEAD_SAMPLES], dtype=np.int64) <= MAX_HEAD_BYTES).sum()))
    return Tables(
        stream=tracks.index(track),
        time_base=Fraction(1, timescale),
        samples=Samples(
            pts_D=pts_D + (delay - start),
            is_key_D=is_key_D,
            offset_D=offset_D,
            size_D=size_D,
            head=_head(top, track, mdia, minf, stsd, size_D[:num_head_samples].tolist()),
            num_head_samples=num_head_samples,
        ),
        duration_D=duration_D,
        is_shown_D=is_shown_D,
        stated_seconds=None,  # the tables tell the end of each track
    )


def refusal(path: Path, check: Callable[[], None], opened: Callable[[], BinaryIO] | None = None) -> str | None:
    """Why the file must not be given to any reader: it is a still picture in a container for video, or its tables state
    more samples than it has bytes for, and a reader would take memory without bounds. None for all other files, be
    they no MP4 at all. check: called between boxes; what it raises passes. opened: as for `read_tables`."""
    try:
        with open(path, "rb") if opened is None else opened() as file:
            return _refusal(file, check)
    except (OSError, struct.error, _NotSimple):  # damaged: others will say so
        return None


def _refusal(file: BinaryIO, check: Callable[[], None]) -> str | None:
    file_bytes = file.seek(0, 2)
    names: set[bytes] = set()
    num_in_fragments = 0
    for top_number, (name, at, end) in enumerate(islice(_top_boxes(file, file_bytes), MAX_BOXES)):
        if top_number % BOXES_A_CHECK == 0:
            check()
        names.add(name)
        if name not in (b"moov", b"moof") or end - at > MAX_MOOV_BYTES:
            continue
        file.seek(at)
        content = memoryview(file.read(end - at))
        for number, (kind, box) in enumerate(_boxes(content)):
            if number % BOXES_A_CHECK == BOXES_A_CHECK - 1:
                check()
            if kind == b"trak" and _is_too_much(_children(box), file_bytes):
                return f"its tables state more samples than its {file_bytes} bytes can hold: they overlap."
            if kind == b"traf":
                num_in_fragments += sum(_u32(trun, 4) for trun in _children(box).get(b"trun", ()))
        if num_in_fragments > file_bytes:
            return f"its fragments state {num_in_fragments} samples, its {file_bytes} bytes cannot hold them."
    if b"meta" in names and not names & {b"moov", b"moof"}:
        return "is a still picture (HEIF: .heic, .avif), no video. Give it as an image."
    return None


def _is_too_much(track: Boxes, file_bytes: int) -> bool:
    mdia = _children(_one(track, b"mdia"))
    stbl = _children(_one(_children(_one(mdia, b"minf")), b"stbl"))
    if b"stsz" in stbl:
        same, count = _u32(_one(stbl, b"stsz"), 4), _u32(_one(stbl, b"stsz"), 8)
    else:
        same, count = 0, _u32(_one(stbl, b"stz2"), 8)
    if _one(mdia, b"hdlr")[8:12] == b"vide":
        return max(1, same) * count > file_bytes
    return count > MOST_SOUND_SAMPLES * file_bytes


def _top_boxes(file: BinaryIO, file_bytes: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, where its content begins, where it ends) of each box of a file that begins as an MP4 does."""
    at = 0
    while at + 8 <= file_bytes:
        file.seek(at)
        head = file.read(16)
        num_bytes, name = struct.unpack_from(">I4s", head)
        head_bytes = 8
        if num_bytes == 1:
            (num_bytes,) = struct.unpack_from(">Q", head, 8)
            head_bytes = 16
        elif num_bytes == 0:
            num_bytes = file_bytes - at
        if num_bytes < head_bytes or (at == 0 and name not in FIRST_BOXES):
            return
        yield name, at + head_bytes, min(at + num_bytes, file_bytes)
        at += num_bytes


def _require(condition: bool, why_not: str) -> None:
    if not condition:
        raise _NotSimple(why_not)


def _moov(file: BinaryIO, file_bytes: int) -> memoryview:
    for number, (name, at, end) in enumerate(_top_boxes(file, file_bytes)):
        _require(number < MAX_TOP_BOXES, "too many boxes")
        _require(name != b"moof", "fragmented")
        if name == b"moov":
            _require(end - at <= MAX_MOOV_BYTES, "moov too large")
            file.seek(at)
            content = memoryview(file.read(end - at))
            return content
    raise _NotSimple("no moov")


def _boxes(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    at = 0
    while at + 8 <= len(content):
        num_bytes, name = struct.unpack_from(">I4s", content, at)
        head_bytes = 8
        if num_bytes == 1:
            (num_bytes,) = struct.unpack_from(">Q", content, at + 8)
            head_bytes = 16
        elif num_bytes == 0:
            num_bytes = len(content) - at
        _require(head_bytes <= num_bytes <= len(content) - at, "a box reaches out of its parent")
        yield name, content[at + head_bytes : at + num_bytes]
        at += num_bytes


def _children(content: memoryview) -> Boxes:
    found: Boxes = {}
    for name, child in _boxes(content):
        found.setdefault(name, []).append(child)
    return found


def _one(boxes: Boxes, name: bytes) -> memoryview:
    _require(len(boxes.get(name, ())) == 1, f"not one {name!r}")
    return boxes[name][0]


def _u32(box: memoryview, at: int) -> int:
    return int(struct.unpack_from(">I", box, at)[0])


def _clock(header: memoryview) -> tuple[int, int]:
    """(timescale, duration) of an mdhd or mvhd."""
    timescale, duration = struct.unpack_from(">IQ" if header[0] else ">II", header, 20 if header[0] else 12)
    return timescale, duration


def _array(box: memoryview, at: int, dtype: str, count: int) -> NDArray[np.int64]:
    return np.frombuffer(box, dtype, count, at)


def _runs(box: memoryview, dtype: str, num_samples: int) -> NDArray[np.int64]:
    """stts, ctts: pairs of (number of samples, value), one value a sample."""
    pairs = _array(box, 8, ">u4", 2 * _u32(box, 4)).reshape(-1, 2)
    counts = pairs[:, 0].astype(np.int64)
    _require(int(counts.sum()) == num_samples, "stts or ctts tells another number of samples than stsz")
    return np.repeat(np.ascontiguousarray(pairs[:, 1]).view(dtype).astype(np.int64), counts)


def _sizes(stbl: Boxes) -> NDArray[np.int32]:
    if b"stsz" in stbl:
        box = _one(stbl, b"stsz")
        same, count = _u32(box, 4), _u32(box, 8)
        _require(count <= MAX_SAMPLES, "too many samples")
        sizes = np.full(count, same, np.int64) if same else _array(box, 12, ">u4", count).astype(np.int64)
    else:
        box = _one(stbl, b"stz2")
        bits, count = box[7], _u32(box, 8)
        _require(bits in (4, 8, 16) and count <= MAX_SAMPLES, "stz2")
        if bits == 4:
            halves = _array(box, 12, "u1", (count + 1) // 2)
            sizes = np.stack([halves >> 4, halves & 15], axis=1).reshape(-1)[:count].astype(np.int64)
        else:
            sizes = _array(box, 12, f">u{bits // 8}", count).astype(np.int64)
    _require(len(sizes) > 0 and int(sizes.max()) < 1 << 31, "sizes")
    return sizes.astype(np.int32)


def _offsets(stbl: Boxes, size_D: NDArray[np.int32]) -> NDArray[np.int64]:
    """Where each sample begins: its chunk's place, and the sizes of those before it in the chunk."""
    wide = b"co64" in stbl
    box = _one(stbl, b"co64" if wide else b"stco")
    chunk_offsets = _array(box, 8, ">u8" if wide else ">u4", _u32(box, 4)).astype(np.int64)
    box = _one(stbl, b"stsc")
    entries = _array(box, 8, ">u4", 3 * _u32(box, 4)).reshape(-1, 3).astype(np.int64)
    firsts = np.append(entries[:, 0], len(chunk_offsets) + 1)
    _require(len(entries) > 0 and firsts[0] == 1 and bool((np.diff(firsts) > 0).all()), "stsc")
    _require(bool((entries[:, 2] == 1).all()), "stsc names other sample descriptions")
    _require(int(entries[:, 1].min()) > 0 and int(entries[:, 1].max()) <= MAX_SAMPLES, "stsc")
    per_chunk = np.repeat(entries[:, 1], np.diff(firsts))
    _require(int(per_chunk.sum()) == len(size_D), "stsc tells another number of samples than stsz")
    first_of_chunk = np.cumsum(per_chunk) - per_chunk
    before_D = np.cumsum(size_D, dtype=np.int64) - size_D
    return before_D + np.repeat(chunk_offsets - before_D[first_of_chunk], per_chunk)


def _keys(stbl: Boxes, num_samples: int) -> NDArray[np.bool_]:
    """stss (without one every sample is a sync sample), and the sample groups that mark open random access points."""
    if b"stss" not in stbl:
        return np.ones(num_samples, np.bool_)
    is_key_D = np.zeros(num_samples, np.bool_)
    box = _one(stbl, b"stss")
    numbers = _array(box, 8, ">u4", _u32(box, 4)).astype(np.int64)
    _require(len(numbers) == 0 or (int(numbers.min()) >= 1 and int(numbers.max()) <= num_samples), "stss")
    is_key_D[numbers - 1] = True
    for group in stbl.get(b"sbgp", ()):
        if bytes(group[4:8]) not in (b"rap ", b"sync"):
            continue
        at = 12 if group[0] else 8
        runs = _array(group, at + 4, ">u4", 2 * _u32(group, at)).reshape(-1, 2).astype(np.int64)
        _require(int(runs[:, 0].sum()) <= num_samples, "sbgp")
        marked = np.repeat(runs[:, 1] > 0, runs[:, 0])  # 0: in no group
        is_key_D[: len(marked)] |= marked
    return is_key_D


def _edit(track: Boxes, timescale: int, movie_timescale: int) -> tuple[int, int, int]:
    """(delay, start, end) in ticks: the track's media from `start` to `end` is shown, `delay` after the movie's 0."""
    if b"edts" not in track:
        return 0, 0, 1 << 62
    box = _one(_children(_one(track, b"edts")), b"elst")
    count = _u32(box, 4)
    row = ">Qqi" if box[0] else ">Iii"
    _require(count <= 2, "a longer edit list")
    delay = 0
    edits = [struct.unpack_from(row, box, 8 + i * struct.calcsize(row)) for i in range(count)]
    if edits and edits[0][1] == -1:
        delay = round(edits.pop(0)[0] * timescale / movie_timescale)
    _require(len(edits) == 1 and edits[0][1] >= 0 and edits[0][2] == 1 << 16, "an unusual edit list")
    duration, start, _ = edits[0]
    _require(duration > 0, "an edit of no length")
    return delay, start, start + duration * timescale // movie_timescale


def _box(name: bytes, *parts: bytes | memoryview) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", len(content) + 8, name) + content


def _head(
    top: Boxes,
    track: Boxes,
    mdia: Boxes,
    minf: Boxes,
    stsd: memoryview,
    sizes: list[int],
) -> bytes:
    """The track's own headers and tables of its first samples, up to where their bytes go. libav opens such a file in a
    fraction of the time that the tables of a long one take it."""

    def moov(first_byte: int) -> bytes:
        tables = (
            _box(b"stsd", stsd),
            _box(b"stts", struct.pack(">4I", 0, 1, len(sizes), 1)),
            _box(b"stsc", struct.pack(">5I", 0, 1, 1, len(sizes), 1)),
            _box(b"stsz", struct.pack(f">{3 + len(sizes)}I", 0, 0, len(sizes), *sizes)),
            _box(b"stco", struct.pack(">3I", 0, 1, first_byte)),
        )
        about_media = [_box(name, box) for name, boxes in minf.items() if name != b"stbl" for box in boxes]
        media = [_box(name, _one(mdia, name)) for name in (b"mdhd", b"hdlr")]
        media.append(_box(b"minf", *about_media, _box(b"stbl", *tables)))
        trak = _box(b"trak", _box(b"tkhd", _one(track, b"tkhd")), _box(b"mdia", *media))
        return _box(b"moov", _box(b"mvhd", _one(top, b"mvhd")), trak)

    ftyp = _box(b"ftyp", b"isom", b"\0\0\2\0", b"isom")
    head = ftyp + moov(len(ftyp) + len(moov(0)) + 8)
    return head + struct.pack(">I4s", 8 + sum(sizes), b"mdat")
