"""How wide heads are cut and which launches they get. The kernels' numbers are tested through their op, in
test_attention.py; what the compiler makes of them, in test_static_table.py."""

from itertools import product

import pytest
import torch

from eagle_kernels.attention_plan import TILE
from eagle_kernels.attention_triton import launches, pieces


@pytest.mark.parametrize("head_width", range(16, 257, 8))
def test_pieces_hold_the_head_width(head_width):
    main, tail = pieces(head_width)
    assert head_width <= main + tail < 2 * head_width
    assert main & (main - 1) == 0
    assert tail & (tail - 1) == 0
    assert tail == 0 or 16 <= tail < main
    assert {72: (64, 16), 80: (64, 16), 96: (64, 32), 128: (128, 0)}.get(head_width, (main, tail)) == (main, tail)
    yes_no, chips = (False, True), (80, 86, 89, 90, 100, 120)
    for dtype, sm, whole, causal in product((torch.float32, torch.bfloat16), chips, yes_no, yes_no):
        launched = launches(head_width, dtype, sm=sm, whole=whole, causal=causal)
        assert all(TILE % x.block_m == TILE % x.block_n == 0 for x in launched)
