"""The decoder of Qwen2.5, Qwen3 or Llama on one packed row of documents.

    hidden_TD = llm(llm.embed_tokens(token_ids_T), positions_T, attend)          # attend: see attend.py

Dims     T tokens, D width, F = (H + 2K) W, H query heads, K key/value heads, W head width.
Weights  `language_model.model.*` of nvidia/Eagle2.5-8B; q, k and v are one layer here and three in files, gate and
         up one and two. The output head (`language_model.lm_head`) is in loss.py.
Source   Qwen team 2024, arXiv:2412.15115, and 2025, arXiv:2505.09388; transformers' Qwen2Model, Qwen3Model and
         LlamaModel.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eagle_kernels.qkv_rope import qkv_rope
from eagle_kernels.rms_norm import add_rms_norm, rms_norm
from eagle_kernels.rope import rope
from eagle_kernels.swiglu import swiglu_halves
from eagle_model.model.attend import Attend
from eagle_model.model.config import TextConfig
from eagle_model.model.linear import FusedLinear, Linear
from eagle_model.model.recompute import RunLayer, in_chunks
from eagle_model.model.rope_scaling import RopeScaling


@dataclass(frozen=True, slots=True)
class Rotary:
    """How a row's queries and keys are turned, the same for all layers: what `rope` takes beside them."""

    positions_T: Tensor  # int32, from 0 in each document
    theta: float | None
    frequencies: Tensor | None  # (W / 2,), or (T, W / 2) for `dynamic`
    scale: float

    @classmethod
    def of(cls, cfg: TextConfig, positions_T: Tensor, lengths_T: Tensor | None) -> Rotary:
        """Raises ValueError where `dynamic` scaling has no lengths of documents."""
        scaling, width = cfg.rope_scaling, cfg.head_dim
        if scaling is None:
            return cls(positions_T, cfg.rope_theta, None, 1.0)
        if scaling.rope_type != "dynamic":
            frequencies_W2 = _frequencies_on(positions_T.device, scaling, width, cfg.rope_theta)
            return cls(positions_T, None, frequencies_W2, scaling.scale)
        if lengths_T is None:
            raise ValueError("Decoder: rope_scaling is dynamic; needs lengths_T, the length of each token's document.")
        frequencies_TW2 = scaling.dynamic_frequencies(
            lengths_T, head_dim=width, theta=cfg.rope_theta, max_position_embeddings=cfg.max_position_embeddings
        )
        return cls(positions_T, None, frequencies_TW2, 1.0)


@functools.cache
def _frequencies_on(device: torch.device, scaling: RopeScaling, head_dim: int, theta: float) -> Tensor:
    """Uploaded once, not at every step. Backward may need them, so they are no inference tensor."""
    with torch.inference_mode(False):
        return scaling.frequencies(head_dim=head_dim, theta=theta).to(device)


def document_lengths(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """(T,) int32: the length of each token's document. No host synchronisation."""
    lengths_S = cu_seqlens.diff()
    return torch.repeat_interleave(lengths_S, lengths_S, output_size=num_tokens)


class RMSNorm(nn.RMSNorm):
    eps: float  # nn.RMSNorm's may be None

    def forward(self, x_TD: Tensor) -> Tensor:
        return rms_norm(x_TD, self.weight, self.eps)


class AddRMSNorm(nn.RMSNorm):
    eps: float  # nn.RMSNorm's may be None

    def forward(self, x_TD: Tensor, residual_TD: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(norm of the sum, the sum)."""
        return add_rms_norm(x_TD, residual_TD, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, cfg: TextConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = cfg.head_dim
        self.num_heads, self.num_kv_heads = cfg.num_attention_heads, cfg.num_key_value_heads
        self.has_qk_norm = cfg.has_qk_norm
        self.qkv_proj = FusedLinear(cfg.hidden_size, sum(cfg.qkv_sizes), bias=cfg.has_qkv_bias)
        self.qkv_proj.sizes = cfg.qkv_sizes
        if self.has_qk_norm:
            self.q_norm = RMSNorm(cfg.head_dim, eps=cfg.rms_norm_eps)
            self.k_norm = RMSNorm(cfg.head_dim, eps=cfg.rms_norm_eps)
        self.o_proj = Linear(cfg.qkv_sizes[0], cfg.hidden_size, bias=cfg.attention_bias)

    def forward(self, x_TD: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        q_THW, k_TKW, v_TKW = self.rotated(self.qkv_proj(x_TD), rotary)
        return self.o_proj(attend(self.layer, q_THW, k_TKW, v_TKW).flatten(1))

    def rotated(self, qkv_TF: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        H, K = self.num_heads, self.num_kv_heads
        if not self.has_qk_norm:
            return qkv_rope(
                qkv_TF, None, rotary.positions_T, rotary.theta,
                num_heads=H, num_kv_heads=K, frequencies=rotary.frequencies, scale=rotary.scale,
            )  # fmt: skip
        # Qwen3's norms stand between the projection and the rotation.
        q_THW, k_TKW, v_TKW = qkv_TF.unflatten(1, (-1, self.head_dim)).split((H, K, K), dim=1)
        q_THW, k_TKW = rope(
            self.q_norm(q_THW), self.k_norm(k_TKW), rotary.positions_T, rotary.theta,
            frequencies=rotary.frequencies, scale=rotary.scale,
        )  # fmt: skip
        return q_THW, k_TKW, v_TKW


class MLP(nn.Module):
    def __init__(self, cfg: TextConfig) -> None:
        super().__init__()
        self.gate_up_proj = FusedLinear(cfg.hidden_size, 2 * cfg.intermediate_size, bias=cfg.mlp_bias)
        self.gate_up_proj.sizes = (cfg.intermediate_size, cfg.intermediate_size)
        self.down_proj = Linear(cfg.intermediate_size, cfg.hidden_size, bias=cfg.mlp_bias)
        self.chunk_tokens: int | None = None  # computed so many tokens at a time, and again in backward; None: at once

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.chunk_tokens is None:
            return self._whole(x_TD)
        return in_chunks([self], self._whole, x_TD, self.chunk_tokens)

    def _whole(self, x_TD: Tensor) -> Tensor:
        return self.down_proj(swiglu_halves(self.gate_up_proj(x_TD)))


class DecoderLayer(nn.Module):
    def __init__(self, cfg: TextConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        self.self_attn = Attention(cfg, layer)
        self.post_attention_layernorm = AddRMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        self.mlp = MLP(cfg)

    def forward(self, x_TD: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
        attended_TD = self.self_attn(self.input_layernorm(x_TD), rotary, attend)
        # One tensor passes between layers, not (branch, residual): a layer that is run again then saves half as much.
        normed_TD, x_TD = self.post_attention_layernorm(attended_TD, x_TD)
        return x_TD + self.mlp(normed_TD)


class Decoder(nn.Module):
    def __init__(self, cfg: TextConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(cfg, i) for i in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)

    @property
    def needs_lengths(self) -> bool:
        return self.cfg.rope_scaling is not None and self.cfg.rope_scaling.rope_type == "dynamic"

    def forward(
        self,
        embeddings_TD: Tensor,
        positions_T: Tensor,
        attend: Attend,
        *,
        lengths_T: Tensor | None = None,
        run_layer: RunLayer | None = None,
    ) -> Tensor:
        """(T, D) embeddings -> (T, D) hidden states after the final norm.

        positions_T: int32, from 0 in each document. attend: who sees whom, the same object for all layers. lengths_T:
        the length of each token's document, where `needs_lengths`; without it that raises ValueError. run_layer: what
        of a layer is kept for backward, see recompute.py.
        """
        x_TD, rotary = embeddings_TD, Rotary.of(self.cfg, positions_T, lengths_T)
        for layer in self.layers:
            x_TD = run_layer(layer, x_TD, rotary, attend) if run_layer else layer(x_TD, rotary, attend)
        return self.norm(x_TD)
