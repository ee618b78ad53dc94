"""RGB frames -> the normalised patches of their tiles, in one pass: resize, cut, thumbnail, normalise, patchify, cast.

Dims    L frames, Y x X their pixels; I = L * (cols * rows, + 1 with a thumbnail) tiles; P patches a tile, row by row;
        K = 3 * patch_px**2 numbers a patch, ordered (channel, y, x) as a flattened convolution weight.
Resize  The whole frame to (cols * tile_px, rows * tile_px), its shape not kept, then cut row by row; the thumbnail is
        the whole frame at tile_px x tile_px and comes last.
Numbers Pillow's BICUBIC on uint8, bit for bit. Along one axis of scale s = in / out, output pixel i takes
            out[i] = clip((2**21 + sum_j in[j] * W[i, j]) >> 22, 0, 255)
            W[i, j] = round(2**22 * w[i, j] / sum_j w[i, j]),  half away from zero
            w[i, j] = cubic((j + 0.5 - (i + 0.5) * s) / max(s, 1)),  Keys' cubic with a = -0.5
        so the first axis is rounded to uint8 before the second, and their order shows in the last bits:
        "horizontal" is rows first, as Pillow up to 12; "pillow" is Pillow 13's: columns first when the height shrinks
        and 2 * (X - width) < Y - height. Then (x / 255 - mean) / std in fp32, rounded once to `dtype`.
Source  python-pillow/Pillow, Resample.c, and its pull request 9549 (the order in Pillow 13); arXiv:2504.15271 (tiles).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from eagle_kernels import native
from eagle_kernels.checks import check

WEIGHT_BITS = 22
PASS_ORDERS = ("horizontal", "pillow")
DTYPES = (torch.bfloat16, torch.float32, torch.uint8)


def _cubic(x: np.ndarray) -> np.ndarray:
    a, x = -0.5, np.abs(x)
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def filter_weights(num_in: int, num_out: int, *, length: float | None = None, shift: float = 0.0) -> np.ndarray:
    """(num_out, num_in) fp64, w over its sums: one axis of a resize as a matrix.

    The picture is `length` input pixels long (num_in, unless told) and begins `shift` pixels into the first.
    """
    scale = (num_in if length is None else length) / num_out
    stretch = max(scale, 1.0)
    center = (np.arange(num_out)[:, None] + 0.5) * scale + shift
    j = np.arange(num_in)[None, :]
    begin = np.maximum((center - 2 * stretch + 0.5).astype(np.int64), 0)
    end = np.minimum((center + 2 * stretch + 0.5).astype(np.int64), num_in)
    w = np.where((j >= begin) & (j < end), _cubic((j - center + 0.5) * (1 / stretch)), 0.0)
    w /= np.cumsum(w, axis=1)[:, -1:]  # cumsum adds from left to right, as Pillow does; sum() would not
    return w


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


def cut_ref(whole_YX3: Tensor, grid: tuple[int, int], tile_px: int) -> list[Tensor]:
    """The tiles of a whole resized frame, row by row."""
    cols, rows = grid
    tiles = whole_YX3.unflatten(0, (rows, tile_px)).unflatten(2, (cols, tile_px)).transpose(1, 2)
    return list(tiles.flatten(0, 1))


def patches_ref(
    tiles_IYX3: Tensor, patch_px: int, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, layout: str
) -> Tensor:
    """uint8 tiles normalised, cast and laid out."""
    tiles_I3YX = tiles_IYX3.permute(0, 3, 1, 2)
    if dtype != torch.uint8:
        mean_311, std_311 = (torch.tensor(v, device=tiles_IYX3.device).view(3, 1, 1) for v in (mean, std))
        tiles_I3YX = ((tiles_I3YX.float() / 255 - mean_311) / std_311).to(dtype)
    if layout == "tiles":
        return tiles_I3YX.contiguous()
    side = tiles_IYX3.shape[1] // patch_px
    blocks = tiles_I3YX.unflatten(3, (side, patch_px)).unflatten(2, (side, patch_px))  # I, 3, y, dy, x, dx
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def frames_to_tiles_ref(
    frames_LYX3: Tensor,
    grid: tuple[int, int],
    *,
    tile_px: int = 448,
    patch_px: int = 14,
    mean: Sequence[float],
    std: Sequence[float],
    thumbnail: bool,
    dtype: torch.dtype = torch.bfloat16,
    layout: str = "patches",
    pass_order: str = "horizontal",
) -> Tensor:
    """What the kernel means, in plain torch: `frames_to_tiles` with the same arguments, on any device, slowly."""
    cols, rows = grid
    images = []
    for frame_YX3 in frames_LYX3:
        images += cut_ref(_resize_ref(frame_YX3, cols * tile_px, rows * tile_px, pass_order), grid, tile_px)
        if thumbnail and cols * rows > 1:
            images.append(_resize_ref(frame_YX3, tile_px, tile_px, pass_order))
    tiles_IYX3 = torch.stack(images) if images else frames_LYX3.new_empty((0, tile_px, tile_px, 3))
    return patches_ref(tiles_IYX3, patch_px, mean, std, dtype, layout)


@torch.library.custom_op("eagle::frames_to_tiles", mutates_args=())
def _fwd(
    frames_LYX3: Tensor,
    cols: int,
    rows: int,
    tile_px: int,
    patch_px: int,
    mean: Sequence[float],
    std: Sequence[float],
    thumbnail: bool,
    dtype: torch.dtype,
    pass_order: str,
    num_threads: int,
) -> Tensor:
    out_IPK = _fwd_fake(
        frames_LYX3, cols, rows, tile_px, patch_px, mean, std, thumbnail, dtype, pass_order, num_threads
    )
    _fill(out_IPK, [frames_LYX3], [cols], [rows], tile_px, patch_px, mean, std, thumbnail, pass_order, num_threads)
    return out_IPK


def _fill(
    out_IPK: Tensor,
    groups_LYX3: Sequence[Tensor],
    cols: Sequence[int],
    rows: Sequence[int],
    tile_px: int,
    patch_px: int,
    mean: Sequence[float],
    std: Sequence[float],
    thumbnail: bool,
    pass_order: str,
    num_threads: int,
) -> None:
    """Writes the tiles of all groups, one after the other; a group is frames of one size."""
    if out_IPK.numel() == 0:
        return
    extension = native.load()
    common = {"tile_px": tile_px, "patch_px": patch_px, "thumbnail": thumbnail, "pass_order": pass_order}
    tilings = [extension.Tiling(cols=c, rows=r, mean=mean, std=std, **common) for c, r in zip(cols, rows, strict=True)]
    if not groups_LYX3[0].is_cuda:
        counts = [len(f) * tiles_a_frame(c, r, thumbnail) for f, c, r in zip(groups_LYX3, cols, rows, strict=True)]
        for frames_LYX3, tiling, part_IPK in zip(groups_LYX3, tilings, out_IPK.split(counts), strict=True):
            extension.frames_to_tiles_cpu(native.view(frames_LYX3), native.view(part_IPK), tiling, num_threads)
        return
    native.require_cuda("frames_to_tiles")
    groups = [(native.view(f), tiling) for f, tiling in zip(groups_LYX3, tilings, strict=True)]
    device = out_IPK.device
    workspace = out_IPK.new_empty(extension.frames_to_tiles_workspace_bytes(groups), dtype=torch.uint8)
    stream = torch.cuda.current_stream(device).cuda_stream
    # Freed before the kernels ran, and safely: the allocator hands the memory on in the order of this same stream.
    extension.frames_to_tiles_cuda(groups, native.view(out_IPK), native.view(workspace), device.index, stream)


def tiles_a_frame(cols: int, rows: int, thumbnail: bool) -> int:
    return cols * rows + (1 if thumbnail and cols * rows > 1 else 0)


@_fwd.register_fake
def _fwd_fake(
    frames_LYX3: Tensor,
    cols: int,
    rows: int,
    tile_px: int,
    patch_px: int,
    mean: Sequence[float],
    std: Sequence[float],
    thumbnail: bool,
    dtype: torch.dtype,
    pass_order: str,
    num_threads: int,
) -> Tensor:
    num_images = frames_LYX3.shape[0] * tiles_a_frame(cols, rows, thumbnail)
    shape = (num_images, (tile_px // patch_px) ** 2, 3 * patch_px**2)
    return torch.empty(shape, dtype=dtype, device=frames_LYX3.device)


@torch.library.custom_op("eagle::images_to_tiles", mutates_args=())
def _images_fwd(
    images_YX3: Sequence[Tensor],
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
    out_IPK = _images_fwd_fake(
        images_YX3, cols, rows, tile_px, patch_px, mean, std, thumbnail, dtype, pass_order, num_threads
    )
    groups_LYX3 = [image_YX3[None] for image_YX3 in images_YX3]
    _fill(out_IPK, groups_LYX3, cols, rows, tile_px, patch_px, mean, std, thumbnail, pass_order, num_threads)
    return out_IPK


@_images_fwd.register_fake
def _images_fwd_fake(
    images_YX3: Sequence[Tensor],
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
    num_images = sum(tiles_a_frame(c, r, thumbnail) for c, r in zip(cols, rows, strict=True))
    shape = (num_images, (tile_px // patch_px) ** 2, 3 * patch_px**2)
    return torch.empty(shape, dtype=dtype, device=images_YX3[0].device)


def frames_to_tiles(
    frames_LYX3: Tensor,
    grid: tuple[int, int],
    *,
    tile_px: int = 448,
    patch_px: int = 14,
    mean: Sequence[float],
    std: Sequence[float],
    thumbnail: bool,
    dtype: torch.dtype = torch.bfloat16,
    layout: str = "patches",
    pass_order: str = "horizontal",
    num_threads: int = 0,
) -> Tensor:
    """Tiles of every frame, frame by frame, row by row, thumbnail last. CPU tensors take the C++ code, CUDA the kernel.

    Args:    frames_LYX3: (L, Y, X, 3) uint8, the pixels of a row contiguous; L may be 0.
             grid: (cols, rows), each >= 1.  tile_px, patch_px: pixels, patch_px divides tile_px.
             mean, std: of red, green and blue, on the scale where 255 is 1.
             thumbnail: adds the whole frame as one more tile, unless the grid is one tile already.
             dtype: bfloat16, float32, or uint8 for the tiles before normalisation.
             layout: "patches", or "tiles" for whole tiles.  pass_order: "horizontal" or "pillow", see above.
             num_threads: of the CPU code; 0 is one for each CPU. The bits do not depend on it.
    Returns: (I, P, K), or (I, 3, tile_px, tile_px) with layout="tiles".
    Raises:  ValueError when an argument is not as above; RuntimeError for CUDA tensors in a build without CUDA.
    """
    _check_frames(frames_LYX3)
    check_grid("frames_to_tiles", grid)
    check_tiling("frames_to_tiles", tile_px, patch_px, mean, std, dtype, layout, pass_order, num_threads)
    cols, rows = grid
    if layout == "tiles":  # a tile is its own only patch
        out_IPK = _fwd(frames_LYX3, cols, rows, tile_px, tile_px, mean, std, thumbnail, dtype, pass_order, num_threads)
        return out_IPK.view(-1, 3, tile_px, tile_px)
    return _fwd(frames_LYX3, cols, rows, tile_px, patch_px, mean, std, thumbnail, dtype, pass_order, num_threads)


def images_to_tiles(
    images_YX3: Sequence[Tensor],
    grids: Sequence[tuple[int, int]],
    *,
    tile_px: int = 448,
    patch_px: int = 14,
    mean: Sequence[float],
    std: Sequence[float],
    thumbnail: bool,
    dtype: torch.dtype = torch.bfloat16,
    layout: str = "patches",
    pass_order: str = "horizontal",
    num_threads: int = 0,
) -> Tensor:
    """Tiles of images of any sizes, each with a grid of its own, one image after the other: `frames_to_tiles` of each.

    On a GPU all images (64, or more in turns) take one launch for their filter weights and one for everything else.

    Args:    images_YX3: at least one (Y, X, 3) uint8, the pixels of a row contiguous, all on one device.
             grids: (cols, rows) of each image; the rest as for `frames_to_tiles`.
    Returns: (I, P, K), or (I, 3, tile_px, tile_px) with layout="tiles".
    Raises:  as `frames_to_tiles`.
    """
    op = "frames_to_tiles"
    check(len(images_YX3) >= 1, op, "the number of images", len(images_YX3), "at least 1")
    check(
        len(grids) == len(images_YX3),
        op,
        "the number of grids",
        len(grids),
        f"one for each of {len(images_YX3)} images",
    )
    for image_YX3, grid in zip(images_YX3, grids, strict=True):
        check(image_YX3.dim() == 3, op, "an image's shape", tuple(image_YX3.shape), "(Y, X, 3)")
        check(image_YX3.device == images_YX3[0].device, op, "an image's device", image_YX3.device, "one for all")
        _check_frames(image_YX3[None])
        check_grid("frames_to_tiles", grid)
    check_tiling("frames_to_tiles", tile_px, patch_px, mean, std, dtype, layout, pass_order, num_threads)
    cols, rows = [c for c, _ in grids], [r for _, r in grids]
    patch_px = tile_px if layout == "tiles" else patch_px  # a tile is its own only patch
    out_IPK = _images_fwd(
        images_YX3, cols, rows, tile_px, patch_px, mean, std, thumbnail, dtype, pass_order, num_threads
    )
    return out_IPK.view(-1, 3, tile_px, tile_px) if layout == "tiles" else out_IPK


def _check_frames(frames_LYX3: Tensor) -> None:
    op, shape = "frames_to_tiles", tuple(frames_LYX3.shape)
    check(frames_LYX3.dtype == torch.uint8, op, "frames' dtype", frames_LYX3.dtype, "torch.uint8")
    check(len(shape) == 4 and shape[3] == 3, op, "frames' shape", shape, "(L, Y, X, 3)")
    check(shape[1] >= 1 and shape[2] >= 1, op, "frames' size (Y, X)", shape[1:3], "at least one pixel")
    strides = frames_LYX3.stride()
    check(
        strides[3] == 1 and (strides[2] == 3 or shape[2] == 1),
        op,
        "frames' strides",
        strides,
        "(..., ..., 3, 1), the pixels of a row side by side; call .contiguous()",
    )


def check_grid(op: str, grid: tuple[int, int]) -> None:
    check(len(grid) == 2 and min(grid) >= 1, op, "grid", tuple(grid), "(cols, rows), both >= 1")


def check_tiling(
    op: str,
    tile_px: int,
    patch_px: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    layout: str,
    pass_order: str,
    num_threads: int,
) -> None:
    check(tile_px >= 1, op, "tile_px", tile_px, "at least 1")
    check(patch_px >= 1 and tile_px % patch_px == 0, op, "patch_px", patch_px, f"a divisor of tile_px = {tile_px}")
    for name, values in (("mean", mean), ("std", std)):
        ok = len(values) == 3 and all(math.isfinite(v) for v in values)
        check(ok, op, name, tuple(values), "three finite numbers, for red, green and blue")
    check(all(v != 0 for v in std), op, "std", tuple(std), "no zero")
    check(dtype in DTYPES, op, "dtype", dtype, "one of " + ", ".join(map(str, DTYPES)))
    check(layout in ("patches", "tiles"), op, "layout", repr(layout), "'patches' or 'tiles'")
    check(pass_order in PASS_ORDERS, op, "pass_order", repr(pass_order), "'horizontal' or 'pillow'")
    check(num_threads >= 0, op, "num_threads", num_threads, "at least 0 (0: one for each CPU)")
