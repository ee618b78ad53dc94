"""Backward of attention_gluon.py, in its way: dq by blocks of queries, dk and dv by blocks of keys; no atomics.

dq_kernel[grid](*descriptors, lse_log2_HT, delta_HT, dq_THD, ...)  # attention_sm90.launch_bwd makes the descriptors
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, warpgroup_mma_wait

from eagle_kernels.attention_gluon import (
    BLOCK,
    ROWS,
    SIZES,
    _accumulate,
    _allocate,
    _at,
    _barriers,
    _finish,
    _in_order,
    _items,
    _load,
    _mask_keys,
    _mma,
    _next,
    _num_seen_by_all,
    _operand,
    _query_item,
    _scale_rows,
    _scores,
    _store,
    _zeros,
)  # fmt: skip


@gluon.jit
def _clear_rows(acc, acc_tail, keep, MAIN: gl.constexpr, TAIL: gl.constexpr):  # type: ignore[no-untyped-def]
    acc = gl.where(gl.convert_layout(keep, gl.SliceLayout(1, _mma(MAIN)))[:, None], acc, 0.0)
    if TAIL > 0:
        acc_tail = gl.where(gl.convert_layout(keep, gl.SliceLayout(1, _mma(TAIL)))[:, None], acc_tail, 0.0)
    return acc, acc_tail


@gluon.jit
def _dq_producer(  # type: ignore[no-untyped-def]
    args,
    H: gl.constexpr, G: gl.constexpr, MAIN: gl.constexpr, TAIL: gl.constexpr, CAUSAL: gl.constexpr,
    UNIFORM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Queries and their dout once an item; keys and values block by block."""
    descs, buffers, bars, tables, num_tokens, length, num_items = args
    q_descs, k_descs, v_descs, dout_descs = descs
    q, k, v, dout = buffers
    full, empty, q_full, q_empty = bars
    slot, phase, parity = 0, 0, 0
    first_item, end_item, step = _items(num_items, UNIFORM)
    for item in range(first_item, end_item, step):
        head, q_start, q_len, k_start, k_len, first, num = _query_item(
            item, tables[0], tables[1], num_tokens, length, H, CAUSAL, UNIFORM, BLOCK_N
        )
        kv_head = head // G
        if num > 0:
            mbarrier.wait(q_empty.index(0), parity ^ 1)
            mbarrier.expect(q_full.index(0), 2 * BLOCK * (MAIN + TAIL) * 2)
            for group in gl.static_range(2):
                row = first + group * ROWS
                _load(q_descs, q_start, q_len, row, head, q_full.index(0), _at(q, group), MAIN, TAIL)
                _load(dout_descs, q_start, q_len, row, head, q_full.index(0), _at(dout, group), MAIN, TAIL)
            parity ^= 1
            for i in range(num):
                bar = full.index(slot)
                mbarrier.wait(empty.index(slot), phase ^ 1)
                mbarrier.expect(bar, 2 * BLOCK_N * (MAIN + TAIL) * 2)
                _load(k_descs, k_start, k_len, i * BLOCK_N, kv_head, bar, _at(k, slot), MAIN, TAIL)
                _load(v_descs, k_start, k_len, i * BLOCK_N, kv_head, bar, _at(v, slot), MAIN, TAIL)
                slot, phase = _next(slot, phase, STAGES)


@gluon.jit
def _dq_consumer(  # type: ignore[no-untyped-def]
    args,
    GROUP: gl.constexpr, H: gl.constexpr, D: gl.constexpr, MAIN: gl.constexpr, TAIL: gl.constexpr,
    CAUSAL: gl.constexpr, UNIFORM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """dq of this group's rows."""
    buffers, bars, lse_ptr, delta_ptr, dq_ptr, tables, num_tokens, length, num_items, scale, scale_log2 = args
    S: gl.constexpr = _mma(BLOCK_N)
    PIECES: gl.constexpr = 2 if TAIL > 0 else 1
    qs, k, v, douts = buffers
    full, empty, q_full, q_empty = bars
    q, dout = _at(qs, GROUP), _at(douts, GROUP)
    dtype: gl.constexpr = qs[0].dtype
    slot, phase, parity = 0, 0, 0
    first_item, end_item, step = _items(num_items, UNIFORM)
    for item in range(first_item, end_item, step):
        head, q_start, q_len, _k_start, k_len, first, num = _query_item(
            item, tables[0], tables[1], num_tokens, length, H, CAUSAL, UNIFORM, BLOCK_N
        )
        first += GROUP * ROWS
        num_seen = _num_seen_by_all(first, q_len, k_len, CAUSAL)
        i = first + gl.arange(0, ROWS, gl.SliceLayout(1, S))
        at = head.to(gl.int64) * num_tokens + q_start + i
        lse = gl.load(lse_ptr + at, mask=i < q_len, other=float("inf"))
        delta = gl.load(delta_ptr + at, mask=i < q_len, other=0.0)
        acc, acc_tail = _zeros(MAIN, TAIL)
        if num > 0:
            mbarrier.wait(q_full.index(0), parity)
            parity ^= 1
            for block in range(num):
                mbarrier.wait(full.index(slot), phase)
                s_token = _scores(q, _at(k, slot), None, BLOCK_N, MAIN, TAIL)
                dp_token = _scores(dout, _at(v, slot), None, BLOCK_N, MAIN, TAIL)
                s = warpgroup_mma_wait(PIECES, deps=[s_token])
                s = _mask_keys(s, i, block * BLOCK_N, num_seen, q_len, k_len, CAUSAL, BLOCK_N)
                p = gl.exp2(s * scale_log2 - lse[:, None])
                _in_order(full.index(slot), phase)
                dp = warpgroup_mma_wait(0, deps=[dp_token])
                ds = _operand(p * (dp - delta[:, None]), dtype, MAIN)
                token, tail_token = _accumulate(ds, _at(k, slot), acc, acc_tail, BLOCK_N, MAIN, TAIL)
                acc, acc_tail, ds = _finish(0, token, tail_token, ds, TAIL)
                mbarrier.arrive(empty.index(slot))
                slot, phase = _next(slot, phase, STAGES)
            mbarrier.arrive(q_empty.index(0))
            if CAUSAL and not UNIFORM:  # noqa: SIM102  known to the compiler, the next is not
                if first < q_len - k_len:  # rows that see no key, whatever q and dout hold there
                    acc, acc_tail = _clear_rows(acc, acc_tail, i + k_len >= q_len, MAIN, TAIL)
            acc, acc_tail = _scale_rows(acc, acc_tail, gl.full_like(lse, 1.0) * scale, MAIN, TAIL)
        _store(dq_ptr + head * D, acc, acc_tail, q_start, q_len, first, H * D, D, MAIN, TAIL)


@gluon.jit(do_not_specialize=SIZES)
def dq_kernel(  # type: ignore[no-untyped-def]
    q_desc, q_tail_desc, k_desc, k_tail_desc, v_desc, v_tail_desc, dout_desc, dout_tail_desc,
    lse_ptr, delta_ptr, dq_ptr, segments_ptr, tiles_ptr, num_tokens, length, num_items, scale, scale_log2,
    H: gl.constexpr, G: gl.constexpr, D: gl.constexpr, MAIN: gl.constexpr, TAIL: gl.constexpr,
    CAUSAL: gl.constexpr, UNIFORM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """dq of items, each BLOCK query rows of one head. lse is launch_delta's: in units of log 2, inf where blind."""
    descs = ((q_desc, q_tail_desc), (k_desc, k_tail_desc), (v_desc, v_tail_desc), (dout_desc, dout_tail_desc))
    q, dout = _allocate(descs[0], 2, ROWS, MAIN, TAIL), _allocate(descs[3], 2, ROWS, MAIN, TAIL)
    k, v = _allocate(descs[1], STAGES, BLOCK_N, MAIN, TAIL), _allocate(descs[2], STAGES, BLOCK_N, MAIN, TAIL)
    full, empty, q_full, q_empty = _barriers(STAGES, 1), _barriers(STAGES, 2), _barriers(1, 1), _barriers(1, 2)
    fence_async_shared()
    buffers, bars, tables = (q, k, v, dout), (full, empty, q_full, q_empty), (segments_ptr, tiles_ptr)
    consumer = (buffers, bars, lse_ptr, delta_ptr, dq_ptr, tables, num_tokens, length, num_items, scale, scale_log2)
    producer = (descs, buffers, bars, tables, num_tokens, length, num_items)
    gl.warp_specialize(
        [
            (_dq_consumer, (consumer, 0, H, D, MAIN, TAIL, CAUSAL, UNIFORM, BLOCK_N, STAGES)),
            (_dq_consumer, (consumer, 1, H, D, MAIN, TAIL, CAUSAL, UNIFORM, BLOCK_N, STAGES)),
            (_dq_producer, (producer, H, G, MAIN, TAIL, CAUSAL, UNIFORM, BLOCK_N, STAGES)),
        ],
        [4, 1],
        [240 if MAIN > 64 else 232, 24 if MAIN > 64 else 40],
    )


@gluon.jit
def _key_item(  # type: ignore[no-untyped-def]
    item, tiles_ptr, num_tokens_k, length, K: gl.constexpr, CAUSAL: gl.constexpr, UNIFORM: gl.constexpr
):  # fmt: skip
    """Of the item-th pair of BLOCK key rows and a key head: the head, the first row and the number of rows (0: nothing
    to do), the first and last + 1 of the segments to look at, and where their sequence starts in a uniform plan."""
    kv_head = item % K
    block = item // K
    if UNIFORM:
        num_blocks = gl.cdiv(length, BLOCK)
        if CAUSAL:  # longest first: the first keys of a sequence are seen by all its queries
            num_sequences = num_tokens_k // length
            sequence = block % num_sequences
            offset = block // num_sequences * BLOCK
        else:
            sequence = block // num_blocks
            offset = block % num_blocks * BLOCK
        begin, end, start = 0, 1, sequence * length
        first, num_rows = start + offset, length - offset
    else:
        entry = tiles_ptr + block * 4
        first, num_rows = gl.load(entry), gl.load(entry + 1)
        begin, end, start = gl.load(entry + 2), gl.load(entry + 3), 0
    return kv_head, first, num_rows, begin, end, start


@gluon.jit
def _seen_by(  # type: ignore[no-untyped-def]
    segment, segments_ptr, first, start, length, CAUSAL: gl.constexpr, UNIFORM: gl.constexpr, BLOCK_M: gl.constexpr
):  # fmt: skip
    """Of the queries of a segment that see the keys from row `first` of k on: the segment's first query that sees any
    key and the number from there; by how much keys lead queries; the first key within the segment; the first query of
    the first block to take and last + 1."""
    if UNIFORM:
        q_start, q_len, k_start, k_len = start, length, start, length
    else:
        entry = segments_ptr + segment * 4
        q_start, q_len = gl.load(entry), gl.load(entry + 1)
        k_start, k_len = gl.load(entry + 2), gl.load(entry + 3)
    if CAUSAL and not UNIFORM:  # without the first rows where they see no key, whatever q and dout hold there
        num_blind = gl.maximum(q_len - k_len, 0)
        q_start, q_len = q_start + num_blind, q_len - num_blind
    shift = k_len - q_len
    j_first = first - k_start
    begin = 0
    if CAUSAL:
        begin = gl.maximum(j_first - shift, 0) // BLOCK_M * BLOCK_M
    end = gl.where((j_first >= 0) & (j_first < k_len), q_len, 0)
    return q_start, q_len, shift, j_first, begin, end


@gluon.jit
def _dkdv_producer(  # type: ignore[no-untyped-def]
    args,
    K: gl.constexpr, G: gl.constexpr, MAIN: gl.constexpr, TAIL: gl.constexpr, CAUSAL: gl.constexpr,
    UNIFORM: gl.constexpr, BLOCK_M: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Keys and values once an item; queries, their dout, lse and delta block by block. lse and delta come by ordinary
    loads, which can mask rows: TMA would want them aligned to 16 bytes, and beyond a document's end others' lie."""
    descs, buffers, bars, lse_ptr, delta_ptr, tables, num_tokens, num_tokens_k, length, num_items = args
    STATS: gl.constexpr = gl.BlockedLayout([BLOCK_M // 32], [32], [1], [0])
    q_descs, k_descs, v_descs, dout_descs = descs
    q, k, v, dout, lses, deltas = buffers
    full, empty, k_full, k_empty = bars
    slot, phase, parity = 0, 0, 0
    first_item, end_item, step = _items(num_items, UNIFORM)
    for item in range(first_item, end_item, step):
        kv_head, first, num_rows, begin_segment, end_segment, start = _key_item(
            item, tables[1], num_tokens_k, length, K, CAUSAL, UNIFORM
        )
        if num_rows > 0:
            mbarrier.wait(k_empty.index(0), parity ^ 1)
            mbarrier.expect(k_full.index(0), 2 * BLOCK * (MAIN + TAIL) * 2)
            for group in gl.static_range(2):
                row = group * ROWS
                _load(k_descs, first, num_rows, row, kv_head, k_full.index(0), _at(k, group), MAIN, TAIL)
                _load(v_descs, first, num_rows, row, kv_head, k_full.index(0), _at(v, group), MAIN, TAIL)
            parity ^= 1
            for segment in range(begin_segment, end_segment):
                q_start, q_len, _shift, _j_first, begin, end = _seen_by(
                    segment, tables[0], first, start, length, CAUSAL, UNIFORM, BLOCK_M
                )
                for nth in range(G):
                    head = kv_head * G + nth
                    for row in range(begin, end, BLOCK_M):
                        i = row + gl.arange(0, BLOCK_M, STATS)
                        at = head.to(gl.int64) * num_tokens + q_start + i
                        lse = gl.load(lse_ptr + at, mask=i < q_len, other=float("inf"))
                        delta = gl.load(delta_ptr + at, mask=i < q_len, other=0.0)
                        bar = full.index(slot)
                        mbarrier.wait(empty.index(slot), phase ^ 1)
                        mbarrier.expect(bar, 2 * BLOCK_M * (MAIN + TAIL) * 2)
                        _load(q_descs, q_start, q_len, row, head, bar, _at(q, slot), MAIN, TAIL)
                        _load(dout_descs, q_start, q_len, row, head, bar, _at(dout, slot), MAIN, TAIL)
                        lses.index(slot).store(lse)
                        deltas.index(slot).store(delta)
                        mbarrier.arrive(bar)
                        slot, phase = _next(slot, phase, STAGES)


@gluon.jit
def _dkdv_consumer(  # type: ignore[no-untyped-def]
    args,
    GROUP: gl.constexpr, K: gl.constexpr, G: gl.constexpr, D: gl.constexpr, MAIN: gl.constexpr, TAIL: gl.constexpr,
    CAUSAL: gl.constexpr, UNIFORM: gl.constexpr, BLOCK_M: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """dk and dv of this group's rows: all segments that see them, all query heads of the key head."""
    buffers, bars, dk_ptr, dv_ptr, tables, num_tokens_k, length, num_items, scale, scale_log2 = args
    S: gl.constexpr = _mma(BLOCK_M)
    PIECES: gl.constexpr = 2 if TAIL > 0 else 1
    q, ks, vs, dout, lses, deltas = buffers
    full, empty, k_full, k_empty = bars
    k, v = _at(ks, GROUP), _at(vs, GROUP)
    dtype: gl.constexpr = ks[0].dtype
    slot, phase, parity = 0, 0, 0
    first_item, end_item, step = _items(num_items, UNIFORM)
    for item in range(first_item, end_item, step):
        kv_head, first, num_rows, begin_segment, end_segment, start = _key_item(
            item, tables[1], num_tokens_k, length, K, CAUSAL, UNIFORM
        )
        if num_rows > 0:
            dk, dk_tail = _zeros(MAIN, TAIL)
            dv, dv_tail = _zeros(MAIN, TAIL)
            mbarrier.wait(k_full.index(0), parity)
            parity ^= 1
            for segment in range(begin_segment, end_segment):
                _q_start, _q_len, shift, j_first, begin, end = _seen_by(
                    segment, tables[0], first, start, length, CAUSAL, UNIFORM, BLOCK_M
                )
                j_first += GROUP * ROWS
                for _nth in range(G):
                    for row in range(begin, end, BLOCK_M):
                        mbarrier.wait(full.index(slot), phase)
                        s_token = _scores(k, _at(q, slot), None, BLOCK_M, MAIN, TAIL)  # rows are keys here
                        delta = deltas.index(slot).load(gl.SliceLayout(0, S))
                        minus_delta = gl.zeros([ROWS, BLOCK_M], gl.float32, S) - delta[None, :]
                        dp_token = _scores(v, _at(dout, slot), minus_delta, BLOCK_M, MAIN, TAIL)
                        s = warpgroup_mma_wait(PIECES, deps=[s_token])
                        if CAUSAL:  # noqa: SIM102  known to the compiler, the next is not
                            if row + shift < j_first + ROWS - 1:
                                i = row + gl.arange(0, BLOCK_M, gl.SliceLayout(0, S))
                                j = j_first + gl.arange(0, ROWS, gl.SliceLayout(1, S))
                                s = gl.where(j[:, None] <= i[None, :] + shift, s, float("-inf"))
                        lse = lses.index(slot).load(gl.SliceLayout(0, S))
                        p = gl.exp2(s * scale_log2 - lse[None, :])
                        p16 = _operand(p, dtype, MAIN)
                        dv_token, dv_tail_token = _accumulate(p16, _at(dout, slot), dv, dv_tail, BLOCK_M, MAIN, TAIL)
                        dp = warpgroup_mma_wait(PIECES, deps=[dp_token])
                        ds = _operand(p * dp, dtype, MAIN)
                        dk_token, dk_tail_token = _accumulate(ds, _at(q, slot), dk, dk_tail, BLOCK_M, MAIN, TAIL)
                        dv, dv_tail, p16 = _finish(0, dv_token, dv_tail_token, p16, TAIL)
                        dk, dk_tail, ds = _finish(0, dk_token, dk_tail_token, ds, TAIL)
                        mbarrier.arrive(empty.index(slot))
                        slot, phase = _next(slot, phase, STAGES)
            mbarrier.arrive(k_empty.index(0))
            row = GROUP * ROWS
            factor = gl.full([ROWS], 1.0, gl.float32, gl.SliceLayout(1, S)) * scale
            dk, dk_tail = _scale_rows(dk, dk_tail, factor, MAIN, TAIL)
            _store(dk_ptr + kv_head * D, dk, dk_tail, first, num_rows, row, K * D, D, MAIN, TAIL)
            _store(dv_ptr + kv_head * D, dv, dv_tail, first, num_rows, row, K * D, D, MAIN, TAIL)


@gluon.jit(do_not_specialize=SIZES)
def dkdv_kernel(  # type: ignore[no-untyped-def]
    q_desc, q_tail_desc, k_desc, k_tail_desc, v_desc, v_tail_desc, dout_desc, dout_tail_desc,
    lse_ptr, delta_ptr, dk_ptr, dv_ptr, segments_ptr, tiles_ptr,
    num_tokens, num_tokens_k, length, num_items, scale, scale_log2,
    K: gl.constexpr, G: gl.constexpr, D: gl.constexpr, MAIN: gl.constexpr, TAIL: gl.constexpr,
    CAUSAL: gl.constexpr, UNIFORM: gl.constexpr, BLOCK_M: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """dk and dv of items, each BLOCK key rows of one key head. lse as in dq_kernel."""
    descs = ((q_desc, q_tail_desc), (k_desc, k_tail_desc), (v_desc, v_tail_desc), (dout_desc, dout_tail_desc))
    q, dout = _allocate(descs[0], STAGES, BLOCK_M, MAIN, TAIL), _allocate(descs[3], STAGES, BLOCK_M, MAIN, TAIL)
    k, v = _allocate(descs[1], 2, ROWS, MAIN, TAIL), _allocate(descs[2], 2, ROWS, MAIN, TAIL)
    lses = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_M], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    deltas = gl.allocate_shared_memory(gl.float32, [STAGES, BLOCK_M], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    full, empty, k_full, k_empty = _barriers(STAGES, 2), _barriers(STAGES, 2), _barriers(1, 1), _barriers(1, 2)
    fence_async_shared()
    buffers, bars, tables = (q, k, v, dout, lses, deltas), (full, empty, k_full, k_empty), (segments_ptr, tiles_ptr)
    consumer = (buffers, bars, dk_ptr, dv_ptr, tables, num_tokens_k, length, num_items, scale, scale_log2)
    producer = (descs, buffers, bars, lse_ptr, delta_ptr, tables, num_tokens, num_tokens_k, length, num_items)
    gl.warp_specialize(
        [
            (_dkdv_consumer, (consumer, 0, K, G, D, MAIN, TAIL, CAUSAL, UNIFORM, BLOCK_M, STAGES)),
            (_dkdv_consumer, (consumer, 1, K, G, D, MAIN, TAIL, CAUSAL, UNIFORM, BLOCK_M, STAGES)),
            (_dkdv_producer, (producer, K, G, MAIN, TAIL, CAUSAL, UNIFORM, BLOCK_M, STAGES)),
        ],
        [4, 1],
        [240 if MAIN > 64 else 232, 24 if MAIN > 64 else 40],
    )
