"""Packed rows: which samples share one (`pack`, numbers only), and the batch made of them (`pack_row`).

    pack([300, 200, 500, 100], 600)       # rows of indices, e.g. [[2, 3], [0, 1]]: 600 and 500 of 600 tokens

`pack` takes nearly the fewest rows, and fills them about equally; the rules are eagle_kernels/pack_rows.py's.

Source: the need for balance, arXiv:2504.15271.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eagle_kernels.pack_rows import pack_rows
from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.data.chat import TokenizedSample
from eagle_model.data.mixing import seeded

Rows = list[list[int]]


def pack(lengths: Sequence[int] | NDArray[np.int64], capacity: int, *, seed: int = 0) -> Rows:
    """Every sample in exactly one row, no row over capacity.

    Args:    lengths: tokens of each sample, 1 to capacity.  capacity: tokens a row holds.
             seed: orders the rows and mixes samples of about equal length; take another each epoch.
    Returns: rows of indices into lengths, the same for the same arguments.
    Raises:  ValueError if capacity is below 1 or a length is not in 1..capacity.
    """
    if capacity < 1:
        raise ValueError(f"pack: capacity is {capacity}; needs at least 1 token.")
    lengths_N = np.asarray(lengths, dtype=np.int64)
    for i in np.flatnonzero((lengths_N < 1) | (lengths_N > capacity))[:1].tolist():
        if lengths_N[i] < 1:
            raise ValueError(
                f"pack: sample {i} has length {lengths_N[i]}; needs at least 1 token. Leave empty samples out."
            )
        raise ValueError(
            f"pack: sample {i} has {lengths_N[i]} tokens and a row holds {capacity}. "
            "Plan it with context_tokens no larger than the row, or leave it out."
        )

    # Longest first, but lengths within a few per cent in any order: else samples of one row would meet in every epoch.
    # Measured on 10,000 mixed lengths: 2 % parts most pairs and costs at most a row in a thousand.
    shuffler = seeded(seed)
    order = np.argsort(-lengths_N * shuffler.uniform(0.98, 1.02, size=len(lengths_N)), kind="stable")
    row_of = pack_rows(torch.from_numpy(lengths_N[order]), capacity).numpy()
    by_row = order[np.argsort(row_of, kind="stable")]
    ends = np.cumsum(np.bincount(row_of))
    rows = [row.tolist() for row in np.split(by_row, ends[:-1])] if len(ends) else []
    return [rows[k] for k in shuffler.permutation(len(rows))]


def pack_row(samples: Sequence[TokenizedSample], patches_IPK: Tensor) -> PackedBatch:
    """One row: documents end to end, labels shifted within each, positions from 0 in each.

    patches_IPK: the pixels of all samples, in their order. Raises ValueError when `samples` is empty.
    """
    if not samples:
        raise ValueError("pack_row: no samples; needs at least one.")
    lengths = [sample.token_ids_T.numel() for sample in samples]
    starts = [0, *accumulate(lengths)]
    shifted = [torch.cat([s.labels_T[1:], s.labels_T.new_full((1,), IGNORE_INDEX)]) for s in samples]
    labels_T = torch.cat(shifted)
    return PackedBatch(
        token_ids_T=torch.cat([sample.token_ids_T for sample in samples]),
        labels_T=labels_T,
        positions_T=torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths]),
        cu_seqlens=torch.tensor(starts, dtype=torch.int32),
        patches_IPK=patches_IPK,
        visual_rows_N=torch.cat([s.visual_positions_N + start for s, start in zip(samples, starts)]),
        sample_ids=tuple(sample.id for sample in samples),
        num_labelled=int((labels_T != IGNORE_INDEX).sum()),
    )
