import pytest
import torch

from eagle_kernels.swiglu import _bwd, _bwd_halves, _fwd, _fwd_halves, swiglu, swiglu_halves, swiglu_ref
from tests.kernels.op_checks import DTYPES, check_as_good, check_compiles, far_rows
from tests.numerics import randn

SHAPES = [(1, 1), (17, 100), (2, 18944)]  # one, ragged, the language model's own


def inputs(T, F, dtype, device):
    return tuple(randn(T, F, dtype=dtype, device=device, seed=s) for s in (0, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "F"), SHAPES)
def test_as_good_as_torch(T, F, dtype, device):
    check_as_good(_fwd, swiglu_ref, inputs(T, F, dtype, device))


def test_saturates(device):
    """Where sigmoid is 0 or 1 in fp32 nothing overflows, and silu and its slope are their limits."""
    gate = torch.tensor([[-1e4, -100.0, 0.0, 100.0, 1e4]], device=device, requires_grad=True)
    up = torch.full_like(gate, 2.0).requires_grad_()
    out = _fwd(gate, up)
    dgate, dup = torch.autograd.grad(out.sum(), (gate, up))
    torch.testing.assert_close(out, torch.tensor([[0.0, 0.0, 0.0, 200.0, 2e4]], device=device))
    torch.testing.assert_close(dgate, torch.tensor([[0.0, 0.0, 1.0, 2.0, 2.0]], device=device))
    torch.testing.assert_close(dup, torch.tensor([[0.0, 0.0, 0.0, 100.0, 1e4]], device=device))


def test_views_of_one_fused_projection(device):
    gate_up = randn(5, 260, device=device)
    check_as_good(lambda t: _fwd(*t.chunk(2, dim=-1)), lambda t: swiglu_ref(*t.chunk(2, dim=-1)), (gate_up,))
    check_as_good(lambda t: _fwd(t[:, ::2], t[:, 1::2]), lambda t: swiglu_ref(t[:, ::2], t[:, 1::2]), (gate_up,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "F"), [(1, 1), (17, 100), (0, 8), (4, 0)])
def test_halves_of_one_fused_projection(T, F, dtype, device):
    """Bit for bit what two tensors give, and their gradients side by side; rows that lie apart, too."""
    wide = randn(T, 2 * F + 3, dtype=dtype, device=device)
    for gate_up in (wide[:, : 2 * F], wide[:, : 2 * F].detach().clone().requires_grad_()):
        parts = [t.detach().requires_grad_() for t in gate_up.chunk(2, dim=1)]
        ours, want = _fwd_halves(gate_up), _fwd(*parts)
        assert torch.equal(ours, want)
        dout = randn(T, F, dtype=dtype, device=device, seed=2).detach()
        (grad,) = torch.autograd.grad(ours, gate_up, dout)
        assert torch.equal(grad, torch.cat(torch.autograd.grad(want, parts, dout), dim=1))


def test_public_function_of_halves(device):
    gate_up = randn(2, 3, 96, device=device)
    torch.testing.assert_close(swiglu_halves(gate_up), swiglu_ref(*gate_up.chunk(2, dim=-1)))
    with pytest.raises(
        ValueError, match=r"swiglu_halves: gate_up is torch.float32 \(2, 3\); needs a floating dtype and"
    ):
        swiglu_halves(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"swiglu_halves: gate_up is None; needs a torch tensor"):
        swiglu_halves(None)


@pytest.mark.parametrize("frozen", [0, 1])
def test_gradients_only_for_what_needs_them(frozen, device):
    args = inputs(5, 130, torch.float32, device)
    args[frozen].requires_grad_(False)
    check_as_good(_fwd, swiglu_ref, args)
    gate, up = (t.detach() for t in args)
    assert [t.numel() > 0 for t in _bwd(gate, gate, up, frozen != 0, frozen != 1)] == [frozen != 0, frozen != 1]


@pytest.mark.parametrize(("T", "F"), [(0, 8), (4, 0)])
def test_empty(T, F, device):
    args = inputs(T, F, torch.float32, device)
    out = _fwd(*args)
    assert [out.shape, *(g.shape for g in torch.autograd.grad(out.sum(), args))] == [(T, F)] * 3


def test_public_function_takes_any_leading_dims(device):
    gate, up = randn(2, 3, 48, device=device).chunk(2, dim=-1)
    torch.testing.assert_close(swiglu(gate, up), swiglu_ref(gate, up))


def test_opcheck(device):
    args = inputs(3, 40, torch.float32, device)
    torch.library.opcheck(_fwd.overload, args)
    gate, up = (t.detach() for t in args)
    torch.library.opcheck(_bwd.overload, (gate, gate, up, True, False))
    torch.library.opcheck(_fwd_halves.overload, args[:1])
    torch.library.opcheck(_bwd_halves.overload, (gate[:, :20], gate))


def test_compiles(device):
    args = inputs(3, 40, torch.float32, device)
    check_compiles(lambda gate, up: _fwd(gate, up), args)
    check_compiles(swiglu, args)


def test_rows_beyond_32_bits(device):
    gate, up, dout = (randn(3, 20, dtype=torch.float16, device=device, seed=s).detach() for s in range(3))
    assert torch.equal(_fwd(far_rows(gate), far_rows(up)), _fwd(gate, up))
    near = _bwd(dout, gate, up, True, True)
    far = _bwd(far_rows(dout), far_rows(gate), far_rows(up), True, True)
    assert all(torch.equal(a, b) for a, b in zip(near, far, strict=True))


@pytest.mark.parametrize(
    ("gate", "up", "message"),
    [
        (torch.ones(2, 3).int(), torch.ones(2, 3), r"swiglu: gate is torch.int32 \(2, 3\); needs a floating dtype"),
        (torch.ones(2, 3), torch.ones(1, 3), r"swiglu: up's shape is \(1, 3\); needs gate's \(2, 3\)"),
        (torch.ones(2, 3), torch.ones(2, 3).half(), "swiglu: up's dtype is torch.float16; needs gate's torch.float32"),
        (torch.ones(2, 3), torch.ones(2, 3, device="meta"), "swiglu: up's device is meta; needs gate's cpu"),
    ],
)
def test_refuses(gate, up, message):
    with pytest.raises(ValueError, match=message):
        swiglu(gate, up)
