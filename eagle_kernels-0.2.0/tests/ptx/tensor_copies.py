"""TMA: boxes of a tensor map copied to and from shared memory, counted by mbarriers or in bulk groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .barriers import BarrierError, MBarrier
from .lanes import Mask, active, full
from .memory import READABLE, WRITABLE, AccessError, TensorMap, swizzled

if TYPE_CHECKING:
    from .machine import Machine

Array = NDArray[Any]


@dataclass
class Load:
    """A box on its way into one block's shared memory."""

    map: TensorMap
    coords: tuple[int, ...]
    places: NDArray[np.int64]  # bytes of shared memory, element by element
    cells: NDArray[np.int64]
    barrier: MBarrier


@dataclass
class Store:
    """A box on its way out."""

    map: TensorMap
    coords: tuple[int, ...]
    places: NDArray[np.int64]
    reduction: str
    landed: bool = False


class TensorCopies:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.flying: list[Load] = []
        self.open: list[list[Store]] = [[] for _ in range(machine.num_warps)]
        self.groups: list[list[list[Store]]] = [[] for _ in range(machine.num_warps)]
        self.clock = [0] * machine.num_warps

    def _each(self, a: int, z: int, m: Mask, guard: Any, *values: Any) -> list[tuple[int, list[int]]]:
        """Warp and operands of each active lane."""
        lanes = active(m, guard, z - a)
        found = []
        spread = [full(np.asarray(value), z - a) for value in values]
        rows, columns = np.nonzero(np.ones((z - a, 32), bool) if lanes is None else lanes)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            found.append((a + row, [int(value[row, column]) for value in spread]))
        return found

    def map_at(self, address: int) -> TensorMap:
        if address not in self.machine.maps:
            raise AccessError(
                f"no tensor map at {address:#x}; maps are parameters of the kernel, one for each that takes it"
            )
        return self.machine.maps[address]

    def load(
        self,
        a: int,
        z: int,
        m: Mask,
        guard: Any,
        target: Any,
        map_address: Any,
        coords: tuple[Any, ...],
        barrier: Any,
        mask: Any,
    ) -> None:
        machine, shared = self.machine, self.machine.shared
        extra = () if mask is None else (mask,)
        for warp, values in self._each(a, z, m, guard, target, map_address, barrier, *coords, *extra):
            tensor_map = self.map_at(values[1])
            own = int(machine.block_of[warp])
            blocks = [own]
            if mask is not None:
                bits = values.pop()
                blocks = [rank for rank in range(machine.num_blocks) if bits >> rank & 1]
            place, at_barrier = values[0], values[2]
            position = tuple(values[3:])
            if len(position) != len(tensor_map.sizes):
                raise AccessError(f"{len(position)} coordinates for a tensor map of rank {len(tensor_map.sizes)}")
            for block in blocks:
                start, barrier_place = machine.place_in(place, block), machine.place_in(at_barrier, block)
                local = start % shared.size + tensor_map.places()
                self._check(start % shared.size, tensor_map, shared.limit)
                places = swizzled(local, tensor_map.swizzle) + (start - start % shared.size)
                cells = machine.shared.cells(np.array([start]), tensor_map.box_bytes).reshape(-1)
                machine.overwrite(places, tensor_map.element_bytes)
                if machine.order is not None:
                    machine.order.start_load(warp, cells, "TMA load")
                # A barrier of another block was made there; barrier.cluster orders that.
                target = at_barrier if block == own else machine.address_in(barrier_place)
                barrier_used = machine.use_mbarrier(warp, target, "TMA load", proxy=True)
                load = Load(tensor_map, position, places, cells, barrier_used)
                if machine.schedule.lands_now():
                    self.land(load)
                else:
                    shared.bytes[start : start + tensor_map.box_bytes] = 0xFF
                    self.flying.append(load)

    @staticmethod
    def _check(start: int, tensor_map: TensorMap, limit: int) -> None:
        if start % 128:
            raise AccessError(f"TMA at byte {start} of shared memory, which 128 must divide")
        pattern = 8 * tensor_map.swizzle
        if pattern and start % pattern and tensor_map.box_bytes > tensor_map.swizzle:
            raise AccessError(
                f"TMA with a swizzle of {tensor_map.swizzle} at byte {start}, which {pattern} must divide"
            )
        if start + tensor_map.box_bytes > limit:
            raise AccessError(f"TMA of {tensor_map.box_bytes} bytes at {start} of shared memory, which has {limit}")

    def land(self, load: Load) -> None:
        machine, width = self.machine, load.map.element_bytes
        addresses, inside = load.map.addresses(load.coords)
        kind = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[width]
        values = np.zeros(len(addresses), kind)
        if inside.any():
            at = machine.memory.aligned_offsets(addresses[inside], width, READABLE, "TMA load")
            values[inside] = machine.memory.view(kind, 1)[at // width]
        machine.shared.view(kind, 1)[load.places // width] = values
        barrier = load.barrier
        barrier.landed += 1
        if machine.order is not None:
            machine.order.finish_load(barrier.index, load.cells, barrier.landed)
        barrier.bytes_due -= load.map.box_bytes
        machine.settle(barrier)

    def uses(self, barrier: MBarrier) -> bool:
        return any(load.barrier is barrier for load in self.flying)

    def land_some(self) -> bool:
        if not self.flying:
            return False
        self.land(self.flying.pop(self.machine.schedule.random.randrange(len(self.flying))))
        return True

    # Stores

    def store(
        self,
        a: int,
        z: int,
        m: Mask,
        guard: Any,
        source: Any,
        map_address: Any,
        coords: tuple[Any, ...],
        reduction: str,
    ) -> None:
        machine, shared = self.machine, self.machine.shared
        for warp, values in self._each(a, z, m, guard, source, map_address, *coords):
            tensor_map = self.map_at(values[1])
            start = machine.place_in(values[0], int(machine.block_of[warp]))
            self._check(start % shared.size, tensor_map, shared.limit)
            local = swizzled(start % shared.size + tensor_map.places(), tensor_map.swizzle)
            if machine.order is not None:
                cells = machine.shared.cells(np.array([start]), tensor_map.box_bytes).reshape(-1)
                machine.order.store_reads(warp, cells, self.clock[warp] + 1, "TMA store")
            store = Store(tensor_map, tuple(values[2:]), local + (start - start % shared.size), reduction)
            self.open[warp].append(store)
            if machine.schedule.lands_now():
                self.finish_store(store)

    def finish_store(self, store: Store) -> None:
        if store.landed:
            return
        store.landed = True
        machine, width = self.machine, store.map.element_bytes
        addresses, inside = store.map.addresses(store.coords)
        kind = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[width]
        if not inside.any():
            return
        if store.reduction:
            raise NotImplementedError(f"TMA reductions ({store.reduction}) are not run: the tensor map lacks the type")
        at = machine.memory.aligned_offsets(addresses[inside], width, WRITABLE, "TMA store")
        machine.memory.view(kind, 1)[at // width] = machine.shared.view(kind, 1)[store.places[inside] // width]

    def commit(self, a: int, z: int, m: Mask, guard: Any) -> None:
        for warp in self._warps(a, z, m, guard):
            self.groups[warp].append(self.open[warp])
            self.open[warp] = []
            self.clock[warp] += 1

    def wait(self, a: int, z: int, m: Mask, guard: Any, allowed: int, only_read: bool) -> None:
        for warp in self._warps(a, z, m, guard):
            groups = self.groups[warp]
            while len(groups) > allowed:
                for store in groups.pop(0):
                    self.finish_store(store)
            if self.machine.order is not None:
                done = self.clock[warp] - len(groups)
                self.machine.order.learn(warp, self.machine.order.stores + warp, done)

    @staticmethod
    def _warps(a: int, z: int, m: Mask, guard: Any) -> list[int]:
        lanes = active(m, guard, z - a)
        return [w for w in range(a, z) if lanes is None or lanes[w - a].any()]

    def finish(self) -> None:
        """At the kernel's end: nothing may be under way to or from shared memory."""
        if self.flying:
            raise BarrierError(f"the kernel ends with {len(self.flying)} TMA loads under way, which nobody waited for")
        left = [store for groups in self.groups for group in groups for store in group if not store.landed]
        if left or any(self.open):
            raise BarrierError("the kernel ends with a TMA store that nobody waited for")
