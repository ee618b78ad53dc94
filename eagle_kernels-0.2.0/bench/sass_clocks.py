"""How long attention should take on an H100: its machine code replayed clock by clock, before a GPU has run it.

    python -m bench.static_table --out bench/results/static       compiles, and replays each loop of products
    python -m bench.sass_clocks --table bench/results/static      milliseconds of whole calls from those clocks

One quarter of a multiprocessor is replayed: a warp of each warp group of the blocks that are resident, and the producer
warp where there is one. Warps issue in order, one instruction a clock, after the stall counts and scoreboards that
ptxas wrote into the code. Known are

    pipes      FMA, ALU, MUFU, loads and stores, shared memory's 128 bytes a clock, the tensor core's queue
    wgmma      products in turn; WARPGROUP.DEPBAR waits for all but the last groups of them
    copies     LDGSTS and UTMALDG arrive L2's latency after they were issued, or when L2's bandwidth allows
    barriers   BAR.SYNC; mbarriers: a slot that is full, a slot that is empty, the other group's turn

for a loop's shortest way: a block of which no score is masked. Left out: starts and ends of blocks, main memory, the
power limit. CALIBRATION is what published kernels reached of the replay's rate (published_kernels.py); it and CHIP were
fixed before any kernel was tuned by this replay, and change only with new published figures, all at once.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton

from bench.bench_attention import GPU_PATTERNS, VISION, Pattern

NVDISASM = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"


@dataclass(frozen=True, kw_only=True)
class Chip:
    """An H100 SXM, in clocks and bytes. Latencies as microbenchmarks of Hopper report them, rounded."""

    num_sms: int = 132
    clock_hz: float = 1.83e9  # the data sheet's 989 TFLOP/s
    macs_a_clock: int = 2048  # of a multiprocessor, bf16
    l2_latency: int = 700  # a copy from L2 to shared memory, the cache busy
    l2_bytes_a_clock: float = 8.1e12 / 132 / 1.83e9  # a multiprocessor's share of 8.1 TB/s: docs/notes/ptx.md
    shared_bytes_a_clock: int = 128
    barrier_latency: int = 20  # BAR.SYNC, from the last arrival
    mbarrier_latency: int = 40  # from an arrival to the waiting warp's next instruction
    product_latency: int = 60  # from a product's end to who waits for it
    product_issue: int = 10  # from HGMMA to the tensor core


CHIP = Chip()
CALIBRATION = 0.78  # the geometric mean of published / replayed: 0.70, 0.78 and 0.87 for three kernels
STANDSTILL = 20_000  # clocks without an instruction: no wait is that long
SPREAD = 0.12  # they lie within this much of the calibrated replay
PIPES = {  # clocks that a warp's instruction takes of a quarter's pipe
    "fma": (1, "FFMA FMUL FADD"),
    "imad": (2, "IMAD"),
    "alu": (2, "FMNMX F2FP IADD3 LOP3 ISETP FSEL LEA VIADD SEL PRMT SHF FSETP PLOP3 P2R VIADDMNMX IABS VIMNMX SGXT"),
    "mufu": (8, "MUFU"),
    "lsu": (4, "LDS STS LDSM STSM SHFL LDGSTS LDG STG"),
    "uniform": (2, "R2UR S2UR"),
}
PIPE_OF = {name: (pipe, clocks) for pipe, (clocks, names) in PIPES.items() for name in names.split()}
LATENCIES = {"MUFU": 24, "LDS": 32, "LDSM": 32, "SHFL": 26, "LDG": 500}  # until a scoreboard is set; others 20
SHARED_ACCESSES = {"LDS", "STS", "LDSM", "STSM"}


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str  # without the predicate
    stall: int
    write_barrier: int  # scoreboard that its result sets; 7: none
    read_barrier: int  # that its operands set
    waits: int  # scoreboards it waits for, as bits
    guarded: bool

    @property
    def name(self) -> str:
        return self.text.split()[0].split(".")[0]

    @property
    def op(self) -> str:
        return self.text.split()[0]


@dataclass(frozen=True)
class Loop:
    """The instructions of one turn, by the shortest way that leaves no product out."""

    code: tuple[Instruction, ...]

    def count(self, *names: str) -> int:
        return sum(instr.name in names for instr in self.code)

    def count_arrivals(self) -> int:
        return sum(instr.op.startswith("SYNCS.ARRIVE") for instr in self.code)

    @property
    def macs(self) -> int:
        """Of a warp group."""
        return sum(64 * n * 16 for n in map(_columns, self.code) if n)


def _columns(instr: Instruction) -> int:
    found = re.match(r"HGMMA\.64x(\d+)x16", instr.text)
    return int(found[1]) if found else 0


def disassemble(cubin: bytes) -> tuple[list[Instruction], dict[str, int]]:
    """Instructions and labels (to the number of the instruction after them)."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([NVDISASM, "-c", "-hex", file.name], capture_output=True, text=True, check=True).stdout
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    pending: tuple[int, str] | None = None
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif first := re.search(r"/\*([0-9a-f]{4,})\*/\s+(.*?);?\s*/\* 0x[0-9a-f]+ \*/", line):
            pending = int(first[1], 16), first[2].rstrip(" ;")
        elif pending and (second := re.match(r"\s*/\* (0x[0-9a-f]+) \*/", line)):
            high = int(second[1], 16)
            address, raw = pending
            bare = re.sub(r"^@!?U?P[T\d]+\s+", "", raw)
            code.append(
                Instruction(
                    address,
                    bare,
                    stall=high >> 41 & 15,
                    write_barrier=high >> 46 & 7,
                    read_barrier=high >> 49 & 7,
                    waits=high >> 52 & 63,
                    guarded=bare != raw,
                )
            )
            pending = None
    return code, labels


def _target(instr: Instruction, labels: dict[str, int]) -> int | None:
    found = re.search(r"\((\.L_x_\d+)\)", instr.text) if instr.name == "BRA" else None
    return labels.get(found[1]) if found else None


def loops(cubin: bytes) -> list[Loop]:
    """The innermost loops that hold products or boxes of TMA, in the order of the code."""
    code, labels = disassemble(cubin)
    ranges = []
    for at, instr in enumerate(code):
        start = _target(instr, labels)
        if start is not None and start <= at and instr.guarded:  # others come back from a wait that took longer
            held = code[start : at + 1]
            if any(x.name in ("HGMMA", "UTMALDG") for x in held):
                ranges.append((start, at))
    inner = [a for a in ranges if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in ranges)]
    return [Loop(tuple(_shortest(code, labels, start, end))) for start, end in sorted(inner)]


def _shortest(code: list[Instruction], labels: dict[str, int], start: int, end: int) -> list[Instruction]:
    """Past what a forward branch may skip, but for products, barriers and copies."""
    found, at = [], start
    while at <= end:
        found.append(code[at])
        target = _target(code[at], labels)
        if target is not None and at < target <= end:
            skipped = code[at + 1 : target]
            keeps = any(x.name in ("HGMMA", "SYNCS", "UTMALDG", "BAR", "LDGSTS", "WARPGROUP") for x in skipped)
            if not (code[at].guarded and keeps):
                at = target
                continue
        at += 1
    return found


@dataclass
class Warp:
    """One warp of the quarter. `group` shares barriers of a block; `turns`: it takes turns with the other groups."""

    loop: Loop
    block: int
    group: int
    is_producer: bool = False
    at: int = 0
    turn: int = 0  # of its loop
    ready: int = 0
    scoreboards: list[int] = field(default_factory=lambda: [0] * 6)
    products: list[int] = field(default_factory=list)  # ends of the committed groups
    open_products: int = 0
    copies: list[int] = field(default_factory=list)
    open_copies: int = 0
    num_waits: int = 0  # of mbarriers in this turn
    num_arrivals: int = 0
    stopped: bool = False  # at BAR.SYNC
    ends: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Ring:
    """Slots of shared memory that a producer warp, or the block itself `stages` - 1 turns ahead, fills by TMA."""

    stages: int
    fill_bytes: int  # a turn


class Quarter:
    """A quarter of a multiprocessor that runs loops of `warps`."""

    def __init__(self, warps: Sequence[Warp], ring: Ring | None, chip: Chip) -> None:
        self.warps, self.ring, self.chip = list(warps), ring, chip
        self.pipes: dict[str, float] = defaultdict(float)
        self.tensor_free = self.l2_free = self.shared_free = 0.0
        self.full: dict[tuple[int, int], list[float]] = defaultdict(list)  # block, turn -> when its boxes are there
        self.empty: dict[tuple[int, int], list[float]] = defaultdict(list)  # block, turn -> arrivals of its groups
        self.turns: dict[tuple[int, int, int], float] = {}  # block, group, turn -> when the other group let it go
        self.at_barrier: dict[tuple[int, str], list[Warp]] = defaultdict(list)
        self.consumers = [w for w in self.warps if not w.is_producer]
        self.boxes = max(w.loop.count("UTMALDG") for w in self.warps)  # of a block's turn

    def _has_producer(self) -> bool:
        return any(w.is_producer for w in self.warps)

    def run(self, num_turns: int) -> float:
        """Clocks of one turn of all warps, in the long run."""
        clock, issued, last = 0, 0, self.warps[0]
        while min(w.turn for w in self.consumers) < num_turns:
            for warp in sorted(self.warps, key=lambda w: (w.turn, w is not last)):
                if warp.ready <= clock and not warp.stopped and self._issue(warp, clock):
                    last, issued = warp, clock
                    break
            clock += 1
            if clock > issued + STANDSTILL:
                raise RuntimeError("the replay stands still: its warps wait for each other")
        ends = self.consumers[0].ends
        skip = num_turns // 3
        return (ends[-1] - ends[skip]) / (len(ends) - 1 - skip)

    def _issue(self, warp: Warp, clock: int) -> bool:
        instr = warp.loop.code[warp.at]
        if any(instr.waits >> b & 1 and warp.scoreboards[b] > clock for b in range(6)):
            return False
        if not self._may_go(warp, instr, clock):
            return False
        pipe, cost = PIPE_OF.get(instr.name, ("", 1))
        if instr.name.startswith("U") and instr.name != "UTMALDG":
            pipe, cost = "uniform", 2
        if pipe and self.pipes[pipe] > clock:
            return False
        if pipe == "imad" and self.pipes["fma"] > clock:
            return False
        if instr.name in SHARED_ACCESSES:
            self.shared_free = max(self.shared_free, clock) + _access_bytes(instr) * 4 / self.chip.shared_bytes_a_clock
            if self.shared_free > clock + 64:  # its queue is full
                self.shared_free -= _access_bytes(instr) * 4 / self.chip.shared_bytes_a_clock
                return False
        if pipe:
            self.pipes[pipe] = clock + cost
        if pipe == "imad":
            self.pipes["fma"] = clock + 2
        latency = self._take(warp, instr, clock)
        if instr.write_barrier < 6:
            warp.scoreboards[instr.write_barrier] = max(warp.scoreboards[instr.write_barrier], clock + latency)
        if instr.read_barrier < 6:
            warp.scoreboards[instr.read_barrier] = max(warp.scoreboards[instr.read_barrier], clock + min(latency, 20))
        warp.ready = max(warp.ready, clock + max(1, instr.stall))
        warp.at += 1
        if warp.at == len(warp.loop.code):
            warp.at, warp.num_waits, warp.num_arrivals = 0, 0, 0
            warp.turn += 1
            warp.ends.append(clock)
        return True

    def _may_go(self, warp: Warp, instr: Instruction, clock: int) -> bool:
        if instr.op.startswith("WARPGROUP.DEPBAR"):
            return _all_but(warp.products, instr) <= clock
        if instr.op.startswith("DEPBAR.LE") and "SB0" in instr.text:
            return _all_but(warp.copies, instr) <= clock
        if instr.op.startswith("SYNCS.PHASECHK"):
            return self._waited_for(warp) <= clock
        return True

    def _waited_for(self, warp: Warp) -> float:
        """When the mbarrier that the warp waits for next is complete: inf where nobody has arrived yet."""
        assert self.ring is not None
        nth, turn, key = warp.num_waits, warp.turn, (warp.block, warp.turn)
        if warp.is_producer:
            if nth or turn < self.ring.stages:
                return 0
            arrived = self.empty[warp.block, turn - self.ring.stages]
            num_groups = len({w.group for w in self.consumers if w.block == warp.block})
            return max(arrived) + self.chip.mbarrier_latency if len(arrived) == num_groups else float("inf")
        takes_turns = self._has_producer() and warp.loop.count_arrivals() > 1
        if nth == 0 or not self._has_producer():
            ahead = 0 if self._has_producer() else self.ring.stages - 1
            if turn < ahead:
                return 0
            landed = self.full[warp.block, turn - ahead]
            wanted = max(self.boxes, 1) if self._has_producer() else min(nth + 1, len(landed) or 1)
            return landed[wanted - 1] + self.chip.mbarrier_latency if len(landed) >= wanted else float("inf")
        if nth == 1 and takes_turns:
            return self.turns.get((*key, warp.group), 0 if (turn == 0 and warp.group == 0) else float("inf"))
        return 0  # a barrier that is known to be complete

    def _take(self, warp: Warp, instr: Instruction, clock: int) -> int:
        """What an instruction does beside taking its pipe; returns its latency."""
        chip, name = self.chip, instr.name
        if name == "HGMMA":
            n, reads_both = _columns(instr), bool(re.match(r"HGMMA\S*\s+R\d+, gdesc", instr.text))
            clocks = max(n / 2, 16 + n / 4) if reads_both else max(n / 2, 16)
            self.tensor_free = max(self.tensor_free, clock + chip.product_issue) + clocks
            warp.open_products = max(warp.open_products, int(self.tensor_free) + chip.product_latency)
            if "gsb0" in instr.text:
                warp.products = [*warp.products[-7:], warp.open_products]
                warp.open_products = 0
        elif name == "LDGSTS":
            warp.open_copies = max(warp.open_copies, int(self._copy(clock, 512 * 4)))
        elif name == "LDGDEPBAR":
            warp.copies = [*warp.copies[-7:], warp.open_copies]
            warp.open_copies = 0
        elif name == "UTMALDG":
            assert self.ring is not None
            if not warp.is_producer and warp.group:
                return 20  # one group of the block issues them
            landed = self._copy(clock, self.ring.fill_bytes / max(self.boxes, 1))
            self.full[warp.block, warp.turn].append(landed)
        elif name == "SYNCS":
            return self._synchronise(warp, instr, clock)
        elif name == "BAR" and "SYNC" in instr.op:
            self._barrier(warp, instr, clock)
        return LATENCIES.get(name, 20)

    def _copy(self, clock: int, num_bytes: float) -> float:
        """When a copy from L2 is there."""
        self.l2_free = max(self.l2_free, clock) + num_bytes / self.chip.l2_bytes_a_clock
        return max(self.l2_free, clock) + self.chip.l2_latency

    def _synchronise(self, warp: Warp, instr: Instruction, clock: int) -> int:
        if "PHASECHK" in instr.op:
            warp.num_waits += 1
        elif "ARRIVE" in instr.op and not warp.is_producer and self._has_producer():
            warp.num_arrivals += 1
            if warp.num_arrivals == warp.loop.count_arrivals():  # the last one frees the slot
                self.empty[warp.block, warp.turn].append(clock)
            else:  # the other group's turn
                other = 1 - warp.group
                turn = warp.turn + (other == 0)
                self.turns[warp.block, turn, other] = clock + self.chip.mbarrier_latency
        return 20

    def _barrier(self, warp: Warp, instr: Instruction, clock: int) -> None:
        if "0x80" in instr.text:  # of the warp's own group, which goes alike on all quarters
            warp.ready = max(warp.ready, clock + self.chip.barrier_latency)
            return
        number = instr.text.split()[1]
        waiting = self.at_barrier[warp.block, number]
        waiting.append(warp)
        warp.stopped = True
        if len(waiting) == sum(w.block == warp.block and not w.is_producer for w in self.warps):
            for other in waiting:
                other.stopped = False
                other.ready = max(other.ready, clock + self.chip.barrier_latency)
            waiting.clear()


def _access_bytes(instr: Instruction) -> int:
    """Of a warp."""
    width = re.search(r"\.(64|128)\b", instr.op)
    if "LDSM" in instr.op or "STSM" in instr.op:
        matrices = re.search(r"\.(\d)$|\.M88\.(\d)", instr.op)
        return 128 * int((matrices and (matrices[1] or matrices[2])) or 1)
    return 32 * (int(width[1]) // 8 if width else 4)


def _all_but(ends: list[int], instr: Instruction) -> int:
    """When all groups but the last ones, as many as the instruction allows, have ended."""
    found = re.search(r", 0x([0-9a-f]+)", instr.text)
    allowed = int(found[1], 16) if found else 0
    done = ends[: len(ends) - allowed] if allowed else ends
    return max(done, default=0)


def loop_clocks(
    cubin: bytes,
    *,
    num_warps: int,
    resident_blocks: int,
    ring: Ring | None = None,
    chip: Chip = CHIP,
    num_turns: int = 12,
) -> dict[str, float]:
    """Clocks of a turn of a kernel's loop of products, for each block; what its products alone would take; and the
    multiply-adds of a block's turn."""
    found = loops(cubin)
    consumers = [loop for loop in found if loop.macs]
    producers = [loop for loop in found if not loop.macs]
    if not consumers:
        raise ValueError("the kernel has no loop of wgmma; the replay is for those.")
    if producers and ring is None:
        raise ValueError("the kernel has a producer warp; the replay needs its ring.")
    most = max(loop.macs for loop in consumers)
    consumers = [loop for loop in consumers if loop.macs == most]
    if producers:
        warps = [Warp(loop, 0, group) for group, loop in enumerate(consumers)]
        warps.append(Warp(max(producers, key=lambda p: p.count("UTMALDG")), 0, -1, is_producer=True))
        num_groups = len(consumers)
    else:
        body = min(consumers, key=lambda loop: len(loop.code))
        num_groups = num_warps // 4
        warps = [Warp(body, block, group) for block in range(resident_blocks) for group in range(num_groups)]
    clocks = Quarter(warps, ring, chip).run(num_turns) / (1 if producers else resident_blocks)
    macs = most * num_groups
    return {"clocks": clocks, "product_clocks": macs / chip.macs_a_clock, "macs": macs}


# Whole calls, from the table of compiled kernels

STEPS = {"forward": ("fwd",), "backward": ("dq", "dkdv")}


def num_block_pairs(pattern: Pattern, block_m: int, block_n: int) -> int:
    """Pairs of blocks of one query head that the kernels visit: those with a pair of tokens that the mask leaves."""
    total = 0
    for length in pattern.lengths:
        for first in range(0, length, block_m):
            seen = min(length, first + block_m) if pattern.shape.causal else length
            total += -(-seen // block_n)
    return total


def predict(rows: dict[str, dict[str, Any]], pattern: Pattern, direction: str) -> dict[str, Any]:
    """Milliseconds and TFLOP/s, fast and slow: SPREAD to either side. FLOPs as bench_attention counts them."""
    shape = pattern.shape
    seconds = 0.0
    for step in STEPS[direction]:
        row = rows[f"attention_sm90_{step}_{'vision' if shape == VISION else 'llm'}"]
        block_m, block_n = row["block"]
        pairs = num_block_pairs(pattern, block_m, block_n) * shape.num_heads
        seconds += pairs * row["clocks"] / CHIP.num_sms / CHIP.clock_hz / CALIBRATION
    flops = (4 if direction == "forward" else 10) * pattern.num_pairs * shape.num_heads * shape.head_width
    times = {"fast": seconds / (1 + SPREAD), "slow": seconds / (1 - SPREAD)}
    return {
        "pattern": pattern.name,
        "direction": direction,
        **{f"milliseconds_{end}": 1e3 * time for end, time in times.items()},
        **{f"tflops_{end}": flops / time / 1e12 for end, time in times.items()},
    }


def markdown(triton_version: str, rows: dict[str, dict[str, Any]], predictions: list[dict[str, Any]]) -> str:
    lines = [
        f"Replayed for an H100 SXM, not measured, from the code of Triton {triton_version}: `python -m",
        f"bench.sass_clocks`, whose head says how. Calls: the clocks of their pairs of blocks, by {CALIBRATION:.2f},",
        f"and {SPREAD:.0%} to either side.",
        "",
        "| kernel, sm_90 | block, queries x keys | clocks a pair | products alone | of their rate |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "clocks" in row:
            block = "{}x{}".format(*row["block"])
            share = row["product_clocks"] / row["clocks"]
            lines.append(f"| {name} | {block} | {row['clocks']:.0f} | {row['product_clocks']:.0f} | {share:.0%} |")
    lines += ["", "| pattern | direction | ms | TFLOP/s |", "|---|---|---|---|"]
    for p in predictions:
        time = f"{p['milliseconds_fast']:.2f} to {p['milliseconds_slow']:.2f}"
        lines.append(
            f"| {p['pattern']} | {p['direction']} | {time} | {p['tflops_slow']:.0f} to {p['tflops_fast']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="folder of static_table.json; takes the results")
    folder = parser.parse_args().table
    table = json.loads((folder / "static_table.json").read_text())
    rows = {row["name"]: row for row in table["rows"] if row["sm"] == 90}
    predictions = [predict(rows, pattern, direction) for direction in STEPS for pattern in GPU_PATTERNS]
    result = {"chip": "H100 SXM", "measured": False, "triton": table["triton"], "predictions": predictions}
    (folder / "attention_h100_predicted.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "attention_h100_predicted.md").write_text(markdown(table["triton"], rows, predictions))


if __name__ == "__main__":
    main()
