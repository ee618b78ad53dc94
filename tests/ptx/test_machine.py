"""The machine itself, on a few lines of PTX at a time: lanes that part, barriers, copies, products, what it refuses."""

import contextlib
import gc
import re
import weakref

import numpy as np
import pytest

from .barriers import BarrierError
from .launch import as_bf16, launch
from .machine import Deadlock, Machine, Schedule, Trap
from .memory import BASE, AccessError, Memory, TensorMap
from .numeric import from_bf16
from .order import RaceError
from .products import Product, ProductError
from .shared import SharedMemory
from .translate import Program

REGISTERS = ".reg .pred %p<40>; .reg .b16 %rs<20>; .reg .b32 %r<200>; .reg .b64 %rd<40>;"
SCHEDULES = [
    *(Schedule(order="together", landing=landing) for landing in ("early", "late")),
    *(Schedule(seed, landing=landing) for seed, landing in enumerate(("random", "early", "late", "random"))),
    Schedule(1, order="unfair"),
]


SHORT = {  # how the tests write long instructions
    r"WAIT (\[.*?\]), (.*?);": r"{ .reg .pred complete; waitLoop: "
    r"mbarrier.try_wait.parity.shared::cta.b64 complete, \1, \2; @!complete bra.uni waitLoop; }",
    r"LOAD\.(\d) ": r"cp.async.bulk.tensor.\1d.shared::cta.global.mbarrier::complete_tx::bytes ",
    r"LOADS ": r"cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster ",
    r"EXPECT ": r"mbarrier.arrive.expect_tx.shared::cta.b64 _, ",
    r"INIT ": r"mbarrier.init.shared::cta.b64 ",
    r"ARRIVE ": r"mbarrier.arrive.shared::cta.b64 _, ",
}


def written_out(text):
    for short, long in SHORT.items():
        text = re.sub(short, long, text)
    return text


def pointers(*indices):
    return "".join(f"ld.param.u64 %rd{i}, [k_param_{i}]; " for i in indices)


def run(
    body,
    inputs=(),
    *,
    out=(128, np.uint32),
    threads=128,
    shared=0,
    schedule=None,
    grid=(1,),
    cluster=1,
    maps=0,
    head="",
):
    """%rd0 points to the result; %rd1.. to the inputs. TensorMaps come as structures, their addresses in %rd1.. too."""
    memory = Memory()
    result = memory.place(np.full(out[0], 0xAB, out[1]), "out", writable=True)
    arguments, kinds, load = [result], ["u64"], pointers(0)
    for i, value in enumerate(inputs, 1):
        if callable(value):
            arguments.append(value(memory))
            kinds.append("align 64 .b8 MAP")
            load += f"mov.b64 %rd{i}, k_param_{i}; "
        else:
            arguments.append(memory.place(value, f"input {i}"))
            kinds.append("u64")
            load += pointers(i)
    listed = ", ".join(
        f".param .align 64 .b8 k_param_{i}[128]" if "MAP" in kind else f".param .{kind} k_param_{i}"
        for i, kind in enumerate(kinds)
    )
    variables = f".shared .align 1024 .b8 memory[{shared}];" if shared else ""
    start = "mov.u32 %r0, %tid.x; mul.wide.u32 %rd30, %r0, 4; add.s64 %rd31, %rd0, %rd30;"
    code = written_out(f"{REGISTERS} {variables} {load} {start} {body}")
    text = f".visible .entry k({listed}) {head} {{ {code} }}"
    launch(
        Program(text),
        memory,
        arguments,
        grid=grid,
        num_threads=threads,
        cluster=cluster,
        schedule=schedule or Schedule(),
    )
    return result.read()


LANES = np.arange(128, dtype=np.uint32)
FLOATS = LANES.astype(np.float32)
STORE = "st.global.b32 [%rd31], %r1; ret;"


@pytest.mark.parametrize(
    ("code", "want"),
    [
        ("add.s32 %r1, %r0, -5;", LANES - np.uint32(5)),
        ("mul.hi.u32 %r1, %r0, -1840700269;", (LANES.astype(np.uint64) * (2**32 - 1840700269)) >> np.uint64(32)),
        ("neg.s32 %r2, %r0; div.s32 %r1, %r2, 7;", -(LANES.astype(int) // 7)),
        ("neg.s32 %r2, %r0; rem.s32 %r1, %r2, 7;", -(LANES.astype(int) % 7)),
        ("neg.s32 %r2, %r0; shr.s32 %r1, %r2, 2;", (-LANES.astype(int)) >> 2),
        ("shl.b32 %r1, 1, %r0;", np.where(LANES < 32, 1 << (LANES & 31), 0)),
        ("bfe.u32 %r1, %r0, 2, 3;", LANES >> 2 & 7),
        ("bfe.s32 %r1, %r0, 2, 3;", (LANES.astype(int) >> 2 & 7) - 8 * (LANES.astype(int) >> 4 & 1)),
        ("prmt.b32 %r1, %r0, 305419896, 29696;", 0x34000000 | LANES << 16 & 0 | 0),
        ("shf.l.wrap.b32 %r1, %r0, %r0, 4;", LANES << 4 | LANES >> 28),
        ("lop3.b32 %r1, %r0, 15, 3, 120;", LANES ^ (15 & 3)),
        ("clz.b32 %r1, %r0;", [32 - int(x).bit_length() for x in LANES]),
        ("popc.b32 %r1, %r0;", [int(x).bit_count() for x in LANES]),
        ("mad.lo.cc.u32 %r2, %r0, -1, 1; madc.hi.u32 %r1, %r0, -1, 0;", np.where(LANES < 2, LANES, LANES - 1)),
        ("setp.gt.u32 %p1, %r0, 9; @%p1 mov.b32 %r1, 1; @!%p1 mov.b32 %r1, 2;", np.where(LANES > 9, 1, 2)),
        ("cvt.rn.f32.u32 %r2, %r0; sqrt.rn.f32 %r1, %r2;", np.sqrt(FLOATS).view(np.uint32)),
        ("cvt.rn.f32.u32 %r2, %r0; fma.rn.f32 %r1, %r2, %r2, 0f3F800000;", (FLOATS**2 + 1).view(np.uint32)),
        ("cvt.rn.f32.u32 %r2, %r0; cvt.rn.bf16x2.f32 %r1, %r2, %r2;", as_bf16(LANES) * np.uint32(65537)),
        ("cvt.s8.s32 %rs1, %r0; cvt.s32.s8 %r1, %rs1;", LANES.astype(np.int8).astype(np.int32)),
        ("shfl.sync.bfly.b32 %r1, %r0, 3, 31, -1;", LANES ^ 3),
        ("shfl.sync.up.b32 %r1|%p1, %r0, 1, 0, -1;", np.where(LANES % 32, LANES - 1, LANES)),
        ("shfl.sync.down.b32 %r1, %r0, 2, 0x181f, -1;", np.where(LANES % 8 < 6, LANES + 2, LANES)),
        ("and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 1; vote.sync.ballot.b32 %r1, %p1, -1;", np.full(128, 0xAAAAAAAA)),
        ("redux.sync.max.u32 %r1, %r0, -1;", LANES | 31),
        ("shr.u32 %r2, %r0, 3; match.any.sync.b32 %r1, %r2, -1;", [0xFF << (x // 8 * 8 % 32) for x in range(128)]),
        ("elect.sync %r2|%p1, -1; selp.b32 %r1, 7, 8, %p1;", np.where(LANES % 32 == 0, 7, 8)),
        ("mov.b64 %rd5, {%r0, %r0}; mov.b64 {%r2, %r1}, %rd5;", LANES),
    ],
)  # fmt: skip
def test_arithmetic(code, want):
    if code.startswith("prmt"):
        want = [0x00007400 for _ in LANES]
        want = [_bytes(int(x), 305419896, 29696) for x in LANES]
    got = run(code + STORE, schedule=Schedule(order="together"))
    assert np.array_equal(got, np.asarray(want).astype(np.int64).astype(np.uint32))


def _bytes(a, b, selector):
    both = a | b << 32
    return sum((both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i for i in range(4))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lanes_part_and_meet_again(schedule):
    """A loop that each lane leaves after its own number of rounds, with a branch inside it."""
    body = """
        mov.b32 %r1, 0; mov.b32 %r2, 0; and.b32 %r3, %r0, 15;
        LOOP: setp.ge.u32 %p1, %r2, %r3; @%p1 bra DONE;
        and.b32 %r4, %r2, 1; setp.eq.u32 %p2, %r4, 0; @%p2 bra EVEN;
        add.s32 %r1, %r1, 100; bra.uni NEXT;
        EVEN: add.s32 %r1, %r1, 1;
        NEXT: add.s32 %r2, %r2, 1; bra.uni LOOP;
        DONE: shfl.sync.idx.b32 %r5, %r1, 15, 31, -1; add.s32 %r1, %r1, %r5;
    """
    rounds = LANES % 16
    alone = rounds // 2 * 100 + (rounds + 1) // 2
    assert np.array_equal(run(body + STORE, schedule=schedule), alone + 7 * 100 + 8)


def test_some_lanes_leave_early():
    got = run("setp.gt.u32 %p1, %r0, 40; @%p1 ret; mov.b32 %r1, 5;" + STORE)
    assert np.array_equal(got, np.where(LANES > 40, 0xAB, 5))


EXCHANGE = """
    mov.b32 %r9, memory; shl.b32 %r2, %r0, 2; add.s32 %r3, %r9, %r2; st.shared.b32 [%r3], %r0; {barrier}
    sub.s32 %r4, 127, %r0; shl.b32 %r4, %r4, 2; add.s32 %r4, %r9, %r4; ld.shared.b32 %r1, [%r4];
"""


@pytest.mark.parametrize("barrier", ["bar.sync 0;", "bar.sync 3, 128;", "barrier.sync 1;"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_barrier_orders_shared_memory(schedule, barrier):
    got = run(EXCHANGE.format(barrier=barrier) + STORE, shared=512, schedule=schedule)
    assert np.array_equal(got, 127 - LANES)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_missing_barrier_is_a_race_under_every_schedule(schedule):
    with pytest.raises(RaceError, match="needs a wait, an arrival or a barrier"):
        run(EXCHANGE.format(barrier="") + STORE, shared=512, schedule=schedule)


def test_barriers_of_other_counts():
    with pytest.raises(Deadlock, match="barrier 0 of 128 threads"):
        run("setp.lt.u32 %p1, %r0, 32; @%p1 ret; bar.sync 0, 128; ret;")
    with pytest.raises(BarrierError, match="64 threads here, 128 where others wait"):
        run(
            "setp.lt.u32 %p1, %r0, 32; @%p1 bra A; bar.sync 0, 128; ret; A: bar.sync 0, 64; ret;",
            schedule=Schedule(order="together"),
        )
    got = run(
        "setp.lt.u32 %p1, %r0, 64; @%p1 bra A; bar.arrive 2, 128; bra.uni B; A: bar.sync 2, 128; B: mov.b32 %r1, 1;"
        + STORE
    )
    assert (got == 1).all()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("ld.global.b32 %r1, [%rd31+512];", "4 bytes at byte 512 of out, which has 512"),
        ("st.global.b32 [%rd1], %r0;", "may not be written"),
        ("ld.global.b32 %r1, [%rd31+2];", "not a multiple of the access's 4 bytes"),
        ("ld.shared.b32 %r1, [memory+512];", "4 bytes at 1536 of shared memory, which has 1536"),
        ("ld.shared.v2.b32 {%r1, %r2}, [memory+4];", "not a multiple of the access's 8 bytes"),
        ("cp.async.cg.shared.global [memory], [%rd1+8], 16;", "8|16"),
    ],
)
def test_accesses_are_checked(code, message):
    with pytest.raises(AccessError, match=message):
        run(code + "ret;", [np.zeros(4, np.uint32)], shared=512, threads=32, out=(128, np.uint32))


def test_a_trap_is_an_error():
    with pytest.raises(Trap):
        run("setp.eq.u32 %p1, %r0, 77; @%p1 bra BAD; ret; BAD: trap;")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_atomics_count_every_lane(schedule):
    got = run("atom.global.add.u32 %r2, [%rd0], 1; ret;", out=(1, np.uint32), schedule=schedule)
    assert got[0] == 0xAB + 128


COPY = """
    shl.b32 %r2, %r0, 2; mov.b32 %r9, memory; add.s32 %r3, %r9, %r2; add.s64 %rd5, %rd1, %rd30;
    cp.async.ca.shared.global [%r3], [%rd5], 4; cp.async.commit_group; {wait}
    bar.sync 0; xor.b32 %r4, %r2, 256; add.s32 %r4, %r9, %r4; ld.shared.b32 %r1, [%r4];
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_cp_async(schedule):
    values = LANES * 3
    got = run(COPY.format(wait="cp.async.wait_group 0;") + STORE, [values], shared=512, schedule=schedule)
    assert np.array_equal(got, values[LANES ^ 64])
    with pytest.raises(RaceError):
        run(COPY.format(wait="") + STORE, [values], shared=512, schedule=schedule)


# A producer warp loads boxes into two slots; three warps read them and hand the slots back.
RING = """
    mov.b32 %r9, memory; shr.u32 %r5, %r0, 5; and.b32 %r6, %r0, 31; setp.ne.u32 %p9, %r0, 0; @%p9 bra MADE;
    INIT [%r9+1024], 1; INIT [%r9+1032], 1;
    INIT [%r9+1040], 3; INIT [%r9+1048], 3;
    fence.proxy.async.shared::cta;
    MADE: bar.sync 0;
    mov.b32 %r10, 0; mov.b32 %r1, 0; setp.eq.u32 %p1, %r6, 0; setp.eq.u32 %p2, %r5, 0;
    LOOP: and.b32 %r11, %r10, 1; shr.u32 %r12, %r10, 1; and.b32 %r12, %r12, 1; xor.b32 %r13, %r12, 1;
    shl.b32 %r14, %r11, 3; add.s32 %r15, %r9, %r14; shl.b32 %r16, %r11, 9; add.s32 %r17, %r9, %r16;
    @%p2 bra PRODUCE;
    WAIT [%r15+1024], %r12;
    shl.b32 %r18, %r6, 2; add.s32 %r18, %r17, %r18; ld.shared.b32 %r19, [%r18]; ld.shared.b32 %r20, [%r18+384];
    add.s32 %r1, %r1, %r19; mad.lo.s32 %r1, %r20, 1000, %r1;
    @%p1 ARRIVE [%r15+1040];
    bra.uni NEXT;
    PRODUCE:
    WAIT [%r15+1040], %r13;
    @%p1 EXPECT [%r15+1024], 512;
    shl.b32 %r21, %r10, 2;
    @%p1 LOAD.2 [%r17], [%rd1, {0, %r21}], [%r15+1024];
    NEXT: add.s32 %r10, %r10, 1; setp.lt.u32 %p3, %r10, 5; @%p3 bra LOOP;
"""
ROWS = np.arange(18 * 32, dtype=np.uint32).reshape(18, 32)


def boxes(memory):
    return TensorMap.of(memory.place(ROWS, "rows"), (4, 32))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_ring_of_boxes(schedule):
    """Five boxes through two slots; the last two rows of the last one lie outside and come as zeros."""
    got = run(RING + STORE, [boxes], shared=1088, schedule=schedule)
    padded = np.vstack([ROWS, np.zeros((2, 32), np.uint32)]).reshape(5, 4, 32)
    assert np.array_equal(got[32:], np.tile(padded[:, 0].sum(0) + 1000 * padded[:, 3].sum(0), 3))


@pytest.mark.parametrize(
    "fault",
    [
        lambda text: text.replace("@%p1 ARRIVE [%r15+1040];", ""),  # a slot is never free
        lambda text: text.replace(", 512;", ", 256;"),  # bytes
        lambda text: text.replace("[%r9+1040], 3", "[%r9+1040], 2"),  # freed too soon
        lambda text: text.replace("fence.proxy.async.shared::cta;", ""),
        lambda text: text.replace("MADE: bar.sync 0;", "MADE:"),
        lambda text: re.sub(r"(PRODUCE:\s*)WAIT .*?;", r"\1", text),  # overwrites what is read
        lambda text: text.replace("WAIT [%r15+1024], %r12", "WAIT [%r15+1024], %r13"),  # the other phase
    ],
)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_faulty_ring_is_noticed_under_every_schedule(schedule, fault):
    with pytest.raises((RaceError, Deadlock, BarrierError)):
        run(fault(RING) + STORE, [boxes], shared=1088, schedule=schedule)


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("schedule", SCHEDULES[:3])
def test_boxes_of_every_rank(rank, schedule):
    """From a corner outside, so that zeros come on both sides of every dimension."""
    shape, box, start = (3, 5, 4, 6, 8)[-rank:], (2, 2, 2, 2, 8)[-rank:], (-1, 4, 3, -2, -4)[-rank:]
    values = np.arange(1, 1 + np.prod(shape), dtype=np.uint32).reshape(shape)
    coords = ", ".join(str(c) for c in reversed(start))
    num_bytes = 4 * int(np.prod(box))
    body = f"""
        setp.ne.u32 %p1, %r0, 0; @%p1 bra READ;
        INIT [memory+2048], 1; fence.proxy.async.shared::cta;
        EXPECT [memory+2048], {num_bytes};
        LOAD.{rank} [memory], [%rd1, {{{coords}}}], [memory+2048];
        READ: bar.sync 0;
        WAIT [memory+2048], 0;
        shl.b32 %r2, %r0, 2; mov.b32 %r3, memory; add.s32 %r3, %r3, %r2; ld.shared.b32 %r1, [%r3];
    """
    got = run(body + STORE, [lambda m: TensorMap.of(m.place(values), box)], shared=2056, schedule=schedule)
    padded = np.pad(values, [(s, s + 8) for s in (8,) * rank])
    corner = tuple(slice(8 + s, 8 + s + b) for s, b in zip(start, box, strict=True))
    assert np.array_equal(got[: np.prod(box)], padded[corner].reshape(-1))


def test_a_box_whose_address_wraps_around():
    """As Triton's ragged descriptors: two outer dimensions that step by 2**34 elements less a row, and by a row; the
    third ends where the document does, so that its last rows come as zeros."""
    values = np.arange(40 * 8, dtype=np.uint32).reshape(40, 8)
    start, length, row = 5, 10, 8

    def ragged(memory):
        tensor = memory.place(values)
        step = 8 * 4
        sizes = (8, 2**30, 0x7FFF0000, 0x7FFF0000)
        return TensorMap(tensor.address, 4, sizes, (step, step, 2**36 - step), (8, 4, 1, 1))

    coords = f"0, {2**30 - length + row}, {start + length}, {2**30}"
    body = f"""
        setp.ne.u32 %p1, %r0, 0; @%p1 bra READ;
        INIT [memory+512], 1; fence.proxy.async.shared::cta;
        EXPECT [memory+512], 128;
        LOAD.4 [memory], [%rd1, {{{coords}}}], [memory+512];
        READ: bar.sync 0;
        WAIT [memory+512], 0;
        shl.b32 %r2, %r0, 2; mov.b32 %r3, memory; add.s32 %r3, %r3, %r2; ld.shared.b32 %r1, [%r3];
    """
    got = run(body + STORE, [ragged], shared=520, threads=32, out=(32, np.uint32)).reshape(4, 8)
    assert np.array_equal(got, np.vstack([values[start + row : start + length], np.zeros((2, 8))]))


CLUSTER = """
    mov.b32 %r9, memory; mov.u32 %r8, %cluster_ctarank; xor.b32 %r7, %r8, 1; setp.ne.u32 %p1, %r0, 0; @%p1 bra MADE;
    INIT [%r9+1024], 2; INIT [%r9+1032], 1;
    fence.mbarrier_init.release.cluster; fence.proxy.async.shared::cta;
    MADE: barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    @%p1 bra READ;
    EXPECT [%r9+1032], 1024;
    mapa.shared::cluster.u32 %r5, %r9, %r7;
    mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r5+1024];
    ARRIVE [%r9+1024];
    WAIT [%r9+1024], 0;
    mul.lo.s32 %r6, %r8, 512; add.s32 %r6, %r9, %r6; mul.lo.s32 %r4, %r8, 4;
    LOADS [%r6], [%rd1, {0, %r4}], [%r9+1032], 3;
    READ:
    WAIT [%r9+1032], 0;
    shl.b32 %r2, %r0, 3; add.s32 %r3, %r9, %r2; ld.shared.v2.b32 {%r1, %r10}, [%r3]; add.s32 %r1, %r1, %r10;
    mov.u32 %r11, %ctaid.x; shl.b32 %r11, %r11, 9; cvt.u64.u32 %rd6, %r11; add.s64 %rd31, %rd31, %rd6;
    st.global.b32 [%rd31], %r1; barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; ret;
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_cluster_shares_its_boxes(schedule):
    """Two blocks load half each into both; each says to the other, by an mbarrier of the other's, that it is ready."""
    got = run(CLUSTER, [boxes], shared=1088, out=(256, np.uint32), grid=(2,), cluster=2, schedule=schedule)
    assert np.array_equal(got, np.tile(ROWS[:8].reshape(-1, 2).sum(1), 2))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_cluster_that_does_not_wait_for_the_other(schedule):
    for fault in (
        CLUSTER.replace(
            "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n    @%p1", "bar.sync 0;\n    @%p1"
        ),
        CLUSTER.replace("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r5+1024];", ""),
        CLUSTER.replace("[%r9+1032], 1024;", "[%r9+1032], 512;"),
    ):
        with pytest.raises((RaceError, BarrierError, Deadlock)):
            run(fault, [boxes], shared=1088, out=(256, np.uint32), grid=(2,), cluster=2, schedule=schedule)


def product(
    n,
    wait="wgmma.wait_group.sync.aligned 0;",
    fence="wgmma.fence.sync.aligned;",
    landed="",
    proxy="fence.proxy.async.shared::cta;",
):
    """D = A B^T of A (64, 16) and B (n, 16), which a map with a swizzle of 32 bytes brings to shared memory."""
    registers = ", ".join(f"%r{100 + i}" for i in range(n // 2))
    store = "".join(f"st.global.b32 [%rd7+{4 * i}], %r{100 + i};" for i in range(n // 2))
    return f"""
        mov.b32 %r9, memory; setp.ne.u32 %p1, %r0, 0; @%p1 bra MADE;
        INIT [%r9+8192], 1; {proxy}
        EXPECT [%r9+8192], {32 * (64 + n)};
        LOAD.2 [%r9], [%rd1, {{0, 0}}], [%r9+8192];
        LOAD.2 [%r9+4096], [%rd2, {{0, 0}}], [%r9+8192];
        MADE: bar.sync 0;
        WAIT [%r9+8192], 0;
        bfe.u32 %r2, %r9, 4, 14; cvt.u64.u32 %rd3, %r2; or.b64 %rd3, %rd3, -4611685949707911168;
        add.s64 %rd4, %rd3, 256;
        mul.wide.u32 %rd7, %r0, {2 * n}; add.s64 %rd7, %rd0, %rd7;
        {fence}
        wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{registers}}}, %rd3, %rd4, 0, 1, 1, 0, 0;
        wgmma.commit_group.sync.aligned;
        {landed} {wait}
        {store} ret;
    """


def run_product(schedule, **changes):
    random = np.random.default_rng(0)
    a, b = (as_bf16(random.standard_normal((rows, 16))) for rows in (64, 24))
    maps = [lambda m, x=x: TensorMap.of(m.place(x), (len(x), 16), swizzle=32) for x in (a, b)]
    got = run(product(24, **changes), maps, shared=8208, out=(128 * 12, np.float32), schedule=schedule)
    d = (
        got.reshape(4, 8, 4, 3, 2, 2).transpose(0, 4, 1, 3, 2, 5).reshape(64, 24)
    )  # warp, row, column, n / 8, half, pair
    return d, from_bf16(a).astype(np.float64) @ from_bf16(b).T


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_product(schedule):
    got, want = run_product(schedule)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_registers_of_a_product_under_way(schedule):
    with pytest.raises(ProductError, match="nobody waited for"):
        run_product(schedule, wait="")
    with pytest.raises(ProductError, match=r"wgmma\.fence"):
        run_product(schedule, fence="")
    with pytest.raises(ProductError, match="nobody waited for"):
        run_product(schedule, landed="mov.b32 %r104, 0;")


@pytest.mark.parametrize("changes", [{}, {"wait": ""}], ids=["sound", "faulty"])
def test_a_machine_is_gone_after_its_run(changes):
    """Each takes megabytes, thousands run in a process, and nobody waits for Python to look for rings of objects."""
    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(ProductError):
            run_product(Schedule(), **changes)
        assert not [x for x in gc.get_objects() if isinstance(x, Machine | SharedMemory | Product)]
    finally:
        gc.enable()


def test_a_copy_of_memory_is_apart():
    memory = Memory()
    tensor = memory.place(np.zeros(4, np.uint32), writable=True)
    twin = memory.copy()
    twin.view(np.uint32, 1)[(tensor.address - BASE) // 4] = 7
    assert not tensor.read().any()
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(twin)
        del twin
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_matrices_go_there_and_back(schedule):
    """stmatrix, then ldmatrix transposed: each 8 x 8 of the warp's four comes back transposed."""
    body = """
        and.b32 %r2, %r0, 31; shr.u32 %r3, %r0, 5; shl.b32 %r3, %r3, 9; shl.b32 %r4, %r2, 4; mov.b32 %r9, memory;
        add.s32 %r5, %r9, %r3; add.s32 %r5, %r5, %r4; shl.b32 %r6, %r0, 4; cvt.u64.u32 %rd5, %r6;
        add.s64 %rd6, %rd1, %rd5;
        ld.global.v4.b32 {%r20, %r21, %r22, %r23}, [%rd6];
        stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r5], {%r20, %r21, %r22, %r23};
        bar.warp.sync -1;
        ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r24, %r25, %r26, %r27}, [%r5];
        add.s64 %rd7, %rd0, %rd5; st.global.v4.b32 [%rd7], {%r24, %r25, %r26, %r27}; ret;
    """
    values = np.random.default_rng(0).integers(0, 2**32, (128, 4), np.uint32)
    got = run(body, [values], out=(512, np.uint32), shared=2048, schedule=schedule).reshape(4, 32, 4)

    def matrices(x):
        return x.reshape(4, 32, 4).transpose(0, 2, 1).copy().view(np.uint16).reshape(4, 4, 8, 8)

    assert np.array_equal(matrices(got), matrices(values).transpose(0, 1, 3, 2))


def test_registers_are_given_back_and_taken():
    body = """
        setp.lt.u32 %p1, %r0, 128; @%p1 bra TAKE; {give} bra.uni END; TAKE: setmaxnreg.inc.sync.aligned.u32 128;
        END: mov.b32 %r1, 3;
    """
    head = ".reqntid 256 .maxnreg 88"
    give = "setmaxnreg.dec.sync.aligned.u32 40;"
    for seed in range(5):
        got = run(body.format(give=give) + STORE, threads=256, out=(256, np.uint32), head=head, schedule=Schedule(seed))
        assert (got == 3).all()
    with pytest.raises(Deadlock, match="registers, of which 0 are free"):
        run(body.format(give="") + STORE, threads=256, out=(256, np.uint32), head=head)
