"""Parts: every parameter has one, what is frozen stays, and tied weights are one."""

import pytest

from eagle_model.fields import ConfigError, override
from eagle_model.model import config as model_config
from eagle_model.model.eagle import build
from eagle_model.train.config import Multipliers
from eagle_model.train.parts import PARTS, check_multipliers, freeze, multiplier, part_of
from eagle_model.train.recipes import tiny


@pytest.fixture
def model():
    return build(model_config.tiny())


def tied():
    cfg = model_config.tiny().to_dict()
    cfg["text_config"]["tie_word_embeddings"] = True
    return build(model_config.EagleConfig.from_dict(cfg))


def trained(model) -> set[str]:
    return {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_every_parameter_has_a_part(model):
    assert {part_of(name) for name, _ in model.named_parameters()} == set(PARTS)
    assert part_of("llm.embed_tokens.weight") == "embeddings"
    assert part_of("llm.norm.weight") == "llm"
    with pytest.raises(
        ValueError, match=r"mlp1\.0\.weight is no parameter of an Eagle; needs one that begins with visi"
    ):
        part_of("mlp1.0.weight")


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ([], set(PARTS)),
        (["train_vision=false", "train_llm=false"], {"connector"}),
        (["train_llm=false", "train_lm_head=true"], {"vision", "connector", "lm_head"}),
        (["train_llm=false", "train_embeddings=true", "train_vision=false"], {"connector", "embeddings"}),
        (["train_embeddings=false", "train_lm_head=false"], {"vision", "connector", "llm"}),
        (
            ["train_vision=false", "train_connector=false", "train_llm=false", "train_embeddings=true"],
            {"embeddings"},
        ),
    ],
)
def test_what_is_trained(model, settings, parts):
    freeze(model, override(tiny(), settings))
    assert trained(model) == parts


def test_tied_weights_are_trained_together_or_not_at_all():
    model = tied()
    freeze(model, override(tiny(), ["train_llm=false"]))
    assert trained(model) == {"vision", "connector"}
    freeze(model, override(tiny(), ["train_llm=false", "train_embeddings=true", "train_lm_head=true"]))
    assert trained(model) == {"vision", "connector", "embeddings"}
    for settings in (["train_lm_head=false"], ["train_llm=false", "train_embeddings=true"]):
        with pytest.raises(ConfigError, match=r"its table of embeddings \(tie_word_embeddings\).*Set both alike"):
            freeze(model, override(tiny(), settings))


def test_multipliers_are_the_part_s_own_or_the_llm_s():
    factors = Multipliers(vision=0.1, llm=0.5, lm_head=2.0)
    got = {
        name: multiplier(name, factors)
        for name in ("vision.x", "connector.x", "llm.layers.0.x", "llm.embed_tokens.weight", "lm_head.weight")
    }
    assert list(got.values()) == [0.1, 1.0, 0.5, 0.5, 2.0]
    check_multipliers(build(model_config.tiny()), factors)
    with pytest.raises(ConfigError, match=r"optimizer\.multipliers\.embeddings is 0\.5 and .*lm_head 2\.0"):
        check_multipliers(tied(), factors)
