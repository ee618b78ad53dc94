"""One decoded frame, as planes where the decoder left them or as RGB: colours, square pixels, the turn it is shown in.

    def take(picture: Picture, m: int) -> Tensor:
        planes = picture.planes()             # no copy; None unless 8-bit 4:2:0, upright, of a known matrix
        return picture.rgb_YX3() if planes is None else planes.y_YX.clone()

Dims    Y rows, X columns; H, W = Y / 2, X / 2, rounded up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from torch import Tensor

from eagle_kernels.video.colour import LEFT_CHROMA, MATRICES, TILED_MATRICES, UNSPECIFIED
from eagle_kernels.video.info import Orientation, PacketIndex

# Without the last two flags swscale rounds down, repeats chroma samples, and loses 10 dB (tests/video/libav/
# test_picture.py). Bicubic gains nothing there and takes twice the time.
SCALER = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# By way of planes swscale has vector code for this, and takes 0.6 of the time for the same bytes; not for odd heights.
PLANES_FIRST = ("yuv420p", "yuvj420p", "yuv420p10le")
UNTAGGED = Colorspace.ITU601  # swscale's name of MATRICES[UNSPECIFIED]


class Planes(NamedTuple):
    """One picture as it was coded: 8-bit Y'CbCr, 4:2:0, rows apart; the words are those of `yuv_to_tiles`."""

    y_YX: Tensor
    u_HW: Tensor
    v_HW: Tensor
    matrix: str
    full_range: bool
    chroma: str


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded frame, in the thread that decoded it: valid until the function that it was given to returns."""

    frame: av.VideoFrame
    index: PacketIndex
    scaler: Scaler

    def rgb_YX3(self) -> Tensor:
        """As `Frame.rgb_YX3`; the caller's own."""
        return to_rgb(self.frame, self.index, self.scaler)

    def planes(self) -> Planes | None:
        """The samples where the decoder left them; None unless they are 8-bit 4:2:0, by one of TILED_MATRICES, upright.

        That depends on the stream alone. Pixels need not be square.
        """
        frame = self.frame
        name, matrix = frame.format.name, MATRICES.get(frame.colorspace)
        if name not in ("yuv420p", "yuvj420p", "nv12") or matrix not in TILED_MATRICES:
            return None
        if self.index.orientation != Orientation():
            return None
        if any(plane.line_size < 0 for plane in frame.planes):  # rows from the bottom up: uncompressed video alone
            return None
        y_YX, *chroma = (_samples(plane) for plane in frame.planes)
        height, width = (frame.height + 1) // 2, (frame.width + 1) // 2
        u_HW, v_HW = (chroma[0][:, ::2], chroma[0][:, 1::2]) if name == "nv12" else chroma
        return Planes(
            y_YX=y_YX[:, : frame.width],
            u_HW=u_HW[:height, :width],
            v_HW=v_HW[:height, :width],
            matrix=matrix,
            full_range=name == "yuvj420p" or frame.color_range == ColorRange.JPEG,
            chroma="left" if self.index.codec in LEFT_CHROMA else "center",
        )


def _samples(plane: av.video.plane.VideoPlane) -> Tensor:
    """(rows, line size) uint8 in libav's own memory: what lies beyond the picture's width is no picture."""
    return torch.from_numpy(np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size))


class Scaler:
    """swscale, set up for the frames of one stream."""

    def __init__(self) -> None:
        self._to_planes, self._to_pixels = VideoReformatter(), VideoReformatter()

    def rgb(self, frame: av.VideoFrame, width_px: int, height_px: int) -> av.VideoFrame:
        is_common = frame.format.name in PLANES_FIRST and frame.height % 2 == 0
        scaled = self._to_planes.reformat(
            frame,
            width=width_px,
            height=height_px,
            format="gbrp" if is_common else "rgb24",
            src_colorspace=UNTAGGED if frame.colorspace == UNSPECIFIED else None,
            dst_color_range=ColorRange.JPEG,
            interpolation=SCALER,
            threads=1,
        )
        return self._to_pixels.reformat(scaled, format="rgb24", threads=1) if is_common else scaled


def to_rgb(frame: av.VideoFrame, index: PacketIndex, scaler: Scaler) -> Tensor:
    """(Y, X, 3) uint8: full range RGB by the frame's own matrix and range, square pixels, turned as shown."""
    rgb = scaler.rgb(frame, index.scaled_width_px, index.scaled_height_px)
    (plane,) = rgb.planes
    rows = torch.frombuffer(plane, dtype=torch.uint8)[: rgb.height * plane.line_size].view(rgb.height, plane.line_size)
    rgb_YX3 = rows[:, : 3 * rgb.width].unflatten(1, (rgb.width, 3))
    if rgb is frame:  # it was RGB; else the memory is nobody else's, and without padding it becomes the tensor's
        rgb_YX3 = rgb_YX3.clone()
    return turned(rgb_YX3, index.orientation)


def turned(rgb_YX3: Tensor, orientation: Orientation) -> Tensor:
    """(X, Y, 3) or (Y, X, 3), contiguous: stored pixels as they are shown; `rgb_YX3` itself where that is no change."""
    transpose, flip_y, flip_x = orientation
    if transpose:
        rgb_YX3 = rgb_YX3.transpose(0, 1)
    flips = [dim for dim, flip in enumerate((flip_y, flip_x)) if flip]
    return rgb_YX3.flip(flips).contiguous() if flips else rgb_YX3.contiguous()
