"""Our ops in a model of transformers, in one line: Qwen2, Qwen3, Llama and SigLIP of transformers 5.

    from eagle_kernels.integrations.transformers import patch, unpatch

    model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-0.5B", dtype=torch.bfloat16).cuda()
    print(*patch(model), sep="\\n")  # model.layers.0.mlp: Qwen2MLP -> swiglu ...
    model.train()(input_ids=ids_BT, labels=ids_BT).loss.backward()
    unpatch(model)

`patch` gives modules another class and leaves them what they are otherwise: parameters, their names in a state_dict,
hooks, adapters inside them and their places in an optimizer stay. `unpatch` gives them their own class again.

RMSNorm       rms_norm.  LayerNorm  layer_norm.  SwiGLU (gate_proj, up_proj, down_proj)  swiglu.
GeluMLP       gelu_bias, which adds the bias of fc1 itself; not while fc1 is more than a Linear, as with an adapter.
attention     rope, from the position ids and theta, or the frequencies of linear, dynamic, YaRN and Llama 3 scaling;
              then what attn_implementation says, which becomes "eagle" (attention.py) where that computes the same.
...ForCausalLM  linear_cross_entropy. In training mode, with labels, the logits never exist: `logits` is None then. In
              eval mode, or with a `loss_function` of one's own, transformers' own path runs.

The first four are also modules for a model of one's own: RMSNorm(4096, eps=1e-6).
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.models.qwen3 import modeling_qwen3 as qwen3
from transformers.models.siglip import modeling_siglip as siglip
from transformers.utils.generic import can_return_tuple

from eagle_kernels.checks import refuse
from eagle_kernels.gelu_bias import gelu_bias
from eagle_kernels.integrations.attention import NAME
from eagle_kernels.layer_norm import layer_norm
from eagle_kernels.linear_cross_entropy import linear_cross_entropy
from eagle_kernels.rms_norm import rms_norm
from eagle_kernels.rope import rope
from eagle_kernels.swiglu import swiglu

IGNORE_INDEX = -100
HEAD_WIDTHS = range(16, 257, 8)  # what attention's kernels take
_ATTENTION = AttentionInterface()


class RMSNorm(nn.Module):
    """`weight` (C,). x (..., C) -> its rms_norm. Where x and weight differ in dtype, as transformers promotes them."""

    op = "rms_norm"

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.weight.dtype and not torch.is_autocast_enabled(x.device.type):
            return self.weight * rms_norm(x, torch.ones_like(self.weight, dtype=x.dtype), self.variance_epsilon)
        return rms_norm(x, self.weight, self.variance_epsilon)


class LayerNorm(nn.LayerNorm):
    """torch's own, over the last dim, with `weight` and `bias` (C,)."""

    op = "layer_norm"

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class SwiGLU(nn.Module):
    """The feed-forward block of Qwen and Llama: `gate_proj`, `up_proj` (C -> F) and `down_proj` (F -> C)."""

    op = "swiglu"

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class GeluMLP(nn.Module):
    """The feed-forward block of SigLIP: `fc1` (C -> F), GELU in its tanh form, `fc2` (F -> C)."""

    op = "gelu_bias"

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        if type(self.fc1) is not nn.Linear or self.fc1._forward_hooks or self.fc1._forward_pre_hooks:
            return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))  # what hangs on its call must see one
        return self.fc2(gelu_bias(F.linear(x, self.fc1.weight), self.fc1.bias))


class _Attention(nn.Module):
    """A mixin before Qwen2Attention, Qwen3Attention or LlamaAttention: their forward with our RoPE."""

    op = "rope"
    config: Any
    layer_idx: int
    head_dim: int
    scaling: float
    attention_dropout: float
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    rotary: tuple[Any]  # the model's rotary_emb; in a tuple it is no submodule

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        position_ids: Tensor | None = None,
        **kwargs: Any,  # for the attention function
    ) -> tuple[Tensor, Tensor | None]:
        if position_ids is None:  # its caller gives cos and sin alone
            return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        B, T = hidden_states.shape[:2]
        shape = (B * T, -1, self.head_dim)
        q, k, v = (p(hidden_states).reshape(shape) for p in (self.q_proj, self.k_proj, self.v_proj))
        q_norm, k_norm = getattr(self, "q_norm", None), getattr(self, "k_norm", None)
        if q_norm is not None and k_norm is not None:  # Qwen3
            q, k = q_norm(q), k_norm(k)
        positions, (rotary,) = position_ids.expand(B, T).flatten(), self.rotary
        if rotary.rope_type == "default":
            q, k = rope(q, k, positions, float(self.config.rope_parameters["rope_theta"]))
        else:  # of this call: rotary_emb has been called, and knows how far positions go
            q, k = rope(q, k, positions, frequencies=rotary.inv_freq.float(), scale=float(rotary.attention_scaling))
        q, k, v = (x.unflatten(0, (B, T)).transpose(1, 2) for x in (q, k, v))
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend = _ATTENTION.get_interface(self.config._attn_implementation, qwen2.eager_attention_forward)
        out, weights = attend(
            self,
            q,
            k,
            v,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=getattr(self, "sliding_window", None),
            position_ids=position_ids,
            **kwargs,
        )
        return self.o_proj(out.reshape(B, T, -1)), weights


class _CausalLM(nn.Module):
    """A mixin before Qwen2ForCausalLM, Qwen3ForCausalLM or LlamaForCausalLM: training without logits."""

    op = "linear_cross_entropy"
    model: nn.Module
    lm_head: nn.Linear

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,  # transformers': for the loss, the attention function and the outputs
    ) -> CausalLMOutputWithPast:
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
        }
        if labels is None or not (self.training and _takes_our_loss(self)):
            return super().forward(**inputs, labels=labels, logits_to_keep=logits_to_keep, **kwargs)
        shift_labels, num_items_in_batch = kwargs.pop("shift_labels", None), kwargs.pop("num_items_in_batch", None)
        ignore_index = kwargs.pop("ignore_index", IGNORE_INDEX)
        outputs = self.model(**inputs, **kwargs)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_BTD = outputs.last_hidden_state[:, kept]
        if (labels if shift_labels is None else shift_labels).shape != hidden_BTD.shape[:2]:
            got = tuple((labels if shift_labels is None else shift_labels).shape)
            refuse("patch", "labels", got, f"{tuple(hidden_BTD.shape[:2])}, the tokens that logits_to_keep leaves")
        hidden_RD = hidden_BTD.flatten(0, 1)
        labels_R, weights_R = next_token_labels(
            labels,
            like=hidden_RD,
            shift_labels=shift_labels,
            num_items_in_batch=num_items_in_batch,
            ignore_index=ignore_index,
        )
        return CausalLMOutputWithPast(
            loss=linear_cross_entropy(hidden_RD, self.lm_head.weight, labels_R, weights_R, ignore_index=ignore_index),
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def next_token_labels(
    labels_BT: Tensor,
    *,
    like: Tensor,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> tuple[Tensor, Tensor | None]:
    """transformers' arguments for a loss as ours: labels (B * T,), each the token that follows, and a weight for each.

    num_items_in_batch: labelled tokens of the whole step, of which this batch is a part; None is this batch's, and the
    weights are None. shift_labels: labels that are shifted already. like: the hidden states; their device and dtype.
    """
    if shift_labels is None:
        shift_labels = F.pad(labels_BT, (0, 1), value=ignore_index)[:, 1:]
    labels_R = shift_labels.to(like.device).flatten()
    if num_items_in_batch is None:
        return labels_R, None
    wide = torch.promote_types(like.dtype, torch.float32)
    share = 1 / torch.as_tensor(num_items_in_batch, device=like.device).to(wide)
    return labels_R, share.detach().expand(len(labels_R))


class Swap(NamedTuple):
    """A module of the model and the op that computes for it now."""

    name: str  # in model.named_modules(); "" is the model itself
    was: str  # its class, or the attn_implementation
    op: str

    def __str__(self) -> str:
        return f"{self.name or '(model)'}: {self.was} -> {self.op}"


_FAMILIES = (
    qwen2.Qwen2PreTrainedModel,
    qwen3.Qwen3PreTrainedModel,
    llama.LlamaPreTrainedModel,
    siglip.SiglipPreTrainedModel,
)
_OURS: dict[type, Any] = {  # exactly these classes: one that is derived may compute something else
    qwen2.Qwen2RMSNorm: RMSNorm,
    qwen3.Qwen3RMSNorm: RMSNorm,
    llama.LlamaRMSNorm: RMSNorm,
    nn.LayerNorm: LayerNorm,
    qwen2.Qwen2MLP: SwiGLU,
    qwen3.Qwen3MLP: SwiGLU,
    llama.LlamaMLP: SwiGLU,
    siglip.SiglipMLP: GeluMLP,
    qwen2.Qwen2Attention: _Attention,
    qwen3.Qwen3Attention: _Attention,
    llama.LlamaAttention: _Attention,
    qwen2.Qwen2ForCausalLM: _CausalLM,
    qwen3.Qwen3ForCausalLM: _CausalLM,
    llama.LlamaForCausalLM: _CausalLM,
}


def patch(model: nn.Module) -> list[Swap]:
    """Our ops in place of transformers' in `model`, a Qwen2, Qwen3, Llama or SigLIP model; in place.

        for swap in patch(model):
            print(swap)

    The model gets configs of its own, copies of those it had, so that another model of the same config stays.
    Losses and gradients are the same up to rounding (without a labelled token: 0, where transformers gives nan). Patch
    before FSDP or torch.compile wraps the model; adapters may come before or after. A second call changes nothing.

    Returns: what this call swapped, module by module; what it does not list computes as before.
    Raises:  ValueError for another model, naming the models that are known.
    """
    if not isinstance(model, _FAMILIES):
        raise ValueError(
            f"patch: got a {type(model).__name__}; knows models of {', '.join(_known())}. Of a larger model, patch "
            f"the parts, as in patch(model.language_model); of one that PEFT wraps, patch(model.get_base_model())."
        )
    swaps = []
    for name, module in model.named_modules():
        kind: Any = type(module)
        if (ours := _OURS.get(kind)) is not None and _fits(module, ours):
            swaps.append(Swap(name, kind.__name__, ours.op))
            module.__class__ = _derived(ours, kind)
    for decoder in [module for module in model.modules() if hasattr(module, "rotary_emb")]:
        for layer in decoder.layers:
            layer.self_attn.rotary = (decoder.rotary_emb,)
    configs = _configs(model)
    if all(map(_attention_fits, configs)) and any(config._attn_implementation != NAME for config in configs):
        _copy_configs(model)
        configs = _configs(model)
        model._eagle_attention_before = [config._attn_implementation for config in configs]
        swaps.append(Swap("", f"attn_implementation={configs[0]._attn_implementation}", "varlen_attention"))
        for config in configs:
            config._attn_implementation_internal = NAME
    return swaps


def unpatch(model: nn.Module) -> None:
    """Takes back what `patch` did: the same modules, of the classes they had. A model that is not patched stays."""
    for module in model.modules():
        if (theirs := type(module).__dict__.get("replaces")) is not None:
            module.__class__ = theirs
            module.__dict__.pop("rotary", None)
    before = model.__dict__.pop("_eagle_attention_before", None)
    if before is not None:
        for config, name in zip(_configs(model), before, strict=True):
            config._attn_implementation_internal = name


@cache
def _derived(ours: type, theirs: type) -> Any:
    """`theirs` with the forward of `ours`, under its own name: transformers writes class names into config.json."""
    names = {name: getattr(theirs, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(theirs.__name__, (ours, theirs), {**names, "replaces": theirs})


def _known() -> list[str]:
    return [family.__name__.removesuffix("PreTrainedModel") for family in _FAMILIES]


def _fits(module: Any, ours: type) -> bool:
    """Whether the module computes what the op does."""
    if ours is LayerNorm:
        return len(module.normalized_shape) == 1 and module.weight is not None and module.bias is not None
    if ours is SwiGLU:
        return module.config.hidden_act == "silu"
    if ours is GeluMLP:
        return module.config.hidden_act == "gelu_pytorch_tanh"
    return True


def _attention_fits(config: Any) -> bool:
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    has_window = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    return width in HEAD_WIDTHS and not has_window and not config.attention_dropout


def _configs(model: nn.Module) -> list[Any]:
    """The configs that say which attention runs, each once. SigLIP's outer one has no layers of its own."""

    def all_of_them() -> Iterator[Any]:
        for module in model.modules():
            if isinstance(module, PreTrainedModel) and hasattr(module.config, "num_attention_heads"):
                yield module.config

    return list({id(config): config for config in all_of_them()}.values())


def _copy_configs(model: nn.Module) -> None:
    """Configs of the model's own, each as often the same one as before."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module.__dict__.get("config"), PreTrainedConfig):
            module.config = deepcopy(module.config, memo)


def _takes_our_loss(model: Any) -> bool:
    """A Linear without bias is all of the head, and no other loss was set."""
    head = model.lm_head
    is_plain = type(head) is nn.Linear and head.bias is None and not head._forward_hooks
    return is_plain and "_loss_function" not in model.__dict__ and type(head.weight) in (Tensor, nn.Parameter)
