"""LayerNorm in one pass over memory.

Dims    T rows (tokens; any leading dims), C channels of a row.
Maths   n = (x - mean) * r;  r = 1 / sqrt(mean((x - mean)**2) + eps);  y = n * weight + bias.
Grads   g = dy * weight;  dx = r * (g - mean(g) - n * mean(g * n));  dweight = sum_T dy * n;  dbias = sum_T dy.
Numbers fp32 inside, one rounding on store. The variance is centred: blocks of columns are merged by the update of
        Chan, Golub and LeVeque (1983), so a large mean costs no digits.
        dweight, dbias: fp32 partial sums of NUM_PARTIALS programs, added in a fixed order; no atomics.
        Backward reads x and dy once for dx and once for dweight and dbias.
Source  Ba, Kiros and Hinton 2016, arXiv:1607.06450.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels.checks import check, check_kernel_dtype, check_same, inner_contiguous, on_device_of

TILE = 2048  # elements a program holds at a time: 16 a thread, two 16-byte loads of bf16
NUM_PARTIALS = 64  # programs that share the rows of dweight's sum; fixed, so that every GPU adds in the same order


def layer_norm_ref(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """What the kernel means, in plain torch. Any device, any dtype; tests differentiate through it."""
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


@triton.jit
def _fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr, x_stride, T, eps,
    C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # int64: T * C passes 2**31
    live = (rows < T)[:, None]
    mean = tl.zeros((ROWS,), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)  # sum of (x - mean)**2 over the columns seen
    for start in range(0, C, COLS):
        cols = start + tl.arange(0, COLS)
        mask = live & (cols < C)[None, :]
        x = tl.load(x_ptr + rows[:, None] * x_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
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
        x = tl.load(x_ptr + rows[:, None] * x_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]
        bias = tl.load(bias_ptr + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]
        y = (x - mean[:, None]) * rstd[:, None] * weight + bias
        tl.store(y_ptr + rows[:, None] * C + cols[None, :], y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _dx_kernel(  # type: ignore[no-untyped-def]
    dy_ptr, x_ptr, weight_ptr, mean_ptr, rstd_ptr, dx_ptr, dy_stride, x_stride, T,
    C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = (rows < T)[:, None]
    mean = tl.load(mean_ptr + rows, mask=rows < T, other=0.0)[:, None]
    rstd = tl.load(rstd_ptr + rows, mask=rows < T, other=0.0)[:, None]
    sums = tl.zeros((ROWS, COLS), tl.float32)
    dots = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, C, COLS):
        cols = start + tl.arange(0, COLS)
        mask = live & (cols < C)[None, :]
        dy = tl.load(dy_ptr + rows[:, None] * dy_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + rows[:, None] * x_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]
        sums += dy * weight
        dots += dy * weight * ((x - mean) * rstd)  # dy is 0 where masked
    sum_ = (tl.sum(sums, axis=1) / C)[:, None]
    dot = (tl.sum(dots, axis=1) / C)[:, None]
    for start in range(0, C, COLS):
        cols = start + tl.arange(0, COLS)
        mask = live & (cols < C)[None, :]
        dy = tl.load(dy_ptr + rows[:, None] * dy_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + rows[:, None] * x_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + cols, mask=cols < C, other=0.0).to(tl.float32)[None, :]
        dx = rstd * (dy * weight - sum_ - (x - mean) * rstd * dot)
        tl.store(dx_ptr + rows[:, None] * C + cols[None, :], dx.to(dx_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _dweight_kernel(  # type: ignore[no-untyped-def]
    dy_ptr, x_ptr, mean_ptr, rstd_ptr, partials_ptr, dy_stride, x_stride, T,
    C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    dweight = tl.zeros((ROWS, COLS), tl.float32)
    dbias = tl.zeros((ROWS, COLS), tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(T, ROWS), tl.num_programs(1)):
        rows = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        mask = (rows < T)[:, None] & (cols < C)[None, :]
        mean = tl.load(mean_ptr + rows, mask=rows < T, other=0.0)[:, None]
        rstd = tl.load(rstd_ptr + rows, mask=rows < T, other=0.0)[:, None]
        dy = tl.load(dy_ptr + rows[:, None] * dy_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + rows[:, None] * x_stride + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        dweight += dy * ((x - mean) * rstd)
        dbias += dy
    out = partials_ptr + tl.program_id(1).to(tl.int64) * (2 * C) + cols
    tl.store(out, tl.sum(dweight, axis=0), mask=cols < C)
    tl.store(out + C, tl.sum(dbias, axis=0), mask=cols < C)


def _tile(C: int) -> tuple[int, int]:
    """(rows, columns) of a program's tile: the columns divide 1152 and 4608 exactly."""
    cols = min(512, max(128, C & -C))
    return TILE // cols, cols


@torch.library.custom_op("eagle::layer_norm", mutates_args=())
def _fwd(x_TC: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, rstd)."""
    T, C = x_TC.shape
    y_TC = x_TC.new_empty(T, C)
    mean_T, rstd_T = x_TC.new_empty(T, dtype=torch.float32), x_TC.new_empty(T, dtype=torch.float32)
    if T and C:
        rows, cols = _tile(C)
        x_TC = inner_contiguous(x_TC)
        with on_device_of(x_TC):
            _fwd_kernel[(triton.cdiv(T, rows),)](
                x_TC, weight_C.contiguous(), bias_C.contiguous(), y_TC, mean_T, rstd_T, x_TC.stride(0), T, eps,
                C=C, ROWS=rows, COLS=cols,
            )  # fmt: skip
    return y_TC, mean_T, rstd_T


@torch.library.custom_op("eagle::layer_norm_bwd", mutates_args=())
def _bwd(
    dy_TC: Tensor, x_TC: Tensor, weight_C: Tensor, mean_T: Tensor, rstd_T: Tensor, need_dx: bool, need_dweight: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dweight, dbias); an empty tensor stands for one that is not needed."""
    T, C = x_TC.shape
    dx_TC = x_TC.new_empty((T, C) if need_dx else 0)
    dweight_C, dbias_C = weight_C.new_zeros(C if need_dweight else 0), weight_C.new_zeros(C if need_dweight else 0)
    if T and C:
        rows, cols = _tile(C)
        dy_TC, x_TC = inner_contiguous(dy_TC), inner_contiguous(x_TC)
        if need_dx:
            with on_device_of(x_TC):
                _dx_kernel[(triton.cdiv(T, rows),)](
                    dy_TC, x_TC, weight_C.contiguous(), mean_T, rstd_T, dx_TC, dy_TC.stride(0), x_TC.stride(0), T,
                    C=C, ROWS=rows, COLS=cols,
                )  # fmt: skip
        if need_dweight:
            num_partials = min(NUM_PARTIALS, triton.cdiv(T, rows))
            partials_P2C = x_TC.new_empty(num_partials, 2, C, dtype=torch.float32)
            with on_device_of(x_TC):
                _dweight_kernel[(triton.cdiv(C, cols), num_partials)](
                    dy_TC, x_TC, mean_T, rstd_T, partials_P2C, dy_TC.stride(0), x_TC.stride(0), T,
                    C=C, ROWS=rows, COLS=cols,
                )  # fmt: skip
            sums_2C = partials_P2C.sum(0)
            dweight_C, dbias_C = sums_2C[0].to(weight_C.dtype, copy=True), sums_2C[1].to(weight_C.dtype, copy=True)
    return dx_TC, dweight_C, dbias_C


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
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dim; (..., C), (C,) and (C,), one dtype and device.

    CPU tensors take `layer_norm_ref`. Rows may lie apart (a view of a wider tensor) without a copy; a tensor whose
    last dim is strided is copied.
    Raises ValueError when a shape, dtype or device does not match, or the dtype is fp64 on a GPU.
    """
    op = "layer_norm"
    check(
        x.is_floating_point() and x.ndim >= 1, op, "x", f"{x.dtype} {tuple(x.shape)}", "a floating dtype and (..., C)"
    )
    for name, tensor in (("weight", weight), ("bias", bias)):
        check(tensor.shape == x.shape[-1:], op, f"{name}'s shape", tuple(tensor.shape), f"({x.shape[-1]},), x's width")
        check_same(op, name, tensor, "x", x)
    if not x.is_cuda:
        return layer_norm_ref(x, weight, bias, eps)
    check_kernel_dtype(op, "x", x)
    return _fwd(x.reshape(-1, x.shape[-1]), weight, bias, eps)[0].view(x.shape)
