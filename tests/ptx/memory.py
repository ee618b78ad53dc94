"""Global memory with every tensor's bounds known, and tensor maps (TMA descriptors) over it.

    memory = Memory()
    x = memory.place(np.arange(10, dtype=np.float32), "x")                       # read only
    out = memory.place(np.full(10, np.nan, np.float32), "out", writable=True)
    ...
    out.read()                                                                    # what the kernel left

An access outside every tensor, to a tensor it may not write, or not aligned to its own width raises AccessError.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

BASE = 0x1_0000_0000
GAP = 512  # bytes between tensors that belong to none
READABLE, WRITABLE = 1, 2


class AccessError(RuntimeError):
    """Memory used in a way that the hardware forbids or leaves undefined."""


@dataclass
class Tensor:
    """An array in global memory."""

    name: str
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    memory: Memory = field(repr=False)

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self) -> NDArray[Any]:
        start = self.address - BASE
        return self.memory.bytes[start : start + self.num_bytes].view(self.dtype).reshape(self.shape).copy()

    def write(self, values: NDArray[Any]) -> None:
        start = self.address - BASE
        self.memory.bytes[start : start + self.num_bytes] = (
            np.ascontiguousarray(values, self.dtype).reshape(-1).view(np.uint8)
        )


class Memory:
    """Global memory. `size` bytes hold all tensors placed in it."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.bytes = np.full(size, 0xFF, np.uint8)
        self.rights = np.zeros(size, np.uint8)
        self.tensors: list[Tensor] = []
        self.top = GAP
        self.views: dict[tuple[type, int], NDArray[Any]] = {}

    def place(self, values: NDArray[Any], name: str = "", *, writable: bool = False, misalign: int = 0) -> Tensor:
        """Copies an array in, at an address that 256 divides, plus `misalign` bytes."""
        values = np.ascontiguousarray(values)
        start = -(-self.top // 256) * 256 + misalign
        self._grow(start + values.nbytes + GAP)
        self.bytes[start : start + values.nbytes] = values.reshape(-1).view(np.uint8)
        self.rights[start : start + values.nbytes] = READABLE | (WRITABLE if writable else 0)
        self.top = start + values.nbytes + GAP
        tensor = Tensor(name or f"tensor {len(self.tensors)}", BASE + start, values.shape, values.dtype, self)
        self.tensors.append(tensor)
        return tensor

    def copy(self) -> Memory:
        """The same bytes apart, for another run. `tensors` still read this memory: what reads itself is a ring, which
        stays until Python looks for such."""
        twin = Memory(0)
        twin.bytes, twin.rights = self.bytes.copy(), self.rights.copy()
        twin.tensors, twin.top = list(self.tensors), self.top
        return twin

    def _grow(self, needed: int) -> None:
        if needed <= len(self.bytes):
            return
        size = 1 << (needed - 1).bit_length()
        grown, rights = np.full(size, 0xFF, np.uint8), np.zeros(size, np.uint8)
        grown[: len(self.bytes)], rights[: len(self.bytes)] = self.bytes, self.rights
        self.bytes, self.rights = grown, rights
        self.views.clear()

    def view(self, kind: type, count: int) -> NDArray[Any]:
        """All of memory as (n, count) of a type."""
        key = (kind, count)
        if key not in self.views:
            flat: NDArray[Any] = self.bytes.view(kind)
            self.views[key] = flat[: len(flat) // count * count].reshape(-1, count) if count > 1 else flat
        return self.views[key]

    def offsets(self, addresses: NDArray[Any], width: int, right: int, what: str) -> NDArray[np.int64]:
        """Where in `bytes` accesses of `width` bytes lie. Raises AccessError for the first that may not be."""
        at = addresses - BASE
        if at.size == 0:
            return at
        inside = int(at.view(np.uint64).max()) + width <= len(self.bytes)  # a negative one is very large
        if inside:
            rights = self.rights[at] & self.rights[at + (width - 1)]
            inside = bool((rights & right).all())
        if not inside:
            self._explain(addresses, width, right, what)
        return at

    def aligned_offsets(self, addresses: NDArray[Any], width: int, right: int, what: str) -> NDArray[np.int64]:
        """The same for accesses that must lie at a multiple of their width, a power of two."""
        at = self.offsets(addresses, width, right, what)
        if at.size and int(np.bitwise_or.reduce(at, axis=None)) & (width - 1):
            bad = addresses[(at & (width - 1)) != 0].flat[0]
            raise AccessError(f"{what}: address {int(bad):#x} is not a multiple of the access's {width} bytes")
        return at

    def _explain(self, addresses: NDArray[Any], width: int, right: int, what: str) -> None:
        for address in addresses.reshape(-1).tolist():
            start = address - BASE
            if start >= 0 and start + width <= len(self.bytes):
                rights = self.rights[start] & self.rights[start + width - 1]
                if rights & right:
                    continue
            near = min(self.tensors, key=lambda t: _distance(address, t.address, t.address + t.num_bytes), default=None)
            if near is None:
                raise AccessError(f"{what}: {width} bytes at {address:#x}, and memory holds no tensor")
            place = f"byte {address - near.address} of {near.name}, which has {near.num_bytes}"
            reason = (
                "may not be written"
                if near.address <= address < near.address + near.num_bytes - width + 1
                else "lies outside"
            )
            raise AccessError(f"{what}: {width} bytes at {place}: {reason}")


class HostMemory(Memory):
    """The arrays themselves, at their own addresses: for launches whose arguments were packed with those.

    HostMemory([(x, False), (out, True)])      (array, writable); contiguous arrays
    """

    def __init__(self, arrays: Sequence[tuple[NDArray[Any], bool]]) -> None:
        self.arrays = [array for array, _ in arrays if array.nbytes]
        spans = sorted(
            (array.__array_interface__["data"][0], array.nbytes, READABLE | (WRITABLE if writable else 0))
            for array, writable in arrays
            if array.nbytes
        )
        self.tensors = [
            Tensor(f"array {i}", address, (size,), np.dtype(np.uint8), self)
            for i, (address, size, _) in enumerate(spans)
        ]
        self.starts = np.array([address for address, _, _ in spans] or [0])
        self.ends = np.array([address + size for address, size, _ in spans] or [0])
        self.span_rights = np.array([rights for _, _, rights in spans] or [0])
        self.views: dict[tuple[type, int], NDArray[Any]] = {}
        # All of memory from the first to the last array as one; offsets() lets nobody touch what lies between.
        self.first = int(self.starts[0]) // 256 * 256
        size = -(-(int(self.ends[-1]) - self.first) // 256) * 256
        self.bytes = np.ctypeslib.as_array((ctypes.c_uint8 * max(size, 256)).from_address(self.first or self.first))

    def offsets(self, addresses: NDArray[Any], width: int, right: int, what: str) -> NDArray[np.int64]:
        span = np.searchsorted(self.starts, addresses, "right") - 1
        inside = (span >= 0) & (addresses + width <= self.ends[span]) & (self.span_rights[span] & right != 0)
        if not inside.all():
            address = int(addresses[~inside].flat[0])
            near = min(self.tensors, key=lambda t: _distance(address, t.address, t.address + t.num_bytes))
            place = f"byte {address - near.address} of {near.name}, which has {near.num_bytes}"
            raise AccessError(f"{what}: {width} bytes at {place}: outside, or may not be written")
        return addresses - self.first


def _distance(address: int, start: int, end: int) -> int:
    return max(start - address, address - end + 1, 0)


@dataclass(frozen=True)
class TensorMap:
    """A box-wise view of global memory, as cuTensorMapEncodeTiled describes it; the innermost dimension first.

    address             of the first element; a multiple of 16
    element_bytes       1, 2, 4 or 8
    sizes               elements in each dimension; a coordinate outside gives zeros, and nothing is stored there
    strides             bytes between neighbours in each dimension but the first, modulo 2**64: they may wrap around
    box                 elements copied in each dimension
    swizzle             bytes of the pattern that permutes 16-byte pieces in shared memory: 0, 32, 64 or 128
    """

    address: int
    element_bytes: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]
    swizzle: int = 0

    def __post_init__(self) -> None:
        rank = len(self.sizes)
        inner = self.box[0] * self.element_bytes
        wrong = [
            (not 1 <= rank <= 5, f"rank {rank}; 1 to 5"),
            (len(self.strides) != rank - 1 or len(self.box) != rank, "sizes, strides and box do not fit together"),
            (self.address % 16 != 0, f"address {self.address:#x}; a multiple of 16"),
            (any(s % 16 for s in self.strides), f"strides {self.strides}; multiples of 16"),
            (any(not 1 <= b <= 256 for b in self.box), f"box {self.box}; 1 to 256 each"),
            (inner % 16 != 0, f"an inner box of {inner} bytes; a multiple of 16"),
            (
                self.swizzle > 0 and inner > self.swizzle,
                f"an inner box of {inner} bytes; at most the swizzle's {self.swizzle}",
            ),
            (any(not 0 < s <= 2**32 for s in self.sizes), f"sizes {self.sizes}; 1 to 2**32"),
        ]
        for is_wrong, text in wrong:
            if is_wrong:
                raise ValueError(f"tensor map: {text}")

    @classmethod
    def of(cls, tensor: Tensor, box: Sequence[int], swizzle: int = 0) -> TensorMap:
        """A map of a whole contiguous tensor; `box` in the tensor's own order, the innermost dimension last."""
        strides = [tensor.dtype.itemsize]
        for size in reversed(tensor.shape[1:]):
            strides.append(strides[-1] * size)
        return cls(
            tensor.address,
            tensor.dtype.itemsize,
            tuple(reversed(tensor.shape)),
            tuple(strides[1:]),
            tuple(reversed(box)),
            swizzle,
        )

    @property
    def box_bytes(self) -> int:
        return int(np.prod(self.box)) * self.element_bytes

    def addresses(self, coords: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Of each element of the box, in the order of shared memory, and which of them the sizes allow."""
        shape = tuple(reversed(self.box))
        address = np.full(shape, self.address, np.uint64)
        inside = np.ones(shape, bool)
        for i, (start, box, size) in enumerate(zip(coords, self.box, self.sizes, strict=True)):
            stride = self.element_bytes if i == 0 else self.strides[i - 1]
            along = (start + np.arange(box, dtype=np.int64)).reshape((-1,) + (1,) * i)
            inside &= (along >= 0) & (along < size)
            address += along.astype(np.uint64) * np.uint64(stride % 2**64)
        return address.astype(np.int64).reshape(-1), inside.reshape(-1)

    def places(self) -> NDArray[np.int64]:
        """Byte of each element of the box from the box's start in shared memory, before the swizzle."""
        return np.arange(int(np.prod(self.box)), dtype=np.int64) * self.element_bytes


def swizzled(addresses: NDArray[np.int64], swizzle: int) -> NDArray[np.int64]:
    """Shared memory addresses after the swizzle: bits 4.. are exchanged by those from bit 7 on."""
    mask = {0: 0, 16: 0, 32: 1, 64: 3, 128: 7}[swizzle]
    return addresses ^ (((addresses >> 7) & mask) << 4) if mask else addresses
