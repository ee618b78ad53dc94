"""The decoder of Qwen2.5, Qwen3 or Llama on one packed row of documents.

    hidden_TD = llm(llm.embed_tokens(token_ids_T), positions_T, attend)          # attend: see attend.py

Dims     T tokens, D width, H query heads, K key/value heads, W head width.
Weights  `language_model.model.*` of nvidia/Eagle2.5-8B; q, k and v are one layer here and three in files, gate and
         up one and two. The output head (`language_model.lm_head`) is in loss.py.
Source   Qwen team 2024, arXiv:2412.15115, and 2025, arXiv:2505.09388; transformers' Qwen2Model, Qwen3Model and
         LlamaModel.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eagle_kernels.rms_norm import add_rms_norm, rms_norm
from eagle_kernels.rope import rope
from eagle_kernels.swiglu import swiglu
from eagle_model.model.attend import Attend
from eagle_model.model.config import TextConfig
from eagle_model.model.linear import FusedLinear, Linear


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
        self.rope_theta = cfg.rope_theta
        self.heads = (cfg.num_attention_heads, cfg.num_key_value_heads, cfg.num_key_value_heads)
        self.has_qk_norm = cfg.has_qk_norm
        self.qkv_proj = FusedLinear(cfg.hidden_size, cfg.qkv_sizes, bias=cfg.has_qkv_bias)
        if self.has_qk_norm:
            self.q_norm = RMSNorm(cfg.head_dim, eps=cfg.rms_norm_eps)
            self.k_norm = RMSNorm(cfg.head_dim, eps=cfg.rms_norm_eps)
        self.o_proj = Linear(cfg.qkv_sizes[0], cfg.hidden_size, bias=cfg.attention_bias)

    def forward(self, x_TD: Tensor, positions_T: Tensor, attend: Attend) -> Tensor:
        qkv_TAW = self.qkv_proj(x_TD).unflatten(1, (-1, self.head_dim))
        q_THW, k_TKW, v_TKW = qkv_TAW.split(self.heads, dim=1)
        if self.has_qk_norm:
            q_THW, k_TKW = self.q_norm(q_THW), self.k_norm(k_TKW)
        q_THW, k_TKW = rope(q_THW, k_TKW, positions_T, self.rope_theta)
        return self.o_proj(attend(self.layer, q_THW, k_TKW, v_TKW).flatten(1))


class MLP(nn.Module):
    def __init__(self, cfg: TextConfig) -> None:
        super().__init__()
        self.gate_up_proj = FusedLinear(cfg.hidden_size, (cfg.intermediate_size,) * 2, bias=cfg.mlp_bias)
        self.down_proj = Linear(cfg.intermediate_size, cfg.hidden_size, bias=cfg.mlp_bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down_proj(swiglu(*self.gate_up_proj(x_TD).chunk(2, dim=1)))


class DecoderLayer(nn.Module):
    def __init__(self, cfg: TextConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        self.self_attn = Attention(cfg, layer)
        self.post_attention_layernorm = AddRMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        self.mlp = MLP(cfg)

    def forward(self, x_TD: Tensor, positions_T: Tensor, attend: Attend) -> Tensor:
        attended_TD = self.self_attn(self.input_layernorm(x_TD), positions_T, attend)
        # One tensor passes between layers, not (branch, residual): a checkpointed layer then saves half as much.
        normed_TD, x_TD = self.post_attention_layernorm(attended_TD, x_TD)
        return x_TD + self.mlp(normed_TD)


class Decoder(nn.Module):
    def __init__(self, cfg: TextConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(cfg, i) for i in range(cfg.num_hidden_layers))
        self.norm = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)

    def forward(
        self, embeddings_TD: Tensor, positions_T: Tensor, attend: Attend, *, checkpoint_activations: bool = False
    ) -> Tensor:
        """(T, D) embeddings -> (T, D) hidden states after the final norm.

        positions_T: int32, from 0 in each document. attend: who sees whom, the same object for all layers.
        """
        x_TD = embeddings_TD
        for layer in self.layers:
            if checkpoint_activations:
                x_TD = checkpoint(layer, x_TD, positions_T, attend, use_reentrant=False)
            else:
                x_TD = layer(x_TD, positions_T, attend)
        return self.norm(x_TD)
