"""Decoded 4:2:0 planes -> the normalised patches of their tiles, in one pass and without an RGB picture in between:
resize each plane, convert the colours, cut, thumbnail, normalise, patchify, cast.

    tiling = Tiling(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    tiles_IPK = yuv_to_tiles(y_LYX, u_LHW, v_LHW, (2, 1), tiling, matrix="bt709", full_range=False)

Dims    L frames, Y x X their luma samples; chroma planes are H x W = ceil(Y / 2) x ceil(X / 2); I tiles in all, P
        patches a tile, K numbers a patch: tiles.py.
Resize  Each plane whole to (cols * tile_px, rows * tile_px), and to tile_px x tile_px for the thumbnail, rows first, by
        the filters w of frames_to_tiles in other numbers, since there are no bytes of Pillow's to meet:
            W[i, j] = floor(2**14 * sum_k<=j w[i, k] + 1/2) - floor(2**14 * sum_k<j w[i, k] + 1/2)
            row[i] = (2**7 + sum_j in[j] * W[i, j]) >> 8,   out[i] = (2**13 + sum_j row[j] * W[i, j]) >> 14
        so the weights add up to 1, and values keep 6 bits below the point and the range beyond 0 .. 255 until colours
        are made. A chroma axis sees X / 2 samples of its own for X of luma, an odd X too; where the samples lie on
        luma's (co-sited), the picture begins a quarter of a chroma sample later:
            "left"      across co-sited, down between two rows: MPEG-2, H.264 and HEVC unless they say otherwise
            "center"    between luma samples both ways: MPEG-1, JPEG
            "top_left"  co-sited both ways: BT.2020 and BT.2100 pictures
Colours With y, u, v = 64 times the resized planes, integers, and M = round(2**13 * matrix):
            red   = clip((M.y * y + M.vr * v + bias_red) >> 19, 0, 255)              and so the others,
            bias  = 2**18 - 64 * (M.y * black + the chroma weights * 128)
        One rounding to uint8, then (x / 255 - mean) / std as in frames_to_tiles. All integers until then, so the CPU
        and the GPU agree to the bit.
Numbers Converting first and resizing then would interpolate chroma twice and clip colours out of range before the
        filter instead of after it; on smooth pictures the two agree to 57 dB (docs/notes/tiles.md).
Source  ITU-T H.273 (matrices, ranges, chroma sample location types 0 to 2); BT.601, BT.709, BT.2020 (kr and kb).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from eagle_kernels import native
from eagle_kernels.checks import refuse, refuse_types
from eagle_kernels.library import custom_op
from eagle_kernels.tiles import Tiling, check_arguments, filter_weights, tiles_ref
from eagle_kernels.video.colour import MATRIX_BITS, TILED_MATRICES, colours

Matrix = Literal["bt601", "bt709", "bt2020"]
Chroma = Literal["left", "center", "top_left"]
TAP_BITS = 14  # of a weight, below the point
PLANE_BITS = 6  # of a resized plane: both fit 16 bits
COSITED = {"left": (True, False), "center": (False, False), "top_left": (True, True)}  # across, down


def _taps(num_in: int, num_out: int, length: float, shift: float) -> Tensor:
    """(num_out, num_in) fp64 of the integers W."""
    upto = np.floor(np.cumsum(filter_weights(num_in, num_out, length=length, shift=shift), axis=1) * 2**TAP_BITS + 0.5)
    return torch.from_numpy(np.diff(upto, axis=1, prepend=0.0))


def _plane_ref(
    plane_YX: Tensor, size: tuple[int, int], length: tuple[float, float], shift: tuple[float, float]
) -> Tensor:
    """(height_px, width_px) fp64 integers, 64 times the resized plane; all pairs are (across, down).

    The products are integers below 2**53, so matmul in fp64 is exact.
    """
    height, width = plane_YX.shape
    across = _taps(width, size[0], length[0], shift[0]).to(plane_YX.device)
    down = _taps(height, size[1], length[1], shift[1]).to(plane_YX.device)
    first_shift = TAP_BITS - PLANE_BITS
    rows = ((plane_YX.double() @ across.T + 2 ** (first_shift - 1)) / 2**first_shift).floor()
    return ((down @ rows + 2 ** (TAP_BITS - 1)) / 2**TAP_BITS).floor()


def yuv_to_tiles_ref(
    y_LYX: Tensor,
    u_LHW: Tensor,
    v_LHW: Tensor,
    grid: tuple[int, int],
    tiling: Tiling,
    *,
    matrix: Matrix,
    full_range: bool,
    chroma: Chroma = "left",
) -> Tensor:
    """What the kernel means, in plain torch: `yuv_to_tiles` with the same arguments, on any device, slowly."""
    m = colours(matrix, full_range)
    height, width = y_LYX.shape[1:]
    shift = (0.25 if COSITED[chroma][0] else 0.0, 0.25 if COSITED[chroma][1] else 0.0)

    def resize(frame: int, width_px: int, height_px: int) -> Tensor:
        size = width_px, height_px
        y = _plane_ref(y_LYX[frame], size, (width, height), (0.0, 0.0))
        u = _plane_ref(u_LHW[frame], size, (width / 2, height / 2), shift)
        v = _plane_ref(v_LHW[frame], size, (width / 2, height / 2), shift)
        y, u, v = y - m.black * 2**PLANE_BITS, u - 128 * 2**PLANE_BITS, v - 128 * 2**PLANE_BITS
        red = m.y * y + m.v_to_red * v
        green = m.y * y + m.u_to_green * u + m.v_to_green * v
        blue = m.y * y + m.u_to_blue * u
        shift_bits = MATRIX_BITS + PLANE_BITS
        rgb = (torch.stack([red, green, blue], -1) + 2 ** (shift_bits - 1)) / 2**shift_bits
        return rgb.floor().clamp(0, 255).to(torch.uint8)

    return tiles_ref(resize, len(y_LYX), grid, tiling, y_LYX.device)


@custom_op("eagle::yuv_to_tiles")
def _fwd(
    y_LYX: Tensor,
    u_LHW: Tensor,
    v_LHW: Tensor,
    cols: int,
    rows: int,
    matrix: str,
    full_range: bool,
    chroma: str,
    tile_px: int,
    patch_px: int,
    mean: Sequence[float],
    std: Sequence[float],
    thumbnail: bool,
    dtype: torch.dtype,
    num_threads: int,
) -> Tensor:
    out_IPK = _fwd_fake(
        y_LYX, u_LHW, v_LHW, cols, rows, matrix, full_range, chroma, tile_px, patch_px, mean, std, thumbnail, dtype,
        num_threads,
    )  # fmt: skip
    if out_IPK.numel() == 0:
        return out_IPK
    in_colour = colours(matrix, full_range)
    extension = native.load()
    sizes = {"cols": cols, "rows": rows, "tile_px": tile_px, "patch_px": patch_px}
    tiling = extension.Tiling(thumbnail=thumbnail, pass_order="horizontal", mean=mean, std=std, **sizes)
    cosited_across, cosited_down = COSITED[chroma]
    frames = extension.YuvFrames(
        y=native.view(y_LYX),
        u=native.view(u_LHW),
        v=native.view(v_LHW),
        colours=in_colour,
        cosited_across=cosited_across,
        cosited_down=cosited_down,
    )
    if not y_LYX.is_cuda:
        extension.yuv_to_tiles_cpu(frames, native.view(out_IPK), tiling, num_threads)
        return out_IPK
    native.require_cuda("yuv_to_tiles")
    device = out_IPK.device
    workspace = out_IPK.new_empty(extension.yuv_to_tiles_workspace_bytes(frames, tiling), dtype=torch.uint8)
    stream = torch.cuda.current_stream(device).cuda_stream
    # Freed before the kernels ran, and safely: the allocator hands the memory on in the order of this same stream.
    extension.yuv_to_tiles_cuda(frames, native.view(out_IPK), tiling, native.view(workspace), device.index, stream)
    return out_IPK


@_fwd.register_fake
def _fwd_fake(
    y_LYX: Tensor,
    u_LHW: Tensor,
    v_LHW: Tensor,
    cols: int,
    rows: int,
    matrix: str,
    full_range: bool,
    chroma: str,
    tile_px: int,
    patch_px: int,
    mean: Sequence[float],
    std: Sequence[float],
    thumbnail: bool,
    dtype: torch.dtype,
    num_threads: int,
) -> Tensor:
    num_tiles = y_LYX.shape[0] * (cols * rows + (1 if thumbnail and cols * rows > 1 else 0))
    shape = (num_tiles, (tile_px // patch_px) ** 2, 3 * patch_px**2)
    return torch.empty(shape, dtype=dtype, device=y_LYX.device)


def yuv_to_tiles(
    y_LYX: Tensor,
    u_LHW: Tensor,
    v_LHW: Tensor,
    grid: tuple[int, int],
    tiling: Tiling,
    *,
    matrix: Matrix,
    full_range: bool,
    chroma: Chroma = "left",
    num_threads: int = 0,
) -> Tensor:
    """Tiles of every frame, frame by frame, row by row, thumbnail last. CPU tensors take the C++ code, CUDA the kernel.

    L frames of Y x X luma samples give I = L * tiling.num_tiles(grid) tiles of P patches of K numbers: tiling.shape(I).

        y, u, v = (torch.zeros(8, *size, dtype=torch.uint8) for size in ((720, 1280), (360, 640), (360, 640)))
        tiling = Tiling(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        tiles_IPK = yuv_to_tiles(y, u, v, (2, 1), tiling, matrix="bt709", full_range=False)  # (16, 1024, 588)

    Args:    y_LYX: (L, Y, X) uint8, the samples of a row contiguous; L may be 0.
             u_LHW, v_LHW: (L, ceil(Y / 2), ceil(X / 2)) uint8, Cb and Cr; in a row side by side (planar), or two apart
             (NV12: uv[..., 0] and uv[..., 1]). Rows and frames of all three may lie anywhere.
             grid: (cols, rows), each >= 1: the whole frame becomes cols * tile_px pixels wide, rows * tile_px high.
             tiling: sizes, normalisation, dtype and layout of the tiles.
             matrix, full_range: what the stream says of its colours. full_range=False: 16 .. 235 and 16 .. 240.
             chroma: where the chroma samples lie. "left": on luma's columns, between two of its rows (MPEG-2, H.264 and
             HEVC unless they say otherwise); "center": between luma samples both ways (MPEG-1, JPEG); "top_left": on
             luma samples (BT.2020 and BT.2100 pictures).
             num_threads: of the CPU code; 0 is one for each CPU. The bits do not depend on it.
    Returns: (I, P, K), or (I, 3, tile_px, tile_px) with layout="tiles".
    Raises:  ValueError when an argument is not as above; RuntimeError for CUDA tensors in a build without CUDA.
    """
    op = "yuv_to_tiles"
    _check_planes(y_LYX, u_LHW, v_LHW)
    if matrix not in TILED_MATRICES:
        refuse(op, "matrix", repr(matrix), "'bt601', 'bt709' or 'bt2020'")
    if not isinstance(full_range, bool):
        refuse(op, "full_range", repr(full_range), "True or False: what the stream says")
    if chroma not in COSITED:
        refuse(op, "chroma", repr(chroma), "'left', 'center' or 'top_left'")
    check_arguments(op, tiling, [grid], num_threads)
    return tiles_of_planes(y_LYX, u_LHW, v_LHW, grid, tiling, matrix, full_range, chroma, num_threads)


def tiles_of_planes(
    y_LYX: Tensor,
    u_LHW: Tensor,
    v_LHW: Tensor,
    grid: tuple[int, int],
    tiling: Tiling,
    matrix: str,
    full_range: bool,
    chroma: str,
    num_threads: int,
) -> Tensor:
    """`yuv_to_tiles` of arguments that are known to be right, as those of a decoder are."""
    out_IPK = _fwd(
        y_LYX, u_LHW, v_LHW, *grid, matrix, full_range, chroma, tiling.tile_px, tiling.kernel_patch_px, tiling.mean,
        tiling.std, tiling.thumbnail, tiling.dtype, num_threads,
    )  # fmt: skip
    return out_IPK if tiling.layout == "patches" else out_IPK.view(tiling.shape(out_IPK.shape[0]))


def _check_planes(y_LYX: Tensor, u_LHW: Tensor, v_LHW: Tensor) -> None:
    op = "yuv_to_tiles"
    if not (isinstance(y_LYX, Tensor) and isinstance(u_LHW, Tensor) and isinstance(v_LHW, Tensor)):
        refuse_types(op, y=y_LYX, u=u_LHW, v=v_LHW)
    shape = tuple(y_LYX.shape)
    if len(shape) != 3:
        refuse(op, "y's shape", shape, "(L, Y, X)")
    if not (shape[1] >= 1 and shape[2] >= 1):
        refuse(op, "y's size (Y, X)", shape[1:], "at least one sample")
    half = (shape[0], (shape[1] + 1) // 2, (shape[2] + 1) // 2)
    for name, plane, needed, steps in (
        ("y", y_LYX, shape, (1,)),
        ("u", u_LHW, half, (1, 2)),
        ("v", v_LHW, half, (1, 2)),
    ):
        if plane.dtype != torch.uint8:
            refuse(op, f"{name}'s dtype", plane.dtype, "torch.uint8")
        if plane.device != y_LYX.device:
            refuse(op, f"{name}'s device", plane.device, f"y's {y_LYX.device}")
        if tuple(plane.shape) != needed:
            refuse(op, f"{name}'s shape", tuple(plane.shape), f"{needed}, half of y's rounded up")
        if not (plane.stride(2) in steps or needed[2] == 1):
            refuse(
                op,
                f"{name}'s stride along a row",
                plane.stride(2),
                " or ".join(map(str, steps)) + "; call .contiguous()",
            )
