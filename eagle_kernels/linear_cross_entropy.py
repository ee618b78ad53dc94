"""Cross-entropy of a linear layer's logits, which never exist all at once.

Dims    T tokens, C model width, V vocabulary, M tokens of one chunk.
Maths   loss = sum over labelled t of w[t] * (logsumexp(z[t]) - z[t, label[t]]),  z = hidden weight^T;
        w = token_weights, or 1 / (number of labelled tokens).
Grads   g[t] = w[t] * (softmax(z[t]) - onehot(label[t]));  dhidden = g weight;  dweight = g^T hidden.
How     Labelled tokens are moved to the front and taken M at a time: z of the chunk, then g in its place, then both
        matmuls. Gradients are made in the forward pass (three matmuls, where recomputing in backward takes four), only
        those that are needed, and backward multiplies them by the gradient of the loss.
        On CPU ignored tokens are dropped before the matmul. On a GPU the host does not know how many there are and
        must not wait to learn it: there every chunk runs, ignored tokens last and masked.
Numbers Matmuls in hidden's dtype with fp32 sums; z, g and a chunk's dhidden are rounded to it, as in torch. Softmax,
        token losses, w, the loss, and dweight's sum over chunks in fp32; dhidden and dweight stay fp32 until backward
        has multiplied them. g is scaled by 1 / max(w) until after the matmuls, so that fp16 does not lose small
        weights. No atomics: the same bits at every run.
Memory  Beside the inputs: fp32 dweight (V, C) and dhidden (T, C) where needed, and a chunk: at most CHUNK_BYTES of fp32
        logits on CPU, 1024 tokens of logits on a GPU.
Source  Wijmans et al. 2024, arXiv:2411.09009; Hsu et al. 2024, arXiv:2410.10989.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels.checks import check, check_kernel_dtype, check_same, on_device_of

CHUNK_BYTES = 64 * 2**20  # CPU: fp32 logits of one chunk; 110 tokens at Eagle's vocabulary
CHUNK_TOKENS = (
    1024  # GPU: enough rows for the matmuls to run at full speed; 311 MB of bf16 logits at Eagle's vocabulary
)
DWEIGHT_ROWS = 16384  # GPU: vocabulary rows of dweight a time, so that a matmul's fp32 result stays small
BLOCK = 4096  # logits a program holds at a time


def linear_cross_entropy_ref(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    labels_T: Tensor,
    token_weights_T: Tensor | None = None,
    *,
    ignore_index: int = -100,
) -> Tensor:
    """What the op means, in plain torch, with all logits in memory. Any device and dtype; tests differentiate it."""
    wide = torch.promote_types(hidden_TC.dtype, torch.float32)
    logits_TV = (hidden_TC @ weight_VC.T).to(wide)
    losses_T = F.cross_entropy(logits_TV, labels_T, ignore_index=ignore_index, reduction="none")
    labelled_T = labels_T != ignore_index
    if token_weights_T is None:
        return losses_T.sum() / labelled_T.sum().clamp(min=1)
    return (losses_T * torch.where(labelled_T, token_weights_T, 0)).sum()


@triton.jit
def _softmax_grad_kernel(  # type: ignore[no-untyped-def]
    logits_ptr, labels_ptr, scales_ptr, losses_ptr, logits_stride, ignore_index,
    V: tl.constexpr, NEED_GRAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # int64: rows * V passes 2**31
    label = tl.load(labels_ptr + row)
    logits_ptr += row * logits_stride
    i = tl.arange(0, BLOCK)
    if label == ignore_index:
        tl.store(losses_ptr + row, 0.0)
        if NEED_GRAD:
            for start in range(0, V, BLOCK):
                zero = tl.zeros((BLOCK,), logits_ptr.dtype.element_ty)
                tl.store(logits_ptr + start + i, zero, mask=start + i < V)
    else:
        # One maximum and sum per lane, merged at the end: no reduction inside the loop.
        high = tl.full((BLOCK,), -float("inf"), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        picked = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, V, BLOCK):
            z = tl.load(logits_ptr + start + i, mask=start + i < V, other=-float("inf")).to(tl.float32)
            higher = tl.maximum(high, z)
            base = tl.where(higher == -float("inf"), 0.0, higher)  # -inf - -inf is NaN
            total = total * tl.exp(high - base) + tl.exp(z - base)
            high = higher
            picked += tl.where(start + i == label, z, 0.0)
        top = tl.max(high, axis=0)
        total_ = tl.sum(total * tl.exp(high - top), axis=0)
        tl.store(losses_ptr + row, tl.log(total_) + top - tl.sum(picked, axis=0))
        if NEED_GRAD:
            scale = tl.load(scales_ptr + row)
            for start in range(0, V, BLOCK):
                z = tl.load(logits_ptr + start + i, mask=start + i < V, other=-float("inf")).to(tl.float32)
                p = tl.exp(z - top) / total_
                g = scale * (p - tl.where(start + i == label, 1.0, 0.0))  # minus 1 before the rounding
                tl.store(logits_ptr + start + i, g.to(logits_ptr.dtype.element_ty), mask=start + i < V)


def _softmax_grad(logits_MV: Tensor, labels_M: Tensor, scales_M: Tensor, ignore_index: int, need_grad: bool) -> Tensor:
    """Token losses (0 where ignored); where `need_grad`, `logits_MV` is overwritten by scales * (softmax - onehot)."""
    M, V = logits_MV.shape
    losses_M = torch.empty_like(scales_M)
    if M:
        with on_device_of(logits_MV):
            _softmax_grad_kernel[(M,)](
                logits_MV, labels_M, scales_M, losses_M, logits_MV.stride(0), ignore_index,
                V=V, NEED_GRAD=need_grad, BLOCK=BLOCK, num_warps=8,
            )  # fmt: skip
    return losses_M


def _softmax_grad_ref(
    logits_MV: Tensor, labels_M: Tensor, scales_M: Tensor, ignore_index: int, need_grad: bool
) -> Tensor:
    """`_softmax_grad` in plain torch, in place as far as it goes: beside bf16 logits, one fp32 copy of them."""
    ignored_M = labels_M == ignore_index
    picks_M1 = labels_M.masked_fill(ignored_M, 0).long()[:, None]
    wide_MV = logits_MV.to(scales_M.dtype)  # the logits themselves where they are already wide
    picked_M1 = wide_MV.gather(1, picks_M1)
    top_M1 = wide_MV.amax(1, keepdim=True)
    total_M1 = wide_MV.sub_(top_M1).exp_().sum(1, keepdim=True)
    losses_M = (total_M1.log() + top_M1 - picked_M1).squeeze(1).masked_fill_(ignored_M, 0)
    if need_grad:
        wide_MV.div_(total_M1).scatter_add_(1, picks_M1, wide_MV.new_full((), -1).expand_as(picks_M1))
        wide_MV.mul_(scales_M[:, None]).masked_fill_(ignored_M[:, None], 0)
        logits_MV.copy_(wide_MV)
    return losses_M


def _chunks(num_tokens: int, chunk_tokens: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk_tokens, num_tokens)) for start in range(0, num_tokens, chunk_tokens))


def _add_dweight(dweight_VC: Tensor, g_MV: Tensor, hidden_MC: Tensor) -> None:
    """dweight += g^T hidden, with the products summed in dweight's dtype."""
    if g_MV.dtype == dweight_VC.dtype:
        dweight_VC.addmm_(g_MV.T, hidden_MC)
    elif g_MV.is_cuda:
        for rows in _chunks(dweight_VC.shape[0], DWEIGHT_ROWS):
            dweight_VC[rows] += torch.mm(g_MV[:, rows].T, hidden_MC, out_dtype=dweight_VC.dtype)
    else:  # torch's CPU matmul has no out_dtype
        dweight_VC.addmm_(g_MV.T.to(dweight_VC.dtype), hidden_MC.to(dweight_VC.dtype))


@torch.library.custom_op("eagle::linear_cross_entropy", mutates_args=())
def _fwd(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    labels_T: Tensor,
    token_weights_T: Tensor | None,
    ignore_index: int,
    need_dhidden: bool,
    need_dweight: bool,
    as_on_gpu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, dhidden, dweight), all fp32; an empty tensor stands for a gradient that is not needed.

    as_on_gpu: the kernel, and no look at a value; the tests ask for it on CPU tensors too.
    """
    (T, C), V = hidden_TC.shape, weight_VC.shape[0]
    wide = torch.promote_types(hidden_TC.dtype, torch.float32)
    labelled_T = labels_T != ignore_index
    if token_weights_T is None:
        weights_T = labelled_T.to(wide) / labelled_T.sum().clamp(min=1)
    else:
        weights_T = torch.where(labelled_T, token_weights_T.to(wide), 0)
    dhidden_TC = hidden_TC.new_zeros((T, C) if need_dhidden else 0, dtype=wide)
    dweight_VC = hidden_TC.new_zeros((V, C) if need_dweight else 0, dtype=wide)
    loss = hidden_TC.new_zeros((), dtype=wide)
    if T == 0:
        return loss, dhidden_TC, dweight_VC

    if as_on_gpu:
        order_N = torch.argsort(labels_T == ignore_index, stable=True)  # labelled first; their number stays on the GPU
        chunk_tokens = CHUNK_TOKENS
    else:
        order_N = labelled_T.nonzero().squeeze(1)
        chunk_tokens = max(1, CHUNK_BYTES // (4 * V))
    largest = weights_T.abs().amax()
    largest = torch.where(largest > 0, largest, 1)  # a tensor: reading it would make the host wait
    softmax_grad = _softmax_grad if as_on_gpu else _softmax_grad_ref
    for chunk in _chunks(order_N.numel(), chunk_tokens):
        rows_M = order_N[chunk]
        labels_M, weights_M = labels_T[rows_M], weights_T[rows_M]
        hidden_MC = hidden_TC[rows_M]
        if as_on_gpu:  # what an ignored row holds, NaN perhaps, must not reach the matmul
            hidden_MC.masked_fill_((labels_M == ignore_index)[:, None], 0)
        g_MV = hidden_MC @ weight_VC.T
        losses_M = softmax_grad(g_MV, labels_M, weights_M / largest, ignore_index, need_dhidden or need_dweight)
        loss += (losses_M * weights_M).sum()
        if need_dhidden:
            dhidden_TC[rows_M] = (g_MV @ weight_VC).to(wide) * largest
        if need_dweight:
            _add_dweight(dweight_VC, g_MV, hidden_MC)
    return loss, dhidden_TC, dweight_VC.mul_(largest)


@_fwd.register_fake
def _(hidden_TC, weight_VC, labels_T, token_weights_T, ignore_index, need_dhidden, need_dweight, as_on_gpu):  # type: ignore[no-untyped-def]
    wide = torch.promote_types(hidden_TC.dtype, torch.float32)
    return (
        hidden_TC.new_empty((), dtype=wide),
        hidden_TC.new_empty(hidden_TC.shape if need_dhidden else (0,), dtype=wide),
        hidden_TC.new_empty(weight_VC.shape if need_dweight else (0,), dtype=wide),
    )


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    hidden_TC, weight_VC = inputs[:2]
    _, dhidden_TC, dweight_VC = output
    ctx.mark_non_differentiable(dhidden_TC, dweight_VC)
    ctx.dtypes = hidden_TC.dtype, weight_VC.dtype
    ctx.save_for_backward(dhidden_TC, dweight_VC)


def _grad(ctx, dloss, _ddhidden, _ddweight):  # type: ignore[no-untyped-def]
    grads = [
        (saved * dloss).to(dtype) if need else None
        for saved, dtype, need in zip(ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[:2], strict=True)
    ]
    return *grads, None, None, None, None, None, None


_fwd.register_autograd(_grad, setup_context=_setup)


def linear_cross_entropy(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    labels_T: Tensor,
    token_weights_T: Tensor | None = None,
    *,
    ignore_index: int = -100,
) -> Tensor:
    """sum of weight * cross-entropy(hidden weight^T, label) over labelled tokens; without weights, their mean.

    A fp32 scalar (fp64 for fp64 inputs, on a CPU); 0 with zero gradients when every label is ignored. Labels are
    already shifted: labels_T[t] belongs to hidden_TC[t]. Never holds (T, V) logits, on CPU or GPU.

    Args:   hidden_TC and weight_VC of one floating dtype; labels_T int64, each 0 <= label < V or `ignore_index`;
            token_weights_T fp32, a constant: no gradient flows to it.
    Raises: ValueError when a shape, dtype or device does not match, token_weights_T requires a gradient, or, on CPU, a
            label is out of range (on a GPU and in compiled code: an assertion on the device; the host must not wait).
    """
    op = "linear_cross_entropy"
    check(hidden_TC.ndim == 2 and hidden_TC.is_floating_point(), op, "hidden", tuple(hidden_TC.shape), "floats (T, C)")
    T, C = hidden_TC.shape
    fits = weight_VC.ndim == 2 and weight_VC.shape[0] >= 1 and weight_VC.shape[1] == C
    check(fits, op, "weight's shape", tuple(weight_VC.shape), f"(V, {C}) with V >= 1, the width of hidden")
    check_same(op, "weight", weight_VC, "hidden", hidden_TC)
    good = labels_T.shape == (T,) and labels_T.dtype == torch.int64
    check(good, op, "labels", f"{labels_T.dtype} {tuple(labels_T.shape)}", f"int64 and ({T},)")
    check(labels_T.device == hidden_TC.device, op, "labels' device", labels_T.device, f"{hidden_TC.device}")
    if token_weights_T is not None:
        w = token_weights_T
        wide = torch.promote_types(hidden_TC.dtype, torch.float32)
        check(
            w.shape == (T,) and w.dtype == wide,
            op,
            "token_weights",
            f"{w.dtype} {tuple(w.shape)}",
            f"{wide} and ({T},)",
        )
        check(w.device == hidden_TC.device, op, "token_weights' device", w.device, f"{hidden_TC.device}")
        check(not w.requires_grad, op, "token_weights' requires_grad", True, "a constant: detach it")
    if hidden_TC.is_cuda:
        check_kernel_dtype(op, "hidden", hidden_TC)
    V = weight_VC.shape[0]
    in_range = (((labels_T >= 0) & (labels_T < V)) | (labels_T == ignore_index)).all()
    need = f"0 <= label < {V}, or ignore_index = {ignore_index}"
    if hidden_TC.is_cuda or torch.compiler.is_compiling():
        torch._assert_async(in_range, f"{op}: a label is out of range; needs {need}.")
    elif not in_range:
        bad = labels_T[((labels_T < 0) | (labels_T >= V)) & (labels_T != ignore_index)]
        check(False, op, "a label", int(bad[0]), need)
    need_grad = torch.is_grad_enabled()
    need_dhidden, need_dweight = need_grad and hidden_TC.requires_grad, need_grad and weight_VC.requires_grad
    return _fwd(
        hidden_TC, weight_VC, labels_T, token_weights_T, ignore_index, need_dhidden, need_dweight, hidden_TC.is_cuda
    )[0]
