"""wgmma: products of matrices by a warp group, whose operands are read at some moment between issue and wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .barriers import whole_number
from .lanes import Mask
from .memory import AccessError, swizzled
from .numeric import from_bf16, from_f16

if TYPE_CHECKING:
    from .machine import Machine

Array = NDArray[Any]
SWIZZLE_BYTES = {0: 16, 1: 128, 2: 64, 3: 32}  # a descriptor's bits 62 and 63; 16: none


class ProductError(RuntimeError):
    """Registers of a wgmma used before it was waited for, or changed without wgmma.fence."""


@dataclass(frozen=True)
class Region:
    """What a descriptor and a shape name: the place of each element, the cells they cover."""

    places: NDArray[np.int64]  # in units of 2 bytes, (rows, 16)
    cells: NDArray[np.int64]


@dataclass(eq=False)
class Product:
    """One wgmma under way. It does not know the machine: rings of objects stay until Python looks for them."""

    n: int
    sums: slice | list[int]  # registers
    warps: slice
    left: Region | Array  # an operand in shared memory, or the registers' words
    right: Region
    convert: Callable[[Array], Array]
    add: bool
    held: int
    operands: tuple[Array, Array] | None = None  # read at some moment between issue and wait
    landed: bool = False


class Products:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        groups = max(machine.num_warps // 4, 1)
        self.open: list[list[Product]] = [[] for _ in range(groups)]
        self.committed: list[list[list[Product]]] = [[] for _ in range(groups)]
        self.clock = [0] * groups  # groups committed so far
        self.held = [0] * groups  # registers in flight
        self.changed = [-1] * groups  # product registers read or written since the last wgmma.fence; at first all

    def guard(self, a: int, z: int, touched: int) -> None:
        """Before a segment runs: none of its registers may be in flight."""
        for group in range(a // 4, (z + 3) // 4):
            if self.held[group] & touched:
                raise ProductError(f"warp {max(a, 4 * group)} uses registers of a wgmma that nobody waited for")
            self.changed[group] |= touched

    def fence(self, a: int, z: int, m: Mask, guard: Any) -> None:
        for group in range(a // 4, z // 4):
            self.changed[group] = 0

    def commit(self, a: int, z: int, m: Mask, guard: Any) -> None:
        for group in range(a // 4, z // 4):
            self.committed[group].append(self.open[group])
            self.open[group] = []
            self.clock[group] += 1

    def wait(self, a: int, z: int, m: Mask, guard: Any, allowed: int) -> None:
        order = self.machine.order
        for group in range(a // 4, z // 4):
            waiting = self.committed[group]
            while len(waiting) > allowed:
                for product in waiting.pop(0):
                    self.land(product)
            self.held[group] = 0
            for product in [*self.open[group], *(p for products in waiting for p in products)]:
                self.held[group] |= product.held
            if order is not None:
                for warp in range(4 * group, 4 * group + 4):
                    order.learn(warp, order.products + warp, self.clock[group] - len(waiting))

    def land_some(self, group: int) -> None:
        """The oldest product that is under way runs now."""
        for product in [p for products in self.committed[group] for p in products]:
            if not product.landed:
                self.land(product)
                return

    def product(
        self,
        a: int,
        z: int,
        m: Mask,
        guard: Any,
        n: int,
        kind: str,
        registers: tuple[int, ...],
        left: Any,
        in_registers: bool,
        right: Any,
        scale: Any,
        transposed: tuple[int, int],
        held: int,
    ) -> None:
        if m is not None:
            raise ProductError("wgmma with inactive lanes; it needs all lanes of its four warps")
        for group in range(a // 4, z // 4):
            own = slice(4 * group - a, 4 * group - a + 4)
            if self.changed[group] & held:
                raise ProductError(f"warp group {group}: wgmma without wgmma.fence after its registers were used")
            add = bool(whole_number(scale if np.ndim(scale) == 0 else np.asarray(scale)[own]))
            descriptors = [
                None if in_registers else whole_number(_part(left, own)),
                whole_number(_part(right, own)),
            ]
            self._issue(group, n, kind, registers, left if in_registers else None, descriptors, add, transposed, held)

    def _issue(
        self,
        group: int,
        n: int,
        kind: str,
        registers: tuple[int, ...],
        left: tuple[int, ...] | None,
        descriptors: list[int | None],
        add: bool,
        transposed: tuple[int, int],
        held: int,
    ) -> None:
        machine = self.machine
        warps = slice(4 * group, 4 * group + 4)
        block = int(machine.block_of[4 * group])
        convert = from_bf16 if kind == "bf16" else from_f16
        files = machine.files
        rows = _index(registers)
        region_b = self.region(descriptors[1] or 0, n, bool(transposed[1]), block)
        region_a = None if left is not None else self.region(descriptors[0] or 0, 64, bool(transposed[0]), block)
        fragments = files["u32"][list(left), warps].copy() if left is not None else None
        if machine.order is not None:
            clocks = np.full(4, self.clock[group] + 1, np.int32)
            for region in (region_a, region_b):
                if region is not None:
                    machine.order.product_reads(4 * group, region.cells, clocks, "wgmma")
        left_operand = fragments if region_a is None else region_a
        assert left_operand is not None
        product = Product(n, rows, warps, left_operand, region_b, convert, add, held)
        self.open[group].append(product)
        self.held[group] |= held
        if machine.schedule.lands_now():
            self.capture(product)

    def capture(self, product: Product) -> None:
        """Reads the operands, if nobody has yet."""
        if product.operands is not None:
            return
        memory = self.machine.shared.view(np.uint16, 1)
        if isinstance(product.left, Region):
            left = product.convert(memory[product.left.places])
        else:  # k half, row half, warp, row, column, pair
            halves = product.left.view(np.uint16).reshape(2, 2, 4, 8, 4, 2)
            left = product.convert(halves.transpose(2, 1, 3, 0, 4, 5).reshape(64, 16))
        product.operands = left, product.convert(memory[product.right.places])

    def land(self, product: Product) -> None:
        if product.landed:
            return
        product.landed = True
        self.capture(product)
        assert product.operands is not None
        left, right = product.operands
        product.operands = None
        spread = (left @ right.T).reshape(4, 2, 8, product.n // 8, 4, 2).transpose(3, 1, 5, 0, 2, 4)
        registers = self.machine.files["f32"]
        if product.add:
            registers[product.sums, product.warps] += spread.reshape(product.n // 2, 4, 32)
        else:
            registers[product.sums, product.warps] = spread.reshape(product.n // 2, 4, 32)

    def region(self, descriptor: int, rows: int, transposed: bool, block: int) -> Region:
        """The (rows, 16) elements of an operand, by PTX's "matrix descriptor" and its canonical layouts."""
        key = (descriptor, rows, int(transposed), block * self.machine.shared.size, self.machine.shared.limit)
        if key in self.machine.program.regions:
            return self.machine.program.regions[key]
        start = (descriptor & 0x3FFF) << 4
        leading, stride = (descriptor >> 16 & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
        if descriptor >> 49 & 7:
            raise ProductError(
                "a matrix descriptor with a base offset; only patterns that start at 1024 bytes are read"
            )
        width = SWIZZLE_BYTES[descriptor >> 62]
        r, k = np.arange(rows)[:, None], np.arange(16)[None, :]
        if transposed:  # rows are contiguous
            per = width // 2
            places = start + (r % per) * 2 + (r // per) * leading + (k % 8) * width + (k // 8) * stride
        else:
            places = start + (r // 8) * stride + (r % 8) * width + (2 * k) % width + (2 * k) // width * leading
        shared = self.machine.shared
        places = swizzled(places, width)
        if int(places.max()) + 2 > shared.limit:
            raise AccessError(f"wgmma: reads byte {int(places.max())} of shared memory, which has {shared.limit}")
        places = places + block * shared.size
        self.machine.program.regions[key] = Region(places // 2, np.unique(places // self.machine.program.cell_bytes))
        return self.machine.program.regions[key]


def _part(value: Any, own: slice) -> Any:
    return value if np.ndim(value) == 0 or np.shape(value)[0] == 1 else np.asarray(value)[own]


def _index(registers: tuple[int, ...]) -> slice | list[int]:
    first = registers[0]
    if registers == tuple(range(first, first + len(registers))):
        return slice(first, first + len(registers))
    return list(registers)
