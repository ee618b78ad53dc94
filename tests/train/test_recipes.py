"""Recipes are found by name, and each is a config that a model can be made for."""

import pytest

from eagle_model.data.processor import ProcessorConfig
from eagle_model.fields import ConfigError, diff
from eagle_model.model import config as model_config
from eagle_model.model.lora_config import LoraConfig
from eagle_model.train.config import OptimizerConfig
from eagle_model.train.recipes import RECIPES, debug, lora, recipe, tiny


def test_recipes_by_name():
    assert recipe("tiny") == tiny()
    assert recipe("debug") == debug()
    assert recipe("lora") == lora()
    with pytest.raises(ConfigError, match=r"There is no recipe 'tinny'; the recipes are tiny, debug, lora, stage1, "):
        recipe("tinny")


@pytest.mark.parametrize(
    ("name", "parts", "learning_rate", "rows", "context", "tokens"),
    [
        ("stage1", "connector", 2e-4, 1024, 4096, 4_194_304),
        ("stage1_5", "all", 2e-5, 1024, 8192, 8_388_608),
        ("stage2", "all", 2e-5, 256, 32_768, 8_388_608),
        ("stage3", "all", 2e-5, 128, 65_536, 8_388_608),
        ("stage4", "all", 2e-5, 128, 131_072, 16_777_216),
    ],
)
def test_golden_stages_of_the_paper(name, parts, learning_rate, rows, context, tokens):
    """arXiv:2504.15271, Table 8; its batch sizes as packed rows, and the tokens of a step that follow."""
    config = recipe(name)
    assert (config.train_vision, config.train_connector, config.train_llm) == (parts == "all", True, parts == "all")
    assert (config.train_embeddings, config.train_lm_head) == (None, None)
    assert config.optimizer == OptimizerConfig(learning_rate=learning_rate)
    assert (config.rows_per_step, config.processor.sampling.context_tokens) == (rows, context)
    assert config.tokens_per_step == tokens
    assert (config.num_epochs, config.max_steps, config.model, config.dtype) == (1, None, "", "bfloat16")
    assert config.processor.sampling.max_tiles == 12
    assert (config.max_position_embeddings or 32_768) >= context


def test_debug_is_tiny_for_a_few_steps():
    assert set(diff(tiny(), debug())) == {"recipe_name", "max_steps", "save_every_steps", "log_every_steps"}
    assert debug().save_every_steps < debug().max_steps < 10


def test_adapters_are_for_a_model_that_is_there_with_the_released_tiles():
    assert (lora().model, lora().processor) == ("", ProcessorConfig())
    assert lora().lora == LoraConfig()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_its_name(name):
    assert recipe(name).recipe_name == name


@pytest.mark.parametrize("name", [name for name in RECIPES if recipe(name).model])
def test_tiles_are_the_model_own(name):
    processor = recipe(name).processor
    sizes = {"tile_px": processor.tile_px, "patch_px": processor.patch_px}
    cfg = model_config.tiny(vocab_size=300, image_token_id=0, **sizes)
    assert cfg == model_config.tiny(vocab_size=300, image_token_id=0)  # the sizes that the model was tuned with
