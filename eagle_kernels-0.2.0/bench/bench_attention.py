"""Packed attention at the model's two shapes: ours, SDPA by each of its backends, torch's own varlen attention by
flash-attn 2 and 3, flex attention with a document mask, flash-attn 2 and 4 where they are installed.

Length patterns: the vision tower's equal tiles; one long document; many documents, long-tailed. Small on a CPU.
FLOPs count the pairs that the mask leaves: 4 * D a pair and head forward, 2.5 times that backward. The deterministic
backward is measured only of what gives the same bits twice.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from bench.harness import DEVICE, measure, rival, seconds
from eagle_kernels import attention_sm90
from eagle_kernels.attention import varlen_attention, varlen_attention_ref
from eagle_kernels.attention_plan import AttentionPlan

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


GPU_PATTERNS = [
    *(Pattern(name=f"vision {n} tiles", shape=VISION, lengths=(1024,) * n) for n in (16, 64, 256)),
    *(Pattern(name=f"one document {n // 1024}K", shape=LLM, lengths=(n,)) for n in (32_768, 131_072)),
    *(Pattern(name=f"packed {n // 1024}K", shape=LLM, lengths=long_tailed(n, 4096)) for n in (32_768, 131_072)),
]
CPU_PATTERNS = [
    Pattern(name="vision 4 tiles", shape=VISION, lengths=(256,) * 4),
    Pattern(name="packed 512", shape=LLM, lengths=long_tailed(512, 64)),
]
PATTERNS = GPU_PATTERNS if DEVICE == "cuda" else CPU_PATTERNS


def offsets(pattern: Pattern) -> Tensor:
    return torch.tensor([0, *pattern.lengths]).cumsum(0).int().to(DEVICE)


def by_tables(pattern: Pattern) -> Attend:
    causal = pattern.shape.causal
    plan = AttentionPlan.from_cu_seqlens(offsets(pattern), num_tokens=sum(pattern.lengths), causal=causal)
    return lambda q, k, v: varlen_attention(q, k, v, plan, causal=causal)


def uniform(pattern: Pattern) -> Attend:
    if pattern.shape != VISION:
        pytest.skip(f"{pattern.name} is not of equal lengths")
    plan = AttentionPlan.uniform(len(pattern.lengths), pattern.lengths[0], device=DEVICE)
    return lambda q, k, v: varlen_attention(q, k, v, plan, causal=False)


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
    """torch.nn.attention.varlen with torch 2.11's window_size signature; from 2.12 on, groups must be asked for."""
    varlen = rival("torch.nn.attention.varlen", "torch").varlen_attn
    parameters, shape = inspect.signature(varlen).parameters, pattern.shape
    if "window_size" not in parameters:
        pytest.skip("this torch's varlen_attn has no window_size")
    grouped = {"enable_gqa": shape.num_heads != shape.num_kv_heads} if "enable_gqa" in parameters else {}
    ends, longest, window = offsets(pattern), max(pattern.lengths), (-1, 0) if shape.causal else (-1, -1)
    return lambda q, k, v: varlen(q, k, v, ends, ends, longest, longest, window_size=window, **grouped)


def flex(pattern: Pattern) -> Attend:
    """flex_attention with a document mask; compiled on a GPU, where it is a Triton kernel, for this pattern alone."""
    torch.compiler.reset()  # or, after some patterns, the compiler gives up and flex_attention keeps all scores
    causal = pattern.shape.causal
    document_T = torch.repeat_interleave(
        torch.arange(len(pattern.lengths), device=DEVICE), torch.tensor(pattern.lengths, device=DEVICE)
    )

    def sees(_batch: Tensor, _head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        same = document_T[i] == document_T[j]
        return same & (j <= i) if causal else same

    rows = sum(pattern.lengths)
    in_blocks = torch.compile(create_block_mask) if DEVICE == "cuda" else create_block_mask  # else a mask of rows**2
    mask = in_blocks(sees, None, None, rows, rows, device=DEVICE)
    attend = torch.compile(flex_attention, dynamic=False) if DEVICE == "cuda" else flex_attention
    grouped = pattern.shape.num_heads != pattern.shape.num_kv_heads

    def one_batch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch = [x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)]
        return attend(*batch, block_mask=mask, enable_gqa=grouped).squeeze(0).transpose(0, 1)

    return one_batch


def flash_attn(pattern: Pattern, module: str, package: str) -> Attend:
    """flash-attn 2 ("flash_attn") or 4 ("flash_attn.cute"); deterministic where torch is asked to be."""
    varlen = getattr(rival(module, package), "flash_attn_varlen_func", None)
    if varlen is None:  # flash-attn 4 alone makes an empty package `flash_attn`
        pytest.skip(f"{module} has no flash_attn_varlen_func")
    ends, longest = offsets(pattern), max(pattern.lengths)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        result = varlen(
            q, k, v, cu_seqlens_q=ends, cu_seqlens_k=ends, max_seqlen_q=longest, max_seqlen_k=longest,
            causal=pattern.shape.causal, deterministic=torch.are_deterministic_algorithms_enabled(),
        )  # fmt: skip
        return result[0] if isinstance(result, tuple) else result

    return attend


BY_TRITON = "ours by Triton"  # where Gluon's kernels are ours: what they are worth
BY_FA3 = "torch varlen FA3"


@pytest.fixture(autouse=True)
def kernels(request, monkeypatch):
    """Of the ways that are a switch: for forward and backward."""
    way = request.node.callspec.params.get("way")
    if way == BY_TRITON:
        monkeypatch.setattr(attention_sm90, "why_triton", lambda *tensors: "asked for")
    if way != BY_FA3:
        yield
        return
    rival("flash_attn_interface", "flash-attn 3")
    switch = torch.nn.attention
    if not hasattr(switch, "activate_flash_attention_impl"):
        pytest.skip(f"torch {torch.__version__} knows no other flash attention")
    switch.activate_flash_attention_impl("FA3")
    yield
    switch.restore_flash_attention_impl()


WAYS: dict[str, Callable[[Pattern], Attend]] = {
    "ours": by_tables,
    "ours uniform": uniform,
    "sdpa flash": lambda pattern: sdpa(pattern, SDPBackend.FLASH_ATTENTION),
    "flex": flex,
}
if DEVICE == "cuda":
    WAYS["sdpa cudnn"] = lambda pattern: sdpa(pattern, SDPBackend.CUDNN_ATTENTION)
    WAYS["torch varlen"] = torch_varlen
    WAYS[BY_FA3] = torch_varlen
    WAYS["flash-attn 2"] = lambda pattern: flash_attn(pattern, "flash_attn", "flash-attn")
    WAYS["flash-attn 4"] = lambda pattern: flash_attn(pattern, "flash_attn.cute", "flash-attn-4")
    if torch.cuda.get_device_capability() == (9, 0):
        WAYS[BY_TRITON] = by_tables
WAYS_BACK = [way for way in WAYS if DEVICE == "cuda" or way != "flex"]  # on a CPU flex_attention has no backward


@lru_cache(maxsize=1)
def inputs(pattern: Pattern) -> tuple[list[Tensor], Tensor]:
    """q, k, v that take gradients, and a gradient of out: random values, made once a pattern, where they are used."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    shape, rows = pattern.shape, sum(pattern.lengths)
    heads = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads, shape.num_heads)
    q, k, v, dout = (
        torch.randn(rows, h, shape.head_width, generator=generator, device=DEVICE, dtype=DTYPE) for h in heads
    )
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


def measure_backward(benchmark: Any, pattern: Pattern, way: str, *, same_bits: bool) -> None:
    qkv, dout = inputs(pattern)
    out, shape = WAYS[way](pattern)(*qkv), pattern.shape
    want = in_fp32(pattern)[1:]

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(out, qkv, dout, retain_graph=True)

    if same_bits and not all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True)):
        pytest.skip(f"{way} gives other bits on repeat")
    flops = 10 * pattern.num_pairs * shape.num_heads * shape.head_width
    measure(benchmark, run, want, flops=flops, dtype=DTYPE)


@contextmanager
def deterministic() -> Iterator[None]:
    """torch's switch, without its filling of new memory, which would cost every way time."""
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fills


@pytest.mark.parametrize("way", WAYS_BACK)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_backward(benchmark, pattern, way):
    benchmark.group = f"attention backward, {pattern.name}"
    measure_backward(benchmark, pattern, way, same_bits=False)


@pytest.mark.parametrize("way", WAYS_BACK)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_deterministic_backward(benchmark, pattern, way):
    benchmark.group = f"attention deterministic backward, {pattern.name}"
    with deterministic():
        measure_backward(benchmark, pattern, way, same_bits=True)
