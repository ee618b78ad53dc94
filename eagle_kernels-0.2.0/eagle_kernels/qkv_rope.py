"""A fused QKV projection becomes rotated q and k, and v: split, bias and rotary embedding in one pass over memory.

    q_THD, k_TKD, v_TKD = qkv_rope(x @ weight.T, bias_F, positions_T, 1e6, num_heads=28, num_kv_heads=4)
    q_THD, k_TKD, v_TKD = qkv_rope(qkv_proj(x), None, positions_T, 1e6, num_heads=28, num_kv_heads=4)  # added before

Dims    T tokens, H query heads, K key and as many value heads, D head width, even; F = (H + 2K) D.
Maths   x = qkv + bias, its heads in the order q, k, v;  q and k are rotated as in rope;  v is x.
Grads   dqkv: dq and dk rotated back, and dv, side by side;  dbias = sum_T dqkv.
        Without a bias, x is qkv.
Numbers x is not rounded before it is rotated: fp32 inside, one rounding on store. Angles as in rope.
        dbias: fp32 partial sums of NUM_PARTIALS programs, added in a fixed order; no atomics. Backward reads dq, dk and
        dv once. Memory bound: 2 T F elements each way.
Source  The input of attention in Qwen2, whose q, k and v have biases; rope.py for the rotation, scaled or not.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels import autocast
from eagle_kernels.checks import (
    check_kernel_dtype,
    inner_contiguous,
    on_device_of,
    refuse,
    refuse_types,
    refuse_unlike,
    takes_kernel,
)
from eagle_kernels.library import custom_op
from eagle_kernels.rope import _cos_sin, check_angles, check_positions, rope_frequencies_on, rope_ref
from eagle_kernels.sum_partials import sum_partials

TILE = 1024  # pairs a program rotates at a time: 8 a thread, one 16-byte load of bf16 from each half
HEADS = 4  # heads a program takes: their tokens' cos and sin are computed once for all of them
NUM_PARTIALS = 64  # programs that share the tokens of dbias's sum; fixed, so that every GPU adds in the same order


def qkv_rope_ref(
    qkv_TF: Tensor,
    bias_F: Tensor | None,
    positions_T: Tensor,
    theta: float | None = None,
    *,
    num_heads: int,
    num_kv_heads: int,
    frequencies: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernel means, in plain torch. Any device, any dtype; tests differentiate through it."""
    wide = torch.promote_types(qkv_TF.dtype, torch.float32)
    num_all = num_heads + 2 * num_kv_heads
    x_TF = qkv_TF if bias_F is None else qkv_TF.to(wide) + bias_F.to(wide)
    x_TAD = x_TF.unflatten(1, (num_all, qkv_TF.shape[1] // num_all))
    q_THD, k_TKD, v_TKD = x_TAD.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    q_THD, k_TKD = rope_ref(q_THD, k_TKD, positions_T, theta, frequencies=frequencies, scale=scale)
    return q_THD.to(qkv_TF.dtype), k_TKD.to(qkv_TF.dtype), v_TKD.to(qkv_TF.dtype)


@triton.jit
def _split(  # type: ignore[no-untyped-def]
    qkv_ptr, bias_ptr, out_ptr, positions_ptr, frequencies_ptr, qkv_stride, position_stride, T, first, group,
    NUM_HEADS: tl.constexpr, ROTATE: tl.constexpr, HAS_BIAS: tl.constexpr, PER_TOKEN: tl.constexpr,
    SCALE: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """HEADS heads of one of q, k and v, of ROWS tokens. first: the heads before it in qkv."""
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None, None]  # int64: T * F passes 2**31
    head = group * HEADS + tl.arange(0, HEADS)[None, :, None]
    i = tl.arange(0, COLS)[None, None, :]
    mask = (rows < T) & (head < NUM_HEADS) & (i < HALF)
    col = (first + head) * (2 * HALF) + i
    a = tl.load(qkv_ptr + rows * qkv_stride + col, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(qkv_ptr + rows * qkv_stride + col + HALF, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        bias_mask = (head < NUM_HEADS) & (i < HALF)
        a += tl.load(bias_ptr + col, mask=bias_mask, other=0.0).to(tl.float32)
        b += tl.load(bias_ptr + col + HALF, mask=bias_mask, other=0.0).to(tl.float32)
    if ROTATE:
        position = tl.load(positions_ptr + rows * position_stride, mask=rows < T, other=0).to(tl.float32)
        cos, sin = _cos_sin(position, frequencies_ptr, rows, i, (rows < T) & (i < HALF), HALF, PER_TOKEN, SCALE)
        a, b = a * cos - b * sin, b * cos + a * sin
    out = out_ptr + (rows * NUM_HEADS + head) * (2 * HALF) + i
    tl.store(out, a.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(out + HALF, b.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T"])
def _fwd_kernel(  # type: ignore[no-untyped-def]
    qkv_ptr, bias_ptr, positions_ptr, frequencies_ptr, q_ptr, k_ptr, v_ptr, qkv_stride, position_stride, T,
    H: tl.constexpr, K: tl.constexpr, HAS_BIAS: tl.constexpr, PER_TOKEN: tl.constexpr, SCALE: tl.constexpr,
    HALF: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1)
    q_groups: tl.constexpr = (H + HEADS - 1) // HEADS
    k_groups: tl.constexpr = (K + HEADS - 1) // HEADS
    if group < q_groups:
        _split(
            qkv_ptr, bias_ptr, q_ptr, positions_ptr, frequencies_ptr, qkv_stride, position_stride, T, 0, group,
            H, True, HAS_BIAS, PER_TOKEN, SCALE, HALF, ROWS, HEADS, COLS,
        )  # fmt: skip
    elif group < q_groups + k_groups:
        _split(
            qkv_ptr, bias_ptr, k_ptr, positions_ptr, frequencies_ptr, qkv_stride, position_stride, T,
            H, group - q_groups, K, True, HAS_BIAS, PER_TOKEN, SCALE, HALF, ROWS, HEADS, COLS,
        )  # fmt: skip
    else:
        _split(
            qkv_ptr, bias_ptr, v_ptr, positions_ptr, frequencies_ptr, qkv_stride, position_stride, T,
            H + K, group - q_groups - k_groups, K, False, HAS_BIAS, PER_TOKEN, SCALE, HALF, ROWS, HEADS, COLS,
        )  # fmt: skip


@triton.jit
def _join(  # type: ignore[no-untyped-def]
    dout_ptr, dout_stride_t, dout_stride_h, positions_ptr, frequencies_ptr, dqkv_ptr, partials_ptr, position_stride, T,
    first, group, F: tl.constexpr, NUM_HEADS: tl.constexpr, ROTATE: tl.constexpr, NEED_DQKV: tl.constexpr,
    NEED_DBIAS: tl.constexpr, PER_TOKEN: tl.constexpr, SCALE: tl.constexpr,
    HALF: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The gradient of `_split` for its share of the tokens, and their part of dbias."""
    head = group * HEADS + tl.arange(0, HEADS)[None, :, None]
    i = tl.arange(0, COLS)[None, None, :]
    col = (first + head) * (2 * HALF) + i
    sum_a = tl.zeros((ROWS, HEADS, COLS), tl.float32)
    sum_b = tl.zeros((ROWS, HEADS, COLS), tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(T, ROWS), tl.num_programs(1)):
        rows = (tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS))[:, None, None]
        mask = (rows < T) & (head < NUM_HEADS) & (i < HALF)
        dout = dout_ptr + rows * dout_stride_t + head.to(tl.int64) * dout_stride_h + i
        a = tl.load(dout, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(dout + HALF, mask=mask, other=0.0).to(tl.float32)
        if ROTATE:
            position = tl.load(positions_ptr + rows * position_stride, mask=rows < T, other=0).to(tl.float32)
            cos, sin = _cos_sin(position, frequencies_ptr, rows, i, (rows < T) & (i < HALF), HALF, PER_TOKEN, SCALE)
            a, b = a * cos + b * sin, b * cos - a * sin
        if NEED_DBIAS:
            sum_a += a
            sum_b += b
        if NEED_DQKV:
            tl.store(dqkv_ptr + rows * F + col, a.to(dqkv_ptr.dtype.element_ty), mask=mask)
            tl.store(dqkv_ptr + rows * F + col + HALF, b.to(dqkv_ptr.dtype.element_ty), mask=mask)
    if NEED_DBIAS:
        heads = group * HEADS + tl.arange(0, HEADS)[:, None]
        halves = tl.arange(0, COLS)[None, :]
        out = partials_ptr + tl.program_id(1).to(tl.int64) * F + (first + heads) * (2 * HALF) + halves
        mask = (heads < NUM_HEADS) & (halves < HALF)
        tl.store(out, tl.sum(sum_a, axis=0), mask=mask)
        tl.store(out + HALF, tl.sum(sum_b, axis=0), mask=mask)


@triton.jit(do_not_specialize=["T"])
def _bwd_kernel(  # type: ignore[no-untyped-def]
    dq_ptr, dk_ptr, dv_ptr, positions_ptr, frequencies_ptr, dqkv_ptr, partials_ptr,
    dq_stride_t, dq_stride_h, dk_stride_t, dk_stride_h, dv_stride_t, dv_stride_h, position_stride, T,
    H: tl.constexpr, K: tl.constexpr, NEED_DQKV: tl.constexpr, NEED_DBIAS: tl.constexpr,
    PER_TOKEN: tl.constexpr, SCALE: tl.constexpr,
    HALF: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(0)
    q_groups: tl.constexpr = (H + HEADS - 1) // HEADS
    k_groups: tl.constexpr = (K + HEADS - 1) // HEADS
    F: tl.constexpr = (H + 2 * K) * 2 * HALF
    if group < q_groups:
        _join(
            dq_ptr, dq_stride_t, dq_stride_h, positions_ptr, frequencies_ptr, dqkv_ptr, partials_ptr, position_stride,
            T, 0, group, F, H, True, NEED_DQKV, NEED_DBIAS, PER_TOKEN, SCALE, HALF, ROWS, HEADS, COLS,
        )  # fmt: skip
    elif group < q_groups + k_groups:
        _join(
            dk_ptr, dk_stride_t, dk_stride_h, positions_ptr, frequencies_ptr, dqkv_ptr, partials_ptr, position_stride,
            T, H, group - q_groups, F, K, True, NEED_DQKV, NEED_DBIAS, PER_TOKEN, SCALE, HALF, ROWS, HEADS, COLS,
        )  # fmt: skip
    else:
        _join(
            dv_ptr, dv_stride_t, dv_stride_h, positions_ptr, frequencies_ptr, dqkv_ptr, partials_ptr, position_stride,
            T, H + K, group - q_groups - k_groups, F, K, False, NEED_DQKV, NEED_DBIAS, PER_TOKEN, SCALE,
            HALF, ROWS, HEADS, COLS,
        )  # fmt: skip


def _tile(D: int) -> tuple[int, int]:
    """(tokens, columns) of a program's tile, HEADS heads deep."""
    cols = triton.next_power_of_2(D // 2)
    return max(1, TILE // (HEADS * cols)), cols


def _num_groups(H: int, K: int) -> int:
    return triton.cdiv(H, HEADS) + 2 * triton.cdiv(K, HEADS)


@custom_op("eagle::qkv_rope")
def _fwd(
    qkv_TF: Tensor,
    bias_F: Tensor | None,
    positions_T: Tensor,
    theta: float,
    num_heads: int,
    num_kv_heads: int,
    frequencies: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """theta counts where there are no frequencies."""
    (T, width), H, K = qkv_TF.shape, num_heads, num_kv_heads
    D = width // (H + 2 * K)
    q_THD, k_TKD, v_TKD = (qkv_TF.new_empty(T, n, D) for n in (H, K, K))
    if T and D:
        rows, cols = _tile(D)
        qkv_TF = inner_contiguous(qkv_TF)
        table = rope_frequencies_on(qkv_TF.device, D, theta) if frequencies is None else frequencies.contiguous()
        bias_F = None if bias_F is None else bias_F.contiguous()
        with on_device_of(qkv_TF):
            _fwd_kernel[(triton.cdiv(T, rows), _num_groups(H, K))](
                qkv_TF, bias_F, positions_T, table, q_THD, k_TKD, v_TKD, qkv_TF.stride(0), positions_T.stride(0), T,
                H=H, K=K, HAS_BIAS=bias_F is not None, PER_TOKEN=table.ndim == 2, SCALE=scale,
                HALF=D // 2, ROWS=rows, HEADS=HEADS, COLS=cols,
            )  # fmt: skip
    return q_THD, k_TKD, v_TKD


@custom_op("eagle::qkv_rope_bwd")
def _bwd(
    dq_THD: Tensor,
    dk_TKD: Tensor,
    dv_TKD: Tensor,
    positions_T: Tensor,
    theta: float,
    need_dqkv: bool,
    need_dbias: bool,
    frequencies: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(dqkv, dbias); an empty tensor stands for one that is not needed."""
    (T, H, D), K = dq_THD.shape, dk_TKD.shape[1]
    width = (H + 2 * K) * D
    dqkv_TF = dq_THD.new_empty((T, width) if need_dqkv else 0)
    dbias_F = dq_THD.new_zeros(width if need_dbias else 0)
    if T and D:
        rows, cols = _tile(D)
        dq_THD, dk_TKD, dv_TKD = (inner_contiguous(t) for t in (dq_THD, dk_TKD, dv_TKD))
        num_partials = min(NUM_PARTIALS, triton.cdiv(T, rows))
        partials_PF = dq_THD.new_empty((num_partials, width) if need_dbias else 0, dtype=torch.float32)
        table = rope_frequencies_on(dq_THD.device, D, theta) if frequencies is None else frequencies.contiguous()
        with on_device_of(dq_THD):
            _bwd_kernel[(_num_groups(H, K), num_partials)](
                dq_THD, dk_TKD, dv_TKD, positions_T, table, dqkv_TF, partials_PF,
                dq_THD.stride(0), dq_THD.stride(1), dk_TKD.stride(0), dk_TKD.stride(1),
                dv_TKD.stride(0), dv_TKD.stride(1), positions_T.stride(0), T,
                H=H, K=K, NEED_DQKV=need_dqkv, NEED_DBIAS=need_dbias, PER_TOKEN=table.ndim == 2, SCALE=scale,
                HALF=D // 2, ROWS=rows, HEADS=HEADS, COLS=cols,
            )  # fmt: skip
        if need_dbias:
            dbias_F = sum_partials(partials_PF, dq_THD.dtype)
    return dqkv_TF, dbias_F


@_fwd.register_fake
def _(qkv_TF, bias_F, positions_T, theta, num_heads, num_kv_heads, frequencies=None, scale=1.0):  # type: ignore[no-untyped-def]
    T, width = qkv_TF.shape
    D = width // (num_heads + 2 * num_kv_heads)
    q_THD, k_TKD, v_TKD = (qkv_TF.new_empty(T, n, D) for n in (num_heads, num_kv_heads, num_kv_heads))
    return q_THD, k_TKD, v_TKD


@_bwd.register_fake
def _(dq_THD, dk_TKD, dv_TKD, positions_T, theta, need_dqkv, need_dbias, frequencies=None, scale=1.0):  # type: ignore[no-untyped-def]
    (T, H, D), K = dq_THD.shape, dk_TKD.shape[1]
    width = (H + 2 * K) * D
    return dq_THD.new_empty((T, width) if need_dqkv else (0,)), dq_THD.new_empty((width,) if need_dbias else (0,))


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, _, positions_T, ctx.theta, _, _, frequencies, ctx.scale = inputs
    ctx.save_for_backward(positions_T, frequencies)


def _grad(ctx, dq_THD, dk_TKD, dv_TKD):  # type: ignore[no-untyped-def]
    need_dqkv, need_dbias = ctx.needs_input_grad[:2]
    positions_T, frequencies = ctx.saved_tensors
    needs = need_dqkv, need_dbias
    dqkv_TF, dbias_F = _bwd(dq_THD, dk_TKD, dv_TKD, positions_T, ctx.theta, *needs, frequencies, ctx.scale)
    return dqkv_TF if need_dqkv else None, dbias_F if need_dbias else None, *(None,) * 6


_fwd.register_autograd(_grad, setup_context=_setup)


def qkv_rope(
    qkv_TF: Tensor,
    bias_F: Tensor | None,
    positions_T: Tensor,
    theta: float | None = None,
    *,
    num_heads: int,
    num_kv_heads: int,
    frequencies: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of a fused projection: qkv + bias, split into heads, q and k rotated.

        qkv_TF, bias_F = torch.randn(5, (28 + 2 * 4) * 128), torch.zeros((28 + 2 * 4) * 128)
        positions_T = torch.tensor([0, 1, 2, 0, 1])  # documents of 3 and 2 tokens
        q_THD, k_TKD, v_TKD = qkv_rope(qkv_TF, bias_F, positions_T, 1e6, num_heads=28, num_kv_heads=4)

    CPU tensors take `qkv_rope_ref`. Rows of qkv may lie apart; if its last dim is strided it is copied.

    Args:    qkv_TF: (T, F), of T tokens the heads of q, then of k, then of v, each D wide, D even:
             F = (num_heads + 2 * num_kv_heads) * D; a floating dtype.  bias_F: (F,), of qkv's dtype and device,
             or None where there is none or the projection has added it.
             positions_T: (T,) int32 or int64, from 0 on in each document. On a GPU, where looking would make the host
             wait, negative ones are not noticed.
             theta: > 0; the pair i of a head turns by theta**(-2 i / D) radians a position.
             frequencies, scale: instead of theta, and beside either, as in `rope`.
             num_heads, num_kv_heads: of q, and of k and of v; each 1 or more.
    Returns: q (T, num_heads, D), k and v (T, num_kv_heads, D); new contiguous tensors of qkv's dtype. Under
             torch.autocast qkv and bias are cast to its dtype, as in torch's linear.
    Raises:  ValueError when an argument is not as above, or qkv is fp64 on a GPU.
    """
    op = "qkv_rope"
    tensors = {"qkv": qkv_TF, "positions": positions_T} | ({} if bias_F is None else {"bias": bias_F})
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        refuse_types(op, **tensors)
    if not qkv_TF.is_meta and torch.is_autocast_enabled(qkv_TF.device.type):
        with autocast.off(qkv_TF):
            qkv_TF, bias_F = autocast.as_matmul(qkv_TF), None if bias_F is None else autocast.as_matmul(bias_F)
            return qkv_rope(
                qkv_TF, bias_F, positions_T, theta,
                num_heads=num_heads, num_kv_heads=num_kv_heads, frequencies=frequencies, scale=scale,
            )  # fmt: skip
    if not (isinstance(num_heads, int) and num_heads >= 1):
        refuse(op, "num_heads", num_heads, "a whole number >= 1")
    if not (isinstance(num_kv_heads, int) and num_kv_heads >= 1):
        refuse(op, "num_kv_heads", num_kv_heads, "a whole number >= 1")
    shape, num_all = tuple(qkv_TF.shape), num_heads + 2 * num_kv_heads
    fits = len(shape) == 2 and shape[1] % (2 * num_all) == 0
    if not fits:
        refuse(op, "qkv's shape", shape, f"(T, F) with F = {num_all} heads of one even width")
    if not qkv_TF.is_floating_point():
        refuse(op, "qkv's dtype", qkv_TF.dtype, "a floating dtype")
    if bias_F is not None and bias_F.shape != shape[1:]:
        refuse(op, "bias's shape", tuple(bias_F.shape), f"({shape[1]},), the width of qkv")
    if bias_F is not None and (bias_F.dtype != qkv_TF.dtype or bias_F.device != qkv_TF.device):
        refuse_unlike(op, "bias", bias_F, "qkv", qkv_TF)
    check_positions(op, positions_T, shape[0], "qkv", qkv_TF)
    half = shape[1] // num_all // 2
    check_angles(op, theta, frequencies, scale, ((half,), (shape[0], half)), "qkv", qkv_TF)
    if not takes_kernel(qkv_TF):
        heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads}
        return qkv_rope_ref(qkv_TF, bias_F, positions_T, theta, **heads, frequencies=frequencies, scale=scale)
    check_kernel_dtype(op, "qkv", qkv_TF)
    return _fwd(qkv_TF, bias_F, positions_T, theta or 0.0, num_heads, num_kv_heads, frequencies, scale)
