"""Planes to RGB: what the C++ code gives is the reference, whatever the size, layout and CPU; both are what swscale
gives with its accurate flags, to one level."""

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from eagle_kernels import native
from eagle_kernels.video.colour import TILED_MATRICES, colours
from eagle_kernels.video.libav import picture as libav_picture
from eagle_kernels.video.yuv_to_rgb import yuv_to_rgb, yuv_to_rgb_ref

SIZES = [(1, 1), (2, 2), (3, 5), (17, 33), (34, 96), (2, 131)]


def planes(height_px: int, width_px: int, *, interleaved: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Random samples; rows longer than the picture, as a decoder leaves them."""
    generator = torch.Generator().manual_seed(0)
    half_height, half_width = (height_px + 1) // 2, (width_px + 1) // 2
    y_YX = torch.randint(256, (height_px, width_px + 7), generator=generator, dtype=torch.uint8)[:, :width_px]
    uv_HW2 = torch.randint(256, (half_height, half_width + 3, 2), generator=generator, dtype=torch.uint8)
    u_HW, v_HW = (uv_HW2[:, :half_width, i] for i in range(2))
    return (y_YX, u_HW, v_HW) if interleaved else (y_YX, u_HW.contiguous(), v_HW.contiguous())


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("chroma", ["left", "center"])
@pytest.mark.parametrize(("height_px", "width_px"), SIZES)
def test_the_code_is_the_reference_on_every_cpu(height_px: int, width_px: int, chroma: str, interleaved: bool) -> None:
    y_YX, u_HW, v_HW = planes(height_px, width_px, interleaved=interleaved)
    for matrix in TILED_MATRICES:
        for full_range in (False, True):
            about = {"matrix": matrix, "full_range": full_range, "chroma": chroma}
            want_YX3 = yuv_to_rgb_ref(y_YX, u_HW, v_HW, **about)
            assert torch.equal(yuv_to_rgb(y_YX, u_HW, v_HW, **about), want_YX3)
            out_YX3 = torch.zeros_like(want_YX3)
            views = {"y": y_YX, "u": u_HW, "v": v_HW, "out": out_YX3}
            native.load().yuv_to_rgb(
                **{name: native.view(x) for name, x in views.items()},
                colours=colours(matrix, full_range),
                cosited_across=chroma == "left",
                simd="",
            )
            assert torch.equal(out_YX3, want_YX3)


@pytest.mark.parametrize("matrix", [1, 5, 9])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(("height_px", "width_px"), [(34, 96), (48, 64)])
def test_swscale_gives_the_same_to_one_level(height_px: int, width_px: int, full_range: bool, matrix: int) -> None:
    """Of samples that a picture has: from random ones, which lie far outside of RGB, it clips in between. Of odd
    sizes it stretches chroma by a little less than 2."""
    frame = av.VideoFrame(width_px, height_px, "yuv420p")
    frame.colorspace, frame.color_range = matrix, 2 if full_range else 1
    rng = np.random.default_rng(0)
    for plane, (low, high) in zip(frame.planes, [(60, 180), (108, 148), (108, 148)], strict=True):
        plane.update(rng.integers(low, high, plane.buffer_size, np.uint8).tobytes())
    want_YX3 = torch.from_numpy(libav_picture.Scaler().rgb(frame, width_px, height_px).to_ndarray())
    errors = []
    for chroma in ("left", "center"):
        y_YX, u_HW, v_HW = (libav_picture._samples(plane) for plane in frame.planes)
        half = (width_px + 1) // 2
        name = {1: "bt709", 5: "bt601", 9: "bt2020"}[matrix]
        ours_YX3 = yuv_to_rgb(
            y_YX[:, :width_px], u_HW[:, :half], v_HW[:, :half], matrix=name, full_range=full_range, chroma=chroma
        )
        errors.append(int((ours_YX3.int() - want_YX3.int()).abs().max()))
    assert min(errors) <= 1, errors


def test_wrong_planes_are_refused() -> None:
    y_YX, u_HW, v_HW = planes(8, 10, interleaved=False)
    about = {"matrix": "bt709", "full_range": False}
    with pytest.raises(ValueError, match=r"u needs uint8 of shape \(4, 5\)"):
        yuv_to_rgb(y_YX, u_HW[:3], v_HW, **about)
    with pytest.raises(ValueError, match=r"v needs uint8 of shape \(4, 5\)"):
        yuv_to_rgb(y_YX, u_HW, v_HW.int(), **about)
    with pytest.raises(ValueError, match="y needs uint8"):
        yuv_to_rgb(y_YX.T, u_HW, v_HW, **about)
    with pytest.raises(ValueError, match="one stride along a row"):
        yuv_to_rgb(y_YX, planes(8, 10, interleaved=True)[1], v_HW, **about)
