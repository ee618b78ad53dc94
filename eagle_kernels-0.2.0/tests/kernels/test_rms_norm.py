from importlib import import_module

import pytest
import torch

from eagle_kernels.rms_norm import _add_fwd, _bwd, _fwd, add_rms_norm, add_rms_norm_ref, rms_norm, rms_norm_ref
from tests.kernels.op_checks import DTYPES, check_as_good, check_compiles, far_rows
from tests.numerics import randn

MODULE = import_module("eagle_kernels.rms_norm")  # as an attribute, that name is the function

# One, ragged, the language model's own. At width 1 and a small eps the gradient is nothing but rounding, hence 0.5.
SHAPES = [(1, 1, 0.5), (17, 100, 1e-6), (3, 3584, 1e-6)]


def op(x, weight, eps):
    return _fwd(x, weight, eps)[0]


def add_op(x, residual, weight, eps):
    return _add_fwd(x, residual, weight, eps)[:2]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "C", "eps"), SHAPES)
def test_as_good_as_torch(T, C, eps, dtype, device):
    x, weight = randn(T, C, dtype=dtype, device=device), randn(C, dtype=dtype, device=device, seed=1)
    check_as_good(lambda x, w: op(x, w, eps), lambda x, w: rms_norm_ref(x, w, eps), (x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "C", "eps"), SHAPES)
def test_add_as_good_as_torch(T, C, eps, dtype, device):
    x, residual = (randn(T, C, dtype=dtype, device=device, seed=s) for s in (0, 1))
    weight = randn(C, dtype=dtype, device=device, seed=2)
    check_as_good(lambda *args: add_op(*args, eps), lambda *args: add_rms_norm_ref(*args, eps), (x, residual, weight))


def test_programs_share_the_rows(monkeypatch, device):
    """Each program loops over several tiles of rows, the last one ragged: dx, and its part of dweight."""
    monkeypatch.setattr(MODULE, "NUM_PARTIALS", 2)
    x, weight = randn(300, 20, device=device), randn(20, device=device, seed=1)
    check_as_good(lambda x, w: op(x, w, 1e-6), lambda x, w: rms_norm_ref(x, w, 1e-6), (x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_is_transformers_qwen2_bit_for_bit(dtype):
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

    theirs = Qwen2RMSNorm(64, eps=1e-6).to(dtype)
    torch.nn.init.normal_(theirs.weight)
    x = randn(9, 64, dtype=dtype)
    assert torch.equal(rms_norm(x, theirs.weight, 1e-6), theirs(x))


def test_only_the_sum_is_used(device):
    """y takes no gradient: dx and dresidual are the sum's, and the weight has none."""
    x, residual, weight = randn(3, 8, device=device), randn(3, 8, device=device, seed=1), randn(8, device=device)
    _, h = add_op(x, residual, weight, 1e-6)
    dh = randn(3, 8, device=device, seed=2).detach()
    dx, dresidual, dweight = torch.autograd.grad(h, (x, residual, weight), dh, allow_unused=True)
    assert torch.equal(dx, dh)
    assert torch.equal(dresidual, dh)
    assert dweight is None


def test_only_y_is_used(device):
    x, residual, weight = randn(3, 8, device=device), randn(3, 8, device=device, seed=1), randn(8, device=device)
    y, _ = add_op(x, residual, weight, 1e-6)
    want, _ = add_rms_norm_ref(x, residual, weight, 1e-6)
    for a, b in zip(*[torch.autograd.grad(o.sum(), (x, residual, weight)) for o in (y, want)], strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_gradients_only_for_what_needs_them(frozen, device):
    x, weight = randn(5, 130, device=device), randn(130, device=device, seed=1)
    {"x": x, "weight": weight}[frozen].requires_grad_(False)
    check_as_good(lambda x, w: op(x, w, 1e-6), lambda x, w: rms_norm_ref(x, w, 1e-6), (x, weight))
    dh, dweight = _bwd(x, None, x, weight, x.new_ones(5), frozen != "x", frozen != "weight")
    assert (dh.numel() > 0, dweight.numel() > 0) == (frozen != "x", frozen != "weight")


def test_strided_inputs(device):
    wide, weight = randn(6, 40, device=device), randn(20, device=device, seed=1)
    for view in (lambda t: t[:, 20:], lambda t: t[:, ::2], lambda t: t.view(12, 20)[::2]):
        check_as_good(
            lambda t, w, v=view: op(v(t), w, 1e-6), lambda t, w, v=view: rms_norm_ref(v(t), w, 1e-6), (wide, weight)
        )
    every_other = weight.repeat_interleave(2)
    torch.testing.assert_close(op(wide[:, :20], every_other[::2], 1e-6), op(wide[:, :20], weight, 1e-6))


def test_an_expanded_gradient(device):
    """sum() sends a gradient whose strides are all 0."""
    x, weight = randn(5, 130, device=device), randn(130, device=device, seed=1)
    ours, want = (torch.autograd.grad(f(x, weight, 1e-6).sum(), (x, weight)) for f in (op, rms_norm_ref))
    torch.testing.assert_close(ours, want)


@pytest.mark.parametrize(("T", "C"), [(0, 8), (4, 0)])
def test_empty(T, C, device):
    x, weight = randn(T, C, device=device), randn(C, device=device)
    y, h = add_op(x, x, weight, 1e-6)
    assert y.shape == h.shape == (T, C)
    dx, dweight = torch.autograd.grad(op(x, weight, 1e-6).sum(), (x, weight))
    assert dx.shape == (T, C)
    assert torch.equal(dweight, torch.zeros_like(weight))


def test_public_functions_take_any_leading_dims(device):
    x, residual, weight = (
        randn(2, 3, 24, device=device),
        randn(2, 3, 24, device=device, seed=1),
        randn(24, device=device),
    )
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), rms_norm_ref(x, weight, 1e-6))
    torch.testing.assert_close(add_rms_norm(x, residual, weight, 1e-6), add_rms_norm_ref(x, residual, weight, 1e-6))


def test_opcheck(device):
    x, residual, weight = randn(3, 40, device=device), randn(3, 40, device=device, seed=1), randn(40, device=device)
    torch.library.opcheck(_fwd.overload, (x, weight, 1e-6))
    torch.library.opcheck(_add_fwd.overload, (x, residual, weight, 1e-6))
    rstd = x.detach().new_ones(3)
    for dsum in (None, residual.detach()):
        torch.library.opcheck(_bwd.overload, (x.detach(), dsum, x.detach(), weight.detach(), rstd, True, False))


def test_compiles(device):
    x, residual, weight = randn(3, 40, device=device), randn(3, 40, device=device, seed=1), randn(40, device=device)
    check_compiles(lambda x, r, w: add_op(x, r, w, 1e-6), (x, residual, weight))
    check_compiles(lambda x, w: op(x, w, 1e-6), (x, weight))
    check_compiles(lambda x, r, w: add_rms_norm(x, r, w, 1e-6), (x, residual, weight))


def test_rows_beyond_32_bits(device):
    x, residual, dy, dsum = (randn(3, 20, dtype=torch.float16, device=device, seed=s).detach() for s in range(4))
    weight = randn(20, dtype=torch.float16, device=device, seed=4).detach()
    near = _add_fwd(x, residual, weight, 1e-6)
    far = _add_fwd(far_rows(x), far_rows(residual), weight, 1e-6)
    near += _bwd(dy, dsum, x, weight, near[2], True, True)
    far += _bwd(far_rows(dy), far_rows(dsum), far_rows(x), weight, near[2], True, True)
    assert all(torch.equal(a, b) for a, b in zip(near, far, strict=True))


@pytest.mark.parametrize(
    ("x", "weight", "message"),
    [
        (torch.ones(2, 3, dtype=torch.int64), torch.ones(3), r"rms_norm: x is torch.int64 \(2, 3\); needs a floating"),
        (torch.ones(2, 3), torch.ones(4), r"rms_norm: weight's shape is \(4,\); needs \(3,\), the width of x"),
        (torch.ones(2, 3), torch.ones(3).half(), "rms_norm: weight's dtype is torch.float16; needs x's torch.float32"),
        (torch.ones(2, 3), torch.ones(3, device="meta"), "rms_norm: weight's device is meta; needs x's cpu"),
    ],
)
def test_refuses(x, weight, message):
    with pytest.raises(ValueError, match=message):
        rms_norm(x, weight, 1e-6)


def test_add_refuses_another_residual():
    with pytest.raises(ValueError, match=r"add_rms_norm: residual's shape is \(3, 3\); needs x's \(2, 3\)"):
        add_rms_norm(torch.ones(2, 3), torch.ones(3, 3), torch.ones(3), 1e-6)
    with pytest.raises(ValueError, match=r"add_rms_norm: residual's dtype is torch.float64; needs x's torch.float32"):
        add_rms_norm(torch.ones(2, 3), torch.ones(2, 3).double(), torch.ones(3), 1e-6)


def test_refuses_a_row_that_no_program_holds(device):
    x, weight = torch.ones(1, 65_537, device=device), torch.ones(65_537, device=device)
    with pytest.raises(ValueError, match="rms_norm: the width is 65537; needs 65536 or less on a GPU"):
        op(x, weight, 1e-6)
