"""Each op under torch.autocast beside what torch itself does there: the same dtype, and nearly the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import eagle_kernels as ek
from tests.numerics import randn

FP32, BF16 = torch.float32, torch.bfloat16
C, V, W = 32, 10, 48  # a row, the vocabulary, qkv of 1 query head and 1 key head of 16
OFFSETS = torch.tensor([0, 3, 8], dtype=torch.int32)
POSITIONS = torch.arange(8)


def heads(x: Tensor) -> Tensor:
    """(8, 32) -> (8, 2, 16)."""
    return x.unflatten(1, (2, 16))


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two documents, as varlen_attention and OFFSETS have them."""
    parts = [heads(x).transpose(0, 1).split([3, 5], dim=1) for x in (q, k, v)]
    outs = [F.scaled_dot_product_attention(*part, is_causal=True) for part in zip(*parts, strict=True)]
    return torch.cat(outs, dim=1).transpose(0, 1)


def rotated(x: Tensor, num_heads: int) -> Tensor:
    angles = POSITIONS[:, None, None] * 1e4 ** (-torch.arange(8) / 8)
    a, b = x.unflatten(1, (num_heads, 16)).chunk(2, dim=2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=2)


Op = Callable[..., "Tensor | tuple[Tensor, ...]"]
RMS_NORMS = (lambda x, w: ek.rms_norm(x, w, 1e-6), lambda x, w: F.rms_norm(x, (C,), w, 1e-6))
# name: (ours, torch's, dtypes of the inputs as they arrive, shapes). A parameter is fp32, a linear layer gives bf16.
CASES: dict[str, tuple[Op, Op, list[torch.dtype], list[tuple[int, ...]]]] = {
    "rms_norm": (*RMS_NORMS, [BF16, FP32], [(8, C), (C,)]),
    "rms_norm, fp32": (*RMS_NORMS, [FP32, FP32], [(8, C), (C,)]),
    "add_rms_norm": (
        lambda x, r, w: ek.add_rms_norm(x, r, w, 1e-6),
        lambda x, r, w: (F.rms_norm(x + r, (C,), w, 1e-6), x + r),
        [BF16, FP32, FP32],
        [(8, C), (8, C), (C,)],
    ),
    "layer_norm": (
        lambda x, w, b: ek.layer_norm(x, w, b, 1e-6),
        lambda x, w, b: F.layer_norm(x, (C,), w, b, 1e-6),
        [BF16, FP32, FP32],
        [(8, C), (C,), (C,)],
    ),
    "merge_2x2_layer_norm": (
        lambda x, w, b: ek.merge_2x2_layer_norm(x.view(2, 4, C), w, b, 1e-6).flatten(0, 1),
        lambda x, w, b: F.layer_norm(x.view(2, 4 * C), (4 * C,), w, b, 1e-6),
        [BF16, FP32, FP32],
        [(8, C), (4 * C,), (4 * C,)],
    ),
    "merge_2x2": (lambda x: ek.merge_2x2(x.view(2, 4, C)), lambda x: x.view(2, 1, 4 * C), [BF16], [(8, C)]),
    "gelu_bias": (
        lambda x, w, b: ek.gelu_bias(x @ w.T, b),
        lambda x, w, b: F.gelu(F.linear(x, w, b), approximate="tanh"),
        [FP32, FP32, FP32],
        [(8, C), (V, C), (V,)],
    ),
    "qkv_rope": (
        lambda x, w, b: ek.qkv_rope(x @ w.T, b, POSITIONS, 1e4, num_heads=1, num_kv_heads=1)[:2],
        lambda x, w, b: tuple(rotated(h, 1) for h in F.linear(x, w, b).split(16, dim=1)[:2]),
        [FP32, FP32, FP32],
        [(8, C), (W, C), (W,)],
    ),
    "swiglu": (ek.swiglu, lambda g, u: F.silu(g) * u, [BF16, BF16], [(8, C), (8, C)]),
    "swiglu, mixed": (ek.swiglu, lambda g, u: F.silu(g) * u, [BF16, FP32], [(8, C), (8, C)]),
    "rope": (
        lambda q, k: ek.rope(heads(q), heads(k), POSITIONS, 1e4),
        lambda q, k: (rotated(q, 2), rotated(k, 2)),
        [BF16, BF16],
        [(8, C), (8, C)],
    ),
    "varlen_attention": (
        lambda q, k, v: ek.varlen_attention(heads(q), heads(k), heads(v), OFFSETS),
        sdpa,
        [FP32, BF16, BF16],
        [(8, C)] * 3,
    ),
    "flash_attn_varlen_func": (
        lambda q, k, v: ek.flash_attn_varlen_func(heads(q), heads(k), heads(v), OFFSETS, OFFSETS, 5, 5, causal=True),
        sdpa,
        [FP32, FP32, FP32],
        [(8, C)] * 3,
    ),
    "linear_cross_entropy": (
        lambda x, w: ek.linear_cross_entropy(x, w, POSITIONS),
        lambda x, w: F.cross_entropy(F.linear(x, w), POSITIONS),
        [FP32, FP32],
        [(8, C), (V, C)],
    ),
    "scatter_visual": (
        lambda e, v: ek.scatter_visual(e, v, POSITIONS[2:5]),
        lambda e, v: e.index_copy(0, POSITIONS[2:5], v),
        [FP32, BF16],
        [(8, C), (3, C)],
    ),
}


def outputs(result: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@pytest.mark.parametrize("case", CASES)
def test_as_torch_does(case):
    """Outputs of torch's dtypes, and gradients of the inputs' own; numbers within a few roundings of bf16."""
    ours, torchs, dtypes, shapes = CASES[case]
    inputs = [randn(*shape, dtype=dtype, seed=i) for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))]
    found = []
    for op in (ours, torchs):
        with torch.autocast("cpu", BF16):
            out = outputs(op(*inputs))
        found.append([*out, *torch.autograd.grad([o.float().square().sum() for o in out], inputs)])
    assert [t.dtype for t in found[0]] == [t.dtype for t in found[1]]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05 * max(1, float(b.detach().abs().max())))


@pytest.mark.parametrize("case", CASES)
def test_another_dtype_of_autocast(case):
    """fp16 in place of bf16, and a context that is off: as outside of it."""
    ours, torchs, _, shapes = CASES[case]
    inputs = [randn(*shape, dtype=FP32, seed=i) for i, shape in enumerate(shapes)]
    with torch.autocast("cpu", torch.float16):
        assert [t.dtype for t in outputs(ours(*inputs))] == [t.dtype for t in outputs(torchs(*inputs))]
    with torch.autocast("cpu", BF16), torch.autocast("cpu", enabled=False):
        off = outputs(ours(*inputs))
    assert all(torch.equal(a, b) for a, b in zip(off, outputs(ours(*inputs)), strict=True))


def test_ops_of_inference():
    q, k, v = (randn(8, 2, 16, seed=i).detach() for i in range(3))
    ints = torch.tensor([[0, 3], [3, 5]], dtype=torch.int32)
    with torch.autocast("cpu", BF16):
        out = ek.decode_attention(q[:2], k, v, *ints)
        parts = [ek.varlen_attention(q, k, v, OFFSETS, return_lse=True) for _ in range(2)]
        merged, _ = ek.merge_attention(*parts[0], parts[1][0].float(), parts[1][1])
    assert torch.equal(out, ek.decode_attention(q[:2].bfloat16(), k.bfloat16(), v.bfloat16(), *ints))
    assert (out.dtype, parts[0][0].dtype, parts[0][1].dtype, merged.dtype) == (BF16, BF16, FP32, FP32)


def test_fp64_stays():
    x, w = randn(8, C, seed=0).detach().double(), randn(V, C, seed=1).detach().double()
    with torch.autocast("cpu", BF16):
        assert ek.linear_cross_entropy(x, w, POSITIONS).dtype == torch.float64
        assert ek.rms_norm(x, x[0], 1e-6).dtype == torch.float64


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"varlen_attention", "flash_attn_varlen_func"}))
def test_compiles_whole(case):
    """varlen_attention reads its offsets on a CPU, which is no part of a graph."""
    ours, _, dtypes, shapes = CASES[case]
    inputs = [randn(*shape, dtype=dtype, seed=i) for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))]

    def step(*inputs: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", BF16):
            return outputs(ours(*inputs))

    torch.compiler.reset()
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs)
    for a, b in zip(got, step(*inputs), strict=True):
        assert torch.equal(a, b)


def test_devices_without_autocast():
    x = torch.empty(1, 2, device="meta")
    with torch.autocast("cpu", torch.bfloat16):
        assert ek.swiglu(x, x).dtype == x.dtype
