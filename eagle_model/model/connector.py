"""Connector: a 2x2 block of patches becomes one token at the LLM's width.

Dims     I tiles, P patches a tile, C vision width, E = 4C, Q = P / 4 tokens a tile, D LLM width.
Weights  `mlp1.{0,1,3}` of nvidia/Eagle2.5-8B (mlp1.2 is the GELU): norm, up, out.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from eagle_kernels.merge_2x2_layer_norm import merge_2x2_layer_norm
from eagle_model.model.config import EagleConfig


class Connector(nn.Module):
    def __init__(self, cfg: EagleConfig) -> None:
        super().__init__()
        merged_width = 4 * cfg.vision.hidden_size
        self.norm = nn.LayerNorm(merged_width, eps=1e-5)
        self.up = nn.Linear(merged_width, cfg.text.hidden_size)
        self.out = nn.Linear(cfg.text.hidden_size, cfg.text.hidden_size)

    def forward(self, patches_IPC: Tensor) -> Tensor:
        """(I, P, C) -> (I, Q, D). The GELU is the exact one (erf), unlike the encoder's."""
        normed_IQE = merge_2x2_layer_norm(patches_IPC, self.norm.weight, self.norm.bias, self.norm.eps)
        return self.out(F.gelu(self.up(normed_IQE)))
