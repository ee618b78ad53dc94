"""What is kept beside a data set comes back the same, and damage or a changed video is noticed."""

import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")

from eagle_kernels.video import VideoError, decode, probe, sidecar
from eagle_kernels.video import open as open_video
from eagle_kernels.video.info import PacketIndex
from eagle_kernels.video.libav import index as libav_index
from tests.video.make import GOOD_NAMES, GoldenSet, read

ARRAYS = ("pts_N", "place_N", "key_pts_K", "key_seek_K", "key_place_K")
REST = ("path", "codec", "time_base", "last_duration", "scaled_width_px", "scaled_height_px", "orientation", "damage")


def assert_same(kept: PacketIndex | None, fresh: PacketIndex) -> None:
    assert kept is not None
    for name in ARRAYS:
        assert getattr(kept, name).dtype == getattr(fresh, name).dtype, name
        np.testing.assert_array_equal(getattr(kept, name), getattr(fresh, name), name)
    for name in REST:
        assert getattr(kept, name) == getattr(fresh, name), name
    assert (kept.samples is None) == (fresh.samples is None)
    if kept.samples is not None and fresh.samples is not None:
        ours, theirs = kept.samples(), fresh.samples()
        for name in ("pts_D", "is_key_D", "offset_D", "size_D"):
            assert getattr(ours, name).dtype == getattr(theirs, name).dtype, name
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), name)
        assert (ours.head, ours.num_head_samples) == (theirs.head, theirs.num_head_samples)


def test_comes_back_the_same(golden: GoldenSet, tmp_path: Path) -> None:
    for path in [golden.good[name].path for name in GOOD_NAMES] + [golden.bad["garbage_inside.ts"]]:
        made = sidecar.make(path, tmp_path, libav_index.read_index)
        assert_same(sidecar.read(path, tmp_path), made)


def test_used_instead_of_the_file(golden: GoldenSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = golden.good["b_frames.mp4"].path
    folder = tmp_path / "made" / "if_need_be"
    first = probe(path, index_folder=folder)
    assert [p.name for p in folder.iterdir()] == [sidecar.sidecar_path(path, folder).name]
    monkeypatch.setattr(libav_index, "read_index", lambda path: pytest.fail("was read anew"))
    again = probe(path, index_folder=folder)
    np.testing.assert_array_equal(again.frame_times_seconds, first.frame_times_seconds)
    assert (again.duration_seconds, again.width_px) == (first.duration_seconds, first.width_px)
    assert [read(f.rgb_YX3.numpy()) for f in open_video(path, index_folder=folder).frames([3.0, 1.0])] == [75, 25]


def test_nothing_is_written_unasked(golden: GoldenSet) -> None:
    folder = golden.good["b_frames.mp4"].path.parent
    before = sorted(folder.iterdir())
    probe(folder / "b_frames.mp4")
    list(decode(folder / "b_frames.mp4", [1.0]))
    assert sorted(folder.iterdir()) == before


def test_a_changed_video_is_read_anew(golden: GoldenSet, tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(golden.good["b_frames.mp4"].path.read_bytes())
    assert probe(path, index_folder=tmp_path).num_frames == 120
    path.write_bytes(golden.good["long_gop.mp4"].path.read_bytes())
    assert probe(path, index_folder=tmp_path).num_frames == 300
    status = path.stat()
    assert sidecar.read(path, tmp_path) is not None
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert sidecar.read(path, tmp_path) is None


def test_videos_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    assert sidecar.sidecar_path("/a/video.mp4", tmp_path) != sidecar.sidecar_path("/b/video.mp4", tmp_path)


def test_any_damage_is_noticed_or_harmless(golden: GoldenSet, tmp_path: Path) -> None:
    path = golden.good["variable.mp4"].path
    made = sidecar.make(path, tmp_path, libav_index.read_index)
    kept = sidecar.sidecar_path(path, tmp_path)
    whole = kept.read_bytes()
    for content in (b"", whole[:10], whole[:-1], whole[: len(whole) // 2], b"x" + whole[1:], whole + b"x"):
        kept.write_bytes(content)
        assert sidecar.read(path, tmp_path) is None
    rng = random.Random(0)
    for _ in range(400):  # the header too: of an even frame rate it is all there is
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        kept.write_bytes(damaged)
        assert sidecar.read(path, tmp_path) is None
    kept.write_bytes(b"no sidecar")
    assert probe(path, index_folder=tmp_path).num_frames == 60
    assert_same(sidecar.read(path, tmp_path), made)


def test_a_header_cannot_ask_for_memory(golden: GoldenSet, tmp_path: Path) -> None:
    path = golden.good["b_frames.mp4"].path
    sidecar.make(path, tmp_path, libav_index.read_index)
    kept = sidecar.sidecar_path(path, tmp_path)
    whole = kept.read_bytes()
    start = len(sidecar.MAGIC) + 8
    for length in (b"120", b"999", b"-99"):
        content = whole[start:].replace(b'"length": 120', b'"length": ' + length)
        check = zlib.crc32(content).to_bytes(4, "little")
        kept.write_bytes(whole[: start - 4] + check + content)
        assert (sidecar.read(path, tmp_path) is None) == (length != b"120")


def test_a_bad_video_leaves_nothing(golden: GoldenSet, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="the file is empty"):
        probe(golden.bad["empty.mp4"], index_folder=tmp_path)
    with pytest.raises(VideoError, match="there is no such file"):
        probe(tmp_path / "absent.mp4", index_folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error(golden: GoldenSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        probe(golden.good["b_frames.mp4"].path, index_folder=tmp_path / "file")
