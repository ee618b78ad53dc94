"""One decoded frame, as planes where the decoder left them or as RGB: colours, square pixels, the turn it is shown in.

    def take(picture: Picture, m: int) -> Tensor:
        planes = picture.planes()             # no copy; None unless 8-bit 4:2:0, of a known matrix
        return picture.rgb_YX3() if planes is None else planes.y_YX.clone()

Dims    Y rows, X columns; H, W = Y / 2, X / 2, rounded up.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from torch import Tensor

from eagle_kernels.video.colour import LEFT_CHROMA, MATRICES, TILED_MATRICES, UNSPECIFIED
from eagle_kernels.video.info import Orientation, PacketIndex, VideoError
from eagle_kernels.video.libav.container import named
from eagle_kernels.video.yuv_to_rgb import yuv_to_rgb

# Without the last two flags swscale rounds down, repeats chroma samples, and loses 10 dB (tests/video/libav/
# test_picture.py). Bicubic gains nothing there and takes twice the time.
SCALER = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# By way of planes swscale has vector code for this, and takes 0.6 of the time for the same bytes; not for odd heights.
MAX_SHOWN_PIXELS = 1 << 26  # as shown: two pictures of 8K, 201 MB of RGB
PLANES_FIRST = ("yuv420p", "yuvj420p", "yuv420p10le")
UNTAGGED = Colorspace.ITU601  # swscale's name of MATRICES[UNSPECIFIED]
LARGEST_PIXEL_ASPECT = 16  # width to height: a wider pixel is a damaged header, and would ask for any amount of memory


class Planes(NamedTuple):
    """One picture as it was coded: 8-bit Y'CbCr, 4:2:0, rows apart; the words are those of `yuv_to_tiles`."""

    y_YX: Tensor
    u_HW: Tensor
    v_HW: Tensor
    matrix: str
    full_range: bool
    chroma: str

    @property
    def colours(self) -> dict[str, Any]:
        return {"matrix": self.matrix, "full_range": self.full_range, "chroma": self.chroma}


@dataclass(frozen=True, slots=True)
class Picture:
    """One decoded frame, in the thread that decoded it: valid until the function that it was given to returns."""

    frame: av.VideoFrame
    index: PacketIndex
    scaler: Scaler

    def rgb_YX3(self) -> Tensor:
        """As `Frame.rgb_YX3`; the caller's own."""
        index, planes = self.index, self.planes()
        if planes is None or (self.frame.width, self.frame.height) != (index.scaled_width_px, index.scaled_height_px):
            return to_rgb(self.frame, index, self.scaler)
        return turned(yuv_to_rgb(*planes[:3], **planes.colours), index.orientation)

    def planes(self) -> Planes | None:
        """The samples where the decoder left them; None unless they are 8-bit 4:2:0, by one of TILED_MATRICES.

        That depends on the stream alone. Pixels need not be square, and are turned as stored, not as shown.
        """
        frame = self.frame
        name, matrix = frame.format.name, MATRICES.get(frame.colorspace)
        if name not in ("yuv420p", "yuvj420p", "nv12") or matrix not in TILED_MATRICES:
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
        """rgb24, or rgba where the frame has alpha."""
        if _has_alpha(frame.format.name):
            return self._reformat(frame, width_px, height_px, "rgba")
        is_common = frame.format.name in PLANES_FIRST and frame.height % 2 == 0
        scaled = self._reformat(frame, width_px, height_px, "gbrp" if is_common else "rgb24")
        return self._to_pixels.reformat(scaled, format="rgb24", threads=1) if is_common else scaled

    def _reformat(self, frame: av.VideoFrame, width_px: int, height_px: int, pixel_format: str) -> av.VideoFrame:
        return self._to_planes.reformat(
            frame,
            width=width_px,
            height=height_px,
            format=pixel_format,
            src_colorspace=UNTAGGED if frame.colorspace == UNSPECIFIED else None,
            dst_color_range=ColorRange.JPEG,
            interpolation=SCALER,
            threads=1,
        )


def to_rgb(frame: av.VideoFrame, index: PacketIndex, scaler: Scaler) -> Tensor:
    """(Y, X, 3) uint8: full range RGB by the frame's own matrix and range, square pixels, turned as shown; what is
    transparent lies on white."""
    with named(index.path):
        rgb = scaler.rgb(frame, index.scaled_width_px, index.scaled_height_px)
        (plane,) = rgb.planes
        rows = torch.frombuffer(plane, dtype=torch.uint8)[: rgb.height * plane.line_size]
        rows = rows.view(rgb.height, plane.line_size)
    num_channels = len(rgb.format.components)
    pixels_YXC = rows[:, : num_channels * rgb.width].unflatten(1, (rgb.width, num_channels))
    if num_channels == 4:
        pixels_YXC = _on_white(pixels_YXC)
    elif rgb is frame:  # it was RGB; else the memory is nobody else's, and without padding it becomes the tensor's
        pixels_YXC = pixels_YXC.clone()
    return turned(pixels_YXC, index.orientation)


def _on_white(rgba_YX4: Tensor) -> Tensor:
    """(Y, X, 3); alpha is straight, not multiplied into the colours."""
    pixels_YX4 = rgba_YX4.numpy().astype(np.uint16)
    rgb_YX3, alpha_YX1 = pixels_YX4[..., :3], pixels_YX4[..., 3:]
    return torch.from_numpy(((rgb_YX3 * alpha_YX1 + 255 * (255 - alpha_YX1) + 127) // 255).astype(np.uint8))


@cache
def _has_alpha(pixel_format: str) -> bool:
    return any(component.is_alpha for component in av.VideoFormat(pixel_format).components)


def turned(rgb_YX3: Tensor, orientation: Orientation) -> Tensor:
    """(X, Y, 3) or (Y, X, 3), contiguous: stored pixels as they are shown; `rgb_YX3` itself where that is no change."""
    transpose, flip_y, flip_x = orientation
    if transpose:
        rgb_YX3 = rgb_YX3.transpose(0, 1)
    flips = [dim for dim, flip in enumerate((flip_y, flip_x)) if flip]
    return rgb_YX3.flip(flips).contiguous() if flips else rgb_YX3.contiguous()


class Shape(NamedTuple):
    """Of `PacketIndex`: how the stored pixels are shown."""

    scaled_width_px: int
    scaled_height_px: int
    orientation: Orientation
    rotation_degrees: int


def shape_of(first: av.VideoFrame, stream: av.VideoStream, path: Path) -> Shape:
    width_px, height_px = _square_pixels(first.width, first.height, stream.sample_aspect_ratio, path)
    if width_px * height_px > MAX_SHOWN_PIXELS:
        raise VideoError(f"{path}: its pictures are {width_px} x {height_px}; needs at most {MAX_SHOWN_PIXELS} pixels.")
    if first.colorspace not in MATRICES or first.format.name not in PLANES_FIRST:
        try:  # whether swscale knows them is told by trying
            with named(path):
                Scaler().rgb(first, width_px, height_px)
        except VideoError as error:
            raise VideoError(
                f"{path}: its colours (MatrixCoefficients {int(first.colorspace)}, {first.format.name}) cannot be made "
                f"RGB. If the file is mislabelled, its label can be changed: `ffmpeg -i IN -c copy -bsf:v "
                f"h264_metadata=matrix_coefficients=1 OUT.mp4`."
            ) from error
    orientation = _orientation(first)
    return Shape(width_px, height_px, orientation, _rotation_degrees(orientation))


def _square_pixels(width_px: int, height_px: int, aspect: Fraction | None, path: Path) -> tuple[int, int]:
    """The size with square pixels: rows stay, columns are stretched by the sample aspect ratio."""
    if not aspect:
        return width_px, height_px
    if not 1 / LARGEST_PIXEL_ASPECT <= aspect <= LARGEST_PIXEL_ASPECT:
        raise VideoError(f"{path}: its pixels are {aspect} as wide as high; needs at most {LARGEST_PIXEL_ASPECT} to 1.")
    return max(1, round(width_px * aspect)), height_px


def _orientation(frame: av.VideoFrame) -> Orientation:
    """From the display matrix (ISO/IEC 14496-12, 8.3.2): x' = a x + c y, y' = b x + d y; snapped to quarter turns."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(bytes(matrix), "<i4")[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(transpose=True, flip_y=b < 0, flip_x=c < 0)
    return Orientation(transpose=False, flip_y=d < 0, flip_x=a < 0)


def _rotation_degrees(orientation: Orientation) -> int:
    """Clockwise. Of a mirrored picture: the turn after it was mirrored left to right."""
    if orientation.transpose:
        return 90 if orientation.flip_x else 270
    return 180 if orientation.flip_y else 0
