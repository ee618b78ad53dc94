"""open, choose, decode: the frame shown at a time, on every file of the golden set; order, laziness and errors."""

import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")


from eagle_kernels import video
from eagle_kernels.video import VideoError, decode, probe
from eagle_kernels.video.libav import drops, index
from tests.video.make import (
    GOOD_NAMES,
    GoldenSet,
    draw,
    numbers,
    read,
    write_video,
)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_every_frame_at_its_own_time(golden: GoldenSet, name: str) -> None:
    want = golden.good[name]
    info = probe(want.path)
    frames = list(decode(want.path, info.frame_times_seconds.tolist()))
    assert [frame.timestamp_seconds for frame in frames] == info.frame_times_seconds.tolist()
    assert numbers(iter(frames)) == list(want.numbers)
    for frame in frames:
        assert frame.rgb_YX3.shape == (want.height_px, want.width_px, 3)
        assert frame.rgb_YX3.dtype == torch.uint8
        assert frame.rgb_YX3.is_contiguous()


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_any_order_gives_the_pixels_of_a_sequential_decode(golden: GoldenSet, name: str) -> None:
    """To the byte: a frame decoded from the wrong seek point shows the right number in slightly wrong pixels."""
    path = golden.good[name].path
    times = probe(path).frame_times_seconds.tolist()
    in_order = [frame.rgb_YX3 for frame in decode(path, times)]
    rng = random.Random(0)
    order = [rng.randrange(len(times)) for _ in range(25)]
    order += [*sorted(order[:10]), 0, len(times) - 1, 0, 0]
    for i, frame in zip(order, decode(path, [times[i] for i in order]), strict=True):
        assert torch.equal(frame.rgb_YX3, in_order[i]), f"frame {i} of {name}"


@pytest.mark.parametrize("name", ["b_frames.mp4", "variable.mkv", "late_start.mp4", "edit_list.mp4"])
def test_a_time_means_the_last_frame_at_or_before_it(golden: GoldenSet, name: str) -> None:
    want = golden.good[name]
    info = probe(want.path)
    times = info.frame_times_seconds
    ends = np.append(times[1:], info.duration_seconds)
    asked, meant = [], []
    for share in (0.0, 0.01, 0.5, 0.99):
        asked += (times + share * (ends - times)).tolist()
        meant += want.numbers
    assert numbers(decode(want.path, asked)) == meant


@pytest.mark.parametrize("asked", [-0.001, 4.801, 1e9, float("nan"), float("inf")])
def test_a_time_outside_the_file_raises_at_once(golden: GoldenSet, asked: float) -> None:
    path = golden.good["b_frames.mp4"].path
    with pytest.raises(VideoError, match=rf"b_frames\.mp4: asked for the frame at {asked:.6f} s; .* 0 to 4\.800000 s"):
        decode(path, [0.0, asked])


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "rgb24"])
def test_repeats_are_frames_of_their_own(tmp_path: Path, pix_fmt: str) -> None:
    path = tmp_path / "two.mov"
    pictures = [draw(i, 128, 96) for i in range(30)]  # 128: without padding
    write_video(path, pictures, codec="libx264" if pix_fmt == "yuv420p" else "png", pix_fmt=pix_fmt)
    first, second = decode(path, [1.0, 1.0])
    assert torch.equal(first.rgb_YX3, second.rgb_YX3)
    first.rgb_YX3.zero_()
    assert second.rgb_YX3.any()


def test_no_times_no_frames(golden: GoldenSet) -> None:
    assert list(decode(golden.good["b_frames.mp4"].path, [])) == []


def test_lazy(golden: GoldenSet, fed: list[int]) -> None:
    path = golden.good["long_gop.mp4"].path
    times = probe(path).frame_times_seconds.tolist()
    fed.clear()
    frames = decode(path, times)
    assert read(next(frames).rgb_YX3.numpy()) == 0
    assert len(fed) < 40, "one frame of 300 was taken"
    frames.close()  # type: ignore[attr-defined]


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
    path = tmp_path / "large.mp4"
    write_video(path, (draw(i, 640, 480) for i in range(60)), options={"preset": "ultrafast"})
    times = probe(path).frame_times_seconds.tolist()
    tracemalloc.start()
    for _ in decode(path, times):
        pass
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 * 640 * 480 * 3, "60 frames were given, one held at a time"


def test_what_cannot_be_opened_raises_at_once(golden: GoldenSet, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="the file is empty"):
        decode(golden.bad["empty.mp4"], [0.0])
    with pytest.raises(VideoError, match="there is no such file"):
        decode(tmp_path / "absent.mp4", [0.0])


def test_seek_modes_give_true_times(golden: GoldenSet, fed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    path = golden.good["b_frames.mp4"].path  # key frames every 0.96 s
    asked = [0.1, 0.9, 2.0, 4.7]
    drops._verdicts.clear()
    monkeypatch.setattr(drops, "WORTH_A_CHECK", 0)
    film = video.open(path)
    times = film.choose(asked, seek="keyframe")
    frames = list(film.frames(times))
    assert [frame.timestamp_seconds for frame in frames] == times.tolist()
    assert len(fed) <= 5, "the first frame to describe the file, four key frames, and no check"
    assert [frame.timestamp_seconds for frame in frames] == pytest.approx([0.0, 0.96, 1.92, 3.84])
    assert [read(frame.rgb_YX3.numpy()) for frame in frames] == [0, 24, 48, 96]
    asked = np.linspace(0.2, 4.7, 5).tolist()
    fed.clear()
    list(decode(path, asked))
    num_exact = len(fed)
    fed.clear()
    times = film.choose(asked, seek="tolerance", tolerance=0.4)
    assert fed == [], "choosing decodes nothing"
    frames = list(film.frames(times))
    assert [frame.timestamp_seconds for frame in frames] == times.tolist()
    assert len(fed) < num_exact / 3
    assert all(abs(f.timestamp_seconds - t) <= 0.4 * 1.125 + 1e-9 for f, t in zip(frames, asked, strict=True))
    assert [read(f.rgb_YX3.numpy()) for f in frames] == [round(f.timestamp_seconds * 25) for f in frames]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, "num_workers is 0; needs at least 1"),
        ({"num_workers": "2"}, "num_workers is 2; needs at least 1"),
        ({"time_limit_seconds": "5"}, "time_limit_seconds is 5; needs more than 0, or None"),
        ({"time_limit_seconds": 0.0}, "time_limit_seconds is 0.0; needs more than 0, or None"),
    ],
)
def test_refuses_options_at_once(golden: GoldenSet, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(golden.good["one_frame.mp4"].path, [0.0], **options)


def test_without_pyav_the_package_imports_and_the_call_says_what_to_install() -> None:
    """What needs no file (the model, its configs, the types) works without the extra `video`."""
    code = """
import sys
sys.modules["av"] = None  # as if not installed
from eagle_kernels.video import decode, probe
for call in (lambda: probe("x.mp4"), lambda: decode("x.mp4", [0.0])):
    try:
        call()
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ['eagle_kernels.video needs PyAV: `pip install "eagle-kernels[video]"`.'] * 2


@pytest.mark.parametrize("name", ["b_frames.mp4", "variable.mkv", "edit_list.mp4", "late_start.mkv", "open_gop.ts"])
def test_a_frame_is_named_by_its_own_time(golden: GoldenSet, name: str) -> None:
    film = video.open(golden.good[name].path)
    own = film.info.frame_times_seconds
    chosen = film.choose(own)
    assert chosen.dtype == np.float64
    assert chosen.tolist() == own.tolist()
    ends = np.append(own[1:], film.info.duration_seconds)
    assert film.choose(own + 0.5 * (ends - own)).tolist() == own.tolist()
    for seek in ("keyframe", "tolerance"):
        times = film.choose(np.linspace(0, film.info.duration_seconds, 7), seek=seek)  # type: ignore[arg-type]
        assert set(times.tolist()) <= set(own.tolist())
        assert film.choose(times).tolist() == times.tolist()
        assert [frame.timestamp_seconds for frame in film.frames(times)] == times.tolist()


@pytest.mark.parametrize("asked", [-0.001, 4.801, float("nan")])
def test_choosing_refuses_times_outside_the_file(golden: GoldenSet, asked: float) -> None:
    with pytest.raises(VideoError, match=r"b_frames\.mp4: asked for the frame at"):
        video.open(golden.good["b_frames.mp4"].path).choose([0.0, asked])


def test_an_open_video_reads_its_index_once(golden: GoldenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    path = golden.good["b_frames.mp4"].path
    film = video.open(path)
    monkeypatch.setattr(index, "read_index", lambda path: pytest.fail("was read anew"))
    assert numbers(film.frames(film.choose([1.0, 2.0]))) == [25, 50]
    assert numbers(decode(film, [3.0])) == [75]
    assert [time for time, _ in film.pictures([1.0], lambda picture, m: m + 1)] == [1.0]


def test_opening_is_probing(golden: GoldenSet) -> None:
    path = golden.good["turned_90.mp4"].path
    film, info = video.open(path), probe(path)
    assert (film.info.width_px, film.info.height_px) == (info.width_px, info.height_px)
    assert film.info.frame_times_seconds.tolist() == info.frame_times_seconds.tolist()
