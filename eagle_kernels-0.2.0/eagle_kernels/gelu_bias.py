"""GELU in its tanh form, with the bias of the projection before it, in one pass over memory.

    hidden = gelu_bias(x @ weight.T, bias)

Dims    T rows (tokens; any leading dims), F feed-forward width.
Maths   z = x + bias;  u = sqrt(2 / pi) * (z + 0.044715 z**3);  out = z / 2 * (1 + tanh(u)) = z * s, s = sigmoid(2 u).
Grads   dz = dout * (s + z * s * (1 - s) * 2 u'),  u' = sqrt(2 / pi) * (1 + 3 * 0.044715 z**2);
        dx = dz;  dbias = sum_T dz.
Numbers fp32 inside, one rounding on store: x + bias is never rounded. Backward recomputes z and s.
        dbias: fp32 partial sums of NUM_PARTIALS programs, added in a fixed order; no atomics.
Source  Hendrycks and Gimpel 2016, arXiv:1606.08415; `gelu_pytorch_tanh` of SigLIP.
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
    on_device_of,
    refuse,
    refuse_types,
    refuse_unlike,
    takes_kernel,
)
from eagle_kernels.library import custom_op
from eagle_kernels.sum_partials import sum_partials

TILE = 2048  # elements a program holds at a time: 16 a thread, two 16-byte loads of bf16
NUM_PARTIALS = 64  # programs that share the rows of dbias's sum; fixed, so that every GPU adds in the same order


def gelu_bias_ref(x: Tensor, bias: Tensor) -> Tensor:
    """What the kernel means, in plain torch. Any device, any dtype; tests differentiate through it."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.gelu(x.to(wide) + bias.to(wide), approximate="tanh").to(x.dtype)


@triton.jit
def _double_u(z):  # type: ignore[no-untyped-def]
    return 1.5957691216057308 * (z + 0.044715 * z * z * z)  # 2 * sqrt(2 / pi)


@triton.jit(do_not_specialize=["T"])
def _fwd_kernel(  # type: ignore[no-untyped-def]
    x_ptr, bias_ptr, out_ptr, x_stride, T, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]  # int64: T * F passes 2**31
    cols = (tl.program_id(1) * COLS + tl.arange(0, COLS))[None, :]
    mask = (rows < T) & (cols < WIDTH)
    x = tl.load(x_ptr + rows * x_stride + cols, mask=mask, other=0.0).to(tl.float32)
    z = x + tl.load(bias_ptr + cols, mask=cols < WIDTH, other=0.0).to(tl.float32)
    out = z * tl.sigmoid(_double_u(z))
    tl.store(out_ptr + rows * WIDTH + cols, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T"])
def _bwd_kernel(  # type: ignore[no-untyped-def]
    dout_ptr, x_ptr, bias_ptr, dx_ptr, partials_ptr, dout_stride, x_stride, T,
    WIDTH: tl.constexpr, NEED_DX: tl.constexpr, NEED_DBIAS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    cols = (tl.program_id(0) * COLS + tl.arange(0, COLS))[None, :]
    bias = tl.load(bias_ptr + cols, mask=cols < WIDTH, other=0.0).to(tl.float32)
    dbias = tl.zeros((ROWS, COLS), tl.float32)
    for tile in range(tl.program_id(1), tl.cdiv(T, ROWS), tl.num_programs(1)):
        rows = (tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
        mask = (rows < T) & (cols < WIDTH)
        dout = tl.load(dout_ptr + rows * dout_stride + cols, mask=mask, other=0.0).to(tl.float32)
        z = tl.load(x_ptr + rows * x_stride + cols, mask=mask, other=0.0).to(tl.float32) + bias
        double_u = _double_u(z)
        small = tl.exp(-tl.abs(double_u))  # s and 1 - s each without cancellation or overflow
        larger = 1.0 / (1.0 + small)
        smaller = small * larger
        s = tl.where(double_u > 0, larger, smaller)
        dz = dout * (s + z * (larger * smaller) * (1.5957691216057308 * (1.0 + 0.134145 * z * z)))
        if NEED_DX:
            tl.store(dx_ptr + rows * WIDTH + cols, dz.to(dx_ptr.dtype.element_ty), mask=mask)
        dbias += dz
    if NEED_DBIAS:
        out = partials_ptr + tl.program_id(1).to(tl.int64) * WIDTH + cols
        tl.store(out, tl.sum(dbias, axis=0)[None, :], mask=cols < WIDTH)


def _tile(width: int) -> tuple[int, int]:
    """(rows, columns) of a program's tile: 34 x 128 columns cover 4304 with 1 % to spare."""
    cols = min(512, max(128, width & -width))
    return TILE // cols, cols


@custom_op("eagle::gelu_bias")
def _fwd(x_TF: Tensor, bias_F: Tensor) -> Tensor:
    T, width = x_TF.shape
    out_TF = x_TF.new_empty(T, width)
    if T and width:
        rows, cols = _tile(width)
        x_TF = inner_contiguous(x_TF)
        with on_device_of(x_TF):
            _fwd_kernel[(triton.cdiv(T, rows), triton.cdiv(width, cols))](
                x_TF, bias_F.contiguous(), out_TF, x_TF.stride(0), T, WIDTH=width, ROWS=rows, COLS=cols
            )
    return out_TF


@custom_op("eagle::gelu_bias_bwd")
def _bwd(dout_TF: Tensor, x_TF: Tensor, bias_F: Tensor, need_dx: bool, need_dbias: bool) -> tuple[Tensor, Tensor]:
    """(dx, dbias); an empty tensor stands for one that is not needed."""
    T, width = x_TF.shape
    dx_TF, dbias_F = x_TF.new_empty((T, width) if need_dx else 0), bias_F.new_zeros(width if need_dbias else 0)
    if T and width:
        rows, cols = _tile(width)
        dout_TF, x_TF = inner_contiguous(dout_TF), inner_contiguous(x_TF)
        num_partials = min(NUM_PARTIALS, triton.cdiv(T, rows))
        partials_PF = x_TF.new_empty(num_partials if need_dbias else 0, width, dtype=torch.float32)
        with on_device_of(x_TF):
            _bwd_kernel[(triton.cdiv(width, cols), num_partials)](
                dout_TF, x_TF, bias_F.contiguous(), dx_TF, partials_PF, dout_TF.stride(0), x_TF.stride(0), T,
                WIDTH=width, NEED_DX=need_dx, NEED_DBIAS=need_dbias, ROWS=rows, COLS=cols,
            )  # fmt: skip
        if need_dbias:
            dbias_F = sum_partials(partials_PF, bias_F.dtype)
    return dx_TF, dbias_F


@_fwd.register_fake
def _(x_TF, bias_F):  # type: ignore[no-untyped-def]
    return x_TF.new_empty(x_TF.shape)


@_bwd.register_fake
def _(dout_TF, x_TF, bias_F, need_dx, need_dbias):  # type: ignore[no-untyped-def]
    return x_TF.new_empty(x_TF.shape if need_dx else (0,)), bias_F.new_empty(bias_F.shape if need_dbias else (0,))


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _grad(ctx, dout_TF):  # type: ignore[no-untyped-def]
    need_dx, need_dbias = ctx.needs_input_grad
    dx_TF, dbias_F = _bwd(dout_TF, *ctx.saved_tensors, need_dx, need_dbias)
    return dx_TF if need_dx else None, dbias_F if need_dbias else None


_fwd.register_autograd(_grad, setup_context=_setup)


def gelu_bias(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias) in its tanh form: the end of a linear layer whose bias was left out, and its activation.

        hidden = gelu_bias(torch.randn(4, 4304), torch.zeros(4304))

    CPU tensors take `gelu_bias_ref`. Rows may lie apart (a view of a wider tensor) without a copy; a tensor whose last
    dim is strided is copied.

    Args:    x: (..., F), F numbers of each row, in a floating dtype.  bias: (F,), of x's dtype and device.
    Returns: a new tensor of x's shape and dtype. Under torch.autocast both are cast to its dtype, as in torch's linear.
    Raises:  ValueError when an argument is not as above, or x is fp64 on a GPU.
    """
    op = "gelu_bias"
    if not (isinstance(x, Tensor) and isinstance(bias, Tensor)):
        refuse_types(op, x=x, bias=bias)
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        with autocast.off(x):
            return gelu_bias(autocast.as_matmul(x), autocast.as_matmul(bias))
    if not (x.is_floating_point() and x.ndim >= 1):
        refuse(op, "x", f"{x.dtype} {tuple(x.shape)}", "a floating dtype and (..., F)")
    if bias.shape != x.shape[-1:]:
        refuse(op, "bias's shape", tuple(bias.shape), f"({x.shape[-1]},), the width of x")
    if bias.dtype != x.dtype or bias.device != x.device:
        refuse_unlike(op, "bias", bias, "x", x)
    if not takes_kernel(x):
        return gelu_bias_ref(x, bias)
    check_kernel_dtype(op, "x", x)
    return _fwd(as_rows(x), bias).view(x.shape)
