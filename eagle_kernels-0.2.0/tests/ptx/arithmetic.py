"""PTX arithmetic as Python expressions: `expression(instr, read)` gives the text that computes an instruction.

    add.f32 %r3, %r1, %r2     ->     ("f32", "r1_f32 + r2_f32")

`read(operand, type)` names an operand in a type. Types: u16 s16 u32 s32 f32 u64 s64 f64 pred. The names in the
expressions are numpy's and those of numeric.py.
"""

from __future__ import annotations

from collections.abc import Callable

from .parse import Imm, Instr, Operand, Pair, Reg, Vec

Read = Callable[[Operand, str], str]
RAW = {
    "b16": "u16",
    "b32": "u32",
    "b64": "u64",
    "f16": "u16",
    "bf16": "u16",
    "f16x2": "u32",
    "bf16x2": "u32",
    "b8": "u16",
}
ROUNDING = {"rn", "rz", "rm", "rp", "rni", "rzi", "rmi", "rpi", "rna"}
INFIX = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^"}
COMPARE = {
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}
UNORDERED = {"equ": "!=", "neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}  # not (x opposite y)
FUNCTIONS = {
    "ex2": "exp2({0})", "lg2": "log2({0})", "rcp": "(ONE_{t} / {0})", "sqrt": "sqrt({0})",
    "rsqrt": "(ONE_{t} / sqrt({0}))",
    "sin": "sin({0})", "cos": "cos({0})", "tanh": "tanh({0})", "popc": "bitwise_count({0}).astype(U32)",
    "clz": "count_leading_zeros({0})", "brev": "reverse_bits({0})",
}  # fmt: skip


class UnknownInstruction(NotImplementedError):
    """PTX that this package does not run."""


def register_type(reg: Reg) -> str:
    return "pred" if reg.cls == "pred" else "u" + reg.cls


def plain(kind: str) -> str:
    return RAW.get(kind, kind)


def wider(kind: str) -> str:
    return kind[0] + str(2 * int(kind[1:]))


def expression(instr: Instr, read: Read) -> tuple[str, str]:
    """The result's type and the text. Raises UnknownInstruction."""
    base, *rest = instr.parts
    if base in HANDLERS:
        return HANDLERS[base](instr, read)
    kind = rest[-1] if rest else ""
    if kind in ("bf16x2", "f16x2", "bf16", "f16"):
        return _half(instr, read)
    t = plain(kind)
    x = [read(arg, t) for arg in instr.args[1:]]
    if base in FUNCTIONS:
        result = "u32" if base in ("popc", "clz") else t
        return result, FUNCTIONS[base].format(*x, t=t)
    if base in INFIX:
        text = f"{x[0]} {INFIX[base]} {x[1]}"
    elif base == "not":
        text = f"~{x[0]}"
    elif base == "neg":
        text = f"-{x[0]}"
    elif base == "abs":
        text = f"abs_({x[0]})"
    elif base in ("min", "max"):
        name = (
            ("fmin" if "NaN" not in rest else "minimum")
            if base == "min"
            else ("fmax" if "NaN" not in rest else "maximum")
        )
        text = f"{name if t[0] == 'f' else base + 'imum'}({x[0]}, {x[1]})"
        if len(x) == 3:
            text = f"{name}({text}, {x[2]})"
    elif base == "copysign":
        text = f"copysign({x[1]}, {x[0]})"
    elif base == "rem":
        text = f"remainder_int({x[0]}, {x[1]})"
    elif base == "div":
        text = f"{x[0]} / {x[1]}" if t[0] == "f" else f"divide_int({x[0]}, {x[1]})"
    elif base == "cnot":
        text = f"where({x[0]} == 0, ONE_{t}, ZERO_{t})"
    else:
        raise UnknownInstruction(f"{instr.text!r}: no such arithmetic in this package")
    return t, f"saturate({text})" if "sat" in rest and t[0] == "f" else text


def _half(instr: Instr, read: Read) -> tuple[str, str]:
    """Arithmetic of bf16 and f16, alone and in pairs: through fp32, one rounding."""
    base, *rest = instr.parts
    kind = rest[-1]
    is_pair, name = kind.endswith("x2"), kind.removesuffix("x2")
    t = "u32" if is_pair else "u16"
    args = [read(arg, t) for arg in instr.args[1:]]
    if base in ("neg", "abs") or base not in ("add", "sub", "mul", "fma", "min", "max"):
        raise UnknownInstruction(f"{instr.text!r}: no such arithmetic of {kind} in this package")

    def compute(half: str) -> str:
        x = [f"from_{name}({half}({arg}))" if is_pair else f"from_{name}({arg})" for arg in args]
        if base == "fma":
            return f"fma32({x[0]}, {x[1]}, {x[2]})"
        if base in ("min", "max"):
            return f"f{base}({x[0]}, {x[1]})"
        return f"{x[0]} {({'add': '+', 'sub': '-', 'mul': '*'})[base]} {x[1]}"

    if is_pair:
        return "u32", f"pack_{name}x2({compute('high_half')}, {compute('low_half')})"
    return "u16", f"to_{name}({compute('')})"


def _multiply(instr: Instr, read: Read) -> tuple[str, str]:
    base, *rest = instr.parts
    kind = rest[-1]
    if base == "fma" or kind[0] == "f" or kind.startswith("bf"):
        return _fused(instr, read)
    args = instr.args[1:]
    if "wide" in rest:
        wide = wider(kind)
        text = f"{read(args[0], kind)}.astype({wide.upper()}) * {read(args[1], kind)}.astype({wide.upper()})"
        return wide, text if base == "mul" else f"{text} + {read(args[2], wide)}"
    t = plain(kind)
    x = [read(arg, t) for arg in args]
    text = f"multiply_high({x[0]}, {x[1]})" if "hi" in rest else f"{x[0]} * {x[1]}"
    return t, text if base == "mul" else f"{text} + {x[2]}"


def _fused(instr: Instr, read: Read) -> tuple[str, str]:
    base, *rest = instr.parts
    kind = rest[-1]
    if kind not in ("f32", "f64"):
        return _half(instr, read)
    x = [read(arg, kind) for arg in instr.args[1:]]
    if base == "mul":
        text = f"{x[0]} * {x[1]}"
    elif kind == "f64":
        text = f"fma64({', '.join(x)})"
    else:
        name = {"rm": "fma32_down", "rz": "fma32_zero"}.get(rest[0], "fma32")
        text = f"{name}({', '.join(x)})"
    return kind, f"saturate({text})" if "sat" in rest else text


def _shift(instr: Instr, read: Read) -> tuple[str, str]:
    kind = plain(instr.parts[-1])
    amount = instr.args[2]
    x = read(instr.args[1], kind)
    if isinstance(amount, Imm):
        bits = int(kind[1:])
        if amount.value >= bits and not (kind[0] == "s" and instr.op.startswith("shr")):
            return kind, f"{x} * ZERO_{kind}"
        return (
            kind,
            f"{x} {'<<' if instr.op.startswith('shl') else '>>'} {read(Imm(min(amount.value, bits - 1)), kind)}",
        )
    return kind, f"shift_{'left' if instr.op.startswith('shl') else 'right'}({x}, {read(amount, 'u32')})"


def _funnel(instr: Instr, read: Read) -> tuple[str, str]:
    side = "left" if instr.parts[1] == "l" else "right"
    if instr.parts[2] != "wrap":
        raise UnknownInstruction(f"{instr.text!r}: only shf.wrap")
    return "u32", f"funnel_{side}({', '.join(read(arg, 'u32') for arg in instr.args[1:])})"


def _literal(operand: Operand, instr: Instr) -> int:
    if not isinstance(operand, Imm):
        raise UnknownInstruction(f"{instr.text!r}: needs a literal here")
    return operand.value


def _extract(instr: Instr, read: Read) -> tuple[str, str]:
    kind = plain(instr.parts[-1])
    position, length = _literal(instr.args[2], instr), _literal(instr.args[3], instr)
    return kind, f"extract_bits({read(instr.args[1], kind)}, {position}, {length})"


def _insert(instr: Instr, read: Read) -> tuple[str, str]:
    kind = plain(instr.parts[-1])
    position, length = _literal(instr.args[3], instr), _literal(instr.args[4], instr)
    return kind, f"insert_bits({read(instr.args[1], kind)}, {read(instr.args[2], kind)}, {position}, {length})"


def _permute(instr: Instr, read: Read) -> tuple[str, str]:
    if len(instr.parts) > 2:
        raise UnknownInstruction(f"{instr.text!r}: only prmt.b32")
    return "u32", f"permute_bytes({', '.join(read(arg, 'u32') for arg in instr.args[1:])})"


def _logic3(instr: Instr, read: Read) -> tuple[str, str]:
    return "u32", f"logic3({', '.join(read(arg, 'u32') for arg in instr.args[1:4])}, {_literal(instr.args[4], instr)})"


def _select(instr: Instr, read: Read) -> tuple[str, str]:
    kind = plain(instr.parts[-1])
    return kind, f"where({read(instr.args[3], 'pred')}, {read(instr.args[1], kind)}, {read(instr.args[2], kind)})"


def comparison(instr: Instr, read: Read) -> str:
    """setp's first result, before the predicate that may be combined with it."""
    kind = plain(instr.parts[-1])
    name = instr.parts[1]
    if instr.parts[-1] in ("bf16", "f16"):
        half = instr.parts[-1]
        x, y = (f"from_{half}({read(arg, 'u16')})" for arg in instr.args[1:3])
    else:
        x, y = read(instr.args[1], kind), read(instr.args[2], kind)
    if name == "ne" and kind[0] == "f":
        return f"({x} < {y}) | ({x} > {y})"
    if name in COMPARE:
        return f"{x} {COMPARE[name]} {y}"
    if name in UNORDERED:
        return f"~({x} {UNORDERED[name]} {y})" if name != "equ" else f"~(({x} < {y}) | ({x} > {y}))"
    if name in ("nan", "num"):
        text = f"(isnan({x}) | isnan({y}))"
        return text if name == "nan" else f"~{text}"
    raise UnknownInstruction(f"{instr.text!r}: no such comparison")


def _move(instr: Instr, read: Read) -> tuple[str, str]:
    """mov of one value, and {a, b} into one register; from one register into {a, b}: translate.py."""
    kind = plain(instr.parts[-1])
    source = instr.args[1]
    if isinstance(source, Vec):
        part = "u" + str(int(kind[1:]) // len(source.items))
        terms = [
            f"({read(item, part)}.astype({kind.upper()}) << {read(Imm(i * int(part[1:])), kind)})"
            for i, item in enumerate(source.items)
        ]
        return kind, " | ".join(terms)
    return kind, read(source, kind)


def _convert(instr: Instr, read: Read) -> tuple[str, str]:
    _, *rest = instr.parts
    target, source = rest[-2], rest[-1]
    mode = next((part for part in rest if part in ROUNDING), "rzi")
    if target in ("bf16x2", "f16x2"):
        return "u32", f"pack_{target}({read(instr.args[1], 'f32')}, {read(instr.args[2], 'f32')})"
    if target in ("bf16", "f16"):
        x = read(instr.args[1], source) if source in ("f32", "f64") else f"{read(instr.args[1], source)}.astype(F32)"
        return "u16", f"to_{target}({x})"
    if source in ("bf16", "f16"):
        text = f"from_{source}({read(instr.args[1], 'u16')})"
        if target == "f32":
            return "f32", text
        return target, f"float_to_int({text}, '{mode}', {target.upper()})"
    x = read(instr.args[1], source)
    if target[0] == "f" and source[0] == "f":
        text = x if target == source else f"{x}.astype({target.upper()})"
        text = (
            f"round_float({text}, '{mode}')"
            if mode.endswith("i") and target == source and any(p in ROUNDING for p in rest)
            else text
        )
        return target, f"saturate({text})" if "sat" in rest else text
    if source[0] == "f":
        return target, f"float_to_int({x}, '{mode}', {target.upper()})"
    if target[0] == "f":
        return target, f"{x}.astype({target.upper()})"
    if "sat" in rest:
        return target, f"clamp_int({x}, {target.upper()})"
    return target, f"{x}.astype({target.upper()})"


def _dot4(instr: Instr, read: Read) -> tuple[str, str]:
    first, second = instr.parts[1], instr.parts[2]
    a, b, c = read(instr.args[1], "u32"), read(instr.args[2], "u32"), read(instr.args[3], "u32")
    return "u32", f"dot4({a}, {b}, {c}, {first[0] == 's'}, {second[0] == 's'})"


def _set(instr: Instr, read: Read) -> tuple[str, str]:
    raise UnknownInstruction(f"{instr.text!r}: set is not read; setp is")


HANDLERS: dict[str, Callable[[Instr, Read], tuple[str, str]]] = {
    "mul": _multiply,
    "mad": _multiply,
    "fma": _multiply,
    "shl": _shift,
    "shr": _shift,
    "shf": _funnel,
    "bfe": _extract,
    "bfi": _insert,
    "prmt": _permute,
    "lop3": _logic3,
    "selp": _select,
    "mov": _move,
    "cvt": _convert,
    "dp4a": _dot4,
    "set": _set,
}

__all__ = ["Pair", "Read", "UnknownInstruction", "comparison", "expression", "plain", "register_type", "wider"]
