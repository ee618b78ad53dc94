"""What the benches of the fused ops share: one step of an op beside torch and torch.compile, judged in fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.harness import DEVICE, measure

DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
TOKENS = (4096, 32_768) if DEVICE == "cuda" else (64,)
STEPS = ("forward", "backward")
WAYS = ("ours", "torch", "torch.compile") if DEVICE == "cuda" else ("ours", "torch")


def random(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Standard normal leaves that take gradients, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(DEVICE, DTYPE).requires_grad_() for shape in shapes]


def measure_op(
    benchmark: Any,
    name: str,
    step: str,
    way: str,
    op: Callable[..., Tensor | tuple[Tensor, ...]],
    ref: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: list[Tensor],
    *,
    elements_moved: int,
) -> None:
    """Times one step of `op`, or of its reference. elements_moved: of DTYPE, what must be read and written."""
    benchmark.group = f"{name} {step}, {' x '.join(map(str, inputs[0].shape))}"
    torch.compiler.reset()  # or the shapes of an earlier bench make this one's compiled code general, and slower
    run = {"ours": op, "torch": ref, "torch.compile": torch.compile(ref)}[way]
    outputs = _tuple(run(*inputs))
    douts = [torch.randn_like(out) for out in outputs]
    wide = [x.detach().float().requires_grad_() for x in inputs]
    want = _tuple(ref(*wide))
    bytes_moved = elements_moved * DTYPE.itemsize
    if step == "forward":
        leaves = [x.detach() for x in inputs]
        measure(benchmark, lambda: _tuple(run(*leaves)), want, dtype=DTYPE, bytes_moved=bytes_moved)
    else:
        grads = torch.autograd.grad(want, wide, [d.float() for d in douts])
        backward = lambda: torch.autograd.grad(outputs, inputs, douts, retain_graph=True)  # noqa: E731
        measure(benchmark, backward, grads, dtype=DTYPE, bytes_moved=bytes_moved)


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs
