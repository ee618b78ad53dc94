"""Packed attention: documents of any length in one row, no padding, no mask in memory; exact softmax, tile by tile.

    cu_seqlens = torch.tensor([0, 3, 7], dtype=torch.int32)  # two documents, of 3 and 4 tokens
    out_THD = varlen_attention(q_THD, k_TKD, v_TKD, cu_seqlens)

Which rows see which is an AttentionPlan (attention_plan.py); the kernels are in attention_triton.py.

Dims    T tokens (rows of q; rows of k and v may be another number), H query heads, K key/value heads, G = H / K,
        D head width, S segments, N query tiles, M key tiles; in the reference N documents of L queries and M keys.
        A segment is a run of query rows and the run of key rows that they may see; usually a document.
Maths   s = scale * q k^T;  out = softmax(s) v;  lse = log sum exp s.
        causal: the last query of a segment sees its last key, query i sees keys j <= i + k_len - q_len
        (flash-attention >= 2.1). A row that sees no key gives out = 0 and lse = -inf, and takes no gradient.
Grads   p = exp(s - lse); dv = p^T dout; dp = dout v^T; ds = p * (dp - delta), delta = rowsum(dout * out) - dlse;
        dq = scale * ds k; dk = scale * ds^T q, summed over the G query heads of a key head.
Source  Dao 2023, arXiv:2307.08691; Milakov and Gimelshein 2018, arXiv:1805.02867.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, Literal, get_args, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle_kernels import attention_sm90, attention_triton, autocast
from eagle_kernels.attention_plan import AttentionPlan, check_offsets
from eagle_kernels.checks import KERNEL_DTYPES, is_positive, refuse, refuse_types, refuse_unlike, takes_kernel
from eagle_kernels.library import custom_op

Backend = Literal["eagle", "flash_attn"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


def varlen_attention_ref(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor | AttentionPlan,
    *,
    cu_seqlens_k: Tensor | None = None,
    causal: bool = True,
    softmax_scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """What the kernels mean, in plain torch: SDPA a run of equal documents. Any device, fp64 too; reads cu_seqlens."""
    if isinstance(cu_seqlens, AttentionPlan) and cu_seqlens.length:
        length = cu_seqlens.length  # nothing is read, so that torch.compile takes the whole
        segments = [(row, length, row, length) for row in range(0, cu_seqlens.num_tokens, length)]
    elif isinstance(cu_seqlens, AttentionPlan):
        segments = cu_seqlens.segments_S4.tolist()
    else:
        ends_q = cu_seqlens.tolist()
        ends_k = ends_q if cu_seqlens_k is None else cu_seqlens_k.tolist()
        segments = [(a, b - a, c, d - c) for a, b, c, d in zip(ends_q, ends_q[1:], ends_k, ends_k[1:], strict=False)]
    # Neighbours of equal lengths become one batched call: all tiles of the vision tower in one.
    runs = _runs_of_equal_segments(sorted(segment for segment in segments if segment[1]))
    q_parts = _row_ranges(q_THD, [(q_start, num * q_len) for num, q_start, q_len, _, _ in runs])
    k_parts = _row_ranges(k_TKD, [(k_start, num * k_len) for num, _, _, k_start, k_len in runs])
    v_parts = _row_ranges(v_TKD, [(k_start, num * k_len) for num, _, _, k_start, k_len in runs])
    scale = q_THD.shape[2] ** -0.5 if softmax_scale is None else softmax_scale
    lse_dtype = torch.float64 if q_THD.dtype == torch.float64 else torch.float32
    outs, lses, row = [], [], 0
    for (num, q_start, q_len, _, k_len), q, k, v in zip(runs, q_parts, k_parts, v_parts, strict=True):
        if q_start > row:  # rows of no segment
            outs.append(q_THD.new_zeros(q_start - row, *q_THD.shape[1:]))
            lses.append(q_THD.new_full((q_THD.shape[1], q_start - row), -torch.inf, dtype=lse_dtype))
        row = q_start + num * q_len
        out_NLHD, lse_NHL = _attend(
            q.unflatten(0, (num, q_len)), k.unflatten(0, (num, k_len)), v.unflatten(0, (num, k_len)),
            causal, scale, lse_dtype if return_lse else None,
        )  # fmt: skip
        outs.append(out_NLHD.flatten(0, 1))
        if lse_NHL is not None:
            lses.append(lse_NHL.transpose(0, 1).flatten(1))
    if row < q_THD.shape[0] or not outs:
        zero = _zero_of(q_THD, k_TKD, v_TKD)
        outs.append(q_THD.new_zeros(q_THD.shape[0] - row, *q_THD.shape[1:]) + zero)
        lses.append(zero + q_THD.new_full((q_THD.shape[1], q_THD.shape[0] - row), -torch.inf, dtype=lse_dtype))
    out_THD = outs[0] if len(outs) == 1 else torch.cat(outs)
    return (out_THD, torch.cat(lses, dim=1)) if return_lse else out_THD


def _runs_of_equal_segments(segments: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int, int]]:
    """(number, q_start, q_len, k_start, k_len) of each run of adjoining segments that share both lengths."""
    numbered = [
        # Adjoining segments of one shape share (q_start - i * q_len, k_start - i * k_len).
        ((q_len, k_len, q_start - i * q_len, k_start - i * k_len), q_start, k_start)
        for i, (q_start, q_len, k_start, k_len) in enumerate(segments)
    ]
    runs = []
    for (q_len, k_len, _, _), group in groupby(numbered, key=lambda item: item[0]):
        members = list(group)
        runs.append((len(members), members[0][1], q_len, members[0][2], k_len))
    return runs


def _row_ranges(x: Tensor, ranges: list[tuple[int, int]]) -> list[Tensor]:
    """num rows of x from start on, for each (start, num). One split, with one cat as backward, if they are all of x."""
    row = 0
    for start, num in ranges:
        if start != row:
            return [x[start : start + num] for start, num in ranges]
        row += num
    if row != x.shape[0]:
        return [x[start : start + num] for start, num in ranges]
    return list(x.split([num for _, num in ranges])) if len(ranges) > 1 else [x] * len(ranges)


def _zero_of(*tensors: Tensor) -> Tensor:
    """The sum of no rows: 0, whatever the tensors hold. What is added to it keeps its place in the graph of autograd,
    so that rows that see nothing give their inputs zeros for a gradient instead of none."""
    return torch.stack([x[..., :0].sum() for x in tensors]).sum()


def _attend(
    q_NLHD: Tensor, k_NMKD: Tensor, v_NMKD: Tensor, causal: bool, scale: float, lse_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """out (N, L, H, D) and, where a dtype is given, lse (N, H, L) of N documents of L queries and M keys each."""
    N, L, H, _ = q_NLHD.shape
    M, K = k_NMKD.shape[1:3]
    num_blind = max(L - M, 0) if causal else L * (M == 0)  # leading rows that see no key
    if num_blind == L:
        zero = _zero_of(q_NLHD, k_NMKD, v_NMKD)
        lse_NHL = None if lse_dtype is None else zero + q_NLHD.new_full((N, H, L), -torch.inf, dtype=lse_dtype)
        return torch.zeros_like(q_NLHD) + zero, lse_NHL
    q, k, v = q_NLHD[:, num_blind:].transpose(1, 2), k_NMKD.transpose(1, 2), v_NMKD.transpose(1, 2)
    num_rows = L - num_blind
    mask_LM = None
    if causal and 1 < num_rows < M:  # one row, the last, sees every key; a square needs no mask in memory
        mask_LM = torch.ones(num_rows, M, dtype=torch.bool, device=q.device).tril(M - num_rows)
    out_NHLD = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask_LM, is_causal=causal and num_rows == M, scale=scale, enable_gqa=H != K
    )
    out_NLHD = F.pad(out_NHLD.transpose(1, 2), (0, 0, 0, 0, num_blind, 0)) if num_blind else out_NHLD.transpose(1, 2)
    if lse_dtype is None:
        return out_NLHD, None
    scores_NHLM = q.to(lse_dtype) @ k.to(lse_dtype).repeat_interleave(H // K, 1).transpose(2, 3) * scale
    if causal:
        visible_LM = torch.ones(num_rows, M, dtype=torch.bool, device=q.device).tril(M - num_rows)
        scores_NHLM = scores_NHLM.masked_fill(~visible_LM, -torch.inf)
    return out_NLHD, F.pad(scores_NHLM.logsumexp(3), (num_blind, 0), value=-torch.inf)


@custom_op("eagle::attention_fwd")
def _fwd(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    segments_S4: Tensor,
    q_tiles_N2: Tensor,
    k_tiles_M4: Tensor,
    covers_all: bool,
    causal: bool,
    softmax_scale: float,
    length: int = 0,
) -> tuple[Tensor, Tensor]:
    """out (T, H, D) and lse (H, T), fp32. The key tiles are here for backward alone."""
    T, H, D = q_THD.shape
    out_THD = q_THD.new_empty(T, H, D) if covers_all else q_THD.new_zeros(T, H, D)
    lse_HT = q_THD.new_full((H, T), -torch.inf, dtype=torch.float32)
    kernels = attention_triton if attention_sm90.why_triton(q_THD, k_TKD, v_TKD) else attention_sm90
    kernels.launch_fwd(
        q_THD, k_TKD, v_TKD, out_THD, lse_HT, segments_S4, q_tiles_N2,
        causal=causal, softmax_scale=softmax_scale, length=length,
    )  # fmt: skip
    return out_THD, lse_HT


@_fwd.register_fake
def _(q_THD: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    T, H, D = q_THD.shape
    return q_THD.new_empty(T, H, D), q_THD.new_empty(H, T, dtype=torch.float32)


@custom_op("eagle::attention_bwd")
def _bwd(
    dout_THD: Tensor,
    dlse_HT: Tensor,
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    segments_S4: Tensor,
    q_tiles_N2: Tensor,
    k_tiles_M4: Tensor,
    covers_all: bool,
    causal: bool,
    softmax_scale: float,
    length: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """dq (T, H, D), dk and dv (T, K, D)."""
    if dout_THD.stride(2) != 1:  # a gradient expanded from a sum
        dout_THD = dout_THD.contiguous()
    dlse_HT = dlse_HT.contiguous()
    dq_THD = q_THD.new_empty(q_THD.shape) if covers_all else q_THD.new_zeros(q_THD.shape)
    dk_TKD, dv_TKD = k_TKD.new_empty(k_TKD.shape), v_TKD.new_empty(v_TKD.shape)
    lse_log2_HT, delta_HT = attention_triton.launch_delta(dout_THD, out_THD, lse_HT, dlse_HT)
    kernels = attention_triton if attention_sm90.why_triton(q_THD, k_TKD, v_TKD, dout_THD) else attention_sm90
    kernels.launch_bwd(
        dout_THD, q_THD, k_TKD, v_TKD, lse_log2_HT, delta_HT, dq_THD, dk_TKD, dv_TKD, segments_S4, q_tiles_N2,
        k_tiles_M4, causal=causal, softmax_scale=softmax_scale, length=length,
    )  # fmt: skip
    return dq_THD, dk_TKD, dv_TKD


@_bwd.register_fake
def _(_dout: Tensor, _dlse: Tensor, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return q_THD.new_empty(q_THD.shape), k_TKD.new_empty(k_TKD.shape), v_TKD.new_empty(v_TKD.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q_THD, k_TKD, v_TKD, segments_S4, q_tiles_N2, k_tiles_M4, *ctx.options = inputs
    ctx.save_for_backward(q_THD, k_TKD, v_TKD, *output, segments_S4, q_tiles_N2, k_tiles_M4)


def _backward(ctx: Any, dout_THD: Tensor, dlse_HT: Tensor) -> tuple[Tensor | None, ...]:
    grads = _bwd(dout_THD, dlse_HT, *ctx.saved_tensors, *ctx.options)
    return (*grads, *[None] * 7)


_fwd.register_autograd(_backward, setup_context=_setup_context)


def _flash_attn(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    plan: AttentionPlan,
    causal: bool,
    softmax_scale: float,
    return_lse: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    """The same by flash-attn's own kernels. Raises ValueError for what they cannot do, ImportError without them."""
    op = "varlen_attention"
    if not plan.covers_all:
        refuse(op, "the plan", "one of segments", "cu_seqlens or a uniform plan for backend='flash_attn'")
    dtypes = (torch.bfloat16, torch.float16)
    if q_THD.dtype not in dtypes:
        refuse(op, "q's dtype", q_THD.dtype, "torch.bfloat16 or torch.float16 for backend='flash_attn'")
    takes_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (q_THD, k_TKD, v_TKD))
    if return_lse and takes_grad:
        need = "return_lse=False, torch.no_grad() or backend='eagle': flash-attn drops the gradient of lse"
        refuse(op, "return_lse", "True for inputs that take gradients", need)
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError as error:
        raise ImportError(
            f"{op}: backend='flash_attn' needs the package flash-attn (pip install 'eagle-kernels[flash-attn]'), or "
            f"take backend='eagle'. Importing it said: {error}"
        ) from error
    # cu_seqlens again: the starts of the segments and the number of rows.
    cu_seqlens = F.pad(plan.segments_S4[:, 0], (0, 1), value=plan.num_tokens)
    cu_seqlens_k = F.pad(plan.segments_S4[:, 2], (0, 1), value=plan.num_tokens_k)
    result = flash_attn_varlen_func(
        q_THD, k_TKD, v_TKD, cu_seqlens, cu_seqlens_k, *plan.longest,
        softmax_scale=softmax_scale, causal=causal, return_attn_probs=return_lse,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )  # fmt: skip
    if not return_lse:
        return result
    out_THD, lse_HT, _ = result
    return out_THD, lse_HT.masked_fill(lse_HT == torch.inf, -torch.inf)  # flash-attn's sign for a row that sees no key


def _varlen_attention(
    q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, plan: AttentionPlan, causal: bool, softmax_scale: float
) -> tuple[Tensor, Tensor]:
    """The kernels, on any device: CPU tensors under Triton's interpreter."""
    return _fwd(
        q_THD, k_TKD, v_TKD, plan.segments_S4, plan.q_tiles_N2, plan.k_tiles_M4, plan.covers_all,
        causal, softmax_scale, plan.length,
    )  # fmt: skip


@overload
def varlen_attention(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor | AttentionPlan,
    *,
    cu_seqlens_k: Tensor | None = ...,
    causal: bool = ...,
    softmax_scale: float | None = ...,
    return_lse: Literal[False] = ...,
    backend: Backend = ...,
) -> Tensor: ...


@overload
def varlen_attention(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor | AttentionPlan,
    *,
    cu_seqlens_k: Tensor | None = ...,
    causal: bool = ...,
    softmax_scale: float | None = ...,
    return_lse: Literal[True],
    backend: Backend = ...,
) -> tuple[Tensor, Tensor]: ...


def varlen_attention(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor | AttentionPlan,
    *,
    cu_seqlens_k: Tensor | None = None,
    causal: bool = True,
    softmax_scale: float | None = None,
    return_lse: bool = False,
    backend: Backend = "eagle",
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale * q k^T) v within each document of a packed row: exact, no padding, no mask in memory.

        q_THD, k_TKD, v_TKD = torch.randn(7, 28, 128), torch.randn(7, 4, 128), torch.randn(7, 4, 128)
        cu_seqlens = torch.tensor([0, 3, 7], dtype=torch.int32)  # two documents, of 3 and 4 tokens
        out_THD = varlen_attention(q_THD, k_TKD, v_TKD, cu_seqlens)

    Differentiable in q, k and v, through the lse too. CPU tensors take `varlen_attention_ref`, of which torch.compile
    makes one graph for a uniform plan alone: it reads other offsets. There, an lse takes memory for all scores of a
    document; out does not.

    Args:    q_THD: (T, H, D), T tokens, H query heads, D wide.  k_TKD, v_TKD: (T, K, D), K key/value heads; their
             number of tokens may be another. All in bf16, fp16 or fp32 (on a CPU fp64 too, whose lse is fp64). The last
             dimension is contiguous, other strides are free, so that views of one fused projection need no copy
             (multiples of 8 elements load fastest). H is a multiple of K; D is a multiple of 8 from 16 to 256.
             cu_seqlens: (S + 1,) int32, where each of S documents begins, and T; or an AttentionPlan, which is built
             once a batch instead of once a call.  cu_seqlens_k: the same for k and v, where their lengths differ.
             causal: query i of a document sees keys j <= i + k_len - q_len; otherwise all of its document.
             softmax_scale: > 0; None means D ** -0.5.  return_lse: adds log sum exp of each query's scores.
             backend: who computes on a GPU. "eagle": our kernels. "flash_attn": flash-attn 2, the extra of that name,
             for bf16 and fp16 without segments; its lse takes no gradient, its backward repeats bit for bit only under
             torch.use_deterministic_algorithms, and the lengths of a plan are read on the host once.
    Returns: out (T, H, D) in q's dtype, and with return_lse also lse (H, T), fp32. A query that sees no key gives
             out = 0 and lse = -inf. Under torch.autocast q, k and v are cast to its dtype, as in torch's attention.
    Raises:  ValueError when an argument is not as above, for wrong offsets in CPU tensors, and for what the backend
             cannot do. Offsets on a GPU are trusted: to check them would stop the host. ImportError where flash-attn is
             asked for and not installed. RuntimeError where offsets are CUDA tensors and this package was built without
             CUDA.
    """
    options = (cu_seqlens_k, causal, softmax_scale, return_lse, backend)
    return _attention("varlen_attention", q_THD, k_TKD, v_TKD, cu_seqlens, *options)


def _attention(
    op: str,
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    cu_seqlens: Tensor | AttentionPlan,
    cu_seqlens_k: Tensor | None,
    causal: bool,
    softmax_scale: float | None,
    return_lse: bool,
    backend: Backend,
) -> Tensor | tuple[Tensor, Tensor]:
    """The public functions; `op` is the one that was called."""
    if not (isinstance(q_THD, Tensor) and isinstance(k_TKD, Tensor) and isinstance(v_TKD, Tensor)):
        refuse_types(op, q=q_THD, k=k_TKD, v=v_TKD)
    if not q_THD.is_meta and torch.is_autocast_enabled(q_THD.device.type):
        q_THD, k_TKD, v_TKD = map(autocast.as_matmul, (q_THD, k_TKD, v_TKD))
        options = (cu_seqlens_k, causal, softmax_scale, return_lse, backend)
        with autocast.off(q_THD):
            return _attention(op, q_THD, k_TKD, v_TKD, cu_seqlens, *options)
    _check_inputs(op, q_THD, k_TKD, v_TKD)
    if not (softmax_scale is None or is_positive(softmax_scale)):
        refuse(op, "softmax_scale", softmax_scale, "None or a finite number > 0")
    if backend not in BACKENDS:
        refuse(op, "backend", repr(backend), f"one of {', '.join(BACKENDS)}")
    if not (backend == "eagle" or q_THD.is_cuda):
        refuse(op, "q's device", q_THD.device, "a CUDA device for backend='flash_attn'")
    _check_who_sees_whom(op, q_THD, k_TKD, cu_seqlens, cu_seqlens_k)
    if not takes_kernel(q_THD):
        return varlen_attention_ref(
            q_THD, k_TKD, v_TKD, cu_seqlens,
            cu_seqlens_k=cu_seqlens_k, causal=causal, softmax_scale=softmax_scale, return_lse=return_lse,
        )  # fmt: skip
    plan = cu_seqlens
    if not isinstance(plan, AttentionPlan):
        plan = AttentionPlan.from_cu_seqlens(
            plan, cu_seqlens_k, num_tokens=q_THD.shape[0], num_tokens_k=k_TKD.shape[0], causal=causal
        )
    scale = q_THD.shape[2] ** -0.5 if softmax_scale is None else softmax_scale
    if backend == "flash_attn":
        return _flash_attn(q_THD, k_TKD, v_TKD, plan, causal, scale, return_lse)
    out_THD, lse_HT = _varlen_attention(q_THD, k_TKD, v_TKD, plan, causal, scale)
    return (out_THD, lse_HT) if return_lse else out_THD


def _check_who_sees_whom(
    op: str, q_THD: Tensor, k_TKD: Tensor, cu_seqlens: Tensor | AttentionPlan, cu_seqlens_k: Tensor | None
) -> None:
    num_rows, num_rows_k = q_THD.shape[0], k_TKD.shape[0]
    if isinstance(cu_seqlens, AttentionPlan):
        plan = cu_seqlens
        if cu_seqlens_k is not None:
            refuse(op, "cu_seqlens_k", "a tensor beside a plan", "None: the plan holds its lengths")
        got = (plan.num_tokens, plan.num_tokens_k)
        if got != (num_rows, num_rows_k):
            need = f"the rows of q and of k, {(num_rows, num_rows_k)}"
            refuse(op, "the plan's (num_tokens, num_tokens_k)", got, need)
        device = plan.segments_S4.device
        if device != q_THD.device:
            refuse(op, "the plan's device", device, f"q's {q_THD.device}")
    else:
        check_offsets(op, cu_seqlens, cu_seqlens_k, num_rows, num_rows_k)
        if cu_seqlens.device != q_THD.device:
            refuse(op, "cu_seqlens' device", cu_seqlens.device, f"q's {q_THD.device}")


def _check_inputs(op: str, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor) -> None:
    for name, x in (("q", q_THD), ("k", k_TKD), ("v", v_TKD)):
        if x.dim() != 3:
            refuse(op, f"{name}'s shape", tuple(x.shape), "three dimensions, (tokens, heads, head width)")
        if x.stride(2) != 1:
            refuse(op, f"{name}'s strides", x.stride(), "a contiguous last dimension")
    if k_TKD.dtype != q_THD.dtype or k_TKD.device != q_THD.device:
        refuse_unlike(op, "k", k_TKD, "q", q_THD)
    if v_TKD.dtype != q_THD.dtype or v_TKD.device != q_THD.device:
        refuse_unlike(op, "v", v_TKD, "q", q_THD)
    dtypes = KERNEL_DTYPES if q_THD.is_cuda else (*KERNEL_DTYPES, torch.float64)
    if q_THD.dtype not in dtypes:
        refuse(op, "q's dtype", q_THD.dtype, f"one of {', '.join(str(d) for d in dtypes)}")
    _, H, D = q_THD.shape
    if not (D % 8 == 0 and 16 <= D <= 256):
        refuse(op, "the head width", D, "a multiple of 8 from 16 to 256")
    if k_TKD.shape[2] != D:
        refuse(op, "k's head width", k_TKD.shape[2], f"q's {D}")
    if v_TKD.shape != k_TKD.shape:
        refuse(op, "v's shape", tuple(v_TKD.shape), f"k's {tuple(k_TKD.shape)}")
    K = k_TKD.shape[1]
    if not (K > 0 and H % K == 0):
        refuse(op, "the number of query heads", H, f"a multiple of the {K} key/value heads")


def varlen_attention_backward(
    dout_THD: Tensor,
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    plan: AttentionPlan,
    *,
    causal: bool = True,
    softmax_scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of attention by hand, of some of its keys too: for those who write their own autograd function.

        out_THD, lse_HT = varlen_attention(q_THD, k_TKD, v_TKD, plan, return_lse=True)
        dq_THD, dk_TKD, dv_TKD = varlen_attention_backward(dout_THD, q_THD, k_TKD, v_TKD, out_THD, lse_HT, plan)

    Where keys come in parts, whose outputs `merge_attention` has put together: out and lse are those of all keys, k, v
    and plan one part's. dk and dv are then that part's, and the dq of the parts add up. Takes no gradient itself.

    Args:    as in `varlen_attention`; dout as out (T, H, D); lse (H, T), fp32 (fp64 beside fp64).
    Returns: dq (T, H, D), dk and dv (T, K, D), each in its tensor's dtype; 0 for rows of no segment.
    Raises:  ValueError where `varlen_attention` does for these, and for a dout, out or lse of another shape.
    """
    op = "varlen_attention_backward"
    _check_inputs(op, q_THD, k_TKD, v_TKD)
    _check_who_sees_whom(op, q_THD, k_TKD, plan, None)
    for name, x in (("dout", dout_THD), ("out", out_THD)):
        if x.shape != q_THD.shape:
            refuse(op, f"{name}'s shape", tuple(x.shape), f"q's {tuple(q_THD.shape)}")
    if lse_HT.shape != (q_THD.shape[1], q_THD.shape[0]):
        refuse(op, "lse's shape", tuple(lse_HT.shape), f"(heads, tokens), {(q_THD.shape[1], q_THD.shape[0])}")
    options = (dout_THD, q_THD, k_TKD, v_TKD, out_THD, lse_HT, plan)
    if not takes_kernel(q_THD):
        return varlen_attention_backward_ref(*options, causal=causal, softmax_scale=softmax_scale)
    scale = q_THD.shape[2] ** -0.5 if softmax_scale is None else softmax_scale
    return _bwd(
        dout_THD, torch.zeros_like(lse_HT), q_THD, k_TKD, v_TKD, out_THD, lse_HT, plan.segments_S4, plan.q_tiles_N2,
        plan.k_tiles_M4, plan.covers_all, causal, scale, plan.length,
    )  # fmt: skip


def varlen_attention_backward_ref(
    dout_THD: Tensor,
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    plan: AttentionPlan,
    *,
    causal: bool = True,
    softmax_scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The formulas above in plain torch, segment by segment, in fp32 at least. Any device; takes memory for scores."""
    scale = q_THD.shape[2] ** -0.5 if softmax_scale is None else softmax_scale
    wide, G = torch.promote_types(q_THD.dtype, torch.float32), q_THD.shape[1] // k_TKD.shape[1]
    dq, dk, dv = (torch.zeros_like(x, dtype=wide) for x in (q_THD, k_TKD, v_TKD))
    delta_HT = (dout_THD.to(wide) * out_THD.to(wide)).sum(2).t()
    for q_start, q_len, k_start, k_len in plan.segments_S4.tolist():
        if not (q_len and k_len):
            continue
        rows, keys = slice(q_start, q_start + q_len), slice(k_start, k_start + k_len)
        q_HLD, do_HLD = (x[rows].to(wide).transpose(0, 1) for x in (q_THD, dout_THD))
        k_HMD, v_HMD = (x[keys].to(wide).repeat_interleave(G, 1).transpose(0, 1) for x in (k_TKD, v_TKD))
        p_HLM = (q_HLD @ k_HMD.mT * scale - lse_HT[:, rows, None]).exp()
        if causal:  # blind rows too, whose exponentials are nan
            seen_LM = torch.ones(q_len, k_len, dtype=torch.bool, device=q_THD.device).tril(k_len - q_len)
            p_HLM = p_HLM.masked_fill(~seen_LM, 0)
        ds_HLM = p_HLM * (do_HLD @ v_HMD.mT - delta_HT[:, rows, None]) * scale
        dq[rows] = (ds_HLM @ k_HMD).transpose(0, 1)
        for whole, part_HMD in ((dk, ds_HLM.mT @ q_HLD), (dv, p_HLM.mT @ do_HLD)):
            whole[keys] += part_HMD.unflatten(0, (-1, G)).sum(1).transpose(0, 1)
    return dq.to(q_THD.dtype), dk.to(k_TKD.dtype), dv.to(v_TKD.dtype)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor, None]:
    """`varlen_attention` with the arguments of flash-attn 2's function of this name: a drop-in where that is called.

        from eagle_kernels import flash_attn_varlen_func  # in place of: from flash_attn import flash_attn_varlen_func
        out = flash_attn_varlen_func(q, k, v, cu_seqlens, cu_seqlens, longest, longest, causal=True)

    Args:    q: (total_q, heads, width).  k, v: (total_k, key/value heads, width).  cu_seqlens_q, cu_seqlens_k: int32.
             softmax_scale, causal: as there; a query sees keys by bottom-right alignment, as from flash-attn 2.1 on.
             max_seqlen_q, max_seqlen_k, deterministic: not needed: lengths come from the offsets, and every result is
             the same bits again.
             dropout_p, window_size, softcap, alibi_slopes, block_table: only their defaults.
             return_attn_probs: adds the lse, +inf where a query sees no key, as there, and None, which stands for the
             probabilities of dropout.
    Returns: out (total_q, heads, width), or (out, lse (heads, total_q) fp32, None).
    Raises:  ValueError for what is not as above, and as `varlen_attention`.
    """
    op = "flash_attn_varlen_func"
    if dropout_p != 0:
        refuse(op, "dropout_p", dropout_p, "0: there is no dropout")
    if tuple(window_size) != (-1, -1):
        refuse(op, "window_size", window_size, "(-1, -1): there are no windows")
    if softcap != 0:
        refuse(op, "softcap", softcap, "0: there is no soft cap")
    for name, given in (("alibi_slopes", alibi_slopes), ("block_table", block_table)):
        if given is not None:
            refuse(op, name, "given", "None: it is not supported")
    offsets_k = None if cu_seqlens_k is cu_seqlens_q else cu_seqlens_k
    result = _attention(op, q, k, v, cu_seqlens_q, offsets_k, causal, softmax_scale, return_attn_probs, "eagle")
    if isinstance(result, Tensor):
        return result
    out, lse = result
    return out, lse.masked_fill(lse == -torch.inf, torch.inf), None
