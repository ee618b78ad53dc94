"""What a tile is: `Tiling`, which every op that makes tiles takes, and the arithmetic that those ops share.

    tiling = Tiling(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    tiles_IPK = frames_to_tiles(frames_LYX3, (2, 1), tiling)  # two tiles a frame, side by side, of 1024 patches each

Dims    I tiles; P = (tile_px / patch_px)**2 patches a tile, row by row; K = 3 * patch_px**2 numbers a patch, ordered
        (channel, y, x) as a flattened convolution weight.
Filter  Along one axis of scale s = in / out, output pixel i takes input pixel j by w[i, j] / sum_j w[i, j],
            w[i, j] = cubic((j + 0.5 - (i + 0.5) * s) / max(s, 1)),  Keys' cubic with a = -0.5: Pillow's BICUBIC.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from eagle_kernels.checks import kind_of, refuse

Layout = Literal["patches", "tiles"]
DTYPES = (torch.bfloat16, torch.float32, torch.uint8)
MAX_TILE_PX = 16_384  # kMaxTile of csrc/tiles.cpp: no product in the kernels leaves its type
MAX_VALUE = 1e30  # limit: of mean and std, so that no float32 overflows
MAX_TILES = 1 << 20  # of a grid, kMaxTiles there


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How frames become tiles. Frozen, and checked once, here.

    mean, std: of red, green and blue, on the scale where 255 is 1; a tile holds (x / 255 - mean) / std.
    tile_px: the side of a square tile, in pixels.  patch_px: the side of a patch; divides tile_px.
    thumbnail: adds the whole frame as one more, last tile, unless the grid is one tile already.
    dtype: of the result: bfloat16, float32, or uint8 for the pixels before normalisation.
    layout: "patches" gives (I, P, K), "tiles" whole tiles, (I, 3, tile_px, tile_px).

    Raises ValueError, which names the field, when one is not as above.

        Tiling(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), thumbnail=True)
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tile_px: int = 448
    patch_px: int = 14
    thumbnail: bool = False
    dtype: torch.dtype = torch.bfloat16
    layout: Layout = "patches"
    kernel_patch_px: int = field(init=False, repr=False)  # patch_px as kernels are told: a whole tile is its own patch

    def __post_init__(self) -> None:
        for name in ("tile_px", "patch_px"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                refuse("Tiling", name, repr(value), "a whole number of pixels, an int")
        if not 1 <= self.tile_px <= MAX_TILE_PX:
            refuse("Tiling", "tile_px", self.tile_px, f"1 to {MAX_TILE_PX}")
        divides = self.patch_px >= 1 and self.tile_px % self.patch_px == 0
        if not divides:
            refuse("Tiling", "patch_px", self.patch_px, f"a divisor of tile_px = {self.tile_px}")
        for name in ("mean", "std"):
            object.__setattr__(self, name, _three_numbers(name, getattr(self, name)))
        if min(self.std) <= 0:
            refuse("Tiling", "std", self.std, "numbers above 0")
        if not isinstance(self.thumbnail, bool):
            refuse("Tiling", "thumbnail", repr(self.thumbnail), "True or False")
        if self.dtype not in DTYPES:
            refuse("Tiling", "dtype", self.dtype, "one of " + ", ".join(map(str, DTYPES)))
        if self.layout not in get_args(Layout):
            refuse("Tiling", "layout", repr(self.layout), "'patches' or 'tiles'")
        object.__setattr__(self, "kernel_patch_px", self.tile_px if self.layout == "tiles" else self.patch_px)

    def num_tiles(self, grid: tuple[int, int]) -> int:
        """Tiles of a frame that is cut into `grid`, (cols, rows): the thumbnail is counted."""
        num = grid[0] * grid[1]
        return num + 1 if self.thumbnail and num > 1 else num

    def shape(self, num_tiles: int) -> tuple[int, ...]:
        """Of the result for that many tiles in all."""
        if self.layout == "tiles":
            return (num_tiles, 3, self.tile_px, self.tile_px)
        return (num_tiles, (self.tile_px // self.patch_px) ** 2, 3 * self.patch_px**2)


def _three_numbers(name: str, values: Any) -> tuple[float, ...]:
    need = f"three finite numbers, of red, green and blue: {name}=(0.5, 0.5, 0.5)"
    ok = isinstance(values, Sequence) and len(values) == 3 and all(isinstance(v, int | float) for v in values)
    if not (ok and all(abs(v) < MAX_VALUE for v in values)):
        refuse("Tiling", name, repr(values), need)
    return tuple(float(v) for v in values)


def check_arguments(op: str, tiling: Any, grids: Sequence[Any], num_threads: Any) -> None:
    """What every op asks of the arguments beside its pixels. Raises ValueError in the name of `op`."""
    if not isinstance(tiling, Tiling):
        refuse(op, "tiling", kind_of(tiling), "a Tiling, as Tiling(mean=..., std=...)")
    for grid in grids:
        ok = isinstance(grid, tuple | list) and len(grid) == 2 and all(isinstance(n, int) and n >= 1 for n in grid)
        ok = ok and grid[0] * grid[1] <= MAX_TILES
        if not ok:
            refuse(op, "grid", grid, f"(cols, rows), both >= 1 and at most {MAX_TILES} tiles")
    if not (isinstance(num_threads, int) and num_threads >= 0):
        refuse(op, "num_threads", num_threads, "at least 0 (0: one for each CPU)")


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


def tiles_ref(
    resize: Callable[[int, int, int], Tensor],
    num_frames: int,
    grid: tuple[int, int],
    tiling: Tiling,
    device: torch.device,
) -> Tensor:
    """The tiles of all frames in plain torch; resize(l, width_px, height_px) gives frame l whole, uint8 (Y, X, 3)."""
    (cols, rows), tile_px = grid, tiling.tile_px
    images = []
    for frame in range(num_frames):
        whole_YX3 = resize(frame, cols * tile_px, rows * tile_px)
        tiles = whole_YX3.unflatten(0, (rows, tile_px)).unflatten(2, (cols, tile_px)).transpose(1, 2)
        images += list(tiles.flatten(0, 1))
        if tiling.num_tiles(grid) > cols * rows:
            images.append(resize(frame, tile_px, tile_px))
    empty = torch.empty((0, tile_px, tile_px, 3), dtype=torch.uint8, device=device)
    tiles_I3YX = (torch.stack(images) if images else empty).permute(0, 3, 1, 2)
    if tiling.dtype != torch.uint8:
        mean_311, std_311 = (torch.tensor(v, device=device).view(3, 1, 1) for v in (tiling.mean, tiling.std))
        tiles_I3YX = ((tiles_I3YX.float() / 255 - mean_311) / std_311).to(tiling.dtype)
    if tiling.layout == "tiles":
        return tiles_I3YX.contiguous()
    patch_px = tiling.patch_px
    side = tile_px // patch_px
    blocks = tiles_I3YX.unflatten(3, (side, patch_px)).unflatten(2, (side, patch_px))  # I, 3, y, dy, x, dx
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
