"""Runs: what can be set, what is refused, and what may change when a run is resumed."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from eagle_model.fields import ConfigError, diff, from_json, listing, override, to_json
from eagle_model.train.config import (
    CHANGEABLE_ON_RESUME,
    MAX_CONFIG_BYTES,
    OptimizerConfig,
    TrainConfig,
    read_config,
    write_config,
)
from eagle_model.train.recipes import tiny


def test_json_round_trip():
    config = override(tiny(), ["data.recipe=/data/recipe.json", "optimizer.betas=0.8,0.9", "data.seed=7"])
    assert from_json(TrainConfig, json.loads(json.dumps(to_json(config)))) == config


def test_diff_names_nested_fields():
    a = tiny()
    b = replace(a, max_steps=7, data=replace(a.data, seed=3))
    assert diff(a, b) == {"data.seed": (a.data.seed, 3), "max_steps": (a.max_steps, 7)}
    assert diff(a, a) == {}


def test_changeable_fields_exist():
    remote = 'data.remote={"prefixes": ["s3://a/"], "cache_folder": "c"}'
    a = override(tiny(), ["validation.recipe=v.jsonl", "answers.prompts=p.jsonl", remote])
    for path in CHANGEABLE_ON_RESUME:
        value: object = a
        for name in path.split("."):
            value = getattr(value, name)


@pytest.mark.parametrize(
    "assignment",
    [
        "max_steps=0",
        "rows_per_step=0",
        "keep_last=0",
        "save_every_minutes=0",
        "time_limit_minutes=-1",
        "save_every_steps=-1",
        "optimizer.learning_rate=0",
        "optimizer.betas=0.9,1",
        "optimizer.warmup_ratio=1.5",
        "optimizer.max_grad_norm=0",
        "optimizer.weight_decay=-1",
        "optimizer.learning_rate=nan",
        "seed=-1",
        f"seed={2**63}",  # more is no seed for torch
    ],
)
def test_senseless_values_are_refused(assignment):
    name = assignment.split("=")[0].split(".")[-1]
    with pytest.raises(ConfigError, match=f"{name} is .*; needs "):
        override(tiny(), [assignment])


def test_the_recipe_s_name_is_no_setting():
    with pytest.raises(ConfigError, match=r"^recipe_name is 'tiny' and cannot be set; leave it out\.$"):
        override(tiny(), ["recipe_name=debug"])
    with pytest.raises(
        ConfigError,
        match=r"no field recipe_nam\. Did you mean data\.recipe or fp8\.recipe or validation\.recipe\? The fields are ",
    ):
        override(tiny(), ["recipe_nam=debug"])
    assert [assignment for assignment, _ in listing(tiny()) if "recipe_name" in assignment] == []


def test_something_must_be_trained():
    with pytest.raises(
        ConfigError, match="train_vision, train_connector and train_llm is all false; needs one of them true"
    ):
        override(tiny(), ["train_vision=false", "train_connector=false", "train_llm=false"])


def test_a_run_has_steps_or_epochs():
    assert override(tiny(), ["max_steps=none", "num_epochs=2"]).num_epochs == 2
    for settings, got in ((["num_epochs=2"], "1000 and 2"), (["max_steps=none"], "none and none")):
        with pytest.raises(ConfigError, match=f"max_steps and num_epochs is {got}; needs one of the two; set the oth"):
            override(tiny(), settings)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["optimizer.multipliers.vision=0"], r"multipliers\.vision is 0\.0; needs a number above 0 \(train_"),
        (["optimizer.schedule=wsd", "optimizer.decay_ratio=0.99"], r"decay_ratio is 1\.04; needs 1 at most"),
        (["optimizer.decay_ratio=0"], r"decay_ratio is 0\.0; needs more than 0"),
        (["max_position_embeddings=100"], r"_embeddings is 100; needs processor\.sampling\.context_tokens, 512"),
        (["neftune_alpha=-1"], r"neftune_alpha is -1\.0; needs 0 or more"),
        (["validation.recipe="], r"validation\.recipe is empty; needs a recipe"),
        (["validation.every_steps=5"], r"validation\.recipe is missing"),
        (["validation.recipe=v", "validation.patience=0"], r"validation\.patience is 0; needs 1 or more"),
        (["answers.prompts=p", "answers.every_steps=0"], r"answers\.every_steps is 0; needs 1 or more"),
        (["model=m", "lora.rank=4", "train_lm_head=true"], r"with lora, train_lm_head is True; needs none"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_together(assignments, message):
    with pytest.raises(ConfigError, match=message):
        override(tiny(), assignments)


def test_configs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        OptimizerConfig().learning_rate = 1.0


def test_every_field_says_what_it_means():
    unexplained = [assignment for assignment, about in listing(tiny()) if assignment and about.startswith("(")]
    assert unexplained == []
    assert [about for assignment, about in listing(tiny()) if not assignment and about.endswith(": ")] == []


def test_a_written_config_comes_back(tmp_path):
    config = override(tiny(), ["data.recipe=a b.json", "seed=5"])
    write_config(tmp_path / "config.json", config)
    assert read_config(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{",
            r"c\.json is not JSON: Expecting .* Every checkpoint holds it too: training/config\.json",
        ),
        ("[" * 100_000, r"c\.json is not JSON: maximum recursion depth exceeded"),
        ("\xff", r"c\.json is not JSON: 'utf-8' codec"),
        ("[]", r"c\.json is no config of a run that this version reads: its version is none, needs 4\. Continue a run"),
        ('{"run": "abc", "config": {}}', r"its version is none, needs 4"),
        ('{"version": 1, "config": {}}', r"its version is 1, needs 4"),
        ('{"version": 4}', r"c\.json is no config of a run"),
        ('{"version": 4, "config": {"max_steps": 3}}', r"c\.json: data is missing; TrainConfig needs it"),
        (" " * (MAX_CONFIG_BYTES + 1), r"c\.json has more than 1048576 bytes; no file of its kind"),
    ],
)
def test_what_is_no_config_of_this_version_is_refused(tmp_path, text, message):
    (tmp_path / "c.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "c.json")


def test_a_config_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "absent.json"
    with pytest.raises(ConfigError, match=rf"{path} does not exist\. Runs of version 4 have that file"):
        read_config(path)
    with pytest.raises(ConfigError, match=rf"{tmp_path} is a folder; needs the file"):
        read_config(tmp_path)
