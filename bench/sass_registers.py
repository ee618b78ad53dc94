"""Registers that a wgmma still reads or writes, and machine code that touches them too early.

    for hazard in hazards(cubin):       # () for sound code; else a line for each instruction
        print(hazard)

wgmma runs beside the code that follows it: its sums, and a left operand that comes from registers, belong to it until
a wait covers it. ptxas orders the code around those waits, and the ptxas of CUDA 12 and 13.0 to 13.2 is known to write
such operands too early (triton-lang/triton#9433 and #11781, fixed in CUDA 13.3). PTX does not show that; SASS does.
HGMMA sets no scoreboard. `gsb0` ends a group, and WARPGROUP.DEPBAR.LE gsb0, N waits for all but the last N groups. So
every way through the code is followed with the groups that are under way; products among themselves run in order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from bench.sass_clocks import Instruction, disassemble

NO_RESULT = {"BAR", "BRX", "CALL", "JMX", "R2P", "RET", "WARPSYNC"}  # whose first register is an operand
ANYWHERE = {"BRX", "BRXU", "JMX", "JMXU"}  # jumps by a table: to any label
DOUBLES = re.compile(r"D(ADD|MUL|FMA|MNMX)\b|(F2F|I2F)\.F64")
MOST_GROUPS = 8  # under way and told apart; older ones count as one


@dataclass(frozen=True)
class Group:
    """Products of one commit: a bit for each register that they read, and for each that they write."""

    operands: int = 0
    sums: int = 0

    def __or__(self, other: Group) -> Group:
        return Group(self.operands | other.operands, self.sums | other.sums)


@dataclass(frozen=True)
class UnderWay:
    """What is under way at a place: `groups` that are committed, the oldest first, and the products after those."""

    groups: tuple[Group, ...] = ()
    uncommitted: Group = Group()

    @property
    def all(self) -> Group:
        total = self.uncommitted
        for group in self.groups:
            total |= group
        return total


def hazards(cubin: bytes) -> tuple[str, ...]:
    """One line for each instruction that touches registers of a wgmma that nothing has waited for."""
    return find(*disassemble(cubin))


def find(code: list[Instruction], labels: dict[str, int]) -> tuple[str, ...]:
    found: dict[int, str] = {}
    todo, seen = [(0, UnderWay())], set()
    while todo:
        at, state = todo.pop()
        while at < len(code) and (at, state) not in seen:
            seen.add((at, state))
            instr = code[at]
            if wrong := _touched(instr, state):
                found[at] = f"{instr.address:#x} {instr.text}: {wrong}"
            state = _after(instr, state)
            following = list(_following(code, labels, at))
            if not following:
                break
            at, *others = following
            todo += [(other, state) for other in others]
    return tuple(found[at] for at in sorted(found))


def _following(code: list[Instruction], labels: dict[str, int], at: int) -> Iterator[int]:
    instr = code[at]
    if instr.name not in ANYWHERE | {"BRA", "EXIT", "RET"} or instr.guarded or _is_conditional(instr):
        yield at + 1
    if instr.name in ANYWHERE:
        yield from sorted(set(labels.values()))
    elif instr.name in ("BRA", "CALL") and (target := re.search(r"\((\.L_x_\d+)\)", instr.text)):
        yield labels[target[1]]


def _is_conditional(instr: Instruction) -> bool:
    """A branch by a uniform predicate or a convergence mask has it behind its name: BRA.U UP0, BRA.DIV."""
    return bool(re.match(r"BRA\.(U|DIV|CONV)|BRA\s+!?U?P\d", instr.text))


def _after(instr: Instruction, state: UnderWay) -> UnderWay:
    if instr.name == "HGMMA":
        open_now = state.uncommitted | _product(instr)
        if "gsb0" not in instr.text:
            return replace(state, uncommitted=open_now)
        groups = (*state.groups, open_now)
        while len(groups) > MOST_GROUPS:
            groups = (groups[0] | groups[1], *groups[2:])
        return UnderWay(groups)
    wait = re.match(r"WARPGROUP\.DEPBAR\.LE gsb0, (0x[0-9a-f]+)", instr.text)
    if wait and not instr.guarded:
        allowed = int(wait[1], 16)
        return replace(state, groups=state.groups[len(state.groups) - allowed :] if allowed else ())
    return state


def _product(instr: Instruction) -> Group:
    """Its sums, 64 x N in fp32 over 128 threads, and a left operand in four registers."""
    width = re.match(r"HGMMA\.64x(\d+)x16", instr.text)
    operands = _operands(instr)
    if width is None or not (result := re.match(r"R(\d+)$", operands[0])):
        raise ValueError(f"{instr.text!r}: only products of 64 x N x 16 into registers are read")
    left = re.match(r"R(\d+)", operands[1])
    return Group(_bits(int(left[1]), 4) if left else 0, _bits(int(result[1]), int(width[1]) // 2))


def _touched(instr: Instruction, state: UnderWay) -> str:
    busy = state.all
    if not busy.sums:
        return ""
    if instr.name == "HGMMA":  # after those under way; but what it takes from registers, it may take before they end
        late = _product(instr).operands & busy.sums
        return f"takes {_names(late)} as an operand, sums of a product under way" if late else ""
    written, read = _registers(instr)
    if late := written & busy.operands:
        return f"writes {_names(late)}, an operand of a product under way"
    if late := written & busy.sums:
        return f"writes {_names(late)}, sums of a product under way"
    if late := read & busy.sums:
        return f"reads {_names(late)}, sums of a product under way"
    return ""


def _registers(instr: Instruction) -> tuple[int, int]:
    """Bits of the registers that an instruction writes, and of those that it reads."""
    operands = _operands(instr)
    sets_predicates = "SETP" in instr.name or instr.name == "PLOP3"
    at = 0
    while at < len(operands) and re.match(r"U?P[T\d]", operands[at]):
        at += 1
    width = _width(instr)
    is_store = instr.name.startswith(("ST", "RED"))
    written = read = 0
    for i, operand in enumerate(operands):
        result = re.fullmatch(r"R(\d+)(\.reuse)?", operand)
        if result and i == at and not (sets_predicates or is_store or instr.name in NO_RESULT):
            written |= _bits(int(result[1]), width)
            continue
        for number, pair in re.findall(r"\bR(\d+)(\.64)?", operand):
            wide = "[" not in operand and (is_store or DOUBLES.match(instr.op))
            read |= _bits(int(number), 2 if pair else width if wide else 1)
    return written, read


def _width(instr: Instruction) -> int:
    """Registers of a thread that a result, or what is stored, takes."""
    op = instr.op
    if matrices := re.search(r"\.M[TU]?88\.(?:.*\.)?(\d)$|^(?:LDSM|STSM).*\.(\d)\b", op):
        return int(matrices[1] or matrices[2])
    if instr.name.startswith(("LD", "ST", "ATOM", "RED")):
        size = re.search(r"\.(64|128)\b", op)
        return int(size[1]) // 32 if size else 1
    if "WIDE" in op or DOUBLES.match(op) or (instr.name == "CS2R" and ".32" not in op):
        return 2
    return 1


def _operands(instr: Instruction) -> list[str]:
    _, _, rest = instr.text.partition(" ")
    return [part.strip() for part in re.split(r",(?![^\[]*\])", rest)]


def _bits(first: int, number: int) -> int:
    return ((1 << number) - 1) << first


def _names(bits: int) -> str:
    return ", ".join(f"R{i}" for i in range(bits.bit_length()) if bits >> i & 1)
