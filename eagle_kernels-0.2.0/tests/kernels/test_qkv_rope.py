from importlib import import_module

import pytest
import torch

from eagle_kernels.qkv_rope import _bwd, _fwd, qkv_rope, qkv_rope_ref
from eagle_kernels.rope import rope_ref
from tests.kernels.op_checks import DTYPES, check_as_good, check_compiles, far_rows, far_tensor
from tests.numerics import randn

MODULE = import_module("eagle_kernels.qkv_rope")  # as an attribute, that name is the function

THETA = 1e6
SHAPES = [  # tokens, query heads, key heads, width
    (1, 1, 1, 2),
    (70, 3, 1, 20),
    (5, 28, 4, 128),  # the language model's own
    (3, 2, 5, 96),  # more keys than queries, groups of heads that are not full, a half that is no power of two
]


def inputs(T, H, K, D, dtype, device):
    width = (H + 2 * K) * D
    return randn(T, width, dtype=dtype, device=device), randn(width, dtype=dtype, device=device, seed=1)


def positions(T, device, dtype=torch.int32):
    """Documents of 7 tokens, and one token at the end of 128K."""
    positions_T = torch.arange(T, device=device, dtype=dtype) % 7
    positions_T[-1:] = 131_071
    return positions_T


def op(at, H, K):
    return lambda qkv, bias: _fwd(qkv, bias, at, THETA, H, K)


def ref(at, H, K):
    return lambda qkv, bias: qkv_rope_ref(qkv, bias, at, THETA, num_heads=H, num_kv_heads=K)


def one_after_another(at, H, K):
    def run(qkv, bias):
        q, k, v = (qkv + bias).unflatten(1, (H + 2 * K, -1)).split((H, K, K), dim=1)
        return *rope_ref(q, k, at, THETA), v

    return run


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "H", "K", "D"), SHAPES)
def test_as_good_as_torch(T, H, K, D, dtype, device):
    at = positions(T, device)
    check_as_good(op(at, H, K), ref(at, H, K), inputs(T, H, K, D, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES)
def test_as_good_as_split_bias_and_rope(dtype, device):
    at = positions(33, device)
    check_as_good(op(at, 6, 2), one_after_another(at, 6, 2), inputs(33, 6, 2, 32, dtype, device))


@pytest.mark.parametrize("per_token", [False, True])
def test_frequencies_a_scale_and_no_bias(per_token, device):
    at, table = positions(33, device), randn(*((33, 10) if per_token else (10,)), device=device, seed=2).detach().abs()
    options = {"num_heads": 3, "num_kv_heads": 1, "frequencies": table, "scale": 1.25}
    qkv, bias = inputs(33, 3, 1, 20, torch.float32, device)
    for args in ((qkv, bias), (qkv,)):
        check_as_good(
            lambda x, b=None: _fwd(x, b, at, 0.0, 3, 1, table, 1.25),
            lambda x, b=None: qkv_rope_ref(x, b, at, **options),
            args,
        )
    for a, b in zip(qkv_rope(qkv, None, at, **options), qkv_rope_ref(qkv, None, at, **options), strict=True):
        assert torch.equal(a, b)


def test_no_bias_is_a_bias_of_zero(device):
    qkv, bias = inputs(9, 3, 2, 16, torch.bfloat16, device)
    at = positions(9, device)
    for a, b in zip(_fwd(qkv, None, at, THETA, 3, 2), _fwd(qkv, 0 * bias, at, THETA, 3, 2), strict=True):
        assert torch.equal(a, b)


def test_programs_share_the_tokens(monkeypatch, device):
    """dbias's partial sums when each program takes several tiles of tokens, the last one ragged."""
    monkeypatch.setattr(MODULE, "NUM_PARTIALS", 2)
    at = positions(43, device)
    assert MODULE._tile(64) == (8, 32)  # 6 tiles
    check_as_good(op(at, 2, 1), ref(at, 2, 1), inputs(43, 2, 1, 64, torch.float32, device))


def test_strided_inputs(device):
    """Rows that lie apart, then a strided last dim; strided int64 positions; gradients in another layout."""
    wide, bias = randn(9, 80, device=device), randn(40, device=device, seed=1)
    at = positions(18, device, torch.int64)[::2]
    for view in (lambda t: t[:, 40:], lambda t: t[:, ::2]):
        fns = [lambda t, b, f=f, v=view: f(at, 2, 1)(v(t), b) for f in (op, ref)]
        check_as_good(*fns, (wide, bias))
    args = inputs(9, 4, 2, 16, torch.float32, device)
    fns = [lambda *args, f=f: tuple(t.transpose(0, 2) for t in f(at, 4, 2)(*args)) for f in (op, ref)]
    check_as_good(*fns, args)


@pytest.mark.parametrize("frozen", [0, 1])
def test_gradients_only_for_what_needs_them(frozen, device):
    args, at = inputs(9, 4, 2, 16, torch.float32, device), positions(9, device)
    args[frozen].requires_grad_(False)
    check_as_good(op(at, 4, 2), ref(at, 4, 2), args)
    douts = (torch.ones(9, n, 16, device=device) for n in (4, 2, 2))
    made = _bwd(*douts, at, THETA, frozen != 0, frozen != 1)
    assert [t.numel() > 0 for t in made] == [frozen != 0, frozen != 1]


@pytest.mark.parametrize(("T", "D"), [(0, 8), (3, 0)])
def test_empty(T, D, device):
    args = inputs(T, 2, 1, D, torch.float32, device)
    q, k, v = op(positions(T, device), 2, 1)(*args)
    assert (q.shape, k.shape, v.shape) == ((T, 2, D), (T, 1, D), (T, 1, D))
    dqkv, dbias = torch.autograd.grad(q.sum() + k.sum() + v.sum(), args)
    assert dqkv.shape == (T, 4 * D)
    assert torch.equal(dbias, torch.zeros(4 * D, device=device))


def test_opcheck(device):
    args, at = inputs(3, 2, 1, 8, torch.float32, device), positions(3, device)
    torch.library.opcheck(_fwd.overload, (*args, at, THETA, 2, 1))
    torch.library.opcheck(_fwd.overload, (args[0], None, at, 0.0, 2, 1, torch.ones(3, 4, device=device), 1.25))
    douts = tuple(torch.ones(3, n, 8, device=device) for n in (2, 1, 1))
    torch.library.opcheck(_bwd.overload, (*douts, at, THETA, True, False))


def test_compiles(device):
    args, at = inputs(5, 2, 1, 8, torch.float32, device), positions(5, device)
    check_compiles(op(at, 2, 1), args)
    check_compiles(lambda x, b: qkv_rope(x, b, at, THETA, num_heads=2, num_kv_heads=1), args)


def test_rows_beyond_32_bits(device):
    """Tokens of qkv, then tokens and heads of a gradient, that lie 2**30 elements apart."""
    (qkv, bias), at = (t.detach() for t in inputs(3, 3, 3, 8, torch.float16, device)), positions(3, device)
    for a, b in zip(op(at, 3, 3)(far_rows(qkv), bias), op(at, 3, 3)(qkv, bias), strict=True):
        assert torch.equal(a, b)
    near = [randn(3, 3, 8, dtype=torch.float16, device=device, seed=s).detach() for s in range(3)]
    for strides in ((2**30, 8, 1), (8, 2**30, 1)):
        far = [far_tensor(t.shape, strides, t.dtype, device) for t in near]
        for a, b in zip(far, near, strict=True):
            a.copy_(b)
        for a, b in zip(_bwd(*far, at, THETA, True, True), _bwd(*near, at, THETA, True, True), strict=True):
            assert torch.equal(a, b)


def test_public_function_is_the_reference_on_cpu():
    args, at = inputs(9, 4, 2, 16, torch.bfloat16, "cpu"), positions(9, "cpu")
    got = qkv_rope(*args, at, THETA, num_heads=4, num_kv_heads=2)
    for a, b in zip(got, ref(at, 4, 2)(*args), strict=True):
        assert torch.equal(a, b)


QKV, B, AT = torch.ones(3, 32), torch.ones(32), torch.arange(3)


@pytest.mark.parametrize(
    ("args", "heads", "message"),
    [
        ((QKV, B, AT, 1e6), (0, 1), "qkv_rope: num_heads is 0; needs a whole number >= 1"),
        ((QKV, B, AT, 1e6), (2, 0), "qkv_rope: num_kv_heads is 0; needs a whole number >= 1"),
        ((QKV, B, AT, 1e6), (3, 1), r"qkv's shape is \(3, 32\); needs \(T, F\) with F = 5 heads of one even width"),
        ((QKV[:, :12], B, AT, 1e6), (2, 1), r"qkv's shape is \(3, 12\); needs"),
        ((QKV[0], B, AT, 1e6), (2, 1), r"qkv's shape is \(32,\); needs"),
        ((QKV.long(), B, AT, 1e6), (2, 1), "qkv's dtype is torch.int64; needs a floating dtype"),
        ((QKV, B[:8], AT, 1e6), (2, 1), r"bias's shape is \(8,\); needs \(32,\), the width of qkv"),
        ((QKV, B.half(), AT, 1e6), (2, 1), "bias's dtype is torch.float16; needs qkv's torch.float32"),
        ((QKV, B, AT[:2], 1e6), (2, 1), r"positions' shape is \(2,\); needs \(3,\)"),
        ((QKV, B, AT.float(), 1e6), (2, 1), "positions' dtype is torch.float32; needs int32 or int64"),
        ((QKV, B, AT.to("meta"), 1e6), (2, 1), "positions' device is meta; needs qkv's cpu"),
        ((QKV, B, AT, 0.0), (2, 1), "theta is 0.0; needs a finite number > 0"),
        ((QKV, None, AT, None), (2, 1), "qkv_rope: theta is None; needs a finite number > 0"),
    ],
)
def test_refuses(args, heads, message):
    with pytest.raises(ValueError, match=message):
        qkv_rope(*args, num_heads=heads[0], num_kv_heads=heads[1])
