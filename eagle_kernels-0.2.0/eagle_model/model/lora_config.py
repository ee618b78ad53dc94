"""What low-rank adapters are, and how PEFT's adapter_config.json says it.

    config = LoraConfig(rank=8, alpha=16, targets=("q_proj", "v_proj"))
    config.adapted(["a.q_proj", "a.k_proj"])           # {"a.q_proj": (8, 2.0)}: rank and scale
    fields = to_peft(config, ["a.q_proj"])             # what adapter_config.json holds
    config, other = from_peft(fields, {"a.q_proj": 8})  # other: what it holds beside, which changes nothing here

Names are those of the release: `language_model.model.layers.0.self_attn.q_proj`. A pattern is such a name, how one ends
after a dot (q_proj), or a regular expression. Expressions in a file are anybody's, and one can be made that is matched
for years: those are never run. Files that are written here have none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from eagle_model.fields import ConfigError, from_json, require, shown

ALL_LINEAR = "all-linear"  # PEFT's word for every projection
_NAME = re.compile(r"\^?[\w.-]+")  # what is no regular expression; ^ says that nothing may stand before it

_OURS = {  # PEFT's name of a field: ours
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "modules_to_save": "modules_to_save",
}
_DEFAULTS: dict[str, Any] = {"rank": 8, "alpha": 8, "dropout": 0.0}  # PEFT's, where a file says nothing
# What is computed here, and nothing else: a file that has the field must hold one of these.
_ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # others change the weights under the adapter
    **dict.fromkeys(
        (
            "alora_invocation_tokens", "arrow_config", "fan_in_fan_out", "kasa_config", "layer_replication",
            "lora_bias", "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora",
            "use_qalora", "velora_config",
        ),
        (None, False, [], {}),
    ),
}  # fmt: skip
# Fields that leave out some of the target_modules: which are left the tensors say.
NARROWING = ("exclude_modules", "layers_to_transform")
# Fields that change nothing that is computed; they are kept.
_FREE = {
    *NARROWING, "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "inference_mode", "layers_pattern", "loftq_config", "lora_ga_config", "megatron_config", "megatron_core",
    "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Low-rank adapters: how large, and on which projections."""

    rank: int = 16  # the adapter of a projection from C to R has rank * (C + R) numbers
    alpha: float = 32.0  # what an adapter adds is scaled by alpha / rank
    dropout: float = 0.05  # share of an adapter's inputs that are left out in training
    targets: tuple[str, ...] = (r"language_model\..*_proj",)  # q_proj, regular expressions of names, or all-linear
    rank_pattern: tuple[
        tuple[str, int], ...
    ] = ()  # another rank for some, as [["k_proj", 4]]; the first that fits counts
    alpha_pattern: tuple[tuple[str, float], ...] = ()  # another alpha for some
    rslora: bool = False  # scale by alpha / sqrt(rank) instead: for a large rank
    dora: bool = False  # train the length of each row beside its direction: slower, better at a small rank
    init: Literal["kaiming", "gaussian"] = "kaiming"  # how A is drawn; B begins as 0
    modules_to_save: tuple[str, ...] = ()  # trained whole: names or parts of names, as mlp1 (the connector)

    def __post_init__(self) -> None:
        require(self.rank >= 1, "rank", self.rank, "1 or more")
        require(0 < self.alpha < math.inf, "alpha", self.alpha, "a number above 0")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "0 to below 1")
        require(bool(self.targets), "targets", "empty", "a name or a pattern, as q_proj")
        for pattern, rank in self.rank_pattern:
            require(rank >= 1, f"rank_pattern of {shown(pattern)}", rank, "1 or more")
        for pattern, alpha in self.alpha_pattern:
            require(0 < alpha < math.inf, f"alpha_pattern of {shown(pattern)}", alpha, "a number above 0")
        for name in ("targets", "rank_pattern", "alpha_pattern"):
            for item in getattr(self, name):
                pattern = item if isinstance(item, str) else item[0]
                try:
                    re.compile(pattern)
                except (re.error, OverflowError, RecursionError) as error:
                    raise ConfigError(f"{name} has {shown(pattern)}; needs a regular expression ({error}).") from None

    def adapted(self, names: Iterable[str]) -> dict[str, tuple[int, float]]:
        """(rank, scale) of each module that gets an adapter, of those with these names."""
        found = {}
        for name in names:
            if any(_is_target(pattern, name) for pattern in self.targets) and not self.saves(name):
                rank = _value(self.rank_pattern, name, self.rank)
                found[name] = (rank, self.alpha_of(name) / (math.sqrt(rank) if self.rslora else rank))
        return found

    def saves(self, module: str) -> bool:
        """Whether a module of this name gets no adapter, as modules_to_save has it, or one that holds it."""
        return any(f".{name}." in f".{module}." for name in self.modules_to_save)

    def trains_whole(self, module: str) -> list[str]:
        """The names in modules_to_save by which a module is trained whole. By PEFT's rule its name, or that of one that
        holds it, need only end so: `norm` has `input_layernorm` too."""
        parts = module.split(".")
        holders = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return [name for name in self.modules_to_save if any(holder.endswith(name) for holder in holders)]

    def alpha_of(self, module: str) -> float:
        return _value(self.alpha_pattern, module, self.alpha)


def to_peft(config: LoraConfig, names: Sequence[str]) -> dict[str, Any]:
    """The fields of adapter_config.json for adapters of the modules with these names."""
    is_plain = all(map(_is_name, config.targets)) and ALL_LINEAR not in config.targets  # which counts lm_head to PEFT
    targets = [*config.targets] if is_plain else [*names]
    return {
        "peft_type": "LORA",
        "task_type": None,
        "inference_mode": True,  # PEFT's word for: frozen when it is loaded, unless it is told otherwise
        "r": config.rank,
        "lora_alpha": _short(config.alpha),
        "lora_dropout": config.dropout,
        "target_modules": targets,
        "rank_pattern": _without_expressions(config.rank_pattern, names),
        "alpha_pattern": _without_expressions(config.alpha_pattern, names),
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "init_lora_weights": True if config.init == "kaiming" else config.init,
        "modules_to_save": list(config.modules_to_save) or None,
        "bias": "none",
        "fan_in_fan_out": False,
    }


def from_peft(fields: Mapping[str, Any], ranks: Mapping[str, int]) -> tuple[LoraConfig, dict[str, Any]]:
    """The config that adapter_config.json means, and its other fields, which change nothing that is computed.

    ranks: of the adapters that the tensors beside it have, by their modules' names. They stand in for the expressions
    that the file may have for names and ranks; these are then among the other fields.

    Raises: ConfigError that names the field which is missing, damaged or unknown, or asks for another computation.
    """
    require(fields.get("peft_type") == "LORA", "peft_type", shown(fields.get("peft_type")), "'LORA'")
    for name, value in fields.items():
        allowed = _ONLY.get(name, (value,) if name in _OURS or name in _FREE else (None, False, [], {}))
        require(value in allowed, name, shown(value), " or ".join(map(repr, allowed[:2])) + ", what is computed here")
    known = _DEFAULTS | {ours: fields[name] for name, ours in _OURS.items() if fields.get(name) is not None}
    other = {name: value for name, value in fields.items() if name not in _OURS}
    targets = known.get("targets")
    is_narrowed = any(fields.get(name) not in (None, []) for name in NARROWING)
    if isinstance(targets, str):
        known["targets"], other["target_modules"] = [*ranks], targets
    elif targets is None:
        raise ConfigError("target_modules is None; needs names of modules, or one regular expression.")
    elif isinstance(targets, list) and not all(isinstance(name, str) and _is_name(name) for name in targets):
        raise ConfigError(f"target_modules is {shown(targets)}; needs names of modules, or one regular expression.")
    elif is_narrowed:
        known["targets"], other["target_modules"] = [*ranks], targets
    for name in ("rank_pattern", "alpha_pattern"):
        patterns = known.get(name, {})
        require(isinstance(patterns, dict), name, shown(patterns), "an object of names and numbers")
        known[name] = list(map(list, patterns.items()))
        if expressions := [pattern for pattern in patterns if not _is_name(pattern)]:
            if name == "alpha_pattern":
                raise ConfigError(f"{name} has {shown(expressions[0])}; needs names of modules, not expressions.")
            known[name], other[name] = [[f"^{module}", rank] for module, rank in ranks.items()], patterns
    init = "gaussian" if fields.get("init_lora_weights") == "gaussian" else "kaiming"
    return from_json(LoraConfig, {**known, "init": init}), other


def renamed(config: LoraConfig, parts: Mapping[str, Sequence[str]], whole: Sequence[str]) -> LoraConfig:
    """The same adapters under other names of modules.

    parts: what each module with an adapter is there, one or several.  whole: what modules_to_save is there.
    """
    found = {part: (name, rank) for name, (rank, _) in config.adapted(parts).items() for part in parts[name]}
    alphas = {part: config.alpha_of(name) for part, (name, _) in found.items()}
    return replace(
        config,
        targets=tuple(found),
        rank_pattern=tuple((f"^{part}", rank) for part, (_, rank) in found.items() if rank != config.rank),
        alpha_pattern=tuple((f"^{part}", alpha) for part, alpha in alphas.items() if alpha != config.alpha),
        modules_to_save=tuple(whole),
    )


def _is_name(pattern: str) -> bool:
    return _NAME.fullmatch(pattern) is not None


def _is_target(pattern: str, name: str) -> bool:
    """By PEFT's rule for target_modules: a name, how one ends after a dot, or an expression of the whole."""
    if pattern == ALL_LINEAR:
        return True
    return _ends(pattern, name) if _is_name(pattern) else re.fullmatch(pattern, name) is not None


def _ends(pattern: str, name: str) -> bool:
    """By PEFT's rule for rank_pattern and alpha_pattern: a name, how one ends after a dot, or an expression of that."""
    if _is_name(pattern):
        return name == pattern[1:] if pattern[0] == "^" else f".{name}".endswith(f".{pattern}")
    return re.fullmatch(rf"(.*\.)?({pattern})", name) is not None


def _value(patterns: Sequence[tuple[str, Any]], name: str, default: Any) -> Any:
    return next((value for pattern, value in patterns if _ends(pattern, name)), default)


def _without_expressions(patterns: Sequence[tuple[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    written = {pattern: _short(value) for pattern, value in patterns}
    # The first that fits counts, and JSON is written sorted: an order that this would change is written name by name.
    if all(map(_is_name, written)) and list(written) == sorted(written):
        return written
    values = {name: _value(patterns, name, None) for name in names}
    return {name: _short(value) for name, value in values.items() if value is not None}


def _short(value: float) -> float:
    """16 for 16.0: PEFT says that alpha is a whole number, though it takes any."""
    return int(value) if value == int(value) else value
