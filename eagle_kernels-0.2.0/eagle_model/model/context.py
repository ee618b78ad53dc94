"""One rank's share of a packed row: which tokens and tiles are its own, and how it attends and exchanges with others.

    loss = model(batch, mass, context=context)   # this rank's part of the loss: those of the ranks add up to the whole

Every rank has all numbers of the row, and pixels of its own tiles. The gradients of the ranks' losses, added up over
the ranks, are those of one process with the whole row. train/context_parallel.py makes such an object, once a row.

Dims     T tokens of the row, R tokens of this rank, M visual tokens in its rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eagle_model.model.attend import Spread
from eagle_model.model.exchange import VisualExchange


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    rank: int
    num_ranks: int
    attend: Spread
    rows_R: Tensor  # int64: this rank's rows of the packed row, ascending
    tokens_per_rank: int  # as many on all ranks: after the R rows come added ones, of no document
    num_labelled: int  # of labels_T[rows_R]
    visual: VisualExchange
    visual_rows_M: Tensor  # int64: which of this rank's rows take the visual tokens that come, ascending

    def whole(self, x_R: Tensor, num_tokens: int) -> Tensor:
        """(T,) of the row: x_R in this rank's rows, 0 in the others'. The ranks' sum is that of one process."""
        return torch.zeros(num_tokens, dtype=x_R.dtype, device=x_R.device).index_copy(0, self.rows_R, x_R)
