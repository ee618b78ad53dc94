"""The replay of machine code: what it depends on, what it may not beat, how near it comes to published kernels."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench import sass_clocks
from bench.sass_clocks import CHIP, Instruction, Loop, Quarter, Ring, Warp

ROOT = Path(__file__).parents[1]


def instruction(text, *, stall=1, write=7, read=7, waits=0):
    return Instruction(0, text, stall, write, read, waits, guarded=False)


def clocks(*texts, num_warps=1, ring=None, chip=CHIP, producer=None):
    loop = Loop(tuple(text if isinstance(text, Instruction) else instruction(text) for text in texts))
    warps = [Warp(loop, 0, group) for group in range(num_warps)]
    if producer:
        warps.append(Warp(Loop(tuple(map(instruction, producer))), 0, -1, is_producer=True))
    return Quarter(warps, ring, chip).run(30)


def test_a_warp_issues_one_instruction_a_clock():
    assert clocks("FADD", "FADD", "FADD", "MOV") == 4
    assert clocks("FADD", "MOV", num_warps=3) == 6
    assert clocks(instruction("MOV", stall=7), "MOV") == 8


def test_pipes_take_their_time():
    assert clocks("MUFU.EX2", "MUFU.EX2") == 16
    assert clocks("MUFU.EX2", num_warps=2) == pytest.approx(16, rel=0.05)
    assert clocks("IADD3", "LOP3", num_warps=2) == pytest.approx(8, rel=0.05)
    assert clocks("MUFU.EX2", "FMUL", "FMUL") == 8  # the others run beside it


def test_a_scoreboard_holds_who_waits_for_it():
    waits = instruction("FMUL", waits=1)
    assert clocks(instruction("MUFU.EX2", write=0), waits) > sass_clocks.LATENCIES["MUFU"]


PRODUCT = "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR12], R24, gsb0"


def test_products_queue_and_are_waited_for():
    alone = clocks(PRODUCT, "WARPGROUP.DEPBAR.LE gsb0, 0x0")
    assert alone > 64 + CHIP.product_latency
    assert clocks(PRODUCT, "WARPGROUP.DEPBAR.LE gsb0, 0x1") < alone  # the one before ran meanwhile
    assert clocks(PRODUCT, "WARPGROUP.DEPBAR.LE gsb0, 0x0", num_warps=4) == pytest.approx(4 * 64, rel=0.02)


FILL = ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1]", "SYNCS.ARRIVE.TRANS64 RZ, [R2]", "UTMALDG.2D [UR8], [UR10]")
USE = (
    "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1]",
    PRODUCT,
    "WARPGROUP.DEPBAR.LE gsb0, 0x0",
    "SYNCS.ARRIVE.TRANS64.A1T0 RZ, [R2]",
)


def ring_clocks(stages, num_bytes, **changes):
    return clocks(
        *USE, num_warps=2, ring=Ring(stages=stages, fill_bytes=num_bytes), producer=FILL, chip=replace(CHIP, **changes)
    )


def test_a_ring_hides_latency_by_its_slots_and_obeys_bandwidth():
    assert ring_clocks(1, 1024) > CHIP.l2_latency
    assert ring_clocks(8, 1024) < ring_clocks(2, 1024) < ring_clocks(1, 1024)
    assert ring_clocks(2, 1024, l2_latency=1400) > 1.5 * ring_clocks(2, 1024)
    assert ring_clocks(8, 32768) == pytest.approx(32768 / CHIP.l2_bytes_a_clock, rel=0.02)


def test_a_replay_that_stands_still_says_so():
    with pytest.raises(RuntimeError, match="stands still"):
        clocks(*USE, num_warps=2, ring=Ring(stages=2, fill_bytes=64), producer=FILL[:1])


def test_groups_take_turns():
    turn = ("SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R3]", "SYNCS.ARRIVE.TRANS64.A1T0 RZ, [R4]")
    code = (USE[0], turn[0], PRODUCT, turn[1], *USE[2:])
    together = clocks(*code, num_warps=2, ring=Ring(stages=8, fill_bytes=64), producer=FILL)
    assert 2 * CHIP.mbarrier_latency < together < 400


@pytest.mark.slow
def test_published_kernels_lie_within_the_spread():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.published_kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT, check=True)
    ratios = [float(line.split("|")[5]) for line in done.stdout.splitlines()[2:]]
    assert len(ratios) >= 3
    calibrated = [ratio / sass_clocks.CALIBRATION for ratio in ratios]
    assert all(1 - sass_clocks.SPREAD < ratio < 1 + sass_clocks.SPREAD for ratio in calibrated), ratios
