"""Who gets an adapter and how large, and adapter_config.json both ways. PEFT's own word on both: test_peft.py."""

import json
import math

import pytest

from eagle_model.fields import ConfigError, from_json, override, to_json
from eagle_model.model.lora_config import LoraConfig, from_peft, to_peft

LAYERS = [f"language_model.model.layers.{i}" for i in (0, 1, 11)]
ATTENTION = [f"{layer}.self_attn.{p}_proj" for layer in LAYERS for p in "qkvo"]
MLP = [f"{layer}.mlp.{p}_proj" for layer in LAYERS for p in ("gate", "up", "down")]
VISION = [f"vision_model.vision_model.encoder.layers.0.self_attn.{p}_proj" for p in "qkv"]
NAMES = [*ATTENTION, *MLP, *VISION, "mlp1.1", "mlp1.3"]


def test_the_default_is_every_projection_of_the_language_model():
    assert LoraConfig().adapted(NAMES) == dict.fromkeys([*ATTENTION, *MLP], (16, 2.0))
    assert LoraConfig(targets=("all-linear",)).adapted(NAMES).keys() == set(NAMES)
    everything_else = LoraConfig(targets=("all-linear",), modules_to_save=("mlp1", "language_model"))
    assert everything_else.adapted(NAMES).keys() == set(VISION)


def test_it_is_set_from_text_and_saved_as_json():
    config = override(
        LoraConfig(), ["targets=q_proj,v_proj", 'rank_pattern=[["v_proj", 4]]', "dora=true", "modules_to_save=mlp1"]
    )
    assert config == LoraConfig(
        targets=("q_proj", "v_proj"), rank_pattern=(("v_proj", 4),), dora=True, modules_to_save=("mlp1",)
    )
    assert from_json(LoraConfig, json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank is 0; needs 1 or more"),
        ({"alpha": math.inf}, "alpha is inf; needs a number above 0"),
        ({"dropout": 1.0}, "dropout is 1.0; needs 0 to below 1"),
        ({"targets": ()}, "targets is empty; needs a name or a pattern, as q_proj"),
        ({"targets": ("(q_proj",)}, r"targets has '\(q_proj'; needs a regular expression \(missing \)"),
        ({"rank_pattern": (("k_proj", 0),)}, "rank_pattern of 'k_proj' is 0; needs 1 or more"),
        ({"alpha_pattern": (("k_proj", -1.0),)}, "alpha_pattern of 'k_proj' is -1.0; needs a number above 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**fields)


# ---- adapter_config.json


CONFIGS = [
    LoraConfig(),
    LoraConfig(
        rank=4, alpha=6.5, targets=("q_proj", "up_proj"), rank_pattern=(("^mlp1.1", 2),), rslora=True, dora=True
    ),
    LoraConfig(targets=("all-linear",), init="gaussian", modules_to_save=("mlp1", "lm_head"), dropout=0.0),
    LoraConfig(targets=(r".*\.q_proj", "v_proj"), rank_pattern=((r"layers\.1\..*", 2),), alpha_pattern=((".*1", 3.0),)),
]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_what_is_written_means_the_same_without_expressions(config):
    adapted = config.adapted(NAMES)
    fields = json.loads(json.dumps(to_peft(config, list(adapted))))
    again, _ = from_peft(fields, {})
    assert again.adapted(NAMES) == adapted
    assert (again.dropout, again.dora, again.init, again.modules_to_save) == (
        config.dropout, config.dora, config.init, config.modules_to_save,
    )  # fmt: skip


def fields_of(**changes: object) -> dict[str, object]:
    return {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], **changes}


def test_an_expression_of_a_file_is_kept_and_not_run():
    """This one takes longer than the sun will last; the tensors say which modules there are."""
    endless = r"(\w|\w)*" * 20 + "!"
    ranks = {ATTENTION[0]: 4, ATTENTION[1]: 8}
    fields = fields_of(target_modules=endless, rank_pattern={endless: 4})
    config, other = from_peft(fields, ranks)
    assert {name: rank for name, (rank, _) in config.adapted(NAMES).items()} == ranks
    assert to_peft(config, list(ranks)) | other == to_peft(config, list(ranks)) | fields
    with pytest.raises(ConfigError, match=r"alpha_pattern has '\(.*\.\.\.; needs names of modules, not expressions"):
        from_peft(fields_of(alpha_pattern={endless: 4}), ranks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; needs 'LORA'"),
        ({"r": "8"}, "rank is '8'; needs a whole number"),
        ({"r": True}, "rank is True; needs a whole number"),
        ({"lora_alpha": [16]}, r"alpha is \[16\]; needs a number"),
        ({"lora_alpha": 0}, "alpha is 0.0; needs a number above 0"),
        ({"lora_dropout": 2}, "dropout is 2.0; needs 0 to below 1"),
        ({"target_modules": None}, "target_modules is None; needs names of modules"),
        ({"target_modules": []}, "targets is empty"),
        ({"target_modules": ["q_proj", 3]}, r"target_modules is \['q_proj', 3\]; needs names of modules, or one reg"),
        ({"target_modules": {"q_proj": 1}}, "targets is {'q_proj': 1}; needs any number of values, each text"),
        ({"rank_pattern": ["q_proj"]}, r"rank_pattern is \['q_proj'\]; needs an object of names and numbers"),
        ({"rank_pattern": {"q_proj": "4"}}, r"rank_pattern is '4'; needs a whole number"),
        ({"modules_to_save": "mlp1"}, "modules_to_save is 'mlp1'; needs any number of values"),
        ({"use_dora": "yes"}, "dora is 'yes'; needs true or false"),
        ({"bias": "all"}, "bias is 'all'; needs 'none', what is computed here"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'; needs True or False, what is computed here"),
        ({"layers_to_transform": [1]}, r"targets is empty"),  # of no adapter is there a tensor
        ({"layer_replication": [[0, 1]]}, r"layer_replication is \[\[0, 1\]\]; needs None or False"),
        ({"from_the_future": {"on": 1}}, "from_the_future is {'on': 1}; needs None or False, what is computed here"),
    ],
)
def test_a_file_that_asks_for_something_else_is_refused_by_its_field(changes, message):
    with pytest.raises(ConfigError, match=message):
        from_peft(fields_of(**changes), {})


def test_what_changes_nothing_is_kept():
    extra = {"base_model_name_or_path": "b", "task_type": "CAUSAL_LM", "from_the_future": None, "revision": "main"}
    config, other = from_peft(fields_of(**extra), {})
    assert config == LoraConfig(rank=8, alpha=16, dropout=0.0, targets=("q_proj",))
    assert other == {"peft_type": "LORA", **extra}
