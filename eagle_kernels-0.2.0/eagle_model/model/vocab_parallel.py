"""The output head's loss where its rows stay cut over processes: supervised tokens travel, and the rows do not.

    head.vocab_parallel = True                   # parallelize does it, where the layout says so
    loss = head(hidden_TD, labels_T, weights_T)  # this process's tokens' share, as ever

Dims     T tokens of this process, N supervised ones of all processes of the group, R rows of the weight here, D width.
How      Every process gathers the supervised tokens' hidden states, labels and weights of all, computes the logits of
         its own rows for all N, and learns from the others what softmax needs: 4 numbers a token
         (eagle_kernels/linear_cross_entropy.py). The gradient of a token's hidden state comes out whole on every
         process, so its owner takes it as it is; that of a row is complete where the row is, and only replicas add up.
Cost     N D (2 + 8) bytes a row of the step in bf16 (hidden states, their gradients summed in fp32), where gathering
         the weight twice and summing its gradient takes V D (2 + 2 + 4). So it sends less where the processes that
         share the head have fewer supervised tokens between them than 0.8 V, 120,000 at Eagle's vocabulary, and it
         always saves memory: no process ever holds the weight, 1.1 GB, or its gradient, 2.2 GB.
Needs    All processes of the group to call it equally often; untied embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from eagle_kernels.linear_cross_entropy import vocab_parallel_linear_cross_entropy
from eagle_model.batch import IGNORE_INDEX
from eagle_model.model.exchange import gather_into
from eagle_model.model.shards import group_of, replicas_of


def cut_loss(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    labels_T: Tensor,
    token_weights_T: Tensor,
    *,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """This process's tokens' sum of weight x cross-entropy, fp32 (fp64 of fp64), and each token's loss, (T,).

    weight_VD: cut over the group (shards.py). All arguments but the weight are of this process's own tokens.
    """
    group, vocab_size = group_of(weight_VD), len(weight_VD)
    rows = (labels_T != IGNORE_INDEX).nonzero().squeeze(1)
    counts = _counts(len(rows), hidden_TD.device, group)
    first = sum(counts[: group.rank()])
    mine = slice(first, first + len(rows))
    hidden_ND = _Gathered.apply(hidden_TD[rows], counts, group)
    labels_N = _gathered(labels_T[rows], counts, group)
    weights_N = _gathered(token_weights_T[rows], counts, group)
    weight_RD = _SummedInBackward.apply(weight_VD.to_local(), replicas_of(weight_VD)).to(hidden_TD.dtype)  # type: ignore[attr-defined]
    loss, stats = vocab_parallel_linear_cross_entropy(
        hidden_ND, weight_RD, labels_N, weights_N,
        vocab_size=vocab_size, group=group, num_labelled=sum(counts), chunk_bytes=chunk_bytes, return_stats=True,
    )  # fmt: skip
    losses_T = stats.losses_T.new_zeros(len(labels_T)).index_put_((rows,), stats.losses_T[mine])
    own = (losses_T[rows] * weights_N[mine]).sum()
    return loss + (own - loss).detach(), losses_T  # its own value, and everybody's gradient


def _counts(count: int, device: torch.device, group: Any) -> list[int]:
    """How many each process has. The host waits for it."""
    counts = torch.empty(group.size(), dtype=torch.int64, device=device)
    gather_into(counts, torch.tensor([count], device=device), group).wait()
    return counts.tolist()


def _gathered(mine: Tensor, counts: list[int], group: Any) -> Tensor:
    """Everybody's rows, in the order of processes; they may have different numbers of them."""
    most, width = max(counts), mine.shape[1:]
    padded = mine.new_zeros(most, *width)
    padded[: len(mine)] = mine
    found = mine.new_empty(len(counts) * most, *width)
    gather_into(found, padded, group).wait()
    return torch.cat([part[:count] for part, count in zip(found.split(most), counts, strict=True)]) if most else mine


class _Gathered(torch.autograd.Function):
    """Everybody's rows; backward takes this process's of a gradient that is whole on every one."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, counts: list[int], group: Any) -> Tensor:
        first = sum(counts[: group.rank()])
        ctx.mine = slice(first, first + len(mine))
        return _gathered(mine, counts, group)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        return grad_ND[ctx.mine], None, None


class _SummedInBackward(torch.autograd.Function):
    """The tensor as it is; its gradient is summed over a group, where there is one."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.group is not None:
            grad = grad.contiguous()
            dist.all_reduce(grad, group=ctx.group)
        return grad, None
