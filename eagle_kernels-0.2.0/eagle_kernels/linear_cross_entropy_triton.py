"""Linear cross-entropy's kernels: a matmul whose work ends where the labelled tokens end, and a softmax in place.

    matmul(hidden_MC, weight_VC.T, logits_MV, num_labelled, start, over_tokens=False, group=32)
    softmax(logits_MV, labels_M, scales_M, stats, num_labelled, start, read=True, grad=True)  # logits become g

Dims, formulas and the order of the steps stand in linear_cross_entropy.py. The number of labelled tokens is read where
it is, on the GPU: of a chunk of M tokens that begins at labelled token `start`, the first num_labelled - start.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels.checks import on_device_of

BLOCK = 4096  # logits a program of the softmax holds at a time


class Statistics(NamedTuple):
    """Of each row of logits: enough for its loss and its gradient, and to merge shards of the vocabulary."""

    top: Tensor  # largest logit
    total: Tensor  # sum of exp(logit - top); top stands for 0 where it is -inf
    picked: Tensor  # the label's logit, 0 where the label's row is elsewhere
    best: Tensor  # index of the largest logit, the first of equal ones; int64


@triton.jit(do_not_specialize=["start", "M"])
def _matmul_kernel(  # type: ignore[no-untyped-def]
    a_ptr, b_ptr, out_ptr, num_labelled_ptr, start, M, N, K,
    a_m_stride, a_k_stride, b_k_stride, b_n_stride, out_stride,
    COUNT_K: tl.constexpr, ADD: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Tokens of this chunk that are labelled; it begins at token `start`. They are the rows of a, or the terms of a sum.
    num_tokens = tl.maximum(tl.load(num_labelled_ptr) - start, 0)
    if COUNT_K:
        K = tl.minimum(K, num_tokens).to(tl.int32)
    else:
        M = tl.minimum(M, num_tokens).to(tl.int32)
    num_m, num_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    num_tiles = num_m * num_n
    if COUNT_K and K == 0:
        num_tiles = 0
    for tile in range(tl.program_id(0), num_tiles, tl.num_programs(0)):
        # GROUP tiles down, then one to the right: programs side by side share what they read through the L2.
        first = tile // (GROUP * num_n) * GROUP
        height = tl.minimum(num_m - first, GROUP)
        inside = tile % (GROUP * num_n)
        m = (first + inside % height) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None].to(tl.int64)  # int64: M * N passes
        n = inside // height * BLOCK_N + tl.arange(0, BLOCK_N)[None, :].to(tl.int64)  # 2**31
        k = tl.arange(0, BLOCK_K).to(tl.int64)
        step = tl.full((), BLOCK_K, tl.int64)
        a_ptrs = a_ptr + m * a_m_stride + k[None, :] * a_k_stride
        b_ptrs = b_ptr + k[:, None] * b_k_stride + n * b_n_stride
        out_ptrs = out_ptr + m * out_stride + n
        if ADD:  # what is there starts the sum: added at the end, it would need registers of its own
            acc = tl.load(out_ptrs, mask=(m < M) & (n < N), other=0.0)
        else:
            acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for done in range(0, K, BLOCK_K):
            a = tl.load(a_ptrs, mask=(m < M) & (k[None, :] < K - done), other=0.0)
            b = tl.load(b_ptrs, mask=(k[:, None] < K - done) & (n < N), other=0.0)
            acc = tl.dot(a, b, acc, input_precision="ieee")
            a_ptrs += step * a_k_stride
            b_ptrs += step * b_k_stride
        tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=(m < M) & (n < N))


class MatmulLaunch(NamedTuple):
    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def matmul_launch(dtype: torch.dtype, sm: int) -> MatmulLaunch:
    """16 bits: the widest wgmma, 147 KB of tiles under way; half of it on GPUs that people own (sm_86, sm_89, sm_120),
    where it would spill. fp32: exact products, no tensor cores, small tiles."""
    if dtype.itemsize != 2:
        return MatmulLaunch(64, 64, 32, 4, 2)
    return MatmulLaunch(128, 128 if sm in (86, 89) or sm >= 120 else 256, 64, 8, 3)


def library_matmul(a_MK: Tensor, b_KN: Tensor, out_MN: Tensor, *, add: bool = False) -> None:
    """out = a b, with add out += a b, by torch's matmul; out is fp32 or of a's dtype."""
    if a_MK.dtype == out_MN.dtype:
        out_MN.addmm_(a_MK, b_KN) if add else torch.mm(a_MK, b_KN, out=out_MN)
    elif not a_MK.is_cuda:  # which has no sums wider than its inputs: for tests
        library_matmul(a_MK.to(out_MN.dtype), b_KN.to(out_MN.dtype), out_MN, add=add)
    elif add:
        torch.addmm(out_MN, a_MK, b_KN, out_dtype=out_MN.dtype, out=out_MN)
    else:
        torch.mm(a_MK, b_KN, out_dtype=out_MN.dtype, out=out_MN)


def matmul(
    a_MK: Tensor, b_KN: Tensor, out_MN: Tensor, num_labelled: Tensor, start: int, *, over_tokens: bool, group: int
) -> None:
    """out = a b in the rows of a's labelled tokens, others untouched; over_tokens: out += a b, summed over the
    labelled tokens. What lies at an ignored token is not read: it may be NaN. group: tiles of out worked on together,
    from top to bottom."""
    (M, K), N = a_MK.shape, b_KN.shape[1]
    sm, num_processors = 90, 2  # on a CPU, for the interpreter
    if a_MK.is_cuda:
        gpu = torch.cuda.get_device_properties(a_MK.device)
        sm, num_processors = 10 * gpu.major + gpu.minor, gpu.multi_processor_count
    block_m, block_n, block_k, num_warps, num_stages = matmul_launch(a_MK.dtype, sm)
    num_tiles = triton.cdiv(M, block_m) * triton.cdiv(N, block_n)
    if num_tiles:
        with on_device_of(a_MK):
            _matmul_kernel[(min(num_tiles, num_processors),)](
                a_MK, b_KN, out_MN, num_labelled, start, M, N, K, *a_MK.stride(), *b_KN.stride(), out_MN.stride(0),
                COUNT_K=over_tokens, ADD=over_tokens, GROUP=group, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k,
                num_warps=num_warps, num_stages=num_stages,
            )  # fmt: skip


@triton.jit(do_not_specialize=["start"])
def _softmax_kernel(  # type: ignore[no-untyped-def]
    logits_ptr, labels_ptr, scales_ptr, top_ptr, total_ptr, picked_ptr, best_ptr, num_labelled_ptr,
    start, logits_stride,
    V: tl.constexpr, READ: tl.constexpr, GRAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # int64: rows * V passes 2**31
    if start + row < tl.load(num_labelled_ptr):
        label = tl.load(labels_ptr + row)
        label = tl.where(label < V, label, -1)  # another shard's: no lane beyond V may take it for its own
        logits_ptr += row * logits_stride
        i = tl.arange(0, BLOCK)
        if READ:
            # One maximum and sum per lane, merged at the end: no reduction inside the loop.
            high = tl.full((BLOCK,), -float("inf"), tl.float32)
            where = tl.zeros((BLOCK,), tl.int32)
            total = tl.zeros((BLOCK,), tl.float32)
            picked = tl.zeros((BLOCK,), tl.float32)
            for begin in range(0, V, BLOCK):
                z = tl.load(logits_ptr + begin + i, mask=begin + i < V, other=-float("inf")).to(tl.float32)
                higher = tl.maximum(high, z)
                base = tl.where(higher == -float("inf"), 0.0, higher)  # -inf - -inf is NaN
                total = total * tl.exp(high - base) + tl.exp(z - base)
                where = tl.where(z > high, begin + i, where)
                high = higher
                picked += tl.where(begin + i == label, z, 0.0)
            top = tl.max(high, axis=0)
            base_ = tl.where(top == -float("inf"), 0.0, top)
            total_ = tl.sum(total * tl.exp(high - base_), axis=0)
            tl.store(top_ptr + row, top)
            tl.store(total_ptr + row, total_)
            tl.store(picked_ptr + row, tl.sum(picked, axis=0))
            tl.store(best_ptr + row, tl.min(tl.where(high == top, where, V), axis=0).to(tl.int64))
        else:
            top = tl.load(top_ptr + row)
            total_ = tl.load(total_ptr + row)
        if GRAD:
            scale = tl.load(scales_ptr + row)
            for begin in range(0, V, BLOCK):
                z = tl.load(logits_ptr + begin + i, mask=begin + i < V, other=-float("inf")).to(tl.float32)
                p = tl.exp(z - top) / total_
                g = scale * (p - tl.where(begin + i == label, 1.0, 0.0))  # minus 1 before the rounding
                tl.store(logits_ptr + begin + i, g.to(logits_ptr.dtype.element_ty), mask=begin + i < V)


def softmax(
    logits_MV: Tensor, labels_M: Tensor, scales_M: Tensor, stats: Statistics, num_labelled: Tensor, start: int,
    *, read: bool, grad: bool,
) -> None:  # fmt: skip
    """In the rows of labelled tokens. read: fills `stats`. grad: logits become scales * (softmax - onehot), by `stats`.
    A label outside 0..V-1 is in another shard."""
    M, V = logits_MV.shape
    with on_device_of(logits_MV):
        _softmax_kernel[(M,)](
            logits_MV, labels_M, scales_M, *stats, num_labelled, start, logits_MV.stride(0),
            V=V, READ=read, GRAD=grad, BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip
