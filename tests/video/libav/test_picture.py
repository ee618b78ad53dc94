"""Pictures: colours, planes, and RGB by way of planes."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")

import av

from eagle_kernels.video import VideoError, decode, probe
from eagle_kernels.video.info import Orientation
from eagle_kernels.video.libav import picture as libav_picture
from eagle_kernels.video.libav.index import read_index
from tests.video.make import (
    MATRIX_TAGS,
    GoldenSet,
    draw,
    smooth_picture,
    to_planes,
    write_planes,
    write_video,
)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(("matrix", "tag"), [("601", "601"), ("709", "709"), ("2020", "2020"), ("601", "none")])
def test_colours(tmp_path: Path, matrix: str, tag: str, full_range: bool) -> None:
    """At least 51.5 dB against the true RGB (measured: 52.3 to 53.2), no bias. swscale's defaults give 41 to 43 dB."""
    true_YX3 = smooth_picture()
    path = tmp_path / "colour.mp4"
    write_planes(path, to_planes(true_YX3, matrix, full_range), MATRIX_TAGS[tag], full_range)
    (frame,) = decode(path, [0.0])
    error_YX3 = frame.rgb_YX3.numpy().astype(np.float64) - true_YX3
    decibel = 10 * np.log10(255**2 / np.mean(error_YX3**2))
    assert decibel > 51.5
    assert np.abs(error_YX3.mean(axis=(0, 1))).max() < 0.1, "bias in a channel"


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
    index = read_index(path)
    upright, turned = (libav_picture.Picture(f, index, libav_picture.Scaler()) for f in (frame, flipped))
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
        src_colorspace=libav_picture.UNTAGGED,
        dst_color_range=av.video.reformatter.ColorRange.JPEG,
        interpolation=libav_picture.SCALER,
    )
    assert np.array_equal(libav_picture.Scaler().rgb(frame, shown_px, height_px).to_ndarray(), direct.to_ndarray())


@pytest.mark.parametrize(("transpose", "flip_y", "flip_x"), list(itertools.product([False, True], repeat=3)))
def test_rotation_in_degrees_is_what_turns_the_picture(transpose: bool, flip_y: bool, flip_x: bool) -> None:
    stored_YX = np.arange(6).reshape(2, 3)
    shown_YX = stored_YX.T if transpose else stored_YX
    shown_YX = shown_YX[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
    degrees = libav_picture._rotation_degrees(Orientation(transpose, flip_y, flip_x))
    clockwise = -degrees // 90
    upright, mirrored = np.rot90(stored_YX, clockwise), np.rot90(stored_YX[:, ::-1], clockwise)
    assert np.array_equal(shown_YX, upright) or np.array_equal(shown_YX, mirrored)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("libvpx-vp9", "yuva420p", "webm"),
        ("png", "rgba", "mov"),
        ("ffv1", "bgra", "mkv"),
        ("ffv1", "yuva444p", "mkv"),
        ("prores_ks", "yuva444p10le", "mov"),
        ("qtrle", "argb", "mov"),
    ],
)
def test_what_is_transparent_lies_on_white(tmp_path: Path, codec: str, pix_fmt: str, suffix: str) -> None:
    path = tmp_path / f"clear.{suffix}"
    rgba_YX4 = np.zeros((48, 64, 4), np.uint8)
    rgba_YX4[:, :32] = (40, 80, 160, 255)
    rgba_YX4[24:, 32:] = (40, 80, 160, 128)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for i in range(6):
            frame = av.VideoFrame.from_ndarray(rgba_YX4, format="rgba").reformat(format=pix_fmt)
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    times = probe(path).frame_times_seconds
    for frame in decode(path, times[[5, 0, 3]]):
        rgb_YX3 = frame.rgb_YX3.to(torch.int16)
        for (y, x), want in {(12, 16): (40, 80, 160), (12, 48): (255, 255, 255), (36, 48): (147, 167, 207)}.items():
            assert (rgb_YX3[y, x] - torch.tensor(want)).abs().max() <= 8


def test_colours_that_cannot_be_made_rgb_are_refused_on_opening(tmp_path: Path) -> None:
    path = tmp_path / "ycgco.mp4"
    write_video(path, [draw(0)], options={"x264-params": "colormatrix=YCgCo"})
    with pytest.raises(
        VideoError, match=r"ycgco\.mp4: its colours \(MatrixCoefficients 8, yuv420p\) cannot be made RGB"
    ):
        probe(path)


def test_pictures_beyond_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.mp4"
    write_video(path, [draw(0)])
    monkeypatch.setattr(libav_picture, "MAX_SHOWN_PIXELS", 64 * 48 - 1)
    with pytest.raises(VideoError, match=r"large\.mp4: its pictures are 64 x 48; needs at most 3071 pixels"):
        probe(path)
