"""Runs the library's ops on CPU tensors by the machine code that a Hopper GPU would get, in place of the interpreter.

    with hopper.machine(Schedule(seed=3)) as launches:
        out = swiglu._fwd(gate, up)          # compiled for sm_90a, run by tests/ptx; launches lists what ran

Each launch is compiled for exactly the arguments it has (alignment, divisibility, constants), as on a GPU. Only the
elements of a tensor that the op handed over may be touched, not what lies between or beside them.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from tests.ptx.launch import launch
from tests.ptx.machine import Schedule
from tests.ptx.memory import BASE, GAP, READABLE, WRITABLE, Memory, TensorMap
from tests.ptx.translate import Program

ROOT = Path(__file__).resolve().parents[2]
OPS = (
    "attention_gluon",
    "attention_gluon_bwd",
    "attention_triton",
    "gelu_bias",
    "layer_norm",
    "linear_cross_entropy_triton",
    "merge_2x2",
    "qkv_rope",
    "rms_norm",
    "rope",
    "sum_partials",
    "swiglu",
)
TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.bool: "i1",
}
OPTIONS = ("num_warps", "num_stages", "num_ctas", "maxnreg")


@dataclass(frozen=True)
class Compiled:
    program: Program
    shared_bytes: int
    num_threads: int
    cluster: int


@dataclass
class Job:
    """What a launch hands to the machine; `fresh_memory` is the memory as it was then."""

    program: Program
    arguments: list[Any]
    grid: tuple[int, int, int]
    num_threads: int
    shared_bytes: int
    cluster: int
    blocks: Sequence[int]
    memory_before: Memory

    def fresh_memory(self) -> Memory:
        return self.memory_before.copy()


@dataclass(frozen=True)
class Launched:
    """One launch that ran. `constants` are those the kernel's source marks, not what was specialised."""

    module: str
    kernel: str
    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    num_blocks: int
    job: Job = field(repr=False)


class Compiler:
    """The process of hopper_compile.py, started when it is first needed."""

    def __init__(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.kernels.hopper_compile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        atexit.register(self.process.kill)

    def ask(self, request: str) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        reply = json.loads(self.process.stdout.readline())
        if "error" in reply:
            raise RuntimeError(f"{request} does not compile: {reply['error']}")
        return reply


@cache
def compiler() -> Compiler:
    return Compiler()


@lru_cache(maxsize=24)  # a program of 4,000 instructions takes megabytes, and exhaustive tests have hundreds
def compiled(request: str) -> Compiled:
    reply = compiler().ask(request)
    return Compiled(Program(reply["ptx"]), reply["shared_bytes"], reply["num_threads"], reply["cluster"])


class StandIn:
    """Takes the place of a kernel: `StandIn[grid](*args, **constants)` compiles and runs it."""

    def __init__(self, module: ModuleType, name: str, run: Callable[..., None]) -> None:
        self.module, self.name, self.run = module, name, run
        self.original = getattr(module, name)
        self.arg_names = list(self.original.arg_names)
        self.fn = self.original.fn
        self.constant_names = _constant_names(self.fn)
        # Integers whose values no code depends on. Gluon's kernels keep their names, the interpreter's all options.
        original = self.original
        self.general = getattr(original, "do_not_specialize", None) or original.kwargs.get("do_not_specialize") or ()

    def __getitem__(self, grid: Sequence[int]) -> Callable[..., None]:
        return lambda *args, **kwargs: self.run(self, grid, args, kwargs)


def _constant_names(fn: Any) -> set[str]:
    return {name for name, kind in fn.__annotations__.items() if "constexpr" in str(kind)}


class Run:
    """What a launch does while `machine` is on."""

    def __init__(self, schedule: Callable[[], Schedule], pick: Callable[[int], Sequence[int]] | None) -> None:
        self.schedule, self.pick = schedule, pick
        self.launches: list[Launched] = []

    def __call__(self, kernel: StandIn, grid: Sequence[int], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        values = dict(zip(kernel.arg_names, args, strict=False))
        options = {name: kwargs[name] for name in OPTIONS if kwargs.get(name) is not None}
        values |= {name: value for name, value in kwargs.items() if name not in OPTIONS}
        request, taken = _request(kernel, values, options)
        ready = compiled(request)
        memory, addresses = _place([values[name] for name in taken])
        arguments = [part for name in taken for part in _argument(values[name], addresses)]
        arguments += [None] * (len(ready.program.kernel.params) - len(arguments))
        shape = (*grid, 1, 1)[:3]
        num_blocks = int(np.prod(shape))
        job = Job(
            program=ready.program,
            arguments=arguments,
            grid=shape,
            num_threads=ready.num_threads,
            shared_bytes=ready.shared_bytes,
            cluster=ready.cluster,
            blocks=range(0, num_blocks, ready.cluster) if self.pick is None else self.pick(num_blocks),
            memory_before=memory.copy(),
        )
        launch(
            ready.program,
            memory,
            arguments,
            grid=shape,
            num_threads=ready.num_threads,
            shared_bytes=ready.shared_bytes,
            cluster=ready.cluster,
            schedule=self.schedule(),
            blocks=job.blocks,
        )
        _take_back(memory, [values[name] for name in taken])
        constants = tuple(sorted((name, values[name]) for name in kernel.constant_names if name in values))
        num_warps = options.get("num_warps", 4)
        self.launches.append(Launched(kernel.module.__name__, kernel.name, constants, num_warps, num_blocks, job))


def _is_descriptor(value: Any) -> bool:
    return type(value).__name__ == "TensorDescriptor"


def _argument(value: Any, addresses: dict[int, int]) -> list[Any]:
    """As the PTX takes it: a descriptor's map, whose box is no wider than its swizzle, then its shape and strides."""
    if not _is_descriptor(value):
        return [addresses.get(id(value), value)]
    size, swizzle = value.base.element_size(), value.layout.swizzle_byte_width
    tensor_map = TensorMap(
        address=addresses[id(value.base)],
        element_bytes=size,
        sizes=tuple(reversed(value.shape)),
        strides=tuple(size * stride for stride in reversed(value.strides[:-1])),
        box=(min(value.block_shape[-1], swizzle // size), *reversed(value.block_shape[:-1])),
        swizzle=swizzle,
    )
    return [tensor_map, *value.shape, *value.strides]


def _request(kernel: StandIn, values: dict[str, Any], options: dict[str, Any]) -> tuple[str, list[str]]:
    """What to ask the compiler, and the arguments that remain at run time: by Triton's rules, an integer 1 and None are
    constants, and pointers and integers that 16 divides are marked so."""
    signature, constants, divisible, taken = {}, {}, [], []
    for name in kernel.arg_names:
        value = values[name]
        special = name not in kernel.general
        if name in kernel.constant_names or value is None or (special and type(value) is int and value == 1):
            signature[name] = "constexpr"
            constants[name] = value
            continue
        taken.append(name)
        if _is_descriptor(value):
            signature[name] = f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)},{value.layout!r}>"
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            if value.data_ptr() % 16 == 0:
                divisible.append(name)
        elif isinstance(value, bool):
            signature[name] = "i1"
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if special and value % 16 == 0:
                divisible.append(name)
        else:
            signature[name] = "fp32"
    request = {
        "module": kernel.module.__name__,
        "kernel": kernel.name,
        "signature": signature,
        "constants": constants,
        "divisible": divisible,
        "options": options,
    }
    return json.dumps(request), taken


def _bytes_of(storage: torch.UntypedStorage) -> np.ndarray:
    return torch.tensor([], dtype=torch.uint8).set_(storage).numpy()  # type: ignore[call-overload]


def _storages(values: Sequence[Any]) -> dict[int, tuple[torch.UntypedStorage, list[torch.Tensor]]]:
    found: dict[int, tuple[torch.UntypedStorage, list[torch.Tensor]]] = {}
    for value in values:
        if _is_descriptor(value):
            value = value.base
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            found.setdefault(storage.data_ptr(), (storage, []))[1].append(value)
    return found


def _place(values: Sequence[Any]) -> tuple[Memory, dict[int, int]]:
    """Each storage once; only the elements of the tensors are readable. Addresses by the tensor's id."""
    memory = Memory()
    addresses: dict[int, int] = {}
    for storage, tensors in _storages(values).values():
        data = _bytes_of(storage)
        placed = memory.place(
            data, f"storage of {tuple(tensors[0].shape)}", writable=True, misalign=storage.data_ptr() % 16
        )
        start = placed.address - BASE
        allowed = torch.zeros(len(data), dtype=torch.uint8)
        for tensor in tensors:
            size = tensor.element_size()
            strides = [stride * size for stride in tensor.stride()]
            view = allowed.as_strided((*tensor.shape, size), (*strides, 1), tensor.storage_offset() * size)
            view.fill_(READABLE | WRITABLE)
            addresses[id(tensor)] = placed.address + tensor.storage_offset() * size
        memory.rights[start : start + len(data)] = allowed.numpy()
    return memory, addresses


def _take_back(memory: Memory, values: Sequence[Any]) -> None:
    for placed, (storage, _) in zip(memory.tensors, _storages(values).values(), strict=True):
        _bytes_of(storage)[:] = placed.read()


@contextmanager
def machine(
    schedule: Schedule | Callable[[], Schedule] | None = None, *, pick: Callable[[int], Sequence[int]] | None = None
) -> Iterator[list[Launched]]:
    """While it is on, every Triton and Gluon kernel of the library runs on tests/ptx. `pick` names the blocks of a grid
    to run, of how many; without it all."""
    make = schedule if callable(schedule) else lambda: schedule or Schedule(order="together")
    run = Run(make, pick)
    with pytest.MonkeyPatch.context() as patch:
        for op in OPS:
            module = importlib.import_module(f"eagle_kernels.{op}")
            kernels = [name for name, x in vars(module).items() if name.endswith("_kernel") and hasattr(x, "arg_names")]
            for name in kernels:
                patch.setattr(module, name, StandIn(module, name, run))
        yield run.launches


__all__ = ["GAP", "Launched", "machine"]
