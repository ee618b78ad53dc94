"""What a training run is: frozen dataclasses, overridden from the command line, saved as JSON, compared on resume."""

from __future__ import annotations

import difflib
import types
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from eagle_model.data.loader import DataConfig
from eagle_model.data.processor import ProcessorConfig

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A field that does not exist, or a value that it cannot take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a half cosine; see `optimizer.learning_rate`."""

    learning_rate: float = 2e-5  # at the peak
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.05  # of matrices; norms and biases do not decay
    warmup_ratio: float = 0.03  # of max_steps
    min_lr_ratio: float = 0.0  # where the cosine ends, as a share of learning_rate
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "more than 0")
        _require(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "two numbers from 0 to below 1")
        _require(self.eps > 0, "eps", self.eps, "more than 0")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")
        _require(0 <= self.warmup_ratio <= 1, "warmup_ratio", self.warmup_ratio, "0 to 1")
        _require(0 <= self.min_lr_ratio <= 1, "min_lr_ratio", self.min_lr_ratio, "0 to 1")
        _require(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "more than 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One run. A step takes rows_per_step rows, one after the other, and updates once."""

    model: str = "tiny"  # a preset, trained from scratch, or a folder that Eagle.from_pretrained loads
    tokenizer: str = (
        ""  # a tokenizer.json; empty: the model folder's, or for a preset one trained on the recipe's own text
    )
    processor: ProcessorConfig = field(default_factory=ProcessorConfig)
    data: DataConfig
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    max_steps: int
    rows_per_step: int = 1  # gradients of all rows add up; all their pixels are in memory at once
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the model's arithmetic; masters and moments are fp32
    checkpoint_activations: bool = False  # recompute activations in backward: less memory, a third more time
    train_vision: bool = True
    train_connector: bool = True
    train_llm: bool = True  # embeddings and lm_head with it
    seed: int = 0  # of a preset's first weights
    log_every_steps: int = 10  # on the terminal; metrics.jsonl has every step
    save_every_steps: int = 100
    keep_last: int = 3  # checkpoints

    def __post_init__(self) -> None:
        for name in ("max_steps", "rows_per_step", "log_every_steps", "save_every_steps", "keep_last"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        _require(
            self.train_vision or self.train_connector or self.train_llm,
            "train_vision, train_connector and train_llm",
            "all false",
            "one of them true",
        )


# A resumed run may differ from the interrupted one in these alone.
CHANGEABLE_ON_RESUME = frozenset(
    {
        "max_steps",
        "log_every_steps",
        "save_every_steps",
        "keep_last",
        "data.recipe",  # the data may have moved; that it is the same data, the loader's state checks
        "data.num_workers",
        "data.num_decode_workers",
        "data.index_folder",
        "data.on_bad_sample",
    }
)


def override(config: Config, assignments: Sequence[str]) -> Config:
    """`config` with each "path.to.field=value" applied, checked by name and by type; the last one to name a field wins.

    Values are written plainly: true, 3, 1e-4, any text, none where a field allows it, and 0.9,0.95 for a tuple.

    Raises: ConfigError that lists the fields there are, or says which type the field has.
    """
    raw = to_json(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{assignment!r} is no assignment; needs path.to.field=value, as in data.seed=1.")
        _assign(type(config), raw, path.strip().split("."), text.strip(), path.strip())
    return from_json(type(config), raw)  # built once: fields that are only right together may come in any order


def to_json(config: object) -> dict[str, Any]:
    """The config as JSON values; `from_json` gives it back."""
    return _plain(asdict(config))  # type: ignore[call-overload]


def from_json(kind: type[Config], raw: object, path: str = "") -> Config:
    """The dataclass that `to_json` wrote.

    Raises: ConfigError when a field is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(raw, dict):
        raise ConfigError(f"{path or kind.__name__} is {raw!r}; needs an object with the fields of {kind.__name__}.")
    hints = get_type_hints(kind)
    for name in raw:
        if name not in hints:
            raise ConfigError(_unknown(_join(path, name), name, list(hints)))
    for f in fields(kind):  # type: ignore[arg-type]
        if f.name not in raw and f.default is MISSING and f.default_factory is MISSING:
            raise ConfigError(f"{_join(path, f.name)} is missing; {kind.__name__} needs it.")
    return kind(**{name: _from_plain(hints[name], value, _join(path, name)) for name, value in raw.items()})


def diff(old: object, new: object) -> dict[str, tuple[object, object]]:
    """The fields in which two configs of one kind differ: {"data.seed": (old value, new value)}."""
    before, after = _flat(old), _flat(new)
    return {path: (before[path], after[path]) for path in before if before[path] != after[path]}


def _require(ok: bool, name: str, got: object, need: str) -> None:
    if not ok:
        raise ConfigError(f"{name} is {got}; needs {need}.")


def _assign(kind: Any, raw: dict[str, Any], names: list[str], text: str, path: str) -> None:
    hints = get_type_hints(kind)
    name, rest = names[0], names[1:]
    if name not in hints:
        raise ConfigError(_unknown(path, name, list(hints)))
    if not is_dataclass(hints[name]):
        if rest:
            raise ConfigError(f"{path}: {name} is {_type_name(hints[name])} and has no fields.")
        raw[name] = _parse(hints[name], text, path)
    elif rest:
        _assign(hints[name], raw[name], rest, text, path)
    else:
        inner = ", ".join(f"{path}.{f.name}" for f in fields(hints[name]))
        raise ConfigError(f"{path} is a group of fields; set one of {inner}.")


def _unknown(path: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"{path}: there is no field {name}.{hint} The fields are {', '.join(known)}."


def _parse(kind: Any, text: str, path: str) -> Any:
    """A value of type `kind` from what stands behind the "="."""
    problem = ConfigError(f"{path} is {text!r}; needs {_type_name(kind)}.")
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise problem
        return text
    if get_origin(kind) in (Union, types.UnionType):
        if text.lower() == "none":
            return None
        return _parse(_without_none(kind), text, path)
    if get_origin(kind) is tuple:
        parts, kinds = text.split(","), get_args(kind)
        if len(parts) != len(kinds):
            raise problem
        return tuple(_parse(k, part.strip(), path) for k, part in zip(kinds, parts, strict=True))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise problem
        return text.lower() == "true"
    if kind is str:
        return text
    try:
        return kind(text)
    except ValueError:
        raise problem from None


def _from_plain(kind: Any, value: Any, path: str) -> Any:
    """A value of type `kind` from a JSON value."""
    if is_dataclass(kind):
        return from_json(kind, value, path)  # type: ignore[arg-type]
    problem = ConfigError(f"{path} is {value!r}; needs {_type_name(kind)}.")
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise problem
        return value
    if get_origin(kind) in (Union, types.UnionType):
        return None if value is None else _from_plain(_without_none(kind), value, path)
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, (list, tuple)) or len(value) != len(kinds):
            raise problem
        return tuple(_from_plain(k, v, path) for k, v in zip(kinds, value, strict=True))
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:  # exactly: True is no int here
        raise problem
    return value


def _without_none(kind: Any) -> Any:
    (inner,) = (k for k in get_args(kind) if k is not types.NoneType)
    return inner


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return f"{_type_name(_without_none(kind))} or none"
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} values, each {_type_name(get_args(kind)[0])}, separated by commas"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _flat(config: object, path: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for f in fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        found |= _flat(value, _join(path, f.name)) if is_dataclass(value) else {_join(path, f.name): value}
    return found


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
