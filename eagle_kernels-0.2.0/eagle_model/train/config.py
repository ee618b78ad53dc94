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
from eagle_model.model.fp8_config import Fp8Config
from eagle_model.model.lora_config import LoraConfig
from eagle_model.train.guards import GuardsConfig
from eagle_model.train.layout import Layout
from eagle_model.train.memory import MemoryConfig
from eagle_model.train.sinks import LoggingConfig

VERSION = 4  # of run folders and their configs; raised when what was written before can no longer be read
MAX_CONFIG_BYTES = 1 << 20  # a config has some thousand bytes; what is larger is another file


@dataclass(frozen=True, kw_only=True, slots=True)
class Multipliers:
    """What the learning rate of each part is multiplied by."""

    vision: float = 1.0  # the tower
    connector: float = 1.0  # between the tower and the llm
    llm: float = 1.0  # its layers and the norm after them
    embeddings: float | None = None  # of tokens; none: the llm's
    lm_head: float | None = None  # none: the llm's. Where it is the table of embeddings (tied), both must be equal

    def __post_init__(self) -> None:
        for name in ("vision", "connector", "llm", "embeddings", "lm_head"):
            value = getattr(self, name)
            require(value is None or 0 < value < math.inf, name, value, "a number above 0 (train_... freezes a part)")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW, its learning rate warmed up linearly and then lowered as `schedule` says."""

    learning_rate: float = 2e-5  # at the peak
    multipliers: Multipliers = field(default_factory=Multipliers)
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"  # wsd: constant, then linear over decay_ratio
    betas: tuple[float, float] = (0.9, 0.999)  # how much of the mean of gradients, and of their squares, a step keeps
    eps: float = 1e-8  # added to the root of the mean of squares
    weight_decay: float = 0.05  # of matrices, embeddings too; norms and biases do not decay
    warmup_ratio: float = 0.03  # of all steps
    decay_ratio: float = 0.1  # with wsd: of all steps, the last ones, in which the learning rate falls
    min_lr_ratio: float = 0.0  # where the schedule ends, as a share of learning_rate; a constant one stays at it
    max_grad_norm: float = 1.0  # longer gradients are scaled down to it

    def __post_init__(self) -> None:
        require(0 < self.learning_rate < math.inf, "learning_rate", self.learning_rate, "a number above 0")
        require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers from 0 to below 1")
        require(self.eps > 0, "eps", self.eps, "more than 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        require(0 <= self.warmup_ratio <= 1, "warmup_ratio", self.warmup_ratio, "0 to 1")
        require(0 < self.decay_ratio <= 1, "decay_ratio", self.decay_ratio, "more than 0, and 1 at most")
        together = self.warmup_ratio + self.decay_ratio
        require(
            self.schedule != "wsd" or together <= 1,
            "warmup_ratio + decay_ratio",
            together,
            "1 at most with schedule=wsd",
        )
        require(0 <= self.min_lr_ratio <= 1, "min_lr_ratio", self.min_lr_ratio, "0 to 1")
        require(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    """The loss on data that are not trained on: when it is computed, and what follows from it (validation.py)."""

    recipe: str  # the held-out data: an Eagle recipe or an annotation file
    every_steps: int = 100  # and after the last step
    max_rows: int | None = None  # the first so many packed rows; none: all
    keep_best: bool = True  # the checkpoint of the lowest loss, as checkpoints/best-<step>, beside keep_last
    patience: int | None = None  # end the run after so many validations in a row without a lower loss; none: never
    min_improvement: float = 0.0  # nats a token by which a loss must be lower than the lowest to count as lower

    def __post_init__(self) -> None:
        require(bool(self.recipe), "recipe", "empty", "a recipe or an annotation file of held-out data")
        for name in ("every_steps", "max_rows", "patience"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "1 or more")
        require(0 <= self.min_improvement < math.inf, "min_improvement", self.min_improvement, "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswersConfig:
    """A few fixed questions that the model answers now and then: answers.jsonl, and the report (answers.py)."""

    prompts: str  # an annotation file; what its last turn answers is asked, and the answer shown beside the model's
    every_steps: int = 100  # and after the last step
    max_new_tokens: int = 64  # of an answer

    def __post_init__(self) -> None:
        require(bool(self.prompts), "prompts", "empty", "an annotation file")
        for name in ("every_steps", "max_new_tokens"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One run, for max_steps or num_epochs. A step takes rows_per_step rows, one after the other, and updates once."""

    recipe_name: str = field(default="", metadata=NOT_SET_BY_TEXT)  # of the recipe that this config began as
    model: str = "tiny"  # a preset, trained from scratch, or a folder that Eagle.from_pretrained loads
    tokenizer: str = ""  # a tokenizer.json; empty: the model folder's; for a preset, one trained on the recipe's text
    processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    data: DataConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_steps: int | None = None  # of the whole run, those before an interruption included; none: num_epochs says
    num_epochs: int | None = None  # times that all samples are seen, in place of max_steps
    rows_per_step: int = 1  # gradients of all rows add up; one row's pixels are in memory at once, and those read ahead
    loss_per: Literal["sample", "turn"] = (
        "sample"  # what counts as the square root of its length: a sample or an answer
    )
    neftune_alpha: float = 0.0  # size of the noise on token embeddings (NEFTune; 5 is usual); 0: none
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the model's arithmetic; masters and moments are fp32
    layout: Layout = field(default_factory=Layout)  # over how many processes, and how; numbers do not depend on it
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    lora: LoraConfig | None = None  # train low-rank adapters on `model`, a folder then, and nothing else of it
    adapter: str = ""  # with lora: the folder of an adapter to go on from, PEFT's or a run's; lora must fit it
    base_weights: Literal["full", "nf4"] = "full"  # with lora: nf4 keeps the language model's in 4 bits (needs torchao)
    fp8: Fp8Config | None = None  # the language model's projections in FP8 (docs/fp8.md); none: in dtype
    train_vision: bool = True  # false: its weights stay as they are
    train_connector: bool = True  # false: its weights stay as they are
    train_llm: bool = True  # false: its weights stay as they are
    train_embeddings: bool | None = None  # of tokens; none: as train_llm
    train_lm_head: bool | None = None  # none: as train_llm. Where it is the table of embeddings, both must be equal
    max_position_embeddings: int | None = None  # the model's is raised to it (no weight changes); none: as the model's
    validation: ValidationConfig | None = None  # the loss on held-out data
    answers: AnswersConfig | None = None  # an early look at what the model says
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    seed: int = 0  # of a preset's first weights, and of NEFTune's noise
    compile: bool = False  # each layer by torch.compile: minutes in the first step; not shown to help so far
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    log_every_steps: int = 10  # on the terminal; metrics.jsonl has every step
    save_every_steps: int = 100  # a checkpoint
    save_every_minutes: float | None = None  # a checkpoint too, so many minutes after the last; none: by steps alone
    save_in_background: bool = True  # saves are copied and written while training goes on; false: the copy's memory
    time_limit_minutes: float | None = None  # of the job, from its start: in good time the run saves, and stops
    keep_last: int = 3  # checkpoints; older ones of the run are deleted

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2**63 - 1")
        for name in ("max_steps", "num_epochs", "rows_per_step", "log_every_steps", "save_every_steps", "keep_last"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "1 or more")
        require(
            (self.max_steps is None) != (self.num_epochs is None),
            "max_steps and num_epochs",
            f"{self.max_steps or 'none'} and {self.num_epochs or 'none'}",
            "one of the two; set the other to none",
        )
        for name in ("save_every_minutes", "time_limit_minutes"):
            minutes = getattr(self, name)
            require(minutes is None or 0 < minutes < math.inf, name, minutes, "a number above 0, or none")
        require(0 <= self.neftune_alpha < math.inf, "neftune_alpha", self.neftune_alpha, "0 or more")
        positions, context = self.max_position_embeddings, self.processor.sampling.context_tokens
        require(
            positions is None or positions >= context,
            "max_position_embeddings",
            positions,
            f"processor.sampling.context_tokens, {context}, or more, or none",
        )
        require(
            any((self.train_vision, self.train_connector, self.train_llm, self.train_embeddings, self.train_lm_head)),
            "train_vision, train_connector and train_llm",
            "all false",
            "one of them true",
        )
        if self.fp8 is not None:
            self.fp8.check_run(dtype=self.dtype, base_weights=self.base_weights, has_lora=self.lora is not None)
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
            for name in ("train_embeddings", "train_lm_head"):
                require(
                    getattr(self, name) is None, f"with lora, {name}", getattr(self, name), "none: see lora.targets"
                )

    @property
    def tokens_per_step(self) -> int:
        """The most tokens that a step takes; packed rows are nearly full, so the mean is close to it."""
        return self.rows_per_step * self.processor.sampling.context_tokens


# What a resumed run may change, and no more: anything else would make it another run than the one that began.
CHANGEABLE_ON_RESUME = frozenset(
    {
        "max_steps",
        "num_epochs",
        "validation",  # it changes no weight; where its data change, the lowest loss is looked for anew
        "validation.recipe",
        "validation.every_steps",
        "validation.max_rows",
        "validation.keep_best",
        "validation.patience",
        "validation.min_improvement",
        "answers",
        "answers.prompts",
        "answers.every_steps",
        "answers.max_new_tokens",
        "logging.tensorboard",
        "logging.wandb_project",
        "logging.wandb_mode",
        "guards.max_not_finite",
        "guards.spike_score",
        "guards.spike_steps",
        "guards.hang_minutes",
        "layout.replicate",  # a step is the same over any number of processes
        "layout.shard",
        "layout.context",
        "layout.ulysses",
        "layout.method",
        "layout.vocab_parallel",
        "log_every_steps",
        "save_every_steps",
        "save_every_minutes",
        "save_in_background",
        "time_limit_minutes",
        "keep_last",
        "data.recipe",  # the data may have moved; that it is the same data, the loader's state checks
        "data.workers",
        "data.num_workers",
        "data.prefetch_bytes",
        "data.num_decode_workers",
        "data.video_time_limit_seconds",
        "data.index_folder",
        "data.on_bad_sample",
        "data.remote",  # a URL says what is read; these, who may be asked and how
        "data.remote.prefixes",
        "data.remote.cache_folder",
        "data.remote.cache_bytes",
        "data.remote.timeout_seconds",
        "data.remote.num_retries",
        "data.remote.num_requests",
        "data.remote.s3_endpoint",
        "data.remote.anonymous",
    }
)


def write_config(path: Path, config: TrainConfig) -> None:
    """Writes a config as JSON with the version that it is written in, whole or not at all."""
    write_json(path, {"version": VERSION, "config": to_json(config)})


def read_config(path: Path) -> TrainConfig:
    """The config that `write_config` wrote: RUN/config.json, or training/config.json of a checkpoint.

    Raises: ConfigError when there is none, it is damaged, of another version, or has a field or value that is wrong.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; needs the file that a run keeps its config in.")
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
