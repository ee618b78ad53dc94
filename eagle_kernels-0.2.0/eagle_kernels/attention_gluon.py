"""Attention for Hopper GPUs (sm_90a) in Gluon, Triton's lower level: warps that load and warps that compute.

    fwd_kernel[grid](*descriptors, out_THD, lse_HT, segments_S4, ...)  # attention_sm90.launch_fwd makes the descriptors

A program has three parts that run at once. The producer, one warp, fills a ring of blocks in shared memory by TMA; two
consumer groups of four warps, 64 rows each, multiply and keep the sums. mbarriers tell when a slot is full and when it
is empty again. What is computed stands in attention.py; why it is done like this, in docs/notes/attention.md.
"""

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
ROWS = gl.constexpr(64)  # of one consumer group: the M of wgmma
BLOCK = gl.constexpr(128)  # rows of an item: two consumer groups; a tile of the plan
SIZES = ["num_tokens", "num_tokens_k", "length", "num_items"]  # differ from batch to batch: no kernel compiles anew


@gluon.constexpr_function
def _mma(width):  # type: ignore[no-untyped-def]
    """The layout of a group's ROWS rows and `width` columns in the registers of wgmma."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, width, 16])


@gluon.constexpr_function
def _mma_operand(width):  # type: ignore[no-untyped-def]
    """Of the left operand, where it comes from registers, for sums of `width` columns."""
    return gl.DotOperandLayout(operand_index=0, parent=_mma(width), k_width=2)


# A block of D columns lies in two pieces, MAIN and TAIL columns (72 = 64 + 16, of which 8 are zeros): descriptors,
# buffers and sums come as pairs (main, tail). Without a tail the second of a pair is not used.


@gluon.jit
def _allocate(descs, NUM: gl.constexpr, NUM_ROWS: gl.constexpr, MAIN: gl.constexpr, TAIL: gl.constexpr):  # type: ignore[no-untyped-def]
    """NUM buffers for blocks of NUM_ROWS rows."""
    main = gl.allocate_shared_memory(descs[0].dtype, [NUM, 1, 1, NUM_ROWS, 1, MAIN], descs[0].layout)
    tail = main
    if TAIL > 0:
        tail = gl.allocate_shared_memory(descs[0].dtype, [NUM, 1, 1, NUM_ROWS, 1, TAIL], descs[1].layout)
    return main, tail


@gluon.jit
def _barriers(NUM: gl.constexpr, COUNT: gl.constexpr):  # type: ignore[no-untyped-def]
    """NUM mbarriers, whose phase ends after COUNT arrivals."""
    bars = gl.allocate_shared_memory(gl.int64, [NUM, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(NUM):
        mbarrier.init(bars.index(i), count=COUNT)
    return bars


@gluon.jit
def _at(pair, i):  # type: ignore[no-untyped-def]
    return pair[0].index(i), pair[1].index(i)


@gluon.jit
def _next(slot, phase, STAGES: gl.constexpr):  # type: ignore[no-untyped-def]
    """The next slot of a ring of STAGES, and the parity of its barriers."""
    wraps = slot == STAGES - 1
    return gl.where(wraps, 0, slot + 1), gl.where(wraps, phase ^ 1, phase)


@gluon.jit
def _in_order(bar, phase):  # type: ignore[no-untyped-def]
    """A wait for a barrier that has been waited for before: nothing moves across its branch. ptxas would wait for
    products before the arithmetic that stands here to run beside them."""
    mbarrier.wait(bar, phase)


@gluon.jit
def _load(descs, start, length, row, head, bar, buffers, MAIN: gl.constexpr, TAIL: gl.constexpr):  # type: ignore[no-untyped-def]
    """Rows `row`, row + 1, ... of the document of `length` rows from `start` on, one head; 0 beyond its last row."""
    at_end, at_row = start + length, RAGGED - length + row
    tma.async_copy_global_to_shared(descs[0], [RAGGED, at_end, at_row, head, 0], bar, buffers[0])
    if TAIL > 0:
        tma.async_copy_global_to_shared(descs[1], [RAGGED, at_end, at_row, head, MAIN], bar, buffers[1])


@gluon.jit
def _matrix(buffer, NUM_ROWS: gl.constexpr, WIDTH: gl.constexpr):  # type: ignore[no-untyped-def]
    """A block as TMA left it, (1, 1, NUM_ROWS, 1, WIDTH), as the matrix that wgmma reads."""
    return buffer.reshape([NUM_ROWS, WIDTH])


@gluon.jit
def _scores(a, b, init, NUM_ROWS: gl.constexpr, MAIN: gl.constexpr, TAIL: gl.constexpr):  # type: ignore[no-untyped-def]
    """Issues a b^T + init (None: 0): this group's ROWS rows of a, NUM_ROWS rows of b."""
    a_main, b_main = _matrix(a[0], ROWS, MAIN), _matrix(b[0], NUM_ROWS, MAIN).permute((1, 0))
    if init is None:
        zero = gl.zeros([ROWS, NUM_ROWS], gl.float32, _mma(NUM_ROWS))
        s = warpgroup_mma(a_main, b_main, zero, use_acc=False, is_async=True)
    else:
        s = warpgroup_mma(a_main, b_main, init, is_async=True)
    if TAIL > 0:
        a_tail, b_tail = _matrix(a[1], ROWS, TAIL), _matrix(b[1], NUM_ROWS, TAIL)
        s = warpgroup_mma(a_tail, b_tail.permute((1, 0)), s, is_async=True)
    return s


@gluon.jit
def _zeros(MAIN: gl.constexpr, TAIL: gl.constexpr):  # type: ignore[no-untyped-def]
    """Sums of this group's rows."""
    main = gl.zeros([ROWS, MAIN], gl.float32, _mma(MAIN))
    tail = 0
    if TAIL > 0:
        tail = gl.zeros([ROWS, TAIL], gl.float32, _mma(TAIL))
    return main, tail


@gluon.jit
def _operand(p, dtype: gl.constexpr, MAIN: gl.constexpr):  # type: ignore[no-untyped-def]
    """p in the registers from which wgmma takes it: they are the same, no data moves."""
    return gl.convert_layout(p.to(dtype), _mma_operand(MAIN))


@gluon.jit
def _accumulate(p, b, acc, acc_tail, NUM_ROWS: gl.constexpr, MAIN: gl.constexpr, TAIL: gl.constexpr):  # type: ignore[no-untyped-def]
    """Issues acc += p b; b has NUM_ROWS rows."""
    token = warpgroup_mma(p, _matrix(b[0], NUM_ROWS, MAIN), acc, is_async=True)
    tail_token = acc_tail
    if TAIL > 0:
        p_tail = gl.convert_layout(p, _mma_operand(TAIL))
        tail_token = warpgroup_mma(p_tail, _matrix(b[1], NUM_ROWS, TAIL), acc_tail, is_async=True)
    return token, tail_token


@gluon.jit
def _finish(NUM_OUTSTANDING: gl.constexpr, token, tail_token, p, TAIL: gl.constexpr):  # type: ignore[no-untyped-def]
    """What _accumulate began, once NUM_OUTSTANDING products or fewer are left. Until then p keeps its registers."""
    if TAIL > 0:
        acc, acc_tail, p = warpgroup_mma_wait(NUM_OUTSTANDING, deps=[token, tail_token, p])
    else:
        acc, p = warpgroup_mma_wait(NUM_OUTSTANDING, deps=[token, p])
        acc_tail = tail_token
    return acc, acc_tail, p


@gluon.jit
def _scale_rows(acc, acc_tail, factor, MAIN: gl.constexpr, TAIL: gl.constexpr):  # type: ignore[no-untyped-def]
    acc = acc * gl.convert_layout(factor, gl.SliceLayout(1, _mma(MAIN)))[:, None]
    if TAIL > 0:
        acc_tail = acc_tail * gl.convert_layout(factor, gl.SliceLayout(1, _mma(TAIL)))[:, None]
    return acc, acc_tail


@gluon.jit
def _store_piece(ptr, x, start, length, first, stride, COL: gl.constexpr, WIDTH: gl.constexpr, D: gl.constexpr):  # type: ignore[no-untyped-def]
    LAYOUT: gl.constexpr = _mma(WIDTH)
    row = first + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    col = COL + gl.arange(0, WIDTH, gl.SliceLayout(0, LAYOUT))
    at = (start + row).to(gl.int64) * stride
    mask = (row < length)[:, None]
    if COL + WIDTH > D:
        mask = mask & (col < D)[None, :]
    gl.store(ptr + at[:, None] + col[None, :], x.to(ptr.dtype.element_ty), mask=mask)


@gluon.jit
def _store(  # type: ignore[no-untyped-def]
    ptr, acc, acc_tail, start, length, first, stride, D: gl.constexpr, MAIN: gl.constexpr, TAIL: gl.constexpr
):  # fmt: skip
    """Into rows `first`, first + 1, ... of a document, none beyond its last."""
    _store_piece(ptr, acc, start, length, first, stride, 0, MAIN, D)
    if TAIL > 0:
        _store_piece(ptr, acc_tail, start, length, first, stride, MAIN, TAIL, D)


@gluon.jit
def _items(num_items, UNIFORM: gl.constexpr):  # type: ignore[no-untyped-def]
    """First, last + 1 and step of this program's items. By the tables it has one, which the compiler then knows."""
    first = gl.program_id(0)
    end, step = first + 1, 1
    if UNIFORM:
        end, step = num_items, gl.num_programs(0)
    return first, end, step


@gluon.jit
def _query_item(  # type: ignore[no-untyped-def]
    item, segments_ptr, tiles_ptr, num_tokens, length,
    H: gl.constexpr, CAUSAL: gl.constexpr, UNIFORM: gl.constexpr, BLOCK_N: gl.constexpr,
):  # fmt: skip
    """Of the item-th pair of BLOCK query rows and a head: the head, the rows' segment, the first row within it, and
    how many blocks of keys they see; q_len is 0 where there is nothing to do."""
    head = item % H
    block = item // H
    if UNIFORM:
        num_blocks = gl.cdiv(length, BLOCK)
        if CAUSAL:  # longest first: the last block of every sequence, then the last but one
            num_sequences = num_tokens // length
            sequence = block % num_sequences
            first = (num_blocks - 1 - block // num_sequences) * BLOCK
        else:  # a sequence's blocks side by side in time: its keys come from L2
            sequence = block // num_blocks
            first = block % num_blocks * BLOCK
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
        end = gl.minimum(k_len, first + BLOCK + k_len - q_len)
    num = gl.where(first < q_len, (gl.maximum(end, 0) + BLOCK_N - 1) // BLOCK_N, 0)
    return head, q_start, q_len, k_start, k_len, first, num


@gluon.jit
def _num_seen_by_all(first, q_len, k_len, CAUSAL: gl.constexpr):  # type: ignore[no-untyped-def]
    """Leading keys that row `first` and all after it see."""
    num = k_len
    if CAUSAL:
        num = gl.minimum(k_len, first + k_len - q_len + 1)
    return num


@gluon.jit
def _mask_keys(s, i, n, num_seen_by_all, q_len, k_len, CAUSAL: gl.constexpr, NUM_ROWS: gl.constexpr):  # type: ignore[no-untyped-def]
    """-inf for what query i does not see of keys n, n + 1, ...; a branch jumps over it where all see all."""
    if n + NUM_ROWS > num_seen_by_all:
        j = n + gl.arange(0, NUM_ROWS, gl.SliceLayout(0, s.type.layout))
        seen = (j < k_len)[None, :]
        if CAUSAL:
            seen = seen & (j[None, :] <= i[:, None] + (k_len - q_len))
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
def _fwd_producer(  # type: ignore[no-untyped-def]
    args,
    H: gl.constexpr, G: gl.constexpr, MAIN: gl.constexpr, TAIL: gl.constexpr, CAUSAL: gl.constexpr,
    UNIFORM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Fills the ring: the i-th slot of an item holds the keys of block i and the values of block i - 1."""
    descs, buffers, bars, tables, num_tokens, length, num_items = args
    q_descs, k_descs, v_descs = descs
    q, k, v = buffers
    full, empty, q_full, q_empty, _ = bars
    BYTES: gl.constexpr = BLOCK_N * (MAIN + TAIL) * 2
    slot, phase, parity = 0, 0, 0
    first_item, end_item, step = _items(num_items, UNIFORM)
    for item in range(first_item, end_item, step):
        head, q_start, q_len, k_start, k_len, first, num = _query_item(
            item, tables[0], tables[1], num_tokens, length, H, CAUSAL, UNIFORM, BLOCK_N
        )
        kv_head = head // G
        if num > 0:
            mbarrier.wait(q_empty.index(0), parity ^ 1)
            mbarrier.expect(q_full.index(0), BLOCK * (MAIN + TAIL) * 2)
            for group in gl.static_range(2):
                row = first + group * ROWS
                _load(q_descs, q_start, q_len, row, head, q_full.index(0), _at(q, group), MAIN, TAIL)
            parity ^= 1
            for i in range(num):
                bar = full.index(slot)
                mbarrier.wait(empty.index(slot), phase ^ 1)
                if i > 0:
                    mbarrier.expect(bar, 2 * BYTES)
                else:
                    mbarrier.expect(bar, BYTES)
                row = i * BLOCK_N
                _load(k_descs, k_start, k_len, row, kv_head, bar, _at(k, slot), MAIN, TAIL)
                if i > 0:
                    _load(v_descs, k_start, k_len, row - BLOCK_N, kv_head, bar, _at(v, slot), MAIN, TAIL)
                slot, phase = _next(slot, phase, STAGES)
            mbarrier.wait(empty.index(slot), phase ^ 1)
            mbarrier.expect(full.index(slot), BYTES)
            row = (num - 1) * BLOCK_N
            _load(v_descs, k_start, k_len, row, kv_head, full.index(slot), _at(v, slot), MAIN, TAIL)
            slot, phase = _next(slot, phase, STAGES)


@gluon.jit
def _fwd_consumer(  # type: ignore[no-untyped-def]
    args,
    GROUP: gl.constexpr, H: gl.constexpr, D: gl.constexpr, MAIN: gl.constexpr, TAIL: gl.constexpr,
    CAUSAL: gl.constexpr, UNIFORM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """out and lse of this group's rows. The scores of block i + 1 and the sums over block i are in flight together;
    the groups take turns at issuing them, so that one's softmax runs beside the other's products."""
    buffers, bars, out_ptr, lse_ptr, tables, num_tokens, length, num_items, scale_log2 = args
    S: gl.constexpr = _mma(BLOCK_N)
    PIECES: gl.constexpr = 2 if TAIL > 0 else 1
    qs, k, v = buffers
    full, empty, q_full, q_empty, turn = bars
    q = _at(qs, GROUP)
    my_turn, other_turn = turn.index(GROUP), turn.index(1 - GROUP)
    dtype: gl.constexpr = qs[0].dtype
    slot, phase, parity, turn_phase = 0, 0, 0, 0
    first_item, end_item, step = _items(num_items, UNIFORM)
    for item in range(first_item, end_item, step):
        head, q_start, q_len, _k_start, k_len, first, num = _query_item(
            item, tables[0], tables[1], num_tokens, length, H, CAUSAL, UNIFORM, BLOCK_N
        )
        first += GROUP * ROWS
        num_seen = _num_seen_by_all(first, q_len, k_len, CAUSAL)
        i = first + gl.arange(0, ROWS, gl.SliceLayout(1, S))
        max_log2 = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, S))
        total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, S))
        acc, acc_tail = _zeros(MAIN, TAIL)
        if num > 0:
            mbarrier.wait(q_full.index(0), parity)
            parity ^= 1
            mbarrier.wait(full.index(slot), phase)
            mbarrier.wait(my_turn, turn_phase)
            token = _scores(q, _at(k, slot), None, BLOCK_N, MAIN, TAIL)
            mbarrier.arrive(other_turn)
            turn_phase ^= 1
            s = warpgroup_mma_wait(0, deps=[token])
            mbarrier.arrive(empty.index(slot))
            slot, phase = _next(slot, phase, STAGES)
            s = _mask_keys(s, i, 0, num_seen, q_len, k_len, CAUSAL, BLOCK_N)
            p32, max_log2, total, shrink = _softmax(s, max_log2, total, scale_log2)
            p = _operand(p32, dtype, MAIN)
            for block in range(1, num):
                mbarrier.wait(full.index(slot), phase)
                mbarrier.wait(my_turn, turn_phase)
                token = _scores(q, _at(k, slot), None, BLOCK_N, MAIN, TAIL)
                acc_token, tail_token = _accumulate(p, _at(v, slot), acc, acc_tail, BLOCK_N, MAIN, TAIL)
                mbarrier.arrive(other_turn)
                turn_phase ^= 1
                s = warpgroup_mma_wait(PIECES, deps=[token])
                s = _mask_keys(s, i, block * BLOCK_N, num_seen, q_len, k_len, CAUSAL, BLOCK_N)
                p32, max_log2, total, shrink = _softmax(s, max_log2, total, scale_log2)
                _in_order(full.index(slot), phase)
                acc, acc_tail, p = _finish(0, acc_token, tail_token, p, TAIL)
                mbarrier.arrive(empty.index(slot))
                slot, phase = _next(slot, phase, STAGES)
                acc, acc_tail = _scale_rows(acc, acc_tail, shrink, MAIN, TAIL)
                p = _operand(p32, dtype, MAIN)
            mbarrier.wait(full.index(slot), phase)
            acc_token, tail_token = _accumulate(p, _at(v, slot), acc, acc_tail, BLOCK_N, MAIN, TAIL)
            acc, acc_tail, p = _finish(0, acc_token, tail_token, p, TAIL)
            mbarrier.arrive(empty.index(slot))
            mbarrier.arrive(q_empty.index(0))
            slot, phase = _next(slot, phase, STAGES)
        blind = total == 0.0
        total = gl.where(blind, 1.0, total)
        lse = gl.where(blind, float("-inf"), (max_log2 + gl.log2(total)) * LN2)
        gl.store(lse_ptr + head.to(gl.int64) * num_tokens + q_start + i, lse, mask=i < q_len)
        acc, acc_tail = _scale_rows(acc, acc_tail, 1.0 / total, MAIN, TAIL)
        _store(out_ptr + head * D, acc, acc_tail, q_start, q_len, first, H * D, D, MAIN, TAIL)


@gluon.jit(do_not_specialize=SIZES)
def fwd_kernel(  # type: ignore[no-untyped-def]
    q_desc, q_tail_desc, k_desc, k_tail_desc, v_desc, v_tail_desc, out_ptr, lse_ptr, segments_ptr, tiles_ptr,
    num_tokens, length, num_items, scale_log2,
    H: gl.constexpr, G: gl.constexpr, D: gl.constexpr, MAIN: gl.constexpr, TAIL: gl.constexpr,
    CAUSAL: gl.constexpr, UNIFORM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """out and lse of items, each BLOCK query rows of one head: the program's own, one after another."""
    descs = ((q_desc, q_tail_desc), (k_desc, k_tail_desc), (v_desc, v_tail_desc))
    q = _allocate(descs[0], 2, ROWS, MAIN, TAIL)
    k, v = _allocate(descs[1], STAGES, BLOCK_N, MAIN, TAIL), _allocate(descs[2], STAGES, BLOCK_N, MAIN, TAIL)
    full, empty = _barriers(STAGES, 1), _barriers(STAGES, 2)
    q_full, q_empty, turn = _barriers(1, 1), _barriers(1, 2), _barriers(2, 1)
    fence_async_shared()
    mbarrier.arrive(turn.index(0))
    buffers, bars, tables = (q, k, v), (full, empty, q_full, q_empty, turn), (segments_ptr, tiles_ptr)
    consumer = (buffers, bars, out_ptr, lse_ptr, tables, num_tokens, length, num_items, scale_log2)
    producer = (descs, buffers, bars, tables, num_tokens, length, num_items)
    gl.warp_specialize(
        [
            (_fwd_consumer, (consumer, 0, H, D, MAIN, TAIL, CAUSAL, UNIFORM, BLOCK_N, STAGES)),
            (_fwd_consumer, (consumer, 1, H, D, MAIN, TAIL, CAUSAL, UNIFORM, BLOCK_N, STAGES)),
            (_fwd_producer, (producer, H, G, MAIN, TAIL, CAUSAL, UNIFORM, BLOCK_N, STAGES)),
        ],
        [4, 1],
        [240 if MAIN > 64 else 232, 24 if MAIN > 64 else 40],
    )
