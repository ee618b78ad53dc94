import pytest
import torch

from eagle_kernels.sum_partials import ROWS, sum_partials, sum_partials_ref, whole_rows_launch
from tests.kernels.op_checks import DTYPES, far_tensor, poisoned_memory
from tests.numerics import assert_as_good, randn

SHAPES = [(1, 1), (ROWS + 1, 45), (264, 3584)]  # programs, channels: one, ragged, RMSNorm's own


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("P", "C"), SHAPES)
def test_as_good_as_torch(P, C, dtype, device):
    partials = randn(P, C, device=device).detach()
    with poisoned_memory():
        out = sum_partials(partials, dtype)
    assert torch.equal(out, sum_partials(partials, dtype))
    assert_as_good([out], [sum_partials_ref(partials, dtype)], [partials.double().sum(0)])


@pytest.mark.parametrize(("P", "C"), [(0, 3), (3, 0)])
def test_empty(P, C, device):
    assert torch.equal(sum_partials(torch.ones(P, C, device=device), torch.float32), torch.zeros(C, device=device))


def test_programs_add_in_one_order(device):
    """Sums that depend on their order: a lane's rows p, p + ROWS, ... first, then the lanes."""
    partials = torch.zeros(2 * ROWS, 1, device=device)
    partials[0], partials[1], partials[ROWS] = 2.0**24, 1.0, 1.0  # 2**24 + 1 rounds back to 2**24
    assert sum_partials(partials, torch.float32).item() == 2.0**24
    partials[1], partials[1 + ROWS] = 1.0, 1.0
    partials[ROWS] = 0.0
    assert sum_partials(partials, torch.float32).item() == 2.0**24 + 2


def test_rows_beyond_32_bits(device):
    """The kernel at a width of 2**30, of which it sums one block: row 2 starts where 32 bits end."""
    from eagle_kernels.sum_partials import COLS, _kernel

    near = randn(3, COLS, device=device).detach()
    far = far_tensor(near.shape, (2**30, 1), near.dtype, device)
    far.copy_(near)
    out = torch.empty(COLS, device=device)
    _kernel[(1,)](far, out, 3, C=2**30, ROWS=ROWS, COLS=COLS)
    assert torch.equal(out, sum_partials(near, torch.float32))


def test_buffers_of_whole_rows_fit_a_small_gpu():
    """Whole rows: two tiles on their way where 96 KiB hold them, one, then none; never a smaller program."""
    assert whole_rows_launch(4608, 4) == (1, 8192, 16, 3)
    assert whole_rows_launch(4608, 8) == (1, 8192, 16, 2)
    assert whole_rows_launch(65_536, 8) == (1, 65_536, 32, 1)
    assert whole_rows_launch(1152, 4) == (2, 2048, 8, 3)
