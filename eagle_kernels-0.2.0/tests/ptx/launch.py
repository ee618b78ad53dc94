"""Runs a whole grid: packs the arguments, then one cluster of blocks after another.

memory = Memory()
x, out = memory.place(values, "x"), memory.place(np.zeros_like(values), "out", writable=True)
launch(Program(ptx), memory, [x, out, len(values)], grid=(4,), num_threads=128)
print(out.read())
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .machine import Machine, Schedule
from .memory import Memory, Tensor, TensorMap
from .translate import PARAM_BASE, Program

FORMATS = {
    "u64": "<Q",
    "s64": "<q",
    "b64": "<Q",
    "u32": "<I",
    "s32": "<i",
    "b32": "<I",
    "u16": "<H",
    "s16": "<h",
    "b16": "<H",
}
FORMATS |= {"u8": "<B", "s8": "<b", "b8": "<B", "f32": "<f", "f64": "<d"}


def pack(program: Program, arguments: Sequence[Any]) -> tuple[bytes, dict[int, TensorMap]]:
    """The kernel's parameters as bytes, and its tensor maps by address. Integers, floats, Tensor, TensorMap, None (a
    null pointer), bytes for structures."""
    params = program.kernel.params
    if len(arguments) != len(params):
        raise ValueError(f"{program.kernel.name} takes {len(params)} arguments, got {len(arguments)}")
    block, maps = bytearray(program.kernel.param_bytes), {}
    for param, value in zip(params, arguments, strict=True):
        if isinstance(value, TensorMap):
            maps[PARAM_BASE + param.offset] = value
            continue
        if isinstance(value, bytes):
            if len(value) != param.size:
                raise ValueError(f"{param.name} has {param.size} bytes, got {len(value)}")
            data = value
        else:
            number = value.address if isinstance(value, Tensor) else 0 if value is None else value
            form = FORMATS[param.type]
            if form.isupper() or form[1] in "QIHB":
                number = int(number) % (1 << (8 * param.size))
            data = struct.pack(form, number)
        block[param.offset : param.offset + param.size] = data
    return bytes(block), maps


def launch(
    program: Program,
    memory: Memory,
    arguments: Sequence[Any],
    *,
    grid: Sequence[int],
    num_threads: int,
    shared_bytes: int = 0,
    cluster: int = 1,
    block_shape: tuple[int, int, int] | None = None,
    schedule: Schedule | None = None,
    blocks: Iterable[int] | None = None,
    executed: set[int] | None = None,
) -> int:
    """Runs the grid, or only the blocks of it with these numbers (x fastest; with clusters, the first of each). Returns
    how many instructions ran, counted once for warps that go together; `executed` takes the numbers of the segments
    that did."""
    params, maps = pack(program, arguments)
    return launch_packed(
        program,
        memory,
        params,
        maps,
        grid=grid,
        num_threads=num_threads,
        shared_bytes=shared_bytes,
        cluster=cluster,
        block_shape=block_shape,
        schedule=schedule,
        blocks=blocks,
        executed=executed,
    )


def launch_packed(
    program: Program,
    memory: Memory,
    params: bytes,
    maps: dict[int, TensorMap],
    *,
    grid: Sequence[int],
    num_threads: int,
    shared_bytes: int = 0,
    cluster: int = 1,
    block_shape: tuple[int, int, int] | None = None,
    schedule: Schedule | None = None,
    blocks: Iterable[int] | None = None,
    executed: set[int] | None = None,
) -> int:
    """`launch` with the parameters' bytes."""
    x, y, z = (*grid, 1, 1)[:3]
    numbers = range(0, x * y * z, cluster) if blocks is None else blocks
    schedule = schedule or Schedule()
    total = 0
    for number in numbers:
        machine = Machine(
            program,
            memory,
            maps,
            params,
            num_threads=num_threads,
            shared_bytes=shared_bytes,
            num_blocks=cluster,
            grid=(x, y, z),
            block_shape=block_shape,
            schedule=schedule,
        )
        machine.run((number % x, number // x % y, number // (x * y)))
        total += machine.num_instructions
        if executed is not None:
            executed |= machine.executed
    return total


def as_bf16(values: Any) -> np.ndarray:
    """fp32 or fp64 values as the bits of bf16."""
    from .numeric import to_bf16

    return to_bf16(np.ascontiguousarray(values, np.float32))
