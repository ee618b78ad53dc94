"""The one table of colour matrices: the standard's numbers, and the same ones wherever colours are made."""

import re
from pathlib import Path

import numpy as np
import pytest

from eagle_kernels.video.colour import LUMA_WEIGHTS, MATRICES, TILED_MATRICES, to_rgb_33
from eagle_kernels.yuv_to_tiles import MATRIX_BITS, colours

STANDARD = {  # ITU-T H.273, table 4: K_R, K_B
    1: (0.2126, 0.0722),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}


def test_the_weights_are_the_standard_s() -> None:
    assert {number: LUMA_WEIGHTS[name] for number, name in MATRICES.items() if number != 2} == STANDARD
    assert MATRICES[2] == "bt601", "unspecified"
    assert set(TILED_MATRICES) < set(LUMA_WEIGHTS)


@pytest.mark.parametrize("matrix", LUMA_WEIGHTS)
def test_to_rgb_undoes_the_definition(matrix: str) -> None:
    k_r, k_b = LUMA_WEIGHTS[matrix]
    for r, g, b in np.random.default_rng(0).random((20, 3)):
        y = k_r * r + (1 - k_r - k_b) * g + k_b * b
        np.testing.assert_allclose(
            to_rgb_33(matrix) @ (y, (b - y) / (2 * (1 - k_b)), (r - y) / (2 * (1 - k_r))), (r, g, b), atol=1e-12
        )


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", TILED_MATRICES)
def test_tiles_are_made_by_the_same_matrix(matrix: str, full_range: bool) -> None:
    ours, one = to_rgb_33(matrix) * 2**MATRIX_BITS, colours(matrix, full_range)
    luma, chroma = (1.0, 1.0) if full_range else (255 / 219, 255 / 224)
    want = [ours[0, 0] * luma, ours[0, 2] * chroma, ours[1, 1] * chroma, ours[1, 2] * chroma, ours[2, 1] * chroma]
    np.testing.assert_allclose(one[:5], want, atol=0.5)


def test_no_other_file_holds_the_weights() -> None:
    """Python and C++: the weights of BT.601, BT.709 and BT.2020 stand in colour.py alone."""
    root = Path(__file__).parent.parent.parent
    files = [p for folder in ("eagle_kernels", "eagle_model", "csrc") for p in (root / folder).rglob("*.*")]
    texts = {p: p.read_text() for p in files if p.suffix in {".py", ".h", ".cpp", ".cu", ".cuh"}}
    holders = [p.name for p, text in texts.items() if re.search(r"\b0?\.(299|2126|2627|0722|0593)\b", text)]
    assert holders == ["colour.py"]
