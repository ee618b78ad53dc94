"""Which grid of square tiles shows an image best: Image Area Preservation (IAP). Numbers only.

    choose_grid(640, 480, tile_px=448, max_tiles=12)        # Grid(cols=4, rows=3), and its num_tiles is 13

An image is resized to (cols * tile_px, rows * tile_px), cut row by row into tiles, and followed by a thumbnail of the
whole where there is more than one tile. Source: arXiv:2504.15271, the section on Image Area Preservation.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

TilingRule = Literal["iap", "closest_ratio"]
_AT_ONCE = 2048  # images: their scores of all grids stay in the cache


class Grid(NamedTuple):
    """How an image is cut into tiles; (1, 1) is not cut."""

    cols: int
    rows: int

    @property
    def num_tiles(self) -> int:
        """Tiles that the vision encoder sees: cols * rows, and a thumbnail where that is more than one."""
        cut = self.cols * self.rows
        return cut + 1 if cut > 1 else 1


@cache
def candidate_grids(max_tiles: int) -> tuple[Grid, ...]:
    """Every grid of 1 to max_tiles tiles, thumbnail not counted: fewer tiles first, then fewer columns."""
    grids = [Grid(cols, rows) for cols in range(1, max_tiles + 1) for rows in range(1, max_tiles // cols + 1)]
    return tuple(sorted(grids, key=lambda grid: (grid.cols * grid.rows, grid.cols)))


def choose_grid(width_px: int, height_px: int, *, tile_px: int, max_tiles: int, rule: TilingRule = "iap") -> Grid:
    """The tile grid that keeps most of an image's area and shape.

    rule "iap" maximises min(A_grid / A_image, 0.6) * min(r_grid / r_image, r_image / r_grid), A in pixels,
    r = width / height. A tie takes fewer tiles, then fewer columns.
    rule "closest_ratio", InternVL's, which the paper compares with, minimises |r_grid - r_image|. A tie takes the grid
    of more tiles where the image has more than half of its area.

    Scores are float64, computed in the order of the released code, because its rounding is part of the answer: below
    0.6 of the image's area all grids of one height that are wider than the image score alike as fractions (so do all
    of one width that are taller), and there the last bit decides. 1000 x 3000 px at 6 tiles: 1x3, 1x4 and 1x5 are
    equal as fractions, and 1x5 is the grid that released weights know. Only scores equal in float64 count as a tie.

    Args:    width_px, height_px, tile_px: pixels, >= 1.  max_tiles: >= 1, thumbnail not counted.
    Returns: Grid with 1 <= cols * rows <= max_tiles.
    Raises:  ValueError if an argument is below 1.
    Source:  arXiv:2504.15271, Image Area Preservation; golden table: tests/golden/iap_grids.json.
    """
    for name, value in [
        ("width_px", width_px),
        ("height_px", height_px),
        ("tile_px", tile_px),
        ("max_tiles", max_tiles),
    ]:
        if value < 1:
            raise ValueError(f"choose_grid: {name} is {value}; needs at least 1.")
    image_area, image_ratio = width_px * height_px, width_px / height_px
    if rule == "closest_ratio":
        return _closest_ratio(image_area, image_ratio, tile_px, max_tiles)

    def score(grid: Grid) -> float:
        kept_area = min(grid.cols * grid.rows * tile_px * tile_px / image_area, 0.6)
        ratio = grid.cols / grid.rows
        return kept_area * min(ratio / image_ratio, image_ratio / ratio)

    return max(candidate_grids(max_tiles), key=score)  # of equals, max takes the first


def _closest_ratio(image_area: int, image_ratio: float, tile_px: int, max_tiles: int) -> Grid:
    best, least = Grid(1, 1), float("inf")
    for grid in candidate_grids(max_tiles):
        off = abs(grid.cols / grid.rows - image_ratio)
        if off < least or (off == least and image_area > 0.5 * tile_px * tile_px * grid.cols * grid.rows):
            best, least = grid, off
    return best


def choose_grids(
    sizes_N2: NDArray[np.int64], max_tiles: int, *, tile_px: int, rule: TilingRule = "iap"
) -> NDArray[np.int32]:
    """`choose_grid` of many images at once: sizes (N, 2), width and height in pixels -> (N, 2), columns and rows."""
    candidates_G2 = np.array(candidate_grids(max_tiles), np.int32)
    if rule == "closest_ratio":
        sizes = sizes_N2.tolist()
        grids = [choose_grid(w, h, tile_px=tile_px, max_tiles=max_tiles, rule=rule) for w, h in sizes]
        return np.array(grids, np.int32).reshape(-1, 2)
    areas_G = (candidates_G2[:, 0].astype(np.int64) * candidates_G2[:, 1] * tile_px * tile_px).astype(np.float64)
    ratios_G = candidates_G2[:, 0] / candidates_G2[:, 1]
    grids_N2 = np.empty((len(sizes_N2), 2), np.int32)
    for begin in range(0, len(sizes_N2), _AT_ONCE):
        width_N, height_N = sizes_N2[begin : begin + _AT_ONCE].astype(np.float64).T
        image_ratio_N1 = (width_N / height_N)[:, None]
        score_NG = np.minimum(ratios_G / image_ratio_N1, image_ratio_N1 / ratios_G)
        score_NG *= np.minimum(areas_G / (width_N * height_N)[:, None], 0.6)
        grids_N2[begin : begin + _AT_ONCE] = candidates_G2[score_NG.argmax(1)]  # of equals, argmax takes the first
    return grids_N2


def num_tiles_of(grids_N2: NDArray[np.int32]) -> NDArray[np.int64]:
    """`Grid.num_tiles` of many."""
    cut_N = grids_N2[:, 0].astype(np.int64) * grids_N2[:, 1]
    return cut_N + (cut_N > 1)
