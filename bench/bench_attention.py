"""Packed attention at the model's two shapes: ours, SDPA by each of its backends, torch's own varlen attention.

Length patterns: the vision tower's equal tiles; one long document; many documents, long-tailed. Small on a CPU.
FLOPs count the pairs that the mask leaves: 4 * D a pair and head forward, 2.5 times that backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.harness import DEVICE, measure, seconds
from eagle_kernels.attention import AttentionPlan, varlen_attention, varlen_attention_ref

pytestmark = pytest.mark.benchmark(timer=seconds)
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Shape:
    num_heads: int
    num_kv_heads: int
    head_width: int
    causal: bool


@dataclass(frozen=True, kw_only=True)
class Pattern:
    name: str
    shape: Shape
    lengths: tuple[int, ...]

    @property
    def num_pairs(self) -> int:
        return sum(n * (n + 1) // 2 if self.shape.causal else n * n for n in self.lengths)


VISION = Shape(num_heads=16, num_kv_heads=16, head_width=72, causal=False)
LLM = Shape(num_heads=28, num_kv_heads=4, head_width=128, causal=True)


def long_tailed(num_tokens: int, mean: int) -> tuple[int, ...]:
    """Lengths of a log-normal distribution that add up to num_tokens; the same on every machine."""
    spread = torch.randn(4 * num_tokens // mean, generator=torch.Generator().manual_seed(0)).exp()
    lengths = (spread * mean / spread.mean()).long().clamp(min=1).tolist()
    cut: list[int] = []
    while sum(cut) < num_tokens:
        cut.append(min(lengths[len(cut)], num_tokens - sum(cut)))
    return tuple(cut)


if DEVICE == "cuda":
    PATTERNS = [
        *(Pattern(name=f"vision {n} tiles", shape=VISION, lengths=(1024,) * n) for n in (16, 64, 256)),
        *(Pattern(name=f"one document {n // 1024}K", shape=LLM, lengths=(n,)) for n in (32_768, 131_072)),
        *(Pattern(name=f"packed {n // 1024}K", shape=LLM, lengths=long_tailed(n, 4096)) for n in (32_768, 131_072)),
    ]
else:
    PATTERNS = [
        Pattern(name="vision 4 tiles", shape=VISION, lengths=(256,) * 4),
        Pattern(name="packed 512", shape=LLM, lengths=long_tailed(512, 64)),
    ]


def ours(pattern: Pattern) -> Attend:
    ends = torch.tensor([0, *pattern.lengths]).cumsum(0).int().to(DEVICE)
    causal = pattern.shape.causal
    plan = AttentionPlan.from_cu_seqlens(ends, num_tokens=sum(pattern.lengths), causal=causal)
    return lambda q, k, v: varlen_attention(q, k, v, plan, causal=causal)


def sdpa(pattern: Pattern, backend: SDPBackend) -> Attend:
    """SDPA one document at a time, or all at once where all have one length."""
    equal = len(set(pattern.lengths)) == 1
    documents = len(pattern.lengths) if equal else 1
    sizes = [sum(pattern.lengths)] if equal else list(pattern.lengths)
    shape = pattern.shape

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs = []
        for rows in zip(q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
            batch = [x.unflatten(0, (documents, -1)).transpose(1, 2) for x in rows]
            grouped = shape.num_heads != shape.num_kv_heads
            out = F.scaled_dot_product_attention(*batch, is_causal=shape.causal, enable_gqa=grouped)
            outs.append(out.transpose(1, 2).flatten(0, 1))
        return torch.cat(outs)

    def in_backend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        try:
            with sdpa_kernel(backend):
                return attend(q, k, v)
        except RuntimeError as error:
            if "No available kernel" not in str(error):
                raise
            pytest.skip(f"this torch's {backend.name} does not take {pattern.name}")

    return in_backend


def torch_varlen(pattern: Pattern) -> Attend:
    """torch.nn.attention.varlen with the window_size signature (torch >= 2.12)."""
    varlen = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    if "enable_gqa" not in varlen.__annotations__:
        pytest.skip("this torch's varlen_attn has no enable_gqa")
    ends = torch.tensor([0, *pattern.lengths]).cumsum(0).int().to(DEVICE)
    longest, window = max(pattern.lengths), (-1, 0) if pattern.shape.causal else (-1, -1)
    return lambda q, k, v: varlen(
        q, k, v, ends, ends, longest, longest, window_size=window, enable_gqa=q.shape[1] != k.shape[1]
    )


WAYS: dict[str, Callable[[Pattern], Attend]] = {
    "ours": ours,
    "sdpa flash": lambda pattern: sdpa(pattern, SDPBackend.FLASH_ATTENTION),
}
if DEVICE == "cuda":
    WAYS["sdpa cudnn"] = lambda pattern: sdpa(pattern, SDPBackend.CUDNN_ATTENTION)
    WAYS["torch varlen"] = torch_varlen


def inputs(pattern: Pattern) -> tuple[list[Tensor], Tensor]:
    """q, k, v that take gradients, and a gradient of out: random values, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    shape, rows = pattern.shape, sum(pattern.lengths)
    heads = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads, shape.num_heads)
    q, k, v, dout = (torch.randn(rows, h, shape.head_width, generator=generator).to(DEVICE, DTYPE) for h in heads)
    return [x.requires_grad_() for x in (q, k, v)], dout


@lru_cache(maxsize=1)  # every way of a pattern is held to the same; minutes of work at 128K tokens
def in_fp32(pattern: Pattern) -> list[Tensor]:
    """out, dq, dk, dv of the reference on `inputs`, a document at a time so that 128K tokens fit."""
    qkv, dout = inputs(pattern)
    results = []
    pieces = [x.detach().split(pattern.lengths) for x in (*qkv, dout)]
    for *document, gradient in zip(*pieces, strict=True):
        leaves = [x.float().requires_grad_() for x in document]
        ends = torch.tensor([0, len(gradient)], dtype=torch.int32, device=DEVICE)
        q, k, v = leaves
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))  # grouped fp32 SDPA keeps all scores
        out = varlen_attention_ref(q, k, v, ends, causal=pattern.shape.causal)
        assert isinstance(out, Tensor)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, gradient.float())])
    return [torch.cat(parts) for parts in zip(*results, strict=True)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_forward(benchmark, pattern, way):
    benchmark.group = f"attention forward, {pattern.name}"
    qkv, _ = inputs(pattern)
    attend, shape = WAYS[way](pattern), pattern.shape
    want = in_fp32(pattern)[:1]
    qkv = [x.detach() for x in qkv]
    flops = 4 * pattern.num_pairs * shape.num_heads * shape.head_width
    measure(benchmark, lambda: [attend(*qkv)], want, flops=flops, dtype=DTYPE)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_backward(benchmark, pattern, way):
    benchmark.group = f"attention backward, {pattern.name}"
    qkv, dout = inputs(pattern)
    out, shape = WAYS[way](pattern)(*qkv), pattern.shape
    want = in_fp32(pattern)[1:]
    flops = 10 * pattern.num_pairs * shape.num_heads * shape.head_width
    measure(benchmark, lambda: torch.autograd.grad(out, qkv, dout, retain_graph=True), want, flops=flops, dtype=DTYPE)
