"""One new query a sequence against its rows in a packed cache of keys and values: the step of generation.

    out_SHD = decode_attention(q_SHD, k_LKD, v_LKD, k_start_S, k_len_S)                      # a run of rows each
    out_SHD = decode_attention(q_SHD, k_LKD, v_LKD, k_start_SB, k_len_S, block_rows=16)      # or blocks, anywhere

Dims    S sequences, H query heads, K key/value heads, G = H / K, D head width, L rows of the cache, B blocks.
Maths   s = scale * q k^T;  out = softmax(s) v;  lse = log sum exp s, over keys k_start .. k_start + k_len - 1; where
        the cache has blocks, key j is row k_start[j / block_rows] + j % block_rows.
        A sequence without keys gives out = 0 and lse = -inf. Rows may be of several sequences: they may share a prompt.
Numbers fp32 inside (products too: one query a head leaves the tensor cores nothing to do), one rounding on store.
        Keys are cut into splits of 256, so that one long sequence fills the machine; each split is a softmax of its
        own, and they join as `merge_attention` joins partials, in a fixed order. Where the cuts lie depends on the
        sequence's length alone: its bits do not depend on the batch. The G query heads of a group (up to 8 at once on
        a GPU) share each read of the cache. Memory bound: reads 2 * K * D elements a key.
Source  Dao et al. 2023, flash-decoding; Milakov and Gimelshein 2018, arXiv:1805.02867.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from eagle_kernels import autocast, native
from eagle_kernels.checks import KERNEL_DTYPES, is_positive, refuse, refuse_types, refuse_unlike
from eagle_kernels.library import custom_op

OP = "decode_attention"
MAX_BLOCK_ROWS = 1 << 20  # kMaxBlockRows of csrc/decode_attention.h


def decode_attention_ref(
    q_SHD: Tensor,
    k_LKD: Tensor,
    v_LKD: Tensor,
    k_start_S: Tensor,
    k_len_S: Tensor,
    *,
    block_rows: int | None = None,
    softmax_scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, lse): what the kernel means, in plain torch, one sequence after another. Any device, fp64 too."""
    (S, H, D), K = q_SHD.shape, k_LKD.shape[1]
    wide = torch.float64 if q_SHD.dtype == torch.float64 else torch.float32
    scale = D**-0.5 if softmax_scale is None else softmax_scale
    out_SHD, lse_HS = torch.zeros_like(q_SHD), q_SHD.new_full((H, S), -torch.inf, dtype=wide)
    for s, (start, length) in enumerate(zip(k_start_S.reshape(S, -1).tolist(), k_len_S.tolist(), strict=True)):
        if length:
            rows = [range(start[0], start[0] + length)]
            if block_rows is not None:
                rows = [range(first, first + block_rows) for first in start[: -(-length // block_rows)]]
            rows_N = torch.tensor([row for run in rows for row in run], device=q_SHD.device)[:length]
            k_KND, v_KND = (x_LKD[rows_N].to(wide).transpose(0, 1) for x_LKD in (k_LKD, v_LKD))
            scores_KGN = scale * q_SHD[s].to(wide).unflatten(0, (K, H // K)) @ k_KND.transpose(1, 2)
            out_SHD[s] = (scores_KGN.softmax(2) @ v_KND).flatten(0, 1).to(q_SHD.dtype)
            lse_HS[:, s] = scores_KGN.logsumexp(2).flatten()
    return out_SHD, lse_HS


@custom_op("eagle::decode_attention")
def _fwd(
    q_SHD: Tensor,
    k_LKD: Tensor,
    v_LKD: Tensor,
    k_start_S: Tensor,
    k_len_S: Tensor,
    max_k_len: int,
    block_rows: int,
    softmax_scale: float,
    num_threads: int,
) -> tuple[Tensor, Tensor]:
    out_SHD, lse_HS = _fwd_fake(
        q_SHD, k_LKD, v_LKD, k_start_S, k_len_S, max_k_len, block_rows, softmax_scale, num_threads
    )
    if out_SHD.numel() == 0:
        return out_SHD, lse_HS
    extension = native.load()
    num_floats = extension.decode_attention_workspace_floats(*q_SHD.shape, max_k_len)
    workspace = q_SHD.new_empty(num_floats, dtype=torch.float32)
    tensors = extension.DecodeAttention(
        q=native.view(q_SHD),
        k=native.view(k_LKD),
        v=native.view(v_LKD),
        k_start=native.view(k_start_S.view(len(k_start_S), -1)),
        k_len=native.view(k_len_S),
        out=native.view(out_SHD),
        lse=native.view(lse_HS),
        workspace=native.view(workspace),
        max_k_len=max_k_len,
        block_rows=block_rows,
        softmax_scale=softmax_scale,
    )
    if not q_SHD.is_cuda:
        extension.decode_attention_cpu(tensors, num_threads)
        return out_SHD, lse_HS
    native.require_cuda("decode_attention")
    device = q_SHD.device
    # The workspace is freed before the kernels ran, and safely: the allocator hands it on in this stream's order.
    extension.decode_attention_cuda(tensors, device.index, torch.cuda.current_stream(device).cuda_stream)
    return out_SHD, lse_HS


@_fwd.register_fake
def _fwd_fake(
    q_SHD: Tensor,
    k_LKD: Tensor,
    v_LKD: Tensor,
    k_start_S: Tensor,
    k_len_S: Tensor,
    max_k_len: int,
    block_rows: int,
    softmax_scale: float,
    num_threads: int,
) -> tuple[Tensor, Tensor]:
    S, H, D = q_SHD.shape
    return q_SHD.new_empty(S, H, D), q_SHD.new_empty(H, S, dtype=torch.float32)


@overload
def decode_attention(
    q_SHD: Tensor,
    k_LKD: Tensor,
    v_LKD: Tensor,
    k_start_S: Tensor,
    k_len_S: Tensor,
    *,
    max_k_len: int | None = ...,
    block_rows: int | None = ...,
    softmax_scale: float | None = ...,
    return_lse: Literal[False] = ...,
    num_threads: int = ...,
) -> Tensor: ...


@overload
def decode_attention(
    q_SHD: Tensor,
    k_LKD: Tensor,
    v_LKD: Tensor,
    k_start_S: Tensor,
    k_len_S: Tensor,
    *,
    max_k_len: int | None = ...,
    block_rows: int | None = ...,
    softmax_scale: float | None = ...,
    return_lse: Literal[True],
    num_threads: int = ...,
) -> tuple[Tensor, Tensor]: ...


def decode_attention(
    q_SHD: Tensor,
    k_LKD: Tensor,
    v_LKD: Tensor,
    k_start_S: Tensor,
    k_len_S: Tensor,
    *,
    max_k_len: int | None = None,
    block_rows: int | None = None,
    softmax_scale: float | None = None,
    return_lse: bool = False,
    num_threads: int = 0,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * q k^T) v of one query a sequence against its own rows of a packed cache.

        q_SHD, k_LKD, v_LKD = torch.randn(2, 28, 128), torch.randn(50, 4, 128), torch.randn(50, 4, 128)
        k_start_S, k_len_S = torch.tensor([[0, 20], [20, 30]], dtype=torch.int32)  # the rows of two sequences
        out_SHD = decode_attention(q_SHD, k_LKD, v_LKD, k_start_S, k_len_S)

    CPU tensors take the C++ code. Not differentiable: it serves generation; `varlen_attention` trains.

    Args:    q_SHD: (S, H, D), one query of H heads, D wide, for each of S sequences.  k_LKD, v_LKD: (L, K, D), the L
             rows of the cache, K key/value heads. All in bf16, fp16 or fp32; the last dimension is contiguous, other
             strides are multiples of 8 elements, the address of 16 bytes. H is a multiple of K; D is a multiple of 8
             from 16 to 256.
             k_start_S, k_len_S: (S,) int32, contiguous: sequence s sees the k_len[s] rows from k_start[s] on; may be 0.
             block_rows: the rows of a block, a power of two from 16 on, where the cache has blocks. k_start is then
             (S, B), the first row of each block of each sequence; entries beyond its last block are not read.
             max_k_len: at least every k_len, known to the host, because it sets the grid and the workspace; None is L,
             or what B blocks hold, if that is less. Give it where sequences are many: work that no sequence has is
             skipped, but not for nothing.
             softmax_scale: > 0; None means D ** -0.5.  return_lse: adds log sum exp of each query's scores.
             num_threads: of the CPU code; 0 is one for each CPU. The bits do not depend on it.
    Returns: out (S, H, D) in q's dtype, and with return_lse also lse (H, S), fp32. A sequence without rows gives
             out = 0 and lse = -inf. Under torch.autocast q, k and v are cast to its dtype, as in torch's attention.
    Raises:  ValueError when an argument is not as above or needs a gradient, and for wrong rows in CPU tensors; rows on
             a GPU are trusted: to check them would stop the host. RuntimeError for CUDA tensors in a build without
             CUDA.
    """
    if not (
        isinstance(q_SHD, Tensor)
        and isinstance(k_LKD, Tensor)
        and isinstance(v_LKD, Tensor)
        and isinstance(k_start_S, Tensor)
        and isinstance(k_len_S, Tensor)
    ):
        refuse_types(OP, q=q_SHD, k=k_LKD, v=v_LKD, k_start=k_start_S, k_len=k_len_S)
    if not q_SHD.is_meta and torch.is_autocast_enabled(q_SHD.device.type):
        with autocast.off(q_SHD):
            return decode_attention(  # type: ignore[call-overload]
                *map(autocast.as_matmul, (q_SHD, k_LKD, v_LKD)), k_start_S, k_len_S, max_k_len=max_k_len,
                block_rows=block_rows, softmax_scale=softmax_scale, return_lse=return_lse, num_threads=num_threads,
            )  # fmt: skip
    _check_arguments(q_SHD, k_LKD, v_LKD, k_start_S, k_len_S, block_rows)
    if not (isinstance(num_threads, int) and num_threads >= 0):
        refuse(OP, "num_threads", num_threads, "at least 0 (0: one for each CPU)")
    D, L = q_SHD.shape[2], k_LKD.shape[0]
    room = L if block_rows is None else min(L, k_start_S.shape[1] * block_rows)
    max_k_len = room if max_k_len is None else max_k_len
    if not (isinstance(max_k_len, int) and 0 <= max_k_len <= room):
        refuse(OP, "max_k_len", max_k_len, f"0 to the {room} rows of {'k' if room == L else 'the blocks'}")
    if not (softmax_scale is None or is_positive(softmax_scale)):
        refuse(OP, "softmax_scale", softmax_scale, "None or a finite number > 0")
    scale = D**-0.5 if softmax_scale is None else softmax_scale
    out_SHD, lse_HS = _fwd(q_SHD, k_LKD, v_LKD, k_start_S, k_len_S, max_k_len, block_rows or 0, scale, num_threads)
    return (out_SHD, lse_HS) if return_lse else out_SHD


def _check_arguments(
    q_SHD: Tensor, k_LKD: Tensor, v_LKD: Tensor, k_start_S: Tensor, k_len_S: Tensor, block_rows: int | None
) -> None:
    tensors = (("q", q_SHD), ("k", k_LKD), ("v", v_LKD))
    if q_SHD.dtype not in KERNEL_DTYPES:
        refuse(OP, "q's dtype", q_SHD.dtype, f"one of {KERNEL_DTYPES}")
    for name, x in tensors:
        wanted = torch.is_grad_enabled() and x.requires_grad
        if wanted:
            refuse(OP, f"{name}'s requires_grad", True, "False, or torch.no_grad(): there is no backward")
        if x.dim() != 3:
            refuse(OP, f"{name}'s shape", tuple(x.shape), "three dimensions, (rows, heads, head width)")
        if x.dtype != q_SHD.dtype or x.device != q_SHD.device:
            refuse_unlike(OP, name, x, "q", q_SHD)
        whole = all(n == 1 or stride % 8 == 0 for n, stride in zip(x.shape[:2], x.stride()[:2], strict=True))
        if not (x.stride(2) == 1 and whole):
            refuse(OP, f"{name}'s strides", x.stride(), "multiples of 8, then 1")
    (S, H, D), K = q_SHD.shape, k_LKD.shape[1]
    if not (D % 8 == 0 and 16 <= D <= 256):
        refuse(OP, "the head width", D, "a multiple of 8 from 16 to 256")
    if k_LKD.shape[2] != D:
        refuse(OP, "k's head width", k_LKD.shape[2], f"q's {D}")
    if v_LKD.shape != k_LKD.shape:
        refuse(OP, "v's shape", tuple(v_LKD.shape), f"k's {tuple(k_LKD.shape)}")
    if not (K > 0 and H % K == 0):
        refuse(OP, "the number of query heads", H, f"a multiple of the {K} key/value heads")
    if block_rows is not None and not (
        isinstance(block_rows, int) and 16 <= block_rows <= MAX_BLOCK_ROWS and block_rows & (block_rows - 1) == 0
    ):
        refuse(OP, "block_rows", block_rows, f"None, or a power of two from 16 to {MAX_BLOCK_ROWS}")
    for name, x in (("k_start", k_start_S), ("k_len", k_len_S)):
        if x.dtype != torch.int32:
            refuse(OP, f"{name}'s dtype", x.dtype, "torch.int32")
        if x.device != q_SHD.device:
            refuse(OP, f"{name}'s device", x.device, f"q's {q_SHD.device}")
        if name == "k_start" and block_rows is not None:
            if x.dim() != 2 or x.shape[0] != S:
                refuse(OP, "k_start's shape", tuple(x.shape), f"(sequences, blocks), ({S}, ...), with block_rows")
        elif tuple(x.shape) != (S,):
            refuse(OP, f"{name}'s shape", tuple(x.shape), f"(sequences,), {(S,)}")
        if not x.is_contiguous():
            refuse(OP, f"{name}'s strides", x.stride(), "(1,)" if x.dim() == 1 else "contiguous ones")
