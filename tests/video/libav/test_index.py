"""The index against what the makers of the files know."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")

import av

from eagle_kernels.video import probe
from tests.video.make import (
    GOOD_NAMES,
    GoldenSet,
    draw,
    write_video,
)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_golden(golden: GoldenSet, name: str) -> None:
    want = golden.good[name]
    info = probe(want.path)
    assert info.path == want.path
    assert (info.codec, info.width_px, info.height_px) == (want.codec, want.width_px, want.height_px)
    assert (info.rotation_degrees, info.is_variable_frame_rate) == (want.rotation_degrees, want.is_variable)
    assert info.num_frames == len(want.numbers) == len(info.frame_times_seconds)
    # Matroska and FLV round to milliseconds.
    np.testing.assert_allclose(info.frame_times_seconds, want.times_seconds, atol=1.01e-3)
    assert info.frame_times_seconds[0] == 0.0
    assert info.duration_seconds == pytest.approx(want.times_seconds[-1] + 0.04, abs=2e-3)
    assert info.frames_per_second == pytest.approx(info.num_frames / info.duration_seconds)
    assert info.damage is None


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_times_are_those_of_a_sequential_decode(golden: GoldenSet, name: str) -> None:
    path = golden.good[name].path
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic)
        times = [float(frame.pts * stream.time_base) for frame in container.decode(stream)]
    np.testing.assert_allclose(probe(path).frame_times_seconds, np.array(times) - times[0], atol=1e-9)


@pytest.mark.parametrize("name", ["b_frames.mp4", "b_frames.mkv", "open_gop.mp4", "open_gop.ts"])
def test_key_frames_are_those_of_a_sequential_decode(golden: GoldenSet, name: str) -> None:
    path = golden.good[name].path
    with av.open(str(path)) as container:
        is_key = [frame.key_frame for frame in container.decode(container.streams.video[0])]
    found = probe(path).key_frames
    assert set(np.flatnonzero(is_key)) <= set(found.tolist())  # those of open groups are no key frames to the decoder
    assert found[0] == 0 and (np.diff(found) > 0).all() and len(found) < len(is_key)


def test_reads_a_string_path(golden: GoldenSet) -> None:
    assert probe(str(golden.good["one_frame.mp4"].path)).num_frames == 1


@pytest.mark.parametrize("name", ["long_gop.mp4", "b_frames.ts"])
def test_decodes_only_the_first_frame(golden: GoldenSet, name: str, fed: list[int]) -> None:
    assert probe(golden.good[name].path).num_frames == len(golden.good[name].numbers)
    assert 0 < len(fed) < 20, "the packets that a decoder reads ahead to reorder, and no more"


@pytest.mark.parametrize(
    ("fps", "want"), [(30, 30.0), (24000 / 1001, 23.976), (29.97, 29.97), (59.94, 59.94), (10, 10.0)]
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_an_even_rate_is_no_variable_rate(tmp_path: Path, fps: float, want: float, suffix: str) -> None:
    path = tmp_path / f"even.{suffix}"
    write_video(path, (draw(i) for i in range(40)), fps=fps, options={"preset": "ultrafast"})
    info = probe(path)
    assert not info.is_variable_frame_rate
    assert info.frames_per_second == pytest.approx(want, rel=2e-3)


def test_a_cover_is_no_video(golden: GoldenSet) -> None:
    path = golden.good["cover_first.mp4"].path
    with av.open(str(path)) as container:
        kinds = [bool(s.disposition & av.stream.Disposition.attached_pic) for s in container.streams.video]
    assert sorted(kinds) == [False, True], "the file should hold both"
    assert probe(path).width_px == 64


def test_cut_off_files_give_what_is_there(golden: GoldenSet) -> None:
    info = probe(golden.bad["truncated.mp4"])
    assert 30 < info.num_frames < 120
    assert info.damage == f"the file ends inside frame {info.num_frames} (in the order of storage)"
    info = probe(golden.bad["truncated.mkv"])
    assert 10 < info.num_frames < 60
    assert info.damage is not None
    assert "container states an end at 2.400 s" in info.damage
    info = probe(golden.bad["garbage_inside.ts"])
    assert info.damage is not None
    assert f"of {info.num_frames} frames are damaged" in info.damage
