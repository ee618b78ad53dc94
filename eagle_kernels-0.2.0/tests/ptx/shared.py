"""Shared memory of a cluster's blocks: loads, stores, matrices of 8 x 8, cp.async."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .lanes import Mask, active, full
from .memory import READABLE, AccessError
from .order import RaceError

if TYPE_CHECKING:
    from .machine import Machine

Array = NDArray[Any]
GARBAGE = np.full(16, 0xFF, np.uint8)
RANK_SHIFT = 24  # a shared::cluster address: (rank + 1) << 24 | the address within that block


@dataclass
class Copy:
    """cp.async of some lanes of a warp, not landed yet."""

    view: Array  # of shared memory, in pieces of the copy's size
    places: NDArray[np.int64]
    data: Array
    landed: bool = False


class SharedMemory:
    """`num_bytes` for each of `num_blocks` blocks, one after another in `bytes`."""

    def __init__(self, machine: Machine, num_blocks: int, num_bytes: int) -> None:
        self.machine = machine
        self.limit = num_bytes
        self.size = -(-num_bytes // 1024) * 1024
        self.bytes = np.full(num_blocks * self.size, 0xFF, np.uint8)
        self.views: dict[tuple[type, int], Array] = {}
        self.copies: list[list[Copy]] = [[] for _ in range(machine.num_warps)]  # not committed
        self.copy_groups: list[list[list[Copy]]] = [[] for _ in range(machine.num_warps)]
        self.copy_clock = np.zeros(machine.num_warps, np.int32)  # groups committed so far

    def view(self, kind: type, count: int) -> Array:
        key = (kind, count)
        if key not in self.views:
            flat: Array = self.bytes.view(kind)
            self.views[key] = flat[: len(flat) // count * count].reshape(-1, count) if count > 1 else flat
        return self.views[key]

    def flat(self, a: int, z: int, addresses: Any, width: int, what: str) -> NDArray[np.int64]:
        """Where in `bytes` accesses lie, (z - a, 32); addresses of this block, or shared::cluster ones."""
        machine = self.machine
        addresses = np.asarray(addresses, np.int64)
        block: Any = 0
        if machine.num_blocks > 1:
            own = machine.block_of[a:z, None]
            rank = addresses >> RANK_SHIFT
            block = np.where(rank > 0, rank - 1, own)
            at = addresses & ((1 << RANK_SHIFT) - 1)
            if (block >= machine.num_blocks).any():
                raise AccessError(f"{what}: block {int(block.max())} of a cluster of {machine.num_blocks}")
        else:
            at = addresses
        return full(at + block * self.size, z - a)

    def check(self, at: Array, width: int, what: str) -> None:
        within = at % self.size if self.machine.num_blocks > 1 else at
        if at.size == 0:
            return
        if int(within.view(np.uint64).max()) + width > self.limit:  # a negative one is very large
            bad = within[(within < 0) | (within + width > self.limit)].flat[0]
            raise AccessError(f"{what}: {width} bytes at {int(bad)} of shared memory, which has {self.limit}")
        if int(np.bitwise_or.reduce(at, axis=None)) & (width - 1):
            bad = at[(at & (width - 1)) != 0].flat[0]
            raise AccessError(
                f"{what}: shared memory address {int(bad)} is not a multiple of the access's {width} bytes"
            )

    def cells(self, at: Array, width: int) -> Array:
        """(..., n) the cells that `width` bytes at each place touch."""
        cell = self.machine.program.cell_bytes
        return (at // cell)[..., None] + np.arange(max(width // cell, 1))

    def pick(
        self, a: int, z: int, m: Mask, guard: Any, address: Any, width: int, what: str
    ) -> tuple[Array, Array, Mask]:
        """Places (active lanes only, flat), their warps, and the mask."""
        lanes = active(m, guard, z - a)
        at = self.flat(a, z, address, width, what)
        warps = self.machine.warp_rows[a:z]
        if lanes is None:
            at, warps = at.reshape(-1), warps.reshape(-1)
        else:
            at, warps = at[lanes], warps[lanes]
        self.check(at, width, what)
        return at, warps, lanes

    def load(self, a: int, z: int, m: Mask, guard: Any, address: Any, kind: type, count: int) -> Array:
        width = np.dtype(kind).itemsize * count
        at, warps, lanes = self.pick(a, z, m, guard, address, width, "ld.shared")
        order = self.machine.order
        if order is not None and at.size:
            cells = self.cells(at, width)
            order.read(np.repeat(warps, cells.shape[-1]), cells.reshape(-1), "ld.shared")
        values = self.view(kind, count)[at // width]
        if lanes is None:
            return values.reshape((z - a, 32, *values.shape[1:]))
        out = np.zeros((z - a, 32, *values.shape[1:]), kind)
        out[lanes] = values
        return out

    def store(self, a: int, z: int, m: Mask, guard: Any, address: Any, kind: type, values: tuple[Any, ...]) -> None:
        count = len(values)
        width = np.dtype(kind).itemsize * count
        at, warps, lanes = self.pick(a, z, m, guard, address, width, "st.shared")
        if not at.size:
            return
        machine = self.machine
        if machine.num_mbarriers:
            machine.overwrite(at, width)
        view = self.view(kind, count)
        columns = []
        for value in values:
            spread = full(value, z - a)
            columns.append(spread.reshape(-1) if lanes is None else spread[lanes])
        rows = np.stack(columns, axis=1) if count > 1 else columns[0]
        if machine.order is not None:
            try:
                self._order_store(at, warps, width)
            except RaceError:
                # Warps that write one same value, as Triton's do where all hold it, do no harm.
                other = view[at // width] != rows
                other = other.any(axis=1) if count > 1 else other
                self._order_store(at[other], warps[other], width)
        view[at // width] = rows

    def _order_store(self, at: Array, warps: Array, width: int) -> None:
        cells = self.cells(at, width)
        assert self.machine.order is not None
        self.machine.order.write(np.repeat(warps, cells.shape[-1]), cells.reshape(-1), "st.shared")

    # ldmatrix, stmatrix: lane 8 j + i gives the address of row i of matrix j; a lane holds two neighbours of a row.

    def matrix_rows(self, a: int, z: int, m: Mask, guard: Any, address: Any, count: int, what: str) -> Array:
        if active(m, guard, z - a) is not None:
            raise AccessError(f"{what}: needs all lanes of a warp")
        rows = self.flat(a, z, address, 16, what)[:, : 8 * count]
        self.check(rows, 16, what)
        return rows

    def load_matrix(
        self, a: int, z: int, m: Mask, guard: Any, address: Any, count: int, transposed: bool
    ) -> list[Array]:
        rows = self.matrix_rows(a, z, m, guard, address, count, "ldmatrix")
        if self.machine.order is not None:
            cells = self.cells(rows, 16).reshape(-1)
            self.machine.order.read(np.repeat(np.arange(a, z), len(cells) // (z - a)), cells, "ldmatrix")
        values = self.view(np.uint16, 8)[rows // 16].reshape(z - a, count, 8, 8)
        if transposed:
            values = values.swapaxes(2, 3)
        pairs = np.ascontiguousarray(values).view(np.uint32).reshape(z - a, count, 32)
        return [pairs[:, j] for j in range(count)]

    def store_matrix(
        self, a: int, z: int, m: Mask, guard: Any, address: Any, values: tuple[Any, ...], transposed: bool
    ) -> None:
        count = len(values)
        rows = self.matrix_rows(a, z, m, guard, address, count, "stmatrix")
        if self.machine.order is not None:
            cells = self.cells(rows, 16).reshape(-1)
            self.machine.order.write(np.repeat(np.arange(a, z), len(cells) // (z - a)), cells, "stmatrix")
        pairs = np.stack([full(value, z - a) for value in values], axis=1)
        matrices = np.ascontiguousarray(pairs).view(np.uint16).reshape(z - a, count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        self.view(np.uint16, 8)[rows // 16] = matrices.reshape(z - a, 8 * count, 8)

    # cp.async

    def copy(self, a: int, z: int, m: Mask, guard: Any, target: Any, source: Any, size: int, num_read: Any) -> None:
        """`size` bytes a lane, of which `num_read` come from global memory and the others are zero."""
        machine, kind = self.machine, {4: np.uint32, 8: np.uint64, 16: np.complex128}[size]
        at, warps, lanes = self.pick(a, z, m, guard, target, size, "cp.async")
        if not at.size:
            return
        addresses = full(np.asarray(source, np.int64), z - a)
        addresses = addresses.reshape(-1) if lanes is None else addresses[lanes]
        data: Array = np.zeros(len(at), kind)
        if num_read is None:
            wanted = np.ones(len(at), bool)
        else:
            read = full(num_read, z - a).astype(np.int64)
            read = read.reshape(-1) if lanes is None else read[lanes]
            wanted = read == size
            for i in np.flatnonzero((read > 0) & ~wanted).tolist():
                start = machine.memory.offsets(addresses[i : i + 1], int(read[i]), READABLE, "cp.async")[0]
                data.view(np.uint8)[i * size : i * size + read[i]] = machine.memory.bytes[start : start + read[i]]
        if wanted.any():
            start = machine.memory.aligned_offsets(addresses[wanted], size, READABLE, "cp.async")
            data[wanted] = machine.memory.view(kind, 1)[start // size]
        if machine.order is not None:
            cells = self.cells(at, size)
            repeated = np.repeat(warps, cells.shape[-1])
            machine.order.start_copy(repeated, cells.reshape(-1), self.copy_clock[repeated] + 1, "cp.async")
        early = machine.schedule.lands_now()
        places = at // size
        view = self.view(kind, 1)
        if early:
            view[places] = data
            return
        view[places] = GARBAGE.view(kind)[0]  # nobody may look before the wait: whoever does sees NaN
        for warp in range(a, z):
            mine = warps == warp
            copy = Copy(view, places[mine], data[mine])
            self.copies[warp].append(copy)
            machine.flying_copies.append(copy)

    def land(self, copy: Copy) -> None:
        if not copy.landed:
            copy.landed = True
            copy.view[copy.places] = copy.data

    def commit(self, a: int, z: int, m: Mask, guard: Any) -> None:
        for warp in range(a, z):
            self.copy_groups[warp].append(self.copies[warp])
            self.copies[warp] = []
            self.copy_clock[warp] += 1

    def wait(self, a: int, z: int, m: Mask, guard: Any, allowed: int) -> None:
        for warp in range(a, z):
            groups = self.copy_groups[warp]
            while len(groups) > allowed:
                for copy in groups.pop(0):
                    self.land(copy)
            if self.machine.order is not None:
                done = int(self.copy_clock[warp]) - len(groups)
                self.machine.order.learn(warp, self.machine.order.copies + warp, done)
