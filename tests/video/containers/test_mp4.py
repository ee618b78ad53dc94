"""The tables of MP4 files: equal to a pass over the packets wherever they apply, and not used where they do not."""

import random
import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")

import av

from eagle_kernels.video import VideoError, decode, probe
from eagle_kernels.video.containers import mp4
from eagle_kernels.video.libav.index import index_from_packets, read_index
from tests.video.make import GOOD_NAMES, GoldenSet, draw, read, write_video

WITHOUT_TABLES = {"fragmented.mp4"}


@pytest.mark.parametrize("name", [name for name in GOOD_NAMES if name.endswith(".mp4")])
def test_tables_say_what_the_packets_say(golden: GoldenSet, name: str) -> None:
    path = golden.good[name].path
    index, scanned = read_index(path), index_from_packets(path)
    assert (index.samples is None) == (name in WITHOUT_TABLES)
    for field in ("pts_N", "place_N", "key_pts_K", "key_seek_K", "key_place_K"):
        ours, theirs = getattr(index, field), getattr(scanned, field)
        if name == "edit_list.mp4":  # the scan does not see what the edit list hides: one key frame, ten others
            ours = ours[1:] if field.startswith("key") else ours
            ours = ours - 10 if "place" in field else ours
        np.testing.assert_array_equal(ours, theirs, field)
    for field in (
        "codec",
        "time_base",
        "last_duration",
        "scaled_width_px",
        "scaled_height_px",
        "orientation",
        "damage",
    ):
        assert getattr(index, field) == getattr(scanned, field), field


@pytest.mark.parametrize("name", [name for name in GOOD_NAMES if not name.endswith(".mp4")])
def test_other_containers_have_none(golden: GoldenSet, name: str) -> None:
    assert mp4.read_tables(golden.good[name].path) is None


def test_samples_lie_where_the_tables_say(golden: GoldenSet) -> None:
    for name in ("b_frames.mp4", "cover_first.mp4", "hevc_open_gop.mp4", "av1.mp4"):
        path = golden.good[name].path
        tables = mp4.read_tables(path)
        assert tables is not None
        content = path.read_bytes()
        with av.open(str(path)) as container:
            stream = next(s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic)
            packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
        places = zip(tables.samples.offset_D.tolist(), tables.samples.size_D.tolist())
        assert [content[at : at + size] for at, size in places] == packets


def box_at(content: bytes, name: bytes) -> int:
    """Where the payload of the first box of that name begins."""
    return content.index(name) + 4


@pytest.mark.parametrize("start", [0, 1, 511, 512, 513, 3000, 15361, 40000])
def test_an_edit_list_cuts_where_libav_cuts(golden: GoldenSet, tmp_path: Path, start: int) -> None:
    """`start` in ticks of 1 / 12800 s: on frames, between them, and in the second group of pictures."""
    content = bytearray(golden.good["b_frames.mp4"].path.read_bytes())
    at = box_at(content, b"elst")
    assert struct.unpack_from(">I", content, at + 4) == (1,)
    struct.pack_into(">i", content, at + 12, start)
    path = tmp_path / "cut.mp4"
    path.write_bytes(content)
    index, scanned = read_index(path), index_from_packets(path)
    assert (index.samples is None) == (start <= 512), "then the edit ends before the last frame"
    np.testing.assert_array_equal(np.diff(index.pts_N), np.diff(scanned.pts_N))
    assert len(index.pts_N) == len(scanned.pts_N)
    times = probe(path).frame_times_seconds
    shown = [i for i in range(120) if start <= 1024 + 512 * i < start + 61440]
    assert [read(f.rgb_YX3.numpy()) for f in decode(path, times.tolist())] == shown


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        (b"stsz", 8, 119),  # one sample fewer than stts
        (b"stsz", 8, 1 << 31),
        (b"stts", 4, 1 << 30),
        (b"stts", 8, 121),
        (b"ctts", 8, 7777),
        (b"stss", 8, 0),  # samples count from 1
        (b"stss", 8, 121),
        (b"stss", 8, 2),  # the first is none
        (b"stsc", 8, 2),
        (b"stsc", 12, 0),
        (b"stsc", 16, 2),
        (b"stco", 8, 1 << 31),  # beyond the end of the file
        (b"stco", 8, 0),
        (b"mdhd", 12, 0),
        (b"elst", 4, 3),
        (b"elst", 8, 0),
        (b"elst", 8, 4000),  # the last frames are cut away
        (b"elst", 16, 2 << 16),  # twice as fast
        (b"dref", 16, 0),
        (b"stsd", 4, 2),
        (b"stsd", 12, 0x656E6376),  # encv: encrypted
    ],
)
def test_what_is_not_simple_is_scanned(golden: GoldenSet, tmp_path: Path, name: bytes, at: int, value: int) -> None:
    content = bytearray(golden.good["b_frames.mp4"].path.read_bytes())
    struct.pack_into(">I", content, box_at(content, name) + at, value)
    path = tmp_path / "changed.mp4"
    path.write_bytes(content)
    assert mp4.read_tables(path) is None


def test_any_damage_to_the_headers_ends_in_tables_that_agree_or_none(golden: GoldenSet, tmp_path: Path) -> None:
    """What is left of 300 files with three damaged bytes each: no exception, and counts that fit each other."""
    whole = golden.good["b_frames.mp4"].path.read_bytes()
    start = whole.index(b"moov")
    path = tmp_path / "damaged.mp4"
    rng = random.Random(0)
    num_none = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(3):
            content[rng.randrange(start, len(content))] = rng.randrange(256)
        path.write_bytes(content)
        tables = mp4.read_tables(path)
        if tables is None:
            num_none += 1
            continue
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
    assert 300 - num_none > 5, "some damage is harmless"


def test_a_file_that_is_cut_short_is_scanned(golden: GoldenSet) -> None:
    assert mp4.read_tables(golden.bad["truncated.mp4"]) is None


def boxes(*parts: tuple[bytes, bytes]) -> dict[bytes, list[memoryview]]:
    return {name: [memoryview(content)] for name, content in parts}


def test_sizes_in_few_bits() -> None:
    packed = {4: bytes([0x12, 0x30]), 8: bytes([1, 2, 3]), 16: struct.pack(">3H", 1, 2, 3)}
    for bits, content in packed.items():
        stz2 = struct.pack(">4xIBB", 0, 0, 0)[:7] + bytes([bits]) + struct.pack(">I", 3) + content
        assert mp4._sizes(boxes((b"stz2", stz2))).tolist() == [1, 2, 3]
    same = struct.pack(">4xII", 7, 3)
    assert mp4._sizes(boxes((b"stsz", same))).tolist() == [7, 7, 7]


def test_chunks_of_several_samples() -> None:
    stsc = struct.pack(">4xI6I", 2, 1, 2, 1, 3, 1, 1)  # chunks 1 and 2 hold two samples, from 3 on one
    for name, row in ((b"stco", ">4xI3I"), (b"co64", ">4xI3Q")):
        found = mp4._offsets(
            boxes((b"stsc", stsc), (name, struct.pack(row, 3, 100, 1000, 50))), np.array([10, 20, 30, 40, 50], np.int32)
        )
        assert found.tolist() == [100, 110, 1000, 1030, 50]


def test_open_random_access_points_are_places_to_start() -> None:
    stss = struct.pack(">4xII", 1, 1)
    for kind in (b"rap ", b"sync"):
        version_0 = struct.pack(">4x4sI6I", kind, 3, 2, 0, 1, 1, 2, 0)
        version_1 = b"\1" + struct.pack(">3x4s4xI6I", kind, 3, 2, 0, 1, 1, 2, 0)
        for sbgp in (version_0, version_1):
            assert mp4._keys(boxes((b"stss", stss), (b"sbgp", sbgp)), 6).tolist() == [True, False, True] + [False] * 3
    assert mp4._keys(boxes((b"stss", stss), (b"sbgp", struct.pack(">4x4sI2I", b"roll", 1, 2, 1))), 2).sum() == 1
    assert mp4._keys({}, 3).all()


def test_wide_boxes_and_tables_at_the_front(tmp_path: Path) -> None:
    """Sizes of 64 bits, and `moov` before the pictures."""
    path = tmp_path / "front.mp4"
    options = {"movflags": "faststart"}
    write_video(path, (draw(i) for i in range(30)), fps=Fraction(30000, 1001), muxer_options=options)
    content = path.read_bytes()
    at = content.index(b"mdat") - 4
    (size,) = struct.unpack_from(">I", content, at)
    moved = content[:at] + struct.pack(">I4sQ", 1, b"mdat", size + 8) + content[at + 8 :]
    stco = box_at(moved, b"stco")
    (num_chunks,) = struct.unpack_from(">I", moved, stco + 4)
    rewritten = bytearray(moved)
    for i in range(num_chunks):
        (offset,) = struct.unpack_from(">I", moved, stco + 8 + 4 * i)
        struct.pack_into(">I", rewritten, stco + 8 + 4 * i, offset + 8)
    path.write_bytes(rewritten)
    assert mp4.read_tables(path) is not None
    assert [read(f.rgb_YX3.numpy()) for f in decode(path, probe(path).frame_times_seconds.tolist())] == list(range(30))


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, name) + content


def test_a_still_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "photo.heic"
    meta = box(b"meta", bytes(4) + box(b"hdlr", bytes(8) + b"pict" + bytes(13)))
    for brand in (b"heic", b"mif1", b"avif"):
        path.write_bytes(box(b"ftyp", brand + bytes(4) + brand) + meta + box(b"mdat", bytes(100)))
        with pytest.raises(VideoError, match=r"photo\.heic: is a still picture .* Give it as an image"):
            read_index(path)


@pytest.mark.parametrize("same_bytes", [0, 1000])
def test_samples_that_overlap_are_refused(golden: GoldenSet, tmp_path: Path, same_bytes: int) -> None:
    """A table of a few bytes may state any number of samples; what reads it would take memory for each."""
    content = bytearray(golden.good["b_frames.mp4"].path.read_bytes())
    at = content.index(b"stsz") + 8
    struct.pack_into(">II", content, at, same_bytes, 1 << 24)
    path = tmp_path / "many.mp4"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(VideoError, match=r"many\.mp4: its tables state more samples than its \d+ bytes can hold"):
        read_index(path)
    assert tracemalloc.get_traced_memory()[1] < 10 * len(content) + (1 << 20)
    tracemalloc.stop()


def test_fragments_that_state_too_many_samples_are_refused(golden: GoldenSet, tmp_path: Path) -> None:
    content = bytearray(golden.good["fragmented.mp4"].path.read_bytes())
    struct.pack_into(">I", content, content.index(b"trun") + 8, 1 << 24)
    (tmp_path / "many.mp4").write_bytes(content)
    with pytest.raises(VideoError, match=r"its fragments state \d+ samples"):
        read_index(tmp_path / "many.mp4")
