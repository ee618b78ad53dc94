"""Visual tokens take their rows of the text embeddings.

Dims    T tokens of the row, N visual tokens, C model width.
Maths   out = embeddings;  out[rows[n]] = visual[n].
Grads   dembeddings = dout, with 0 in the rows that were overwritten;  dvisual[n] = dout[rows[n]].
Numbers A copy, bit for bit, of any dtype. `rows` ascends strictly: no row is written twice.
        One pass each way: a row of the result looks itself up among `rows`, by halves, and comes from one of its two
        sources; forward moves 2*T*C elements, backward (2*T + N)*C. docs/notes/fused_ops.md: why not CUDA C++.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels.checks import check, check_same, inner_contiguous, on_device_of

ROWS, COLS = 8, 512  # a program's tile: 32 elements a thread, four 16-byte loads of bf16


def scatter_visual_ref(embeddings_TC: Tensor, visual_NC: Tensor, rows_N: Tensor) -> Tensor:
    """What the kernel means, in plain torch. Any device, any dtype; tests differentiate through it."""
    return embeddings_TC.index_copy(0, rows_N.long(), visual_NC)


@triton.jit
def _look_up(rows_ptr, N, t, num_halvings):  # type: ignore[no-untyped-def]
    """(n, found): the first n with rows[n] >= t, and whether it is t."""
    low, high = tl.zeros_like(t), tl.zeros_like(t) + N
    for _ in range(num_halvings):
        middle = (low + high) // 2
        left = low < high
        below = tl.load(rows_ptr + middle, mask=left, other=0).to(tl.int64) < t
        low = tl.where(left & below, middle + 1, low)
        high = tl.where(left & (below == 0), middle, high)
    return low, tl.load(rows_ptr + low, mask=low < N, other=-1).to(tl.int64) == t


@triton.jit
def _fwd_kernel(  # type: ignore[no-untyped-def]
    embeddings_ptr, visual_ptr, rows_ptr, out_ptr, embeddings_stride, visual_stride, out_stride, T, N, num_halvings,
    C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # int64: T * C passes 2**31
    n, found = _look_up(rows_ptr, N, t, num_halvings)
    t, n, found = t[:, None], n[:, None], found[:, None]
    for start in range(0, C, COLS):
        cols = (start + tl.arange(0, COLS))[None, :]
        mask = (t < T) & (cols < C)
        text = tl.load(embeddings_ptr + t * embeddings_stride + cols, mask=mask & (found == 0))
        visual = tl.load(visual_ptr + n * visual_stride + cols, mask=mask & found)
        tl.store(out_ptr + t * out_stride + cols, tl.where(found, visual, text), mask=mask)


@triton.jit
def _bwd_kernel(  # type: ignore[no-untyped-def]
    dout_ptr, rows_ptr, dembeddings_ptr, dvisual_ptr, dout_stride, dembeddings_stride, dvisual_stride, T, N,
    num_halvings, C: tl.constexpr, NEED_DEMBEDDINGS: tl.constexpr, NEED_DVISUAL: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    n, found = _look_up(rows_ptr, N, t, num_halvings)
    t, n, found = t[:, None], n[:, None], found[:, None]
    for start in range(0, C, COLS):
        cols = (start + tl.arange(0, COLS))[None, :]
        mask = (t < T) & (cols < C)
        dout = tl.load(dout_ptr + t * dout_stride + cols, mask=mask & (found | NEED_DEMBEDDINGS), other=0.0)
        if NEED_DVISUAL:
            tl.store(dvisual_ptr + n * dvisual_stride + cols, dout, mask=mask & found)
        if NEED_DEMBEDDINGS:
            zero = tl.zeros_like(dout)
            tl.store(dembeddings_ptr + t * dembeddings_stride + cols, tl.where(found, zero, dout), mask=mask)


@torch.library.custom_op("eagle::scatter_visual", mutates_args=())
def _fwd(embeddings_TC: Tensor, visual_NC: Tensor, rows_N: Tensor) -> Tensor:
    (T, C), N = embeddings_TC.shape, visual_NC.shape[0]
    out_TC = embeddings_TC.new_empty(T, C)
    if T and C:
        embeddings_TC, visual_NC = inner_contiguous(embeddings_TC), inner_contiguous(visual_NC)
        with on_device_of(out_TC):
            _fwd_kernel[(triton.cdiv(T, ROWS),)](
                embeddings_TC, visual_NC, rows_N.contiguous(), out_TC,
                embeddings_TC.stride(0), visual_NC.stride(0), out_TC.stride(0), T, N, N.bit_length(),
                C=C, ROWS=ROWS, COLS=COLS,
            )  # fmt: skip
    return out_TC


@torch.library.custom_op("eagle::scatter_visual_bwd", mutates_args=())
def _bwd(dout_TC: Tensor, rows_N: Tensor, need_dembeddings: bool, need_dvisual: bool) -> tuple[Tensor, Tensor]:
    """(dembeddings, dvisual); an empty tensor stands for one that is not needed."""
    (T, C), N = dout_TC.shape, rows_N.shape[0]
    dembeddings_TC = dout_TC.new_empty((T, C) if need_dembeddings else (0, 0))
    dvisual_NC = dout_TC.new_empty((N, C) if need_dvisual else (0, 0))
    if T and C:
        dout_TC = inner_contiguous(dout_TC)
        with on_device_of(dout_TC):
            _bwd_kernel[(triton.cdiv(T, ROWS),)](
                dout_TC, rows_N.contiguous(), dembeddings_TC, dvisual_NC,
                dout_TC.stride(0), dembeddings_TC.stride(0), dvisual_NC.stride(0), T, N, N.bit_length(),
                C=C, NEED_DEMBEDDINGS=need_dembeddings, NEED_DVISUAL=need_dvisual, ROWS=ROWS, COLS=COLS,
            )  # fmt: skip
    return dembeddings_TC, dvisual_NC


@_fwd.register_fake
def _(embeddings_TC, visual_NC, rows_N):  # type: ignore[no-untyped-def]
    return embeddings_TC.new_empty(embeddings_TC.shape)


@_bwd.register_fake
def _(dout_TC, rows_N, need_dembeddings, need_dvisual):  # type: ignore[no-untyped-def]
    dvisual_shape = (rows_N.shape[0], dout_TC.shape[1]) if need_dvisual else (0, 0)
    return dout_TC.new_empty(dout_TC.shape if need_dembeddings else (0, 0)), dout_TC.new_empty(dvisual_shape)


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
