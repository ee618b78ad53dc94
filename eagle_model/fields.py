"""Configs are frozen dataclasses; this file sets their fields from text, saves them as JSON and compares them.

config = override(recipe("tiny"), ["max_steps=500", "optimizer.betas=0.9,0.95"])   # as `--set` does
assert from_json(TrainConfig, to_json(config)) == config
diff(recipe("tiny"), config)       # {"optimizer.betas": ((0.9, 0.999), (0.9, 0.95)), "max_steps": (1000, 500)}
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A field that does not exist, or a value that it cannot take."""


def require(ok: bool, name: str, got: object, need: str) -> None:
    """Raises ConfigError "`name` is `got`; needs `need`." unless `ok`; for a config's own checks."""
    if not ok:
        raise ConfigError(f"{name} is {got}; needs {need}.")


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
    """A value of type `kind` from what stands after the "="."""
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
