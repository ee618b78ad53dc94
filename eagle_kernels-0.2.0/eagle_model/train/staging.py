"""Staging: host memory that tensors are copied into again and again, to be written while training goes on.

    staging = Staging(torch.device("cuda"))
    staging.begin()                              # what the copies before this held may be overwritten
    copy = staging.copy(weight)                  # on the host
    kept = staging.copy(moment, later=True)      # nothing is moved yet: the tensor must stay as it is until...
    staging.finish()                             # ...now, in this thread or another: all copies hold what was copied

Tensors that come in the same order get the same memory: from the second time on nothing is allocated. For a GPU the
memory is page-locked, so that copies run at the bus's speed.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_BYTES = 1 << 26  # what is allocated at a time, or what a larger tensor needs
ALIGNED_BYTES = 64  # where a copy begins: a multiple of every dtype's size


class Staging:
    """Memory of one process. Its blocks grow to what the largest round of copies took, and stay."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blocks: list[Tensor] = []
        self._block = self._used = 0
        self._later: list[tuple[Tensor, Tensor]] = []  # (copy, tensor) of each copy that `finish` makes
        self._issued = None if device.type != "cuda" else torch.cuda.Event()  # after the last copy of this round

    @property
    def num_bytes(self) -> int:
        """What is allocated."""
        return sum(len(block) for block in self._blocks)

    def begin(self) -> None:
        """A new round: its copies take the memory of the one before."""
        self._block = self._used = 0
        self._later.clear()

    def copy(self, tensor: Tensor, *, later: bool = False) -> Tensor:
        """A copy on the host, complete after `finish`; with `later`, it is `finish` that makes it."""
        copy = self._take(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
        if later:
            self._later.append((copy, tensor.detach()))
        else:
            copy.copy_(tensor.detach(), non_blocking=True)
        if self._issued is not None:
            self._issued.record(torch.cuda.current_stream(self._device))
        return copy

    def finish(self) -> None:
        """Returns when all copies of this round are complete. In another thread they run beside the step's kernels."""
        stream = None if self._issued is None else torch.cuda.Stream(self._device)
        with torch.cuda.stream(stream):  # of None: does nothing
            if stream is not None and self._issued is not None:
                stream.wait_event(self._issued)
            for copy, tensor in self._later:
                copy.copy_(tensor, non_blocking=True)
        if stream is not None:
            stream.synchronize()
        self._later.clear()  # not before: they may be held by nobody else

    def close(self) -> None:
        """Gives the memory back; no copy of it may be in use."""
        if self._device.type == "cuda":
            for block in self._blocks:
                torch.cuda.cudart().cudaHostUnregister(block.data_ptr())
        self._blocks = []

    def _take(self, num_bytes: int) -> Tensor:
        while self._block < len(self._blocks) and self._used + num_bytes > len(self._blocks[self._block]):
            self._block, self._used = self._block + 1, 0
        if self._block == len(self._blocks):
            self._blocks.append(self._allocated(max(num_bytes, BLOCK_BYTES)))
        begin = self._used
        self._used += -(-num_bytes // ALIGNED_BYTES) * ALIGNED_BYTES
        return self._blocks[self._block][begin : begin + num_bytes]

    def _allocated(self, num_bytes: int) -> Tensor:
        block = torch.empty(num_bytes, dtype=torch.uint8)
        if self._device.type == "cuda":  # torch's pinned memory is rounded up to a power of two
            code = torch.cuda.cudart().cudaHostRegister(block.data_ptr(), num_bytes, 0)
            if int(code) != 0:
                raise MemoryError(f"{num_bytes} bytes of host memory could not be page-locked (CUDA error {int(code)})")
        return block
