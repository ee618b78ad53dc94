"""Plants faults into a kernel's code, one at a time: does a run notice?

for fault in faults(program):
    broken = planted(program, fault)        # a Program to launch in place of the sound one

wait      a wait removed: mbarrier.try_wait, cp.async.wait_group, wgmma.wait_group, bulk waits
barrier   bar.sync, barrier.sync or barrier.cluster.wait removed
arrive    an arrival or a commit removed
fence     wgmma.fence, fence.proxy.async removed
bytes     expect_tx of an arrival left out
slot      the next slot's mbarrier, or place in shared memory; the phase of the other parity
count     an mbarrier made for one arrival more, or one fewer
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

from .flow import is_end
from .parse import Imm, Instr, Label, Mem, Operand
from .translate import Program

NOTHING = Instr("nop", (), None, "nop")
WAITS = ("cp.async.wait", "cp.async.bulk.wait", "wgmma.wait_group")
BARRIERS = ("bar.sync", "barrier.sync", "barrier.cluster.wait")
ARRIVALS = (
    "mbarrier.arrive",
    "bar.arrive",
    "barrier.cluster.arrive",
    "cp.async.commit",
    "cp.async.bulk.commit",
    "wgmma.commit",
)
FENCES = ("wgmma.fence", "fence.proxy.async")


@dataclass(frozen=True)
class Fault:
    kind: str
    at: int  # the instruction
    what: str
    instr: Instr  # what stands there instead

    def __str__(self) -> str:
        return f"{self.kind}: {self.what} (instruction {self.at})"


def faults(program: Program, slot_bytes: int = 0) -> list[Fault]:
    """Every fault of the list above, but for what stands twice (`_is_doubled`). `slot_bytes`: how far a box's place in
    shared memory is moved; 0: not at all."""
    found: list[Fault] = []
    for at, instr in enumerate(program.kernel.code):
        if not _is_doubled(program, at):
            found += [Fault(kind, at, what, changed) for kind, what, changed in _changes(instr, slot_bytes)]
    return found


def _is_doubled(program: Program, at: int) -> bool:
    """Whether the code around does what this does: a group committed together with the next, before any wait; a wait
    for products right beside one for as many; wgmma.fence twice, and no register used between."""
    code, op = program.kernel.code, program.kernel.code[at].op
    before, after = _straight(program, at, -1), _straight(program, at, 1)
    if op.startswith(("wgmma.commit", "cp.async.commit")):
        kind = op.split(".commit")[0]
        following = next((i for i in after if i.op.startswith((f"{kind}.commit", f"{kind}.wait"))), None)
        return following is not None and ".commit" in following.op
    if op.startswith("wgmma.wait"):
        beside = [next((i for i in way if i.op.startswith("wgmma.")), None) for way in (before, after)]
        return any(i is not None and ".wait" in i.op and _number(i) <= _number(code[at]) for i in beside)
    if op.startswith("wgmma.fence"):
        for instr in before:
            if instr.op.startswith("wgmma.fence"):
                return True
            if not instr.op.startswith("wgmma.") and program.is_product_register(instr):
                return False
    return False


def _straight(program: Program, at: int, step: int) -> list[Instr]:
    """The instructions before or after one, as far as no jump leaves or enters; the nearest first."""
    code = program.kernel.code
    jumps = {label.name for i in code if i.op.startswith("br") for label in i.args if isinstance(label, Label)}
    entries = {place for name, place in program.kernel.labels.items() if name in jumps}
    found: list[Instr] = []
    place = at
    while 0 <= place + step < len(code):
        if (place if step < 0 else place + 1) in entries:
            break
        place += step
        if is_end(code[place]):
            break
        found.append(code[place])
    return found


def _number(instr: Instr) -> int:
    assert isinstance(instr.args[0], Imm)
    return instr.args[0].value


def planted(program: Program, *faults: Fault) -> Program:
    """A copy with the faults in it. What descriptors name (`regions`) is the same and stays shared."""
    broken = copy.copy(program)
    broken.kernel = replace(program.kernel, code=list(program.kernel.code))
    for fault in faults:
        broken.kernel.code[fault.at] = fault.instr
    broken.constants = dict(program.constants)
    broken.translate()
    return broken


def _changes(instr: Instr, slot_bytes: int) -> list[tuple[str, str, Instr]]:
    op, args = instr.op, instr.args
    found: list[tuple[str, str, Instr]] = []

    def change(kind: str, what: str, **fields: object) -> None:
        found.append((kind, what, replace(instr, **fields)))  # type: ignore[arg-type]

    if op.startswith("mbarrier.try_wait"):
        found.append(("wait", op, Instr("mov.pred", (args[0], Imm(-1)), instr.guard, "mov.pred")))
        change("slot", "try_wait of the next mbarrier", args=(args[0], _moved(args[1], 8), *args[2:]))
        flipped = Instr(op.replace("try_wait", "try_wait.flipped"), args, instr.guard, instr.text)
        found.append(("slot", "try_wait of the other parity", flipped))
    elif op.startswith(WAITS):
        found.append(("wait", op, NOTHING))
    elif op.startswith(BARRIERS):
        found.append(("barrier", op, NOTHING))
    elif op.startswith(ARRIVALS):
        found.append(("arrive", op, NOTHING))
        if op.startswith("mbarrier.arrive"):
            change("slot", "arrival at the next mbarrier", args=(args[0], _moved(args[1], 8), *args[2:]))
        if "expect_tx" in op:
            change("bytes", op, op=op.replace(".expect_tx", ""), args=args[:2])
    elif op.startswith("mbarrier.expect_tx"):
        found.append(("bytes", op, NOTHING))
    elif op.startswith(FENCES):
        found.append(("fence", op, NOTHING))
    elif op.startswith("mbarrier.init") and isinstance(args[1], Imm):
        change("count", "one arrival more", args=(args[0], Imm(args[1].value + 1)))
        if args[1].value > 1:
            change("count", "one arrival fewer", args=(args[0], Imm(args[1].value - 1)))
    elif op.startswith("cp.async.bulk.tensor") and "mbarrier" in op:
        change("slot", "box counted by the next mbarrier", args=(*args[:2], _moved(args[2], 8), *args[3:]))
        if slot_bytes:
            change("slot", "box in the next slot", args=(_moved(args[0], slot_bytes), *args[1:]))
    return found


def _moved(operand: Operand, num_bytes: int) -> Mem:
    assert isinstance(operand, Mem)
    return Mem(operand.base, operand.offset + num_bytes, operand.coords)
