"""The parts of a model that a run trains, or not, and how fast: vision, connector, llm, embeddings, lm_head.

    part_of("llm.embed_tokens.weight")           # "embeddings"
    freeze(model, config)                        # what config.train_... says
    multiplier("lm_head.weight", config.optimizer.multipliers)

Tied weights: a model whose lm_head is its table of embeddings has one parameter for both, "llm.embed_tokens.weight".
Settings that would treat the two differently are refused.
"""

from __future__ import annotations

from eagle_model.fields import ConfigError
from eagle_model.model.eagle import Eagle
from eagle_model.train.config import Multipliers, TrainConfig

_PREFIXES = {  # of parameters' names; the first that fits
    "vision.": "vision",
    "connector.": "connector",
    "llm.embed_tokens.": "embeddings",
    "llm.": "llm",
    "lm_head.": "lm_head",
}
PARTS = tuple(_PREFIXES.values())


def part_of(name: str) -> str:
    """The part that a parameter of an Eagle belongs to, by its name.

    Example: part_of("llm.layers.0.mlp.down_proj.weight") == "llm"
    Raises:  ValueError for a name that no Eagle has.
    """
    for prefix, part in _PREFIXES.items():
        if name.startswith(prefix):
            return part
    raise ValueError(f"part_of: {name} is no parameter of an Eagle; needs one that begins with {', '.join(_PREFIXES)}.")


def freeze(model: Eagle, config: TrainConfig) -> None:
    """Lets gradients reach the parts that the config trains, and no others. Not for a model with adapters.

    Raises: ConfigError when lm_head is the table of embeddings and the config trains one of them alone.
    """
    embeddings, lm_head = (
        config.train_llm if trained is None else trained for trained in (config.train_embeddings, config.train_lm_head)
    )
    _need_equal(model, "train_embeddings", embeddings, "train_lm_head", lm_head)
    model.vision.requires_grad_(config.train_vision)
    model.connector.requires_grad_(config.train_connector)
    model.llm.requires_grad_(config.train_llm)
    model.llm.embed_tokens.requires_grad_(embeddings)
    model.lm_head.requires_grad_(lm_head)


def check_multipliers(model: Eagle, multipliers: Multipliers) -> None:
    """Raises ConfigError when lm_head is the table of embeddings and the two have multipliers of their own."""
    embeddings, lm_head = (multiplier(name, multipliers) for name in ("llm.embed_tokens.weight", "lm_head.weight"))
    path = "optimizer.multipliers."
    _need_equal(model, f"{path}embeddings", embeddings, f"{path}lm_head", lm_head)


def multiplier(name: str, multipliers: Multipliers) -> float:
    """What the learning rate of a parameter is multiplied by."""
    value = getattr(multipliers, part_of(name))
    return multipliers.llm if value is None else value


def _need_equal(model: Eagle, first: str, first_value: object, second: str, second_value: object) -> None:
    if model.cfg.text.tie_word_embeddings and first_value != second_value:
        raise ConfigError(
            f"{first} is {first_value} and {second} {second_value}, where none means as the llm; the model's lm_head "
            "is its table of embeddings (tie_word_embeddings), one weight for both. Set both alike."
        )
