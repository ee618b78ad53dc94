"""Attention for Hopper GPUs (sm_90a) in Gluon, Triton's lower level: warps that load and warps that compute."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

LN2 = gl.constexpr(0.6931471805599453)
RAGGED = gl.constexpr(1 << 30)  # the row bound of a ragged descriptor: rows of a document end there
GROUP_ROWS = gl.constexpr(64)  # rows of one consumer warp group: the M of wgmma


@gluon.jit
def _load_rows(desc, start, length, row, head, COL: gl.constexpr, bar, buffer):  # type: ignore[no-untyped-def]
    """Rows `row`, row + 1, ... of the document of `length` rows from `start` on, one head; 0 beyond its last row."""
    tma.async_copy_global_to_shared(desc, [RAGGED, start + length, RAGGED - length + row, head, COL], bar, buffer)


@gluon.jit
def _query_item(  # type: ignore[no-untyped-def]
    item, segments_ptr, tiles_ptr, num_tokens, length,
    H: gl.constexpr, CAUSAL: gl.constexpr, UNIFORM: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
):  # fmt: skip
    """Of the item-th pair of BLOCK_M query rows and a head: the head, the rows' segment, the first row within it, and
    how many blocks of keys they see; q_len is 0 where there is nothing to do."""
    head = item % H
    block = item // H
    if UNIFORM:
        num_blocks = gl.cdiv(length, BLOCK_M)
        if CAUSAL:  # longest first: the last block of every sequence, then the last but one
            num_sequences = num_tokens // length
            sequence = block % num_sequences
            first = (num_blocks - 1 - block // num_sequences) * BLOCK_M
        else:  # a sequence's blocks side by side in time: its keys come from L2
            sequence = block // num_blocks
            first = block % num_blocks * BLOCK_M
        q_start, q_len, k_start, k_len = sequence * length, length, sequence * length, length
    else:
        segment = gl.load(tiles_ptr + block * 2)
        first = gl.load(tiles_ptr + block * 2 + 1)
        entry = segments_ptr + gl.maximum(segment, 0) * 4
        q_start, q_len = gl.load(entry), gl.load(entry + 1)
        k_start, k_len = gl.load(entry + 2), gl.load(entry + 3)
        q_len = gl.where(segment < 0, 0, q_len)
    end = k_len
    if CAUSAL:
        end = gl.minimum(k_len, first + BLOCK_M + k_len - q_len)
    num = gl.where(first < q_len, (gl.maximum(end, 0) + BLOCK_N - 1) // BLOCK_N, 0)
    return head, q_start, q_len, k_start, k_len, first, num


@gluon.jit
def _next(slot, phase, STAGES: gl.constexpr):  # type: ignore[no-untyped-def]
    """The next slot of a ring of STAGES, and the parity of its barriers."""
    wraps = slot == STAGES - 1
    return gl.where(wraps, 0, slot + 1), gl.where(wraps, phase ^ 1, phase)


@gluon.jit
def _load_block(descs, buffers, start, length, row, head, bar, MAIN: gl.constexpr, TAIL: gl.constexpr):  # type: ignore[no-untyped-def]
    """The rows of one block in both pieces of the head width."""
    _load_rows(descs[0], start, length, row, head, 0, bar, buffers[0])
    if TAIL > 0:
        _load_rows(descs[1], start, length, row, head, MAIN, bar, buffers[1])


@gluon.jit
def _fwd_producer(  # type: ignore[no-untyped-def]
    descs, buffers, bars, segments_ptr, tiles_ptr, num_tokens, length, num_items,
    H: gl.constexpr, G: gl.constexpr, MAIN: gl.constexpr, TAIL: gl.constexpr, CAUSAL: gl.constexpr,
    UNIFORM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Fills the ring: pair i of an item holds the keys of block i and the values of block i - 1."""
    q_desc, k_desc, v_desc = descs
    qs, qts, ks, kts, vs, vts = buffers
    full, empty, q_full, q_empty, _ = bars
    Q_BYTES: gl.constexpr = 2 * GROUP_ROWS * (MAIN + TAIL) * 2
    BYTES: gl.constexpr = BLOCK_N * (MAIN + TAIL) * 2
    slot, phase, parity = 0, 0, 0
    for item in range(gl.program_id(0), num_items, gl.num_programs(0)):
        head, q_start, q_len, k_start, k_len, first, num = _query_item(
            item, segments_ptr, tiles_ptr, num_tokens, length, H, CAUSAL, UNIFORM, 2 * GROUP_ROWS, BLOCK_N
        )
        kv_head = head // G
        if num > 0:
            mbarrier.wait(q_empty, parity ^ 1)
            mbarrier.expect(q_full, Q_BYTES)
            for group in gl.static_range(2):
                row = first + group * GROUP_ROWS
                q_buffers = (qs.index(group), qts.index(group))
                _load_block(q_desc, q_buffers, q_start, q_len, row, head, q_full, MAIN, TAIL)
            parity ^= 1
            for i in range(num):
                bar = full.index(slot)
                mbarrier.wait(empty.index(slot), phase ^ 1)
                if i > 0:
                    mbarrier.expect(bar, 2 * BYTES)
                else:
                    mbarrier.expect(bar, BYTES)
                row = i * BLOCK_N
                _load_block(k_desc, (ks.index(slot), kts.index(slot)), k_start, k_len, row, kv_head, bar, MAIN, TAIL)
                if i > 0:
                    row -= BLOCK_N
                    v_buffers = (vs.index(slot), vts.index(slot))
                    _load_block(v_desc, v_buffers, k_start, k_len, row, kv_head, bar, MAIN, TAIL)
                slot, phase = _next(slot, phase, STAGES)
            bar = full.index(slot)
            mbarrier.wait(empty.index(slot), phase ^ 1)
            mbarrier.expect(bar, BYTES)
            row = (num - 1) * BLOCK_N
            _load_block(v_desc, (vs.index(slot), vts.index(slot)), k_start, k_len, row, kv_head, bar, MAIN, TAIL)
            slot, phase = _next(slot, phase, STAGES)


@gluon.jit
def _matrix(buffer, ROWS: gl.constexpr, WIDTH: gl.constexpr):  # type: ignore[no-untyped-def]
    """A block as TMA left it, (1, 1, ROWS, 1, WIDTH), as the matrix that wgmma reads."""
    return buffer.reshape([ROWS, WIDTH])


@gluon.jit
def _scores(q, q_tail, k, k_tail, zero, MAIN: gl.constexpr, TAIL: gl.constexpr, ROWS: gl.constexpr):  # type: ignore[no-untyped-def]
    """Issues q k^T of this group's 64 rows and ROWS rows of k."""
    s = warpgroup_mma(
        _matrix(q, GROUP_ROWS, MAIN), _matrix(k, ROWS, MAIN).permute((1, 0)), zero, use_acc=False, is_async=True
    )
    if TAIL > 0:
        k_tail = _matrix(k_tail, ROWS, TAIL).permute((1, 0))
        s = warpgroup_mma(_matrix(q_tail, GROUP_ROWS, TAIL), k_tail, s, is_async=True)
    return s


@gluon.jit
def _mask(s, i, n, num_seen_by_all, shift, k_len, CAUSAL: gl.constexpr, BLOCK_N: gl.constexpr, L: gl.constexpr):  # type: ignore[no-untyped-def]
    """-inf for what row i does not see of keys n, n + 1, ...; nothing to do where all rows see all of them."""
    if n + BLOCK_N > num_seen_by_all:
        j = n + gl.arange(0, BLOCK_N, gl.SliceLayout(0, L))
        seen = (j < k_len)[None, :]
        if CAUSAL:
            seen = seen & (j[None, :] <= i[:, None] + shift)
        s = gl.where(seen, s, float("-inf"))
    return s


@gluon.jit
def _softmax(s, max_log2, total, scale_log2):  # type: ignore[no-untyped-def]
    """exp2 of the scores above the rows' new maxima; the maxima; the sums; what earlier sums shrink by."""
    new_max = gl.maximum(max_log2, gl.max(s, 1) * scale_log2)
    base = gl.where(new_max == float("-inf"), 0.0, new_max)  # a row that has seen no key yet
    p = gl.exp2(s * scale_log2 - base[:, None])
    shrink = gl.exp2(max_log2 - base)
    return p, new_max, total * shrink + gl.sum(p, 1), shrink


@gluon.jit
def _store(  # type: ignore[no-untyped-def]
    ptr, acc, factor, start, length, first, stride, COL: gl.constexpr, WIDTH: gl.constexpr, D: gl.constexpr,
    L: gl.constexpr,
):  # fmt: skip
    """acc * factor, in the layout L, into columns COL, COL + 1, ... of a document's rows from `first` on."""
    factor = gl.convert_layout(factor, gl.SliceLayout(1, L))
    row = first + gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, L))
    col = COL + gl.arange(0, WIDTH, gl.SliceLayout(0, L))
    at = (start + row).to(gl.int64) * stride
    mask = (row < length)[:, None]
    if COL + WIDTH > D:
        mask = mask & (col < D)[None, :]
    gl.store(ptr + at[:, None] + col[None, :], (acc * factor[:, None]).to(ptr.dtype.element_ty), mask=mask)


@gluon.jit
def _fwd_consumer(  # type: ignore[no-untyped-def]
    buffers, bars, out_ptr, lse_ptr, segments_ptr, tiles_ptr, num_tokens, length, num_items, scale_log2,
    GROUP: gl.constexpr, H: gl.constexpr, D: gl.constexpr, MAIN: gl.constexpr, TAIL: gl.constexpr,
    CAUSAL: gl.constexpr, UNIFORM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """out and lse of 64 of an item's 128 rows."""
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    O: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, MAIN, 16])
    P: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=O, k_width=2)
    O_TAIL: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, TAIL if TAIL > 0 else 16, 16])
    P_TAIL: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=O_TAIL, k_width=2)
    qs, qts, ks, kts, vs, vts = buffers
    full, empty, q_full, q_empty, turn = bars
    q, q_tail = qs.index(GROUP), qts.index(GROUP)
    my_turn, other_turn = turn.index(GROUP), turn.index(1 - GROUP)
    dtype: gl.constexpr = q.dtype
    zero = gl.zeros([GROUP_ROWS, BLOCK_N], gl.float32, S)
    slot, phase, parity, turn_phase = 0, 0, 0, 0
    for item in range(gl.program_id(0), num_items, gl.num_programs(0)):
        head, q_start, q_len, _k_start, k_len, first, num = _query_item(
            item, segments_ptr, tiles_ptr, num_tokens, length, H, CAUSAL, UNIFORM, 2 * GROUP_ROWS, BLOCK_N
        )
        first += GROUP * GROUP_ROWS
        shift = k_len - q_len
        num_seen_by_all = k_len
        if CAUSAL:
            num_seen_by_all = gl.minimum(k_len, first + shift + 1)
        i = first + gl.arange(0, GROUP_ROWS, gl.SliceLayout(1, S))
        max_log2 = gl.full([GROUP_ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, S))
        total = gl.zeros([GROUP_ROWS], gl.float32, gl.SliceLayout(1, S))
        acc = gl.zeros([GROUP_ROWS, MAIN], gl.float32, O)
        if TAIL > 0:
            acc_tail = gl.zeros([GROUP_ROWS, TAIL], gl.float32, O_TAIL)
        if num > 0:
            mbarrier.wait(q_full, parity)
            parity ^= 1
            mbarrier.wait(full.index(slot), phase)
            mbarrier.wait(my_turn, turn_phase)
            s_token = _scores(q, q_tail, ks.index(slot), kts.index(slot), zero, MAIN, TAIL, BLOCK_N)
            mbarrier.arrive(other_turn)
            turn_phase ^= 1
            s = warpgroup_mma_wait(0, deps=[s_token])
            mbarrier.arrive(empty.index(slot))
            slot, phase = _next(slot, phase, STAGES)
            s = _mask(s, i, 0, num_seen_by_all, shift, k_len, CAUSAL, BLOCK_N, S)
            p32, max_log2, total, shrink = _softmax(s, max_log2, total, scale_log2)
            p = gl.convert_layout(p32.to(dtype), P)
            for block in range(1, num):
                mbarrier.wait(full.index(slot), phase)
                mbarrier.wait(my_turn, turn_phase)
                s_token = _scores(q, q_tail, ks.index(slot), kts.index(slot), zero, MAIN, TAIL, BLOCK_N)
                acc_token = warpgroup_mma(p, _matrix(vs.index(slot), BLOCK_N, MAIN), acc, is_async=True)
                if TAIL > 0:
                    v_tail = _matrix(vts.index(slot), BLOCK_N, TAIL)
                    tail_token = warpgroup_mma(gl.convert_layout(p, P_TAIL), v_tail, acc_tail, is_async=True)
                mbarrier.arrive(other_turn)
                turn_phase ^= 1
                s = warpgroup_mma_wait(2 if TAIL > 0 else 1, deps=[s_token])
                s = _mask(s, i, block * BLOCK_N, num_seen_by_all, shift, k_len, CAUSAL, BLOCK_N, S)
                p32, max_log2, total, shrink = _softmax(s, max_log2, total, scale_log2)
                if TAIL > 0:
                    acc, acc_tail, p = warpgroup_mma_wait(0, deps=[acc_token, tail_token, p])
                    acc_tail = acc_tail * gl.convert_layout(shrink, gl.SliceLayout(1, O_TAIL))[:, None]
                else:
                    acc, p = warpgroup_mma_wait(0, deps=[acc_token, p])
                mbarrier.arrive(empty.index(slot))
                slot, phase = _next(slot, phase, STAGES)
                acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, O))[:, None]
                p = gl.convert_layout(p32.to(dtype), P)
            mbarrier.wait(full.index(slot), phase)
            acc_token = warpgroup_mma(p, _matrix(vs.index(slot), BLOCK_N, MAIN), acc, is_async=True)
            if TAIL > 0:
                v_tail = _matrix(vts.index(slot), BLOCK_N, TAIL)
                tail_token = warpgroup_mma(gl.convert_layout(p, P_TAIL), v_tail, acc_tail, is_async=True)
                acc, acc_tail, p = warpgroup_mma_wait(0, deps=[acc_token, tail_token, p])
            else:
                acc, p = warpgroup_mma_wait(0, deps=[acc_token, p])
            mbarrier.arrive(empty.index(slot))
            mbarrier.arrive(q_empty)
            slot, phase = _next(slot, phase, STAGES)
        blind = total == 0.0
        total = gl.where(blind, 1.0, total)
        lse = gl.where(blind, float("-inf"), (max_log2 + gl.log2(total)) * LN2)
        gl.store(lse_ptr + head.to(gl.int64) * num_tokens + q_start + i, lse, mask=i < q_len)
        out_head = out_ptr + head * D
        _store(out_head, acc, 1.0 / total, q_start, q_len, first, H * D, 0, MAIN, D, O)
        if TAIL > 0:
            _store(out_head, acc_tail, 1.0 / total, q_start, q_len, first, H * D, MAIN, TAIL, D, O_TAIL)


@gluon.jit
def fwd_kernel(  # type: ignore[no-untyped-def]
    q_desc, qt_desc, k_desc, kt_desc, v_desc, vt_desc, out_ptr, lse_ptr, segments_ptr, tiles_ptr,
    num_tokens, length, num_items, scale_log2,
    H: gl.constexpr, G: gl.constexpr, D: gl.constexpr, MAIN: gl.constexpr, TAIL: gl.constexpr,
    CAUSAL: gl.constexpr, UNIFORM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """out and lse of items (128 query rows, head): this program's, one after another."""
    qs = gl.allocate_shared_memory(q_desc.dtype, [2, 1, 1, GROUP_ROWS, 1, MAIN], q_desc.layout)
    ks = gl.allocate_shared_memory(q_desc.dtype, [STAGES, 1, 1, BLOCK_N, 1, MAIN], k_desc.layout)
    vs = gl.allocate_shared_memory(q_desc.dtype, [STAGES, 1, 1, BLOCK_N, 1, MAIN], v_desc.layout)
    if TAIL > 0:
        qts = gl.allocate_shared_memory(q_desc.dtype, [2, 1, 1, GROUP_ROWS, 1, TAIL], qt_desc.layout)
        kts = gl.allocate_shared_memory(q_desc.dtype, [STAGES, 1, 1, BLOCK_N, 1, TAIL], kt_desc.layout)
        vts = gl.allocate_shared_memory(q_desc.dtype, [STAGES, 1, 1, BLOCK_N, 1, TAIL], vt_desc.layout)
    else:
        qts, kts, vts = qs, ks, vs
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=2)
    for group in gl.static_range(2):
        mbarrier.init(turn.index(group), count=1)
    mbarrier.init(q_full, count=1)
    mbarrier.init(q_empty, count=2)
    fence_async_shared()
    mbarrier.arrive(turn.index(0))
    buffers = (qs, qts, ks, kts, vs, vts)
    bars = (full, empty, q_full, q_empty, turn)
    descs = ((q_desc, qt_desc), (k_desc, kt_desc), (v_desc, vt_desc))
    gl.warp_specialize(
        [
            (
                _fwd_consumer,
                (
                    buffers,
                    bars,
                    out_ptr,
                    lse_ptr,
                    segments_ptr,
                    tiles_ptr,
                    num_tokens,
                    length,
                    num_items,
                    scale_log2,
                    0,
                    H,
                    D,
                    MAIN,
                    TAIL,
                    CAUSAL,
                    UNIFORM,
                    BLOCK_N,
                    STAGES,
                ),
            ),
            (
                _fwd_consumer,
                (
                    buffers,
                    bars,
                    out_ptr,
                    lse_ptr,
                    segments_ptr,
                    tiles_ptr,
                    num_tokens,
                    length,
                    num_items,
                    scale_log2,
                    1,
                    H,
                    D,
                    MAIN,
                    TAIL,
                    CAUSAL,
                    UNIFORM,
                    BLOCK_N,
                    STAGES,
                ),
            ),
            (
                _fwd_producer,
                (
                    descs,
                    buffers,
                    bars,
                    segments_ptr,
                    tiles_ptr,
                    num_tokens,
                    length,
                    num_items,
                    H,
                    G,
                    MAIN,
                    TAIL,
                    CAUSAL,
                    UNIFORM,
                    BLOCK_N,
                    STAGES,
                ),
            ),
        ],
        [4, 1],
        [240, 24],
    )
