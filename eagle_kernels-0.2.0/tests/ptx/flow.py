"""Cuts a kernel into segments, and finds where lanes that part meet again.

A segment is code that runs from its first instruction to its last without a jump, a wait or another warp's help:

    branch   ends with bra, brx or ret
    wait     is one instruction that may block: bar, barrier, mbarrier.try_wait, barrier.cluster.wait
    group    is a run of wgmma instructions, which the four warps of a warp group begin together
    plain    everything else; goes on with the next segment
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .parse import Instr, Kernel, Label, Mem, Operand, Pair, Reg, Vec

EXIT = -1  # the segment after a kernel's last
WAITS = (
    "bar.sync",
    "bar.red",
    "barrier.sync",
    "barrier.red",
    "barrier.cluster.wait",
    "mbarrier.try_wait",
    "mbarrier.test_wait",
    "setmaxnreg",
)
ENDS = ("bra", "brx.idx", "ret", "exit", "trap", "call")


@dataclass
class Segment:
    index: int
    first: int
    last: int  # one past
    kind: str
    target: int = EXIT  # of a branch that is taken
    table: list[int] = field(default_factory=list)
    meets: int = EXIT  # where lanes that part at its end meet again
    writes: int = 0  # registers, as bits
    reads: int = 0
    live_out: int = 0
    products: int = 0  # registers that its wgmma instructions name
    touched: int = 0  # registers of any wgmma of the kernel that its other instructions read or write

    @property
    def next(self) -> int:
        return self.index + 1


def is_wait(instr: Instr) -> bool:
    return instr.op.startswith(WAITS)


def is_end(instr: Instr) -> bool:
    return instr.op.split(".")[0] in ("bra", "brx", "ret", "exit", "trap", "call")


class Registers:
    """Numbers every register of a kernel, so that a set of them is one integer."""

    def __init__(self, kernel: Kernel) -> None:
        self.first: dict[str, int] = {}
        total = 0
        for cls, count in kernel.num_registers.items():
            self.first[cls] = total
            total += count

    def bit(self, reg: Reg) -> int:
        return 1 << (self.first[reg.cls] + reg.index)

    def bits(self, operand: Operand | None) -> int:
        if isinstance(operand, Reg):
            return self.bit(operand)
        if isinstance(operand, Vec):
            items = operand.items
        elif isinstance(operand, Pair):
            items = tuple(x for x in (operand.first, operand.second) if x is not None)
        elif isinstance(operand, Mem):
            items = (operand.base, *operand.coords)
        else:
            return 0
        total = 0
        for item in items:
            total |= self.bits(item)
        return total


NO_RESULT: tuple[str, ...] = (
    "st.",
    "bar",
    "barrier.",
    "fence",
    "membar",
    "cp.",
    "wgmma.",
    "setmaxnreg",
    "red.",
    "mbarrier.init",
    "stmatrix",
)
NO_RESULT += (
    "mbarrier.inval",
    "mbarrier.expect_tx",
    "mbarrier.complete_tx",
    "bra",
    "brx",
    "ret",
    "exit",
    "trap",
    "call",
)
NO_RESULT += ("prefetch", "griddepcontrol", "nanosleep", "tensormap", "discard", "applypriority", "elect", "cp")


def written(instr: Instr, registers: Registers) -> int:
    """Registers that the instruction gives a value; wgmma's come later, and not through this."""
    if instr.op.startswith("elect"):
        return registers.bits(instr.args[0])
    if instr.op.startswith(NO_RESULT) or not instr.args:
        return 0
    return registers.bits(instr.args[0])


def read(instr: Instr, registers: Registers) -> int:
    total = 0
    has_result = written(instr, registers) != 0
    for arg in instr.args[1 if has_result else 0 :]:
        total |= registers.bits(arg)
    if instr.args and has_result and isinstance(instr.args[0], Mem):
        total |= registers.bits(instr.args[0])
    if instr.guard:
        total |= registers.bit(instr.guard[0]) | written(instr, registers)  # the old value stays where it is false
    return total


def product_registers(instr: Instr, registers: Registers) -> int:
    """The registers that a wgmma holds until it is waited for: its results, and A where that is in registers."""
    total = registers.bits(instr.args[0])
    if isinstance(instr.args[1], Vec):
        total |= registers.bits(instr.args[1])
    return total


def segments(kernel: Kernel, registers: Registers) -> list[Segment]:
    """The kernel cut up, with successors, meeting points and what is live at each end."""
    cuts = _cuts(kernel, registers)
    firsts = sorted(cuts)
    found = []
    for i, (first, last) in enumerate(zip(firsts, [*firsts[1:], len(kernel.code)], strict=True)):
        code = kernel.code[first:last]
        if any(instr.op.startswith("wgmma.") for instr in code):
            kind = "group"
        elif is_wait(code[-1]):
            kind = "wait"
        elif is_end(code[-1]):
            kind = "branch"
        else:
            kind = "plain"
        found.append(Segment(i, first, last, kind))
    at = {segment.first: segment.index for segment in found}
    at[len(kernel.code)] = EXIT
    all_products = 0
    for segment in found:
        _effects(segment, kernel, registers)
        all_products |= segment.products
    for segment in found:
        for instr in kernel.code[segment.first : segment.last]:
            if ".mma_async" not in instr.op:
                segment.touched |= (read(instr, registers) | written(instr, registers)) & all_products
        instr = kernel.code[segment.last - 1]
        if segment.kind == "branch" and instr.op.startswith("br"):
            label = instr.args[-1]
            assert isinstance(label, Label)
            if instr.op.startswith("brx"):
                segment.table = [at[kernel.labels[name]] for name in kernel.tables[label.name]]
            else:
                segment.target = at[kernel.labels[label.name]]
    _meeting_points(found, kernel)
    _liveness(found, kernel)
    return found


def _cuts(kernel: Kernel, registers: Registers) -> set[int]:
    targets = set(kernel.labels.values())
    cuts = {0}
    held = 0  # registers of the wgmma in the run that goes on; 0 and not running where there is none
    running = False
    for i, instr in enumerate(kernel.code):
        is_group = instr.op.startswith("wgmma.")
        touched = written(instr, registers) | (0 if is_group else read(instr, registers))
        ends_run = running and not is_group and (touched & held or is_wait(instr) or is_end(instr))
        if i in targets or is_wait(instr) or ends_run or (is_group and not running):
            cuts.add(i)
            held, running = 0, False
        if is_group:
            running = True
            if ".mma_async" in instr.op:
                held |= product_registers(instr, registers)
        if is_wait(instr) or is_end(instr) or instr.op.startswith(("wgmma.commit", "wgmma.wait")):
            cuts.add(i + 1)
            held, running = 0, False
    cuts.discard(len(kernel.code))
    return cuts


def _effects(segment: Segment, kernel: Kernel, registers: Registers) -> None:
    for instr in kernel.code[segment.first : segment.last]:
        reads = read(instr, registers)
        if ".mma_async" in instr.op:
            held = product_registers(instr, registers)
            segment.products |= held
            reads &= ~registers.bits(instr.args[0])
            scale = instr.args[3]
            if not (hasattr(scale, "value") and scale.value == 0):
                reads |= registers.bits(instr.args[0])
        segment.reads |= reads & ~segment.writes
        segment.writes |= written(instr, registers)


def successors(segment: Segment, kernel: Kernel, count: int) -> list[int]:
    following = segment.index + 1 if segment.index + 1 < count else EXIT
    if segment.kind != "branch":
        return [following]
    instr = kernel.code[segment.last - 1]
    if instr.op.startswith("brx"):
        return list(segment.table)
    if instr.op.startswith("bra"):
        return [segment.target] if instr.guard is None else [segment.target, following]
    return [EXIT] if instr.guard is None else [EXIT, following]


def _meeting_points(found: list[Segment], kernel: Kernel) -> None:
    """The nearest segment that every path from here to the end goes through: immediate post-dominators, by the
    simple iteration of Cooper, Harvey and Kennedy on the reversed graph."""
    count = len(found)
    after = [successors(segment, kernel, count) for segment in found]
    before: list[list[int]] = [[] for _ in range(count + 1)]
    for i, following in enumerate(after):
        for j in following:
            before[j].append(i)  # EXIT is the last
    order: list[int] = []
    seen = {EXIT}
    stack: list[tuple[int, int]] = [(EXIT, 0)]
    while stack:  # postorder from the end, backwards along the edges
        node, k = stack.pop()
        if k < len(before[node]):
            stack.append((node, k + 1))
            if (child := before[node][k]) not in seen:
                seen.add(child)
                stack.append((child, 0))
        else:
            order.append(node)
    rank = {node: i for i, node in enumerate(order)}
    dominator: dict[int, int] = {EXIT: EXIT}
    changed = True
    while changed:
        changed = False
        for node in reversed(order):
            if node == EXIT:
                continue
            new: int | None = None
            for other in after[node]:
                if other in dominator:
                    new = other if new is None else _common(new, other, dominator, rank)
            if new is not None and dominator.get(node) != new:
                dominator[node] = new
                changed = True
    for segment in found:
        segment.meets = dominator.get(segment.index, EXIT)


def _common(a: int, b: int, dominator: dict[int, int], rank: dict[int, int]) -> int:
    while a != b:
        while rank[a] < rank[b]:
            a = dominator[a]
        while rank[b] < rank[a]:
            b = dominator[b]
    return a


def _liveness(found: list[Segment], kernel: Kernel) -> None:
    count = len(found)
    live_in = [0] * count
    changed = True
    while changed:
        changed = False
        for segment in reversed(found):
            out = 0
            for j in successors(segment, kernel, count):
                if j != EXIT:
                    out |= live_in[j]
            segment.live_out = out
            new = segment.reads | (out & ~segment.writes)
            if new != live_in[segment.index]:
                live_in[segment.index] = new
                changed = True
