"""The colours of video: which matrix a stream means, its two weights, and where chroma samples lie. One table for all.

    matrix = MATRICES[1]                      # "bt709": ITU-T H.273, MatrixCoefficients 1
    k_r, k_b = LUMA_WEIGHTS[matrix]           # 0.2126, 0.0722
    rgb = to_rgb_33(matrix) @ (y, cb, cr)     # y in 0 .. 1, cb and cr in -0.5 .. 0.5

Y' = K_R R + K_G G + K_B B with K_G = 1 - K_R - K_B, Cb = (B - Y') / (2 (1 - K_B)), Cr = (R - Y') / (2 (1 - K_R)).

Source  ITU-T H.273: table 4 (MatrixCoefficients) and 8.3.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

UNSPECIFIED = 2  # MatrixCoefficients of a stream that names no matrix
LUMA_WEIGHTS = {  # K_R and K_B
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "smpte240m": (0.212, 0.087),
    "bt2020": (0.2627, 0.0593),
}
# By MatrixCoefficients. Unspecified: what libav's own tools, torchcodec and OpenCV take.
MATRICES = {1: "bt709", UNSPECIFIED: "bt601", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}
TILED_MATRICES = ("bt601", "bt709", "bt2020")  # those that tiles are made from planes by; of the others RGB is made
MATRIX_BITS = 13  # of a matrix in integers: its largest number, 2.14, then fits 16 bits
# Codecs whose chroma libav takes to lie on every other column of luma's samples; of all others, as swscale does,
# between them. PyAV does not pass on what a stream itself may say of it.
LEFT_CHROMA = ("h264", "hevc", "mpeg2video", "mpeg4")


def to_rgb_33(matrix: str) -> NDArray[np.float64]:
    """(3, 3): from (Y', Cb, Cr) to (R, G, B), all of full range."""
    k_r, k_b = LUMA_WEIGHTS[matrix]
    k_g = 1 - k_r - k_b
    r_cr, b_cb = 2 * (1 - k_r), 2 * (1 - k_b)
    return np.array([[1, 0, r_cr], [1, -k_b * b_cb / k_g, -k_r * r_cr / k_g], [1, b_cb, 0]])


class Colours(NamedTuple):
    """A colour matrix in integers of MATRIX_BITS fractional bits, and luma's black."""

    y: int
    v_to_red: int
    u_to_green: int
    v_to_green: int
    u_to_blue: int
    black: int


@functools.cache
def colours(matrix: str, full_range: bool) -> Colours:
    """Y'CbCr to R'G'B', the quantisation range included: from kr and kb, as H.273 has it."""
    red, blue = LUMA_WEIGHTS[matrix]
    green = 1 - red - blue
    one = 2**MATRIX_BITS
    luma, chroma = (one, one) if full_range else (one * 255 / 219, one * 255 / 224)
    return Colours(
        y=round(luma),
        v_to_red=round(2 * (1 - red) * chroma),
        u_to_green=round(-2 * (1 - blue) * blue / green * chroma),
        v_to_green=round(-2 * (1 - red) * red / green * chroma),
        u_to_blue=round(2 * (1 - blue) * chroma),
        black=0 if full_range else 16,
    )
