"""Two attention outputs over keys that do not overlap become the output over all of them: split keys, chunked prefill.

    out_THD, lse_HT = merge_attention(out_a_THD, lse_a_HT, out_b_THD, lse_b_HT)

Dims    T tokens, H query heads, D head width.
Maths   lse = log(exp(lse_a) + exp(lse_b));  out = exp(lse_a - lse) * out_a + exp(lse_b - lse) * out_b.
        A side that saw no key has lse = -inf and weight 0, whatever its out holds; without keys on both sides out = 0
        and lse = -inf. More partials merge one after another.
Numbers fp32 inside, relative to the larger lse, so that no exponential overflows; one rounding on store. Merging with a
        side without keys keeps the other's bits. Memory bound: moves 3 * T * H * D elements.
Source  Milakov and Gimelshein 2018, arXiv:1805.02867; Dao et al. 2023, flash-decoding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eagle_kernels import autocast, native
from eagle_kernels.checks import KERNEL_DTYPES, refuse, refuse_types, refuse_unlike
from eagle_kernels.library import custom_op

OP = "merge_attention"


def merge_attention_ref(
    out_a_THD: Tensor, lse_a_HT: Tensor, out_b_THD: Tensor, lse_b_HT: Tensor
) -> tuple[Tensor, Tensor]:
    """What the kernel means, in plain torch. Any device, fp64 too."""
    lse_HT = torch.logaddexp(lse_a_HT, lse_b_HT)
    wide = lse_HT.dtype
    out_THD = torch.zeros_like(out_a_THD, dtype=wide)
    for part_THD, part_HT in ((out_a_THD, lse_a_HT), (out_b_THD, lse_b_HT)):
        blind_TH1 = (part_HT == -torch.inf).t().unsqueeze(2)
        weight_TH1 = (part_HT - lse_HT).exp().t().unsqueeze(2)
        out_THD += (weight_TH1 * part_THD.to(wide)).masked_fill(blind_TH1, 0)
    return out_THD.to(out_a_THD.dtype), lse_HT


@custom_op("eagle::merge_attention")
def _fwd(
    out_a_THD: Tensor, lse_a_HT: Tensor, out_b_THD: Tensor, lse_b_HT: Tensor, num_threads: int
) -> tuple[Tensor, Tensor]:
    out_THD, lse_HT = _fwd_fake(out_a_THD, lse_a_HT, out_b_THD, lse_b_HT, num_threads)
    if out_THD.numel() == 0:
        return out_THD, lse_HT
    extension = native.load()
    tensors = extension.MergeAttention(
        out_a=native.view(out_a_THD),
        lse_a=native.view(lse_a_HT),
        out_b=native.view(out_b_THD),
        lse_b=native.view(lse_b_HT),
        out=native.view(out_THD),
        lse=native.view(lse_HT),
    )
    if not out_a_THD.is_cuda:
        extension.merge_attention_cpu(tensors, num_threads)
        return out_THD, lse_HT
    native.require_cuda("merge_attention")
    device = out_a_THD.device
    extension.merge_attention_cuda(tensors, device.index, torch.cuda.current_stream(device).cuda_stream)
    return out_THD, lse_HT


@_fwd.register_fake
def _fwd_fake(
    out_a_THD: Tensor, lse_a_HT: Tensor, out_b_THD: Tensor, lse_b_HT: Tensor, num_threads: int
) -> tuple[Tensor, Tensor]:
    T, H, D = out_a_THD.shape
    return out_a_THD.new_empty(T, H, D), lse_a_HT.new_empty(H, T)


def merge_attention(
    out_a_THD: Tensor, lse_a_HT: Tensor, out_b_THD: Tensor, lse_b_HT: Tensor, *, num_threads: int = 0
) -> tuple[Tensor, Tensor]:
    """Two partial attention outputs, over keys that do not overlap, become the output over the keys of both.

        halves = [varlen_attention(q, k[i::2], v[i::2], cu_seqlens, cu_seqlens_k=cu_seqlens_half, causal=False,
                                   return_lse=True) for i in (0, 1)]
        out_THD, lse_HT = merge_attention(*halves[0], *halves[1])

    CPU tensors take the C++ code. Not differentiable: to train, give all keys to one `varlen_attention`, or write the
    backward of the parts by `attention.varlen_attention_backward`.

    Args:    out_a_THD, out_b_THD: (T, H, D), T rows of H heads, D wide, in bf16, fp16 or fp32, as `varlen_attention`
             gives them; D is a multiple of 8 from 16 to 256. The last dimension is contiguous, other strides are
             multiples of 8 elements, the address of 16 bytes.
             lse_a_HT, lse_b_HT: (H, T) fp32: log sum exp of each row's scores, -inf where it saw no key; any strides.
             num_threads: of the CPU code; 0 is one for each CPU. The bits do not depend on it.
    Returns: (out, lse): (T, H, D) in out_a's dtype, under torch.autocast, where they may differ, in the widest of both;
             and (H, T) fp32.
    Raises:  ValueError when an argument is not as above or needs a gradient; RuntimeError for CUDA tensors in a build
             without CUDA.
    """
    if not (
        isinstance(out_a_THD, Tensor)
        and isinstance(lse_a_HT, Tensor)
        and isinstance(out_b_THD, Tensor)
        and isinstance(lse_b_HT, Tensor)
    ):
        refuse_types(OP, out_a=out_a_THD, lse_a=lse_a_HT, out_b=out_b_THD, lse_b=lse_b_HT)
    if not out_a_THD.is_meta and torch.is_autocast_enabled(out_a_THD.device.type):
        with autocast.off(out_a_THD):
            out_a_THD, out_b_THD = autocast.widest(out_a_THD, out_b_THD)
            return merge_attention(out_a_THD, lse_a_HT, out_b_THD, lse_b_HT, num_threads=num_threads)
    outs = (("out_a", out_a_THD), ("out_b", out_b_THD))
    lses = (("lse_a", lse_a_HT), ("lse_b", lse_b_HT))
    for name, x in outs + lses:
        wanted = torch.is_grad_enabled() and x.requires_grad
        if wanted:
            refuse(OP, f"{name}'s requires_grad", True, "False, or torch.no_grad(): there is no backward")
        if x.device != out_a_THD.device:
            refuse(OP, f"{name}'s device", x.device, f"out_a's {out_a_THD.device}")
    if out_a_THD.dtype not in KERNEL_DTYPES:
        refuse(OP, "out_a's dtype", out_a_THD.dtype, f"one of {KERNEL_DTYPES}")
    shape = tuple(out_a_THD.shape)
    if len(shape) != 3:
        refuse(OP, "out_a's shape", shape, "three dimensions, (tokens, heads, head width)")
    T, H, D = shape
    if not (D % 8 == 0 and 16 <= D <= 256):
        refuse(OP, "the head width", D, "a multiple of 8 from 16 to 256")
    for name, x in outs:
        if x.dtype != out_a_THD.dtype or x.device != out_a_THD.device:
            refuse_unlike(OP, name, x, "out_a", out_a_THD)
        if tuple(x.shape) != shape:
            refuse(OP, f"{name}'s shape", tuple(x.shape), f"out_a's {shape}")
        whole = all(n == 1 or stride % 8 == 0 for n, stride in zip(x.shape[:2], x.stride()[:2], strict=True))
        if not (x.stride(2) == 1 and whole):
            refuse(OP, f"{name}'s strides", x.stride(), "multiples of 8, then 1")
    for name, x in lses:
        if x.dtype != torch.float32:
            refuse(OP, f"{name}'s dtype", x.dtype, "torch.float32")
        if tuple(x.shape) != (H, T):
            refuse(OP, f"{name}'s shape", tuple(x.shape), f"(heads, tokens), {(H, T)}")
    if not (isinstance(num_threads, int) and num_threads >= 0):
        refuse(OP, "num_threads", num_threads, "at least 0 (0: one for each CPU)")
    out_THD, lse_HT = _fwd(out_a_THD, lse_a_HT, out_b_THD, lse_b_HT, num_threads)
    return out_THD, lse_HT
