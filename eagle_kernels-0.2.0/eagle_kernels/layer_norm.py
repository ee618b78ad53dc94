"""LayerNorm in one pass over memory.

    y = layer_norm(x, weight, bias, 1e-6)

Dims    T rows (tokens; any leading dims), C channels of a row.
Maths   n = (x - mean) * r;  r = 1 / sqrt(mean((x - mean)**2) + eps);  y = n * weight + bias.
Grads   g = dy * weight;  dx = r * (g - mean(g) - n * mean(g * n));  dweight = sum_T dy * n;  dbias = sum_T dy.
Numbers fp32 inside, one rounding on store. The variance is centred: blocks of columns are merged by the update of
        Chan, Golub and LeVeque (1983), so a large mean costs no digits.
        Backward reads x and dy once: NUM_PARTIALS programs loop over whole rows, and each adds up its rows' part of
        dweight and dbias in fp32 registers; then one sum in a fixed order, no atomics. docs/notes/fused_ops.md.
Source  Ba, Kiros and Hinton 2016, arXiv:1607.06450.
"""

import torch
import torch.nn.functional as F
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


def layer_norm_ref(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """What the kernel means, in plain torch. Any device, any dtype; tests differentiate through it."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


@triton.jit
def _at(rows, cols, stride, half, C: tl.constexpr, MERGE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Offsets of a row's channels. With MERGE a row is a 2x2 block of patches, `half` blocks a side: two runs of C / 2
    channels, one for each line of patches that it lies on (eagle_kernels/merge_2x2_layer_norm.py)."""
    if MERGE:
        pair: tl.constexpr = C // 2
        first = (rows // half * (2 * half) + rows % half) * pair
        return first[:, None] + (cols + tl.where(cols < pair, 0, tl.cast(half - 1, tl.int64) * pair))[None, :]
    return rows[:, None] * stride + cols[None, :]


@triton.jit(do_not_specialize=["T"])
def _fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr, x_stride, half, T, eps,
    C: tl.constexpr, MERGE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # int64: T * C passes 2**31
    live = (rows < T)[:, None]
    mean = tl.zeros((ROWS,), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)  # sum of (x - mean)**2 over the columns seen
    for start in range(0, C, COLS):
        cols = start + tl.arange(0, COLS)
        mask = live & (cols < C)[None, :]
        x = tl.load(x_ptr + _at(rows, cols, x_stride, half, C, MERGE), mask=mask, other=0.0).to(tl.float32)
        count = tl.minimum(C - start, COLS).to(tl.float32)
        block_mean = tl.sum(x, axis=1) / count
        centred = tl.where(mask, x - block_mean[:, None], 0.0)
        delta = block_mean - mean
        share = count / (start + count)
        squares += tl.sum(centred * centred, axis=1) + delta * delta * (start * share)
        mean += delta * share
    rstd = 1.0 / tl.sqrt_rn(squares / C + eps)
    tl.store(mean_ptr + rows, mean, mask=rows < T)
    tl.store(rstd_ptr + rows, rstd, mask=rows < T)
    for start in range(0, C, COLS):  # the row comes from the cache this time
        cols = start + tl.arange(0, COLS)
        mask = live & (cols < C)[None, :]
        x = tl.load(x_ptr + _at(rows, cols, x_stride, half, C, MERGE), mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]
        bias = tl.load(bias_ptr + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]
        y = (x - mean[:, None]) * rstd[:, None] * weight + bias
        tl.store(y_ptr + rows[:, None] * C + cols[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T"])
def _bwd_kernel(  # type: ignore[no-untyped-def]
    dy_ptr, x_ptr, weight_ptr, mean_ptr, rstd_ptr, dx_ptr, partials_ptr, dy_stride, x_stride, half, T,
    C: tl.constexpr, MERGE: tl.constexpr, NEED_DX: tl.constexpr, NEED_DWEIGHT: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    cols = tl.arange(0, COLS)  # whole rows
    weight = tl.load(weight_ptr + cols, mask=cols < C, other=0.0)
    dweight = tl.zeros((ROWS, COLS), tl.float32)
    dbias = tl.zeros((ROWS, COLS), tl.float32)
    # The next tiles travel to shared memory while this one's rows are summed.
    for tile in tl.range(tl.program_id(0), tl.cdiv(T, ROWS), tl.num_programs(0), num_stages=STAGES):
        rows = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        mask = (rows < T)[:, None] & (cols < C)[None, :]
        dy = tl.load(dy_ptr + rows[:, None] * dy_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + _at(rows, cols, x_stride, half, C, MERGE), mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + rows, mask=rows < T, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + rows, mask=rows < T, other=0.0)[:, None]
        normed = (x - mean) * rstd
        if NEED_DWEIGHT:
            dweight += dy * normed  # dy is 0 where masked
            dbias += dy
        if NEED_DX:
            g = dy * weight.to(tl.float32)[None, :]
            sum_ = (tl.sum(g, axis=1) / C)[:, None]
            dot = (tl.sum(g * normed, axis=1) / C)[:, None]
            dx = rstd * (g - sum_ - normed * dot)
            tl.store(dx_ptr + _at(rows, cols, C, half, C, MERGE), dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if NEED_DWEIGHT:
        out = partials_ptr + tl.program_id(0).to(tl.int64) * (2 * C) + cols
        tl.store(out, tl.sum(dweight, axis=0), mask=cols < C)
        tl.store(out + C, tl.sum(dbias, axis=0), mask=cols < C)


def _tile(C: int) -> tuple[int, int]:
    """(rows, columns) of a forward program's tile: the columns divide 1152 and 4608 exactly."""
    cols = min(512, max(128, C & -C))
    return TILE // cols, cols


def launch_fwd(
    op: str, x: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float, half: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, rstd) of x (T, C); with half > 0, of the 2x2 blocks of contiguous patches (I, 4 * half**2, C / 4)."""
    C = weight_C.shape[0]
    if C > MAX_WIDTH:
        refuse(op, "the width", C, f"{MAX_WIDTH} or less on a GPU")
    T = x.shape[0] * half**2 if half else x.shape[0]
    y_TC = x.new_empty(T, C)
    mean_T, rstd_T = x.new_empty(T, dtype=torch.float32), x.new_empty(T, dtype=torch.float32)
    if T and C:
        rows, cols = _tile(C)
        with on_device_of(x):
            _fwd_kernel[(triton.cdiv(T, rows),)](
                x, weight_C.contiguous(), bias_C.contiguous(), y_TC, mean_T, rstd_T, x.stride(0), half, T, eps,
                C=C, MERGE=half > 0, ROWS=rows, COLS=cols,
            )  # fmt: skip
    return y_TC, mean_T, rstd_T


def launch_bwd(
    dy_TC: Tensor, x: Tensor, weight_C: Tensor, mean_T: Tensor, rstd_T: Tensor, half: int, need: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias) of `launch_fwd`; an empty tensor for what is not in need = (dx, dweight and dbias)."""
    (T, C), (need_dx, need_dweight) = dy_TC.shape, need
    dx = x.new_empty(x.shape if need_dx else 0)
    sums_2C = weight_C.new_zeros(2, C if need_dweight else 0)
    if T and C:
        rows, cols, num_warps, stages = whole_rows_launch(C, 2 * x.element_size())
        num_partials = min(NUM_PARTIALS, triton.cdiv(T, rows))
        partials_P2C = x.new_empty((num_partials, 2, C) if need_dweight else 0, dtype=torch.float32)
        dy_TC = inner_contiguous(dy_TC)
        with on_device_of(x):
            _bwd_kernel[(num_partials,)](
                dy_TC, x, weight_C.contiguous(), mean_T, rstd_T, dx, partials_P2C, dy_TC.stride(0), x.stride(0), half,
                T, C=C, MERGE=half > 0, NEED_DX=need_dx, NEED_DWEIGHT=need_dweight,
                ROWS=rows, COLS=cols, STAGES=stages, num_warps=num_warps,
            )  # fmt: skip
        if need_dweight:
            sums_2C = sum_partials(partials_P2C.flatten(1), weight_C.dtype).view(2, C)
    return dx, sums_2C[0].clone(), sums_2C[1].clone()  # an op's results may not share memory


@custom_op("eagle::layer_norm")
def _fwd(x_TC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, rstd)."""
    return launch_fwd("layer_norm", inner_contiguous(x_TC), weight_C, bias_C, eps, 0)


@custom_op("eagle::layer_norm_bwd")
def _bwd(
    dy_TC: Tensor, x_TC: Tensor, weight_C: Tensor, mean_T: Tensor, rstd_T: Tensor, need_dx: bool, need_dweight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias); an empty tensor stands for one that is not needed."""
    return launch_bwd(dy_TC, inner_contiguous(x_TC), weight_C, mean_T, rstd_T, 0, (need_dx, need_dweight))


@_fwd.register_fake
def _(x_TC, weight_C, bias_C, eps):  # type: ignore[no-untyped-def]
    stats = [x_TC.new_empty(x_TC.shape[0], dtype=torch.float32) for _ in range(2)]
    return x_TC.new_empty(x_TC.shape), stats[0], stats[1]


@_bwd.register_fake
def _(dy_TC, x_TC, weight_C, mean_T, rstd_T, need_dx, need_dweight):  # type: ignore[no-untyped-def]
    shape = weight_C.shape if need_dweight else (0,)
    return x_TC.new_empty(x_TC.shape if need_dx else (0,)), weight_C.new_empty(shape), weight_C.new_empty(shape)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x_TC, weight_C, _, _ = inputs
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.save_for_backward(x_TC, weight_C, output[1], output[2])


def _grad(ctx, dy_TC, _dmean, _drstd):  # type: ignore[no-untyped-def]
    need_dx, need_dweight, need_dbias, _ = ctx.needs_input_grad
    dx_TC, dweight_C, dbias_C = _bwd(dy_TC, *ctx.saved_tensors, need_dx, need_dweight or need_dbias)
    return dx_TC if need_dx else None, dweight_C if need_dweight else None, dbias_C if need_dbias else None, None


_fwd.register_autograd(_grad, setup_context=_setup)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, over the last dim; var is the mean of (x - mean)**2.

        y = layer_norm(torch.randn(4, 1152), torch.ones(1152), torch.zeros(1152), 1e-6)

    CPU tensors take `layer_norm_ref`. Rows may lie apart (a view of a wider tensor) without a copy; a tensor whose
    last dim is strided is copied.

    Args:    x: (..., C), C channels of each row, in a floating dtype.  weight, bias: (C,), of x's dtype and device.
             eps: > 0, added to the variance.
    Returns: a new tensor of x's shape and dtype. Under torch.autocast, where weight and bias may have another dtype, it
             is computed in fp32: the result is fp32 on a GPU and of x's dtype on a CPU, as torch's layer_norm.
    Raises:  ValueError when an argument is not as above, or on a GPU x is fp64 or C above 65536.
    """
    op = "layer_norm"
    if not (isinstance(x, Tensor) and isinstance(weight, Tensor) and isinstance(bias, Tensor)):
        refuse_types(op, x=x, weight=weight, bias=bias)
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        with autocast.off(x):
            wide = autocast.at_least_fp32
            return autocast.as_norm(layer_norm(wide(x), wide(weight), wide(bias), eps), x)
    if not (x.is_floating_point() and x.ndim >= 1):
        refuse(op, "x", f"{x.dtype} {tuple(x.shape)}", "a floating dtype and (..., C)")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != x.shape[-1:]:
            refuse(op, f"{name}'s shape", tuple(tensor.shape), f"({x.shape[-1]},), x's width")
        if tensor.dtype != x.dtype or tensor.device != x.device:
            refuse_unlike(op, name, tensor, "x", x)
    if not is_positive(eps):
        refuse(op, "eps", eps, "a finite number > 0")
    if not takes_kernel(x):
        return layer_norm_ref(x, weight, bias, eps)
    check_kernel_dtype(op, "x", x)
    return _fwd(as_rows(x), weight, bias, eps)[0].view(x.shape)
