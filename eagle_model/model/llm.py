"""Qwen2.5's decoder on one packed row of documents, with an optional cache of keys and values for generation.

Dims     T tokens, D width, H query heads, K key/value heads, W head width, L rows of the cache, S sequences.
Weights  `language_model.model.*` of nvidia/Eagle2.5-8B; the output head (`language_model.lm_head`) belongs to Eagle,
         because the loss takes its weight and never the logits.
Source   Qwen team 2024, arXiv:2412.15115; transformers' Qwen2Model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eagle_kernels.attention import Backend, varlen_attention
from eagle_kernels.attention_plan import AttentionPlan
from eagle_kernels.decode_attention import decode_attention
from eagle_kernels.rms_norm import add_rms_norm, rms_norm
from eagle_kernels.rope import rope
from eagle_kernels.swiglu import swiglu
from eagle_model.model.config import TextConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCache:
    """One layer's keys and values, (L, K, W) each, and the rows that this step's tokens take."""

    keys_LKW: Tensor
    values_LKW: Tensor
    rows_T: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheRuns:
    """A step of one token a sequence: the rows of the cache that each token sees, its own the last of them."""

    start_S: Tensor  # int32
    length_S: Tensor  # int32
    longest: int  # at least every length; the host knows it


class Attention(nn.Module):
    def __init__(self, cfg: TextConfig, backend: Backend) -> None:
        super().__init__()
        self.backend = backend
        self.head_dim = cfg.head_dim
        self.rope_theta = cfg.rope_theta
        kv_width = cfg.num_key_value_heads * cfg.head_dim
        self.q_proj = nn.Linear(cfg.hidden_size, cfg.hidden_size)
        self.k_proj = nn.Linear(cfg.hidden_size, kv_width)
        self.v_proj = nn.Linear(cfg.hidden_size, kv_width)
        self.o_proj = nn.Linear(cfg.hidden_size, cfg.hidden_size, bias=False)

    def forward(
        self, x_TD: Tensor, positions_T: Tensor, plan: AttentionPlan | CacheRuns, cache: LayerCache | None
    ) -> Tensor:
        q_THW, k_TKW, v_TKW = (
            p(x_TD).unflatten(1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_THW, k_TKW = rope(q_THW, k_TKW, positions_T, self.rope_theta)
        backend = self.backend
        if cache is not None:
            backend = "eagle"  # the one that takes segments
            cache.keys_LKW[cache.rows_T] = k_TKW
            cache.values_LKW[cache.rows_T] = v_TKW
            k_TKW, v_TKW = cache.keys_LKW, cache.values_LKW
        if isinstance(plan, CacheRuns):
            out_THW = decode_attention(q_THW, k_TKW, v_TKW, plan.start_S, plan.length_S, max_k_len=plan.longest)
        else:
            out_THW = varlen_attention(q_THW, k_TKW, v_TKW, plan, causal=True, backend=backend)
        return self.o_proj(out_THW.flatten(1))


class MLP(nn.Module):
    def __init__(self, cfg: TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.up_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.down_proj = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x_TD), self.up_proj(x_TD)))


class DecoderLayer(nn.Module):
    def __init__(self, cfg: TextConfig, attention_backend: Backend) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        self.self_attn = Attention(cfg, attention_backend)
        self.post_attention_layernorm = nn.RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        self.mlp = MLP(cfg)
        self.eps = cfg.rms_norm_eps

    def forward(
        self, x_TD: Tensor, positions_T: Tensor, plan: AttentionPlan | CacheRuns, cache: LayerCache | None
    ) -> Tensor:
        attended_TD = self.self_attn(rms_norm(x_TD, self.input_layernorm.weight, self.eps), positions_T, plan, cache)
        # One tensor passes between layers, not (branch, residual): a checkpointed layer then saves half as much.
        normed_TD, x_TD = add_rms_norm(attended_TD, x_TD, self.post_attention_layernorm.weight, self.eps)
        return x_TD + self.mlp(normed_TD)


class Decoder(nn.Module):
    def __init__(self, cfg: TextConfig, *, attention_backend: Backend = "eagle") -> None:
        super().__init__()
        self.cfg = cfg
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(cfg, attention_backend) for _ in range(cfg.num_hidden_layers))
        self.norm = nn.RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)

    def forward(
        self,
        embeddings_TD: Tensor,
        positions_T: Tensor,
        plan: AttentionPlan | CacheRuns,
        caches: list[LayerCache] | None = None,
        *,
        checkpoint_activations: bool = False,
    ) -> Tensor:
        """(T, D) embeddings -> (T, D) hidden states after the final norm.

        positions_T: int32, from 0 in each document. plan: who attends to whom, the same for all layers; with caches,
        its keys are rows of the cache. CacheRuns needs caches, and takes no gradient.
        """
        x_TD = embeddings_TD
        for i, layer in enumerate(self.layers):
            cache = None if caches is None else caches[i]
            if checkpoint_activations:
                x_TD = checkpoint(layer, x_TD, positions_T, plan, cache, use_reentrant=False)
            else:
                x_TD = layer(x_TD, positions_T, plan, cache)
        return rms_norm(x_TD, self.norm.weight, self.cfg.rms_norm_eps)

    def new_caches(self, num_rows: int, rows_T: Tensor) -> list[LayerCache]:
        """Empty caches of `num_rows` rows, one a layer, whose first step writes to `rows_T`."""
        weight = self.embed_tokens.weight
        shape = (2, num_rows, self.cfg.num_key_value_heads, self.cfg.head_dim)
        pairs = [torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in self.layers]
        return [LayerCache(keys_LKW=keys, values_LKW=values, rows_T=rows_T) for keys, values in pairs]
