"""Turns each segment of a kernel into a Python function on numpy arrays, once; the machine then runs those.

A function `s12(m, a, z)` runs segment 12 for warps a to z - 1 at once, on arrays of (z - a, 32) lanes. `m` is None
where all lanes are active, else their mask. Arithmetic becomes numpy expressions on local variables; memory, barriers
and asynchronous work become calls of the machine's methods, named `M_...` in the text. A branch returns its predicate,
a wait its operands. `print(Program(ptx).source)` shows the text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import numpy as np

from . import numeric
from .arithmetic import UnknownInstruction, comparison, expression, plain, register_type
from .flow import Registers, Segment, read, segments, written
from .parse import SIZES, Imm, Instr, Kernel, Mem, Module, Operand, Pair, Reg, Special, Sym, Vec, parse

SHARED_BASE = 1024  # the first byte of shared memory that a kernel gets: the driver keeps the first KB
GENERIC_SHARED = 0x7000_0000_0000
GENERIC_LOCAL = 0x7100_0000_0000
PARAM_BASE = 0x7200_0000_0000
CONSTANT_BASE = 0x1000_0000
TYPES = {
    "u8": np.uint8, "s8": np.int8, "u16": np.uint16, "s16": np.int16, "u32": np.uint32, "s32": np.int32,
    "f32": np.float32,
    "u64": np.uint64, "s64": np.int64, "f64": np.float64, "pred": np.bool_,
}  # fmt: skip
FILE_TYPES = {"16": ("u16", "s16"), "32": ("u32", "s32", "f32"), "64": ("u64", "s64", "f64"), "pred": ("pred",)}
SPACES = ("global", "shared", "local", "param", "const")
IGNORED: tuple[str, ...] = (
    "nop",
    "bar.warp",
    "prefetch",
    "griddepcontrol",
    "nanosleep",
    "fence.mbarrier_init",
    "membar",
    "discard",
)
IGNORED += (
    "fence.acq_rel",
    "fence.sc",
    "st.param",
    "ld.param.b32 retval",
    "fence.proxy.tensormap",
    "fence.proxy.alias",
)


def bits_of(value: int, kind: str) -> np.ndarray:
    """A literal as an array of no dimensions."""
    if kind == "pred":
        return np.asarray(value != 0)
    size = TYPES[kind](0).itemsize
    if kind[0] == "f" and size == 8:
        return np.asarray(np.uint64(value & (2**64 - 1))).view(np.float64)
    unsigned = np.asarray(value & (2 ** (8 * size) - 1), f"u{size}")
    return unsigned.view(TYPES[kind])


@dataclass
class Program:
    """A kernel made ready to run: the only one of a PTX text, or the one whose name holds `name`."""

    text: str
    name: str = ""
    kernel: Kernel = field(init=False)
    segments: list[Segment] = field(init=False)
    registers: Registers = field(init=False)
    source: str = field(init=False)
    code: CodeType = field(init=False)
    constants: dict[str, np.ndarray] = field(init=False, default_factory=dict)
    symbols: dict[str, int] = field(init=False, default_factory=dict)
    shared_bytes: int = field(init=False)  # of variables with a size; what the launch adds comes after
    local_bytes: int = field(init=False)
    cell_bytes: int = field(init=False)  # the smallest access to shared memory, 4 at most: what order.py tells apart
    module: Module = field(init=False)
    has_products: bool = field(init=False)  # wgmma
    regions: dict[tuple[int, ...], Any] = field(init=False, default_factory=dict)  # products.py keeps them here

    def __post_init__(self) -> None:
        self.module = parse(self.text)
        found = [kernel for name, kernel in self.module.kernels.items() if self.name in name]
        if len(found) != 1:
            raise ValueError(
                f"{len(found)} kernels have {self.name!r} in their name; there are {list(self.module.kernels)}"
            )
        self.kernel = found[0]
        self.registers = Registers(self.kernel)
        self._place_variables()
        widths = [SIZES[i.parts[-1]] for i in self.kernel.code if i.op.startswith(("ld.shared", "st.shared"))]
        self.cell_bytes = min([4, *widths])
        self.translate()

    def translate(self) -> None:
        """Makes functions of the kernel's code."""
        self.segments = segments(self.kernel, self.registers)
        self.has_products = any(segment.products for segment in self.segments)
        self.source = "\n".join(_Emitter(self, segment).text() for segment in self.segments)
        self.code = compile(self.source, f"<{self.kernel.name}>", "exec")

    def is_product_register(self, instr: Instr) -> bool:
        """Whether an ordinary instruction names a register of any wgmma of the kernel."""
        held = 0
        for segment in self.segments:
            held |= segment.products
        return bool((read(instr, self.registers) | written(instr, self.registers)) & held)

    def _place_variables(self) -> None:
        at = SHARED_BASE
        variables = [*self.kernel.shared, *self.module.shared]
        for variable in sorted(variables, key=lambda v: v.size == 0):  # dynamic shared memory last
            at = -(-at // variable.align) * variable.align
            self.symbols[variable.name] = at
            at += variable.size
        self.shared_bytes = at
        at = 0
        for variable in self.kernel.local:
            at = -(-at // variable.align) * variable.align
            self.symbols[variable.name] = at
            at += variable.size
        self.local_bytes = at
        at = CONSTANT_BASE
        for variable in self.module.constants:
            at = -(-at // 256) * 256
            self.symbols[variable.name] = at
            at += max(variable.size, 1)
        for param in self.kernel.params:
            self.symbols[param.name] = PARAM_BASE + param.offset

    def constant(self, value: int, kind: str) -> str:
        name = f"K_{kind}_{value}".replace("-", "m")
        self.constants[name] = bits_of(value, kind)
        return name


class _Emitter:
    """The text of one segment."""

    def __init__(self, program: Program, segment: Segment) -> None:
        self.program = program
        self.segment = segment
        self.lines: list[str] = []
        self.have: dict[Reg, dict[str, str]] = {}  # register -> type -> local variable
        self.dirty: dict[Reg, None] = {}
        self.specials: set[str] = set()
        self.result = "None"
        self.carry = False
        self.num_temporaries = 0

    def text(self) -> str:
        for instr in self.program.kernel.code[self.segment.first : self.segment.last]:
            try:
                self.instruction(instr)
            except UnknownInstruction:
                raise
            except (AssertionError, KeyError, ValueError, IndexError) as error:
                raise UnknownInstruction(f"{instr.text!r}: not understood ({type(error).__name__}: {error})") from error
        stores = self.stores()
        body = [*self.lines, *stores, f"return {self.result}"]
        return f"def s{self.segment.index}(m, a, z):\n" + "\n".join("    " + line for line in body) + "\n"

    def stores(self) -> list[str]:
        live = [reg for reg in self.dirty if self.program.registers.bit(reg) & self.segment.live_out]
        if not live:
            return []
        plain_stores, masked = [], []
        for reg in live:
            kind, name = next(iter(self.have[reg].items()))
            plain_stores.append(f"    F_{kind}[{reg.index}, a:z] = {name}")
            masked.append(f"    copyto(F_{kind}[{reg.index}, a:z], {name}, where=m)")
        return ["if m is None:", *plain_stores, "else:", *masked]

    # Operands

    def read(self, operand: Operand, kind: str) -> str:
        if isinstance(operand, Imm):
            return self.program.constant(self.literal(operand, kind), kind)
        if isinstance(operand, Sym):
            return self.program.constant(self.program.symbols[operand.name] + operand.offset, kind)
        if isinstance(operand, Special):
            return self.special(operand.name, kind)
        if isinstance(operand, Pair) and operand.first is None and operand.second is not None:
            return f"(~{self.read(operand.second, 'pred')})"
        assert isinstance(operand, Reg), operand
        forms = self.have.setdefault(operand, {})
        if kind in forms:
            return forms[kind]
        own = register_type(operand)
        if TYPES[kind](0).itemsize != TYPES[own](0).itemsize:
            signed = own if kind[0] != "s" else "s" + own[1:]
            return f"{self.read(operand, signed)}.astype({kind.upper()})"
        name = self.name(operand, kind)
        if forms:
            _, other = next(iter(forms.items()))
            self.lines.append(f"{name} = {other}.view({kind.upper()})")
        else:
            self.lines.append(f"{name} = F_{kind}[{operand.index}, a:z]")
        forms[kind] = name
        return name

    def literal(self, operand: Imm, kind: str) -> int:
        if operand.bits == 0 and kind[0] == "f":
            value = np.float32(operand.value) if kind == "f32" else np.float64(operand.value)
            return int(value.view(np.uint32 if kind == "f32" else np.uint64))
        return operand.value

    @staticmethod
    def literal_of(operand: Operand) -> int:
        assert isinstance(operand, Imm), operand
        return operand.value

    def special(self, name: str, kind: str) -> str:
        local = "S_" + name[1:].replace(".", "_")
        if local not in self.specials:
            self.specials.add(local)
            self.lines.append(f"{local}_ = {local}[a:z]")
        local += "_"
        return local if kind in ("u32", "b32") else f"{local}.astype({kind.upper()})"

    def name(self, reg: Reg, kind: str) -> str:
        return f"r{reg.cls}_{reg.index}_{kind}" if reg.cls != "pred" else f"p{reg.index}"

    def guard(self, instr: Instr) -> str:
        if instr.guard is None:
            return "None"
        reg, negated = instr.guard
        return f"~{self.read(reg, 'pred')}" if negated else self.read(reg, "pred")

    def write(self, operand: Operand | None, kind: str, text: str, instr: Instr) -> None:
        if operand is None or (isinstance(operand, Pair) and operand.first is None):
            return
        assert isinstance(operand, Reg), operand
        own = register_type(operand)
        if kind != "pred" and TYPES[kind](0).itemsize != TYPES[own](0).itemsize:
            target = kind[0] + own[1:] if kind[0] in "su" else own
            text, kind = f"({text}).astype({target.upper()})", target
        if instr.guard is not None:
            text = f"where({self.guard(instr)}, {text}, {self.read(operand, kind)})"
        name = self.name(operand, kind)
        self.lines.append(f"{name} = {text}")
        self.have[operand] = {kind: name}
        self.dirty.pop(operand, None)
        self.dirty[operand] = None

    def temporary(self, text: str) -> str:
        self.num_temporaries += 1
        name = f"t{self.num_temporaries}"
        self.lines.append(f"{name} = {text}")
        return name

    def address(self, operand: Operand) -> str:
        """As a signed 64-bit array or number, offset included."""
        assert isinstance(operand, Mem), operand
        base = operand.base
        if isinstance(base, Imm):
            return str(base.value + operand.offset)
        if isinstance(base, Sym):
            return str(self.program.symbols[base.name] + base.offset + operand.offset)
        text = self.read(base, "s64") if base.cls == "64" else f"{self.read(base, 'u32')}.astype(S64)"
        return f"{text} + {operand.offset}" if operand.offset else text

    # Instructions

    def instruction(self, instr: Instr) -> None:
        op, base = instr.op, instr.parts[0]
        if op.startswith(IGNORED):
            return
        if self.segment.kind == "wait":
            self.result = self.wait(instr)
        elif base in ("bra", "ret", "exit"):
            self.result = self.guard(instr) if instr.guard else "None"
        elif base == "brx":
            self.result = self.read(instr.args[0], "u32")
        elif base in ("trap", "call"):
            self.do("trap", instr, repr(instr.text))
        elif base in ("ld", "ldu"):
            self.load(instr)
        elif base == "st":
            self.store(instr)
        elif base in ("atom", "red"):
            self.atomic(instr)
        elif base == "cvta":
            self.convert_address(instr)
        elif base == "setp":
            self.compare(instr)
        elif base == "mov" and isinstance(instr.args[0], Vec):
            self.unpack(instr)
        elif base == "mov" and isinstance(instr.args[1], Reg) and instr.args[1] not in self.dirty:
            kind = plain(instr.parts[-1])
            self.write(instr.args[0], kind, f"{self.read(instr.args[1], kind)}.copy()", instr)
        elif base in ("shfl", "vote", "match", "redux", "activemask", "elect"):
            self.across_lanes(instr)
        elif base in ("ldmatrix", "stmatrix", "movmatrix"):
            self.matrix(instr)
        elif base in ("cp", "wgmma", "mbarrier", "fence", "barrier", "bar", "mapa", "getctarank"):
            self.asynchronous(instr)
        elif base in ("addc", "subc", "madc") or "cc" in instr.parts:
            self.with_carry(instr)
        elif instr.parts[-1] == "pred" and base in ("and", "or", "xor", "not"):
            self.write(instr.args[0], *expression(instr, self.read), instr)
        else:
            kind, text = expression(instr, self.read)
            self.write(instr.args[0], kind, text, instr)

    def call(self, method: str, instr: Instr, *args: str) -> str:
        return f"M_{method}({', '.join(['a', 'z', 'm', self.guard(instr), *args])})"

    def do(self, method: str, instr: Instr, *args: str) -> None:
        text = self.call(method, instr, *args)
        self.lines.append(text)

    def space(self, instr: Instr) -> str:
        for part in instr.parts[1:]:
            if part.split("::")[0] in SPACES:
                return part.replace("::", "_") if part == "shared::cluster" else part.split("::")[0]
        return "generic"

    @staticmethod
    def count(instr: Instr) -> int:
        return next((int(p[1]) for p in instr.parts if p in ("v2", "v4", "v8")), 1)

    @staticmethod
    def memory_type(kind: str) -> str:
        return {"b8": "u8", "b16": "u16", "b32": "u32", "b64": "u64", "b128": "u64"}.get(kind, kind)

    def load(self, instr: Instr) -> None:
        space, count, kind = self.space(instr), self.count(instr), self.memory_type(instr.parts[-1])
        result, source = instr.args
        targets = result.items if isinstance(result, Vec) else (result,)
        address = self.address(source)
        space = {"const": "global"}.get(space, space)
        value = self.temporary(self.call(f"load_{space}", instr, address, kind.upper(), str(count)))
        for i, target in enumerate(targets):
            self.write(target, kind, f"{value}[..., {i}]" if count > 1 else value, instr)

    def store(self, instr: Instr) -> None:
        space, kind = self.space(instr), self.memory_type(instr.parts[-1])
        target, source = instr.args
        items = source.items if isinstance(source, Vec) else (source,)
        values = [self.read(item, kind) for item in items]
        self.do(f"store_{space}", instr, self.address(target), kind.upper(), f"({', '.join(values)},)")

    def atomic(self, instr: Instr) -> None:
        parts = instr.parts
        kind = plain(parts[-1])
        names = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
        name = next(part for part in parts[1:] if part in names)
        args = instr.args if parts[0] == "red" else instr.args[1:]
        values = [self.read(arg, kind) for arg in args[1:]]
        text = self.call(
            "atomic", instr, repr(self.space(instr)), self.address(args[0]), kind.upper(), repr(name), *values
        )
        if parts[0] == "red":
            self.lines.append(text)
        else:
            self.write(instr.args[0], kind, text, instr)

    def convert_address(self, instr: Instr) -> None:
        kind = plain(instr.parts[-1])
        text = self.read(instr.args[1], kind)
        window = {"shared": GENERIC_SHARED, "local": GENERIC_LOCAL}
        if space := next((part for part in instr.parts if part in window), None):
            sign = "-" if "to" in instr.parts else "+"
            text = f"{text} {sign} {self.program.constant(window[space], kind)}"
        elif isinstance(instr.args[1], Reg):
            text += ".copy()"
        self.write(instr.args[0], kind, text, instr)

    def compare(self, instr: Instr) -> None:
        text = comparison(instr, self.read)
        combine = next((part for part in instr.parts[2:-1] if part in ("and", "or", "xor")), None)
        target = instr.args[0]
        first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
        other = self.read(instr.args[3], "pred") if combine else ""
        sign = {"and": "&", "or": "|", "xor": "^", None: ""}[combine]
        if second is not None:
            text = self.temporary(text)
            self.write(second, "pred", f"(~{text}) {sign} {other}", instr)
        self.write(first, "pred", f"({text}) {sign} {other}" if combine else text, instr)

    def unpack(self, instr: Instr) -> None:
        result = instr.args[0]
        assert isinstance(result, Vec)
        kind = plain(instr.parts[-1])
        part = "u" + str(int(kind[1:]) // len(result.items))
        value = self.temporary(self.read(instr.args[1], kind))
        for i, item in enumerate(result.items):
            shift = self.program.constant(i * int(part[1:]), kind)
            self.write(item, part, f"({value} >> {shift}).astype({part.upper()})", instr)

    def with_carry(self, instr: Instr) -> None:
        """add.cc, addc, sub.cc, subc, mad.cc, madc: the carry lives within one segment."""
        base, *rest = instr.parts
        kind = plain(rest[-1]).replace("s", "u")
        if kind != "u32":
            raise UnknownInstruction(f"{instr.text!r}: carries are read for 32 bits alone")
        x = [f"{self.read(arg, 'u32')}.astype(U64)" for arg in instr.args[1:]]
        carry = "carry" if base.endswith("c") and base != "sub" else "ZERO_u64"
        if base.startswith("mad"):
            half = f"({x[0]} * {x[1]}) >> K32" if "hi" in rest else f"({x[0]} * {x[1]}) & MASK32"
            total = f"({half}) + {x[2]} + {carry}"
        elif base.startswith("add"):
            total = f"{x[0]} + {x[1]} + {carry}"
        else:
            total = f"{x[0]} - {x[1]} - {carry}"
        value = self.temporary(total)
        if "cc" in rest:
            self.lines.append(f"carry = ({value} >> K32) & ONE_u64")
        self.write(instr.args[0], "u32", f"({value} & MASK32).astype(U32)", instr)

    def across_lanes(self, instr: Instr) -> None:
        base, *rest = instr.parts
        target = instr.args[0]
        first, second = (target.first, target.second) if isinstance(target, Pair) else (target, None)
        if base == "shfl":
            mode = rest[1]
            args = [self.read(arg, "u32") for arg in instr.args[1:4]]
            value = self.temporary(f"M_shuffle(z - a, {mode!r}, {', '.join(args)})")
            self.write(first, "u32", f"{value}[0]", instr)
            self.write(second, "pred", f"{value}[1]", instr)
        elif base == "elect":
            value = self.temporary(f"M_elect(a, z, m, {self.read(instr.args[1], 'u32')})")
            self.write(second, "pred", value, instr)
        elif base == "activemask":
            self.write(first, "u32", "M_active(a, z, m)", instr)
        elif base == "redux":
            kind = plain(rest[-1])
            self.write(first, kind, self.call("reduce", instr, repr(rest[1]), self.read(instr.args[1], kind)), instr)
        elif base == "vote":
            mode = rest[1]
            value = self.call("vote", instr, repr(mode), self.read(instr.args[1], "pred"))
            self.write(first, "u32" if mode == "ballot" else "pred", value, instr)
        else:
            kind = plain(rest[-1])
            self.write(first, "u32", self.call("match", instr, repr(rest[0]), self.read(instr.args[1], kind)), instr)

    def matrix(self, instr: Instr) -> None:
        base, *rest = instr.parts
        if base == "movmatrix" or "b16" not in rest:
            raise UnknownInstruction(f"{instr.text!r}: only ldmatrix and stmatrix of b16")
        transposed = str("trans" in rest)
        if base == "ldmatrix":
            items = instr.args[0].items if isinstance(instr.args[0], Vec) else (instr.args[0],)
            value = self.temporary(
                self.call("load_matrix", instr, self.address(instr.args[1]), str(len(items)), transposed)
            )
            for i, item in enumerate(items):
                self.write(item, "u32", f"{value}[{i}]", instr)
        else:
            items = instr.args[1].items if isinstance(instr.args[1], Vec) else (instr.args[1],)
            values = ", ".join(self.read(item, "u32") for item in items)
            self.do("store_matrix", instr, self.address(instr.args[0]), f"({values},)", transposed)

    def asynchronous(self, instr: Instr) -> None:
        op, args = instr.op, instr.args
        if op.startswith(("cp.async.bulk", "cp.reduce.async.bulk")):
            self.bulk(instr)
        elif op.startswith("cp.async.commit_group"):
            self.do("copy_commit", instr)
        elif op.startswith("cp.async.wait"):
            if "wait_all" in op:
                self.do("copy_commit", instr)
            self.do("copy_wait", instr, str(args[0].value) if args and isinstance(args[0], Imm) else "0")
        elif op.startswith("cp.async.mbarrier.arrive"):
            self.do("copy_arrive", instr, self.address(args[0]), str("noinc" in instr.parts))
        elif op.startswith("cp.async"):
            assert isinstance(args[2], Imm)
            size = self.read(args[3], "u32") if len(args) > 3 else "None"
            self.do("copy", instr, self.address(args[0]), self.address(args[1]), str(args[2].value), size)
        elif op.startswith("wgmma"):
            self.product(instr)
        elif op.startswith("fence.proxy.async"):
            self.do("proxy_fence", instr)
        elif op.startswith("mbarrier.init"):
            self.do("mbarrier_init", instr, self.address(args[0]), self.read(args[1], "u32"))
        elif op.startswith("mbarrier.inval"):
            self.do("mbarrier_invalidate", instr, self.address(args[0]))
        elif op.startswith("mbarrier.expect_tx"):
            self.do("mbarrier_expect", instr, self.address(args[0]), self.read(args[1], "u32"))
        elif op.startswith("mbarrier.arrive"):
            self.arrive(instr)
        elif op.startswith(("bar.arrive", "barrier.arrive")):
            self.do("named_arrive", instr, self.read(args[0], "u32"), self.read(args[1], "u32"))
        elif op.startswith("barrier.cluster.arrive"):
            self.do("cluster_arrive", instr)
        elif op.startswith("mapa"):
            kind = plain(instr.parts[-1])
            text = f"M_map_address({self.read(args[1], kind)}, {self.read(args[2], 'u32')})"
            self.write(args[0], kind, text, instr)
        elif op.startswith("getctarank"):
            text = f"M_rank_of_address(a, z, {self.read(args[1], plain(instr.parts[-1]))})"
            self.write(args[0], "u32", text, instr)
        else:
            raise UnknownInstruction(f"{instr.text!r}: not in this package")

    def arrive(self, instr: Instr) -> None:
        args = instr.args
        if "noComplete" in instr.op or "drop" in instr.op or isinstance(args[0], Reg):
            raise UnknownInstruction(f"{instr.text!r}: arrivals that return a state are not read")
        expects = "expect_tx" in instr.op
        number = self.read(args[2], "u32") if len(args) > 2 else "None"
        self.do("mbarrier_arrive", instr, self.address(args[1]), number, str(expects))

    def bulk(self, instr: Instr) -> None:
        op, args = instr.op, instr.args
        if "commit_group" in op:
            self.do("bulk_commit", instr)
        elif "wait_group" in op:
            assert isinstance(args[0], Imm)
            self.do("bulk_wait", instr, str(args[0].value), str("read" in instr.parts))
        elif "prefetch" in op:
            return
        elif "tensor" in op:
            loads = instr.parts[-1] != "bulk_group" and "global.shared" not in op
            where = args[1] if loads else args[0]
            assert isinstance(where, Mem)
            coords = ", ".join(self.read(c, "s32") for c in where.coords)
            shared = self.address(args[0] if loads else args[1])
            parts = [shared, self.address(Mem(where.base)), f"({coords},)"]
            if loads:
                mask = self.read(args[3], "u16") if "multicast" in op else "None"
                self.do("tensor_load", instr, *parts, self.address(args[2]), mask)
            else:
                reduction = next((p for p in instr.parts if p in ("add", "min", "max", "and", "or", "xor")), "")
                self.do("tensor_store", instr, *parts, repr(reduction))
        else:
            raise UnknownInstruction(f"{instr.text!r}: bulk copies without a tensor map are not read")

    def product(self, instr: Instr) -> None:
        op, args = instr.op, instr.args
        if op.startswith("wgmma.fence"):
            self.do("product_fence", instr)
        elif op.startswith("wgmma.commit"):
            self.do("product_commit", instr)
        elif op.startswith("wgmma.wait"):
            assert isinstance(args[0], Imm)
            self.do("product_wait", instr, str(args[0].value))
        else:
            shape, kinds = instr.parts[4], tuple(instr.parts[5:8])
            m, n, k = (int(x) for x in shape[1:].replace("n", " ").replace("k", " ").split())
            if m != 64 or kinds[0] != "f32" or kinds[1] not in ("bf16", "f16") or kinds[1] != kinds[2] or k != 16:
                raise UnknownInstruction(f"{instr.text!r}: only m64nNk16 of bf16 or f16 into f32")
            result, a = args[0], args[1]
            assert isinstance(result, Vec)
            registers = tuple(item.index for item in result.items if isinstance(item, Reg))
            in_registers = isinstance(a, Vec)
            if isinstance(a, Vec):
                left = repr(tuple(item.index for item in a.items if isinstance(item, Reg)))
            else:
                left = self.read(a, "u64")
            flags = [x.value for x in args[4:] if isinstance(x, Imm)]
            transposed = (0, flags[2]) if in_registers else (flags[2], flags[3])
            if flags[:2] != [1, 1]:
                raise UnknownInstruction(f"{instr.text!r}: negated operands")
            held = self.program.registers.bits(result) | (self.program.registers.bits(a) if in_registers else 0)
            held_name = f"H_{held:x}"
            self.program.constants[held_name] = held  # type: ignore[assignment]
            self.do(
                "product",
                instr,
                str(n),
                repr(kinds[1]),
                repr(registers),
                left,
                str(in_registers),
                self.read(args[2], "u64"),
                self.read(args[3], "pred"),
                repr(transposed),
                held_name,
            )

    def wait(self, instr: Instr) -> str:
        guard = self.guard(instr)
        op, args = instr.op, instr.args
        if op.startswith("barrier.cluster.wait"):
            return f"({guard}, 'cluster')"
        if op.startswith("setmaxnreg"):
            return f"({guard}, 'registers', {self.literal_of(args[0])})"
        if op.startswith("mbarrier"):
            assert isinstance(args[0], Reg)
            kind = "try" if "try_wait" in op else "test"
            parity = self.read(args[2], "u32")
            if "flipped" in op:  # faults.py's; not PTX
                parity = f"{parity} ^ {self.program.constant(1, 'u32')}"
            return f"({guard}, {kind!r}, {self.address(args[1])}, {parity}, {args[0].index})"
        if ".red" in op:
            raise UnknownInstruction(f"{instr.text!r}: barriers that reduce are not read")
        count = self.read(args[1], "u32") if len(args) > 1 else "None"
        return f"({guard}, 'named', {self.read(args[0], 'u32')}, {count})"


def namespace() -> dict[str, object]:
    """What the generated functions name, but for the machine's own."""
    names: dict[str, object] = {
        name: getattr(np, name)
        for name in (
            "where", "copyto", "exp2", "log2", "sqrt", "sin", "cos", "tanh", "maximum", "minimum", "fmax", "fmin",
            "isnan",
            "copysign", "bitwise_count",
        )
    }  # fmt: skip
    names |= {name: getattr(numeric, name) for name in dir(numeric) if not name.startswith("_")}
    names["abs_"] = np.abs
    for kind, type_ in TYPES.items():
        names[kind.upper()] = type_
        names[f"ONE_{kind}"] = np.asarray(1, type_)
        names[f"ZERO_{kind}"] = np.asarray(0, type_)
    names |= {"K32": np.asarray(32, np.uint64), "MASK32": np.asarray(0xFFFFFFFF, np.uint64)}
    return names
