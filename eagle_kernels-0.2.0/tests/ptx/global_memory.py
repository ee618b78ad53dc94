"""Loads, stores and atomics of global, local and parameter memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .lanes import Mask, active, full
from .memory import READABLE, WRITABLE, AccessError
from .translate import CONSTANT_BASE, GENERIC_LOCAL, GENERIC_SHARED, PARAM_BASE

if TYPE_CHECKING:
    from .machine import Machine

Array = NDArray[Any]


class GlobalAccess:
    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.memory = machine.memory
        self.local = np.full((machine.num_warps, 32, max(machine.program.local_bytes, 1)), 0xFF, np.uint8)
        self.params = np.frombuffer(machine.params, np.uint8)
        self.constants = np.zeros(0, np.uint8)
        variables = machine.program.module.constants
        if variables:
            last = max(machine.program.symbols[v.name] - CONSTANT_BASE + max(v.size, 1) for v in variables)
            self.constants = np.zeros(-(-last // 16) * 16, np.uint8)
            for variable in variables:
                start = machine.program.symbols[variable.name] - CONSTANT_BASE
                self.constants[start : start + len(variable.data)] = np.frombuffer(variable.data, np.uint8)

    def addresses(self, a: int, z: int, m: Mask, guard: Any, address: Any) -> tuple[Array, Mask]:
        lanes = active(m, guard, z - a)
        spread = full(np.asarray(address, np.int64), z - a)
        return (spread.reshape(-1) if lanes is None else spread[lanes]), lanes

    def load(self, a: int, z: int, m: Mask, guard: Any, address: Any, kind: type, count: int) -> Array:
        width = np.dtype(kind).itemsize * count
        at, lanes = self.addresses(a, z, m, guard, address)
        if at.size and int(at.max()) < CONSTANT_BASE + len(self.constants):
            values = _gather(self.constants, at - CONSTANT_BASE, kind, count)
        else:
            start = self.memory.aligned_offsets(at, width, READABLE, "ld.global")
            values = self.memory.view(kind, count)[start // width]
        return _spread(values, lanes, z - a)

    def store(self, a: int, z: int, m: Mask, guard: Any, address: Any, kind: type, values: tuple[Any, ...]) -> None:
        count = len(values)
        width = np.dtype(kind).itemsize * count
        at, lanes = self.addresses(a, z, m, guard, address)
        start = self.memory.aligned_offsets(at, width, WRITABLE, "st.global") // width
        view = self.memory.view(kind, count)
        for i, value in enumerate(values):
            spread = full(value, z - a)
            flat = spread.reshape(-1) if lanes is None else spread[lanes]
            if count > 1:
                view[start, i] = flat
            else:
                view[start] = flat

    def load_param(self, a: int, z: int, m: Mask, guard: Any, address: Any, kind: type, count: int) -> Array:
        if isinstance(address, int):
            start = address - PARAM_BASE
            values: Array = self.params[start : start + np.dtype(kind).itemsize * count].copy().view(kind)
            return values if count > 1 else values.reshape(())
        at, lanes = self.addresses(a, z, m, guard, address)
        return _spread(_gather(self.params, at - PARAM_BASE, kind, count), lanes, z - a)

    def _local_places(self, at: Array, width: int) -> Array:
        start = at
        if start.size and (int(start.min()) < 0 or int(start.max()) + width > self.local.shape[2]):
            raise AccessError(f"local memory: byte {int(start.max())}, and a thread has {self.local.shape[2]}")
        if (start & (width - 1)).any():
            raise AccessError(f"local memory: an address that is no multiple of the access's {width} bytes")
        return start

    def _local_rows(self, a: int, z: int, lanes: Mask) -> tuple[Array, Array]:
        warps, columns = np.broadcast_arrays(np.arange(a, z)[:, None], np.arange(32)[None, :])
        return (warps.reshape(-1), columns.reshape(-1)) if lanes is None else (warps[lanes], columns[lanes])

    def load_local(self, a: int, z: int, m: Mask, guard: Any, address: Any, kind: type, count: int) -> Array:
        width = np.dtype(kind).itemsize * count
        at, lanes = self.addresses(a, z, m, guard, address)
        start = self._local_places(at, width)
        warps, columns = self._local_rows(a, z, lanes)
        data = self.local[warps[:, None], columns[:, None], start[:, None] + np.arange(width)]
        values: Array = np.ascontiguousarray(data).view(kind)
        return _spread(values if count > 1 else values.reshape(-1), lanes, z - a)

    def store_local(
        self, a: int, z: int, m: Mask, guard: Any, address: Any, kind: type, values: tuple[Any, ...]
    ) -> None:
        width = np.dtype(kind).itemsize
        at, lanes = self.addresses(a, z, m, guard, address)
        start = self._local_places(at, width * len(values))
        warps, columns = self._local_rows(a, z, lanes)
        for i, value in enumerate(values):
            spread = full(value, z - a)
            flat = np.ascontiguousarray(spread.reshape(-1) if lanes is None else spread[lanes])
            data = flat.astype(kind, copy=False).view(np.uint8).reshape(-1, width)
            self.local[warps[:, None], columns[:, None], start[:, None] + i * width + np.arange(width)] = data

    # Generic addresses: one space an instruction

    def _space(self, a: int, z: int, m: Mask, guard: Any, address: Any) -> tuple[str, int]:
        at, _ = self.addresses(a, z, m, guard, address)
        if not at.size:
            return "global", 0
        low, high = int(at.min()), int(at.max())
        for name, base in (("param", PARAM_BASE), ("local", GENERIC_LOCAL), ("shared", GENERIC_SHARED)):
            if low >= base:
                return name, 0 if name == "param" else base
            if high >= base:
                raise AccessError("a generic access whose lanes go to different memories")
        return "global", 0

    def load_generic(self, a: int, z: int, m: Mask, guard: Any, address: Any, kind: type, count: int) -> Array:
        name, base = self._space(a, z, m, guard, address)
        shared = self.machine.shared
        function = {"global": self.load, "param": self.load_param, "local": self.load_local, "shared": shared.load}[
            name
        ]
        return function(a, z, m, guard, address - base, kind, count)

    def store_generic(
        self, a: int, z: int, m: Mask, guard: Any, address: Any, kind: type, values: tuple[Any, ...]
    ) -> None:
        name, base = self._space(a, z, m, guard, address)
        function = {"global": self.store, "local": self.store_local, "shared": self.machine.shared.store}[name]
        function(a, z, m, guard, address - base, kind, values)

    def atomic(
        self,
        a: int,
        z: int,
        m: Mask,
        guard: Any,
        space: str,
        address: Any,
        kind: type,
        name: str,
        value: Any,
        other: Any = None,
    ) -> Array:
        """One lane after another; returns what each found."""
        width = np.dtype(kind).itemsize
        if space == "generic":
            space, base = self._space(a, z, m, guard, address)
            address = address - base
        if space.startswith("shared"):
            at, _, lanes = self.machine.shared.pick(a, z, m, guard, address, width, "atom.shared")
            view = self.machine.shared.view(kind, 1)
        else:
            raw, lanes = self.addresses(a, z, m, guard, address)
            at = self.memory.aligned_offsets(raw, width, WRITABLE, "atom.global")
            view = self.memory.view(kind, 1)
        operands = [full(x, z - a) for x in (value, other) if x is not None]
        flat = [(x.reshape(-1) if lanes is None else x[lanes]) for x in operands]
        old: Array = np.empty(len(at), kind)
        for i, place in enumerate((at // width).tolist()):
            old[i] = view[place]
            view[place] = _combine(name, old[i], *(x[i] for x in flat))
        return _spread(old, lanes, z - a)


def _combine(name: str, old: Any, value: Any, other: Any = None) -> Any:
    if name == "cas":
        return other if old == value else old
    if name == "inc":
        return 0 if old >= value else old + 1
    if name == "dec":
        return value if old == 0 or old > value else old - 1
    if name == "exch":
        return value
    function = {
        "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
        "xor": np.bitwise_xor
    }[name]  # fmt: skip
    return function(old, value)


def _gather(data: Array, start: Array, kind: type, count: int) -> Array:
    width = np.dtype(kind).itemsize * count
    if start.size and (int(start.min()) < 0 or int(start.max()) + width > len(data)):
        raise AccessError(f"byte {int(start.max())} of {len(data)} constant ones")
    values: Array = np.ascontiguousarray(data[start[:, None] + np.arange(width)]).view(kind)
    return values if count > 1 else values.reshape(-1)


def _spread(values: Array, lanes: Mask, count: int) -> Array:
    """Values of the active lanes as (count, 32, ...); zeros elsewhere."""
    if lanes is None:
        return values.reshape((count, 32, *values.shape[1:]))
    out = np.zeros((count, 32, *values.shape[1:]), values.dtype)
    out[lanes] = values
    return out
