"""The output head and the loss: cross-entropy in which a document counts as the square root of its answer's length.

    mass = sum(sqrt_mass(row.labels_T, row.cu_seqlens) for row in step)          # once a step, over all its rows
    loss = head(hidden_TD, row.labels_T, token_weights(row.labels_T, row.cu_seqlens, mass))
    logits_TV = head(hidden_TD)                                                  # generation

Dims     T tokens of a row, S documents of a row, U answer turns of a row, D width, V vocabulary.
Formula  n_s supervised tokens in document s; every one of them weighs  w_s = n_s**-0.5 / sum_k n_k**0.5.
         The weights of a step add up to 1, and the k of the sum runs over the documents of all rows of the step. So it
         does not matter how documents fall into rows, and rows added up are the same as one long row.
         per="turn": the same of answer turns, the runs of supervised tokens, in place of documents.
Source   arXiv:2504.15271 and its released training code ("square averaging"), which normalises each row by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagle_kernels.linear_cross_entropy import linear_cross_entropy
from eagle_model.batch import IGNORE_INDEX
from eagle_model.model.shards import whole
from eagle_model.model.vocab_parallel import cut_loss

LossPer = Literal["sample", "turn"]  # what counts as the square root of its length


def supervised_counts(labels_T: Tensor, cu_seqlens: Tensor) -> Tensor:
    """n_S: how many tokens of each document are supervised, int64. No host synchronisation."""
    running = torch.zeros(labels_T.numel() + 1, dtype=torch.int64, device=labels_T.device)
    torch.cumsum(labels_T != IGNORE_INDEX, dim=0, out=running[1:])
    ends_S1 = cu_seqlens.long()
    return running[ends_S1[1:]] - running[ends_S1[:-1]]


def turn_counts(labels_T: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """How many tokens each answer turn supervises, int64, and the turn of each token. No host synchronisation.

    A turn is a run of supervised tokens within one document. Turns are numbered from 1, and as their number is not
    known without asking the device, the counts are (T + 1,), zero beyond the last turn; 0 is the number of tokens that
    no turn has.
    """
    labelled_T = labels_T != IGNORE_INDEX
    begins_T = labelled_T.clone()
    begins_T[1:] &= ~labelled_T[:-1]
    # A document's first token begins a turn too, whatever stands before it. An empty last document starts at T.
    is_first_T1 = torch.zeros(labels_T.numel() + 1, dtype=torch.bool, device=labels_T.device)
    is_first_T1[cu_seqlens.long()] = True
    begins_T |= labelled_T & is_first_T1[:-1]
    turns_T = begins_T.long().cumsum(0) * labelled_T
    counts = torch.zeros(labels_T.numel() + 1, dtype=torch.int64, device=labels_T.device)
    counts.scatter_add_(0, turns_T, labelled_T.long())  # of integers: the order of additions does not matter
    return counts, turns_T


def sqrt_mass(labels_T: Tensor, cu_seqlens: Tensor, *, per: LossPer = "sample") -> Tensor:
    """sum_s n_s**0.5 over the documents (or turns) of one row, fp32 scalar. Add it over the rows of a step."""
    if per == "turn":
        return turn_counts(labels_T, cu_seqlens)[0].float().sqrt().sum()
    return supervised_counts(labels_T, cu_seqlens).float().sqrt().sum()


def divisor(mass: Tensor) -> Tensor:
    """What weights, gradients and losses are divided by: the mass; 1 where nothing is supervised and it is 0."""
    return torch.where(mass > 0, mass, 1.0)


def token_weights(
    labels_T: Tensor, cu_seqlens: Tensor, mass: Tensor | None = None, *, per: LossPer = "sample"
) -> Tensor:
    """The weight of each token's cross-entropy, (T,) fp32; 0 where nothing is supervised. No host synchronisation.

    Args:    mass: sum of `sqrt_mass` over all rows of the step; None when this row is the whole step.
             per: whether a document ("sample") or an answer ("turn") counts as the square root of its length.
    Example: documents with 4, 16 and 1 supervised tokens weigh 1/14, 1/28 and 1/7 a token, and so do, per turn, answers
             of 4, 16 and 1 tokens in one document.
    """
    if per == "turn":
        counts, of_token_T = turn_counts(labels_T, cu_seqlens)
    else:
        counts, of_token_T = supervised_counts(labels_T, cu_seqlens), None
    mass = counts.float().sqrt().sum() if mass is None else mass
    # A document without labels would weigh 1/0, a step without labels 0/0; neither has a token that takes the weight.
    weights = counts.clamp(min=1).float().rsqrt() / divisor(mass)
    if of_token_T is None:
        lengths_S = (cu_seqlens[1:] - cu_seqlens[:-1]).long()
        weights_T = torch.repeat_interleave(weights, lengths_S, output_size=labels_T.numel())
    else:
        weights_T = weights[of_token_T]
    return weights_T.masked_fill(labels_T == IGNORE_INDEX, 0.0)


class LMHead(nn.Linear):
    """Hidden states to a loss or to logits. One module, so that what is hooked to its call sees training too; no layer
    of linear.py, because the loss takes the weight itself and never holds the logits."""

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__(hidden_size, vocab_size, bias=False)
        self.on_losses: Callable[[Tensor], None] | None = None  # is given each token's loss, (T,), without its weight
        self.chunk_bytes: int | None = None  # the most that logits take at a time in training; None: the op's choice
        self.vocab_parallel = False  # its rows stay cut over processes (vocab_parallel.py)

    def forward(
        self,
        hidden_TD: Tensor,
        labels_T: Tensor | None = None,
        token_weights_T: Tensor | None = None,
        num_labelled: int | None = None,
    ) -> Tensor:
        """Logits (T, V); with labels, the sum of weight x cross-entropy over the labelled tokens, fp32 scalar (without
        weights, their mean). Where nothing is labelled, loss and gradients are 0. Faster on a GPU where the caller
        knows the number of labels."""
        if labels_T is None:
            return F.linear(hidden_TD, whole(self.weight).to(hidden_TD.dtype) if self.vocab_parallel else self.weight)
        if self.vocab_parallel:
            assert token_weights_T is not None, "the mean is over tokens that other processes have"
            loss, losses_T = cut_loss(hidden_TD, self.weight, labels_T, token_weights_T, chunk_bytes=self.chunk_bytes)
        else:
            loss, stats = linear_cross_entropy(
                hidden_TD, self.weight, labels_T, token_weights_T,
                num_labelled=num_labelled, chunk_bytes=self.chunk_bytes, return_stats=True,
            )  # fmt: skip
            losses_T = stats and stats.losses_T
        if self.on_losses is not None:
            self.on_losses(losses_T)
        return loss
