"""Connector: a 2x2 block of patches becomes one token at the LLM's width.

    tokens_IQD = connector(patches_IPC)          # 1024 patches of a 448 px tile -> 256 tokens

Dims     I tiles, P patches a tile, C vision width, E = 4C, Q = P / 4 tokens a tile, D LLM width.
Weights  `mlp1.{0,1,3}` of nvidia/Eagle2.5-8B (mlp1.2 is the GELU): norm, up, out.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from eagle_kernels.merge_2x2_layer_norm import merge_2x2_layer_norm
from eagle_model.model.config import EagleConfig
from eagle_model.model.linear import Linear


class MergeLayerNorm(nn.LayerNorm):
    def forward(self, patches_IPC: Tensor) -> Tensor:
        """(I, P, C) -> (I, Q, E): each 2x2 block of patches side by side, normalised as one."""
        return merge_2x2_layer_norm(patches_IPC, self.weight, self.bias, self.eps)


class Connector(nn.Module):
    def __init__(self, cfg: EagleConfig) -> None:
        super().__init__()
        merged_width = 4 * cfg.vision.hidden_size
        self.norm = MergeLayerNorm(merged_width, eps=1e-5)
        self.up = Linear(merged_width, cfg.text.hidden_size)
        self.out = Linear(cfg.text.hidden_size, cfg.text.hidden_size)

    def forward(self, patches_IPC: Tensor) -> Tensor:
        """(I, P, C) -> (I, Q, D). The GELU is the exact one (erf), unlike the encoder's."""
        return self.out(F.gelu(self.up(self.norm(patches_IPC))))
