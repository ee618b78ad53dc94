"""The blocks of a Matroska or WebM file: when every frame is shown, where its bytes lie, where a decoder may start.

    tables = read_tables(Path("walk.webm"), budget.check)   # None where the file is not plain
    tables.samples.pts_D[:3], tables.samples.offset_D[:3]     # times in ticks of tables.time_base; bytes

Dims    D blocks in the order of storage (which is the order of decoding).
Source  RFC 8794 (EBML), RFC 9559 (Matroska).

Cues name some key frames and no other frame's time, so every block's header is read: csrc/matroska.cpp steps from block
to block. `read_tables` gives None for files that are not plain, and these are read packet by packet: more or less than
one video track; codecs but those below; tracks that are encrypted, compressed, delayed, scaled in time or made of
others; frames laced or with additions; a size that reaches out of the file or an element where it does not belong; two
frames shown at one time, or none at the start that a decoder can begin with.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np

from eagle_kernels import native
from eagle_kernels.video.info import Samples, Tables, VideoError

AVC, HEVC, VP8, VP9, AV1 = "V_MPEG4/ISO/AVC", "V_MPEGH/ISO/HEVC", "V_VP8", "V_VP9", "V_AV1"
CODECS = (AVC, HEVC, VP8, VP9, AV1)
WITH_RECORD = (AVC, HEVC)  # these cannot be decoded without their configuration record
VP8_SHOW_FRAME = 0x10  # of a frame's first byte; RFC 6386, 9.1
VP9_SHOWN = 0b1010  # show_existing_frame and show_frame, of a frame's first byte; profile 3 has them a bit later
SUPERFRAME = 0b110  # of its last byte; VP9, annex B
MAX_TOP_ELEMENTS = 64  # before the first cluster: a file of tiny elements must not take for ever
MAX_HEADER_BYTES = 1 << 20  # read at once: a damaged size must not ask for memory
HEAD_FRAMES = 16  # in the small file that opens a decoder: libav learns from them how far pictures are reordered
MAX_HEAD_BYTES = 1 << 20  # of these frames: large ones tell no more

EBML, SEGMENT, INFO, TRACKS, CLUSTER = 0x1A45DFA3, 0x18538067, 0x1549A966, 0x1654AE6B, 0x1F43B675
SEEK_HEAD, CUES, CHAPTERS, TAGS, ATTACHMENTS = 0x114D9B74, 0x1C53BB6B, 0x1043A770, 0x1254C367, 0x1941A469
VOID, CRC32 = 0xEC, 0xBF
READ_VERSION, MAX_ID_LENGTH, MAX_SIZE_LENGTH, DOC_TYPE = 0x42F7, 0x42F2, 0x42F3, 0x4282
TIMESTAMP_SCALE, DURATION = 0x2AD7B1, 0x4489
TRACK_ENTRY, TRACK_NUMBER, TRACK_TYPE, CODEC_ID, CODEC_PRIVATE = 0xAE, 0xD7, 0x83, 0x86, 0x63A2
DEFAULT_DURATION, TRACK_SCALE, TRACK_OFFSET, CODEC_DELAY = 0x23E383, 0x23314F, 0x537F, 0x56AA
ENCODINGS, OPERATION = 0x6D80, 0xE2
TIMESTAMP, SIMPLE_BLOCK = 0xE7, 0xA3
VIDEO_TRACK = 1
KEY_AND_EBML_LACING = 0x86

Elements = dict[int, list[memoryview]]


class _NotPlain(Exception):
    """The blocks are not read here; the message says why."""


def read_tables(path: Path, look: Callable[[], None]) -> Tables | None:
    """The video track's blocks, or None where the file is no Matroska or the rule above sends it to the packet scan
    (which says what is wrong with a file that cannot be read).

    Raises what `look` does, which is called now and then: a VideoError, or nothing that a damaged header raises too.
    ImportError if eagle_kernels._native is not built.
    """
    try:
        with open(path, "rb") as file:
            return _read(file, look)
    except VideoError:
        raise
    except (_NotPlain, OSError, struct.error, ValueError, IndexError, OverflowError):  # a damaged header is no header
        return None


def _read(file: BinaryIO, look: Callable[[], None]) -> Tables:
    file_bytes = file.seek(0, 2)
    kind, ebml_at, ebml_bytes = _element(file, 0)
    _require(kind == EBML, "no Matroska")
    ebml = _content(file, ebml_at, _known(ebml_bytes))
    _check_kind(_children(ebml))
    kind, segment_at, segment_bytes = _element(file, ebml_at + len(ebml))
    _require(kind == SEGMENT, "no segment")
    _require(segment_bytes is None or segment_at + segment_bytes == file_bytes, "cut short, or followed by something")
    info, tracks, clusters_at = _headers(file, segment_at)

    about = _children(info)
    scale = _unsigned(about, TIMESTAMP_SCALE, 1_000_000)
    _require(0 < scale < 1 << 31, "no clock")
    time_base = Fraction(scale, 1_000_000_000)
    duration = _float(about, DURATION, 0.0)
    _require(math.isfinite(duration) and duration >= 0, "no duration")
    entries = _children(tracks).get(TRACK_ENTRY, [])
    fields = [_children(entry) for entry in entries]
    numbers = [_unsigned(track, TRACK_NUMBER, 0) for track in fields]
    video = [i for i, track in enumerate(fields) if _unsigned(track, TRACK_TYPE, 0) == VIDEO_TRACK]
    _require(len(video) == 1 and numbers.count(numbers[video[0]]) == 1, f"{len(video)} video tracks")
    number, entry, track = numbers[video[0]], entries[video[0]], fields[video[0]]
    codec = bytes(_one(track, CODEC_ID)).rstrip(b"\0").decode("ascii")
    _require(codec in CODECS and (codec not in WITH_RECORD or CODEC_PRIVATE in track), "codec")
    _require(not track.keys() & {TRACK_OFFSET, ENCODINGS, OPERATION}, "offset, encoded, or made of others")
    _require(_float(track, TRACK_SCALE, 1.0) == 1.0 and _unsigned(track, CODEC_DELAY, 0) == 0, "scaled or delayed")

    blocks = native.load().matroska_blocks(file.fileno(), clusters_at, file_bytes, number, codec == VP8, look)
    pts_D, size_D, is_key_D = blocks["timestamp"], blocks["size"], blocks["is_key"].astype(np.bool_)
    duration_D = blocks["duration"]
    duration_D[duration_D == 0] = _unsigned(track, DEFAULT_DURATION, 0) // scale
    is_shown_D = blocks["first_byte"] & VP8_SHOW_FRAME != 0 if codec == VP8 else np.ones(len(pts_D), np.bool_)
    if codec == VP9:  # one that may not be shown, as a superframe's first: else a packet of its own, which libav knows
        maybe = np.flatnonzero(blocks["first_byte"] & VP9_SHOWN == 0)
        ends = (blocks["offset"] + size_D - 1)[maybe].tolist()
        for at in ends:
            look()
            _require(os.pread(file.fileno(), 1, at)[0] >> 5 == SUPERFRAME, "a frame that is not shown")
    _require(bool(is_key_D[0]) and pts_D[0] == pts_D.min(), "the first block is no place to start")
    _require(bool((is_shown_D | ~is_key_D).all()), "a key frame that is not shown")
    steps = np.diff(np.sort(pts_D[is_shown_D], kind="stable"))
    _require(len(steps) == 0 or int(steps.min()) > 0, "two frames at one time")
    num_head_samples = max(1, int((np.cumsum(size_D[:HEAD_FRAMES], dtype=np.int64) <= MAX_HEAD_BYTES).sum()))
    return Tables(
        stream=video[0],
        time_base=time_base,
        samples=Samples(
            pts_D=pts_D,
            is_key_D=is_key_D,
            offset_D=blocks["offset"],
            size_D=size_D,
            head=_head(ebml, info, entry, number, size_D[:num_head_samples].tolist()),
            num_head_samples=num_head_samples,
        ),
        duration_D=duration_D,
        is_shown_D=is_shown_D,
        stated_seconds=duration * float(time_base) or None,
    )


def _require(condition: bool, why_not: str) -> None:
    if not condition:
        raise _NotPlain(why_not)


def _element(file: BinaryIO, at: int) -> tuple[int, int, int | None]:
    """(ID, where the content begins, its bytes or None if unknown) of the element at that byte."""
    file.seek(at)
    head = file.read(12)
    kind, id_bytes, num_bytes, size_bytes = _parse(head, 0)
    return kind, at + id_bytes + size_bytes, num_bytes


def _parse(content: bytes | memoryview, at: int) -> tuple[int, int, int | None, int]:
    """(ID, its bytes, the content's bytes or None if unknown, the bytes of that number)."""
    id_bytes = 9 - content[at].bit_length()
    size_at = at + id_bytes
    size_bytes = 9 - content[size_at].bit_length()
    _require(id_bytes <= 4 and size_bytes <= 8 and size_at + size_bytes <= len(content), "no element")
    unknown = (1 << 7 * size_bytes) - 1
    num_bytes = int.from_bytes(content[size_at : size_at + size_bytes], "big") & unknown
    kind = int.from_bytes(content[at:size_at], "big")
    return kind, id_bytes, None if num_bytes == unknown else num_bytes, size_bytes


def _content(file: BinaryIO, at: int, num_bytes: int) -> memoryview:
    _require(num_bytes <= MAX_HEADER_BYTES, "headers too large")
    file.seek(at)
    content = file.read(num_bytes)
    _require(len(content) == num_bytes, "cut short")
    return memoryview(content)


def _headers(file: BinaryIO, at: int) -> tuple[memoryview, memoryview, int]:
    """The content of Info and of Tracks, and where the first cluster begins."""
    found: dict[int, memoryview] = {}
    for _ in range(MAX_TOP_ELEMENTS):
        kind, content_at, num_bytes = _element(file, at)
        if kind == CLUSTER:
            _require(len(found) == 2, "a cluster before the headers")
            return found[INFO], found[TRACKS], at
        _require(kind in (SEEK_HEAD, INFO, TRACKS, CUES, CHAPTERS, TAGS, ATTACHMENTS, VOID, CRC32), "unknown element")
        _require(kind not in found, "headers are there twice")
        if kind in (INFO, TRACKS):
            found[kind] = _content(file, content_at, _known(num_bytes))
        at = content_at + _known(num_bytes)
    raise _NotPlain("no cluster")


def _children(content: memoryview) -> Elements:
    found: Elements = {}
    at = 0
    while at < len(content):
        kind, id_bytes, size, size_bytes = _parse(content, at)
        at, num_bytes = at + id_bytes + size_bytes, _known(size)
        _require(num_bytes <= len(content) - at, "an element reaches out of its parent")
        found.setdefault(kind, []).append(content[at : at + num_bytes])
        at += num_bytes
    return found


def _known(num_bytes: int | None) -> int:
    if num_bytes is None:
        raise _NotPlain("an element of unknown size")
    return num_bytes


def _check_kind(header: Elements) -> None:
    kind = bytes(_one(header, DOC_TYPE)).rstrip(b"\0")
    _require(kind in (b"matroska", b"webm") and _unsigned(header, READ_VERSION, 1) == 1, "no Matroska")
    _require(_unsigned(header, MAX_ID_LENGTH, 4) <= 4 and _unsigned(header, MAX_SIZE_LENGTH, 8) <= 8, "wide elements")


def _one(elements: Elements, kind: int) -> memoryview:
    _require(len(elements.get(kind, ())) == 1, f"not one {kind:#x}")
    return elements[kind][0]


def _unsigned(elements: Elements, kind: int, default: int) -> int:
    if kind not in elements:
        return default
    content = _one(elements, kind)
    _require(len(content) <= 8, "a number too long")
    return int.from_bytes(content, "big")


def _float(elements: Elements, kind: int, default: float) -> float:
    if kind not in elements:
        return default
    content = _one(elements, kind)
    return float(struct.unpack(">f" if len(content) == 4 else ">d", content)[0])


def _number(number: int, num_bytes: int) -> bytes:
    """With its length marker; RFC 8794, 4."""
    return (1 << 7 * num_bytes | number).to_bytes(num_bytes, "big")


def _write(kind: int, content: bytes | memoryview, more_bytes: int = 0) -> bytes:
    """An element; `more_bytes` of its content will follow."""
    name = kind.to_bytes((kind.bit_length() + 7) // 8, "big")
    return name + _number(len(content) + more_bytes, 8) + content


def _head(ebml: memoryview, info: memoryview, entry: memoryview, number: int, sizes: list[int]) -> bytes:
    """The file's own headers with this track alone, up to where the bytes of its first frames go: all of them laced in
    one block (RFC 9559, 10.3.3), so that nothing need stand between them."""
    laces = _number(sizes[0], 4) + b"".join(
        _number(size - before + (1 << 27) - 1, 4) for before, size in itertools.pairwise(sizes[:-1])
    )
    block = _number(number, 8) + struct.pack(">hBB", 0, KEY_AND_EBML_LACING, len(sizes) - 1) + laces
    if len(sizes) == 1:
        block = _number(number, 8) + struct.pack(">hB", 0, KEY_AND_EBML_LACING & 0x80)
    block = _write(SIMPLE_BLOCK, block, sum(sizes))
    cluster = _write(CLUSTER, _write(TIMESTAMP, b"\0") + block, sum(sizes))
    segment = _write(INFO, info) + _write(TRACKS, _write(TRACK_ENTRY, entry)) + cluster
    return _write(EBML, ebml) + _write(SEGMENT, segment, sum(sizes))
