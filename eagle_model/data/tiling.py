"""Which grid of square tiles shows an image best: Image Area Preservation (IAP). Numbers only.

    choose_grid(640, 480, tile_px=448, max_tiles=12)        # Grid(cols=4, rows=3), and its num_tiles is 13

An image is resized to (cols * tile_px, rows * tile_px), cut row by row into tiles, and followed by a thumbnail of the
whole where there is more than one tile. Source: arXiv:2504.15271, the section on Image Area Preservation.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple


class Grid(NamedTuple):
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


def choose_grid(width_px: int, height_px: int, *, tile_px: int, max_tiles: int) -> Grid:
    """The tile grid that keeps most of an image's area and shape.

    Maximises min(A_grid / A_image, 0.6) * min(r_grid / r_image, r_image / r_grid), A in pixels,
    r = width / height. A tie takes fewer tiles, then fewer columns.

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

    def score(grid: Grid) -> float:
        kept_area = min(grid.cols * grid.rows * tile_px * tile_px / image_area, 0.6)
        ratio = grid.cols / grid.rows
        return kept_area * min(ratio / image_ratio, image_ratio / ratio)

    return max(candidate_grids(max_tiles), key=score)  # of equals, max takes the first
