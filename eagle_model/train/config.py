"""What a training run is: frozen dataclasses, and the file that holds one.

config = override(recipes.tiny(), ["data.recipe=chats.jsonl", "max_steps=500"])     # eagle_model/fields.py
write_config(run / "config.json", config)
assert read_config(run / "config.json") == config
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from eagle_model.data.loader import DataConfig
from eagle_model.data.processor import ProcessorConfig
from eagle_model.fields import NOT_SET_BY_TEXT, ConfigError, few, from_json, require, to_json
from eagle_model.files import read_json, write_json
from eagle_model.model.lora_config import LoraConfig
from eagle_model.train.memory import MemoryConfig

VERSION = 2  # of run folders and their configs; raised when what was written before can no longer be read
MAX_CONFIG_BYTES = 1 << 20  # a config has some thousand bytes; what is larger is another file


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW, its learning rate warmed up linearly and then lowered by half a cosine."""

    learning_rate: float = 2e-5  # at the peak
    betas: tuple[float, float] = (0.9, 0.999)  # how much of the mean of gradients, and of their squares, a step keeps
    eps: float = 1e-8  # added to the root of the mean of squares
    weight_decay: float = 0.05  # of matrices; norms and biases do not decay
    warmup_ratio: float = 0.03  # of max_steps
    min_lr_ratio: float = 0.0  # where the cosine ends, as a share of learning_rate
    max_grad_norm: float = 1.0  # longer gradients are scaled down to it

    def __post_init__(self) -> None:
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "a number above 0")
        require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers from 0 to below 1")
        require(self.eps > 0, "eps", self.eps, "more than 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require(0 <= self.warmup_ratio <= 1, "warmup_ratio", self.warmup_ratio, "0 to 1")
        require(0 <= self.min_lr_ratio <= 1, "min_lr_ratio", self.min_lr_ratio, "0 to 1")
        require(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One run. A step takes rows_per_step rows, one after the other, and updates once."""

    recipe_name: str = field(default="", metadata=NOT_SET_BY_TEXT)  # of the recipe that this config began as
    model: str = "tiny"  # a preset, trained from scratch, or a folder that Eagle.from_pretrained loads
    tokenizer: str = ""  # a tokenizer.json; empty: the model folder's; for a preset, one trained on the recipe's text
    processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    data: DataConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_steps: int  # of the whole run, those before an interruption included
    rows_per_step: int = 1  # gradients of all rows add up; all their pixels are in memory at once
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the model's arithmetic; masters and moments are fp32
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    lora: LoraConfig | None = None  # train low-rank adapters on `model`, a folder then, and nothing else of it
    adapter: str = ""  # with lora: the folder of an adapter to go on from, PEFT's or a run's; lora must fit it
    base_weights: Literal["full", "nf4"] = "full"  # with lora: nf4 keeps the language model's in 4 bits (needs torchao)
    train_vision: bool = True  # false: its weights stay as they are
    train_connector: bool = True  # false: its weights stay as they are
    train_llm: bool = True  # false: its weights stay as they are, and those of the embeddings and lm_head
    seed: int = 0  # of a preset's first weights
    log_every_steps: int = 10  # on the terminal; metrics.jsonl has every step
    save_every_steps: int = 100  # a checkpoint
    keep_last: int = 3  # checkpoints; older ones of the run are deleted

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2**63 - 1")
        for name in ("max_steps", "rows_per_step", "log_every_steps", "save_every_steps", "keep_last"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(
            self.train_vision or self.train_connector or self.train_llm,
            "train_vision, train_connector and train_llm",
            "all false",
            "one of them true",
        )
        require(
            self.dtype == "bfloat16" or not self.memory.stochastic_rounding,
            "memory.stochastic_rounding",
            f"true with dtype={self.dtype}",
            "dtype=bfloat16: weights that are fp32 need no rounding",
        )
        if self.lora is None:
            require(not self.adapter, "adapter", self.adapter, "lora too, as lora.rank=16")
            require(self.base_weights == "full", "base_weights", self.base_weights, "lora too, as lora.rank=16")
        else:
            require(
                self.train_vision and self.train_connector and self.train_llm,
                "with lora, train_vision, train_connector or train_llm",
                "false",
                "them all true: lora.targets and lora.modules_to_save say what is trained",
            )


# What a resumed run may change, and no more: anything else would make it another run than the one that began.
CHANGEABLE_ON_RESUME = frozenset(
    {
        "max_steps",
        "log_every_steps",
        "save_every_steps",
        "keep_last",
        "data.recipe",  # the data may have moved; that it is the same data, the loader's state checks
        "data.num_workers",
        "data.num_decode_workers",
        "data.video_time_limit_seconds",
        "data.index_folder",
        "data.on_bad_sample",
    }
)


def write_config(path: Path, config: TrainConfig) -> None:
    """Writes a config as JSON with the version that it is written in, whole or not at all."""
    write_json(path, {"version": VERSION, "config": to_json(config)})


def read_config(path: Path) -> TrainConfig:
    """The config that `write_config` wrote: RUN/config.json, or training/config.json of a checkpoint.

    Raises: ConfigError when there is none, it is damaged, of another version, or has a field or value that is wrong.
    """
    if not path.is_file():
        raise ConfigError(
            f"{path} does not exist. Runs of version {VERSION} have that file; a run of an older version is continued "
            "with the version that began it."
        )
    try:
        raw = read_json(path, max_bytes=MAX_CONFIG_BYTES)
    except ValueError as error:
        raise ConfigError(f"{error} Every checkpoint holds it too: training/config.json.") from error
    version = raw.get("version", "none") if isinstance(raw, dict) else "none"
    if version != VERSION or "config" not in raw:
        raise ConfigError(
            f"{path} is no config of a run that this version reads: its version is {few([version])}, needs {VERSION}. "
            "Continue a run with the version that began it, or begin a new one."
        )
    try:
        return from_json(TrainConfig, raw["config"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
