"""The blocks of Matroska and WebM files: equal to a pass over the packets wherever they are read, and not read where
that is not plain; damage never does more than that.

Files come from libav's own muxer, and for what it does not write from the small one below (RFC 8794, RFC 9559).
"""

import io
import os
import random
import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")

import av
from PIL import Image

from eagle_kernels import native
from eagle_kernels.video import Video, VideoError, decode, probe, sidecar
from eagle_kernels.video import open as open_video
from eagle_kernels.video.budget import Budget
from eagle_kernels.video.containers import matroska
from eagle_kernels.video.info import PacketIndex, describe
from eagle_kernels.video.libav.index import index_from_packets, read_index
from eagle_kernels.video.libav.reader import Reader
from eagle_kernels.video.plan import plan
from tests.video.make import B_FRAMES, GOOD_NAMES, VPX, X265, GoldenSet, read, write_video

NAMES = [name for name in GOOD_NAMES if name.endswith((".mkv", ".webm"))]
ARRAYS = ("pts_N", "place_N", "key_pts_K", "key_seek_K", "key_place_K")
PLAIN = ("codec", "time_base", "last_duration", "scaled_width_px", "scaled_height_px", "orientation", "damage")
ALT_REF = {"b": "100k", "deadline": "realtime", "cpu-used": "5", "g": "128", "lag-in-frames": "25", "auto-alt-ref": "1"}
HEVC_B = {**X265, "x265-params": "log-level=error:keyint=24:bframes=4:scenecut=0"}
SVT = {"preset": "12", "crf": "25", "g": "30", "svtav1-params": "lp=1"}
MADE = {
    "h264.mkv": {"options": B_FRAMES, "audio_seconds": 3.0},
    "h264_live.mkv": {"options": B_FRAMES, "audio_seconds": 3.0, "muxer_options": {"live": "1"}},
    "h264_small_clusters.mkv": {"options": B_FRAMES, "muxer_options": {"cluster_time_limit": "100"}},
    "h264_cues_first.mkv": {"options": B_FRAMES, "muxer_options": {"cues_to_front": "1"}},
    "hevc.mkv": {"codec": "libx265", "options": HEVC_B, "audio_seconds": 3.0},
    "vp8.webm": {"codec": "libvpx", "options": VPX, "audio_seconds": 0.0},
    "vp9_alt_ref.webm": {"codec": "libvpx-vp9", "options": ALT_REF},
    "vp9.mkv": {"codec": "libvpx-vp9", "options": VPX, "audio_seconds": 3.0},
    "av1.mkv": {"codec": "libsvtav1", "options": SVT, "audio_seconds": 3.0},
    "av1.webm": {"codec": "libsvtav1", "options": SVT},
    "wide_pixels.mkv": {"options": B_FRAMES, "pixel_aspect": Fraction(3, 2)},
}


def no_look() -> None:
    """Nobody wants to stop."""


def slide(number: int) -> np.ndarray:
    """A picture that moves slowly: pictures refer to one another, and VP9 makes hidden ones."""
    rng = np.random.default_rng(0)
    wall_YX3 = rng.integers(0, 255, (10, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return wall_YX3[number // 16 : number // 16 + 48, number // 8 : number // 8 + 64]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("matroska")
    for name, how in MADE.items():
        write_video(folder / name, (slide(i) for i in range(75)), **how)
    return {name: folder / name for name in MADE}


def assert_same_index(path: Path) -> None:
    """Read from its blocks, and as a pass over the packets has it."""
    index, scanned = read_index(path), index_from_packets(path)
    assert index.samples is not None
    assert scanned.samples is None
    hidden = hidden_places(index)
    for name in ARRAYS:
        ours = getattr(index, name)
        if "place" in name:  # the scan does not count what is never shown
            ours = ours - np.searchsorted(hidden, ours)
        np.testing.assert_array_equal(ours, getattr(scanned, name), name)
    for name in PLAIN:
        assert getattr(index, name) == getattr(scanned, name), name


def hidden_places(index: PacketIndex) -> np.ndarray:
    assert index.samples is not None
    return np.setdiff1d(np.arange(len(index.samples().pts_D)), index.place_N)


def frames_of(index: PacketIndex, asked: Sequence[int]) -> list[np.ndarray]:
    info = describe(index)
    times = info.frame_times_seconds[asked].tolist()
    found = [rgb for _, rgb in Video(index, info).pictures(times, lambda picture, _: picture.rgb_YX3().numpy())]
    assert len(found) == len(asked)
    return found


def assert_same_frames(path: Path) -> None:
    index, scanned = read_index(path), index_from_packets(path)
    num_frames = len(index.pts_N)
    for asked in (list(range(num_frames)), [num_frames - 1, 0, num_frames // 2, num_frames // 3]):
        ours, theirs = frames_of(index, asked), frames_of(scanned, asked)
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_golden_files(golden: GoldenSet, name: str) -> None:
    assert_same_index(golden.good[name].path)
    assert_same_frames(golden.good[name].path)


@pytest.mark.parametrize("name", MADE)
def test_libav_files(made: dict[str, Path], name: str) -> None:
    assert_same_index(made[name])
    assert_same_frames(made[name])


@pytest.mark.parametrize(("name", "codec"), [("h264.mkv", "V_MPEG4/ISO/AVC"), ("hevc.mkv", "V_MPEGH/ISO/HEVC"),
    ("vp8.webm", "V_VP8"), ("vp9_alt_ref.webm", "V_VP9"), ("av1.mkv", "V_AV1")])  # fmt: skip
def test_key_flags_that_are_wrong_give_no_wrong_frame(
    made: dict[str, Path], tmp_path: Path, name: str, codec: str
) -> None:
    """Every block is marked as a place to start at; the decoder knows better, and starts earlier."""
    with av.open(str(made[name])) as container:
        record = container.streams.video[0].codec_context.extradata
    packets = [(pts, True, payload) for pts, _, payload in packets_of(made[name])]
    path = Writer(packets, codec=codec, private=record).write(tmp_path / "all_keys.mkv")
    index = read_index(path)
    assert len(index.key_pts_K) == 75
    true = frames_of(index_from_packets(made[name]), list(range(75)))
    for i in range(3, 75, 7):
        (frame,) = frames_of(index, [i])
        assert np.array_equal(frame, true[i])


@pytest.mark.parametrize("name", [name for name in GOOD_NAMES if not name.endswith((".mkv", ".webm"))])
def test_other_containers_have_none(golden: GoldenSet, name: str) -> None:
    assert matroska.read_tables(golden.good[name].path, no_look) is None


def packets_of(path: Path) -> list[tuple[int, bool, bytes]]:
    with av.open(str(path)) as container:
        return [(p.pts, p.is_keyframe, bytes(p)) for p in container.demux(video=0) if p.size]


@pytest.mark.parametrize("name", MADE)
def test_samples_lie_where_the_blocks_say(made: dict[str, Path], name: str) -> None:
    tables = matroska.read_tables(made[name], no_look)
    assert tables is not None
    content = made[name].read_bytes()
    places = zip(tables.samples.offset_D.tolist(), tables.samples.size_D.tolist(), strict=True)
    assert [content[at : at + size] for at, size in places] == [packet for _, _, packet in packets_of(made[name])]


def test_the_hidden_pictures_are_there(golden: GoldenSet, made: dict[str, Path]) -> None:
    """Otherwise the files above would not show what they should."""
    assert len(hidden_places(read_index(golden.good["vp8_hidden.webm"].path))) == 6
    superframes = [packet for _, _, packet in packets_of(made["vp9_alt_ref.webm"]) if packet[-1] & 0xE0 == 0xC0]
    assert len(superframes) > 0


# ---- files that libav does not write ---------------------------------------------------------------------------------


def element(kind: int, content: bytes, *, is_open: bool = False) -> bytes:
    """Of unknown size where `is_open`."""
    name = kind.to_bytes((kind.bit_length() + 7) // 8, "big")
    return name + ((1 << 56) + ((1 << 56) - 1 if is_open else len(content))).to_bytes(8, "big") + content


def number(kind: int, value: int) -> bytes:
    return element(kind, value.to_bytes(8, "big"))


VOID = element(0xEC, b"\0" * 300)
CRC = element(0xBF, b"\1\2\3\4")
_jpeg = io.BytesIO()
Image.new("RGB", (32, 32)).save(_jpeg, "JPEG")
_cover = element(0x466E, b"cover.jpg") + element(0x4660, b"image/jpeg") + element(0x465C, _jpeg.getvalue())
COVER = element(0x1941A469, element(0x61A7, _cover + number(0x46AE, 1)))
TURN = element(0x7670, number(0x7671, 0) + element(0x7675, struct.pack(">f", 90.0)))
SOUND = number(0xD7, 2) + number(0x83, 2) + element(0x86, b"A_PCM/INT/LIT") + element(0xE1, number(0x9F, 1))


def block(track: int, ticks: int, flags: int, payload: bytes) -> bytes:
    return (0x80 | track).to_bytes(1, "big") + struct.pack(">hB", ticks, flags) + payload


@dataclass
class Writer:
    """A Matroska file of given packets (pts in ticks, key flag, payload), 20 to a cluster."""

    packets: list[tuple[int, bool, bytes]]
    codec: str = "V_MPEG4/ISO/AVC"
    private: bytes | None = None
    scale: int = 1_000_000
    video: bytes = number(0xB0, 64) + number(0xBA, 48)
    in_ebml: bytes = element(0x4282, b"matroska")
    in_info: bytes = b""
    in_track: bytes = number(0x23E383, 40_000_000)
    in_tracks: bytes = element(0xAE, SOUND)
    in_segment: bytes = VOID
    in_cluster: bytes = b""
    after: bytes = element(0x1254C367, b"")
    open_segment: bool = False
    open_clusters: bool = False
    as_block: Callable[[int, int, bool, bytes], bytes] = field(
        default=lambda place, ticks, is_key, payload: element(0xA3, block(1, ticks, 0x80 * is_key, payload))
    )

    def write(self, path: Path) -> Path:
        private = b"" if self.private is None else element(0x63A2, self.private)
        track = number(0xD7, 1) + number(0x83, 1) + element(0x86, self.codec.encode()) + private
        track = element(0xAE, track + element(0xE0, self.video) + self.in_track)
        segment = self.in_segment + element(0x1549A966, number(0x2AD7B1, self.scale) + self.in_info)
        segment += element(0x1654AE6B, track + self.in_tracks)
        for start in range(0, len(self.packets), 20):
            some = self.packets[start : start + 20]
            base = some[0][0]
            blocks = [self.as_block(start + i, pts - base, *rest) for i, (pts, *rest) in enumerate(some)]
            cluster = number(0xE7, base) + self.in_cluster + b"".join(blocks)
            segment += element(0x1F43B675, cluster, is_open=self.open_clusters)
        segment += self.after
        path.write_bytes(element(0x1A45DFA3, self.in_ebml) + element(0x18538067, segment, is_open=self.open_segment))
        return path


def in_group(place: int, ticks: int, is_key: bool, payload: bytes, *, more: bytes = b"") -> bytes:
    """A BlockGroup as muxers write it for pictures with a duration of their own."""
    reference = b"" if is_key else element(0xFB, b"\xd8")
    return element(0xA0, more + element(0xA1, block(1, ticks, 0, payload)) + number(0x9B, 41) + reference)


def with_sound(place: int, ticks: int, is_key: bool, payload: bytes) -> bytes:
    """Sound before every picture: Xiph, fixed and EBML lacing, and in a group with what only sound has."""
    xiph, fixed, ebml = (0x82, b"\1\2"), (0x84, b"\1"), (0x86, b"\1\x82")
    flags, sizes = (xiph, fixed, ebml)[place % 3]
    laced = element(0xA3, block(2, ticks, flags, sizes + bytes(8)))
    grouped = element(0xA0, element(0xA1, block(2, ticks, 0, bytes(8))) + number(0x75A2, 7) + VOID)
    return laced + grouped + CRC + VOID + element(0xA3, block(1, ticks, 0x80 * is_key, payload))


@pytest.fixture(scope="module")
def h264(golden: GoldenSet) -> tuple[list[tuple[int, bool, bytes]], bytes]:
    """(packets, configuration record) with B pictures, at 25 a second."""
    path = golden.good["b_frames.mkv"].path
    with av.open(str(path)) as container:
        record = bytes(container.streams.video[0].codec_context.extradata)
    return packets_of(path), record


PLAIN_FILES: dict[str, dict[str, object]] = {
    "as libav writes": {},
    "segment of unknown size": {"open_segment": True},
    "clusters of unknown size": {"open_clusters": True, "open_segment": True},
    "unknown sizes, nothing after": {"open_clusters": True, "open_segment": True, "after": b""},
    "known segment, unknown clusters": {"open_clusters": True},
    "block groups": {"as_block": in_group},
    "sound between": {"as_block": with_sound},
    "fillers": {"in_cluster": CRC + VOID + number(0xA7, 5) + number(0xAB, 5), "after": VOID},
    "no rate": {"in_track": b""},
    "no rate, block groups": {"in_track": b"", "as_block": in_group},
    "a stated length": {"in_info": element(0x4489, struct.pack(">d", 2400.0))},
    "a stated length, too long": {"in_info": element(0x4489, struct.pack(">f", 9000.0))},
    "defaults in full": {"in_track": number(0x56AA, 0) + element(0x23314F, struct.pack(">f", 1.0))},
    "wide pixels": {"video": number(0xB0, 64) + number(0xBA, 48) + number(0x54B0, 96) + number(0x54BA, 48)},
    "a cover": {"in_segment": COVER},
    "turned": {"video": number(0xB0, 64) + number(0xBA, 48) + TURN},
    "WebM": {"in_ebml": element(0x4282, b"webm\0")},
}


@pytest.mark.parametrize("name", PLAIN_FILES)
def test_plain_files(h264: tuple[list[tuple[int, bool, bytes]], bytes], tmp_path: Path, name: str) -> None:
    packets, record = h264
    path = Writer(packets, private=record, **PLAIN_FILES[name]).write(tmp_path / "plain.mkv")
    assert_same_index(path)
    assert_same_frames(path)
    info = probe(path)
    assert (info.damage is not None) == (name == "a stated length, too long")
    assert (info.rotation_degrees != 0) == (name == "turned")


@pytest.mark.parametrize("scale", [1, 1_000, 100_000, 333_333, 1_000_000, 20_000_000, 1_000_000_000])
def test_clocks(h264: tuple[list[tuple[int, bool, bytes]], bytes], tmp_path: Path, scale: int) -> None:
    """Ticks of a nanosecond up to a second, and of no round part of one."""
    packets, record = h264
    ticks_a_frame = max(1, min(40_000_000 // scale, 1000))  # within a cluster's 16 bits
    late = [(7 + pts // 40 * ticks_a_frame, *rest) for pts, *rest in packets]
    rate = number(0x23E383, ticks_a_frame * scale)
    path = Writer(late, private=record, scale=scale, in_track=rate).write(tmp_path / "clock.mkv")
    assert_same_index(path)
    assert_same_frames(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"in_ebml": element(0x4282, b"matroshka")},
        {"in_ebml": b""},
        {"in_ebml": element(0x4282, b"matroska") + number(0x42F7, 2)},
        {"in_ebml": element(0x4282, b"matroska") + number(0x42F2, 5)},
        {"in_ebml": element(0x4282, b"matroska") + number(0x42F3, 9)},
        {"codec": "V_MPEG4/ISO/ASP"},
        {"codec": "V_MS/VFW/FOURCC"},
        {"private": None},
        {"scale": 0},
        {"scale": 1 << 31},
        {"in_info": element(0x4489, struct.pack(">d", float("nan")))},
        {"in_info": element(0x4489, b"\0\0\0")},
        {"in_info": number(0x2AD7B1, 7)},  # a second one
        {"in_track": number(0x56AA, 1)},  # CodecDelay
        {"in_track": element(0x23314F, struct.pack(">f", 2.0))},
        {"in_track": number(0x537F, 0)},  # TrackOffset
        {"in_track": element(0x6D80, b"")},  # ContentEncodings
        {"in_track": element(0xE2, b"")},  # TrackOperation
        {"in_tracks": element(0xAE, number(0xD7, 2) + number(0x83, 1))},  # a second video track
        {"in_tracks": element(0xAE, number(0xD7, 1) + number(0x83, 2))},  # one of the same number
        {"in_tracks": element(0xAE, b"", is_open=True)},
        {"in_segment": element(0x1549A966, b"")},
        {"in_segment": element(0x1254C367, b"", is_open=True)},
        {"in_segment": number(0x4DBB, 0)},
        {"in_cluster": number(0xE7, 5)},
        {"in_cluster": number(0x5854, 0)},
        {"in_cluster": element(0xEC, b"", is_open=True)},
        {"after": number(0x4DBB, 0)},
        {"after": element(0x1254C367, b"", is_open=True)},
        {"after": element(0x1A45DFA3, element(0x4282, b"matroska"))},  # another file
        {"after": b"\0\0\0\0"},
        {"after": b"\x1f\x43"},
        {"as_block": lambda place, ticks, is_key, payload: b""},
        {"as_block": lambda place, ticks, is_key, payload: element(0xA3, block(1, ticks, 0x80, b""))},
        {"as_block": lambda place, ticks, is_key, payload: element(0xA3, block(1, 0, 0x80, payload))},
        {"as_block": lambda place, ticks, is_key, payload: element(0xA3, block(1, ticks, 0, payload))},  # no key
        {"as_block": lambda place, ticks, is_key, payload: element(0xA3, block(1, ticks, 0x82, payload))},
        {"as_block": lambda place, ticks, is_key, payload: element(0xA3, block(1, ticks, 0x84, payload))},
        {"as_block": lambda place, ticks, is_key, payload: element(0xA3, block(1, ticks, 0x88, payload))},  # invisible
        {"as_block": lambda place, ticks, is_key, payload: element(0xA3, block(1, ticks - 1, 0x80, payload))},  # < 0
        {"as_block": lambda place, ticks, is_key, payload: element(0xA3, b"\0" + block(1, ticks, 0x80, payload))},
        {"as_block": lambda place, ticks, is_key, payload: element(0xA3, payload, is_open=True)},
        {"as_block": lambda *about: in_group(*about, more=number(0x75A2, 1))},  # DiscardPadding
        {"as_block": lambda *about: in_group(*about, more=element(0x75A1, b""))},  # BlockAdditions
        {"as_block": lambda *about: in_group(*about, more=element(0xA4, b""))},  # CodecState
        {"as_block": lambda *about: in_group(*about, more=element(0xA1, block(2, 0, 0, b"\0")))},  # a second block
        {"as_block": lambda *about: in_group(*about, more=element(0x9B, b"\xff" * 8))},
        {"as_block": lambda *about: in_group(*about, more=element(0x9B, b"\0" * 9))},
    ],
)  # fmt: skip
def test_what_is_not_plain_is_scanned(
    h264: tuple[list[tuple[int, bool, bytes]], bytes], tmp_path: Path, changed: dict[str, object]
) -> None:
    packets, record = h264
    path = Writer(packets, **{"private": record, **changed}).write(tmp_path / "changed.mkv")
    assert matroska.read_tables(path, no_look) is None


def test_headers_after_the_first_cluster_are_scanned(golden: GoldenSet, tmp_path: Path) -> None:
    cluster = element(0x1F43B675, number(0xE7, 0))
    path = tmp_path / "late.mkv"
    path.write_bytes(element(0x1A45DFA3, element(0x4282, b"webm")) + element(0x18538067, cluster))
    assert matroska.read_tables(path, no_look) is None


def test_vp8_pictures_that_are_hidden_at_the_time_of_the_next(golden: GoldenSet, tmp_path: Path) -> None:
    """As VP8's encoder puts them in two passes; the flag in the block's header may say so too."""
    hidden = golden.good["vp8_hidden.webm"]
    packets = packets_of(hidden.path)
    moved = [
        (pts if payload[0] & 0x10 else packets[i + 1][0], *rest, payload)
        for i, (pts, *rest, payload) in enumerate(packets)
    ]

    def flagged(place: int, ticks: int, is_key: bool, payload: bytes) -> bytes:
        return element(0xA3, block(1, ticks, 0x80 * is_key | (0 if payload[0] & 0x10 else 0x08), payload))

    for how in ({}, {"as_block": flagged}):
        path = Writer(moved, codec="V_VP8", **how).write(tmp_path / "hidden.webm")
        assert_same_index(path)
        assert_same_frames(path)
        assert len(hidden_places(read_index(path))) == 6
        times = probe(path).frame_times_seconds
        assert [read(f.rgb_YX3.numpy()) for f in decode(path, times.tolist())] == list(hidden.numbers)
        for index in (read_index(path), index_from_packets(path)):
            after = int(np.searchsorted(index.pts_N, packets[16][0]))  # the frame after a hidden one
            (group,) = plan(index, np.array([after]))
            with closing(Reader(index, Budget(path, 60))) as reader:
                assert [f.pts for f in reader.frames(group, drop=False)] == [packets[16][0]]
                assert reader.num_missed == 0


def test_the_head_alone_opens_a_decoder(made: dict[str, Path]) -> None:
    """One frame, and as many as fit in a block's lacing, of sizes that go up and down."""
    tables = matroska.read_tables(made["h264.mkv"], no_look)
    assert tables is not None
    content = made["h264.mkv"].read_bytes()
    places = list(zip(tables.samples.offset_D.tolist(), tables.samples.size_D.tolist()))[
        : tables.samples.num_head_samples
    ]
    assert tables.samples.num_head_samples == matroska.HEAD_FRAMES
    samples = [content[at : at + size] for at, size in places]
    with av.open(io.BytesIO(tables.samples.head + b"".join(samples))) as container:
        (stream,) = container.streams
        assert (stream.codec_context.width, stream.codec_context.height) == (64, 48)
        assert [bytes(p) for p in container.demux(stream) if p.size] == samples


def test_large_frames_shorten_the_head(tmp_path: Path, h264: tuple[list[tuple[int, bool, bytes]], bytes]) -> None:
    packets, record = h264
    filler = lambda num_bytes: struct.pack(">IB", num_bytes + 1, 12) + b"\xff" * num_bytes  # noqa: E731
    for sizes, num_head_samples in (((2_000_000,), 1), ((600_000, 300_000, 200_000), 2)):
        large = [(pts, key, filler(size) + data) for (pts, key, data), size in zip(packets, sizes)]
        path = Writer(large + packets[len(sizes) :], private=record).write(tmp_path / "large.mkv")
        tables = matroska.read_tables(path, no_look)
        assert tables is not None
        assert tables.samples.num_head_samples == num_head_samples
        assert_same_index(path)
        assert_same_frames(path)


def test_a_sidecar_keeps_it(made: dict[str, Path], tmp_path: Path) -> None:
    path = made["h264.mkv"]
    fresh, made_now = read_index(path), sidecar.make(path, tmp_path, read_index)
    kept = sidecar.read(path, tmp_path)
    assert kept is not None
    assert kept.samples is not None
    assert fresh.samples is not None
    for name in ("pts_D", "is_key_D", "offset_D", "size_D"):
        np.testing.assert_array_equal(getattr(kept.samples(), name), getattr(fresh.samples(), name))
    assert kept.samples().head == fresh.samples().head
    assert made_now.path == kept.path
    times = probe(path).frame_times_seconds.tolist()
    for a, b in zip(decode(path, times), open_video(path, index_folder=tmp_path).frames(times), strict=True):
        assert np.array_equal(a.rgb_YX3.numpy(), b.rgb_YX3.numpy())


# ---- damage ----------------------------------------------------------------------------------------------------------


def index_or_error(path: Path, read: Callable[[Path], PacketIndex]) -> PacketIndex | str:
    try:
        return read(path)
    except VideoError as error:
        return str(error)


def test_files_cut_short_are_scanned_as_before(
    h264: tuple[list[tuple[int, bool, bytes]], bytes], tmp_path: Path
) -> None:
    """At every 97th byte: what is said of the damage is what the packets say. (Between two blocks of a file that states
    no size nothing was lost that anyone could notice.)"""
    packets, record = h264
    path = tmp_path / "cut.mkv"
    num_read = 0
    for how in ({}, {"open_segment": True, "open_clusters": True}):
        whole = Writer(packets, private=record, **how).write(path).read_bytes()
        for end in range(1, len(whole), 97):
            path.write_bytes(whole[:end])
            num_read += matroska.read_tables(path, no_look) is not None
            ours, theirs = (
                index_or_error(path, read_index),
                index_or_error(path, index_from_packets),
            )
            if isinstance(theirs, str):
                assert ours == theirs
                continue
            assert isinstance(ours, PacketIndex)
            assert ours.damage == theirs.damage
            np.testing.assert_array_equal(ours.pts_N, theirs.pts_N)
    assert num_read < 5, "only where the cut is between two elements"


def blocks_of(content: bytes, track: int = 1, *, begin: int = 0) -> dict[str, np.ndarray]:
    """Those of a file in memory, checked to lie inside it."""
    fd = os.memfd_create("matroska")
    try:
        os.write(fd, content)
        blocks = native.load().matroska_blocks(fd, begin, len(content), track, False, no_look)
    finally:
        os.close(fd)
    counts = {len(values) for values in blocks.values()}
    assert len(counts) == 1
    assert (blocks["size"] > 0).all()
    assert (blocks["offset"] >= begin).all()
    assert (blocks["offset"] + blocks["size"] <= len(content)).all()
    assert (blocks["offset"][1:] >= (blocks["offset"] + blocks["size"])[:-1]).all()
    assert (blocks["timestamp"] >= 0).all()
    np.testing.assert_array_equal(blocks["first_byte"], [content[at] for at in blocks["offset"].tolist()])
    return blocks


def is_refused(content: bytes) -> bool:
    try:
        blocks_of(content)
    except ValueError as error:
        return str(error).startswith("matroska: ")
    return False


CLUSTER = element(
    0x1F43B675, number(0xE7, 9) + element(0xA3, block(1, -2, 0x80, b"abc")) + in_group(0, 3, False, b"de")
)


def test_blocks_as_numbers() -> None:
    blocks = blocks_of(CLUSTER + VOID + CLUSTER)
    assert blocks["timestamp"].tolist() == [7, 12, 7, 12]
    assert blocks["duration"].tolist() == [0, 41, 0, 41]
    assert blocks["is_key"].tolist() == [1, 0, 1, 0]
    assert blocks["size"].tolist() == [3, 2, 3, 2]
    assert bytes(blocks["first_byte"]) == b"adad"
    assert CLUSTER.index(b"abc") == blocks["offset"][0]
    for track in (0, 2, 127, 1 << 40):
        with pytest.raises(ValueError, match=f"track {track} has no block"):
            blocks_of(CLUSTER, track)


@pytest.mark.parametrize("num_bytes", range(1, 9))
def test_numbers_of_every_length(num_bytes: int) -> None:
    def wide(value: int) -> bytes:
        return (1 << 7 * num_bytes | value).to_bytes(num_bytes, "big")

    content = wide(5) + b"\0\1\x80payload"
    simple = b"\xa3" + wide(len(content)) + content
    cluster = b"\xe7" + wide(1) + b"\x02" + simple
    assert len(cluster) < 127
    blocks = blocks_of(b"\x1f\x43\xb6\x75" + wide(len(cluster)) + cluster, 5)
    assert (blocks["timestamp"].tolist(), blocks["size"].tolist()) == ([3], [7])
    assert blocks_of(b"\x1f\x43\xb6\x75" + wide((1 << 7 * num_bytes) - 1) + cluster, 5)["size"].tolist() == [7]


@pytest.mark.parametrize("payload_bytes", [1, 100, 8000, 9000, 200_000])
def test_blocks_of_every_size_are_found(payload_bytes: int) -> None:
    """Around the limit from where blocks are stepped over, and longer than the window."""
    sizes = [payload_bytes + i % 7 for i in range(60)]
    blocks = [element(0xA3, block(1, i, 0x80, bytes([i]) * size)) for i, size in enumerate(sizes)]
    found = blocks_of(element(0x1F43B675, number(0xE7, 0) + b"".join(blocks)))
    assert found["size"].tolist() == sizes
    assert found["first_byte"].tolist() == list(range(60))


def test_every_shorter_file_is_refused() -> None:
    for content in (CLUSTER, CLUSTER + VOID + CLUSTER):
        for end in range(len(content)):
            assert is_refused(content[:end]) == (end not in (len(CLUSTER), len(CLUSTER + VOID)))


@pytest.mark.parametrize(
    "content",
    [
        b"\0" * 64,
        b"\xff" * 64,
        b"\x1f\x43\xb6\x75" + b"\xff" + b"\0" * 32,  # an open cluster of nothing
        b"\x1f\x43\xb6\x75" + b"\x01" + b"\xff" * 6 + b"\xfe" + b"\xe7\x81\0",  # nearly 2**56 bytes
        b"\x1f\x43\xb6\x75\x80" * 1000,  # clusters without anything
        b"\x1f\x43\xb6\x75\xff" * 1000,
        element(0x1F43B675, number(0xE7, 1 << 62)),
        element(0x1F43B675, element(0xA3, block(1, 0, 0x80, b"a")) + number(0xE7, 0)),  # before its cluster's time
        element(0x1F43B675, number(0xE7, 0) + element(0xA3, b"")),
        element(0x1F43B675, number(0xE7, 0) + element(0xA3, b"\x81\0\0")),
        element(0x1F43B675, number(0xE7, 0) + element(0xA3, b"\x01")),
        element(0x1F43B675, number(0xE7, 0) + element(0xA0, b"\xa1\xff")),
        element(0x1F43B675, number(0xE7, 0) + element(0xA0, element(0xA0, element(0xA1, block(1, 0, 0, b"a"))))),
        element(0x1F43B675, CLUSTER),  # a cluster in a cluster
    ],
)
def test_hostile_bytes_are_refused(content: bytes) -> None:
    assert is_refused(content)


def test_nesting_is_not_followed() -> None:
    content = b""
    for _ in range(3000):
        content = element(0xA0, content)
    assert is_refused(element(0x1F43B675, number(0xE7, 0) + content))


@settings(deadline=None, max_examples=400)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    is_refused(content)
    is_refused(b"\x1f\x43\xb6\x75\xff\xe7\x81\x07" + content)


@settings(deadline=None, max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 2 * len(CLUSTER) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_damage_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    content = bytearray(CLUSTER + CLUSTER)
    for at, value in changes:
        content[at] = value
    is_refused(bytes(content))


def test_a_file_that_got_shorter_is_refused() -> None:
    fd = os.memfd_create("matroska")
    os.write(fd, CLUSTER)
    with pytest.raises(ValueError, match="got shorter"):
        native.load().matroska_blocks(fd, 0, len(CLUSTER) + 10, 1, False, no_look)
    os.close(fd)
    with pytest.raises(ValueError, match="cannot be read"):
        native.load().matroska_blocks(fd, 0, len(CLUSTER), 1, False, no_look)
    with pytest.raises(ValueError, match="no part of a file"):
        native.load().matroska_blocks(fd, 10, 9, 1, False, no_look)


def test_reading_looks_whether_to_stop_at_once_and_as_it_goes_on(tmp_path: Path) -> None:
    with (tmp_path / "long").open("w+b") as file:
        file.write(b"\xec\x80" * 16_000_000)  # empty elements, some 150 ms
        file.flush()
        for looks, stopping in [(1, VideoError("time")), (2, CancelledError())]:
            seen = []

            def look(looks: int = looks, stopping: Exception = stopping, seen: list[float] = seen) -> None:
                seen.append(time.monotonic())
                if len(seen) == looks:
                    raise stopping

            with pytest.raises(type(stopping)) as stopped:
                native.load().matroska_blocks(file.fileno(), 0, file.tell(), 1, False, look)
            assert stopped.value is stopping
            assert len(seen) == looks


def test_opening_ends_where_it_is_told_to(made: dict[str, Path]) -> None:
    with pytest.raises(VideoError, match="took more than time_limit_seconds"):
        matroska.read_tables(made["h264.mkv"], Budget(made["h264.mkv"], 1e-9).started().check)
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError):
        open_video(made["h264.mkv"], stop=stop)


def test_any_damage_to_a_file_ends_in_tables_that_agree_or_none(
    h264: tuple[list[tuple[int, bool, bytes]], bytes], tmp_path: Path
) -> None:
    """600 files with three damaged bytes each, half of them in the headers before the first cluster."""
    packets, record = h264
    path = tmp_path / "damaged.mkv"
    whole = Writer(packets, private=record, as_block=with_sound).write(path).read_bytes()
    clusters_at = whole.index(b"\x1f\x43\xb6\x75")
    rng = random.Random(0)
    num_read = 0
    for i in range(600):
        content = bytearray(whole)
        for _ in range(3):
            content[rng.randrange(clusters_at if i % 2 else len(content))] = rng.randrange(256)
        path.write_bytes(content)
        tables = matroska.read_tables(path, no_look)
        if tables is None:
            continue
        num_read += 1
        count = len(tables.samples.pts_D)
        for values in (
            tables.duration_D,
            tables.is_shown_D,
            tables.samples.is_key_D,
            tables.samples.offset_D,
            tables.samples.size_D,
        ):
            assert len(values) == count
        assert (tables.samples.offset_D + tables.samples.size_D <= len(whole)).all()
    assert 30 < num_read < 570, "some damage is harmless"
