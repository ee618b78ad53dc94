"""RGB frames -> the normalised patches of their tiles, in one pass: resize, cut, thumbnail, normalise, patchify, cast.

    tiling = Tiling(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    tiles_IPK = frames_to_tiles(torch.zeros(8, 720, 1280, 3, dtype=torch.uint8), (2, 1), tiling)  # (16, 1024, 588)

Dims    L frames, Y x X their pixels; I tiles in all; P patches a tile, K numbers a patch: tiles.py.
Resize  The whole frame to (cols * tile_px, rows * tile_px), its shape not kept, then cut row by row; the thumbnail is
        the whole frame at tile_px x tile_px and comes last.
Numbers Pillow's BICUBIC on uint8, bit for bit. Along one axis output pixel i takes, with the filter w of tiles.py,
            out[i] = clip((2**21 + sum_j in[j] * W[i, j]) >> 22, 0, 255)
            W[i, j] = round(2**22 * w[i, j] / sum_j w[i, j]),  half away from zero
        so the first axis is rounded to uint8 before the second, and their order shows in the last bits:
        "horizontal" is rows first, as Pillow up to 12; "pillow" is Pillow 13's: columns first when the height shrinks
        and 2 * (X - width) < Y - height. Then (x / 255 - mean) / std in fp32, rounded once to the dtype asked for.
Source  python-pillow/Pillow, Resample.c, and its pull request 9549 (the order in Pillow 13); arXiv:2504.15271 (tiles).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from eagle_kernels import native
from eagle_kernels.checks import kind_of, refuse, refuse_types
from eagle_kernels.library import custom_op
from eagle_kernels.tiles import Tiling, check_arguments, filter_weights, tiles_ref

PassOrder = Literal["horizontal", "pillow"]
WEIGHT_BITS = 22


def _weights(num_in: int, num_out: int) -> Tensor:
    """(num_out, num_in) fp64 of the integers W."""
    w = filter_weights(num_in, num_out)
    return torch.from_numpy(np.trunc(np.where(w < 0, -0.5, 0.5) + w * 2**WEIGHT_BITS))


def _resize_ref(frame_YX3: Tensor, width_px: int, height_px: int, pass_order: str) -> Tensor:
    """(height_px, width_px, 3) uint8. The products are integers below 2**53, so matmul in fp64 is exact."""

    def one_pass(weights: Tensor, pixels: Tensor) -> Tensor:
        sums = weights.to(pixels.device) @ pixels.double().flatten(1) + 2 ** (WEIGHT_BITS - 1)
        return (sums / 2**WEIGHT_BITS).floor().clamp(0, 255).to(torch.uint8).unflatten(1, pixels.shape[1:])

    def down(pixels: Tensor) -> Tensor:
        return one_pass(_weights(height, height_px), pixels)

    def across(pixels: Tensor) -> Tensor:
        return one_pass(_weights(width, width_px), pixels.transpose(0, 1)).transpose(0, 1)

    height, width = frame_YX3.shape[:2]
    columns_first = pass_order == "pillow" and height_px < height and 2 * (width - width_px) < height - height_px
    return across(down(frame_YX3)) if columns_first else down(across(frame_YX3))


def frames_to_tiles_ref(
    frames_LYX3: Tensor, grid: tuple[int, int], tiling: Tiling, *, pass_order: PassOrder = "horizontal"
) -> Tensor:
    """What the kernel means, in plain torch: `frames_to_tiles` with the same arguments, on any device, slowly."""

    def resize(frame: int, width_px: int, height_px: int) -> Tensor:
        return _resize_ref(frames_LYX3[frame], width_px, height_px, pass_order)

    return tiles_ref(resize, len(frames_LYX3), grid, tiling, frames_LYX3.device)


@custom_op("eagle::frames_to_tiles")
def _fwd(
    groups_LYX3: Sequence[Tensor],
    cols: Sequence[int],
    rows: Sequence[int],
    tile_px: int,
    patch_px: int,
    mean: Sequence[float],
    std: Sequence[float],
    thumbnail: bool,
    dtype: torch.dtype,
    pass_order: str,
    num_threads: int,
) -> Tensor:
    """(I, P, K) of all groups, one after the other; a group is frames of one size, with a grid of its own."""
    out_IPK = _fwd_fake(
        groups_LYX3, cols, rows, tile_px, patch_px, mean, std, thumbnail, dtype, pass_order, num_threads
    )
    if out_IPK.numel() == 0:
        return out_IPK
    extension = native.load()
    common = {"tile_px": tile_px, "patch_px": patch_px, "thumbnail": thumbnail, "pass_order": pass_order}
    tilings = [extension.Tiling(cols=c, rows=r, mean=mean, std=std, **common) for c, r in zip(cols, rows, strict=True)]
    if not groups_LYX3[0].is_cuda:
        counts = _num_tiles(groups_LYX3, cols, rows, thumbnail)
        for frames_LYX3, tiling, part_IPK in zip(groups_LYX3, tilings, out_IPK.split(counts), strict=True):
            extension.frames_to_tiles_cpu(native.view(frames_LYX3), native.view(part_IPK), tiling, num_threads)
        return out_IPK
    native.require_cuda("frames_to_tiles")
    groups = [(native.view(f), tiling) for f, tiling in zip(groups_LYX3, tilings, strict=True)]
    device = out_IPK.device
    workspace = out_IPK.new_empty(extension.frames_to_tiles_workspace_bytes(groups), dtype=torch.uint8)
    stream = torch.cuda.current_stream(device).cuda_stream
    # Freed before the kernels ran, and safely: the allocator hands the memory on in the order of this same stream.
    extension.frames_to_tiles_cuda(groups, native.view(out_IPK), native.view(workspace), device.index, stream)
    return out_IPK


def _num_tiles(groups_LYX3: Sequence[Tensor], cols: Sequence[int], rows: Sequence[int], thumbnail: bool) -> list[int]:
    """Of each group."""
    a_frame = [c * r + (1 if thumbnail and c * r > 1 else 0) for c, r in zip(cols, rows, strict=True)]
    return [frames_LYX3.shape[0] * num for frames_LYX3, num in zip(groups_LYX3, a_frame, strict=True)]


@_fwd.register_fake
def _fwd_fake(
    groups_LYX3: Sequence[Tensor],
    cols: Sequence[int],
    rows: Sequence[int],
    tile_px: int,
    patch_px: int,
    mean: Sequence[float],
    std: Sequence[float],
    thumbnail: bool,
    dtype: torch.dtype,
    pass_order: str,
    num_threads: int,
) -> Tensor:
    num_tiles = sum(_num_tiles(groups_LYX3, cols, rows, thumbnail))
    shape = (num_tiles, (tile_px // patch_px) ** 2, 3 * patch_px**2)
    return torch.empty(shape, dtype=dtype, device=groups_LYX3[0].device)


def frames_to_tiles(
    frames_LYX3: Tensor,
    grid: tuple[int, int],
    tiling: Tiling,
    *,
    pass_order: PassOrder = "horizontal",
    num_threads: int = 0,
) -> Tensor:
    """Tiles of every frame, frame by frame, row by row, thumbnail last. CPU tensors take the C++ code, CUDA the kernel.

    L frames of Y x X pixels give I = L * tiling.num_tiles(grid) tiles of P patches of K numbers: tiling.shape(I).

        tiling = Tiling(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        tiles_IPK = frames_to_tiles(torch.zeros(8, 720, 1280, 3, dtype=torch.uint8), (2, 1), tiling)  # (16, 1024, 588)

    Args:    frames_LYX3: (L, Y, X, 3) uint8, the pixels of a row contiguous; L may be 0.
             grid: (cols, rows), each >= 1: the whole frame becomes cols * tile_px pixels wide, rows * tile_px high.
             tiling: sizes, normalisation, dtype and layout of the tiles.
             pass_order: "horizontal" resizes rows before columns, as Pillow up to 12; "pillow" decides as Pillow 13.
             num_threads: of the CPU code; 0 is one for each CPU. The bits do not depend on it.
    Returns: (I, P, K), or (I, 3, tile_px, tile_px) with layout="tiles".
    Raises:  ValueError when an argument is not as above; RuntimeError for CUDA tensors in a build without CUDA.
    """
    op = "frames_to_tiles"
    if not isinstance(frames_LYX3, Tensor):
        refuse_types(op, frames=frames_LYX3)
    _check_frames(op, frames_LYX3)
    return _tiles_of_groups(op, [frames_LYX3], [grid], tiling, pass_order, num_threads)


def images_to_tiles(
    images_YX3: Sequence[Tensor],
    grids: Sequence[tuple[int, int]],
    tiling: Tiling,
    *,
    pass_order: PassOrder = "horizontal",
    num_threads: int = 0,
) -> Tensor:
    """Tiles of images of any sizes, each with a grid of its own, one image after the other: `frames_to_tiles` of each.

    On a GPU all images (64, or more in turns) take one launch for their filter weights and one for everything else.

        small, large = torch.zeros(30, 40, 3, dtype=torch.uint8), torch.zeros(1080, 1920, 3, dtype=torch.uint8)
        tiles_IPK = images_to_tiles([small, large], [(1, 1), (2, 1)], tiling)  # (3, 1024, 588)

    Args:    images_YX3: at least one (Y, X, 3) uint8, the pixels of a row contiguous, all on one device.
             grids: (cols, rows) of each image, each >= 1.  tiling, pass_order, num_threads: as for `frames_to_tiles`.
    Returns: (I, P, K), or (I, 3, tile_px, tile_px) with layout="tiles"; I is the sum of tiling.num_tiles(grid).
    Raises:  ValueError when an argument is not as above; RuntimeError for CUDA tensors in a build without CUDA.
    """
    op = "images_to_tiles"
    for name, given in (("images", images_YX3), ("grids", grids)):
        if not isinstance(given, list | tuple):
            refuse(op, name, kind_of(given), "a list, one for each image")
    if not len(images_YX3) >= 1:
        refuse(op, "the number of images", len(images_YX3), "at least 1")
    if len(grids) != len(images_YX3):
        refuse(op, "the number of grids", len(grids), f"one for each of {len(images_YX3)} images")
    for image_YX3 in images_YX3:
        if not isinstance(image_YX3, Tensor):
            refuse_types(op, image=image_YX3)
        if image_YX3.dim() != 3:
            refuse(op, "an image's shape", tuple(image_YX3.shape), "(Y, X, 3)")
        if image_YX3.device != images_YX3[0].device:
            refuse(op, "an image's device", image_YX3.device, "one for all")
        _check_frames(op, image_YX3[None])
    return _tiles_of_groups(op, [image_YX3[None] for image_YX3 in images_YX3], grids, tiling, pass_order, num_threads)


def _tiles_of_groups(
    op: str,
    groups_LYX3: Sequence[Tensor],
    grids: Sequence[tuple[int, int]],
    tiling: Tiling,
    pass_order: PassOrder,
    num_threads: int,
) -> Tensor:
    check_arguments(op, tiling, grids, num_threads)
    if pass_order not in get_args(PassOrder):
        refuse(op, "pass_order", repr(pass_order), "'horizontal' or 'pillow'")
    out_IPK = _fwd(
        groups_LYX3, [cols for cols, _ in grids], [rows for _, rows in grids], tiling.tile_px, tiling.kernel_patch_px,
        tiling.mean, tiling.std, tiling.thumbnail, tiling.dtype, pass_order, num_threads,
    )  # fmt: skip
    return out_IPK.view(tiling.shape(out_IPK.shape[0]))


def _check_frames(op: str, frames_LYX3: Tensor) -> None:
    shape = tuple(frames_LYX3.shape)
    if frames_LYX3.dtype != torch.uint8:
        refuse(op, "frames' dtype", frames_LYX3.dtype, "torch.uint8")
    if not (len(shape) == 4 and shape[3] == 3):
        refuse(op, "frames' shape", shape, "(L, Y, X, 3)")
    if not (shape[1] >= 1 and shape[2] >= 1):
        refuse(op, "frames' size (Y, X)", shape[1:3], "at least one pixel")
    strides = frames_LYX3.stride()
    if not (strides[3] == 1 and (strides[2] == 3 or shape[2] == 1)):
        refuse(op, "frames' strides", strides, "(..., ..., 3, 1), the pixels of a row side by side; call .contiguous()")
