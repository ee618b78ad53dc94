"""EagleConfig: sizes, their checks, and config.json in and out."""

import copy
import json
import re
from dataclasses import asdict, replace

import pytest

from eagle_model.model.config import EagleConfig, TextConfig, VisionConfig, eagle2_5_8b, tiny
from eagle_model.model.eagle import build

# The fields of a released config.json, as transformers 4 writes them.
RELEASED = {
    "model_type": "eagle_2_5_vl",
    "architectures": ["Eagle2_5_VLForConditionalGeneration"],
    "auto_map": {"AutoConfig": "configuration_eagle2_5_vl.Eagle2_5_VLConfig"},
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "image_size": 448,
        "intermediate_size": 4304,
        "layer_norm_eps": 1e-06,
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "attention_dropout": 0.0,
        "torch_dtype": "bfloat16",
    },
    "text_config": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 151674,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "max_position_embeddings": 32768,
        "max_window_layers": 28,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "eos_token_id": 151645,
    },
    "select_layer": -1,
    "force_image_size": 448,
    "downsample_ratio": 0.5,
    "template": "qwen2-chat",
    "dynamic_image_size": True,
    "use_thumbnail": True,
    "loss_version": "efficient_v2_cp_head",
    "min_dynamic_tiles": 1,
    "max_dynamic_tiles": 12,
    "pad2square": False,
    "mlp_checkpoint": True,
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
    "image_token_index": 151667,
    "use_pixel_shuffle": True,
    "mlp_connector_layers": 2,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
}


def changed(path, value):
    fields = copy.deepcopy(RELEASED)
    *parents, last = path.split(".")
    at = fields
    for key in parents:
        at = at[key]
    at[last] = value
    return fields


def test_reads_the_released_config():
    config = EagleConfig.from_dict(RELEASED)
    assert (config.vision.tile_px, config.vision.patch_px, config.vision.head_dim) == (448, 14, 72)
    assert (config.text.head_dim, config.text.rope_theta, config.image_token_id) == (128, 1e6, 151667)
    assert config.tokens_per_tile == 256
    bare = replace(
        config, other={}, vision=replace(config.vision, other={}), text=replace(config.text, other={})
    )  # fmt: skip
    assert bare == eagle2_5_8b()


def test_round_trip_loses_nothing():
    written = EagleConfig.from_dict(RELEASED).to_dict()
    for key in RELEASED.keys() - {"vision_config", "text_config"}:
        assert written[key] == RELEASED[key], key
    for part in ("vision_config", "text_config"):
        assert {key: written[part][key] for key in RELEASED[part]} == RELEASED[part]
    assert (written["min_dynamic_patch"], written["max_dynamic_patch"]) == (1, 12)  # the names vLLM reads
    assert written["vision_config"]["vision_use_head"] is False
    again = EagleConfig.from_dict(json.loads(json.dumps(written)))
    assert again.to_dict() == written


@pytest.mark.parametrize("config", [tiny(vocab_size=300, image_token_id=7), eagle2_5_8b()])
def test_own_configs_survive_json(config):
    again = EagleConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again.to_dict() == config.to_dict()
    assert (again.image_token_id, again.select_layer) == (config.image_token_id, config.select_layer)
    assert replace(again.text, other={}) == config.text
    assert replace(again.vision, other={}) == config.vision
    assert hash(again) == hash(replace(again, other={"a": []}))  # unhashable extras do not get in the way


def test_old_and_new_names():
    fields = copy.deepcopy(RELEASED)
    fields["llm_config"] = fields.pop("text_config")
    fields["llm_config"]["rope_parameters"] = {"rope_theta": 123.0, "rope_type": "default"}
    del fields["llm_config"]["rope_theta"]
    fields["max_dynamic_patch"] = fields.pop("max_dynamic_tiles") - 5
    config = EagleConfig.from_dict(fields)
    assert config.text.rope_theta == 123.0
    assert config.max_dynamic_tiles == 7
    assert config.to_dict()["text_config"]["rope_parameters"] == fields["llm_config"]["rope_parameters"]
    assert "rope_theta" not in config.to_dict()["text_config"]
    assert "llm_config" not in config.to_dict()


YARN = {"factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn", **YARN}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "yarn", **YARN}, "rope_theta": 5e5, "rope_scaling": None},
        {"rope_scaling": {"type": "yarn", **YARN, "finetuned": True, "low_freq_factor": 1.0}, "rope_theta": 5e5},
        {"rope_scaling": {"rope_type": "yarn", "type": "yarn", **YARN}, "rope_theta": 5e5},
        {"rope_scaling": None, "rope_theta": 5e5},
    ],
    ids=range(6),
)
def test_rope_comes_back_in_the_spelling_that_it_came_in(rope: dict):
    names = ("rope_parameters", "rope_scaling", "rope_theta")
    fields = {name: value for name, value in RELEASED["text_config"].items() if name not in names} | rope
    text = TextConfig.from_dict(fields)
    assert text.rope_theta == 5e5
    assert (text.rope_scaling is None) == ("yarn" not in str(rope))
    written = text.to_dict()
    assert {name: written[name] for name in names if name in written} == rope
    assert TextConfig.from_dict(written) == text
    other = replace(text, rope_theta=7e5)  # then what the file said is no longer so
    assert TextConfig.from_dict(other.to_dict()).rope_theta == 7e5
    assert TextConfig.from_dict(other.to_dict()).rope_scaling == text.rope_scaling


def test_the_length_that_phi_has_beside_its_rope_counts_before_the_one_inside():
    """As in transformers, whose frequencies these are."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    fields = {
        "hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64, "rope_theta": 10_000.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        "original_max_position_embeddings": 16,
    }  # fmt: skip
    text = TextConfig.from_dict(fields | {"num_key_value_heads": 4, "model_type": "llama"})
    assert text.rope_scaling.original_max_position_embeddings == 16
    theirs, scale = ROPE_INIT_FUNCTIONS["yarn"](transformers.LlamaConfig(**copy.deepcopy(fields)), "cpu")
    assert (text.rope_scaling.frequencies(head_dim=16, theta=1e4) - theirs).abs().max() < 1e-6
    assert text.rope_scaling.scale == pytest.approx(scale)
    assert TextConfig.from_dict(text.to_dict()) == text


def test_architectures_of_null_stay_null():
    fields = copy.deepcopy(RELEASED)
    fields["text_config"]["architectures"] = None
    for kind in ("qwen2", "llama"):
        fields["text_config"]["model_type"] = kind
        assert EagleConfig.from_dict(fields).to_dict()["text_config"]["architectures"] is None


def test_eagle_2s_first_class_is_the_same_computation(tmp_path):
    """What Isaac GR00T N1 has: Llama, no image_token_index, files of code that is another class's."""
    fields = copy.deepcopy(RELEASED) | {"model_type": "eagle_chat", "architectures": ["Eagle2ChatModel"]}
    fields |= {"ps_version": "v2", "pre_feature_reduction": False}
    fields["llm_config"] = fields.pop("text_config") | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    del fields["image_token_index"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"no image_token_index, .* needs the tokenizer's id of <IMG_CONTEXT>"):
        EagleConfig.read(tmp_path / "config.json")
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<img>": 150000, "<IMG_CONTEXT>": 150002}))
    config = EagleConfig.read(tmp_path / "config.json")
    assert (config.image_token_id, config.text.model_type) == (150002, "llama")
    written = config.to_dict()
    assert (written["model_type"], written["image_token_index"]) == ("eagle_2_5_vl", 150002)
    assert "auto_map" not in written
    assert EagleConfig.from_dict(written) == config
    with pytest.raises(ValueError, match="ps_version is 'v1'; this model computes 'v2' only"):
        EagleConfig.from_dict(fields | {"ps_version": "v1", "image_token_index": 5})


def test_absent_fields_have_transformers_defaults():
    transformers = pytest.importorskip("transformers")
    vision, text = VisionConfig.from_dict({}).to_dict(), TextConfig.from_dict({}).to_dict()
    theirs = transformers.SiglipVisionConfig().to_dict() | {"vision_use_head": False}
    assert {key: theirs[key] for key in vision} == vision
    theirs = transformers.Qwen2Config().to_dict()
    rope_theta = text.pop("rope_theta")
    assert theirs["rope_parameters"]["rope_theta"] == rope_theta
    for key in text.keys() - {"architectures", "rope_scaling"}:
        assert theirs[key] == text[key], key


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model_type", "llava", "model_type is 'llava'; this model computes 'eagle_2_5_vl' only"),
        ("downsample_ratio", 1.0, "downsample_ratio is 1.0"),
        ("mlp_connector_layers", 3, "mlp_connector_layers is 3; needs 1 or 2"),
        ("use_pixel_shuffle", None, "config.json: use_pixel_shuffle is None; needs true or false"),
        ("vision_config.hidden_act", "gelu", "vision_config.hidden_act is 'gelu'"),
        ("vision_config.model_type", "radio", "vision_config.model_type is 'radio'"),
        ("text_config.architectures", ["Qwen3ForCausalLM"], "text_config.architectures is ['Qwen3ForCausalLM']"),
        ("text_config.rope_scaling", {"type": "yarn"}, "text_config.rope_scaling is {'rope_type': 'yarn'"),
        ("text_config.rope_parameters", {"rope_type": "longrope"}, "computes rope_type default, linear, dynamic, yarn"),
        ("text_config.model_type", "phi3", "text_config.model_type is 'phi3'; this model computes qwen2, qwen3, llama"),
        ("text_config.model_type", ["qwen2"], "text_config.model_type is ['qwen2']; this model computes qwen2, qwen3"),
        ("vision_config.vision_use_head", 1, "config.json: vision_config.vision_use_head is 1; needs true or false"),
        ("text_config.use_sliding_window", True, "text_config.use_sliding_window is True"),
        ("text_config.head_dim", 63, "the head width is 63; rotary positions need an even one"),
        ("text_config.head_dim", 0, "config.json: text_config.head_dim is 0; needs a whole number of at least 1"),
        ("text_config.num_key_value_heads", 5, "num_key_value_heads is 5; needs a divisor of num_attention_heads, 28"),
        ("text_config.num_attention_heads", 27, "num_attention_heads is 27; needs a divisor of hidden_size, 3584"),
        ("text_config.vocab_size", 151000, "image_token_id is 151667; needs 0 to 150999"),
        ("vision_config.image_size", 392, "force_image_size is 448; needs vision_config.image_size, 392"),
        ("vision_config.patch_size", 13, "needs to be a multiple of 2 * patch_px = 26"),
        ("vision_config.num_hidden_layers", 0, "num_hidden_layers is 0; needs a whole number of at least 1"),
        (
            "text_config.hidden_size",
            64.0,
            "config.json: text_config.hidden_size is 64.0; needs a whole number of at least 1",
        ),
        ("vision_config.num_attention_heads", True, "num_attention_heads is True; needs a whole number of at least 1"),
        ("vision_config", [1], "config.json: vision_config is [1]; needs an object"),
        ("text_config.rope_parameters", "yarn", "text_config.rope_parameters is 'yarn'; needs an object"),
        ("text_config.rope_theta", "big", "config.json: text_config.rope_theta is 'big'; needs a number above 0"),
        ("text_config.rms_norm_eps", None, "config.json: text_config.rms_norm_eps is None; needs a number above 0"),
        ("text_config.rope_theta", 1e999, "text_config.rope_theta is inf; needs a number above 0"),
        ("text_config.rope_theta", True, "text_config.rope_theta is True; needs a number above 0"),
        (
            "text_config.max_position_embeddings",
            1.5,
            "text_config.max_position_embeddings is 1.5; needs a whole number",
        ),
        ("text_config.tie_word_embeddings", "no", "text_config.tie_word_embeddings is 'no'; needs true or false"),
        ("text_config.num_key_value_heads", "4", "text_config.num_key_value_heads is '4'; needs a whole number of at"),
        ("vision_config.layer_norm_eps", 0, "vision_config.layer_norm_eps is 0; needs a number above 0"),
        ("vision_config.image_size", "448", "config.json: vision_config.image_size is '448'; needs a whole number of"),
        (
            "image_token_index",
            151667.0,
            "config.json: image_token_index is 151667.0; needs a whole number of at least 0",
        ),
        ("select_layer", "-1", "config.json: select_layer is '-1'; needs a whole number"),
        ("max_dynamic_tiles", [12], "config.json: max_dynamic_tiles is [12]; needs a whole number of at least 1"),
        ("min_dynamic_tiles", 13, "min_dynamic_tiles is 13, max_dynamic_tiles 12; needs the first no greater"),
        (
            "initializer_range",
            "x" * 999,
            "config.json: initializer_range is '" + "x" * 99 + "...; needs a number above 0",
        ),
        ("quantization_config", {"bits": 4}, "quantization_config is {'bits': 4}; this model computes None only"),
        ("text_config.quantization_config", {"bits": 4}, "text_config.quantization_config is {'bits': 4}; this model"),
        ("text_config.layer_types", ["sliding_attention"], "text_config.layer_types is ['sliding_attention'];"),
        ("text_config.attention_bias", False, "text_config.attention_bias is False; this model computes True only"),
        ("llm_config", {"vocab_size": 7}, "both text_config and its old name llm_config, and they differ; needs one"),
        ("select_layer", 28, "select_layer is 28; needs -28 to 27"),
        ("max_dynamic_patch", 6, "max_dynamic_tiles is 12 but max_dynamic_patch is 6"),
    ],
)
def test_refuses_what_it_does_not_compute(path, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        EagleConfig.from_dict(changed(path, value))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("vision_config", "no vision_config"),
        ("text_config", "neither text_config nor llm_config"),
    ],
)
def test_names_the_part_that_is_missing(key, message):
    with pytest.raises(ValueError, match=message):
        EagleConfig.from_dict({k: v for k, v in RELEASED.items() if k != key})


def test_read_names_the_file(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        EagleConfig.read(path)
    for text, message in [
        ('{"model_type": ', "is not JSON"),
        ("[1]", "holds a list; needs a JSON object"),
        ("[" * 100_000, "is not JSON"),
        (" " * (1 << 26) + "{}", "has more than 67108864 bytes"),
        (json.dumps(changed("select_layer", 99)), "select_layer is 99"),
        (json.dumps(changed("text_config.hidden_size", "big")), r"config\.json: "),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as raised:
            EagleConfig.read(path)
        assert str(path) in str(raised.value)
    path.write_text(json.dumps(RELEASED))
    assert EagleConfig.read(path) == EagleConfig.from_dict(RELEASED)


def test_tiny_is_parametric():
    config = tiny(vocab_size=300, image_token_id=7, tile_px=56, patch_px=14)
    assert (config.vision.num_patches, config.vision.num_patch_values, config.tokens_per_tile) == (16, 588, 4)
    assert asdict(tiny(vocab_size=300, image_token_id=7))["vision"]["patch_px"] == 7


def test_attention_backend():
    """Written only where it is not the default: config.json otherwise stays as the release has it."""
    config = tiny(vocab_size=300, image_token_id=7)
    assert "attention_backend" not in config.to_dict()
    other = replace(config, attention_backend="flash_attn")
    assert EagleConfig.from_dict(other.to_dict()).attention_backend == "flash_attn"
    assert EagleConfig.from_dict(config.to_dict()).attention_backend == "eagle"
    with pytest.raises(ValueError, match="attention_backend is 'fastest'; needs one of eagle, flash_attn"):
        replace(config, attention_backend="fastest")


def test_absent_fields_have_the_released_classes_defaults():
    """Eagle2_5_VLConfig's: not what the released 8B has, which writes all of them."""
    fields = {key: RELEASED[key] for key in ("vision_config", "text_config")}
    config = EagleConfig.from_dict(fields)
    assert (config.image_token_id, config.select_layer, config.initializer_range) == (151667, -4, 0.02)
    assert (config.min_dynamic_tiles, config.max_dynamic_tiles) == (1, 6)
    written = config.to_dict()
    assert (written["use_thumbnail"], written["dynamic_image_size"], written["template"]) == (False, False, None)


def test_a_trained_model_says_how_its_images_were_prepared():
    config = EagleConfig.from_dict({**RELEASED, "use_thumbnail": False, "min_dynamic_tiles": 2})
    written = config.trained_on_tiles(6).to_dict()
    assert written["use_thumbnail"] is written["dynamic_image_size"] is True
    assert [written[key] for key in ("min_dynamic_tiles", "min_dynamic_patch")] == [1, 1]
    assert [written[key] for key in ("max_dynamic_tiles", "max_dynamic_patch")] == [6, 6]


FAMILIES = [
    {"model_type": "qwen2"},
    {"model_type": "qwen3", "head_dim": 16},
    {"model_type": "qwen3", "attention_bias": True},
    {"model_type": "llama"},
    {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "head_dim": 40},
]


@pytest.mark.parametrize("tied", [False, True])
def test_num_parameters_is_the_models(tied):
    small = tiny(vocab_size=300, image_token_id=7)
    families = [replace(small, text=replace(small.text, **changes)) for changes in FAMILIES]
    connectors = [
        replace(small, mlp_connector_layers=layers, use_pixel_shuffle=shuffle)
        for layers in (1, 2)
        for shuffle in (False, True)
    ]
    for config in (*families, *connectors, eagle2_5_8b()):
        config = replace(config, text=replace(config.text, tie_word_embeddings=tied))
        assert config.num_parameters == sum(p.numel() for p in build(config).parameters())


# ---- other families


def text_config(**changes):
    """RELEASED's, changed; `...` leaves a field out."""
    return {key: value for key, value in {**RELEASED["text_config"], **changes}.items() if value is not ...}


def qwen3(**changes):
    return text_config(**{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **changes})


def llama(**changes):
    no_window = dict.fromkeys(("use_sliding_window", "max_window_layers"), ...)
    return text_config(**{"architectures": ["LlamaForCausalLM"], "model_type": "llama", **no_window, **changes})


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_absent_fields_have_their_familys_defaults(kind):
    transformers = pytest.importorskip("transformers")
    ours = TextConfig.from_dict({"model_type": kind}).to_dict()
    theirs = {"qwen2": "Qwen2Config", "qwen3": "Qwen3Config", "llama": "LlamaConfig"}[kind]
    theirs = getattr(transformers, theirs)().to_dict()
    assert theirs["rope_parameters"]["rope_theta"] == ours["rope_theta"]
    for key in ours.keys() - {"architectures", "rope_scaling", "rope_theta"}:
        assert theirs[key] == ours[key], key


@pytest.mark.parametrize("fields", [qwen3(head_dim=96, attention_bias=True), llama(mlp_bias=True, attention_bias=True)])
def test_other_families_come_back(fields):
    config = TextConfig.from_dict(fields)
    assert {key: config.to_dict()[key] for key in fields} == fields
    assert TextConfig.from_dict(config.to_dict()) == config


def test_what_a_family_has():
    qwen2, other, third = (TextConfig.from_dict(fields) for fields in (text_config(), qwen3(), llama()))
    assert [c.has_qkv_bias for c in (qwen2, other, third)] == [True, False, False]
    assert [c.has_qk_norm for c in (qwen2, other, third)] == [False, True, False]
    assert [TextConfig.from_dict(f(head_dim=64)).qkv_sizes for f in (text_config, qwen3)] == [(1792, 256, 256)] * 2
    assert other.head_dim == 128  # Qwen3's, whatever the hidden size
    assert TextConfig.from_dict(llama(num_key_value_heads=None)).num_key_value_heads == 28


def test_the_class_tells_the_family_where_no_model_type_does():
    assert TextConfig.from_dict(qwen3() | {"model_type": "qwen3"}).model_type == "qwen3"
    fields = {key: value for key, value in qwen3().items() if key != "model_type"}
    assert TextConfig.from_dict(fields).model_type == "qwen3"
    del fields["architectures"]
    assert TextConfig.from_dict(fields).model_type == "qwen2"
    assert TextConfig.from_dict(qwen3(architectures=...)).model_type == "qwen3"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (llama(architectures=["Qwen2ForCausalLM"]), "this model computes ['LlamaForCausalLM'] only"),
        (qwen3(mlp_bias=True), "text_config.mlp_bias is True; this model computes False only"),
        (llama(attention_bias=1), "config.json: text_config.attention_bias is 1; needs true or false"),
        (llama(partial_rotary_factor=0.5), "text_config.partial_rotary_factor is 0.5; this model computes 1.0 only"),
        (qwen3(use_sliding_window=True), "text_config.use_sliding_window is True"),
    ],
)
def test_refuses_what_a_family_does_not_compute(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        TextConfig.from_dict(fields)


def test_a_bias_that_a_family_has_not():
    base = tiny(vocab_size=300, image_token_id=7).text
    for name in ("attention_bias", "mlp_bias"):
        with pytest.raises(ValueError, match=f"TextConfig: {name} is True; needs False, as qwen2 has no such field"):
            replace(base, **{name: True})
    with pytest.raises(ValueError, match="TextConfig: model_type is 'phi3'; needs one of qwen2, qwen3, llama"):
        replace(base, model_type="phi3")


def test_the_connectors_kinds():
    fields = RELEASED | {"use_pixel_shuffle": False, "mlp_connector_layers": 1}
    config = EagleConfig.from_dict(fields)
    assert config.tokens_per_tile == 1024
    assert {key: config.to_dict()[key] for key in ("use_pixel_shuffle", "mlp_connector_layers")} == {
        "use_pixel_shuffle": False,
        "mlp_connector_layers": 1,
    }
    odd = replace(config, vision=replace(config.vision, tile_px=210))  # 15 x 15 patches
    assert odd.tokens_per_tile == 225
    with pytest.raises(ValueError, match="tile_px is 210 and patch_px 14; four patches become one token"):
        replace(odd, use_pixel_shuffle=True)
    with pytest.raises(ValueError, match="tile_px is 384 and patch_px 14; tiles are cut into whole patches"):
        replace(config, vision=replace(config.vision, tile_px=384))


def test_a_vision_config_may_be_of_any_size():
    """SigLIP2-so400m-patch14-384: 27 patches and 6 pixels that no patch has."""
    config = VisionConfig.from_dict({"image_size": 384, "patch_size": 14})
    assert config.num_patches == 729
    with pytest.raises(ValueError, match="tile_px is 7 and patch_px 14; needs one patch or more"):
        replace(config, tile_px=7)


def test_vision_use_head_is_kept():
    config = EagleConfig.from_dict(changed("vision_config.vision_use_head", True))
    assert config.to_dict()["vision_config"]["vision_use_head"] is True
