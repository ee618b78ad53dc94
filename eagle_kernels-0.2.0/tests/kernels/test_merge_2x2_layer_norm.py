import pytest
import torch
import triton
import triton.language as tl

from eagle_kernels.layer_norm import _at, layer_norm_ref
from eagle_kernels.merge_2x2 import merge_2x2_ref
from eagle_kernels.merge_2x2_layer_norm import _bwd, _fwd, merge_2x2_layer_norm, merge_2x2_layer_norm_ref
from tests.kernels.op_checks import DTYPES, check_as_good, check_compiles
from tests.numerics import randn

SHAPES = [(1, 4, 1), (2, 36, 25), (1, 16, 1152)]  # one block, ragged, the connector's own width
EPS = 1e-5


def op(patches, weight, bias):
    return _fwd(patches, weight, bias, EPS)[0]


def ref(patches, weight, bias):
    return merge_2x2_layer_norm_ref(patches, weight, bias, EPS)


def inputs(I, P, C, dtype, device):
    shapes = [(I, P, C), (4 * C,), (4 * C,)]
    return tuple(randn(*shape, dtype=dtype, device=device, seed=s) for s, shape in enumerate(shapes))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("I", "P", "C"), SHAPES)
def test_as_good_as_torch(I, P, C, dtype, device):
    check_as_good(op, ref, inputs(I, P, C, dtype, device))


def test_is_the_two_ops_bit_for_bit(device):
    """Outputs and gradients: the same kernels in the same order, only at other addresses."""
    from eagle_kernels.layer_norm import _fwd as layer_norm_fwd

    patches, weight, bias = inputs(2, 64, 40, torch.bfloat16, device)
    merged = merge_2x2_ref(patches)
    apart = layer_norm_fwd(merged.flatten(0, 1), weight, bias, EPS)[0].view_as(merged)
    fused = op(patches, weight, bias)
    assert torch.equal(fused, apart)
    dy = randn(*fused.shape, device=device, seed=4).detach().to(fused.dtype)
    for a, b in zip(*(torch.autograd.grad(y, (patches, weight, bias), dy) for y in (fused, apart)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (1, 2)])
def test_gradients_only_for_what_needs_them(frozen, device):
    args = inputs(1, 16, 20, torch.float32, device)
    for i in frozen:
        args[i].requires_grad_(False)
    check_as_good(op, ref, args)
    patches, weight, _ = (t.detach() for t in args)
    need_dpatches, need_dweight = 0 not in frozen, frozen != (1, 2)
    dy, stats = patches.new_ones(1, 4, 80), patches.new_ones(4)
    made = _bwd(dy, patches, weight, stats, stats, need_dpatches, need_dweight)
    assert [t.numel() > 0 for t in made] == [need_dpatches, need_dweight, need_dweight]


def test_strided_input(device):
    wide, weight, bias = randn(2, 8, 32, device=device), randn(32, device=device, seed=1), randn(32, device=device)
    check_as_good(lambda t, *p: op(t.mT[:, ::2], *p), lambda t, *p: ref(t.mT[:, ::2], *p), (wide, weight, bias))


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
def test_empty(shape, device):
    args = inputs(*shape, torch.float32, device)
    out = op(*args)
    assert out.shape == (shape[0], shape[1] // 4, shape[2] * 4)
    dpatches, dweight, dbias = torch.autograd.grad(out.sum(), args)
    assert dpatches.shape == shape
    assert not dweight.any() and not dbias.any()


def test_opcheck(device):
    patches, weight, bias = inputs(2, 16, 3, torch.float32, device)
    torch.library.opcheck(_fwd.overload, (patches, weight, bias, EPS))
    dy, stats = patches.new_ones(2, 4, 12), patches.new_ones(8)
    torch.library.opcheck(_bwd.overload, (dy, patches.detach(), weight.detach(), stats, stats, True, False))


def test_compiles(device):
    args = inputs(2, 16, 3, torch.float32, device)
    check_compiles(op, args)
    check_compiles(lambda *args: merge_2x2_layer_norm(*args, EPS), args)


@triton.jit
def _offsets_kernel(out_ptr, start, half, C: tl.constexpr, COLS: tl.constexpr):
    rows = start + tl.arange(0, 2).to(tl.int64)
    cols = tl.arange(0, COLS)
    tl.store(out_ptr + tl.arange(0, 2)[:, None] * COLS + cols[None, :], _at(rows, cols, 0, half, C, True))


@pytest.mark.parametrize(("start", "half"), [(6, 4), (2**27, 16), (5, 2**28)])
def test_offsets_beyond_32_bits(start, half, device):
    """Rows whose tile starts beyond 2**31 elements, and lines of patches that lie as far apart."""
    C, out = 32, torch.zeros(2, 32, dtype=torch.int64, device=device)
    _offsets_kernel[(1,)](out, start, half, C=C, COLS=C)
    want = []
    for row in (start, start + 1):
        line, b = divmod(row, half)
        want.append([((2 * line + dy) * half + b) * (C // 2) + c for dy in (0, 1) for c in range(C // 2)])
    assert out.tolist() == want
    assert (want[0][-1] > 2**31) == (start > 6 or half > 4)


def test_public_function_is_the_reference_on_cpu():
    args = inputs(2, 16, 3, torch.float32, "cpu")
    assert torch.equal(merge_2x2_layer_norm(*args, EPS), layer_norm_ref(merge_2x2_ref(args[0]), *args[1:], EPS))


ONES = torch.ones(12)


@pytest.mark.parametrize(
    ("patches", "weight", "bias", "message"),
    [
        (torch.ones(4, 3), ONES, ONES, r"merge_2x2_layer_norm: patches is torch.float32 \(4, 3\); needs a floating"),
        (torch.ones(1, 4, 3).long(), ONES, ONES, r"patches is torch.int64 \(1, 4, 3\); needs a floating dtype"),
        (torch.ones(1, 8, 3), ONES, ONES, "the number of patches a tile is 8; needs the square of an even side"),
        (torch.ones(1, 9, 3), ONES, ONES, "the number of patches a tile is 9; needs the square of an even side"),
        (torch.ones(1, 4, 3), torch.ones(3), ONES, r"weight's shape is \(3,\); needs \(12,\), 4 x patches' width"),
        (torch.ones(1, 4, 3), ONES, ONES.half(), "bias's dtype is torch.float16; needs patches's torch.float32"),
        (torch.ones(1, 4, 3), ONES.to("meta"), ONES, "weight's device is meta; needs patches's cpu"),
    ],
)
def test_refuses(patches, weight, bias, message):
    with pytest.raises(ValueError, match=message):
        merge_2x2_layer_norm(patches, weight, bias, EPS)
