import pytest
import torch

from eagle_kernels.merge_2x2 import COLS, _kernel, _merge, merge_2x2, merge_2x2_ref
from tests.kernels.op_checks import DTYPES, check_as_good, check_compiles, far_tensor
from tests.numerics import randn

SHAPES = [(1, 4, 1), (2, 36, 100), (1, 64, 1152)]  # one, ragged, the vision tower's width


def op(patches):
    return _merge(patches, False)


def test_golden(device):
    """A 4x4 grid numbered row by row; the released `pixel_shuffle` at factor 0.5 gives the same."""
    grid = torch.arange(16, device=device).view(1, 16, 1)
    want = [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]
    assert op(grid).tolist() == merge_2x2(grid).tolist() == want


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8])
@pytest.mark.parametrize(("I", "P", "C"), SHAPES)
def test_closed_form_bit_for_bit(I, P, C, dtype, device):
    patches = (randn(I, P, C, device=device).detach() * 50).to(dtype)
    grid = patches.unflatten(1, (int(P**0.5), -1))
    want = torch.cat([grid[:, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)], dim=-1).flatten(1, 2)
    assert torch.equal(op(patches), want)
    assert torch.equal(merge_2x2_ref(patches), want)
    assert torch.equal(_merge(want, True), patches)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient(dtype, device):
    check_as_good(op, merge_2x2_ref, (randn(2, 36, 100, dtype=dtype, device=device),))


def test_strided_input(device):
    wide = randn(2, 8, 32, device=device)
    check_as_good(lambda t: op(t.mT[:, ::2]), lambda t: merge_2x2_ref(t.mT[:, ::2]), (wide,))


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
def test_empty(shape, device):
    patches = randn(*shape, device=device)
    out = op(patches)
    assert out.shape == merge_2x2_ref(patches).shape == (shape[0], shape[1] // 4, shape[2] * 4)
    assert torch.autograd.grad(out.sum(), patches)[0].shape == shape


def test_opcheck(device):
    torch.library.opcheck(_merge.overload, (randn(2, 16, 3, device=device), False))
    torch.library.opcheck(_merge.overload, (randn(2, 4, 12, device=device), True))


def test_compiles(device):
    args = (randn(2, 16, 3, device=device),)
    check_compiles(op, args)
    check_compiles(merge_2x2, args)


@pytest.mark.parametrize("inverse", [False, True])
def test_runs_beyond_32_bits(inverse, device):
    """Two tiles of 2x2 patches, 2**29 channels each, of which the first COLS elements of every run are copied."""
    pair = 2**30
    src, dst = (far_tensor((4, COLS), (pair, 1), torch.uint8, device) for _ in range(2))
    values = torch.randint(1, 255, (4, COLS), dtype=torch.uint8, device=device)
    src.copy_(values)
    _kernel[(4, 1)](src, dst, 1, PAIR=pair, INVERSE=inverse, COLS=COLS)
    assert torch.equal(dst, values)  # at side 2 both orders of the runs are the same


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 3), r"merge_2x2: patches' shape is \(4, 3\); needs \(I, P, C\)"),
        ((1, 8, 3), "merge_2x2: the number of patches a tile is 8; needs the square of an even side"),
        ((1, 9, 3), "merge_2x2: the number of patches a tile is 9; needs the square of an even side"),
    ],
)
def test_refuses(shape, message):
    with pytest.raises(ValueError, match=message):
        merge_2x2(torch.zeros(shape))
