"""Attention's kernels in Triton, for every GPU from sm_80 on, and how they are launched.

    launch_fwd(q_THD, k_TKD, v_TKD, out_THD, lse_HT, plan.segments_S4, plan.q_tiles_N2, causal=True, softmax_scale=0.1)

fills out and lse. attention.py calls this within its ops; what is computed, forward and backward, stands there.

Dims    T tokens, H query heads, K key/value heads, G = H / K, D head width, S segments, N query tiles, M key tiles.
Numbers Products of the input's dtype, sums and softmax fp32 (fp32 input: full fp32 products, no TF32).
        No atomics: each program owns its rows of out, dq, or dk and dv, and adds in one order, so that a repeat has
        the same bits. Backward therefore computes s and dp twice, once for dq and once for dk and dv.
Width   D runs in two pieces, a power of two and a smaller one: 72 = 64 + 16 (8 of them masked), never a padded 128.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels.attention_plan import TILE
from eagle_kernels.checks import on_device_of

LN2 = tl.constexpr(0.6931471805599453)
LOG2_E = 1.4426950408889634
DELTA_BLOCK = 32  # rows a program of the backward preprocess


@triton.jit
def _load(ptr, rows, ok, stride, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    """(rows, WIDTH) from column FIRST on; 0 beyond column D and in rows that are not ok. rows are int64."""
    cols = FIRST + tl.arange(0, WIDTH)
    mask = ok[:, None]
    if FIRST + WIDTH > D:
        mask = mask & (cols < D)[None, :]
    return tl.load(ptr + rows[:, None] * stride + cols[None, :], mask=mask, other=0.0)


@triton.jit
def _store(ptr, rows, ok, stride, value, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):  # type: ignore[no-untyped-def]
    cols = FIRST + tl.arange(0, WIDTH)
    mask = ok[:, None] & (cols < D)[None, :]
    tl.store(ptr + rows[:, None] * stride + cols[None, :], value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _dot(a, b, acc):  # type: ignore[no-untyped-def]
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def _segment(segments_ptr, segment):  # type: ignore[no-untyped-def]
    """q_start, q_len, k_start, k_len; the starts int64, for what is multiplied by a stride."""
    ptr = segments_ptr + segment * 4
    return tl.load(ptr).to(tl.int64), tl.load(ptr + 1), tl.load(ptr + 2).to(tl.int64), tl.load(ptr + 3)


@triton.jit
def _within(i, length, WHOLE: tl.constexpr):  # type: ignore[no-untyped-def]
    """i < length. Where whole tiles make it so (WHOLE), a constant: the compiler drops the mask."""
    if WHOLE:
        ok = tl.full(i.shape, True, tl.int1)
    else:
        ok = i < length
    return ok


@triton.jit
def _query_block(  # type: ignore[no-untyped-def]
    block, segments_ptr, tiles_ptr, num_tokens, length,
    CAUSAL: tl.constexpr, UNIFORM: tl.constexpr, TILE: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Of the block-th BLOCK_M query rows: their segment, as _segment gives it, and the first row within the segment;
    q_len is 0 where there is nothing to do."""
    if UNIFORM:
        num_blocks = tl.cdiv(length, BLOCK_M)
        if CAUSAL:  # longest first: the last block of every sequence, then the last but one
            num_sequences = num_tokens // length
            sequence, first = block % num_sequences, (num_blocks - 1 - block // num_sequences) * BLOCK_M
        else:  # a sequence's blocks side by side in time: its keys come from L2
            sequence, first = block // num_blocks, block % num_blocks * BLOCK_M
        q_start, q_len = sequence.to(tl.int64) * length, length
        k_start, k_len = q_start, q_len
    else:
        entry = tiles_ptr + (block // (TILE // BLOCK_M)).to(tl.int64) * 2
        segment = tl.load(entry)
        first = tl.load(entry + 1) + block % (TILE // BLOCK_M) * BLOCK_M
        q_start, q_len, k_start, k_len = _segment(segments_ptr, tl.maximum(segment, 0))
        q_len = tl.where(segment < 0, 0, q_len)
    return q_start, q_len, k_start, k_len, first


# Strides come in units of UNIT elements: multiplied in the kernel, the compiler knows that rows of 8 * n elements start
# at multiples of 16 bytes and loads 16 bytes at once, which the bare stride of a head, 72, would not tell it.


@triton.jit(do_not_specialize=["num_tokens"])
def _fwd_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, segments_ptr, tiles_ptr,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, num_tokens, length, scale_log2,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    UNIT: tl.constexpr, CAUSAL: tl.constexpr, UNIFORM: tl.constexpr, WHOLE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out and lse of BLOCK_M query rows of one head."""
    head = tl.program_id(0) % H
    q_start, q_len, k_start, k_len, first = _query_block(
        tl.program_id(0) // H, segments_ptr, tiles_ptr, num_tokens, length, CAUSAL, UNIFORM, TILE, BLOCK_M
    )
    if first >= q_len:
        return
    q_ptr += head.to(tl.int64) * stride_qh * UNIT
    k_ptr += (head // G).to(tl.int64) * stride_kh * UNIT
    v_ptr += (head // G).to(tl.int64) * stride_vh * UNIT
    step_q, step_k, step_v = stride_qt * UNIT, stride_kt * UNIT, stride_vt * UNIT

    i = first + tl.arange(0, BLOCK_M)
    rows, ok = q_start + i, _within(i, q_len, WHOLE)
    q = _load(q_ptr, rows, ok, step_q, 0, MAIN, D)
    acc = tl.zeros([BLOCK_M, MAIN], tl.float32)
    if TAIL > 0:
        q_tail = _load(q_ptr, rows, ok, step_q, MAIN, TAIL, D)
        acc_tail = tl.zeros([BLOCK_M, TAIL], tl.float32)
    max_log2 = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)

    shift = k_len - q_len
    end, num_seen_by_all = k_len, k_len
    if CAUSAL:
        end = tl.minimum(k_len, first + BLOCK_M + shift)
        num_seen_by_all = tl.minimum(k_len, first + shift + 1)
    for n in range(0, end, BLOCK_N):
        j = n + tl.arange(0, BLOCK_N)
        j_ok = _within(j, k_len, WHOLE)
        k = _load(k_ptr, k_start + j, j_ok, step_k, 0, MAIN, D)
        s = _dot(q, tl.trans(k), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
        if TAIL > 0:
            s = _dot(q_tail, tl.trans(_load(k_ptr, k_start + j, j_ok, step_k, MAIN, TAIL, D)), s)
        if CAUSAL or not WHOLE:  # noqa: SIM102  known to the compiler, the next is not
            if n + BLOCK_N > num_seen_by_all:
                seen = j_ok[None, :]
                if CAUSAL:
                    seen = seen & (j[None, :] <= i[:, None] + shift)
                s = tl.where(seen, s, float("-inf"))
        new_max = tl.maximum(max_log2, tl.max(s, 1) * scale_log2)
        base = tl.where(new_max == float("-inf"), 0.0, new_max)  # a row that has seen no key yet
        p = tl.exp2(s * scale_log2 - base[:, None])
        shrink = tl.exp2(max_log2 - base)
        total = total * shrink + tl.sum(p, 1)
        max_log2 = new_max
        v = _load(v_ptr, k_start + j, j_ok, step_v, 0, MAIN, D)
        p = p.to(v.dtype)
        acc = _dot(p, v, acc * shrink[:, None])
        if TAIL > 0:
            v_tail = _load(v_ptr, k_start + j, j_ok, step_v, MAIN, TAIL, D)
            acc_tail = _dot(p, v_tail, acc_tail * shrink[:, None])

    blind = total == 0.0
    total = tl.where(blind, 1.0, total)
    inverse = 1.0 / total
    lse = tl.where(blind, float("-inf"), (max_log2 + tl.log2(total)) * LN2)
    tl.store(lse_ptr + head.to(tl.int64) * num_tokens + rows, lse, mask=ok)
    out_ptr += head * D
    _store(out_ptr, rows, ok, H * D, acc * inverse[:, None], 0, MAIN, D)
    if TAIL > 0:
        _store(out_ptr, rows, ok, H * D, acc_tail * inverse[:, None], MAIN, TAIL, D)


@triton.jit(do_not_specialize=["num_tokens"])
def _delta_kernel(  # type: ignore[no-untyped-def]
    dout_ptr, out_ptr, lse_ptr, dlse_ptr, delta_ptr, lse_log2_ptr, stride_dt, stride_dh, num_tokens,
    H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of BLOCK rows of a head: delta = rowsum(dout * out) - dlse, and lse in units of log 2. Where no key is seen, 0,
    even if dlse is NaN there, and inf, so that exp2(s - lse) is 0."""
    head = tl.program_id(0) % H
    rows = (tl.program_id(0) // H).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = rows < num_tokens
    dout_ptr += head.to(tl.int64) * stride_dh * UNIT
    dout = _load(dout_ptr, rows, ok, stride_dt * UNIT, 0, WIDTH, D).to(tl.float32)
    out = _load(out_ptr + head * D, rows, ok, H * D, 0, WIDTH, D).to(tl.float32)
    at = head.to(tl.int64) * num_tokens + rows
    delta = tl.sum(dout * out, 1) - tl.load(dlse_ptr + at, mask=ok, other=0.0)
    lse = tl.load(lse_ptr + at, mask=ok, other=0.0)
    blind = lse == float("-inf")
    tl.store(delta_ptr + at, tl.where(blind, 0.0, delta), mask=ok)
    tl.store(lse_log2_ptr + at, tl.where(blind, float("inf"), lse / LN2), mask=ok)


@triton.jit(do_not_specialize=["num_tokens"])
def _dq_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_log2_ptr, delta_ptr, dq_ptr, segments_ptr, tiles_ptr,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_dt, stride_dh,
    num_tokens, length, scale, scale_log2,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    UNIT: tl.constexpr, CAUSAL: tl.constexpr, UNIFORM: tl.constexpr, WHOLE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dq of BLOCK_M query rows of one head."""
    head = tl.program_id(0) % H
    q_start, q_len, k_start, k_len, first = _query_block(
        tl.program_id(0) // H, segments_ptr, tiles_ptr, num_tokens, length, CAUSAL, UNIFORM, TILE, BLOCK_M
    )
    if first >= q_len:
        return
    q_ptr += head.to(tl.int64) * stride_qh * UNIT
    k_ptr += (head // G).to(tl.int64) * stride_kh * UNIT
    v_ptr += (head // G).to(tl.int64) * stride_vh * UNIT
    dout_ptr += head.to(tl.int64) * stride_dh * UNIT
    step_q, step_k, step_v, step_d = stride_qt * UNIT, stride_kt * UNIT, stride_vt * UNIT, stride_dt * UNIT

    shift = k_len - q_len
    i = first + tl.arange(0, BLOCK_M)
    rows, ok = q_start + i, _within(i, q_len, WHOLE)
    sees = ok
    if CAUSAL and not UNIFORM:
        sees = ok & (i + shift >= 0)  # a key: dq of other rows is 0, whatever q and dout hold there
    at = head.to(tl.int64) * num_tokens + rows
    lse_log2 = tl.load(lse_log2_ptr + at, mask=ok, other=float("inf"))
    delta = tl.load(delta_ptr + at, mask=ok, other=0.0)
    q = _load(q_ptr, rows, sees, step_q, 0, MAIN, D)
    dout = _load(dout_ptr, rows, sees, step_d, 0, MAIN, D)
    acc = tl.zeros([BLOCK_M, MAIN], tl.float32)
    if TAIL > 0:
        q_tail = _load(q_ptr, rows, sees, step_q, MAIN, TAIL, D)
        dout_tail = _load(dout_ptr, rows, sees, step_d, MAIN, TAIL, D)
        acc_tail = tl.zeros([BLOCK_M, TAIL], tl.float32)

    end, num_seen_by_all = k_len, k_len
    if CAUSAL:
        end = tl.minimum(k_len, first + BLOCK_M + shift)
        num_seen_by_all = tl.minimum(k_len, first + shift + 1)
    for n in range(0, end, BLOCK_N):
        j = n + tl.arange(0, BLOCK_N)
        j_ok = _within(j, k_len, WHOLE)
        k = _load(k_ptr, k_start + j, j_ok, step_k, 0, MAIN, D)
        v = _load(v_ptr, k_start + j, j_ok, step_v, 0, MAIN, D)
        s = _dot(q, tl.trans(k), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
        dp = _dot(dout, tl.trans(v), tl.zeros([BLOCK_M, BLOCK_N], tl.float32))
        if TAIL > 0:
            k_tail = _load(k_ptr, k_start + j, j_ok, step_k, MAIN, TAIL, D)
            v_tail = _load(v_ptr, k_start + j, j_ok, step_v, MAIN, TAIL, D)
            s = _dot(q_tail, tl.trans(k_tail), s)
            dp = _dot(dout_tail, tl.trans(v_tail), dp)
        if CAUSAL or not WHOLE:  # noqa: SIM102  known to the compiler, the next is not
            if n + BLOCK_N > num_seen_by_all:
                seen = j_ok[None, :]
                if CAUSAL:
                    seen = seen & (j[None, :] <= i[:, None] + shift)
                s = tl.where(seen, s, float("-inf"))
        p = tl.exp2(s * scale_log2 - lse_log2[:, None])
        ds = (p * (dp - delta[:, None])).to(k.dtype)
        acc = _dot(ds, k, acc)
        if TAIL > 0:
            acc_tail = _dot(ds, k_tail, acc_tail)

    dq_ptr += head * D
    _store(dq_ptr, rows, ok, H * D, acc * scale, 0, MAIN, D)
    if TAIL > 0:
        _store(dq_ptr, rows, ok, H * D, acc_tail * scale, MAIN, TAIL, D)


@triton.jit(do_not_specialize=["num_tokens"])
def _dkdv_kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, v_ptr, dout_ptr, lse_log2_ptr, delta_ptr, dk_ptr, dv_ptr, segments_ptr, tiles_ptr,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_dt, stride_dh,
    num_tokens, length, scale, scale_log2,
    K: tl.constexpr, G: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    UNIT: tl.constexpr, CAUSAL: tl.constexpr, UNIFORM: tl.constexpr, WHOLE: tl.constexpr,
    TILE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dk and dv of BLOCK_N key rows of one key head: all segments that see them, all query heads of the group."""
    kv_head = tl.program_id(0) % K
    block = tl.program_id(0) // K
    if UNIFORM:
        if CAUSAL:  # longest first, as in _query_block: the first keys of a sequence are seen by all its queries
            num_sequences = num_tokens // length
            sequence, offset = block % num_sequences, block // num_sequences * BLOCK_N
        else:
            sequence, offset = block // tl.cdiv(length, BLOCK_N), block % tl.cdiv(length, BLOCK_N) * BLOCK_N
        start = sequence.to(tl.int64) * length
        first, num_rows = start + offset, length - offset
        begin_segment, end_segment = 0, 1
    else:
        entry = tiles_ptr + (block // (TILE // BLOCK_N)).to(tl.int64) * 4
        offset = block % (TILE // BLOCK_N) * BLOCK_N
        first = tl.load(entry).to(tl.int64) + offset
        num_rows = tl.load(entry + 1) - offset
        begin_segment, end_segment = tl.load(entry + 2), tl.load(entry + 3)
        if num_rows <= 0:
            return
    k_ptr += kv_head.to(tl.int64) * stride_kh * UNIT
    v_ptr += kv_head.to(tl.int64) * stride_vh * UNIT
    step_q, step_k, step_v, step_d = stride_qt * UNIT, stride_kt * UNIT, stride_vt * UNIT, stride_dt * UNIT

    r = tl.arange(0, BLOCK_N)
    rows, ok = first + r, _within(r, num_rows, WHOLE)
    k = _load(k_ptr, rows, ok, step_k, 0, MAIN, D)
    v = _load(v_ptr, rows, ok, step_v, 0, MAIN, D)
    dk = tl.zeros([BLOCK_N, MAIN], tl.float32)
    dv = tl.zeros([BLOCK_N, MAIN], tl.float32)
    if TAIL > 0:
        k_tail = _load(k_ptr, rows, ok, step_k, MAIN, TAIL, D)
        v_tail = _load(v_ptr, rows, ok, step_v, MAIN, TAIL, D)
        dk_tail = tl.zeros([BLOCK_N, TAIL], tl.float32)
        dv_tail = tl.zeros([BLOCK_N, TAIL], tl.float32)

    for segment in range(begin_segment, end_segment):
        if UNIFORM:
            q_start, q_len, k_start, k_len = start, length, start, length
        else:
            q_start, q_len, k_start, k_len = _segment(segments_ptr, segment)
        j = (rows - k_start).to(tl.int32)  # within the segment, for all rows or for none
        j_first = (first - k_start).to(tl.int32)
        if CAUSAL and not UNIFORM:  # without the first rows where they see no key, whatever q and dout hold there
            num_blind = tl.maximum(q_len - k_len, 0)
            q_start, q_len = q_start + num_blind, q_len - num_blind
        shift = k_len - q_len
        begin, end = 0, tl.where((j_first >= 0) & (j_first < k_len), q_len, 0)
        if CAUSAL:
            begin = tl.maximum(j_first - shift, 0) // BLOCK_M * BLOCK_M
        for group in range(G):
            head = kv_head * G + group
            q_head = q_ptr + head.to(tl.int64) * stride_qh * UNIT
            dout_head = dout_ptr + head.to(tl.int64) * stride_dh * UNIT
            for m in range(begin, end, BLOCK_M):
                i = m + tl.arange(0, BLOCK_M)
                q_rows, q_ok = q_start + i, _within(i, q_len, WHOLE)
                at = head.to(tl.int64) * num_tokens + q_rows
                lse_log2 = tl.load(lse_log2_ptr + at, mask=q_ok, other=float("inf"))
                delta = tl.load(delta_ptr + at, mask=q_ok, other=0.0)
                q = _load(q_head, q_rows, q_ok, step_q, 0, MAIN, D)
                dout = _load(dout_head, q_rows, q_ok, step_d, 0, MAIN, D)
                s = _dot(k, tl.trans(q), tl.zeros([BLOCK_N, BLOCK_M], tl.float32))  # rows are keys here
                dp = _dot(v, tl.trans(dout), tl.zeros([BLOCK_N, BLOCK_M], tl.float32))
                if TAIL > 0:
                    q_tail = _load(q_head, q_rows, q_ok, step_q, MAIN, TAIL, D)
                    dout_tail = _load(dout_head, q_rows, q_ok, step_d, MAIN, TAIL, D)
                    s = _dot(k_tail, tl.trans(q_tail), s)
                    dp = _dot(v_tail, tl.trans(dout_tail), dp)
                if CAUSAL and m + shift < j_first + BLOCK_N - 1:
                    s = tl.where(j[:, None] <= i[None, :] + shift, s, float("-inf"))
                p = tl.exp2(s * scale_log2 - lse_log2[None, :])
                ds = (p * (dp - delta[None, :])).to(q.dtype)
                p = p.to(q.dtype)
                dv = _dot(p, dout, dv)
                dk = _dot(ds, q, dk)
                if TAIL > 0:
                    dv_tail = _dot(p, dout_tail, dv_tail)
                    dk_tail = _dot(ds, q_tail, dk_tail)

    dk_ptr += kv_head * D
    dv_ptr += kv_head * D
    _store(dk_ptr, rows, ok, K * D, dk * scale, 0, MAIN, D)
    _store(dv_ptr, rows, ok, K * D, dv, 0, MAIN, D)
    if TAIL > 0:
        _store(dk_ptr, rows, ok, K * D, dk_tail * scale, MAIN, TAIL, D)
        _store(dv_ptr, rows, ok, K * D, dv_tail, MAIN, TAIL, D)


class Launch(NamedTuple):
    block_m: int  # query rows
    block_n: int  # key rows
    num_warps: int
    num_stages: int
    max_registers: int | None = None  # a thread; 128 let two blocks of 8 warps share a multiprocessor


class Launches(NamedTuple):
    fwd: Launch
    dq: Launch
    dkdv: Launch


def pieces(head_width: int) -> tuple[int, int]:
    """Powers of two (main, tail) that hold the head width, tail 0 or 16 <= tail < main: 72 -> (64, 16)."""
    main = 1 << (head_width.bit_length() - 1)
    if main == head_width:
        return main, 0
    tail = max(16, triton.next_power_of_2(head_width - main))
    return (main, tail) if tail < main else (2 * main, 0)


def launches(head_width: int, dtype: torch.dtype, *, sm: int, whole: bool, causal: bool) -> Launches:
    """By width, dtype and chip (80, 90, 100 ...): what the compiler keeps in registers, or nearly, and what fits the
    chip's shared memory (bench/results/static). Why these: docs/notes/attention.md."""
    main, tail = pieces(head_width)
    width = main + tail
    if dtype == torch.float32:  # full fp32 products do not use the tensor cores
        launch = Launch(32, 32, 8 if width > 128 else 4, 1)
        return Launches(fwd=launch, dq=launch, dkdv=launch)
    hopper_up = 90 <= sm < 120  # 227 KB of shared memory; wgmma and tcgen05 leave registers free
    small = sm in (86, 89) or sm >= 120  # 99 KB, where sm_80 has 163: GPUs that people own
    stages = 3 if sm == 90 else 2  # with 2 each block of keys, or of queries, waits for L2
    if width <= 80:
        fwd = Launch(128, 64, 8, stages, max_registers=128 if hopper_up and whole else None)  # masks would spill
        fits = hopper_up or not causal or not tail  # else 3 KB would spill
        dkdv = Launch(64 if fits else 32, 128, 8, stages)
        return Launches(fwd=fwd, dq=Launch(128, 64, 8, stages), dkdv=dkdv)
    if width <= 128:
        fwd = Launch(128, 128 if hopper_up else 64, 8, stages)
        dq = Launch(128, 64, 8, stages) if hopper_up else Launch(64, 64, 4, 2)
        return Launches(fwd=fwd, dq=dq, dkdv=Launch(32, 128, 8, stages))
    if small and width == 256:
        return Launches(fwd=Launch(64, 32, 8, 2), dq=Launch(64, 32, 8, 1), dkdv=Launch(32, 32, 8, 1))
    dkdv = Launch(32, 64, 8, 1) if hopper_up or width == 256 else Launch(32, 32, 4, 1)  # 3 KB would spill
    return Launches(fwd=Launch(64, 64, 8, 2), dq=Launch(64, 32, 8, 1), dkdv=dkdv)


def _sm(tensor: Tensor) -> int:
    """Of the GPU that runs the kernel, 80, 90, 100 ...; the interpreter, on a CPU, takes a Hopper GPU's launches."""
    if not tensor.is_cuda:
        return 90
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def _strides(unit: int, *tensors: Tensor) -> list[int]:
    return [x.stride(dim) // unit for x in tensors for dim in (0, 1)]


def _unit(*tensors: Tensor) -> int:
    """8 where every stride is a multiple of 8 elements, else 1."""
    return 8 if all(x.stride(dim) % 8 == 0 for x in tensors for dim in (0, 1)) else 1


def _num_blocks(num_rows: int, length: int, tiles: Tensor, block: int) -> int:
    """Blocks that cover each sequence of `length` rows; with length 0, each tile of the table."""
    return num_rows // length * triton.cdiv(length, block) if length else tiles.shape[0] * (TILE // block)


def _is_whole(length: int) -> bool:
    """Every sequence is whole tiles: no block has a row too many."""
    return length > 0 and length % TILE == 0


def launch_fwd(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    segments_S4: Tensor,
    q_tiles_N2: Tensor,
    *,
    causal: bool,
    softmax_scale: float,
    length: int = 0,
) -> None:
    """Fills the rows of out and lse that lie in a segment; `length` as in AttentionPlan."""
    T, H, D = q_THD.shape
    main, tail = pieces(D)
    unit = _unit(q_THD, k_TKD, v_TKD)
    launch = launches(D, q_THD.dtype, sm=_sm(q_THD), whole=_is_whole(length), causal=causal).fwd
    if num_programs := _num_blocks(T, length, q_tiles_N2, launch.block_m) * H:
        with on_device_of(q_THD):
            _fwd_kernel[(num_programs,)](
                q_THD, k_TKD, v_TKD, out_THD, lse_HT, segments_S4, q_tiles_N2,
                *_strides(unit, q_THD, k_TKD, v_TKD), T, length, softmax_scale * LOG2_E,
                H=H, G=H // k_TKD.shape[1], D=D, MAIN=main, TAIL=tail, UNIT=unit, CAUSAL=causal, UNIFORM=length > 0,
                WHOLE=_is_whole(length), TILE=TILE, BLOCK_M=launch.block_m, BLOCK_N=launch.block_n,
                num_warps=launch.num_warps, num_stages=launch.num_stages, maxnreg=launch.max_registers,
            )  # fmt: skip


def launch_delta(dout_THD: Tensor, out_THD: Tensor, lse_HT: Tensor, dlse_HT: Tensor) -> tuple[Tensor, Tensor]:
    """What backward needs of a row, both (H, T): lse in units of log 2, inf where no key is seen, and delta, 0 there.
    dlse is contiguous, and so are dout's heads."""
    T, H, D = dout_THD.shape
    lse_log2_HT, delta_HT = torch.empty_like(lse_HT), torch.empty_like(lse_HT)
    unit = _unit(dout_THD)
    if T and H:
        with on_device_of(dout_THD):
            _delta_kernel[(triton.cdiv(T, DELTA_BLOCK) * H,)](
                dout_THD, out_THD, lse_HT, dlse_HT, delta_HT, lse_log2_HT, *_strides(unit, dout_THD), T,
                H=H, D=D, WIDTH=triton.next_power_of_2(D), UNIT=unit, BLOCK=DELTA_BLOCK, num_warps=4,
            )  # fmt: skip
    return lse_log2_HT, delta_HT


def launch_bwd(
    dout_THD: Tensor,
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    lse_log2_HT: Tensor,
    delta_HT: Tensor,
    dq_THD: Tensor,
    dk_TKD: Tensor,
    dv_TKD: Tensor,
    segments_S4: Tensor,
    q_tiles_N2: Tensor,
    k_tiles_M4: Tensor,
    *,
    causal: bool,
    softmax_scale: float,
    length: int = 0,
) -> None:
    """Fills dk, dv, and the rows of dq that lie in a segment. lse_log2 and delta: launch_delta's."""
    T, H, D = q_THD.shape
    K = k_TKD.shape[1]
    main, tail = pieces(D)
    unit = _unit(q_THD, k_TKD, v_TKD, dout_THD)
    strides = _strides(unit, q_THD, k_TKD, v_TKD, dout_THD)
    numbers = (T, length, softmax_scale, softmax_scale * LOG2_E)
    sizes = {"G": H // K, "D": D, "MAIN": main, "TAIL": tail, "UNIT": unit, "CAUSAL": causal, "TILE": TILE}
    sizes |= {"UNIFORM": length > 0, "WHOLE": _is_whole(length)}
    _, dq, dkdv = launches(D, q_THD.dtype, sm=_sm(q_THD), whole=_is_whole(length), causal=causal)
    if num_programs := _num_blocks(T, length, q_tiles_N2, dq.block_m) * H:
        with on_device_of(q_THD):
            _dq_kernel[(num_programs,)](
                q_THD, k_TKD, v_TKD, dout_THD, lse_log2_HT, delta_HT, dq_THD, segments_S4, q_tiles_N2,
                *strides, *numbers, H=H, **sizes, BLOCK_M=dq.block_m, BLOCK_N=dq.block_n,
                num_warps=dq.num_warps, num_stages=dq.num_stages, maxnreg=dq.max_registers,
            )  # fmt: skip
    if num_programs := _num_blocks(k_TKD.shape[0], length, k_tiles_M4, dkdv.block_n) * K:
        with on_device_of(q_THD):
            _dkdv_kernel[(num_programs,)](
                q_THD, k_TKD, v_TKD, dout_THD, lse_log2_HT, delta_HT, dk_TKD, dv_TKD, segments_S4, k_tiles_M4,
                *strides, *numbers, K=K, **sizes, BLOCK_M=dkdv.block_m, BLOCK_N=dkdv.block_n,
                num_warps=dkdv.num_warps, num_stages=dkdv.num_stages, maxnreg=dkdv.max_registers,
            )  # fmt: skip
