"""What every op's tests ask: as good as torch, the same bits again, nothing left unwritten, 64-bit addresses."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from tests.numerics import assert_as_good, outputs_and_grads, to_double

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MAP_NORESERVE = 0x4000  # Linux; Python names it only from 3.13 on
GUARD = 2**31  # elements before a far tensor: where an address that wrapped at 32 bits would point


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """torch.empty and its kin hold NaN, so that an element the kernel forgot shows."""
    before = torch.are_deterministic_algorithms_enabled()
    # With torch.utils.deterministic.fill_uninitialized_memory, on by default; cuBLAS would ask for a setting, so warn.
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """On a GPU, whatever makes the host wait for it raises."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def check_as_good(ours: Callable, ref: Callable, inputs: Sequence[Tensor], *, factor: float = 2) -> None:
    """Outputs and gradients of `ours` against `ref` in the same dtype and in fp64; then the same bits again, without
    waiting for the GPU."""
    outputs = ref(*[t.detach() for t in inputs])
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    generator = torch.Generator().manual_seed(99)
    douts = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
    with poisoned_memory():
        got = outputs_and_grads(ours, inputs, douts)
    with no_waiting(inputs[0].device):  # not at the first call, which compiles kernels and fills caches
        again = outputs_and_grads(ours, inputs, douts)
    same = outputs_and_grads(ref, inputs, douts)
    true = outputs_and_grads(ref, to_double(inputs), [d.double() for d in douts])
    assert_as_good(got, same, true, factor=factor)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


def check_compiles(fn: Callable, inputs: Sequence[Tensor], *, unknown_sizes: bool = True) -> None:
    """torch.compile takes fn whole, forward and backward, and changes nothing, also where it does not know the sizes;
    on a GPU with all that it generates."""
    eager = fn(*inputs)
    douts = [torch.ones_like(o) for o in ((eager,) if isinstance(eager, Tensor) else eager)]
    backend = "inductor" if inputs[0].is_cuda else "aot_eager"
    want = outputs_and_grads(fn, inputs, douts)
    for dynamic in (None, True) if unknown_sizes else (None,):
        torch.compiler.reset()  # or code for known sizes would do for the others
        compiled = torch.compile(fn, fullgraph=True, dynamic=dynamic, backend=backend)
        torch.testing.assert_close(outputs_and_grads(compiled, inputs, douts), want)


def far_tensor(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: str) -> Tensor:
    """A tensor whose elements lie gigabytes apart. On CPU the memory is reserved, not taken; a kernel whose 32-bit
    arithmetic wraps reads or writes the guard before it, and its result is wrong."""
    num_elements = GUARD + 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if device == "cuda":
        memory = torch.zeros(num_elements, dtype=dtype, device=device)
    else:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        memory = torch.frombuffer(mmap.mmap(-1, num_elements * dtype.itemsize, flags=flags), dtype=dtype)
    return memory.as_strided(shape, strides, storage_offset=GUARD)


def far_rows(rows_TC: Tensor, *, stride: int = 2**30) -> Tensor:
    """The same matrix with its rows `stride` elements apart: row 2 starts where 32 bits end."""
    far_TC = far_tensor(rows_TC.shape, (stride, 1), rows_TC.dtype, rows_TC.device.type)
    far_TC.copy_(rows_TC.detach())
    return far_TC
