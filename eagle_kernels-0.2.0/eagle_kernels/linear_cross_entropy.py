"""Cross-entropy of a linear layer's logits, which never exist all at once.

    loss = linear_cross_entropy(hidden_TC, weight_VC, labels_T)

Dims    T tokens, C model width, V vocabulary (rows of the weight that are here), M tokens of one chunk.
Maths   loss = sum over labelled t of w[t] * (logsumexp(z[t]) - z[t, label[t]]),  z = hidden weight^T;
        w = token_weights, or 1 / (number of labelled tokens).
Grads   g[t] = w[t] * (softmax(z[t]) - onehot(label[t]));  dhidden = g weight;  dweight = g^T hidden.
How     Labelled tokens are moved to the front and taken M at a time: z of the chunk, then g in its place, then both
        matmuls. Gradients are made in the forward pass (three matmuls, where recomputing in backward takes four), only
        those that are needed, and backward multiplies them by the gradient of the loss.
        Ignored tokens are never multiplied. On CPU they are left out; on a GPU the host does not know how many there
        are and must not wait to learn it, so the kernels read their number there: the matmuls' programs, as many as
        the GPU has processors, share the tiles that hold labelled tokens, and find none in a chunk beyond them. A
        caller that knows the number, `num_labelled`, gets the library's matmuls of exactly those tokens.
Shards  With the weight's rows spread over a process group, each process has its own columns of z. Between the
        statistics of a row and its gradient they are merged: maximum, sum, label's logit and best token, 4 numbers a
        token. Each chunk's dhidden is added up over the group, in fp32; dweight stays where its rows are.
Numbers Matmuls in hidden's dtype with fp32 sums; z, g and dhidden are rounded to it, as in torch. Softmax, token
        losses, w, the loss, and dweight over all chunks in fp32 (on a CPU a chunk's own part of it is rounded first,
        in 16 bits). g is scaled by 1 / max(w) until backward, so that
        fp16 does not lose small weights (on a CPU in fp16 alone). No atomics: the same bits at every run.
Memory  Beside the inputs: fp32 dweight (V, C), dhidden (T, C) in hidden's dtype, each only where needed, and a chunk:
        its logits, `chunk_bytes` at most, and two copies of its hidden states.
Source  Wijmans et al. 2024, arXiv:2411.09009; Hsu et al. 2024, arXiv:2410.10989. Choices, with numbers:
        docs/notes/linear_cross_entropy.md
"""

from typing import Literal, NamedTuple, overload

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.distributed_c10d import _resolve_process_group

from eagle_kernels import autocast
from eagle_kernels.checks import check_kernel_dtype, kind_of, refuse, refuse_types, refuse_unlike, takes_kernel
from eagle_kernels.library import custom_op
from eagle_kernels.linear_cross_entropy_triton import Statistics, library_matmul, matmul, softmax

CPU_CHUNK_BYTES = 64 * 2**20  # bf16 logits of one chunk: 220 tokens at Eagle's vocabulary
CPU_CACHE_BYTES = 2**20  # fp32 numbers that one step after another works on: they stay in a core's L2 cache
CPU_PRODUCT_BYTES = 2**23  # of dweight, made in 16 bits before it is added to the fp32 sum
# bf16 logits of one chunk: 3584 tokens at Eagle's vocabulary. dweight, 2.2 GB, is read and written once a chunk, which
# takes a quarter of a matmul's time at 3584 tokens and nearly all of it at 1024.
GPU_CHUNK_BYTES = 1040 * 2**20


class TokenStats(NamedTuple):
    """What the loss saw of each token; constants, no gradient flows through them."""

    losses_T: Tensor  # cross-entropy, unweighted; 0 where ignored; fp32
    predictions_T: Tensor  # the token of the largest logit, of equal ones the first; -1 where ignored; int64
    accuracy: Tensor  # share of the labelled tokens whose prediction is the label, fp32 scalar; 0 if there is none


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


def _statistics(num_tokens: int, like: Tensor) -> Statistics:
    top, total, picked = like.new_zeros((3, num_tokens))
    return Statistics(top, total, picked, top.new_zeros(num_tokens, dtype=torch.int64))


def _merge(stats: Statistics, first_id: int, group: dist.ProcessGroup) -> None:
    """Statistics of each process's columns, the first of them `first_id`, become those of whole rows, in place."""
    top = stats.top.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX, group)
    base = torch.where(top == -torch.inf, 0, top)
    sums = torch.stack([stats.total * (stats.top - base).exp(), stats.picked])
    dist.all_reduce(sums, dist.ReduceOp.SUM, group)
    best = torch.where(stats.top == top, stats.best + first_id, torch.iinfo(torch.int64).max)
    dist.all_reduce(best, dist.ReduceOp.MIN, group)
    for mine, whole in zip(stats, (top, *sums, best), strict=True):
        mine.copy_(whole)


def _chunk_on_gpu(
    hidden_MC: Tensor,
    weight_VC: Tensor,
    labels_M: Tensor,
    scales_M: Tensor,
    stats: Statistics,
    dhidden_MC: Tensor | None,
    dweight_VC: Tensor | None,
    shard: tuple[int, dist.ProcessGroup] | None,
    logits: Tensor,
    num_labelled: Tensor,
    start: int,
    all_labelled: bool,
) -> None:
    """One chunk: fills stats and dhidden_MC, adds to dweight_VC. It begins at labelled token `start`; the host does not
    know of how many, or all tokens of all chunks are labelled, and then dweight holds nothing yet at the first."""
    logits_MV = logits[: len(labels_M)]
    grad = dhidden_MC is not None or dweight_VC is not None
    if all_labelled:
        library_matmul(hidden_MC, weight_VC.T, logits_MV)
    else:
        matmul(hidden_MC, weight_VC.T, logits_MV, num_labelled, start, over_tokens=False, group=32)
    softmax_of = logits_MV, labels_M, scales_M, stats, num_labelled, start
    softmax(*softmax_of, read=True, grad=grad and shard is None)
    if shard is not None:
        _merge(stats, *shard)
        if grad:
            softmax(*softmax_of, read=False, grad=True)
    if all_labelled:
        if dhidden_MC is not None:
            library_matmul(logits_MV, weight_VC, dhidden_MC)
        if dweight_VC is not None:
            library_matmul(logits_MV.T, hidden_MC, dweight_VC, add=start > 0)
        return
    if dhidden_MC is not None:
        matmul(logits_MV, weight_VC, dhidden_MC, num_labelled, start, over_tokens=False, group=8)
    if dweight_VC is not None:
        matmul(logits_MV.T, hidden_MC, dweight_VC, num_labelled, start, over_tokens=True, group=8)


def _chunk_on_cpu(
    hidden_MC: Tensor,
    weight_VC: Tensor,
    labels_M: Tensor,
    scales_M: Tensor,
    stats: Statistics,
    dhidden_MC: Tensor | None,
    dweight_VC: Tensor | None,
    shard: tuple[int, dist.ProcessGroup] | None,
    logits: Tensor,
    is_first: bool,
) -> None:
    """`_chunk_on_gpu` in plain torch, all tokens labelled. dweight holds nothing yet where the chunk is the first."""
    grad = dhidden_MC is not None or dweight_VC is not None
    logits_MV = torch.mm(hidden_MC, weight_VC.T, out=logits[: len(labels_M)])
    softmax_of = logits_MV, labels_M, scales_M, stats
    _softmax_on_cpu(*softmax_of, read=True, grad=grad and shard is None)
    if shard is not None:
        _merge(stats, *shard)
        if grad:
            _softmax_on_cpu(*softmax_of, read=False, grad=True)
    if dhidden_MC is not None:
        dhidden_MC.copy_(logits_MV @ weight_VC)
    if dweight_VC is None:
        return
    if dweight_VC.dtype == hidden_MC.dtype:
        if is_first:  # not addmm_: slower in 16 bits
            torch.mm(logits_MV.T, hidden_MC, out=dweight_VC)
        else:
            dweight_VC.addmm_(logits_MV.T, hidden_MC)
        return
    # torch's CPU matmul of 16 bits has no fp32 result: rounded, a part of the rows at a time, then added to the sum.
    num_rows = max(1, CPU_PRODUCT_BYTES // hidden_MC[0].nbytes)
    for begin in range(0, len(weight_VC), num_rows):
        rows = slice(begin, begin + num_rows)
        part_RC = logits_MV[:, rows].T @ hidden_MC
        dweight_VC[rows].copy_(part_RC) if is_first else dweight_VC[rows].add_(part_RC)


def _softmax_on_cpu(
    logits_MV: Tensor, labels_M: Tensor, scales_M: Tensor, stats: Statistics, *, read: bool, grad: bool
) -> None:
    """`_softmax` in plain torch: as many rows at a time as stay in a core's own cache from step to step."""
    M, V = logits_MV.shape
    num_rows = max(1, CPU_CACHE_BYTES // (V * scales_M.itemsize))
    work_RV = scales_M.new_empty(min(num_rows, M), V)
    here_M1 = ((labels_M >= 0) & (labels_M < V))[:, None]
    picks_M1 = labels_M.clamp(0, V - 1)[:, None]
    for begin in range(0, M, num_rows):
        rows = slice(begin, begin + num_rows)
        top, total, picked, best = (t[rows] for t in stats)
        wide_RV = work_RV[: len(top)].copy_(logits_MV[rows])
        if read:
            torch.max(wide_RV, 1, out=(top, best))
            picked.copy_(torch.where(here_M1[rows], wide_RV.gather(1, picks_M1[rows]), 0).squeeze(1))
        exps_RV = wide_RV.sub_(torch.where(top == -torch.inf, 0, top)[:, None]).exp_()
        if read:
            torch.sum(exps_RV, 1, out=total)
        if grad:  # minus 1 before the rounding
            exps_RV.scatter_add_(1, picks_M1[rows], torch.where(here_M1[rows], -total[:, None], 0))
            torch.mul(exps_RV, (scales_M[rows] / total)[:, None], out=logits_MV[rows])


def _chunk_tokens(chunk_bytes: int | None, num_rows: int, dtype: torch.dtype, as_on_gpu: bool) -> int:
    """Tokens of a chunk whose logits, of `num_rows` each, take `chunk_bytes` at most, or are one token's."""
    most_bytes = chunk_bytes or (GPU_CHUNK_BYTES if as_on_gpu else CPU_CHUNK_BYTES)
    chunk_tokens = max(1, most_bytes // (num_rows * dtype.itemsize))
    return chunk_tokens // 128 * 128 if as_on_gpu and chunk_tokens > 128 else chunk_tokens  # whole tiles


@custom_op("eagle::linear_cross_entropy")
def _fwd(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    labels_T: Tensor,
    token_weights_T: Tensor | None,
    ignore_index: int,
    need_dhidden: bool,
    need_dweight: bool,
    as_on_gpu: bool,
    chunk_tokens: int = 1024,
    group_name: str | None = None,
    first_id: int = 0,
    known_labels: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(loss, losses_T, predictions_T, dhidden / scale in hidden's dtype, dweight / scale, scale); losses in fp32.

    An empty tensor stands for a gradient that is not needed.
    as_on_gpu: the kernels, and no look at a value; the tests ask for it on CPU tensors too.
    group_name, first_id: the weight's rows are tokens first_id.. of a vocabulary spread over that process group.
    known_labels: the number of labelled tokens, where the host knows it.
    """
    (T, C), V = hidden_TC.shape, weight_VC.shape[0]
    wide = torch.promote_types(hidden_TC.dtype, torch.float32)
    labelled_T = labels_T != ignore_index
    num_labelled = labelled_T.sum()
    if token_weights_T is None:
        weights_T = labelled_T.to(wide) / num_labelled.clamp(min=1)
    else:
        weights_T = torch.where(labelled_T, token_weights_T.to(wide), 0)
    dhidden_TC = hidden_TC.new_zeros((T, C) if need_dhidden else 0)
    losses_T, predictions_T = torch.zeros_like(weights_T), torch.full_like(labels_T, -1)
    if T == 0:
        dweight_VC = hidden_TC.new_zeros(
            (V, C) if need_dweight else 0, dtype=_dweight_dtype(hidden_TC.dtype, as_on_gpu)
        )
        return weights_T.sum(), losses_T, predictions_T, dhidden_TC, dweight_VC, weights_T.new_ones(())

    if as_on_gpu or hidden_TC.dtype == torch.float16:
        scale = weights_T.abs().amax()
        scale = torch.where(scale > 0, scale, 1)  # a tensor: reading it would make the host wait
    else:  # numbers that lose nothing when they are small: backward then mostly has nothing to multiply
        scale = weights_T.new_ones(())
    if as_on_gpu:
        order_N = torch.argsort(labelled_T, descending=True, stable=True)[:known_labels]  # labelled first
    else:
        order_N = labelled_T.nonzero().squeeze(1)
    # In fp32 where chunks add up; the first chunk writes all of it, but for kernels that know no number of tokens.
    dtype = wide if len(order_N) > chunk_tokens else _dweight_dtype(hidden_TC.dtype, as_on_gpu)
    adds = as_on_gpu and known_labels is None  # already in the first chunk
    empty = torch.zeros if adds or not len(order_N) else torch.empty
    dweight_VC = empty((V, C) if need_dweight else 0, dtype=dtype, device=hidden_TC.device)
    labels_N, scales_N = labels_T[order_N] - first_id, weights_T[order_N] / scale
    shard = None if group_name is None else (first_id, _resolve_process_group(group_name))  # type: ignore[arg-type]
    stats_N = _statistics(len(order_N), weights_T)
    logits = hidden_TC.new_empty(min(chunk_tokens, len(order_N)), V)  # of one chunk after the other
    for start in range(0, len(order_N), chunk_tokens):
        chunk = slice(start, start + chunk_tokens)
        rows_M = order_N[chunk]
        hidden_MC = hidden_TC[rows_M]
        dhidden_MC = torch.zeros_like(hidden_MC, dtype=wide if shard else None) if need_dhidden else None
        inputs = hidden_MC, weight_VC, labels_N[chunk], scales_N[chunk]
        outputs = Statistics(*(t[chunk] for t in stats_N)), dhidden_MC, dweight_VC if need_dweight else None, shard
        if as_on_gpu:
            _chunk_on_gpu(*inputs, *outputs, logits, num_labelled, start, known_labels is not None)
        else:
            _chunk_on_cpu(*inputs, *outputs, logits, start == 0)
        if dhidden_MC is not None:
            if shard is not None:
                dist.all_reduce(dhidden_MC, group=shard[1])
            dhidden_TC[rows_M] = dhidden_MC.to(dhidden_TC.dtype)
    losses_T[order_N] = stats_N.total.log() + stats_N.top - stats_N.picked
    losses_T.masked_fill_(~labelled_T, 0)
    predictions_T[order_N] = stats_N.best
    predictions_T.masked_fill_(~labelled_T, -1)
    dweight_VC = dweight_VC.to(_dweight_dtype(hidden_TC.dtype, as_on_gpu))
    return (losses_T * weights_T).sum(), losses_T, predictions_T, dhidden_TC, dweight_VC, scale


def _dweight_dtype(dtype: torch.dtype, as_on_gpu: bool) -> torch.dtype:
    """Of dweight / scale between forward and backward. On a CPU, where new memory costs as much as the product, bf16
    stays bf16; fp16 could overflow, since it is divided by the largest weight."""
    return dtype if dtype == torch.bfloat16 and not as_on_gpu else torch.promote_types(dtype, torch.float32)


@_fwd.register_fake
def _(  # type: ignore[no-untyped-def]
    hidden_TC, weight_VC, labels_T, token_weights_T, ignore_index, need_dhidden, need_dweight, as_on_gpu,
    chunk_tokens=1024, group_name=None, first_id=0, known_labels=None,
):  # fmt: skip
    wide = torch.promote_types(hidden_TC.dtype, torch.float32)
    return (
        hidden_TC.new_empty((), dtype=wide),
        hidden_TC.new_empty(labels_T.shape, dtype=wide),
        torch.empty_like(labels_T),
        hidden_TC.new_empty(hidden_TC.shape if need_dhidden else (0,)),
        hidden_TC.new_empty(
            weight_VC.shape if need_dweight else (0,), dtype=_dweight_dtype(hidden_TC.dtype, as_on_gpu)
        ),
        hidden_TC.new_empty((), dtype=wide),
    )


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, *constants = output
    ctx.mark_non_differentiable(*constants)
    ctx.set_materialize_grads(False)  # or each backward would make zeros of dweight's size
    ctx.weight_dtype = inputs[1].dtype
    ctx.op = "linear_cross_entropy" if inputs[9] is None else "vocab_parallel_linear_cross_entropy"
    ctx.save_for_backward(*constants[2:])


def _grad(ctx, dloss, *_):  # type: ignore[no-untyped-def]
    # Its tensors are constants: a second derivative would come out as 0 instead of failing.
    if torch.is_grad_enabled():
        refuse(ctx.op, "create_graph", True, "False: there is no second derivative")
    dhidden_TC, dweight_VC, scale = ctx.saved_tensors
    if dloss is None:
        return (None,) * 12
    factor_1 = (dloss * scale)[None]  # of one dim: one without would be rounded to dhidden's dtype first
    grads = [
        _scaled(saved, factor_1, ctx.weight_dtype) if need else None
        for saved, need in zip((dhidden_TC, dweight_VC), ctx.needs_input_grad, strict=False)
    ]
    return *grads, *[None] * 10


def _scaled(x_RC: Tensor, factor_1: Tensor, dtype: torch.dtype) -> Tensor:
    """x * factor, rounded as it is written; a product in fp32 first would be another dweight in memory, which is what
    torch makes on a CPU where dtypes differ, unless it gets a part of the rows at a time. x itself where that is all
    (autograd keeps count of who else has it: a graph that is retained loses nothing)."""
    whole = takes_kernel(x_RC) or torch.compiler.is_compiling()
    if type(factor_1) is Tensor and not whole and x_RC.dtype == dtype and factor_1.item() == 1:  # one that has a value
        return x_RC
    out_RC = torch.empty_like(x_RC, dtype=dtype)
    num_rows = max(1, len(x_RC) if whole else CPU_CACHE_BYTES // (16 * max(1, x_RC.shape[1])))
    for part_RC, out in zip(x_RC.split(num_rows), out_RC.split(num_rows), strict=True):
        torch.mul(part_RC, factor_1, out=out)
    return out_RC


_fwd.register_autograd(_grad, setup_context=_setup)


def _loss(
    op: str,
    hidden_TC: Tensor,
    weight_VC: Tensor,
    labels_T: Tensor,
    token_weights_T: Tensor | None,
    ignore_index: int,
    num_labelled: int | None,
    chunk_bytes: int | None,
    return_stats: bool,
    vocab_size: int,
    group: dist.ProcessGroup | None,
) -> Tensor | tuple[Tensor, TokenStats]:
    """The public functions, after autocast, once hidden's and weight's shapes are known to be right."""
    T = len(hidden_TC)
    if weight_VC.dtype != hidden_TC.dtype or weight_VC.device != hidden_TC.device:
        refuse_unlike(op, "weight", weight_VC, "hidden", hidden_TC)
    good = labels_T.shape == (T,) and labels_T.dtype == torch.int64
    if not good:
        refuse(op, "labels", f"{labels_T.dtype} {tuple(labels_T.shape)}", f"int64 and ({T},)")
    if labels_T.device != hidden_TC.device:
        refuse(op, "labels' device", labels_T.device, f"{hidden_TC.device}")
    if token_weights_T is not None:
        w = token_weights_T
        if not isinstance(w, Tensor):
            refuse_types(op, token_weights=w)
        wide = torch.promote_types(hidden_TC.dtype, torch.float32)
        good = w.shape == (T,) and w.dtype == wide
        if not good:
            refuse(op, "token_weights", f"{w.dtype} {tuple(w.shape)}", f"{wide} and ({T},)")
        if w.device != hidden_TC.device:
            refuse(op, "token_weights' device", w.device, f"{hidden_TC.device}")
        if w.requires_grad:
            refuse(op, "token_weights' requires_grad", True, "a constant: detach it")
    on_gpu = takes_kernel(hidden_TC)
    if on_gpu:
        check_kernel_dtype(op, "hidden", hidden_TC)
    good = chunk_bytes is None or (isinstance(chunk_bytes, int) and chunk_bytes > 0)
    if not good:
        refuse(op, "chunk_bytes", chunk_bytes, "a number of bytes above 0, or None")
    labelled_T = labels_T != ignore_index
    in_range_T = ((labels_T >= 0) & (labels_T < vocab_size)) | (labels_T == ignore_index)
    in_range = in_range_T.all()
    if on_gpu or torch.compiler.is_compiling():  # in words: compiled code may not know the numbers yet
        torch._assert_async(in_range, f"{op}: a label is out of range; needs 0 <= label < V, or ignore_index.")
    elif not in_range:
        need = f"0 <= label < {vocab_size}, or ignore_index = {ignore_index}"
        refuse(op, "a label", int(labels_T[~in_range_T][0]), need)
    if num_labelled is not None:
        right = labelled_T.sum() == num_labelled
        if on_gpu or torch.compiler.is_compiling():
            torch._assert_async(right, f"{op}: num_labelled is not the number of labels that are not ignore_index.")
        elif not right:
            need = f"{int(labelled_T.sum())}, the number of labels that are not {ignore_index}, or None"
            refuse(op, "num_labelled", num_labelled, need)
    num_processes, process = (1, 0) if group is None else (group.size(), group.rank())
    most_rows = -(-vocab_size // num_processes)  # of any process: all of them must take the same chunks
    grad = torch.is_grad_enabled()
    loss, losses_T, predictions_T, *_ = _fwd(
        hidden_TC, weight_VC, labels_T, token_weights_T, ignore_index,
        grad and hidden_TC.requires_grad, grad and weight_VC.requires_grad, on_gpu,
        _chunk_tokens(chunk_bytes, most_rows, hidden_TC.dtype, on_gpu),
        None if group is None else group.group_name, process * most_rows, num_labelled,
    )  # fmt: skip
    if not return_stats:
        return loss
    accuracy = (labelled_T & (predictions_T == labels_T)).sum() / labelled_T.sum().clamp(min=1)
    return loss, TokenStats(losses_T, predictions_T, accuracy)


@overload
def linear_cross_entropy(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    labels_T: Tensor,
    token_weights_T: Tensor | None = None,
    *,
    ignore_index: int = -100,
    num_labelled: int | None = None,
    chunk_bytes: int | None = None,
    return_stats: Literal[False] = False,
) -> Tensor: ...
@overload
def linear_cross_entropy(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    labels_T: Tensor,
    token_weights_T: Tensor | None = None,
    *,
    ignore_index: int = -100,
    num_labelled: int | None = None,
    chunk_bytes: int | None = None,
    return_stats: Literal[True],
) -> tuple[Tensor, TokenStats]: ...
def linear_cross_entropy(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    labels_T: Tensor,
    token_weights_T: Tensor | None = None,
    *,
    ignore_index: int = -100,
    num_labelled: int | None = None,
    chunk_bytes: int | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, TokenStats]:
    """sum of weight * cross-entropy(hidden weight^T, label) over labelled tokens; without weights, their mean.

        hidden_TC, weight_VC = torch.randn(12, 64), torch.randn(1000, 64)
        loss = linear_cross_entropy(hidden_TC, weight_VC, torch.randint(1000, (12,)))

    Never holds the (T, V) logits, on CPU or GPU. Labels are already shifted: labels[t] belongs to hidden[t].

    Args:    hidden_TC: (T, C), of T tokens, C wide, in a floating dtype.  weight_VC: (V, C), a row for each token of
             the vocabulary, of hidden's dtype and device.
             labels_T: (T,) int64, each 0 <= label < V or `ignore_index`.
             token_weights_T: (T,) fp32 (fp64 where hidden is), a constant: no gradient flows to it.
             num_labelled: how many labels are not `ignore_index`, where the caller knows it without asking a GPU. There
             it is worth a tenth of the time, by the library's matmuls; None: the kernels read it where it is.
             chunk_bytes: the most that the logits held at a time take, if one token's fit; None for 1040 MiB on a GPU
             and 64 MiB on a CPU. Fewer bytes cost time: dweight is read and written once a chunk.
             return_stats: True for (loss, TokenStats): each token's loss and prediction, and the accuracy, all from
             the same pass.
    Returns: a fp32 scalar (fp64 for fp64 inputs, on a CPU); 0 with zero gradients when every label is ignored. Under
             torch.autocast hidden and weight are cast to its dtype, as in torch's linear.
    Raises:  ValueError when an argument is not as above, token_weights_T requires a gradient, or, on CPU, a label is
             out of range or num_labelled another number (on a GPU and in compiled code: an assertion on the device; the
             host must not wait). In backward, with create_graph=True: there is no second derivative.
    """
    op = "linear_cross_entropy"
    if not (isinstance(hidden_TC, Tensor) and isinstance(weight_VC, Tensor) and isinstance(labels_T, Tensor)):
        refuse_types(op, hidden=hidden_TC, weight=weight_VC, labels=labels_T)
    if not hidden_TC.is_meta and torch.is_autocast_enabled(hidden_TC.device.type):
        with autocast.off(hidden_TC):
            return linear_cross_entropy(  # type: ignore[call-overload]
                autocast.as_matmul(hidden_TC), autocast.as_matmul(weight_VC), labels_T, token_weights_T,
                ignore_index=ignore_index, num_labelled=num_labelled, chunk_bytes=chunk_bytes,
                return_stats=return_stats,
            )  # fmt: skip
    if not (hidden_TC.ndim == 2 and hidden_TC.is_floating_point()):
        refuse(op, "hidden", tuple(hidden_TC.shape), "floats (T, C)")
    C = hidden_TC.shape[1]
    fits = weight_VC.ndim == 2 and weight_VC.shape[0] >= 1 and weight_VC.shape[1] == C
    if not fits:
        refuse(op, "weight's shape", tuple(weight_VC.shape), f"(V, {C}) with V >= 1, the width of hidden")
    return _loss(
        op, hidden_TC, weight_VC, labels_T, token_weights_T, ignore_index, num_labelled, chunk_bytes,
        return_stats,
        len(weight_VC), None,
    )  # fmt: skip


@overload
def vocab_parallel_linear_cross_entropy(
    hidden_TC: Tensor,
    weight_RC: Tensor,
    labels_T: Tensor,
    token_weights_T: Tensor | None = None,
    *,
    vocab_size: int,
    group: dist.ProcessGroup,
    ignore_index: int = -100,
    num_labelled: int | None = None,
    chunk_bytes: int | None = None,
    return_stats: Literal[False] = False,
) -> Tensor: ...
@overload
def vocab_parallel_linear_cross_entropy(
    hidden_TC: Tensor,
    weight_RC: Tensor,
    labels_T: Tensor,
    token_weights_T: Tensor | None = None,
    *,
    vocab_size: int,
    group: dist.ProcessGroup,
    ignore_index: int = -100,
    num_labelled: int | None = None,
    chunk_bytes: int | None = None,
    return_stats: Literal[True],
) -> tuple[Tensor, TokenStats]: ...
def vocab_parallel_linear_cross_entropy(
    hidden_TC: Tensor,
    weight_RC: Tensor,
    labels_T: Tensor,
    token_weights_T: Tensor | None = None,
    *,
    vocab_size: int,
    group: dist.ProcessGroup,
    ignore_index: int = -100,
    num_labelled: int | None = None,
    chunk_bytes: int | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, TokenStats]:
    """`linear_cross_entropy` of a weight whose rows are spread over a process group; every process gets the loss.

        group, V = torch.distributed.group.WORLD, len(weight_VC)
        weight_RC = weight_VC.chunk(group.size())[group.rank()]
        loss = vocab_parallel_linear_cross_entropy(hidden_TC, weight_RC, labels_T, vocab_size=V, group=group)

    Process p of n holds rows p * r up to (p + 1) * r, r = ceil(vocab_size / n), the last one what is left: torch.chunk,
    and `Shard(0)` of a DTensor. All other arguments are the same on every process, requires_grad included, and every
    process must call. hidden's gradient comes out whole on each of them, weight's only for its rows.

    Args:    hidden_TC: (T, C), of T tokens, C wide, in a floating dtype.  weight_RC: (R, C), this process's R rows, of
             hidden's dtype and device.
             labels_T: (T,) int64, each 0 <= label < vocab_size or `ignore_index`.
             token_weights_T, ignore_index, num_labelled, return_stats: as for `linear_cross_entropy`.
             vocab_size: rows of the whole weight.  group: the processes that share them.
             chunk_bytes: the most that this process's logits take at a time.
    Returns: as `linear_cross_entropy`, the same on every process.
    Raises:  ValueError as there, when weight_RC does not hold this process's rows, or a process would hold none.
    """
    op = "vocab_parallel_linear_cross_entropy"
    if not (isinstance(hidden_TC, Tensor) and isinstance(weight_RC, Tensor) and isinstance(labels_T, Tensor)):
        refuse_types(op, hidden=hidden_TC, weight=weight_RC, labels=labels_T)
    if not (isinstance(vocab_size, int) and vocab_size >= 1):
        refuse(op, "vocab_size", vocab_size, "a whole number >= 1")
    if not isinstance(group, dist.ProcessGroup):
        refuse(op, "group", kind_of(group), "a torch.distributed.ProcessGroup")
    if not hidden_TC.is_meta and torch.is_autocast_enabled(hidden_TC.device.type):
        with autocast.off(hidden_TC):
            return vocab_parallel_linear_cross_entropy(  # type: ignore[call-overload]
                autocast.as_matmul(hidden_TC), autocast.as_matmul(weight_RC), labels_T, token_weights_T,
                vocab_size=vocab_size, group=group, ignore_index=ignore_index, num_labelled=num_labelled,
                chunk_bytes=chunk_bytes, return_stats=return_stats,
            )  # fmt: skip
    if not (hidden_TC.ndim == 2 and hidden_TC.is_floating_point()):
        refuse(op, "hidden", tuple(hidden_TC.shape), "floats (T, C)")
    num_processes, C = group.size(), hidden_TC.shape[1]
    most_rows = -(-vocab_size // num_processes)
    good = most_rows * (num_processes - 1) < vocab_size
    if not good:
        refuse(op, "vocab_size", vocab_size, f"a row for each of {num_processes} processes of {most_rows} at most")
    first_id = group.rank() * most_rows
    shape = (min(most_rows, vocab_size - first_id), C)
    if weight_RC.shape != shape:
        refuse(
            op,
            "weight's shape",
            tuple(weight_RC.shape),
            f"{shape}: rows {first_id}.. of {vocab_size} on process {group.rank()} of {num_processes}",
        )
    return _loss(
        op, hidden_TC, weight_RC, labels_T, token_weights_T, ignore_index, num_labelled, chunk_bytes,
        return_stats,
        vocab_size, group,
    )  # fmt: skip
