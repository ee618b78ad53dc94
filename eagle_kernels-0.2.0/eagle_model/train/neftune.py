"""NEFTune: noise on token embeddings while training, which makes answers of small fine-tuning sets less rigid.

    noise = Noise(model, alpha=5.0, seed=0)
    noise.begin_row(batch.cu_seqlens, step=12, row=0)          # before each forward
    loss = model(batch, mass)

Formula  e' = e + u * alpha / sqrt(L * D),  u uniform in -1 to 1, L tokens of the document, D width.
Numbers  u is drawn anew from (seed, step, row): a resumed run has the noise of one that was never interrupted, and no
         other generator moves. Pictures take the place of their tokens' embeddings afterwards and have no noise; a
         model in evaluation mode has none either.
Dims     T tokens of a row, D width.
Source   Jain et al. 2023, arXiv:2310.05914.
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor, nn

from eagle_model.model.eagle import Eagle
from eagle_model.model.llm import document_lengths


class Noise:
    """Hooked to a model's token embeddings."""

    def __init__(self, model: Eagle, *, alpha: float, seed: int) -> None:
        self._alpha, self._seed = alpha, seed
        self._row: tuple[Tensor, int, int, Tensor | None] | None = None
        model.llm.embed_tokens.register_forward_hook(self._add)

    def begin_row(self, cu_seqlens: Tensor, *, step: int, row: int, rows_R: Tensor | None = None) -> None:
        """Says which row comes next.

        cu_seqlens: the row's, on the model's device.  row: its number in the whole step, over all processes.
        rows_R: where several processes share a row, which of its tokens are this one's.
        """
        self._row = (cu_seqlens, step, row, rows_R)

    def _add(self, embed_tokens: nn.Module, inputs: tuple[Tensor], embeddings_TD: Tensor) -> Tensor:
        if not embed_tokens.training:
            return embeddings_TD
        assert self._row is not None, "begin_row comes before the forward"
        cu_seqlens, step, row, rows_R = self._row
        T, D = embeddings_TD.shape
        if rows_R is not None:
            T = int(cu_seqlens[-1])
        digest = hashlib.sha256(json.dumps([self._seed, step, row]).encode()).digest()
        generator = torch.Generator(embeddings_TD.device).manual_seed(int.from_bytes(digest[:7], "little"))
        noise_TD = embeddings_TD.new_empty(T, D).uniform_(-1, 1, generator=generator)  # as one process draws it
        lengths_T = document_lengths(cu_seqlens, T)
        size_T = self._alpha * (lengths_T.float() * D).rsqrt()
        noise_TD.mul_(size_T.to(noise_TD.dtype)[:, None])
        return embeddings_TD + (noise_TD if rows_R is None else noise_TD[rows_R])
