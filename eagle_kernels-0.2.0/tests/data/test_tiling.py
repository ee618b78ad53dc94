"""IAP: the golden grids, and every choice against all candidates, in fractions and in floats."""

import json
import random
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_model.data.tiling import Grid, candidate_grids, choose_grid, choose_grids, num_tiles_of

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "iap_grids.json").read_text())
RULES = st.sampled_from(["iap", "closest_ratio"])
SIZES_PX = st.integers(1, 10_000)


def all_grids(max_tiles: int) -> list[tuple[int, int]]:
    """An oracle's own list, in no particular order."""
    pairs = [(c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles + 1) if c * r <= max_tiles]
    random.Random(max_tiles).shuffle(pairs)
    return pairs


def exact_score(width: int, height: int, tile: int, cols: int, rows: int) -> Fraction:
    kept = min(Fraction(cols * rows * tile**2, width * height), Fraction(3, 5))
    shape = Fraction(cols * height, rows * width)
    return kept * min(shape, 1 / shape)


def float_score(width: int, height: int, tile: int, cols: int, rows: int) -> float:
    kept = min((cols * rows * tile * tile) / (width * height), 0.6)
    return kept * min((cols / rows) / (width / height), (width / height) / (cols / rows))


@pytest.mark.parametrize("row", GOLDEN["grids"], ids=lambda r: f"{r['width_px']}x{r['height_px']}-{r['max_tiles']}")
def test_golden_grids(row):
    grid = choose_grid(row["width_px"], row["height_px"], tile_px=GOLDEN["tile_px"], max_tiles=row["max_tiles"])
    assert list(grid) == row["grid"]


def test_candidates():
    for max_tiles, count in GOLDEN["num_candidates"].items():
        assert len(candidate_grids(int(max_tiles))) == count
        assert set(candidate_grids(int(max_tiles))) == set(all_grids(int(max_tiles)))
    assert sorted(map(list, candidate_grids(12))) == GOLDEN["candidates_of_12_tiles"]
    assert candidate_grids(4) == ((1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4), (2, 2), (4, 1))


def test_no_candidate_is_better_for_ten_thousand_sizes():
    rng = random.Random(0)
    for _ in range(10_000):
        width, height = rng.randint(1, 6000), rng.randint(1, 6000)
        tile, max_tiles = rng.choice([448, 448, 384, 56]), rng.choice([1, 2, 4, 6, 8, 12, 12, 24])
        grid = choose_grid(width, height, tile_px=tile, max_tiles=max_tiles)
        scores = {pair: float_score(width, height, tile, *pair) for pair in all_grids(max_tiles)}
        best = max(scores.values())
        first = min((c * r, c, r) for (c, r), score in scores.items() if score == best)  # fewer tiles, then columns
        assert (grid.cols * grid.rows, *grid) == first


@given(width=SIZES_PX, height=SIZES_PX, tile=st.integers(1, 1024), max_tiles=st.integers(1, 24))
def test_best_as_a_fraction_up_to_rounding(width, height, tile, max_tiles):
    grid = choose_grid(width, height, tile_px=tile, max_tiles=max_tiles)
    assert 1 <= grid.cols * grid.rows <= max_tiles
    best = max(exact_score(width, height, tile, *pair) for pair in all_grids(max_tiles))
    assert exact_score(width, height, tile, *grid) >= best * (1 - Fraction(1, 10**14))


@given(width=SIZES_PX, height=SIZES_PX, fewer=st.integers(1, 24), more=st.integers(1, 24))
def test_tiles_never_fall_when_more_are_allowed(width, height, fewer, more):
    fewer, more = sorted((fewer, more))
    few, many = (choose_grid(width, height, tile_px=448, max_tiles=n) for n in (fewer, more))
    assert few.num_tiles <= many.num_tiles


@given(cols=st.integers(1, 12), rows=st.integers(1, 12))
def test_an_image_made_of_tiles_keeps_its_shape(cols, rows):
    grid = choose_grid(cols * 448, rows * 448, tile_px=448, max_tiles=cols * rows)
    assert exact_score(cols * 448, rows * 448, 448, *grid) == Fraction(3, 5)  # the most there is
    assert Fraction(grid.cols, grid.rows) == Fraction(cols, rows)


def test_ties():
    assert choose_grid(1000, 1000, tile_px=448, max_tiles=2) == (1, 1)  # 1x1, 1x2 and 2x1 score alike
    assert choose_grid(1841, 1841, tile_px=448, max_tiles=6) == (2, 3)  # rounding lifts 2x3 and 3x2 alike above 2x2
    # Equal as fractions, apart in the last bit of float64, where the released code takes the larger grid.
    assert exact_score(1000, 3000, 448, 1, 3) == exact_score(1000, 3000, 448, 1, 5)
    assert choose_grid(1000, 3000, tile_px=448, max_tiles=6) == (1, 5)


def test_thumbnail_counts_where_there_is_more_than_one_tile():
    assert [Grid(*pair).num_tiles for pair in [(1, 1), (2, 1), (1, 2), (4, 3)]] == [1, 3, 3, 13]


@pytest.mark.parametrize("name", ["width_px", "height_px", "tile_px", "max_tiles"])
@pytest.mark.parametrize("value", [0, -3])
def test_refuses_what_is_below_one(name, value):
    sizes = {"width_px": 10, "height_px": 10, "tile_px": 10, "max_tiles": 10} | {name: value}
    with pytest.raises(ValueError, match=f"^choose_grid: {name} is {value}; needs at least 1\\.$"):
        choose_grid(**sizes)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6000), st.integers(1, 6000)), max_size=20), st.integers(1, 24), RULES)
def test_many_images_take_the_grids_that_each_takes(sizes: list[tuple[int, int]], max_tiles: int, rule: str) -> None:
    grids = choose_grids(np.array(sizes, np.int64).reshape(-1, 2), max_tiles, tile_px=448, rule=rule)
    want = [choose_grid(w, h, tile_px=448, max_tiles=max_tiles, rule=rule) for w, h in sizes]
    assert grids.tolist() == [list(grid) for grid in want]
    assert num_tiles_of(grids).tolist() == [grid.num_tiles for grid in want]


def test_the_rule_of_the_closest_shape() -> None:
    """InternVL's: 1000 x 1000 px has more than half the area of four tiles, 600 x 600 px has not."""
    choose = partial(choose_grid, tile_px=448, rule="closest_ratio")
    assert choose(1000, 1000, max_tiles=12) == (3, 3)
    assert choose(600, 600, max_tiles=12) == (1, 1)
    assert choose(900, 600, max_tiles=12) == (3, 2)
    assert choose(1000, 300, max_tiles=2) == (2, 1)
