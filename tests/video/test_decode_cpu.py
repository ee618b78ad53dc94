"""The reader itself: where it starts, how pictures are turned, and what it leaves open."""

import itertools
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")

import av

from eagle_kernels.video import VideoError, decode, decode_cpu, mp4, probe
from eagle_kernels.video.probe import load
from tests.video.make import X264, X265, GoldenSet, draw, read, write_video


@pytest.mark.parametrize(("transpose", "flip_y", "flip_x"), list(itertools.product([False, True], repeat=3)))
def test_rotation_in_degrees_is_what_turns_the_picture(transpose: bool, flip_y: bool, flip_x: bool) -> None:
    stored_YX = np.arange(6).reshape(2, 3)
    shown_YX = stored_YX.T if transpose else stored_YX
    shown_YX = shown_YX[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
    degrees = decode_cpu._rotation_degrees(decode_cpu.Orientation(transpose, flip_y, flip_x))
    clockwise = -degrees // 90
    upright, mirrored = np.rot90(stored_YX, clockwise), np.rot90(stored_YX[:, ::-1], clockwise)
    assert np.array_equal(shown_YX, upright) or np.array_equal(shown_YX, mirrored)


def test_reads_one_group_of_pictures_too_early_rather_than_a_wrong_frame(
    golden: GoldenSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A demuxer that always lands behind the frame wanted: the frame comes from the start of the file."""
    path = golden.good["b_frames.mp4"].path
    times = probe(path).frame_times_seconds
    real = decode_cpu._Reader._seek
    landed = []

    def too_late(reader: decode_cpu._Reader, timestamp: int) -> bool:
        landed.append(timestamp)
        return real(reader, int(reader._index.key_seek_K[-1]))

    monkeypatch.setattr(decode_cpu._Reader, "_seek", too_late)
    assert [read(f.rgb_YX3.numpy()) for f in decode(path, times[[60, 80, 30]])] == [60, 80, 30]
    assert landed


def test_an_unseekable_container_is_read_from_its_start(golden: GoldenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    path = golden.good["b_frames.mp4"].path
    monkeypatch.setattr(decode_cpu._Reader, "_seek", lambda reader, timestamp: False)
    assert [read(f.rgb_YX3.numpy()) for f in decode(path, [3.0, 1.0])] == [75, 25]


def test_a_file_that_shrinks_while_it_is_read_ends_in_an_error(golden: GoldenSet, tmp_path: Path) -> None:
    path = tmp_path / "shrinks.mp4"
    path.write_bytes(golden.good["b_frames.mp4"].path.read_bytes())
    frames = decode(path, [0.0, 4.0])
    assert read(next(frames).rgb_YX3.numpy()) == 0
    os.truncate(path, 2000)
    with pytest.raises(VideoError, match=r"frame 100 at 4\.000000 s is damaged or missing"):
        next(frames)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_an_empty_sample_stands_for_a_dropped_frame_and_is_no_end(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "dropped.mp4"
    options = {**X265, "x265-params": "log-level=error:keyint=1"} if codec == "libx265" else {**X264, "g": "1"}
    write_video(path, (draw(i) for i in range(20)), codec=codec, options=options)
    tables = mp4.read_tables(path)
    assert tables is not None
    content, place = bytearray(path.read_bytes()), 10
    begin, size = int(tables.offset_D[place]), int(tables.size_D[place])
    end = int(tables.offset_D[-1] + tables.size_D[-1])
    content[begin:end] = content[begin + size : end] + bytes(size)
    struct.pack_into(">I", content, content.find(b"stsz") + 16 + 4 * place, 0)
    path.write_bytes(content)
    info = probe(path)
    assert (info.num_frames, info.duration_seconds) == (19, pytest.approx(0.8))
    left = [*range(place), *range(place + 1, 20)]
    for times in (info.frame_times_seconds, info.frame_times_seconds[::-1]):
        assert sorted(read(f.rgb_YX3.numpy()) for f in decode(path, times)) == left
    (frame,) = decode(path, [0.4])
    assert read(frame.rgb_YX3.numpy()) == place - 1, "shown longer"


def test_files_are_closed(golden: GoldenSet) -> None:
    path = golden.good["b_frames.mp4"].path

    def num_open() -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(path.resolve()) for fd in os.listdir("/proc/self/fd"))

    list(decode(path, [3.0, 1.0]))
    assert num_open() == 0
    frames = decode(path, [3.0, 1.0])
    next(frames)
    assert num_open() == 1
    frames.close()  # type: ignore[attr-defined]
    assert num_open() == 0


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


def test_rows_from_the_bottom_up_give_no_planes(golden: GoldenSet) -> None:
    """libav has such frames from uncompressed video; the filter makes one of any."""
    path = golden.good["b_frames.mp4"].path
    graph = av.filter.Graph()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph.link_nodes(graph.add_buffer(template=stream), graph.add("vflip"), graph.add("buffersink")).configure()
        frame = next(container.decode(stream))
        graph.push(frame)
        flipped = graph.pull()
    index, _ = load(path, None)
    upright, turned = (decode_cpu.Picture(f, index, decode_cpu._Scaler()) for f in (frame, flipped))
    assert flipped.planes[0].line_size < 0
    assert upright.planes() is not None
    assert turned.planes() is None
    assert torch.equal(turned.rgb_YX3(), upright.rgb_YX3().flip(0))


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv420p10le", "yuv422p", "yuv444p"])
@pytest.mark.parametrize(
    ("width_px", "height_px", "shown_px"), [(64, 48, 64), (63, 34, 63), (66, 37, 66), (64, 46, 96)]
)
def test_rgb_by_way_of_planes_is_the_same_to_the_byte(
    pix_fmt: str, width_px: int, height_px: int, shown_px: int
) -> None:
    frame = av.VideoFrame(width_px, height_px, pix_fmt)
    rng = np.random.default_rng(0)
    for plane in frame.planes:
        if pix_fmt.endswith("10le"):
            samples = rng.integers(0, 1024, plane.buffer_size // 2, np.uint16).tobytes()
        else:
            samples = rng.integers(0, 256, plane.buffer_size, np.uint8).tobytes()
        plane.update(samples)
    direct = av.video.reformatter.VideoReformatter().reformat(
        frame,
        width=shown_px,
        height=height_px,
        format="rgb24",
        src_colorspace=decode_cpu.UNTAGGED,
        dst_color_range=av.video.reformatter.ColorRange.JPEG,
        interpolation=decode_cpu.SCALER,
    )
    assert np.array_equal(decode_cpu._Scaler().rgb(frame, shown_px, height_px).to_ndarray(), direct.to_ndarray())
