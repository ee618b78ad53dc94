"""SigLIP2's vision encoder on packed patches: tiles in, one vector a patch out.

    patches_IPC = encoder(patches_IPK)           # (3, 1024, 588) pixels of 3 tiles -> (3, 1024, 1152)

Dims     I tiles, P patches a tile, K = 3 * patch_px**2 numbers a patch (channel, y, x), C width, H heads,
         D head width, R = I * P rows.
Weights  `vision_model.vision_model.*` of nvidia/Eagle2.5-8B; q, k and v are one layer here and three in files. The
         released patch embedding is a convolution whose stride is its size: on patches cut beforehand it is a linear
         layer, weight (C, K), the same numbers in the same order.
Source   Tschannen et al. 2025, arXiv:2502.14786; transformers' SiglipVisionModel. Eagle does not use its pooling head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagle_kernels.attention_plan import AttentionPlan
from eagle_kernels.gelu_bias import gelu_bias
from eagle_kernels.layer_norm import layer_norm
from eagle_model.model.attend import Attend, Packed
from eagle_model.model.config import EagleConfig, VisionConfig
from eagle_model.model.linear import FusedLinear, Linear
from eagle_model.model.recompute import RunLayer


class LayerNorm(nn.LayerNorm):
    def forward(self, x_RC: Tensor) -> Tensor:
        return layer_norm(x_RC, self.weight, self.bias, self.eps)


class VisionAttention(nn.Module):
    def __init__(self, cfg: VisionConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = cfg.num_attention_heads
        self.qkv_proj = FusedLinear(cfg.hidden_size, 3 * cfg.hidden_size)
        self.qkv_proj.sizes = (cfg.hidden_size,) * 3
        self.out_proj = Linear(cfg.hidden_size, cfg.hidden_size)

    def forward(self, x_RC: Tensor, attend: Attend) -> Tensor:
        q_RHD, k_RHD, v_RHD = self.qkv_proj(x_RC).unflatten(1, (3, self.num_heads, -1)).unbind(1)
        return self.out_proj(attend(self.layer, q_RHD, k_RHD, v_RHD).flatten(1))


class GeluBias(nn.Module):
    """gelu(x + bias) in one pass. The bias is that of the projection before it, in a file that projection's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.bias)

    def forward(self, x_RF: Tensor) -> Tensor:
        return gelu_bias(x_RF, self.bias)


class VisionMLP(nn.Module):
    def __init__(self, cfg: VisionConfig) -> None:
        super().__init__()
        self.fc1 = Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.act = GeluBias(cfg.intermediate_size)
        self.fc2 = Linear(cfg.intermediate_size, cfg.hidden_size)

    def forward(self, x_RC: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x_RC)))


class VisionLayer(nn.Module):
    def __init__(self, cfg: VisionConfig, layer: int) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.self_attn = VisionAttention(cfg, layer)
        self.layer_norm2 = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.mlp = VisionMLP(cfg)

    def forward(self, x_RC: Tensor, attend: Attend) -> Tensor:
        x_RC = x_RC + self.self_attn(self.layer_norm1(x_RC), attend)
        return x_RC + self.mlp(self.layer_norm2(x_RC))


def resize_position_table(table_PC: Tensor, num_patches: int) -> Tensor:
    """A position table for tiles of another number of patches, as 27 x 27 -> 32 x 32 for SigLIP2 at 448 px.

        table_PC = resize_position_table(torch.zeros(729, 1152), 1024)

    Bicubic without antialiasing over the square of patches, computed in fp32; the table itself if the size is its own.

    Args:    table_PC: (P, C), patches row by row.  num_patches: rows of the result. Both are squares.
    Returns: (num_patches, C) in table's dtype, on its device.
    Raises:  ValueError for a number of rows that is no square.
    """
    sides = [math.isqrt(count) for count in (table_PC.shape[0], num_patches)]
    for side, count in zip(sides, (table_PC.shape[0], num_patches), strict=True):
        if side * side != count or not count:
            raise ValueError(f"resize_position_table: {count} positions make no square; needs 729 = 27 x 27, or alike.")
    if sides[0] == sides[1]:
        return table_PC
    grid_1CYX = table_PC.float().unflatten(0, (sides[0], sides[0])).permute(2, 0, 1)[None]
    resized_1CYX = F.interpolate(grid_1CYX, size=(sides[1], sides[1]), mode="bicubic", antialias=False)
    return resized_1CYX[0].flatten(1).T.contiguous().to(table_PC.dtype)


class VisionEncoder(nn.Module):
    def __init__(self, cfg: EagleConfig) -> None:
        super().__init__()
        self.cfg = cfg.vision
        self.attention_backend = cfg.attention_backend
        self.num_patches, self.num_patch_values = self.cfg.num_patches, self.cfg.num_patch_values
        self.patch_embedding = Linear(self.num_patch_values, self.cfg.hidden_size)
        self.position_embedding = nn.Embedding(self.num_patches, self.cfg.hidden_size)
        self.layers = nn.ModuleList(VisionLayer(self.cfg, i) for i in range(self.cfg.num_hidden_layers))
        self.post_layernorm = LayerNorm(self.cfg.hidden_size, eps=self.cfg.layer_norm_eps)
        # hidden_states[k] is what comes out of the first k layers; -1 means all of them and the norm after them
        self.takes_norm = cfg.select_layer == -1
        self.num_layers_run = cfg.select_layer % (self.cfg.num_hidden_layers + 1)
        self.unused: tuple[nn.Module, ...] = tuple(self.layers[self.num_layers_run :])  # in the file, and never called
        if not self.takes_norm:
            self.unused += (self.post_layernorm,)

    def forward(self, patches_IPK: Tensor, *, run_layer: RunLayer | None = None) -> Tensor:
        """(I, P, K), normalised pixels -> (I, P, C). I may be 0. Pixels are cast to the parameters' dtype.

        Raises ValueError unless P and K are the config's.
        """
        num_tiles = patches_IPK.shape[0]
        need = (self.num_patches, self.num_patch_values)
        if patches_IPK.shape[1:] != need:
            raise ValueError(
                f"VisionEncoder: patches_IPK is {tuple(patches_IPK.shape)}; needs (tiles, {need[0]}, {need[1]}): "
                f"tiles of {self.cfg.tile_px} px in patches of {self.cfg.patch_px} px."
            )
        x_IPC = self.patch_embedding(patches_IPK.to(self.patch_embedding.weight.dtype))
        x_RC = (x_IPC + self.position_embedding(torch.arange(self.num_patches, device=x_IPC.device))).flatten(0, 1)
        # Every tile attends to itself alone; one plan serves all layers.
        plan = AttentionPlan.uniform(num_tiles, self.num_patches, device=x_RC.device)
        attend = Packed(plan=plan, causal=False, backend=self.attention_backend)
        for layer in self.layers[: self.num_layers_run]:
            x_RC = run_layer(layer, x_RC, attend) if run_layer else layer(x_RC, attend)
        if self.takes_norm:
            x_RC = self.post_layernorm(x_RC)
        return x_RC.unflatten(0, (num_tiles, self.num_patches))
