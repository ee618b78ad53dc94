"""A decoded 4:2:0 picture -> RGB of its own size, in the thread that decoded it.

    rgb_YX3 = yuv_to_rgb(y_YX, u_HW, v_HW, matrix="bt709", full_range=False, chroma="left")

Dims    Y rows, X columns of luma; H, W = Y / 2, X / 2, rounded up.
Maths   Chroma is enlarged bilinearly: a row lies a quarter of a chroma row from its nearer one, so 3 parts of that and
        1 of the other; across likewise ("center"), or on the samples and half way between two ("left"). At the edges a
        sample stands beside itself. That is exact in 4 bits; colours follow as in yuv_to_tiles, rounded once.
Numbers swscale with its accurate flags gives the same but for a level here and there, in 4 to 5 times the time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eagle_kernels import native
from eagle_kernels.video.colour import MATRIX_BITS, colours

COSITED_ACROSS = {"left": True, "center": False}


def yuv_to_rgb_ref(
    y_YX: Tensor, u_HW: Tensor, v_HW: Tensor, *, matrix: str, full_range: bool, chroma: str = "left"
) -> Tensor:
    """What the C++ code means, in plain torch."""
    m = colours(matrix, full_range)

    def enlarged(plane_HW: Tensor) -> Tensor:  # 16 times the samples
        rows = _between(plane_HW.int(), 3, 1)[: len(y_YX)]
        across = _between(rows.T, 4, 0, 2, 2) if COSITED_ACROSS[chroma] else _between(rows.T, 3, 1)
        return across.T[:, : y_YX.shape[1]] - 16 * 128

    y_YX, u_YX, v_YX = 16 * (y_YX.int() - m.black), enlarged(u_HW), enlarged(v_HW)
    red = m.y * y_YX + m.v_to_red * v_YX
    green = m.y * y_YX + m.u_to_green * u_YX + m.v_to_green * v_YX
    blue = m.y * y_YX + m.u_to_blue * u_YX
    bits = MATRIX_BITS + 4
    return ((torch.stack([red, green, blue], 2) + 2 ** (bits - 1)) >> bits).clamp(0, 255).to(torch.uint8)


def _between(x_NC: Tensor, here: int, other: int, after_here: int | None = None, after: int | None = None) -> Tensor:
    """Two rows of each: `here` parts of it and `other` of the one before; then of it and of the one after."""
    before_NC, after_NC = torch.cat([x_NC[:1], x_NC[:-1]]), torch.cat([x_NC[1:], x_NC[-1:]])
    first = here * x_NC + other * before_NC
    second = (here if after_here is None else after_here) * x_NC + (other if after is None else after) * after_NC
    return torch.stack([first, second], 1).flatten(0, 1)


def yuv_to_rgb(
    y_YX: Tensor, u_HW: Tensor, v_HW: Tensor, *, matrix: str, full_range: bool, chroma: str = "left"
) -> Tensor:
    """(Y, X, 3) uint8, the caller's own.

    Args:    y_YX: (Y, X) uint8, the samples of a row side by side.  u_HW, v_HW: uint8, Cb and Cr; in a row side by side
             (planar) or both two apart (NV12). Rows may lie anywhere.
             matrix: one of colour.TILED_MATRICES.  full_range: False: 16 .. 235 and 16 .. 240.
             chroma: "left" (H.264, HEVC, MPEG-2, MPEG-4) or "center", as for yuv_to_tiles.
    Raises:  ValueError when a plane is not as above.
    """
    rgb_YX3 = torch.empty(*y_YX.shape, 3, dtype=torch.uint8)
    native.load().yuv_to_rgb(
        y=native.view(y_YX),
        u=native.view(u_HW),
        v=native.view(v_HW),
        out=native.view(rgb_YX3),
        colours=colours(matrix, full_range),
        cosited_across=COSITED_ACROSS[chroma],
    )
    return rgb_YX3
