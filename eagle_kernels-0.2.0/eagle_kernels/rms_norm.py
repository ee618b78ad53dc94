"""RMSNorm, alone or with the residual addition before it, each in one pass over memory.

    y = rms_norm(x, weight, 1e-6)
    y, stream = add_rms_norm(x, stream, weight, 1e-6)  # stream + x goes on, normalised it enters the next block

Dims    T rows (tokens; any leading dims), C channels of a row.
Maths   r = 1 / sqrt(mean(h**2) + eps);  n = h * r;  y = n * weight;  h is x, or x + residual rounded to x's dtype.
Grads   g = dy * weight;  dh = r * (g - n * mean(g * n)), plus what reaches h itself;  dweight = sum_T dy * n.
Numbers Statistics and gradients in fp32. As Qwen2 in transformers: n is rounded to x's dtype before the weight.
        Backward reads x and dy once: NUM_PARTIALS programs loop over whole rows, and each adds up its rows' part of
        dweight in fp32 registers; then one sum in a fixed order, no atomics. docs/notes/fused_ops.md.
Source  Zhang and Sennrich 2019, arXiv:1910.07467.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels import autocast
from eagle_kernels.checks import (
    as_rows,
    check_kernel_dtype,
    inner_contiguous,
    is_positive,
    on_device_of,
    refuse,
    refuse_types,
    refuse_unlike,
    takes_kernel,
)
from eagle_kernels.library import custom_op
from eagle_kernels.sum_partials import MAX_WIDTH, NUM_PARTIALS, sum_partials, whole_rows_launch

TILE = 2048  # elements a program holds at a time: 16 a thread, two 16-byte loads of bf16


def rms_norm_ref(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """What the kernel means, in plain torch. Any device, any dtype; tests differentiate through it."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normed.to(x.dtype) * weight


def add_rms_norm_ref(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual) in plain torch."""
    h = x + residual
    return rms_norm_ref(h, weight, eps), h


@triton.jit
def _load_h(x_ptr, residual_ptr, x_offsets, residual_offsets, mask, ADD: tl.constexpr):  # type: ignore[no-untyped-def]
    x = tl.load(x_ptr + x_offsets, mask=mask, other=0.0)
    if ADD:
        residual = tl.load(residual_ptr + residual_offsets, mask=mask, other=0.0)
        return (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)  # rounded: h is also an output
    return x


@triton.jit(do_not_specialize=["T"])
def _fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr, residual_ptr, weight_ptr, y_ptr, h_ptr, rstd_ptr, x_stride, residual_stride, T, eps,
    C: tl.constexpr, ADD: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # int64: T * C passes 2**31
    live = (rows < T)[:, None]
    x_rows = rows[:, None] * x_stride
    residual_rows = rows[:, None] * residual_stride
    squares = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, C, COLS):
        cols = start + tl.arange(0, COLS)
        mask = live & (cols < C)[None, :]
        h = _load_h(x_ptr, residual_ptr, x_rows + cols[None, :], residual_rows + cols[None, :], mask, ADD)
        if ADD:
            tl.store(h_ptr + rows[:, None] * C + cols[None, :], h, mask=mask)
        squares += h.to(tl.float32) * h.to(tl.float32)
    rstd = 1.0 / tl.sqrt_rn(tl.sum(squares, axis=1) / C + eps)
    tl.store(rstd_ptr + rows, rstd, mask=rows < T)
    for start in range(0, C, COLS):  # the row comes from the cache this time
        cols = start + tl.arange(0, COLS)
        mask = live & (cols < C)[None, :]
        # x + residual again, not h: no thread may read what another stored without a barrier between.
        h = _load_h(x_ptr, residual_ptr, x_rows + cols[None, :], residual_rows + cols[None, :], mask, ADD)
        weight = tl.load(weight_ptr + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]
        normed = (h.to(tl.float32) * rstd[:, None]).to(h.dtype).to(tl.float32)
        tl.store(y_ptr + rows[:, None] * C + cols[None, :], (normed * weight).to(h.dtype), mask=mask)


@triton.jit(do_not_specialize=["T"])
def _bwd_kernel(  # type: ignore[no-untyped-def]
    dy_ptr, dsum_ptr, h_ptr, weight_ptr, rstd_ptr, dh_ptr, partials_ptr, dy_stride, dsum_stride, h_stride, T,
    C: tl.constexpr, ADD: tl.constexpr, NEED_DH: tl.constexpr, NEED_DWEIGHT: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, COLS)  # whole rows
    weight = tl.load(weight_ptr + cols, mask=cols < C, other=0.0)
    dweight = tl.zeros((ROWS, COLS), tl.float32)
    # The next tiles travel to shared memory while this one's rows are summed.
    for tile in tl.range(tl.program_id(0), tl.cdiv(T, ROWS), tl.num_programs(0), num_stages=STAGES):
        rows = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        mask = (rows < T)[:, None] & (cols < C)[None, :]
        dy = tl.load(dy_ptr + rows[:, None] * dy_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        h = tl.load(h_ptr + rows[:, None] * h_stride + cols[None, :], mask=mask, other=0.0)
        rstd = tl.load(rstd_ptr + rows, mask=rows < T, other=0.0)[:, None]
        normed = h.to(tl.float32) * rstd
        if NEED_DWEIGHT:
            dweight += dy * normed.to(h.dtype).to(tl.float32)  # as forward rounded it
        if NEED_DH:
            g = dy * weight.to(tl.float32)[None, :]
            dot = (tl.sum(g * normed, axis=1) / C)[:, None]
            dh = rstd * (g - normed * dot)
            if ADD:
                dsum = tl.load(dsum_ptr + rows[:, None] * dsum_stride + cols[None, :], mask=mask, other=0.0)
                dh += dsum.to(tl.float32)
            tl.store(dh_ptr + rows[:, None] * C + cols[None, :], dh.to(dh_ptr.dtype.element_ty), mask=mask)
    if NEED_DWEIGHT:
        tl.store(partials_ptr + tl.program_id(0).to(tl.int64) * C + cols, tl.sum(dweight, axis=0), mask=cols < C)


def _tile(C: int) -> tuple[int, int]:
    """(rows, columns) of a program's tile: the columns divide 3584, 4608 and 1152 exactly."""
    cols = min(512, max(128, C & -C))
    return TILE // cols, cols


@custom_op("eagle::rms_norm")
def _fwd(x_TC: Tensor, weight_C: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(y, rstd)."""
    y_TC, _, rstd_T = _launch_fwd(x_TC, None, weight_C, eps)
    return y_TC, rstd_T


@custom_op("eagle::add_rms_norm")
def _add_fwd(x_TC: Tensor, residual_TC: Tensor, weight_C: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(y, x + residual, rstd)."""
    return _launch_fwd(x_TC, residual_TC, weight_C, eps)


def _launch_fwd(
    x_TC: Tensor, residual_TC: Tensor | None, weight_C: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    T, C = x_TC.shape
    add = residual_TC is not None
    op = "add_rms_norm" if add else "rms_norm"
    if C > MAX_WIDTH:
        refuse(op, "the width", C, f"{MAX_WIDTH} or less on a GPU")
    y_TC, rstd_T = x_TC.new_empty(T, C), x_TC.new_empty(T, dtype=torch.float32)
    h_TC = x_TC.new_empty(T, C) if add else y_TC
    if T and C:
        rows, cols = _tile(C)
        x_TC = inner_contiguous(x_TC)
        residual_TC = x_TC if residual_TC is None else inner_contiguous(residual_TC)
        with on_device_of(x_TC):
            _fwd_kernel[(triton.cdiv(T, rows),)](
                x_TC, residual_TC, weight_C.contiguous(), y_TC, h_TC, rstd_T, x_TC.stride(0), residual_TC.stride(0),
                T, eps, C=C, ADD=add, ROWS=rows, COLS=cols,
            )  # fmt: skip
    return y_TC, h_TC, rstd_T


@custom_op("eagle::rms_norm_bwd")
def _bwd(
    dy_TC: Tensor,
    dsum_TC: Tensor | None,
    h_TC: Tensor,
    weight_C: Tensor,
    rstd_T: Tensor,
    need_dh: bool,
    need_dweight: bool,
) -> tuple[Tensor, Tensor]:
    """(dh, dweight); an empty tensor stands for one that is not needed. dsum: what reaches x + residual itself."""
    T, C = h_TC.shape
    dh_TC = h_TC.new_empty((T, C) if need_dh else 0)
    dweight_C = weight_C.new_zeros(C if need_dweight else 0)
    if T and C:
        add = dsum_TC is not None
        rows, cols, num_warps, stages = whole_rows_launch(C, (3 if add else 2) * h_TC.element_size())
        num_partials = min(NUM_PARTIALS, triton.cdiv(T, rows))
        partials_PC = h_TC.new_empty((num_partials, C) if need_dweight else 0, dtype=torch.float32)
        dy_TC, h_TC = inner_contiguous(dy_TC), inner_contiguous(h_TC)
        dsum_TC = dy_TC if dsum_TC is None else inner_contiguous(dsum_TC)
        with on_device_of(h_TC):
            _bwd_kernel[(num_partials,)](
                dy_TC, dsum_TC, h_TC, weight_C.contiguous(), rstd_T, dh_TC, partials_PC,
                dy_TC.stride(0), dsum_TC.stride(0), h_TC.stride(0), T,
                C=C, ADD=add, NEED_DH=need_dh, NEED_DWEIGHT=need_dweight,
                ROWS=rows, COLS=cols, STAGES=stages, num_warps=num_warps,
            )  # fmt: skip
        if need_dweight:
            dweight_C = sum_partials(partials_PC, weight_C.dtype)
    return dh_TC, dweight_C


@_fwd.register_fake
def _(x_TC, weight_C, eps):  # type: ignore[no-untyped-def]
    return x_TC.new_empty(x_TC.shape), x_TC.new_empty(x_TC.shape[0], dtype=torch.float32)


@_add_fwd.register_fake
def _(x_TC, residual_TC, weight_C, eps):  # type: ignore[no-untyped-def]
    return x_TC.new_empty(x_TC.shape), x_TC.new_empty(x_TC.shape), x_TC.new_empty(x_TC.shape[0], dtype=torch.float32)


@_bwd.register_fake
def _(dy_TC, dsum_TC, h_TC, weight_C, rstd_T, need_dh, need_dweight):  # type: ignore[no-untyped-def]
    return h_TC.new_empty(h_TC.shape if need_dh else (0,)), weight_C.new_empty(weight_C.shape if need_dweight else (0,))


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x_TC, weight_C, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x_TC, weight_C, output[1])


def _grad(ctx, dy_TC, _drstd):  # type: ignore[no-untyped-def]
    if dy_TC is None:
        return None, None, None
    need_dx, need_dweight = ctx.needs_input_grad[:2]
    dx_TC, dweight_C = _bwd(dy_TC, None, *ctx.saved_tensors, need_dx, need_dweight)
    return dx_TC if need_dx else None, dweight_C if need_dweight else None, None


def _add_setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1], inputs[2], output[2])


def _add_grad(ctx, dy_TC, dsum_TC, _drstd):  # type: ignore[no-untyped-def]
    need_dx, need_dresidual, need_dweight = ctx.needs_input_grad[:3]
    dh_TC, dweight_C = dsum_TC, None
    if dy_TC is not None:
        need_dh = need_dx or need_dresidual
        dh_TC, dweight_C = _bwd(dy_TC, dsum_TC, *ctx.saved_tensors, need_dh, need_dweight)
    # Both addends take the same gradient; autograd never writes into one that two of its users hold.
    return dh_TC if need_dx else None, dh_TC if need_dresidual else None, dweight_C if need_dweight else None, None


_fwd.register_autograd(_grad, setup_context=_setup)
_add_fwd.register_autograd(_add_grad, setup_context=_add_setup)


def _check(op: str, x: Tensor, weight: Tensor, eps: float) -> None:
    if not (x.is_floating_point() and x.ndim >= 1):
        refuse(op, "x", f"{x.dtype} {tuple(x.shape)}", "a floating dtype and (..., C)")
    if weight.shape != x.shape[-1:]:
        refuse(op, "weight's shape", tuple(weight.shape), f"({x.shape[-1]},), the width of x")
    if weight.dtype != x.dtype or weight.device != x.device:
        refuse_unlike(op, "weight", weight, "x", x)
    if not is_positive(eps):
        refuse(op, "eps", eps, "a finite number > 0")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x**2) + eps) * weight, over the last dim.

        y = rms_norm(torch.randn(4, 3584), torch.ones(3584), 1e-6)

    CPU tensors take `rms_norm_ref`. Rows may lie apart (a view of a wider tensor) without a copy; a tensor whose last
    dim is strided is copied.

    Args:    x: (..., C), C channels of each row, in a floating dtype.  weight: (C,), of x's dtype and device.
             eps: > 0, added to the mean of the squares.
    Returns: a new tensor of x's shape and dtype. Under torch.autocast, where weight may have another dtype, it is
             computed in fp32: the result is fp32 on a GPU and of x's dtype on a CPU, as torch's layer_norm.
    Raises:  ValueError when an argument is not as above, or on a GPU x is fp64 or C above 65536.
    """
    if not (isinstance(x, Tensor) and isinstance(weight, Tensor)):
        refuse_types("rms_norm", x=x, weight=weight)
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        with autocast.off(x):
            wide = autocast.at_least_fp32
            return autocast.as_norm(rms_norm(wide(x), wide(weight), eps), x)
    _check("rms_norm", x, weight, eps)
    if not takes_kernel(x):
        return rms_norm_ref(x, weight, eps)
    check_kernel_dtype("rms_norm", "x", x)
    return _fwd(as_rows(x), weight, eps)[0].view(x.shape)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual, weight, eps), x + residual): the next block's input, and the stream that goes on.

        y, stream = add_rms_norm(torch.randn(4, 3584), torch.randn(4, 3584), torch.ones(3584), 1e-6)

    CPU tensors take `add_rms_norm_ref`.

    Args:    x: (..., C), C channels of each row, in a floating dtype.  residual: of x's shape, dtype and device.
             weight: (C,), of x's dtype and device.  eps: > 0, added to the mean of the squares.
    Returns: two new tensors of x's shape and dtype. Under torch.autocast, where dtypes may differ, the sum has the
             widest dtype of its terms, and the norm is that of `rms_norm` there.
    Raises:  ValueError when an argument is not as above, or on a GPU x is fp64 or C above 65536.
    """
    op = "add_rms_norm"
    if not (isinstance(x, Tensor) and isinstance(residual, Tensor) and isinstance(weight, Tensor)):
        refuse_types(op, x=x, residual=residual, weight=weight)
    if residual.shape != x.shape:
        refuse(op, "residual's shape", tuple(residual.shape), f"x's {tuple(x.shape)}")
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        with autocast.off(x):
            h = x + residual
            wide_h, wide_weight = autocast.at_least_fp32(h), autocast.at_least_fp32(weight)
            _check(op, wide_h, wide_weight, eps)
            return autocast.as_norm(rms_norm(wide_h, wide_weight, eps), h), h
    _check(op, x, weight, eps)
    if residual.dtype != x.dtype or residual.device != x.device:
        refuse_unlike(op, "residual", residual, "x", x)
    if not takes_kernel(x):
        return add_rms_norm_ref(x, residual, weight, eps)
    check_kernel_dtype(op, "x", x)
    y_TC, h_TC, _ = _add_fwd(as_rows(x), as_rows(residual), weight, eps)
    return y_TC.view(x.shape), h_TC.view(x.shape)
