"""Runs: what can be set, what is refused, and what may change when a run is resumed."""

import json
from dataclasses import FrozenInstanceError, replace

import pytest

from eagle_model.fields import ConfigError, diff, from_json, override, to_json
from eagle_model.train.config import CHANGEABLE_ON_RESUME, OptimizerConfig, TrainConfig
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
    a = tiny()
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
        "save_every_steps=-1",
        "optimizer.learning_rate=0",
        "optimizer.betas=0.9,1",
        "optimizer.warmup_ratio=1.5",
        "optimizer.max_grad_norm=0",
        "optimizer.weight_decay=-1",
        "optimizer.learning_rate=nan",
    ],
)
def test_senseless_values_are_refused(assignment):
    name = assignment.split("=")[0].split(".")[-1]
    with pytest.raises(ConfigError, match=f"{name} is .*; needs "):
        override(tiny(), [assignment])


def test_something_must_be_trained():
    with pytest.raises(
        ConfigError, match="train_vision, train_connector and train_llm is all false; needs one of them true"
    ):
        override(tiny(), ["train_vision=false", "train_connector=false", "train_llm=false"])


def test_configs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        OptimizerConfig().learning_rate = 1.0
