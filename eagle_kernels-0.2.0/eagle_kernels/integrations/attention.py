"""`attn_implementation="eagle"`: our attention for every model that goes through transformers' AttentionInterface.

    import eagle_kernels.integrations.attention  # registers the name
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eagle")
    model(input_ids=ids_1T, position_ids=torch.tensor([[0, 1, 2, 0, 1]]))  # documents of 3 and 2 tokens in one row

transformers asks for a mask once a forward pass and hands it to every layer. Ours is no tensor but a `Visible`, which
says the same in a few numbers, and keeps the AttentionPlan that the first layer made of it for the others.

Dims    B batch, H query heads, K key/value heads, G = H / K, T queries, L keys of each row of the batch, D head width,
        S documents, R rows of a packed call.
Packed  `cu_seq_lens_q` and `cu_seq_lens_k` (transformers' names) over the rows of the batch laid end to end; else
        `position_ids` that start again, where no attention_mask is given: transformers looks at them only then.
Padding A 2-D attention_mask: a row's tokens are one run, with padding before it, after it or both. Padded queries find
        nothing (zeros) where attention is causal, else what the row's tokens find. Holes inside a row, 4-D masks,
        windows, soft caps, dropout and models of an encoder with a decoder are refused.
Cache   T < L: the last query sees the last key written. Keys stay where the cache has them: each key/value head is a
        sequence of its own, so that nothing is copied; one token a row takes `decode_attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from eagle_kernels.attention import varlen_attention
from eagle_kernels.attention_plan import AttentionPlan
from eagle_kernels.checks import kind_of, refuse
from eagle_kernels.decode_attention import decode_attention

NAME = "eagle"
_OP = 'attn_implementation="eagle"'
_PLAIN = (causal_mask_function, bidirectional_mask_function)
# What models hand to attention and ours does not compute; None or absent says that they do not ask for it.
_UNSUPPORTED = ("softcap", "s_aux", "sinks", "cache", "position_bias", "alibi", "head_mask")


@dataclass(eq=False)
class Visible:
    """Which keys the queries of a batch see, and the plans made of that."""

    batch_size: int
    q_length: int  # T
    kv_length: int  # L
    q_offset: int | Tensor  # tokens in the cache before these
    device: torch.device
    mask_function: Callable[..., Tensor] = causal_mask_function  # transformers': (batch, head, query, key) -> bool
    padding_mask_BL: Tensor | None = None  # bool, True is a token; may end before the keys do
    made: dict[Any, Any] = field(default_factory=dict)  # plans, for the layers that ask the same
    ndim: int = 4  # transformers asks masks for it: this one is made already

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self.made:  # no cached_property: its lock is none that torch.compile knows
            self.made[key] = make()
        return self.made[key]

    def tokens(self) -> tuple[Tensor, Tensor] | None:
        """Where each row's tokens begin and end among its keys, int32 (B,) each; None where nothing is padded and no
        cache has rows that are not written yet. Waits for the device where there is a padding mask."""
        return self.once("tokens", self._tokens)

    def _tokens(self) -> tuple[Tensor, Tensor] | None:
        mask_BL, last = self.padding_mask_BL, self.q_offset + self.q_length
        if mask_BL is None:
            if self.q_length == self.kv_length:
                return None
            start_B = torch.zeros(self.batch_size, dtype=torch.int32, device=self.device)
            return start_B, (start_B + last).int()
        before_B = (~mask_BL).cumprod(1).sum(1)
        end_B = mask_BL.shape[1] - (~mask_BL).flip(1).cumprod(1).sum(1)
        has_hole_B = mask_BL.sum(1) != (end_B - before_B).clamp(min=0)
        if has_hole_B.any():
            row = int(has_hole_B.nonzero()[0])
            need = "padding before or after them alone"
            refuse(_OP, f"row {row} of attention_mask", "one with padding between its tokens", need)
        if self.q_length == self.kv_length and mask_BL.all():
            return None
        end_B = torch.minimum(end_B, torch.as_tensor(last, device=self.device))
        return torch.minimum(before_B, end_B).int(), end_B.int()

    def documents(self) -> Tensor | None:
        """Offsets over the batch's rows end to end, int32 (S + 1,), where `mask_function` knows documents, or None.

        The function is asked about neighbours alone. Waits for the device. Raises ValueError where it is not one of
        documents, each of them causal.
        """
        return None if self.mask_function in _PLAIN else self.once("documents", self._documents)

    def _documents(self) -> Tensor:
        if self.padding_mask_BL is not None or self.q_length != self.kv_length:
            refuse(_OP, "the mask", "a function of its own with padding or a cache", "a plain causal one there")
        row_B1 = torch.arange(self.batch_size, device=self.device)[:, None]
        token_1T = torch.arange(self.q_length, device=self.device)[None]
        head = torch.zeros((), dtype=torch.int64, device=self.device)
        before_1T = (token_1T - 1).clamp(min=0)
        begins_BT = ~self.mask_function(row_B1, head, token_1T, before_1T).expand(self.batch_size, -1)
        begins_BT = begins_BT | (token_1T == 0)
        first_BT = torch.where(begins_BT, token_1T, 0).cummax(1).values
        sees_first = self.mask_function(row_B1, head, token_1T, first_BT).all()
        sees_next = (self.mask_function(row_B1, head, before_1T, token_1T) & (token_1T > 0)).any()
        if not sees_first or sees_next:
            got = "none of causal documents (a window, or tokens that see later ones)"
            refuse(_OP, "the mask", got, "another attn_implementation, as 'sdpa'")
        end_1 = begins_BT.new_ones(1)  # of the last document
        return torch.cat([begins_BT.flatten(), end_1]).nonzero().flatten().int()

    def plan(self, causal: bool, cu_seqlens: tuple[Tensor, Tensor] | None) -> AttentionPlan:
        """Of queries and keys as rows of the batch laid end to end (T = L)."""
        key = ("plan", causal, None if cu_seqlens is None else tuple(map(id, cu_seqlens)))
        return self.once(key, lambda: self._plan(causal, cu_seqlens))

    def _plan(self, causal: bool, cu_seqlens: tuple[Tensor, Tensor] | None) -> AttentionPlan:
        num_rows = self.batch_size * self.q_length
        if cu_seqlens is None:
            documents = self.documents()
            cu_seqlens = None if documents is None else (documents, documents)
        elif self.padding_mask_BL is not None and self.tokens() is not None:
            refuse(_OP, "attention_mask", "one with padding beside cu_seq_lens_q", "one of them, or no padding")
        if cu_seqlens is not None:
            offsets_q, offsets_k = cu_seqlens
            offsets_k_or_same = None if offsets_k is offsets_q else offsets_k.int()
            return AttentionPlan.from_cu_seqlens(
                offsets_q.int(), offsets_k_or_same, num_tokens=num_rows, num_tokens_k=num_rows, causal=causal
            )
        tokens = self.tokens()
        if tokens is None:
            return AttentionPlan.uniform(self.batch_size, self.q_length, device=self.device)
        start_B, end_B = tokens
        row_B = torch.arange(self.batch_size, dtype=torch.int32, device=self.device) * self.q_length
        if causal:
            q_start_B, q_len_B = row_B + start_B, end_B - start_B
        else:  # a padded query sees what the others do: models that pool such a position rely on it
            q_start_B, q_len_B = row_B, torch.full_like(row_B, self.q_length)
        return AttentionPlan.from_segments(
            q_start_B, q_len_B, row_B + start_B, end_B - start_B, num_tokens=num_rows, causal=causal
        )

    def segments(self, num_heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q_start, q_len, k_start, k_len, int32 (B * K,) each, over rows (batch, key/value head, token), T < L."""
        return self.once(("segments", num_heads), lambda: self._segments(num_heads))

    def _segments(self, num_heads: int) -> tuple[Tensor, ...]:
        tokens = self.tokens()
        assert tokens is not None  # as there are more keys than queries
        start_B, end_B = tokens
        first_B = torch.maximum(start_B, torch.as_tensor(self.q_offset, device=self.device, dtype=torch.int32))
        q_len_B = (end_B - first_B).clamp(min=0)
        k_len_B = torch.where(q_len_B > 0, end_B - start_B, 0)
        skipped_B = torch.where(q_len_B > 0, first_B - self.q_offset, 0)
        start_N, skipped_N, q_len_N, k_len_N = (
            x.int().repeat_interleave(num_heads) for x in (start_B, skipped_B, q_len_B, k_len_B)
        )
        lane_N = torch.arange(self.batch_size * num_heads, dtype=torch.int32, device=self.device)
        return lane_N * self.q_length + skipped_N, q_len_N, lane_N * self.kv_length + start_N, k_len_N

    def cached_plan(self, num_heads: int, causal: bool) -> AttentionPlan:
        """Over the same rows."""
        num_lanes = self.batch_size * num_heads
        return self.once(
            ("cached", num_heads, causal),
            lambda: AttentionPlan.from_segments(
                *self.segments(num_heads),
                num_tokens=num_lanes * self.q_length,
                num_tokens_k=num_lanes * self.kv_length,
                causal=causal,
            ),
        )

    def repeat(self, *sizes: int) -> Tensor:
        """Of the mask as a bool tensor (B, 1, T, L): SigLIP2's pooling head has a layer of torch's own for it."""
        row_B111 = torch.arange(self.batch_size, device=self.device)[:, None, None, None]
        query_T1 = torch.arange(self.q_length, device=self.device)[:, None] + self.q_offset
        key_L = torch.arange(self.kv_length, device=self.device)
        head = torch.zeros((), dtype=torch.int64, device=self.device)
        seen = self.mask_function(row_B111, head, query_T1, key_L).expand(self.batch_size, 1, -1, self.kv_length)
        if self.padding_mask_BL is not None:
            missing = self.kv_length - self.padding_mask_BL.shape[1]
            seen = seen & F.pad(self.padding_mask_BL, (0, missing))[:, None, None]
        return seen.repeat(*sizes)

    def contiguous(self) -> Visible:
        """transformers calls this on the masks of a static cache."""
        return self


def eagle_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] = causal_mask_function,
    attention_mask: Tensor | Visible | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,  # transformers hands all that any implementation may want
) -> Visible:
    """What transformers' AttentionMaskInterface calls for a mask. Of documents nothing is computed before a layer asks;
    with a cache all is, because transformers may compile the layers then."""
    if isinstance(attention_mask, Visible):  # made before the model was called, for a static cache
        return attention_mask
    if kv_offset:
        refuse(_OP, "the cache", "one that drops old keys", "one of full length: there are no windows")
    visible = Visible(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset.clone() if isinstance(q_offset, Tensor) else q_offset,  # a static cache counts on in it
        device=torch.device(device),
        mask_function=mask_function,
        padding_mask_BL=attention_mask,
    )
    if q_length != kv_length:
        assert visible.documents() is None and visible.tokens() is not None  # or they have raised
    return visible


def eagle_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Visible | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    **kwargs: Any,  # transformers hands all that any implementation may want
) -> tuple[Tensor, None]:
    """What transformers' AttentionInterface calls: query (B, H, T, D), key, value (B, K, L, D) -> (B, T, H, D), None.

    attention_mask: what `eagle_mask` made, or None: every key is a token, and the last query sees the last.
    cu_seq_lens_q, cu_seq_lens_k: int32 (S + 1,), documents over the B * T rows. The None stands for the weights.
    Raises ValueError for what this file's docstring says is refused.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    (B, _, T, _), L = query.shape, key.shape[2]
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        refuse(_OP, "the model", "an encoder with a decoder", "one tower: cross-attention is not computed here")
    if dropout:
        refuse(_OP, "attention dropout", dropout, "0: set attention_dropout to 0, or take another attn_implementation")
    if sliding_window is not None and sliding_window < L:
        refuse(_OP, "sliding_window", sliding_window, "None: there are no windows")
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            refuse(_OP, name, "given", "None: it is not supported")
    if kwargs.get("output_attentions"):
        refuse(_OP, "output_attentions", True, 'False, or attn_implementation="eager": weights never exist here')
    if attention_mask is None:
        attention_mask = Visible(B, T, L, L - T, query.device)
    if not isinstance(attention_mask, Visible):
        got = f"{kind_of(attention_mask)} {tuple(getattr(attention_mask, 'shape', ()))}"
        refuse(_OP, "attention_mask", got, "a 2-D mask of tokens and padding, position_ids or cu_seq_lens")
    if (cu_seq_lens_q is None) != (cu_seq_lens_k is None):
        refuse(_OP, "one of cu_seq_lens_q and cu_seq_lens_k", None, "both or neither")
    cu_seqlens = None if cu_seq_lens_q is None or cu_seq_lens_k is None else (cu_seq_lens_q, cu_seq_lens_k)
    if T != L:
        if cu_seqlens is not None:
            refuse(_OP, "cu_seq_lens_q", f"given for {T} queries and {L} keys", "no cache beside packed documents")
        return _cached(query, key, value, attention_mask, causal, scaling), None
    q_RHD, k_RKD, v_RKD = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))  # views of the projections
    plan = attention_mask.plan(causal, cu_seqlens)
    out_RHD = varlen_attention(q_RHD, k_RKD, v_RKD, plan, causal=causal, softmax_scale=scaling)
    return out_RHD.unflatten(0, (B, T)), None


def _cached(query: Tensor, key: Tensor, value: Tensor, visible: Visible, causal: bool, scaling: float | None) -> Tensor:
    """Few queries against a cache's keys; a lane is one key/value head of one row of the batch."""
    (B, H, T, _), K = query.shape, key.shape[1]
    lanes = query.unflatten(1, (K, H // K)).transpose(2, 3).flatten(0, 2)  # (B, K, T, G, D) as (B * K * T, G, D)
    keys, values = key.flatten(0, 2)[:, None], value.flatten(0, 2)[:, None]
    takes_grad = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    if T == 1 and not takes_grad:
        _, _, k_start_N, k_len_N = visible.segments(K)
        out = decode_attention(
            lanes, keys, values, k_start_N, k_len_N, max_k_len=visible.kv_length, softmax_scale=scaling
        )
    else:
        plan = visible.cached_plan(K, causal)
        out = varlen_attention(lanes, keys, values, plan, causal=causal, softmax_scale=scaling)
    return out.unflatten(0, (B, K, T)).permute(0, 2, 1, 3, 4).flatten(2, 3)


AttentionInterface.register(NAME, eagle_attention)
AttentionMaskInterface.register(NAME, eagle_mask)
