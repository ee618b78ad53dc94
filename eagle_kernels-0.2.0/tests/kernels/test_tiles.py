from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from eagle_kernels.tiles import Tiling

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def test_sizes():
    tiling = Tiling(**HALF)
    assert tiling.shape(3) == (3, 1024, 588)
    assert replace(tiling, tile_px=28, layout="tiles").shape(0) == (0, 3, 28, 28)
    assert [tiling.num_tiles(grid) for grid in ((1, 1), (3, 2))] == [1, 6]
    assert [replace(tiling, thumbnail=True).num_tiles(grid) for grid in ((1, 1), (3, 2))] == [1, 7]


def test_is_a_value():
    """Compared and hashed by what it says, however its numbers were given; and it stays as it was checked."""
    tiling = Tiling(mean=[0, 0.5, 1], std=torch.Size((1, 2, 3)))
    assert tiling == Tiling(mean=(0.0, 0.5, 1.0), std=(1.0, 2.0, 3.0))
    assert len({tiling, Tiling(mean=(0, 0.5, 1), std=(1, 2, 3))}) == 1
    with pytest.raises(FrozenInstanceError):
        tiling.tile_px = 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile_px": 0}, "tile_px is 0; needs 1 to 16384"),
        ({"tile_px": 14 << 11}, "tile_px is 28672; needs 1 to 16384"),
        ({"tile_px": 448.0}, "tile_px is 448.0; needs a whole number of pixels"),
        ({"tile_px": 30}, "patch_px is 14; needs a divisor of tile_px = 30"),
        ({"patch_px": 0}, "patch_px is 0; needs a divisor"),
        ({"patch_px": None}, "patch_px is None; needs a whole number of pixels"),
        ({"mean": 0.5}, r"mean is 0.5; needs three finite numbers, of red, green and blue: mean=\(0.5, 0.5, 0.5\)"),
        ({"mean": (0.5,)}, r"mean is \(0.5,\); needs three finite numbers"),
        ({"mean": (0.5, float("nan"), 0)}, "mean is .* three finite numbers"),
        ({"mean": "abc"}, "mean is 'abc'; needs three finite numbers"),
        ({"std": (0.5, 0.5)}, "std is .* three finite numbers"),
        ({"std": None}, "std is None; needs three finite numbers"),
        ({"std": (0.5, 0.0, 0.5)}, r"std is \(0.5, 0.0, 0.5\); needs numbers above 0"),
        ({"thumbnail": None}, "thumbnail is None; needs True or False"),
        ({"dtype": torch.float16}, "dtype is torch.float16; needs one of torch.bfloat16, torch.float32, torch.uint8"),
        ({"dtype": "bfloat16"}, "dtype is bfloat16; needs one of torch.bfloat16"),
        ({"layout": "rows"}, "layout is 'rows'; needs 'patches' or 'tiles'"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=f"^Tiling: {message}"):
        Tiling(**{**HALF, **change})
