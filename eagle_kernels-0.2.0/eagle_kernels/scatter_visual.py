"""Visual tokens take their rows of the text embeddings.

    embeddings_TC = scatter_visual(embeddings_TC, visual_NC, rows_N)  # rows_N: where the placeholders stand

Dims    T tokens of the row, N visual tokens, C model width.
Maths   out = embeddings;  out[rows[n]] = visual[n].
Grads   dembeddings = dout, with 0 in the rows that were overwritten;  dvisual[n] = dout[rows[n]].
Numbers A copy, bit for bit, of any dtype. `rows` ascends strictly: no row is written twice.
        One pass each way: a row of the result looks itself up among `rows`, by halves, and comes from one of its two
        sources; forward moves 2*T*C elements, backward (2*T + N)*C. docs/notes/fused_ops.md: what was chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eagle_kernels import autocast, native
from eagle_kernels.checks import inner_contiguous, refuse, refuse_types, refuse_unlike
from eagle_kernels.library import custom_op

OP = "scatter_visual"


def scatter_visual_ref(embeddings_TC: Tensor, visual_NC: Tensor, rows_N: Tensor) -> Tensor:
    """What the kernel means, in plain torch. Any device, any dtype; tests differentiate through it."""
    return embeddings_TC.index_copy(0, rows_N.long(), visual_NC)


@custom_op("eagle::scatter_visual")
def _fwd(embeddings_TC: Tensor, visual_NC: Tensor, rows_N: Tensor) -> Tensor:
    out_TC = embeddings_TC.new_empty(embeddings_TC.shape)
    _run(inner_contiguous(embeddings_TC), inner_contiguous(visual_NC), rows_N, out_TC, backward=False)
    return out_TC


@custom_op("eagle::scatter_visual_bwd")
def _bwd(dout_TC: Tensor, rows_N: Tensor, need_dembeddings: bool, need_dvisual: bool) -> tuple[Tensor, Tensor]:
    """(dembeddings, dvisual); an empty tensor stands for one that is not needed."""
    dembeddings_TC, dvisual_NC = _bwd_fake(dout_TC, rows_N, need_dembeddings, need_dvisual)
    _run(dembeddings_TC, dvisual_NC, rows_N, inner_contiguous(dout_TC), backward=True)
    return dembeddings_TC, dvisual_NC


def _run(text_TC: Tensor, visual_NC: Tensor, rows_N: Tensor, whole_TC: Tensor, *, backward: bool) -> None:
    extension = native.load()
    text, visual, rows = native.view(text_TC), native.view(visual_NC), native.view(rows_N)
    whole, size = native.view(whole_TC), whole_TC.element_size()
    tensors = extension.ScatterVisual(
        text=_bytes(text, size), visual=_bytes(visual, size), rows=rows, whole=_bytes(whole, size), backward=backward
    )
    if not whole_TC.is_cuda:
        extension.scatter_visual_cpu(tensors, torch.get_num_threads())
        return
    native.require_cuda(OP)
    device = whole_TC.device
    extension.scatter_visual_cuda(tensors, device.index, torch.cuda.current_stream(device).cuda_stream)


def _bytes(view_RC: native.View, size: int) -> native.View:
    """Rows of bytes, `size` an element: what is copied has no dtype."""
    address, (num_rows, width), (row_stride, _), _, bytes_left = view_RC
    return address, (num_rows, width * size), (row_stride * size, 1), "uint8", bytes_left


@_fwd.register_fake
def _(embeddings_TC, visual_NC, rows_N):  # type: ignore[no-untyped-def]
    return embeddings_TC.new_empty(embeddings_TC.shape)


@_bwd.register_fake
def _bwd_fake(dout_TC: Tensor, rows_N: Tensor, need_dembeddings: bool, need_dvisual: bool) -> tuple[Tensor, Tensor]:
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
    """The text embeddings, with row rows[n] replaced by visual token n.

        out_TC = scatter_visual(torch.randn(9, 3584), torch.randn(3, 3584), torch.tensor([2, 3, 4]))

    CPU tensors take the C++ code.

    Args:    embeddings_TC: (T, C), of T tokens, C wide; any dtype.  visual_NC: (N, C), of their dtype and device.
             rows_N: (N,) int32 or int64, strictly ascending, 0 <= row < T.
    Returns: (T, C), new; under torch.autocast, where dtypes may differ, of the widest.
    Raises:  ValueError, before anything is written, when an argument is not as above. On a GPU, where looking at the
             rows would make the host wait, their order and range are an assertion on the device. RuntimeError for CUDA
             tensors in a build without CUDA.
    """
    if not (isinstance(embeddings_TC, Tensor) and isinstance(visual_NC, Tensor) and isinstance(rows_N, Tensor)):
        refuse_types(OP, embeddings=embeddings_TC, visual=visual_NC, rows=rows_N)
    if not embeddings_TC.is_meta and torch.is_autocast_enabled(embeddings_TC.device.type):
        with autocast.off(embeddings_TC):
            return scatter_visual(*autocast.widest(embeddings_TC, visual_NC), rows_N)
    if embeddings_TC.ndim != 2:
        refuse(OP, "embeddings' shape", tuple(embeddings_TC.shape), "(T, C)")
    T, C = embeddings_TC.shape
    fits = visual_NC.ndim == 2 and visual_NC.shape[1] == C
    if not fits:
        refuse(OP, "visual's shape", tuple(visual_NC.shape), f"(N, {C}), the width of the embeddings")
    integer = rows_N.ndim == 1 and rows_N.dtype in (torch.int32, torch.int64)
    if not integer:
        refuse(OP, "rows", f"{rows_N.dtype} {tuple(rows_N.shape)}", "int32 or int64 and (N,)")
    num_visual, num_rows = visual_NC.shape[0], rows_N.shape[0]
    if num_visual != num_rows:
        refuse(OP, "the number of visual tokens", num_visual, f"{num_rows}, the number of rows")
    if num_rows > T:
        refuse(OP, "the number of rows", num_rows, f"at most {T}, one for each of the embeddings")
    if visual_NC.dtype != embeddings_TC.dtype or visual_NC.device != embeddings_TC.device:
        refuse_unlike(OP, "visual", visual_NC, "embeddings", embeddings_TC)
    if rows_N.device != embeddings_TC.device:
        refuse(OP, "rows' device", rows_N.device, f"{embeddings_TC.device}")
    return _fwd(embeddings_TC, visual_NC, rows_N)
