"""What a config of FP8 takes, and in which words it refuses the rest."""

import pytest

from eagle_model.fields import ConfigError, from_json, override, to_json
from eagle_model.model.fp8_config import SCALINGS, Fp8Config
from eagle_model.train.config import TrainConfig
from eagle_model.train.recipes import lora, tiny

RUN = {"dtype": "bfloat16", "base_weights": "full", "has_lora": False}


@pytest.mark.parametrize("recipe", SCALINGS)
def test_it_is_read_and_written(recipe):
    config = override(tiny(), ["dtype=bfloat16", f"fp8.recipe={recipe}"])
    assert config.fp8 == Fp8Config(recipe=recipe)
    assert from_json(TrainConfig, to_json(config)) == config
    config.fp8.check_run(**RUN)
    assert tiny().fp8 is None


@pytest.mark.parametrize("name", ["delayed", "DelayedScaling"])
def test_delayed_scaling_is_refused_with_its_reason(name):
    with pytest.raises(
        ConfigError, match=r"(?i)recipe is .delayed.*is refused: scales of steps before.*pickles it. Take current"
    ):
        Fp8Config(recipe=name)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["fp8.recipe=rowwise", "dtype=bfloat16"], "recipe is 'rowwise'; needs one of current, block, mxfp8"),
        (["fp8.backend=torchao", "dtype=bfloat16"], "needs one of auto, transformer_engine, scaled_mm, emulation"),
        (["fp8.recipe=block", "fp8.backend=scaled_mm"], "with backend=scaled_mm, recipe is block; needs current"),
        (["fp8.fused=true", "fp8.backend=emulation"], "only Transformer Engine has such modules"),
        (["fp8.recipe=current"], "with fp8, dtype is float32; needs bfloat16"),
    ],
)
def test_what_cannot_be_is_refused(assignments, message):
    with pytest.raises(ConfigError, match=message):
        override(tiny(), assignments)


def test_adapters_may_have_it_but_not_over_4_bits_nor_fused():
    override(lora(), ["fp8.recipe=current"])
    with pytest.raises(ConfigError, match="with fp8, base_weights is nf4; needs full: weights of 4 bits"):
        override(lora(), ["fp8.recipe=current", "base_weights=nf4"])
    with pytest.raises(ConfigError, match="fused is true with lora: adapters read what the norm gives"):
        override(lora(), ["fp8.fused=true"])
