"""Connector: a 2x2 block of patches becomes one token at the LLM's width.

    tokens_IQD = connector(patches_IPC)          # 1024 patches of a 448 px tile -> 256 tokens

Dims     I tiles, P patches a tile, C vision width, E = 4C, Q = P / 4 tokens a tile, D LLM width. Without pixel shuffle,
         as in Isaac GR00T N1.5, a patch is a token: E = C, Q = P.
Weights  `mlp1.{0,1,3}` of nvidia/Eagle2.5-8B (mlp1.2 is the GELU): norm, up, out. Of one layer: `mlp1.0`, out.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from eagle_kernels.merge_2x2 import merge_2x2
from eagle_kernels.merge_2x2_layer_norm import merge_2x2_layer_norm
from eagle_model.model.config import EagleConfig
from eagle_model.model.linear import Linear
from eagle_model.model.vision import LayerNorm


class MergeLayerNorm(nn.LayerNorm):
    def forward(self, patches_IPC: Tensor) -> Tensor:
        """(I, P, C) -> (I, Q, E): each 2x2 block of patches side by side, normalised as one."""
        return merge_2x2_layer_norm(patches_IPC, self.weight, self.bias, self.eps)


class Connector(nn.Module):
    """mlp_connector_layers 2: norm, up, GELU, out; 1: out alone. Without pixel shuffle each patch becomes a token."""

    def __init__(self, cfg: EagleConfig) -> None:
        super().__init__()
        width, text_width = cfg.patches_per_token * cfg.vision.hidden_size, cfg.text.hidden_size
        self.merges = cfg.use_pixel_shuffle
        self.has_two_layers = cfg.mlp_connector_layers == 2
        if self.has_two_layers:
            norm = MergeLayerNorm if self.merges else LayerNorm
            self.norm = norm(width, eps=1e-5)
            self.up = Linear(width, text_width)
        self.out = Linear(text_width if self.has_two_layers else width, text_width)

    def forward(self, patches_IPC: Tensor) -> Tensor:
        """(I, P, C) -> (I, Q, D). The GELU is the exact one (erf), unlike the encoder's."""
        if self.has_two_layers:
            return self.out(F.gelu(self.up(self.norm(patches_IPC))))
        return self.out(merge_2x2(patches_IPC) if self.merges else patches_IPC)
