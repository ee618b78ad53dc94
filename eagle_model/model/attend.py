"""Attention as an object that layers are handed: a layer projects and rotates, then calls attend(layer, q, k, v).

    plan = AttentionPlan.from_cu_seqlens(batch.cu_seqlens, num_tokens=batch.num_tokens)
    out_THW = Packed(plan=plan, causal=True)(layer, q_THW, k_TKW, v_TKW)

So no layer knows who sees whom, where the keys of earlier tokens lie, or who computes: that is the object's, and a new
way to attend is a new class here. `Packed` serves training; `Prefill` and `Decode` share a cache and serve generation.

Dims     T tokens of this call, H query heads, K key/value heads, W head width, N layers, L rows of a cache,
         S sequences that go on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor

from eagle_kernels.attention import Backend, varlen_attention, varlen_attention_ref
from eagle_kernels.attention_plan import AttentionPlan
from eagle_kernels.decode_attention import decode_attention, decode_attention_ref

KERNEL_HEAD_WIDTHS = range(16, 257, 8)  # what attention's kernels take; on a CPU the references take any


class Attend(Protocol):
    def __call__(self, layer: int, q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor) -> Tensor:
        """What the tokens' queries find, (T, H, W). layer: which layer of its tower asks, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """Documents of one packed row, each by itself, with gradients."""

    plan: AttentionPlan
    causal: bool
    backend: Backend = "eagle"

    def __call__(self, layer: int, q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor) -> Tensor:
        return _attention(q_THW, k_TKW, v_TKW, self.plan, causal=self.causal, backend=self.backend)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cache:
    """Keys and values of all layers. Which rows belong to which sequence, `Prefill` and `Decode` are told."""

    keys_NLKW: Tensor
    values_NLKW: Tensor

    @classmethod
    def zeros(cls, like: Tensor, *, num_layers: int, num_rows: int, num_heads: int, head_dim: int) -> Cache:
        """An empty cache with the dtype and on the device of `like`."""
        shape = (num_layers, num_rows, num_heads, head_dim)
        return cls(keys_NLKW=like.new_zeros(shape), values_NLKW=like.new_zeros(shape))

    def write(self, layer: int, rows_T: Tensor, k_TKW: Tensor, v_TKW: Tensor) -> tuple[Tensor, Tensor]:
        """Puts this call's keys and values into rows_T; returns all keys and values of the layer, (L, K, W) each."""
        keys_LKW, values_LKW = self.keys_NLKW[layer], self.values_NLKW[layer]
        keys_LKW[rows_T] = k_TKW
        values_LKW[rows_T] = v_TKW
        return keys_LKW, values_LKW


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefill:
    """Whole prompts, which leave their keys in a cache."""

    cache: Cache
    rows_T: Tensor  # int64: the cache's row of each token
    plan: AttentionPlan  # its keys are rows of the cache

    def __call__(self, layer: int, q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor) -> Tensor:
        keys_LKW, values_LKW = self.cache.write(layer, self.rows_T, k_TKW, v_TKW)
        return _attention(q_THW, keys_LKW, values_LKW, self.plan, causal=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decode:
    """One token of each sequence, which sees a run of the cache's rows, its own the last of them. No gradients."""

    cache: Cache
    rows_S: Tensor  # int64: the cache's row of each sequence's token
    start_S: Tensor  # int32: where its run begins
    length_S: Tensor  # int32: how long its run is
    longest: int  # at least every length; the host knows it

    def __call__(self, layer: int, q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor) -> Tensor:
        keys_LKW, values_LKW = self.cache.write(layer, self.rows_S, k_TKW, v_TKW)
        if _needs_reference(q_THW):
            return decode_attention_ref(q_THW, keys_LKW, values_LKW, self.start_S, self.length_S)[0]
        return decode_attention(q_THW, keys_LKW, values_LKW, self.start_S, self.length_S, max_k_len=self.longest)


def _needs_reference(q_THW: Tensor) -> bool:
    """The ops refuse other widths everywhere; small models on a CPU may have any (a GPU: `eagle.check_device`)."""
    return not q_THW.is_cuda and q_THW.shape[2] not in KERNEL_HEAD_WIDTHS


def _attention(
    q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor, plan: AttentionPlan, *, causal: bool, backend: Backend = "eagle"
) -> Tensor:
    if _needs_reference(q_THW):
        return cast(Tensor, varlen_attention_ref(q_THW, k_TKW, v_TKW, plan, causal=causal))  # no lse is asked for
    return varlen_attention(q_THW, k_TKW, v_TKW, plan, causal=causal, backend=backend)
