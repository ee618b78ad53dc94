"""What the benches of the fused ops share: one step of an op beside torch and torch.compile, judged in fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.harness import DEVICE, measure, rival

DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
TOKENS = (4096, 32_768) if DEVICE == "cuda" else (64,)
STEPS = ("forward", "backward")
WAYS = ("ours", "torch", "torch.compile") if DEVICE == "cuda" else ("ours", "torch")
WAYS_AND_LIGER = (*WAYS, "liger") if DEVICE == "cuda" else WAYS  # Liger-Kernel has no CPU code


def random(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Standard normal leaves that take gradients, made where they are used."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    return [torch.randn(shape, generator=generator, device=DEVICE, dtype=DTYPE).requires_grad_() for shape in shapes]


def liger(function: str) -> Callable[..., Any]:
    """Liger-Kernel's function of that name."""
    return getattr(rival("liger_kernel.transformers.functional", "liger-kernel"), function)


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
    rivals: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {},
) -> None:
    """Times one step of `op`, of its reference, or of one of `rivals`, functions by name with the arguments of `op`.

    step: "forward" or "backward".
    elements_moved: of DTYPE, what must be read and written.
    """
    benchmark.group = f"{name} {step}, {' x '.join(map(str, inputs[0].shape))}"
    torch.compiler.reset()  # or the shapes of an earlier bench make this one's compiled code general, and slower
    run = {"ours": op, "torch": ref, "torch.compile": torch.compile(ref), **rivals}[way]
    outputs = _tuple(run(*inputs))
    douts = [torch.randn_like(out) for out in outputs]
    wide = [x.detach().float().requires_grad_() for x in inputs]
    want = _tuple(ref(*wide))
    bytes_moved = elements_moved * DTYPE.itemsize
    if step == "forward":
        leaves = [x.detach() for x in inputs]
        measure(benchmark, lambda: _tuple(run(*leaves)), want, dtype=DTYPE, bytes_moved=bytes_moved)
        return
    grads = torch.autograd.grad(want, wide, [d.float() for d in douts])
    copies = [x.detach().clone() for x in inputs]

    def restore() -> None:  # Liger-Kernel's SwiGLU writes its gradients over its inputs
        for x, copy in zip(inputs, copies, strict=True):
            x.data.copy_(copy)  # .data: autograd, which would refuse to go back a second time, does not see it

    backward = lambda: torch.autograd.grad(outputs, inputs, douts, retain_graph=True)  # noqa: E731
    measure(benchmark, backward, grads, dtype=DTYPE, bytes_moved=bytes_moved, prepare=restore)


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs
