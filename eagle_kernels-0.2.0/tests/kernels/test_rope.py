from importlib import import_module

import pytest
import torch

from eagle_kernels.rope import _rope, _write, rope, rope_frequencies, rope_ref
from tests.kernels.op_checks import DTYPES, check_as_good, check_compiles, far_tensor
from tests.numerics import randn

THETA = 1e6
SHAPES = [  # tokens, query heads, key heads, width
    (1, 1, 1, 2),
    (70, 3, 1, 20),
    (5, 28, 4, 128),  # the language model's own
    (3, 2, 5, 96),  # more keys than queries, a half that is no power of two
]


def inputs(T, H, K, D, dtype, device):
    return randn(T, H, D, dtype=dtype, device=device), randn(T, K, D, dtype=dtype, device=device, seed=1)


def positions(T, device, dtype=torch.int32):
    """Documents of 7 tokens, and one token at the end of 128K."""
    positions_T = torch.arange(T, device=device, dtype=dtype) % 7
    positions_T[-1] = 131_071
    return positions_T


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "H", "K", "D"), SHAPES)
def test_as_good_as_torch(T, H, K, D, dtype, device):
    at = positions(T, device)
    check_as_good(
        lambda q, k: _rope(q, k, at, THETA, False),
        lambda q, k: rope_ref(q, k, at, THETA),
        inputs(T, H, K, D, dtype, device),
    )


def frequencies(T, D, per_token, device):
    """Such as no theta gives, and as `dynamic` scaling has them token by token."""
    return randn(*((T, D // 2) if per_token else (D // 2,)), device=device, seed=2).detach().abs()


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize(("T", "H", "K", "D"), [(70, 3, 1, 20), (5, 2, 1, 128)])
def test_frequencies_and_a_scale(T, H, K, D, per_token, device):
    at, table = positions(T, device), frequencies(T, D, per_token, device)
    check_as_good(
        lambda q, k: _rope(q, k, at, 0.0, False, table, 1.25),
        lambda q, k: rope_ref(q, k, at, frequencies=table, scale=1.25),
        inputs(T, H, K, D, torch.float32, device),
    )
    q, k = inputs(T, H, K, D, torch.float32, device)
    far = rope(q, k, at, frequencies=table, scale=1.25)
    for ours, plain in zip(far, rope(q, k, at, frequencies=table), strict=True):
        torch.testing.assert_close(ours, 1.25 * plain)


def test_thetas_frequencies_are_theta(device):
    q, k = inputs(9, 2, 1, 32, torch.bfloat16, device)
    at, table = positions(9, device), rope_frequencies(32, THETA).to(device)
    want = rope(q, k, at, THETA)
    for given in (table, table.expand(9, 16)):
        for a, b in zip(rope(q, k, at, frequencies=given), want, strict=True):
            assert torch.equal(a, b)
        for a, b in zip(_rope(q, k, at, 0.0, False, given), _rope(q, k, at, THETA, False), strict=True):
            assert torch.equal(a, b)


def test_transformers_qwen2_at_every_length(device):
    from transformers import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding, apply_rotary_pos_emb

    at = torch.tensor([0, 1, 2, 0, 1, 4095, 32_767, 65_535, 100_003, 131_071], device=device)
    config = Qwen2Config(
        hidden_size=3584, num_attention_heads=28, rope_parameters={"rope_type": "default", "rope_theta": THETA}
    )
    q, k = inputs(len(at), 4, 2, 128, torch.float32, device)
    cos, sin = Qwen2RotaryEmbedding(config).to(device)(q, at[None])
    theirs = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    for ours in (_rope(q, k, at, THETA, False), rope(q, k, at, THETA)):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b[0].transpose(0, 1), rtol=0, atol=1e-6)


def test_scores_depend_on_distance_only(device):
    """The point of it: q at m and k at n meet as if at m + s and n + s."""
    q, k = inputs(4, 1, 1, 64, torch.float32, device)
    at = torch.tensor([0, 3, 5, 11], device=device)
    scores = [torch.einsum("thd,ukd->tu", *_rope(q, k, at + s, 1e4, False)) for s in (0, 50)]
    torch.testing.assert_close(*scores, rtol=0, atol=1e-4)


def test_inverse_undoes_it(device):
    q, k = inputs(9, 2, 1, 32, torch.float32, device)
    at = positions(9, device)
    back = _rope(*_rope(q, k, at, THETA, False), at, THETA, True)
    torch.testing.assert_close(back, (q, k))


def test_views_of_one_fused_projection(device):
    """q and k as views into (T, (H + 2K) D); then a layout whose last dim is strided; int64 positions, strided."""
    qkv = randn(9, 6 * 16, device=device)
    at = positions(18, device, torch.int64)[::2]

    def split(t):
        return t[:, :64].unflatten(1, (4, 16)), t[:, 64:80].unflatten(1, (1, 16))

    check_as_good(lambda t: _rope(*split(t), at, THETA, False), lambda t: rope_ref(*split(t), at, THETA), (qkv,))
    q, k = randn(9, 16, 4, device=device), randn(9, 16, 2, device=device, seed=1)
    check_as_good(
        lambda q, k: _rope(q.mT, k.mT, at, THETA, False), lambda q, k: rope_ref(q.mT, k.mT, at, THETA), (q, k)
    )


@pytest.mark.parametrize("frozen", [0, 1])
def test_gradients_only_for_what_needs_them(frozen, device):
    args = inputs(9, 4, 2, 16, torch.float32, device)
    args[frozen].requires_grad_(False)
    at, other = positions(9, device), 1 - frozen
    ours, want = _rope(*args, at, THETA, False), rope_ref(*args, at, THETA)
    sum(out.square().sum() for out in ours).backward()
    assert args[frozen].grad is None
    torch.testing.assert_close(args[other].grad, torch.autograd.grad(want[other].square().sum(), args[other])[0])


@pytest.mark.parametrize(("T", "H", "K", "D"), [(0, 2, 1, 8), (3, 0, 1, 8), (3, 2, 0, 8), (3, 2, 1, 0)])
def test_empty(T, H, K, D, device):
    q, k = inputs(T, H, K, D, torch.float32, device)
    at = torch.arange(T, device=device)
    ours, want = _rope(q, k, at, THETA, False), rope_ref(q, k, at, THETA)
    torch.testing.assert_close(ours, want)
    dq, dk = torch.autograd.grad(ours[0].sum() + ours[1].sum(), (q, k))
    assert (dq.shape, dk.shape) == (q.shape, k.shape)


def test_opcheck(device):
    q, k = inputs(3, 2, 1, 8, torch.float32, device)
    for inverse in (False, True):
        torch.library.opcheck(_rope.overload, (q, k, positions(3, device), THETA, inverse))
    table = frequencies(3, 8, True, device)
    torch.library.opcheck(_rope.overload, (q, k, positions(3, device), 0.0, False, table, 1.25))


def test_compiles(device):
    args, at = inputs(5, 2, 1, 8, torch.float32, device), positions(5, device)
    check_compiles(lambda q, k: _rope(q, k, at, THETA, False), args)
    check_compiles(lambda q, k: rope(q, k, at, THETA), args)


def test_rows_beyond_32_bits(device):
    """Tokens, then heads, that lie 2**30 elements apart."""
    near = inputs(3, 3, 3, 8, torch.float16, device)
    at = positions(3, device)
    for strides in ((2**30, 8, 1), (8, 2**30, 1)):
        far = [far_tensor(t.shape, strides, t.dtype, device) for t in near]
        for a, b in zip(far, near, strict=True):
            a.copy_(b.detach())
        for a, b in zip(_rope(*far, at, THETA, False), _rope(*near, at, THETA, False), strict=True):
            assert torch.equal(a, b)


Q, K, AT = torch.ones(3, 4, 8), torch.ones(3, 2, 8), torch.arange(3)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((Q[0], K, AT, 1e6), r"rope: q's shape is \(4, 8\); needs \(T, H, D\) with D even"),
        ((Q[..., :7], K, AT, 1e6), r"rope: q's shape is \(3, 4, 7\); needs"),
        ((Q.long(), K, AT, 1e6), "rope: q's dtype is torch.int64; needs a floating dtype"),
        ((Q, K[:2], AT, 1e6), r"rope: k's shape is \(2, 2, 8\); needs \(T, K, D\) with q's T = 3 and D = 8"),
        ((Q, K.half(), AT, 1e6), "rope: k's dtype is torch.float16; needs q's torch.float32"),
        ((Q, K, AT[:2], 1e6), r"rope: positions' shape is \(2,\); needs \(3,\)"),
        ((Q, K, AT.float(), 1e6), "rope: positions' dtype is torch.float32; needs int32 or int64"),
        ((Q, K, AT.to("meta"), 1e6), "rope: positions' device is meta; needs q's cpu"),
        ((Q, K, AT, 0.0), "rope: theta is 0.0; needs a finite number > 0"),
    ],
)
def test_refuses(args, message):
    with pytest.raises(ValueError, match=message):
        rope(*args)


FOUR = torch.ones(4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "rope: theta is None; needs a finite number > 0"),
        ({"theta": 1e6, "frequencies": FOUR}, "rope: theta is 1000000.0; needs None beside frequencies"),
        ({"frequencies": FOUR[:3]}, r"rope: frequencies' shape is \(3,\); needs \(4,\) or \(3, 4\)"),
        ({"frequencies": FOUR.double()}, "rope: frequencies' dtype is torch.float64; needs torch.float32"),
        ({"frequencies": FOUR.to("meta")}, "rope: frequencies' device is meta; needs q's cpu"),
        ({"frequencies": [1.0] * 4}, "rope: frequencies is a list; needs a torch tensor"),
        ({"theta": 1e6, "scale": 0.0}, "rope: scale is 0.0; needs a finite number > 0"),
    ],
)
def test_refuses_angles(options, message):
    with pytest.raises(ValueError, match=message):
        rope(Q, K, AT, **options)


def test_a_graph_writes_the_frequencies_itself():
    """Bit for bit those that are uploaded elsewhere."""
    frequencies = rope_frequencies(128, 1e6)
    assert torch.equal(_write(frequencies, torch.device("cpu")), frequencies)


@pytest.mark.gpu
def test_captured_before_any_upload(monkeypatch, device):
    q, k, positions = randn(5, 3, 128, device=device), randn(5, 1, 128, device=device), torch.arange(5, device=device)
    want = _rope(q, k, positions, 1e6, False)  # compiles the kernel
    monkeypatch.setattr(import_module("eagle_kernels.rope"), "_UPLOADED", {})  # eagle_kernels.rope is the function too
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = _rope(q, k, positions, 1e6, False)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
