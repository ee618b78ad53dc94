from importlib import import_module

import pytest
import torch

from eagle_kernels.layer_norm import _bwd, _fwd, layer_norm, layer_norm_ref
from tests.kernels.op_checks import DTYPES, check_as_good, check_compiles, far_rows
from tests.numerics import randn

MODULE = import_module("eagle_kernels.layer_norm")  # as an attribute, that name is the function

SHAPES = [(17, 100), (3, 1152), (2, 4608)]  # ragged, the vision tower's own, the connector's own


def op(x, weight, bias, eps=1e-6):
    return _fwd(x, weight, bias, eps)[0]


def ref(x, weight, bias, eps=1e-6):
    return layer_norm_ref(x, weight, bias, eps)


def inputs(T, C, dtype, device):
    return tuple(randn(*shape, dtype=dtype, device=device, seed=s) for s, shape in enumerate([(T, C), (C,), (C,)]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "C"), SHAPES)
def test_as_good_as_torch(T, C, dtype, device):
    check_as_good(op, ref, inputs(T, C, dtype, device))


def test_one_channel_is_its_bias(device):
    x, weight, bias = inputs(3, 1, torch.float32, device)
    y = op(x, weight, bias)
    assert torch.equal(y, bias.expand(3, 1))
    dx, dweight, dbias = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert (dx.abs().max(), dweight.item(), dbias.item()) == (0, 0, 3)


def test_a_large_mean_costs_no_digits(device):
    """mean 1000, deviation 1: E[x**2] - E[x]**2 in fp32 would be wrong in the second digit."""
    x, weight, bias = inputs(5, 1152, torch.float32, device)
    check_as_good(op, ref, ((x.detach() + 1000).requires_grad_(), weight, bias))


def test_programs_share_the_rows(monkeypatch, device):
    """Each program loops over several tiles of rows, the last one ragged: dx, and its part of dweight and dbias."""
    monkeypatch.setattr(MODULE, "NUM_PARTIALS", 2)
    check_as_good(op, ref, inputs(300, 20, torch.float32, device))


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (1, 2)])
def test_gradients_only_for_what_needs_them(frozen, device):
    args = inputs(5, 130, torch.float32, device)
    for i in frozen:
        args[i].requires_grad_(False)
    check_as_good(op, ref, args)
    x, weight, _ = (t.detach() for t in args)
    need_dx, need_dweight = 0 not in frozen, frozen != (1, 2)
    made = _bwd(x, x, weight, x.new_zeros(5), x.new_ones(5), need_dx, need_dweight)
    assert [t.numel() > 0 for t in made] == [need_dx, need_dweight, need_dweight]


def test_strided_inputs(device):
    wide, weight, bias = randn(6, 40, device=device), randn(20, device=device, seed=1), randn(20, device=device, seed=2)
    for view in (lambda t: t[:, 20:], lambda t: t[:, ::2], lambda t: t.view(12, 20)[::2]):
        check_as_good(lambda t, *p, v=view: op(v(t), *p), lambda t, *p, v=view: ref(v(t), *p), (wide, weight, bias))


@pytest.mark.parametrize(("T", "C"), [(0, 8), (4, 0)])
def test_empty(T, C, device):
    x, weight, bias = inputs(T, C, torch.float32, device)
    dx, dweight, dbias = torch.autograd.grad(op(x, weight, bias).sum(), (x, weight, bias))
    assert dx.shape == (T, C)
    assert torch.equal(dweight, torch.zeros(C, device=device))
    assert torch.equal(dbias, torch.zeros(C, device=device))


def test_public_function_takes_any_leading_dims(device):
    x, weight, bias = randn(2, 3, 24, device=device), randn(24, device=device, seed=1), randn(24, device=device, seed=2)
    torch.testing.assert_close(layer_norm(x, weight, bias, 1e-6), layer_norm_ref(x, weight, bias, 1e-6))


def test_opcheck(device):
    x, weight, bias = inputs(3, 40, torch.float32, device)
    torch.library.opcheck(_fwd.overload, (x, weight, bias, 1e-6))
    x, weight = x.detach(), weight.detach()
    torch.library.opcheck(_bwd.overload, (x, x, weight, x.new_zeros(3), x.new_ones(3), False, True))


def test_compiles(device):
    args = inputs(3, 40, torch.float32, device)
    check_compiles(op, args)
    check_compiles(lambda *args: layer_norm(*args, 1e-6), args)


def test_rows_beyond_32_bits(device):
    x, weight, bias = (t.detach() for t in inputs(3, 20, torch.float16, device))
    dy = randn(3, 20, dtype=torch.float16, device=device, seed=3).detach()
    near = _fwd(x, weight, bias, 1e-6)
    far = _fwd(far_rows(x), weight, bias, 1e-6)
    near += _bwd(dy, x, weight, near[1], near[2], True, True)
    far += _bwd(far_rows(dy), far_rows(x), weight, near[1], near[2], True, True)
    assert all(torch.equal(a, b) for a, b in zip(near, far, strict=True))


ONES = torch.ones(3)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        (torch.ones(2, 3).long(), ONES, ONES, r"layer_norm: x is torch.int64 \(2, 3\); needs a floating dtype"),
        (torch.ones(2, 3), torch.ones(4), ONES, r"layer_norm: weight's shape is \(4,\); needs \(3,\), x's width"),
        (torch.ones(2, 3), ONES, torch.ones(3, 1), r"layer_norm: bias's shape is \(3, 1\); needs \(3,\), x's width"),
        (torch.ones(2, 3), ONES, ONES.half(), "layer_norm: bias's dtype is torch.float16; needs x's torch.float32"),
        (torch.ones(2, 3), ONES.to("meta"), ONES, "layer_norm: weight's device is meta; needs x's cpu"),
    ],
)
def test_refuses(x, weight, bias, message):
    with pytest.raises(ValueError, match=message):
        layer_norm(x, weight, bias, 1e-6)


def test_refuses_a_row_that_no_program_holds(device):
    x, weight = torch.ones(1, 65_537, device=device), torch.ones(65_537, device=device)
    with pytest.raises(ValueError, match="layer_norm: the width is 65537; needs 65536 or less on a GPU"):
        op(x, weight, weight)
