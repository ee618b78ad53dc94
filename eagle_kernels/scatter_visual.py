"""Visual tokens take their rows of the text embeddings.

Dims    T tokens of the row, N visual tokens, C model width.
Maths   out = embeddings;  out[rows[n]] = visual[n].
Grads   dembeddings = dout, with 0 in the rows that were overwritten;  dvisual[n] = dout[rows[n]].
Numbers A copy, bit for bit, of any dtype. `rows` ascends strictly: no row is written twice.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels.checks import check, check_same, inner_contiguous, on_device_of

COLS = 2048  # elements a program copies: 16 a thread, two 16-byte loads of bf16


def scatter_visual_ref(embeddings_TC: Tensor, visual_NC: Tensor, rows_N: Tensor) -> Tensor:
    """What the kernel means, in plain torch. Any device, any dtype; tests differentiate through it."""
    return embeddings_TC.index_copy(0, rows_N.long(), visual_NC)


@triton.jit
def _put_kernel(visual_ptr, rows_ptr, out_ptr, visual_stride, C: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    n = tl.program_id(0).to(tl.int64)  # int64: T * C passes 2**31
    row = tl.load(rows_ptr + n).to(tl.int64)
    i = tl.program_id(1) * COLS + tl.arange(0, COLS)
    tl.store(out_ptr + row * C + i, tl.load(visual_ptr + n * visual_stride + i, mask=i < C), mask=i < C)


@triton.jit
def _take_kernel(  # type: ignore[no-untyped-def]
    dout_ptr, rows_ptr, dembeddings_ptr, dvisual_ptr, dout_stride,
    C: tl.constexpr, NEED_DEMBEDDINGS: tl.constexpr, NEED_DVISUAL: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + n).to(tl.int64)
    i = tl.program_id(1) * COLS + tl.arange(0, COLS)
    if NEED_DVISUAL:
        tl.store(dvisual_ptr + n * C + i, tl.load(dout_ptr + row * dout_stride + i, mask=i < C), mask=i < C)
    if NEED_DEMBEDDINGS:
        zero = tl.zeros((COLS,), dembeddings_ptr.dtype.element_ty)
        tl.store(dembeddings_ptr + row * C + i, zero, mask=i < C)


@torch.library.custom_op("eagle::scatter_visual", mutates_args=())
def _fwd(embeddings_TC: Tensor, visual_NC: Tensor, rows_N: Tensor) -> Tensor:
    N, C = visual_NC.shape
    out_TC = embeddings_TC.clone(memory_format=torch.contiguous_format)
    if N and C:
        visual_NC = inner_contiguous(visual_NC)
        with on_device_of(out_TC):
            _put_kernel[(N, triton.cdiv(C, COLS))](
                visual_NC, rows_N.contiguous(), out_TC, visual_NC.stride(0), C=C, COLS=COLS
            )
    return out_TC


@torch.library.custom_op("eagle::scatter_visual_bwd", mutates_args=())
def _bwd(dout_TC: Tensor, rows_N: Tensor, need_dembeddings: bool, need_dvisual: bool) -> tuple[Tensor, Tensor]:
    """(dembeddings, dvisual); an empty tensor stands for one that is not needed."""
    (_, C), N = dout_TC.shape, rows_N.shape[0]
    dvisual_NC = dout_TC.new_empty((N, C) if need_dvisual else 0)
    if need_dembeddings:
        dembeddings_TC = dout_TC.clone(memory_format=torch.contiguous_format)
    else:
        dembeddings_TC = dout_TC.new_empty(0)
    if N and C:
        dout_TC = inner_contiguous(dout_TC)
        with on_device_of(dout_TC):
            _take_kernel[(N, triton.cdiv(C, COLS))](
                dout_TC, rows_N.contiguous(), dembeddings_TC, dvisual_NC, dout_TC.stride(0),
                C=C, NEED_DEMBEDDINGS=need_dembeddings, NEED_DVISUAL=need_dvisual, COLS=COLS,
            )  # fmt: skip
    return dembeddings_TC, dvisual_NC


@_fwd.register_fake
def _(embeddings_TC, visual_NC, rows_N):  # type: ignore[no-untyped-def]
    return embeddings_TC.new_empty(embeddings_TC.shape)


@_bwd.register_fake
def _(dout_TC, rows_N, need_dembeddings, need_dvisual):  # type: ignore[no-untyped-def]
    dvisual_shape = (rows_N.shape[0], dout_TC.shape[1]) if need_dvisual else (0,)
    return dout_TC.new_empty(dout_TC.shape if need_dembeddings else (0,)), dout_TC.new_empty(dvisual_shape)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(inputs[2])


def _grad(ctx, dout_TC):  # type: ignore[no-untyped-def]
    need_dembeddings, need_dvisual, _ = ctx.needs_input_grad
    dembeddings_TC, dvisual_NC = _bwd(dout_TC, *ctx.saved_tensors, need_dembeddings, need_dvisual)
    return dembeddings_TC if need_dembeddings else None, dvisual_NC if need_dvisual else None, None


_fwd.register_autograd(_grad, setup_context=_setup)


def scatter_visual(embeddings_TC: Tensor, visual_NC: Tensor, rows_N: Tensor) -> Tensor:
    """embeddings_TC with row rows_N[n] replaced by visual_NC[n]; a new tensor. CPU tensors take `scatter_visual_ref`.

    rows_N: int32 or int64, strictly ascending, 0 <= row < T.
    Raises ValueError, before anything is written, when the number of visual tokens is not the number of rows, or a
    width, dtype or device does not match; and on CPU when `rows_N` does not ascend or leaves the range. On a GPU, where
    looking would make the host wait, and in compiled code, that last one is an assertion on the device.
    """
    op = "scatter_visual"
    check(embeddings_TC.ndim == 2, op, "embeddings' shape", tuple(embeddings_TC.shape), "(T, C)")
    T, C = embeddings_TC.shape
    fits = visual_NC.ndim == 2 and visual_NC.shape[1] == C
    check(fits, op, "visual's shape", tuple(visual_NC.shape), f"(N, {C}), the width of the embeddings")
    integer = rows_N.ndim == 1 and rows_N.dtype in (torch.int32, torch.int64)
    check(integer, op, "rows", f"{rows_N.dtype} {tuple(rows_N.shape)}", "int32 or int64 and (N,)")
    num_visual, num_rows = visual_NC.shape[0], rows_N.shape[0]
    check(num_visual == num_rows, op, "the number of visual tokens", num_visual, f"{num_rows}, the number of rows")
    check_same(op, "visual", visual_NC, "embeddings", embeddings_TC)
    check(rows_N.device == embeddings_TC.device, op, "rows' device", rows_N.device, f"{embeddings_TC.device}")
    ascending = (rows_N.diff() > 0).all() & (rows_N[:1] >= 0).all() & (rows_N[-1:] < T).all()
    need = f"strictly ascending and within 0 <= row < {T}"
    if embeddings_TC.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(ascending, f"{op}: rows are out of order or range; needs them {need}.")
    else:
        check(bool(ascending), op, "rows", rows_N.tolist() if num_rows <= 8 else f"{num_rows} rows", f"them {need}")
    if not embeddings_TC.is_cuda:
        return scatter_visual_ref(embeddings_TC, visual_NC, rows_N)
    return _fwd(embeddings_TC, visual_NC, rows_N)
