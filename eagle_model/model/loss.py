"""The output head and the loss: cross-entropy in which a document counts as the square root of its answer's length.

    mass = sum(sqrt_mass(row.labels_T, row.cu_seqlens) for row in step)          # once a step, over all its rows
    loss = head(hidden_TD, row.labels_T, token_weights(row.labels_T, row.cu_seqlens, mass))
    logits_TV = head(hidden_TD)                                                  # generation

Dims     T tokens of a row, S documents of a row, D width, V vocabulary.
Formula  n_s supervised tokens in document s; every one of them weighs  w_s = n_s**-0.5 / sum_k n_k**0.5.
         The weights of a step add up to 1, and the k of the sum runs over the documents of all rows of the step. So it
         does not matter how documents fall into rows, and rows added up are the same as one long row.
Source   arXiv:2504.15271 and its released training code ("square averaging"), which normalises each row by itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagle_kernels.linear_cross_entropy import linear_cross_entropy
from eagle_model.batch import IGNORE_INDEX


def supervised_counts(labels_T: Tensor, cu_seqlens: Tensor) -> Tensor:
    """n_S: how many tokens of each document are supervised, int64. No host synchronisation."""
    running = torch.zeros(labels_T.numel() + 1, dtype=torch.int64, device=labels_T.device)
    torch.cumsum(labels_T != IGNORE_INDEX, dim=0, out=running[1:])
    ends_S1 = cu_seqlens.long()
    return running[ends_S1[1:]] - running[ends_S1[:-1]]


def sqrt_mass(labels_T: Tensor, cu_seqlens: Tensor) -> Tensor:
    """sum_s n_s**0.5 over the documents of one row, fp32 scalar. Add it over the rows of a step for `token_weights`."""
    return supervised_counts(labels_T, cu_seqlens).float().sqrt().sum()


def token_weights(labels_T: Tensor, cu_seqlens: Tensor, mass: Tensor | None = None) -> Tensor:
    """The weight of each token's cross-entropy, (T,) fp32; 0 where nothing is supervised. No host synchronisation.

    Args:    mass: sum of `sqrt_mass` over all rows of the step; None when this row is the whole step.
    Example: documents with 4, 16 and 1 supervised tokens weigh 1/14, 1/28 and 1/7 a token.
    """
    counts_S = supervised_counts(labels_T, cu_seqlens)
    mass = counts_S.float().sqrt().sum() if mass is None else mass
    # A document without labels would weigh 1/0, a step without labels 0/0; neither has a token that takes the weight.
    weights_S = counts_S.clamp(min=1).float().rsqrt() / torch.where(mass > 0, mass, 1.0)
    lengths_S = (cu_seqlens[1:] - cu_seqlens[:-1]).long()
    weights_T = torch.repeat_interleave(weights_S, lengths_S, output_size=labels_T.numel())
    return weights_T.masked_fill(labels_T == IGNORE_INDEX, 0.0)


class LMHead(nn.Linear):
    """Hidden states to a loss or to logits. One module, so that what is hooked to its call sees training too; no layer
    of linear.py, because the loss takes the weight itself and never holds the logits."""

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__(hidden_size, vocab_size, bias=False)
        self.chunk_bytes: int | None = None  # the most that logits take at a time in training; None: the op's choice

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
            return F.linear(hidden_TD, self.weight)
        return linear_cross_entropy(
            hidden_TD, self.weight, labels_T, token_weights_T,
            num_labelled=num_labelled, chunk_bytes=self.chunk_bytes,
        )  # fmt: skip
