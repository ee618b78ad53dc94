"""Eagle 2.5 for Hugging Face's tools: importing this file teaches them `eagle_2_5_vl`. No remote code.

    import eagle_model.hf
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained("Eagle2.5-8B")
    model = AutoModelForImageTextToText.from_pretrained("Eagle2.5-8B", dtype=torch.bfloat16, device_map="cuda")
    messages = [{"role": "user", "content": [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What?"}]}]
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    print(processor.batch_decode(model.generate(**inputs.to("cuda"), max_new_tokens=64)))

The model's class holds an `eagle_model.Eagle` as `model.eagle` and computes with it: what is here is the batch (rows
with padding) and transformers' cache. Files are read and written by `Eagle` itself, under the released names; in memory
the modules have ours: adapters of PEFT name `qkv_proj`, `o_proj`, `gate_up_proj`, `down_proj` (docs/huggingface.md).

Dims    B batch, T tokens of each row, R = B * T, D width, V vocabulary, I tiles, P patches a tile, K numbers a patch.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from eagle_kernels.integrations.attention import NAME, Visible, eagle_attention
from eagle_kernels.integrations.transformers import IGNORE_INDEX, next_token_labels
from eagle_model.batch import PackedBatch
from eagle_model.hf_processor import Eagle2_5_VLProcessor, local_folder
from eagle_model.model import weights
from eagle_model.model.config import EagleConfig
from eagle_model.model.eagle import Eagle, build
from eagle_model.model.llm import document_lengths
from eagle_model.model.lora import load_adapter
from eagle_model.model.recompute import recomputed

MODEL_TYPE = "eagle_2_5_vl"
_NOT_COMPARED = {"dtype", "torch_dtype", "vision_config", "text_config", "rope_scaling"}  # is rope_parameters' old name
# Arguments of from_pretrained that change what is loaded, and that this class has no code for.
_REFUSED = (
    "load_in_4bit",
    "load_in_8bit",
    "quantization_config",
    "state_dict",
    "key_mapping",
    "output_loading_info",
    "tp_plan",
    "gguf_file",
    "variant",
)
_RELEASED = ("language_model.", "mlp1.", "vision_model.")  # what names of tensors begin with in files
_NOT_OF_THE_FILE = ("attn_implementation", "experts_implementation", "name_or_path")  # of a config: transformers' own


class Eagle2_5_VLConfig(PreTrainedConfig):
    """config.json for transformers: its own view of the two halves, and every field as the file has it."""

    model_type = MODEL_TYPE
    has_no_defaults_at_init = True
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": AutoConfig, "text_config": AutoConfig}

    def __init__(self, **fields: Any) -> None:
        for name in ("vision_config", "text_config", "llm_config"):
            if isinstance(fields.get(name), PreTrainedConfig):
                fields[name] = fields[name].to_dict()
        own = {name: fields[name] for name in fields if name[0] != "_" and name not in _NOT_OF_THE_FILE}
        for name in ("dtype", "torch_dtype"):
            _dtype(own.get(name))
            if isinstance(own.get(name), torch.dtype):
                own[name] = str(own[name]).removeprefix("torch.")
        self.eagle = EagleConfig.from_dict(own)
        told = self.eagle.to_dict()  # with defaults, and one spelling of what has several
        halves = {name: told[name] for name in ("vision_config", "text_config")}
        super().__init__(**{name: x for name, x in (fields | told).items() if name not in (*halves, "llm_config")})
        for name, half in halves.items():
            kind = CONFIG_MAPPING[half["model_type"]]  # its .get() finds nothing: it is filled when it is asked
            given = {key: half[key] for key in half if key != "rope_scaling" or half[key] is not None}
            setattr(self, name, kind(**given))

    def to_dict(self) -> dict[str, Any]:
        """What config.json holds, field for field."""
        return self.eagle.to_dict()

    def to_diff_dict(self) -> dict[str, Any]:
        return self.to_dict()

    def check_unedited(self) -> None:
        """Raises ValueError when a field that changes the model was set after the config was made."""
        told = self.eagle.to_dict()
        fresh = Eagle2_5_VLConfig(**told)
        for part, known in (
            (None, told),
            ("vision_config", told["vision_config"]),
            ("text_config", told["text_config"]),
        ):
            ours, theirs = (config if part is None else getattr(config, part) for config in (self, fresh))
            for name in sorted({*known, "rope_parameters"} - _NOT_COMPARED):
                if (got := getattr(ours, name, None)) != (was := getattr(theirs, name, None)):
                    path = name if part is None else f"{part}.{name}"
                    raise ValueError(
                        f"Eagle2_5_VLConfig: {path} was set to {got!r}, but the model is made of {was!r}. Change the "
                        f"dict and make the config anew: Eagle2_5_VLConfig(**fields)."
                    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Attend:
    """`model/attend.py`'s protocol over transformers' masks and caches."""

    module: nn.Module
    batch_size: int
    visible: Visible
    cache: Any
    cu_seq_lens_q: Tensor | None
    cu_seq_lens_k: Tensor | None

    def __call__(self, layer: int, q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor) -> Tensor:
        q, k, v = (x.unflatten(0, (self.batch_size, -1)).transpose(1, 2) for x in (q_THW, k_TKW, v_TKW))
        if self.cache is not None:
            k, v = self.cache.update(k, v, layer)
        out_BTHW, _ = eagle_attention(
            self.module, q, k, v, self.visible,
            is_causal=True, cu_seq_lens_q=self.cu_seq_lens_q, cu_seq_lens_k=self.cu_seq_lens_k,
        )  # fmt: skip
        return out_BTHW.flatten(0, 1)


class _Backbone:
    """What `base_model` of a model of transformers is to its callers, as TRL: the model without its head."""

    _tp_plan: ClassVar[dict[str, str]] = {}
    _pp_plan: ClassVar[dict[str, str]] = {}

    def __init__(self, model: Eagle2_5_VLForConditionalGeneration) -> None:
        self._model = model

    def __call__(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        return self._model.hidden(*args, **kwargs)


class Eagle2_5_VLForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """`model.eagle` in transformers' clothes. New weights as `Eagle` draws them, where none are read."""

    config_class = Eagle2_5_VLConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_attention_backend = True
    _no_split_modules: ClassVar[list[str]] = ["DecoderLayer", "VisionLayer"]
    _tied_weights_keys: ClassVar[dict[str, str]] = {"eagle.lm_head.weight": "eagle.llm.embed_tokens.weight"}

    def __init__(self, config: Eagle2_5_VLConfig, eagle: Eagle | None = None) -> None:
        _check_attention(config._attn_implementation)
        config._attn_implementation = NAME
        super().__init__(config)
        config.check_unedited()
        self.eagle = Eagle(config.eagle) if eagle is None else eagle
        self.gradient_checkpointing = False
        self.post_init()
        self.waiting: dict[str, Tensor] = {}
        self.register_load_state_dict_pre_hook(_from_released_names)

    def _init_weights(self, module: nn.Module) -> None:
        """Eagle has drawn them."""

    def get_input_embeddings(self) -> nn.Module:
        return self.eagle.llm.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        return self.eagle.lm_head

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *_: Any, **__: Any) -> nn.Module:
        """The table as it is. Raises ValueError for another size: the config says it, and `assemble` changes it."""
        have = self.eagle.cfg.text.vocab_size
        if new_num_tokens not in (None, have):
            raise ValueError(
                f"Eagle2_5_VL: resize_token_embeddings asks for {new_num_tokens} tokens; the model has {have}. Tokens "
                f"are added where a model is put together: eagle_model.model.assemble."
            )
        return self.get_input_embeddings()

    # -- computing

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        shift_labels: Tensor | None = None,
        **kwargs: Any,  # cu_seq_lens_q and cu_seq_lens_k, and what trainers hand to every model
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V); with labels (B, T), not shifted, the loss of the next token. In training mode the logits
        are not made beside a loss: None.

        pixel_values: (I, 3, tile_px, tile_px) or (I, P, K), tiles of all rows one after another. Packed documents:
        `position_ids` that start again, or cu_seq_lens_q and cu_seq_lens_k (eagle_kernels/integrations/attention.py).
        Raises ValueError unless the placeholders of input_ids are as many as the tiles' tokens.
        """
        below = self.hidden(
            input_ids, pixel_values, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **kwargs
        )
        hidden_BTD, loss, logits_BTV = below.last_hidden_state, None, None
        if labels is not None:
            hidden_RD = hidden_BTD.flatten(0, 1)
            labels_R, weights_R = next_token_labels(
                labels, like=hidden_RD, shift_labels=shift_labels, num_items_in_batch=num_items_in_batch
            )
            loss = self.eagle.lm_head(hidden_RD, labels_R, weights_R)
        if loss is None or not self.training:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            kept_BTD = hidden_BTD[:, kept]
            logits_BTV = self.eagle.lm_head(kept_BTD.flatten(0, 1)).unflatten(0, kept_BTD.shape[:2])
        return CausalLMOutputWithPast(loss=loss, logits=logits_BTV, past_key_values=below.past_key_values)

    @property
    def base_model(self) -> _Backbone:
        return _Backbone(self)

    def hidden(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cu_seq_lens_q: Tensor | None = None,
        cu_seq_lens_k: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """`forward` up to the head: last_hidden_state (B, T, D)."""
        for name in ("output_hidden_states", "output_attentions"):
            if kwargs.get(name):
                raise ValueError(f"Eagle2_5_VL: {name} is asked for; the layers' results are not kept. Leave it out.")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Eagle2_5_VL: got both or none of input_ids and inputs_embeds; needs one of them.")
        if inputs_embeds is None:
            assert input_ids is not None
            has_cache = past_key_values is not None  # then prompts came before, or `generate` has looked at this one
            inputs_embeds = self.embed(input_ids, pixel_values, may_lack_pixels=has_cache)
        elif pixel_values is not None:
            raise ValueError("Eagle2_5_VL: got inputs_embeds and pixel_values; needs input_ids beside pixel_values.")
        B, T = inputs_embeds.shape[:2]
        text_config = self.config.get_text_config()
        if use_cache is None:  # as transformers: a loop of one's own hands on what it was given
            use_cache = past_key_values is not None or not self.training
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(T, device=inputs_embeds.device)[None] + seen
        if isinstance(attention_mask, dict):  # made by `generate`, a mask a kind of layer
            attention_mask = attention_mask["full_attention"]
        visible = create_causal_mask(
            config=text_config, inputs_embeds=inputs_embeds, attention_mask=attention_mask,
            past_key_values=past_key_values, position_ids=position_ids,
        )  # fmt: skip
        if use_cache and past_key_values is None:  # after the mask: beside a cache, positions tell no documents
            past_key_values = DynamicCache(config=text_config)
        attend = _Attend(
            module=self, batch_size=B, visible=visible, cache=past_key_values,
            cu_seq_lens_q=cu_seq_lens_q, cu_seq_lens_k=cu_seq_lens_k,
        )  # fmt: skip
        needs_lengths = self.eagle.llm.needs_lengths
        hidden_RD = self.eagle.llm(
            inputs_embeds.flatten(0, 1),
            position_ids.expand(B, T).flatten().int(),
            attend,
            lengths_T=_document_lengths(visible, cu_seq_lens_q) if needs_lengths else None,
            run_layer=recomputed if self.gradient_checkpointing and self.training else None,
        )
        cache = past_key_values if use_cache else None
        return BaseModelOutputWithPast(last_hidden_state=hidden_RD.unflatten(0, (B, T)), past_key_values=cache)

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None, *, may_lack_pixels: bool = False) -> Tensor:
        """(B, T) ids -> (B, T, D): with the tiles' visual tokens in place of the placeholders."""
        ids_R, vision = input_ids.flatten(), self.eagle.vision
        rows_N = ids_R.new_zeros(0)
        if pixel_values is not None or not may_lack_pixels:
            rows_N = (ids_R == self.eagle.cfg.image_token_id).nonzero().flatten()
        dtype = self.eagle.llm.embed_tokens.weight.dtype
        if pixel_values is None:
            patches_IPK = ids_R.new_zeros(0, vision.num_patches, vision.num_patch_values, dtype=dtype)
        else:
            patches_IPK = self._patches(pixel_values).to(dtype)
        row = PackedBatch(
            token_ids_T=ids_R,
            labels_T=torch.full_like(ids_R, IGNORE_INDEX),
            positions_T=torch.zeros_like(ids_R, dtype=torch.int32),
            cu_seqlens=ids_R.new_tensor([0, ids_R.numel()], dtype=torch.int32),
            patches_IPK=patches_IPK,
            visual_rows_N=rows_N,
            sample_ids=tuple(f"row {i}" for i in range(len(input_ids))),
        )
        return self.eagle.embed(row).unflatten(0, input_ids.shape)

    def _patches(self, pixel_values: Tensor) -> Tensor:
        """(I, 3, tile_px, tile_px) -> (I, P, K); (I, P, K) stays. Raises ValueError for another shape, or no floats."""
        vision, shape = self.eagle.cfg.vision, tuple(pixel_values.shape)
        tile, patches = (3, vision.tile_px, vision.tile_px), (vision.num_patches, vision.num_patch_values)
        if shape[1:] not in (tile, patches) or not pixel_values.is_floating_point():
            raise ValueError(
                f"Eagle2_5_VL: pixel_values is {pixel_values.dtype} {shape}; needs normalised tiles, floats of "
                f"(I, {', '.join(map(str, tile))}) or (I, {', '.join(map(str, patches))}), as the processor makes them."
            )
        if shape[1:] == patches:
            return pixel_values
        patch_px = vision.patch_px
        cut = pixel_values.unflatten(3, (-1, patch_px)).unflatten(2, (-1, patch_px))  # I, 3, rows, y, columns, x
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def _expand_inputs_for_generation(  # transformers' own is static, and knows no tiles
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Each row of the batch `expand_size` times, with all of its tiles."""
        pixel_values = kwargs.pop("pixel_values", None)
        if pixel_values is not None and input_ids is not None and expand_size > 1:
            num_visual_B = (input_ids == self.eagle.cfg.image_token_id).sum(1) // self.eagle.tokens_per_tile
            parts = pixel_values.split(num_visual_B.tolist())
            pixel_values = torch.cat([part for part in parts for _ in range(expand_size)])
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **kwargs
        )
        return input_ids, kwargs if pixel_values is None else {**kwargs, "pixel_values": pixel_values}

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        pixel_values: Tensor | None = None,
        use_cache: bool | None = True,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """transformers' own, with the pixels where the prompt is."""
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            use_cache=use_cache,
            **kwargs,
        )
        if is_first_iteration or not use_cache:
            inputs["pixel_values"] = pixel_values
            lacks = pixel_values is None and inputs.get("inputs_embeds") is None
            if lacks and (num := int((inputs["input_ids"] == self.eagle.cfg.image_token_id).sum())):
                raise ValueError(
                    f"Eagle2_5_VL: the prompt has {num} placeholders of visual tokens and no pixel_values."
                )
        return inputs

    # -- files

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *_: Any,
        config: Eagle2_5_VLConfig | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        **kwargs: Any,  # of the hub and of every model of transformers
    ) -> Eagle2_5_VLForConditionalGeneration:
        """`Eagle.from_pretrained`: a folder, or a model of the hub, which is downloaded; mapped, as transformers does.

        dtype: "auto" and None keep the files' own.  device_map: one device ("cuda", 0, {"": 0}), or "auto": a GPU if
        there is one.  The Auto class finds the model of an adapter's folder, whose adapters are then in place.
        Raises ValueError for arguments that would load something else (quantization, a state_dict ...).
        """
        for name in _REFUSED:
            if kwargs.get(name) is not None:
                raise ValueError(f"Eagle2_5_VL.from_pretrained: {name} is given; this class loads weights as they are.")
        if edits := [name for name in ("select_layer", "text_config", "vision_config") if name in kwargs]:
            raise ValueError(f"Eagle2_5_VL.from_pretrained: {edits[0]} is given; change config.json instead.")
        _check_attention(kwargs.get("attn_implementation") if config is None else config._attn_implementation)
        folder = local_folder(pretrained_model_name_or_path, kwargs)
        wanted = torch_dtype if dtype is None else dtype
        eagle = Eagle.from_pretrained(folder, dtype=_dtype(wanted), device=_device(device_map), mapped=True)
        config = Eagle2_5_VLConfig.from_pretrained(folder) if config is None else config
        config.dtype = eagle.lm_head.weight.dtype
        config._name_or_path = str(pretrained_model_name_or_path)
        if adapter := (kwargs.get("adapter_kwargs") or {}).get(
            "_adapter_model_path"
        ):  # of the Auto class, for its folder
            load_adapter(eagle, adapter)
        model = cls(config, eagle)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        return model.eval()

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        """`Eagle.save_pretrained`, over what the folder held, and generation_config.json. state_dict: the parameters
        to save in place of the model's own, as trainers gather them. Of a model with adapters by `add_adapter` these
        alone, as transformers does."""
        if getattr(self, "_hf_peft_config_loaded", False):
            given = {"is_main_process": is_main_process, "state_dict": state_dict, "push_to_hub": push_to_hub}
            super().save_pretrained(save_directory, **given, **kwargs)
            return
        if not is_main_process:
            return
        if push_to_hub:
            raise ValueError("Eagle2_5_VL.save_pretrained: push_to_hub is set; save, then upload with huggingface_hub.")
        eagle = self.eagle
        if state_dict is not None:
            eagle = build(self.eagle.cfg)
            eagle.carried = self.eagle.carried
            mine = {name.removeprefix("eagle."): x for name, x in state_dict.items() if name.startswith("eagle.")}
            eagle.load_state_dict(mine, assign=True)
            if torch.equal(eagle.lm_head.weight, eagle.llm.embed_tokens.weight):
                eagle._tie()
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        max_shard_bytes = weights.MAX_SHARD_BYTES if max_shard_size is None else _num_bytes(max_shard_size)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as fresh:
            eagle.save_pretrained(fresh, max_shard_bytes=max_shard_bytes)
            for old in folder.glob("model*.safetensors*"):
                old.unlink()
            for path in Path(fresh).iterdir():
                path.replace(folder / path.name)
        if self.can_generate():
            self.generation_config.save_pretrained(folder)


def _document_lengths(visible: Visible, cu_seqlens: Tensor | None) -> Tensor:
    """(R,) int32: the length of each token's document so far, what a cache holds of it included."""
    documents = visible.documents() if cu_seqlens is None else cu_seqlens
    if documents is not None:
        return document_lengths(documents, visible.batch_size * visible.q_length)
    tokens = visible.tokens()
    if tokens is None:
        length_B = torch.full((visible.batch_size,), visible.q_length, dtype=torch.int32, device=visible.device)
    else:
        length_B = (tokens[1] - tokens[0]).clamp(min=1)
    return length_B.repeat_interleave(visible.q_length)


def _check_attention(name: str | None) -> None:
    if name not in (None, NAME):
        raise ValueError(f"Eagle2_5_VL: attn_implementation is {name!r}; this model has one, {NAME!r}. Leave it out.")


def _from_released_names(model: Any, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Before load_state_dict: tensors under the released names, as trainers read them from files, become ours. What
    belongs to a tensor of another file, as q_proj to a k_proj, waits for it."""
    names = [name for name in state_dict if name.startswith(_RELEASED)]
    if prefix or not names:
        return
    theirs = {**model.waiting, **{name: state_dict.pop(name) for name in names}}
    parameters, rules = dict(model.eagle.named_parameters()), weights.rules(model.eagle.cfg)
    found = weights.assembled(theirs, parameters, rules)
    made_of = weights.released({name: parameters[name].detach() for name in found}, rules)
    model.waiting = {name: theirs[name] for name in theirs if name not in made_of}
    state_dict.update({f"eagle.{name}": tensor for name, tensor in found.items()})
    if model.eagle.cfg.text.tie_word_embeddings and "llm.embed_tokens.weight" in found:
        state_dict["eagle.lm_head.weight"] = found["llm.embed_tokens.weight"]


def _dtype(given: Any) -> torch.dtype | None:
    """None, as for "auto": the files' own. Raises ValueError for what no weights are of."""
    if given is None or given == "auto":
        return None
    found = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if found not in weights.DTYPES.values():
        names = ", ".join(str(one).removeprefix("torch.") for one in weights.DTYPES.values())
        raise ValueError(f"Eagle2_5_VL: dtype is {given!r}; needs auto, {names}.")
    return found


def _device(device_map: Any) -> torch.device:
    if isinstance(device_map, Mapping) and set(device_map) == {""}:
        device_map = device_map[""]
    if device_map == "auto":
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(device_map, int):
        device_map = f"cuda:{device_map}"
    try:
        return torch.device(device_map or "cpu")
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"Eagle2_5_VL.from_pretrained: device_map is {device_map!r}; needs one device, as 'cuda' or {{'': 0}}, or "
            f"'auto'. A model larger than a GPU is trained with eagle_model.train."
        ) from error


def _num_bytes(size: int | str) -> int:
    if isinstance(size, int):
        return size
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B", size.upper())
    if found is None:
        raise ValueError(f"Eagle2_5_VL.save_pretrained: max_shard_size is {size!r}; needs bytes, or as in '5GB'.")
    return int(float(found[1]) * 1000 ** " KMG".index(found[2] or " "))


# exist_ok: a test, or a notebook's cell, may import this file again
AutoConfig.register(MODEL_TYPE, Eagle2_5_VLConfig, exist_ok=True)
AutoModelForImageTextToText.register(Eagle2_5_VLConfig, Eagle2_5_VLForConditionalGeneration, exist_ok=True)
AutoProcessor.register(Eagle2_5_VLConfig, Eagle2_5_VLProcessor, exist_ok=True)
