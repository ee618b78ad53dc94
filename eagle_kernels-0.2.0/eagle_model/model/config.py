"""Sizes of the model, and their form in config.json.

    cfg = EagleConfig.read("Eagle2.5-8B/config.json")        # cfg.text.hidden_size == 3584, cfg.tokens_per_tile == 256
    cfg = tiny(vocab_size=512, image_token_id=7)             # the same code at sizes that learn on a laptop

Source  nvidia/Eagle2.5-8B's config.json (class Eagle2_5_VLConfig of NVlabs/Eagle), transformers' SiglipVisionConfig and
        Qwen2Config, Qwen3Config and LlamaConfig. Fields keep the names they have there, except pixels, which carry
        their unit.

Reading: `text_config` or its old name `llm_config`; `rope_theta` and `rope_scaling`, or transformers 5's
`rope_parameters`;
`max_dynamic_tiles` or vLLM's `max_dynamic_patch`. An absent field has the default of its released class, because
transformers leaves defaults out when it writes. A field that asks for another computation than this model's is an
error, and so is a value of a wrong type; both are named with their path. Fields that the model does not need are kept
in `other` and written back, so that a round trip loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from eagle_kernels.attention import BACKENDS, Backend
from eagle_model.checkpoints import verify_listed
from eagle_model.fields import shown
from eagle_model.files import read_json
from eagle_model.model.rope_scaling import RopeScaling

_OUR_NAMES = {"image_token_index": "image_token_id"}

# What the model computes, and nothing else: key -> the one value allowed. Written on save.
_ONLY_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_act": "gelu_pytorch_tanh",
    "num_channels": 3,
    "attention_dropout": 0.0,
}
_ONLY_EAGLE = {
    "architectures": ["Eagle2_5_VLForConditionalGeneration"],
    "model_type": "eagle_2_5_vl",
    "downsample_ratio": 0.5,
}
_ONLY_TEXT = {"hidden_act": "silu", "attention_dropout": 0.0}
_ONLY_QWEN = {**_ONLY_TEXT, "use_sliding_window": False}

# Eagle 2's first class, which Isaac GR00T N1 has: the same computation, where these fields say so. No auto_map goes on:
# it names that class's code.
_EAGLE_CHAT = {
    "model_type": "eagle_chat",
    "architectures": ["Eagle2ChatModel"],
    "ps_version": "v2",
    "pre_feature_reduction": False,
}
_LEROBOTS_CLASS = ["Eagle25VLForConditionalGeneration"]  # LeRobot's name for the released class

# Not written, but where a file has them they must say what the model computes.
_ONLY_EAGLE_IF_GIVEN = {"quantization_config": None}
_ONLY_IF_GIVEN = {"partial_rotary_factor": 1.0, **_ONLY_EAGLE_IF_GIVEN}  # transformers quantises for either

# What the released classes assume of absent fields (transformers' two and Eagle2_5_VLConfig), each of its field's type.
_DEFAULT_VISION = {
    "image_size": 224,
    "patch_size": 16,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-6,
}
_DEFAULT_TEXT = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Family:
    """A kind of language model, in the words of its class in transformers."""

    only: Mapping[str, Any]  # what it computes, written on save
    only_if_given: Mapping[str, Any]  # the same, not written
    defaults: Mapping[str, Any]  # of absent fields
    head_dim: int | None = None  # of a file without one; None: hidden_size / num_attention_heads


_FAMILIES = {
    "qwen2": _Family(
        only={"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **_ONLY_QWEN},
        only_if_given={"attention_bias": True, "mlp_bias": False},
        defaults=_DEFAULT_TEXT,
    ),
    "qwen3": _Family(
        only={"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **_ONLY_QWEN},
        only_if_given={"mlp_bias": False},
        defaults={**_DEFAULT_TEXT, "attention_bias": False},
        head_dim=128,
    ),
    "llama": _Family(
        only={"architectures": ["LlamaForCausalLM"], "model_type": "llama", **_ONLY_TEXT},
        only_if_given={},
        defaults={
            **_DEFAULT_TEXT,
            "vocab_size": 32_000,
            "intermediate_size": 11008,
            "max_position_embeddings": 2048,
            "attention_bias": False,
            "mlp_bias": False,
        },
    ),
}
_DEFAULT_EAGLE = {
    "image_token_index": 151667,
    "select_layer": -4,
    "min_dynamic_tiles": 1,
    "max_dynamic_tiles": 6,
    "use_pixel_shuffle": True,
    "mlp_connector_layers": 2,
    "initializer_range": 0.02,
}
_DEFAULT_EAGLE_OTHER = {
    "template": None,
    "dynamic_image_size": False,
    "use_thumbnail": False,
    "pad2square": False,
    "loss_version": "v1",
    "mlp_checkpoint": False,
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
}
# How images are prepared here, in the words of other programs: whole, resized to a grid of tiles, a thumbnail last.
_OUR_IMAGES = {"dynamic_image_size": True, "use_thumbnail": True, "pad2square": False}
# Fields of the released configuration that other programs read and the model does not; a model of our own has these.
_OUR_EAGLE_OTHER = {
    "template": "qwen2-chat",
    **_OUR_IMAGES,
    "loss_version": "efficient_v2_cp_head",
    "mlp_checkpoint": False,
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """SigLIP2's sizes. `image_size` and `patch_size` of config.json are `tile_px` and `patch_px` here."""

    tile_px: int
    patch_px: int
    hidden_size: int  # C
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float = 1e-6
    vision_use_head: bool = False  # whether the files hold SigLIP's pooling head, which Eagle does not compute
    other: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    num_patches: int = field(init=False, repr=False)  # P, of a tile: whole ones, as a convolution without padding cuts

    def __post_init__(self) -> None:
        numbers = {"tile_px": 1, "patch_px": 1, **_without(_DEFAULT_VISION, "image_size", "patch_size")}
        _need_types(self, {**numbers, "vision_use_head": False})
        _need_heads(self)
        if self.tile_px < self.patch_px:
            raise ValueError(
                f"VisionConfig: tile_px is {self.tile_px} and patch_px {self.patch_px}; needs one patch or more."
            )
        object.__setattr__(self, "num_patches", (self.tile_px // self.patch_px) ** 2)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def num_patch_values(self) -> int:
        """K, numbers a patch: (channel, y, x)."""
        return 3 * self.patch_px**2

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> VisionConfig:
        """From the `vision_config` part of config.json. Raises ValueError as the file's docstring says."""
        other = _without_fixed("vision_config", fields, _ONLY_VISION)
        known = _known("vision_config", other, {**_DEFAULT_VISION, "vision_use_head": False})
        return cls(tile_px=known.pop("image_size"), patch_px=known.pop("patch_size"), **known, other=other)

    @property
    def num_layer_parameters(self) -> int:
        C, F = self.hidden_size, self.intermediate_size
        return 4 * (C * C + C) + 2 * C * F + F + C + 4 * C

    @property
    def num_parameters(self) -> int:
        C, layers = self.hidden_size, self.num_hidden_layers * self.num_layer_parameters
        return self.num_patch_values * C + C + self.num_patches * C + layers + 2 * C

    def to_dict(self) -> dict[str, Any]:
        known = {key: getattr(self, key) for key in _DEFAULT_VISION if key not in ("image_size", "patch_size")}
        pixels = {"image_size": self.tile_px, "patch_size": self.patch_px}
        return {**self.other, **_ONLY_VISION, **pixels, **known, "vision_use_head": self.vision_use_head}


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """The language model's sizes: Qwen2.5's, Qwen3's or Llama's."""

    model_type: Literal["qwen2", "qwen3", "llama"] = "qwen2"
    vocab_size: int
    hidden_size: int  # D
    intermediate_size: int  # F
    num_hidden_layers: int
    num_attention_heads: int  # H
    num_key_value_heads: int  # K
    head_dim: int = 0  # W; 0 takes hidden_size / num_attention_heads
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    attention_bias: bool = False  # of q, k, v and the output projection; Qwen2 has the first three anyhow
    mlp_bias: bool = False  # Llama's alone
    tie_word_embeddings: bool = False
    other: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    has_qkv_bias: bool = field(init=False, repr=False)
    has_qk_norm: bool = field(init=False, repr=False)  # queries and keys are normalised, head by head, then rotated
    qkv_sizes: tuple[int, int, int] = field(init=False, repr=False)  # widths of q, k and v

    def __post_init__(self) -> None:
        if self.model_type not in _FAMILIES:
            raise ValueError(
                f"TextConfig: model_type is {shown(self.model_type)}; needs one of {', '.join(_FAMILIES)}."
            )
        _need_types(self, {**_DEFAULT_TEXT, "attention_bias": False, "mlp_bias": False})
        for name in ("attention_bias", "mlp_bias"):
            if getattr(self, name) and name not in _FAMILIES[self.model_type].defaults:
                raise ValueError(f"TextConfig: {name} is True; needs False, as {self.model_type} has no such field.")
        if self.head_dim == 0:
            _need_heads(self)
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        _need_types(self, {"head_dim": 1})
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"TextConfig: num_key_value_heads is {self.num_key_value_heads}; needs a divisor of "
                f"num_attention_heads, {self.num_attention_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(f"TextConfig: the head width is {self.head_dim}; rotary positions need an even one.")
        if self.rope_scaling is not None:
            self.rope_scaling.check_head_dim(self.head_dim)
        kv_width = self.num_key_value_heads * self.head_dim
        object.__setattr__(self, "has_qkv_bias", self.model_type == "qwen2" or self.attention_bias)
        object.__setattr__(self, "has_qk_norm", self.model_type == "qwen3")
        object.__setattr__(self, "qkv_sizes", (self.num_attention_heads * self.head_dim, kv_width, kv_width))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> TextConfig:
        """From the `text_config` part of config.json. Raises ValueError as the file's docstring says."""
        model_type = _model_type(fields)
        family = _FAMILIES[model_type]
        other = _without_fixed("text_config", fields, family.only)
        _without_fixed("text_config", other, {**family.only_if_given, **_ONLY_IF_GIVEN})
        spelled: dict[str, Any] = {
            name: other[name] for name in ("rope_parameters", "rope_scaling", "rope_theta") if name in other
        }
        rope_scaling = _take_rope(other, family.defaults)
        kinds = other.get("layer_types") or []
        if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
            raise ValueError(
                f"config.json: text_config.layer_types is {shown(kinds)}; this model computes 'full_attention' only."
            )
        heads = other.get("num_attention_heads", family.defaults["num_attention_heads"])
        if other.get("num_key_value_heads", None if model_type == "llama" else 1) is None:
            other["num_key_value_heads"] = heads  # transformers' way to say: as many as query heads
        head_dim = other.get("head_dim", family.head_dim)
        if head_dim is not None:
            _check_types("config.json: text_config.", {"head_dim": head_dim}, {"head_dim": 1})
        known = _known("text_config", other, family.defaults)
        if spelled.get("rope_parameters") is not None:
            other |= spelled
        elif rope := spelled.get("rope_scaling"):
            other |= {} if rope_scaling is not None and rope == rope_scaling.to_dict() else {"rope_scaling": rope}
        if "architectures" in fields and fields["architectures"] is None:
            other["architectures"] = None
        return cls(model_type=model_type, head_dim=head_dim or 0, rope_scaling=rope_scaling, **known, other=other)

    @property
    def num_parameters(self) -> int:
        """Of the decoder and its output head."""
        D, F, (q_width, kv_width, _) = self.hidden_size, self.intermediate_size, self.qkv_sizes
        attention = 2 * D * q_width + 2 * D * kv_width + D * self.attention_bias
        attention += (q_width + 2 * kv_width) * self.has_qkv_bias + 2 * self.head_dim * self.has_qk_norm
        layer = attention + 3 * D * F + (2 * F + D) * self.mlp_bias + 2 * D
        tables = (1 if self.tie_word_embeddings else 2) * self.vocab_size * D
        return tables + self.num_hidden_layers * layer + D

    def to_dict(self) -> dict[str, Any]:
        family = _FAMILIES[self.model_type]
        fields = {**self.other, **family.only, **{key: getattr(self, key) for key in family.defaults}}
        if (
            "head_dim" in fields
            or family.head_dim is not None
            or self.head_dim * self.num_attention_heads != self.hidden_size
        ):
            fields["head_dim"] = self.head_dim
        if "architectures" in self.other:
            fields["architectures"] = self.other["architectures"]
        return fields | self._rope_as_it_came(fields)

    def _rope_as_it_came(self, fields: dict[str, Any]) -> dict[str, Any]:
        """`rope_scaling`; where the file had the same in another spelling, that, and no theta beside one inside."""
        plain = {"rope_scaling": None if self.rope_scaling is None else self.rope_scaling.to_dict()}
        came: dict[str, Any] = {
            name: fields.pop(name) for name in ("rope_parameters", "rope_scaling") if name in fields
        }
        if not came:
            return plain
        again = {**fields, **came, "rope_theta": self.other.get("rope_theta", self.rope_theta)}
        is_same = _take_rope(again, _FAMILIES[self.model_type].defaults) == self.rope_scaling
        if not is_same or again["rope_theta"] != self.rope_theta:
            return plain
        if "rope_theta" in (came.get("rope_parameters") or {}):
            del fields["rope_theta"]
            came |= {"rope_theta": self.other["rope_theta"]} if "rope_theta" in self.other else {}
        return came


def _model_type(fields: Mapping[str, Any]) -> Any:
    """The kind of language model that a `text_config` describes, by its class where it has no model_type."""
    if not isinstance(fields, Mapping) or not {"model_type", "architectures"} & fields.keys():
        return "qwen2"
    classes = {family.only["architectures"][0]: kind for kind, family in _FAMILIES.items()}
    if "model_type" not in fields and fields["architectures"] in [[name] for name in classes]:
        return classes[fields["architectures"][0]]
    given = fields.get("model_type", "qwen2")
    if given not in list(_FAMILIES):  # a list, because what a file says need not be hashable
        raise ValueError(
            f"config.json: text_config.model_type is {shown(given)}; this model computes {', '.join(_FAMILIES)} only."
        )
    return given


def _take_rope(other: dict[str, Any], defaults: Mapping[str, Any]) -> RopeScaling | None:
    """Takes `rope_scaling` or transformers 5's `rope_parameters` out of a text_config; sets its rope_theta."""
    scaling, parameters = other.pop("rope_scaling", None), other.pop("rope_parameters", None)
    name = "rope_scaling" if parameters is None else "rope_parameters"
    if scaling is not None and parameters not in (None, scaling):
        raise ValueError(
            f"config.json: text_config.rope_scaling is {shown(scaling)} but rope_parameters {shown(parameters)}; "
            f"they mean the same and must agree."
        )
    where = f"text_config.{name}"
    rope = _without_fixed(where, (scaling if parameters is None else parameters) or {}, {"partial_rotary_factor": 1.0})
    if "rope_theta" in rope:
        other["rope_theta"] = rope.pop("rope_theta")
    length = other.get("max_position_embeddings", defaults["max_position_embeddings"])
    if "original_max_position_embeddings" in other:  # Phi's place for it, which transformers prefers
        length = other["original_max_position_embeddings"]
        rope.pop("original_max_position_embeddings", None)
    return RopeScaling.from_dict(f"config.json: {where}", rope, max_position_embeddings=length)


@dataclass(frozen=True, kw_only=True, slots=True)
class EagleConfig:
    """The whole model.

    image_token_id (config.json: `image_token_index`): the placeholder that visual tokens replace.
    select_layer: -1 takes the last vision layer after post_layernorm; any other value takes hidden_states[select_layer]
    without it, where hidden_states[0] is the embedding, as in transformers.
    use_pixel_shuffle, mlp_connector_layers: the connector's; see connector.py.
    min_dynamic_tiles, max_dynamic_tiles: for those who prepare images; the model does not use them.
    attention_backend: `backend` of varlen_attention in both towers. With a cache of keys, as in generation, the decoder
    takes "eagle" whatever stands here: flash-attn knows no segments. config.json names it unless it is "eagle".
    """

    vision: VisionConfig
    text: TextConfig
    image_token_id: int
    select_layer: int = -1
    use_pixel_shuffle: bool = True
    mlp_connector_layers: int = 2
    min_dynamic_tiles: int = 1
    max_dynamic_tiles: int = 12
    initializer_range: float = 0.02  # standard deviation of new embeddings and of a new lm_head
    attention_backend: Backend = "eagle"
    other: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)
    patches_per_token: int = field(init=False, repr=False)
    tokens_per_tile: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.attention_backend not in BACKENDS:
            raise ValueError(
                f"EagleConfig: attention_backend is {shown(self.attention_backend)}; needs one of "
                f"{', '.join(BACKENDS)}."
            )
        values = {name: getattr(self, _OUR_NAMES.get(name, name)) for name in _DEFAULT_EAGLE}
        _check_types("EagleConfig: ", values, _DEFAULT_EAGLE)
        if not self.min_dynamic_tiles <= self.max_dynamic_tiles:
            raise ValueError(
                f"EagleConfig: min_dynamic_tiles is {self.min_dynamic_tiles}, max_dynamic_tiles "
                f"{self.max_dynamic_tiles}; needs the first no greater than the second."
            )
        if self.mlp_connector_layers not in (1, 2):
            raise ValueError(f"EagleConfig: mlp_connector_layers is {self.mlp_connector_layers}; needs 1 or 2.")
        self._check_patches()
        layers = self.vision.num_hidden_layers
        if not -(layers + 1) <= self.select_layer <= layers:
            raise ValueError(
                f"EagleConfig: select_layer is {self.select_layer}; needs {-(layers + 1)} to {layers}, as the vision "
                f"encoder has {layers} layers."
            )
        if not 0 <= self.image_token_id < self.text.vocab_size:
            raise ValueError(
                f"EagleConfig: image_token_id is {self.image_token_id}; needs 0 to {self.text.vocab_size - 1}, an id "
                f"of the vocabulary. Raise text.vocab_size to the tokenizer's length."
            )
        object.__setattr__(self, "patches_per_token", 4 if self.use_pixel_shuffle else 1)
        object.__setattr__(self, "tokens_per_tile", self.vision.num_patches // self.patches_per_token)

    def _check_patches(self) -> None:
        tile_px, patch_px = self.vision.tile_px, self.vision.patch_px
        if self.use_pixel_shuffle and tile_px % (2 * patch_px):
            raise ValueError(
                f"EagleConfig: tile_px is {tile_px} and patch_px {patch_px}; four patches become one token, so tile_px "
                f"needs to be a multiple of 2 * patch_px = {2 * patch_px}."
            )
        if tile_px % patch_px:
            raise ValueError(
                f"EagleConfig: tile_px is {tile_px} and patch_px {patch_px}; tiles are cut into whole patches, so "
                f"tile_px needs to be a multiple of patch_px."
            )

    @property
    def num_connector_parameters(self) -> int:
        E, D = self.patches_per_token * self.vision.hidden_size, self.text.hidden_size
        return E * D + D + (2 * E + D * D + D if self.mlp_connector_layers == 2 else 0)

    @property
    def num_parameters(self) -> int:
        return self.vision.num_parameters + self.num_connector_parameters + self.text.num_parameters

    def trained_on_tiles(self, max_tiles: int) -> EagleConfig:
        """The config that tells other programs how this library prepared a model's images: up to `max_tiles` tiles and
        a thumbnail."""
        other = {**self.other, **_OUR_IMAGES}
        return replace(self, min_dynamic_tiles=1, max_dynamic_tiles=max_tiles, other=other)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> EagleConfig:
        """From the content of config.json. Raises ValueError as the file's docstring says."""
        if isinstance(fields, Mapping) and fields.get("architectures") == _LEROBOTS_CLASS:
            fields = _without(fields, "architectures")
        if isinstance(fields, Mapping) and fields.get("model_type") == _EAGLE_CHAT["model_type"]:
            fields = _without(_without_fixed("", fields, _EAGLE_CHAT), "auto_map")
            if "image_token_index" not in fields:
                raise ValueError(
                    "config.json has no image_token_index, and its model_type, eagle_chat, no default for it; needs "
                    "the tokenizer's id of <IMG_CONTEXT>. Put it in, or added_tokens.json beside config.json."
                )
        other = _without_fixed("", fields, _ONLY_EAGLE)
        _without_fixed("", other, _ONLY_EAGLE_IF_GIVEN)
        if "vision_config" not in other:
            raise ValueError("config.json has no vision_config; needs one of model_type siglip_vision_model.")
        vision = VisionConfig.from_dict(other.pop("vision_config"))
        if "text_config" not in other and "llm_config" not in other:
            raise ValueError("config.json has neither text_config nor llm_config; needs one.")
        llm_config = other.pop("llm_config", None)
        text_config = other.pop("text_config", llm_config)
        if llm_config not in (None, text_config):
            raise ValueError(
                "config.json has both text_config and its old name llm_config, and they differ; needs one."
            )
        text = TextConfig.from_dict(text_config)
        tile_px = other.pop("force_image_size", None)
        if tile_px not in (None, vision.tile_px):
            raise ValueError(
                f"config.json: force_image_size is {shown(tile_px)}; needs vision_config.image_size, {vision.tile_px}: "
                f"the position table has one row a patch."
            )
        other.pop("tie_word_embeddings", None)  # transformers copies it from text_config
        for name in ("min_dynamic_tiles", "max_dynamic_tiles"):
            _join_alias(other, name, name.replace("tiles", "patch"))
        known = _known("", other, _DEFAULT_EAGLE)
        return cls(
            vision=vision,
            text=text,
            attention_backend=other.pop("attention_backend", "eagle"),
            other={**_DEFAULT_EAGLE_OTHER, **other},
            **{_OUR_NAMES.get(name, name): value for name, value in known.items()},
        )

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds. vLLM reads min/max_dynamic_patch, others min/max_dynamic_tiles: both are there."""
        backend = {} if self.attention_backend == "eagle" else {"attention_backend": self.attention_backend}
        return {
            **_OUR_EAGLE_OTHER,
            **self.other,
            **_ONLY_EAGLE,
            **backend,
            "vision_config": self.vision.to_dict(),
            "text_config": self.text.to_dict(),
            "tie_word_embeddings": self.text.tie_word_embeddings,
            "image_token_index": self.image_token_id,
            "force_image_size": self.vision.tile_px,
            "select_layer": self.select_layer,
            "use_pixel_shuffle": self.use_pixel_shuffle,
            "mlp_connector_layers": self.mlp_connector_layers,
            "min_dynamic_tiles": self.min_dynamic_tiles,
            "max_dynamic_tiles": self.max_dynamic_tiles,
            "min_dynamic_patch": self.min_dynamic_tiles,
            "max_dynamic_patch": self.max_dynamic_tiles,
            "initializer_range": self.initializer_range,
        }

    @classmethod
    def read(cls, path: Path | str) -> EagleConfig:
        """From a config.json, which is checked first where a checkpoint's manifest stands beside it.

        Raises FileNotFoundError, or ValueError naming the file and what is wrong with it."""
        path = Path(path)
        if not path.is_file():
            hint = " It holds an adapter: load the model under it first." if _holds_adapter(path.parent) else ""
            raise FileNotFoundError(f"{path} is missing; a model's folder needs its config.json.{hint}")
        verify_listed(path.parent, [path.name])
        fields = read_json(path)
        if not isinstance(fields, dict):
            raise ValueError(f"{path} holds a {type(fields).__name__}; needs a JSON object.")
        tokens = path.with_name("added_tokens.json")
        if fields.get("model_type") == _EAGLE_CHAT["model_type"] and tokens.is_file():
            verify_listed(path.parent, [tokens.name])
            ids = read_json(tokens)
            if isinstance(ids, dict) and "<IMG_CONTEXT>" in ids:
                fields = {"image_token_index": ids["<IMG_CONTEXT>"], **fields}
        try:
            return cls.from_dict(fields)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error


def _holds_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def tiny(*, vocab_size: int = 512, image_token_id: int = 7, tile_px: int = 28, patch_px: int = 7) -> EagleConfig:
    """A model of about 0.75 million parameters that learns on a laptop: the same code, small sizes."""
    return EagleConfig(
        vision=VisionConfig(
            tile_px=tile_px,
            patch_px=patch_px,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
        ),
        text=TextConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_theta=10_000.0,
        ),
        image_token_id=image_token_id,
        initializer_range=0.05,  # a narrow model wants more than 0.02: it learns to look up a frame much sooner
    )


def eagle2_5_8b(
    *, vocab_size: int = 151674, image_token_id: int = 151667, tile_px: int = 448, patch_px: int = 14
) -> EagleConfig:
    """nvidia/Eagle2.5-8B: SigLIP2-so400m at 448 px and Qwen2.5-7B with Eagle's nine added tokens."""
    text = TextConfig(
        vocab_size=vocab_size,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
    return EagleConfig(vision=_so400m(tile_px, patch_px), text=text, image_token_id=image_token_id)


def eagle2_2b(
    *, vocab_size: int = 151674, image_token_id: int = 151667, tile_px: int = 448, patch_px: int = 14
) -> EagleConfig:
    """nvidia/Eagle2-2B in Eagle 2.5's format: the same vision tower and Qwen2.5-1.5B."""
    text = TextConfig(
        vocab_size=vocab_size,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return EagleConfig(vision=_so400m(tile_px, patch_px), text=text, image_token_id=image_token_id)


def eagle2_1b(
    *, vocab_size: int = 151674, image_token_id: int = 151667, tile_px: int = 448, patch_px: int = 14
) -> EagleConfig:
    """nvidia/Eagle2-1B in Eagle 2.5's format: the same vision tower and Qwen2.5-0.5B."""
    text = TextConfig(
        vocab_size=vocab_size,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return EagleConfig(vision=_so400m(tile_px, patch_px), text=text, image_token_id=image_token_id)


def _so400m(tile_px: int, patch_px: int) -> VisionConfig:
    return VisionConfig(
        tile_px=tile_px,
        patch_px=patch_px,
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
    )


PRESETS = {"tiny": tiny, "eagle2_5_8b": eagle2_5_8b, "eagle2_2b": eagle2_2b, "eagle2_1b": eagle2_1b}  # by name


def _without_fixed(section: str, fields: Mapping[str, Any], only: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` less the keys of `only`, whose values must be those of `only` where present."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"config.json: {section} is {shown(fields)}; needs an object.")
    for key, value in only.items():
        if key == "architectures" and fields.get(key) is None:
            continue  # a config that was written without a model
        if key in fields and fields[key] != value:
            name = f"{section}.{key}" if section else key
            raise ValueError(f"config.json: {name} is {shown(fields[key])}; this model computes {value!r} only.")
    return {key: value for key, value in fields.items() if key not in only}


def _join_alias(fields: dict[str, Any], name: str, alias: str) -> None:
    """Puts the value of two names for one field under the first, in place."""
    first, second = fields.pop(name, None), fields.pop(alias, None)
    if first is not None and second is not None and first != second:
        raise ValueError(
            f"config.json: {name} is {shown(first)} but {alias} is {shown(second)}; they mean the same and must agree."
        )
    if first is not None or second is not None:
        fields[name] = second if first is None else first


def _known(section: str, fields: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Takes the fields that have defaults out of `fields`; each is there afterwards, and of its default's type."""
    known = {name: fields.pop(name, default) for name, default in defaults.items()}
    _check_types(f"config.json: {section}." if section else "config.json: ", known, defaults)
    return known


def _check_types(where: str, values: Mapping[str, Any], like: Mapping[str, Any]) -> None:
    for name, value in values.items():
        kind = type(like[name])
        if kind is bool:
            ok, need = type(value) is bool, "true or false"
        elif kind is float:
            ok = type(value) in (int, float) and 0 < value < math.inf
            need = "a number above 0"
        else:
            least = {"image_token_index": 0, "select_layer": -math.inf}.get(name, 1)
            ok = type(value) is int and value >= least
            need = "a whole number" if least < 0 else f"a whole number of at least {least}"
        if not ok:
            raise ValueError(f"{where}{name} is {shown(value)}; needs {need}.")


def _without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}


def _need_types(config: VisionConfig | TextConfig, like: Mapping[str, Any]) -> None:
    _check_types(f"{type(config).__name__}: ", {name: getattr(config, name) for name in like}, like)


def _need_heads(config: VisionConfig | TextConfig) -> None:
    heads = config.num_attention_heads
    if config.hidden_size % heads:
        raise ValueError(
            f"{type(config).__name__}: num_attention_heads is {heads}; needs a divisor of hidden_size, "
            f"{config.hidden_size}."
        )
