"""SwiGLU: out = silu(gate) * up, in one pass over memory.

    hidden = swiglu(gate, up)
    hidden = swiglu_halves(gate_up)  # both of one fused projection; backward fills one gradient, without a copy

Dims    T rows (tokens; any leading dims), F feed-forward width, G = 2F.
Grads   s = sigmoid(gate);  dup = dout * gate * s;  dgate = dout * up * s * (1 + gate * (1 - s)).
Numbers fp32 inside, one rounding on store. Backward recomputes s. Memory bound: forward moves 3*T*F elements,
        backward 5*T*F.
Source  Shazeer 2020, arXiv:2002.05202, without biases, as in Qwen2.
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

TILE = 2048  # elements a program: 16 a thread, two 16-byte loads of bf16


def swiglu_ref(gate: Tensor, up: Tensor) -> Tensor:
    """What the kernel means, in plain torch. Any device, any dtype; tests differentiate through it."""
    return F.silu(gate) * up


@triton.jit(do_not_specialize=["T"])
def _fwd_kernel(  # type: ignore[no-untyped-def]
    gate_ptr, up_ptr, out_ptr, gate_stride, up_stride, T, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]  # int64: T * F passes 2**31
    cols = (tl.program_id(1) * COLS + tl.arange(0, COLS))[None, :]
    mask = (rows < T) & (cols < WIDTH)
    gate = tl.load(gate_ptr + rows * gate_stride + cols, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + rows * up_stride + cols, mask=mask, other=0.0).to(tl.float32)
    out = gate * tl.sigmoid(gate) * up
    tl.store(out_ptr + rows * WIDTH + cols, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T"])
def _bwd_kernel(  # type: ignore[no-untyped-def]
    dout_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, dout_stride, gate_stride, up_stride, T,
    WIDTH: tl.constexpr, GRAD_STRIDE: tl.constexpr, NEED_DGATE: tl.constexpr, NEED_DUP: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    cols = (tl.program_id(1) * COLS + tl.arange(0, COLS))[None, :]
    mask = (rows < T) & (cols < WIDTH)
    dout = tl.load(dout_ptr + rows * dout_stride + cols, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + rows * gate_stride + cols, mask=mask, other=0.0).to(tl.float32)
    s = tl.sigmoid(gate)
    if NEED_DUP:
        tl.store(dup_ptr + rows * GRAD_STRIDE + cols, (dout * (gate * s)).to(dup_ptr.dtype.element_ty), mask=mask)
    if NEED_DGATE:
        up = tl.load(up_ptr + rows * up_stride + cols, mask=mask, other=0.0).to(tl.float32)
        dgate = dout * up * (s * (1.0 + gate * (1.0 - s)))
        tl.store(dgate_ptr + rows * GRAD_STRIDE + cols, dgate.to(dgate_ptr.dtype.element_ty), mask=mask)


def _tile(width: int) -> tuple[int, int]:
    """(rows, columns) of a program's tile: 512 columns divide 18944 exactly, where 32768 would waste 42 %."""
    cols = min(512, max(128, width & -width))
    return TILE // cols, cols


@custom_op("eagle::swiglu")
def _fwd(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    T, width = gate_TF.shape
    out_TF = gate_TF.new_empty(T, width)
    if T and width:
        rows, cols = _tile(width)
        gate_TF, up_TF = inner_contiguous(gate_TF), inner_contiguous(up_TF)
        with on_device_of(gate_TF):
            _fwd_kernel[(triton.cdiv(T, rows), triton.cdiv(width, cols))](
                gate_TF, up_TF, out_TF, gate_TF.stride(0), up_TF.stride(0), T, WIDTH=width, ROWS=rows, COLS=cols
            )
    return out_TF


@custom_op("eagle::swiglu_bwd")
def _bwd(dout_TF: Tensor, gate_TF: Tensor, up_TF: Tensor, need_dgate: bool, need_dup: bool) -> tuple[Tensor, Tensor]:
    """(dgate, dup); an empty tensor stands for one that is not needed."""
    T, width = gate_TF.shape
    dgate_TF, dup_TF = (
        gate_TF.new_empty((T, width) if need_dgate else 0),
        up_TF.new_empty((T, width) if need_dup else 0),
    )
    _launch_bwd(dout_TF, gate_TF, up_TF, dgate_TF, dup_TF, width, need_dgate, need_dup)
    return dgate_TF, dup_TF


def _launch_bwd(
    dout_TF: Tensor,
    gate_TF: Tensor,
    up_TF: Tensor,
    dgate_TF: Tensor,
    dup_TF: Tensor,
    grad_stride: int,
    need_dgate: bool,
    need_dup: bool,
) -> None:
    """Fills dgate and dup, whose rows lie `grad_stride` elements apart."""
    T, width = gate_TF.shape
    if T and width:
        rows, cols = _tile(width)
        dout_TF, gate_TF, up_TF = inner_contiguous(dout_TF), inner_contiguous(gate_TF), inner_contiguous(up_TF)
        with on_device_of(gate_TF):
            _bwd_kernel[(triton.cdiv(T, rows), triton.cdiv(width, cols))](
                dout_TF, gate_TF, up_TF, dgate_TF, dup_TF, dout_TF.stride(0), gate_TF.stride(0), up_TF.stride(0), T,
                WIDTH=width, GRAD_STRIDE=grad_stride, NEED_DGATE=need_dgate, NEED_DUP=need_dup, ROWS=rows, COLS=cols,
            )  # fmt: skip


@_fwd.register_fake
def _(gate_TF, up_TF):  # type: ignore[no-untyped-def]
    return gate_TF.new_empty(gate_TF.shape)


@_bwd.register_fake
def _(dout_TF, gate_TF, up_TF, need_dgate, need_dup):  # type: ignore[no-untyped-def]
    shape = gate_TF.shape
    return gate_TF.new_empty(shape if need_dgate else (0,)), up_TF.new_empty(shape if need_dup else (0,))


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _grad(ctx, dout_TF):  # type: ignore[no-untyped-def]
    need_dgate, need_dup = ctx.needs_input_grad
    dgate_TF, dup_TF = _bwd(dout_TF, *ctx.saved_tensors, need_dgate, need_dup)
    return dgate_TF if need_dgate else None, dup_TF if need_dup else None


_fwd.register_autograd(_grad, setup_context=_setup)


@custom_op("eagle::swiglu_halves")
def _fwd_halves(gate_up_TG: Tensor) -> Tensor:
    return _fwd.function(*gate_up_TG.chunk(2, dim=1))


@custom_op("eagle::swiglu_halves_bwd")
def _bwd_halves(dout_TF: Tensor, gate_up_TG: Tensor) -> Tensor:
    dgate_up_TG = gate_up_TG.new_empty(gate_up_TG.shape)
    gate_TF, up_TF = gate_up_TG.chunk(2, dim=1)
    dgate_TF, dup_TF = dgate_up_TG.chunk(2, dim=1)
    _launch_bwd(dout_TF, gate_TF, up_TF, dgate_TF, dup_TF, gate_up_TG.shape[1], True, True)
    return dgate_up_TG


@_fwd_halves.register_fake
def _(gate_up_TG):  # type: ignore[no-untyped-def]
    return gate_up_TG.new_empty((gate_up_TG.shape[0], gate_up_TG.shape[1] // 2))


@_bwd_halves.register_fake
def _(dout_TF, gate_up_TG):  # type: ignore[no-untyped-def]
    return gate_up_TG.new_empty(gate_up_TG.shape)


_fwd_halves.register_autograd(
    lambda ctx, dout_TF: _bwd_halves(dout_TF, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, silu(x) = x / (1 + exp(-x)).

        hidden = swiglu(torch.randn(4, 18944), torch.randn(4, 18944))

    CPU tensors take `swiglu_ref`. Rows may lie apart without a copy; a tensor whose last dim is strided is copied. For
    both halves of one fused projection: `swiglu_halves`.

    Args:    gate, up: (..., F), F numbers of each row; one shape, floating dtype and device.
    Returns: a new tensor of their shape and dtype; under torch.autocast, where dtypes may differ, of the widest.
    Raises:  ValueError when an argument is not as above, or they are fp64 on a GPU.
    """
    op = "swiglu"
    if not (isinstance(gate, Tensor) and isinstance(up, Tensor)):
        refuse_types(op, gate=gate, up=up)
    if not gate.is_meta and torch.is_autocast_enabled(gate.device.type):
        with autocast.off(gate):
            return swiglu(*autocast.widest(gate, up))
    if not (gate.is_floating_point() and gate.ndim >= 1):
        refuse(op, "gate", f"{gate.dtype} {tuple(gate.shape)}", "a floating dtype and (..., F)")
    if up.shape != gate.shape:
        refuse(op, "up's shape", tuple(up.shape), f"gate's {tuple(gate.shape)}")
    if up.dtype != gate.dtype or up.device != gate.device:
        refuse_unlike(op, "up", up, "gate", gate)
    if not takes_kernel(gate):
        return swiglu_ref(gate, up)
    check_kernel_dtype(op, "gate", gate)
    return _fwd(as_rows(gate), as_rows(up)).view(gate.shape)


def swiglu_halves(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of a fused projection, whose last dim holds gate and then up.

        hidden = swiglu_halves(torch.randn(4, 2 * 18944))

    As `swiglu` of the halves, bit for bit. The gradient is one tensor, where that of two halves would have to be joined
    for the projection's backward: a copy of 2F numbers a row.

    Args:    gate_up: (..., 2F), F numbers of each row and as many more; a floating dtype.
    Returns: a new tensor, (..., F), of gate_up's dtype.
    Raises:  ValueError when gate_up is not as above, or fp64 on a GPU.
    """
    op = "swiglu_halves"
    if not isinstance(gate_up, Tensor):
        refuse_types(op, gate_up=gate_up)
    if not (gate_up.is_floating_point() and gate_up.ndim >= 1 and gate_up.shape[-1] % 2 == 0):
        refuse(op, "gate_up", f"{gate_up.dtype} {tuple(gate_up.shape)}", "a floating dtype and (..., 2F)")
    if not takes_kernel(gate_up):
        return swiglu_ref(*gate_up.chunk(2, dim=-1))
    check_kernel_dtype(op, "gate_up", gate_up)
    return _fwd_halves(as_rows(gate_up)).view(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
