from importlib import import_module

import pytest
import torch

from eagle_kernels.gelu_bias import _bwd, _fwd, gelu_bias, gelu_bias_ref
from tests.kernels.op_checks import DTYPES, check_as_good, check_compiles, far_rows
from tests.numerics import randn

MODULE = import_module("eagle_kernels.gelu_bias")  # as an attribute, that name is the function

SHAPES = [(1, 1), (17, 100), (2, 4304)]  # one, ragged, the vision tower's own


def inputs(T, F, dtype, device):
    return randn(T, F, dtype=dtype, device=device), randn(F, dtype=dtype, device=device, seed=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "F"), SHAPES)
def test_as_good_as_torch(T, F, dtype, device):
    check_as_good(_fwd, gelu_bias_ref, inputs(T, F, dtype, device))


def test_reference_is_transformers_gelu_pytorch_tanh():
    from transformers.activations import ACT2FN

    x, bias = inputs(9, 64, torch.float32, "cpu")
    assert torch.equal(gelu_bias(x, bias), ACT2FN["gelu_pytorch_tanh"](x + bias))


def test_saturates(device):
    """Far from 0 nothing overflows: 0 and its slope 0 to the left, the identity to the right."""
    x = torch.tensor([[-1e6, -50.0, 0.0, 50.0, 1e6]], device=device, requires_grad=True)
    bias = torch.zeros(5, device=device, requires_grad=True)
    out = _fwd(x, bias)
    dx, dbias = torch.autograd.grad(out.sum(), (x, bias))
    torch.testing.assert_close(out, torch.tensor([[0.0, 0.0, 0.0, 50.0, 1e6]], device=device))
    torch.testing.assert_close(dx, torch.tensor([[0.0, 0.0, 0.5, 1.0, 1.0]], device=device))
    assert torch.equal(dbias, dx[0])


def test_programs_share_the_rows(monkeypatch, device):
    """dx, and dbias's partial sums, when each program takes several tiles of rows, the last one ragged."""
    monkeypatch.setattr(MODULE, "NUM_PARTIALS", 2)
    check_as_good(_fwd, gelu_bias_ref, inputs(70, 20, torch.float32, device))


@pytest.mark.parametrize("frozen", [0, 1])
def test_gradients_only_for_what_needs_them(frozen, device):
    args = inputs(5, 130, torch.float32, device)
    args[frozen].requires_grad_(False)
    check_as_good(_fwd, gelu_bias_ref, args)
    x, bias = (t.detach() for t in args)
    assert [t.numel() > 0 for t in _bwd(x, x, bias, frozen != 0, frozen != 1)] == [frozen != 0, frozen != 1]


def test_strided_inputs(device):
    wide, bias = randn(6, 40, device=device), randn(20, device=device, seed=1)
    for view in (lambda t: t[:, 20:], lambda t: t[:, ::2], lambda t: t.view(12, 20)[::2]):
        check_as_good(lambda t, b, v=view: _fwd(v(t), b), lambda t, b, v=view: gelu_bias_ref(v(t), b), (wide, bias))


@pytest.mark.parametrize(("T", "F"), [(0, 8), (4, 0)])
def test_empty(T, F, device):
    x, bias = inputs(T, F, torch.float32, device)
    dx, dbias = torch.autograd.grad(_fwd(x, bias).sum(), (x, bias))
    assert dx.shape == (T, F)
    assert torch.equal(dbias, torch.zeros(F, device=device))


def test_public_function_takes_any_leading_dims(device):
    x, bias = randn(2, 3, 24, device=device), randn(24, device=device, seed=1)
    torch.testing.assert_close(gelu_bias(x, bias), gelu_bias_ref(x, bias))


def test_opcheck(device):
    x, bias = inputs(3, 40, torch.float32, device)
    torch.library.opcheck(_fwd.overload, (x, bias))
    x, bias = x.detach(), bias.detach()
    torch.library.opcheck(_bwd.overload, (x, x, bias, True, False))


def test_compiles(device):
    args = inputs(3, 40, torch.float32, device)
    check_compiles(lambda x, bias: _fwd(x, bias), args)
    check_compiles(gelu_bias, args)


def test_rows_beyond_32_bits(device):
    x, dout = (randn(3, 20, dtype=torch.float16, device=device, seed=s).detach() for s in range(2))
    bias = randn(20, dtype=torch.float16, device=device, seed=2).detach()
    assert torch.equal(_fwd(far_rows(x), bias), _fwd(x, bias))
    near, far = _bwd(dout, x, bias, True, True), _bwd(far_rows(dout), far_rows(x), bias, True, True)
    assert all(torch.equal(a, b) for a, b in zip(near, far, strict=True))


@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [
        (torch.ones(2, 3).bool(), torch.ones(3), r"gelu_bias: x is torch.bool \(2, 3\); needs a floating dtype"),
        (torch.ones(2, 3), torch.ones(2), r"gelu_bias: bias's shape is \(2,\); needs \(3,\), the width of x"),
        (torch.ones(2, 3), torch.ones(3).half(), "gelu_bias: bias's dtype is torch.float16; needs x's torch.float32"),
        (torch.ones(2, 3), torch.ones(3, device="meta"), "gelu_bias: bias's device is meta; needs x's cpu"),
    ],
)
def test_refuses(x, bias, message):
    with pytest.raises(ValueError, match=message):
        gelu_bias(x, bias)
