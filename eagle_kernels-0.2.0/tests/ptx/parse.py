"""Reads PTX, the text that compilers make for NVIDIA's GPUs, into plain objects.

    module = parse(open("kernel.ptx").read())
    kernel = module.kernels["my_kernel"]
    print(kernel.code[0].op, kernel.code[0].args)          # "mov.u32" (Reg('32', 1), Special('%tid.x'))

What is read: kernels (`.entry`) with their parameters, registers, labels, branch tables, shared and local variables;
constant arrays of the module; nested `{ }` scopes of inline assembly, whose labels and registers are their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

SIZES = {"pred": 1, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2}
SIZES |= {"b32": 4, "u32": 4, "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "tf32": 4}
SIZES |= {"b64": 8, "u64": 8, "s64": 8, "f64": 8, "b128": 16}


class ParseError(ValueError):
    """The text is not the PTX that this package reads; the message names the line's text."""


@dataclass(frozen=True)
class Reg:
    """A register: its class ("pred", "16", "32", "64") and its number within the class."""

    cls: str
    index: int


@dataclass(frozen=True)
class Imm:
    """A literal. `bits` is the width a float literal has (0f 32, 0d 64); 0 for an integer."""

    value: int
    bits: int = 0


@dataclass(frozen=True)
class Special:
    """A read-only register of the machine: %tid.x, %laneid, ..."""

    name: str


@dataclass(frozen=True)
class Sym:
    """The address of a variable, or of a parameter."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class Mem:
    """[base + offset]; with `coords`, a tensor map and the coordinates of a box in it."""

    base: Reg | Sym | Imm
    offset: int = 0
    coords: tuple[Operand, ...] = ()


@dataclass(frozen=True)
class Vec:
    """{a, b, c, d}"""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """a|b, or p with `!` in front as Pair(None, p)."""

    first: Operand | None
    second: Operand | None


@dataclass(frozen=True)
class Label:
    name: str


Operand = Reg | Imm | Special | Sym | Mem | Vec | Pair | Label


@dataclass(frozen=True)
class Instr:
    """One instruction. `guard` is the predicate in front, with True where it is negated."""

    op: str
    args: tuple[Operand, ...]
    guard: tuple[Reg, bool] | None
    text: str

    @property
    def parts(self) -> list[str]:
        return self.op.split(".")


@dataclass(frozen=True)
class Param:
    name: str
    offset: int  # in the block of all parameters
    size: int
    type: str


@dataclass(frozen=True)
class Variable:
    """A shared or local array of a kernel, a constant array of the module; size 0: as much as the launch gives."""

    name: str
    align: int
    size: int
    data: bytes = b""


@dataclass
class Kernel:
    name: str
    params: list[Param] = field(default_factory=list)
    num_threads: int | None = None  # .reqntid
    max_registers: int | None = None  # .maxnreg
    cluster: int = 1  # .reqnctapercluster
    num_registers: dict[str, int] = field(default_factory=dict)  # by class
    shared: list[Variable] = field(default_factory=list)
    local: list[Variable] = field(default_factory=list)
    code: list[Instr] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # to the instruction after it
    tables: dict[str, list[str]] = field(default_factory=dict)  # brx.idx

    @property
    def param_bytes(self) -> int:
        return max((p.offset + p.size for p in self.params), default=0)


@dataclass
class Module:
    kernels: dict[str, Kernel] = field(default_factory=dict)
    constants: list[Variable] = field(default_factory=list)
    shared: list[Variable] = field(default_factory=list)


CLASS_OF_TYPE = {"pred": "pred", "b8": "16", "b128": "128"} | {
    f"{kind}{bits}": str(bits) for kind in ("b", "u", "s", "f") for bits in (16, 32, 64)
}
NUMBER = re.compile(r"-?(0[xX][0-9a-fA-F]+|\d+)U?$")
VARIABLE = re.compile(r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$.%]+)\s*(?:\[\s*(\d*)\s*\])?\s*(?:=\s*(.*))?$", re.S)


def parse(text: str) -> Module:
    """All kernels of a PTX file. Raises ParseError for text it does not understand."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    text = re.sub(r"//[^\n]*", "", text)
    module = Module()
    at = 0
    for found in re.finditer(r"(?:\.visible\s+)?\.entry\s+([\w$]+)", text):
        _module_variables(text[at : found.start()], module)
        start = text.index("(", found.end()) if text[found.end() :].lstrip().startswith("(") else found.end()
        closing = text.index(")", start)
        body = text.index("{", closing)
        end = _matching_brace(text, body)
        kernel = Kernel(found[1])
        _parameters(text[start + 1 : closing], kernel)
        _directives(text[closing + 1 : body], kernel)
        _Body(kernel, module).read(text[body + 1 : end])
        module.kernels[kernel.name] = kernel
        at = end
    if not module.kernels:
        raise ParseError("the text holds no .entry; give the PTX of a compiled kernel.")
    return module


def _matching_brace(text: str, start: int) -> int:
    depth = 0
    for found in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return found.start()
    raise ParseError(f"the brace after {text[max(start - 60, 0) : start]!r} is never closed.")


def _module_variables(text: str, module: Module) -> None:
    for found in re.finditer(r"\.(global|const|shared)\s+([^;{]*(?:\{[^}]*\})?[^;]*);", text):
        variable = _variable(found[2])
        (module.shared if found[1] == "shared" else module.constants).append(variable)


def _variable(text: str) -> Variable:
    found = VARIABLE.match(text.strip())
    if not found:
        raise ParseError(f"not a variable: {text!r}")
    size = SIZES[found[2]]
    data = b""
    if found[5]:
        if not (found[5].startswith("{") and size == 1):
            raise ParseError(f"only byte arrays may have initial values, got {text!r}")
        data = bytes(int(x, 0) & 0xFF for x in found[5].strip("{} \n").split(","))
    count = 1 if found[4] is None else int(found[4] or 0)
    return Variable(found[3], int(found[1] or size), max(count * size, len(data)), data)


def _parameters(text: str, kernel: Kernel) -> None:
    offset = 0
    for item in filter(None, (part.strip() for part in text.split(","))):
        found = re.match(
            r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)*(?:\.align\s+\d+\s+)?)?([\w$]+)(?:\[(\d+)\])?$",
            item,
        )
        if not found:
            raise ParseError(f"not a parameter of a kernel: {item!r}")
        size = SIZES[found[2]] * int(found[4] or 1)
        align = int(found[1] or SIZES[found[2]])
        offset = -(-offset // align) * align
        kernel.params.append(Param(found[3], offset, size, found[2]))
        offset += size


def _directives(text: str, kernel: Kernel) -> None:
    if found := re.search(r"\.reqntid\s+([\d, ]+)", text):
        dims = [int(x) for x in found[1].split(",")]
        kernel.num_threads = dims[0] * (dims[1] if len(dims) > 1 else 1) * (dims[2] if len(dims) > 2 else 1)
    if found := re.search(r"\.maxnreg\s+(\d+)", text):
        kernel.max_registers = int(found[1])
    if found := re.search(r"\.reqnctapercluster\s+(\d+)", text):
        kernel.cluster = int(found[1])


class _Body:
    """The statements of one kernel, scope by scope."""

    def __init__(self, kernel: Kernel, module: Module) -> None:
        self.kernel = kernel
        self.scopes: list[dict[str, Reg]] = [{}]
        self.scope_ids = [0]
        self.num_scopes = 1
        self.ranges: dict[str, tuple[str, int, int]] = {}  # "%r" -> class, first number, count
        self.pending: list[tuple[int, tuple[int, ...]]] = []  # branches whose labels are to be found
        self.label_scopes: dict[tuple[int, str], str] = {}
        self.symbols = {v.name for v in module.constants + module.shared} | {p.name for p in kernel.params}

    def read(self, text: str) -> None:
        statement = re.compile(r"\s*(?:(\{)|(\})|([\w$.]+):(?!:)|(\.(?:loc|file)\b[^\n]*)|([^;]+);)")
        at = 0
        while at < len(text.rstrip()):
            found = statement.match(text, at)
            if not found:
                raise ParseError(f"cannot read {text[at : at + 80]!r}")
            at = found.end()
            if found[1]:
                self.scopes.append({})
                self.scope_ids.append(self.num_scopes)
                self.num_scopes += 1
            elif found[2]:
                self.scopes.pop()
                self.scope_ids.pop()
            elif found[3]:
                self.label(found[3])
            elif found[5]:
                body = found[5].strip()
                if body.startswith("."):
                    self.directive(body)
                else:
                    self.instruction(body)
        self.resolve()

    def label(self, name: str) -> None:
        unique = name if len(self.scope_ids) == 1 else f"{name}.{self.scope_ids[-1]}"
        self.label_scopes[self.scope_ids[-1], name] = unique
        self.kernel.labels[unique] = len(self.kernel.code)
        self.last_label = unique

    def directive(self, text: str) -> None:
        word, rest = text.split(None, 1)
        if word == ".reg":
            kind, names = rest.split(None, 1)
            for name in names.split(","):
                self.register(kind.strip().lstrip("."), name.strip())
        elif word == ".shared":
            self.kernel.shared.append(_variable(rest))
            self.symbols.add(self.kernel.shared[-1].name)
        elif word == ".local":
            self.kernel.local.append(_variable(rest))
            self.symbols.add(self.kernel.local[-1].name)
        elif word == ".branchtargets":
            del self.kernel.labels[self.last_label]
            self.kernel.tables[self.last_label] = [name.strip() for name in rest.split(",")]
        elif word not in (".pragma", ".param"):
            raise ParseError(f"unknown directive {text!r}")

    def register(self, kind: str, name: str) -> None:
        if kind not in CLASS_OF_TYPE:
            raise ParseError(f"a register of unknown type .{kind}: {name}")
        cls = CLASS_OF_TYPE[kind]
        first = self.kernel.num_registers.get(cls, 0)
        if found := re.match(r"(%?[\w$]+)<(\d+)>$", name):
            count = int(found[2])
            self.ranges[found[1]] = (cls, first, count)
        else:
            count = 1
            self.scopes[-1][name] = Reg(cls, first)
        self.kernel.num_registers[cls] = first + count

    def instruction(self, text: str) -> None:
        guard = None
        if found := re.match(r"@(!?)([%\w$]+)\s+", text):
            register = self.operand(found[2])
            assert isinstance(register, Reg)
            guard = (register, found[1] == "!")
            text = text[found.end() :]
        op, *rest = text.split(None, 1)
        args = tuple(self.operand(part) for part in _split(rest[0])) if rest and not op.startswith("call") else ()
        if op.startswith(("bra", "brx")):
            assert rest
            names = _split(rest[0])
            args = (Label(names[0]),) if op.startswith("bra") else (self.operand(names[0]), Label(names[1]))
            self.pending.append((len(self.kernel.code), tuple(self.scope_ids)))
        self.kernel.code.append(Instr(op, args, guard, " ".join(text.split())[:120]))

    def operand(self, text: str) -> Operand:
        text = text.strip()
        if text.startswith("{"):
            return Vec(tuple(self.operand(part) for part in _split(text[1:-1])))
        if text.startswith("["):
            return self.memory(text[1:-1].strip())
        if text.startswith("!"):
            return Pair(None, self.operand(text[1:]))
        if "|" in text:
            left, right = text.split("|")
            return Pair(self.operand(left), self.operand(right))
        if text == "_":
            return Pair(None, None)
        if NUMBER.match(text):
            return Imm(int(text.rstrip("U"), 0))
        if found := re.match(r"0([fFdD])([0-9a-fA-F]+)$", text):
            return Imm(int(found[2], 16), 32 if found[1] in "fF" else 64)
        for scope in reversed(self.scopes):
            if text in scope:
                return scope[text]
        if (found := re.match(r"(%?[A-Za-z_$]+)(\d+)$", text)) and found[1] in self.ranges:
            cls, first, count = self.ranges[found[1]]
            if int(found[2]) >= count:
                raise ParseError(f"{text} is not among the {count} registers {found[1]}<{count}>")
            return Reg(cls, first + int(found[2]))
        if text.startswith("%"):
            return Special(text)
        if found := re.match(r"([\w$]+)\s*\+\s*(\d+)$", text):
            return Sym(found[1], int(found[2]))
        if re.match(r"[\w$]+$", text):
            return Sym(text)
        raise ParseError(f"not an operand: {text!r}")

    def memory(self, text: str) -> Mem:
        parts = _split(text)
        if len(parts) > 1:
            box = self.operand(parts[1])
            return Mem(self.base(parts[0]), 0, box.items if isinstance(box, Vec) else (box,))
        found = re.match(r"([^+\s]+)\s*(?:\+\s*(-?\w+))?$", text)
        if not found:
            raise ParseError(f"not an address: [{text}]")
        return Mem(self.base(found[1]), int(found[2] or "0", 0))

    def base(self, text: str) -> Reg | Sym | Imm:
        base = self.operand(text)
        if not isinstance(base, Reg | Sym | Imm):
            raise ParseError(f"not the base of an address: {text!r}")
        return base

    def resolve(self) -> None:
        """Gives each branch the label that its scope, or the next one outwards, has under that name."""
        for at, scopes in self.pending:
            instr = self.kernel.code[at]
            label = instr.args[-1]
            assert isinstance(label, Label)
            if label.name in self.kernel.tables:
                continue
            for scope in reversed(scopes):
                if (scope, label.name) in self.label_scopes:
                    unique = Label(self.label_scopes[scope, label.name])
                    break
            else:
                raise ParseError(f"{instr.text!r} jumps to a label that is not there")
            self.kernel.code[at] = Instr(instr.op, (*instr.args[:-1], unique), instr.guard, instr.text)


def _split(text: str) -> list[str]:
    """At the commas that no bracket holds."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "{[(":
            depth += 1
        elif c in "}])":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]
