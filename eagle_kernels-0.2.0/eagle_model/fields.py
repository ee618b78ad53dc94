"""Configs are frozen dataclasses; this file sets their fields from text, lists them, saves them as JSON, compares them.

    config = override(tiny(), ["max_steps=500", "optimizer.betas=0.9,0.99"])     # as `eagle train --set` does
    listing(config)                        # [("max_steps=500", "of the whole run (a whole number)"), ...]
    assert from_json(TrainConfig, to_json(config)) == config
    diff(tiny(), config)                   # {"optimizer.betas": ((0.9, 0.95), (0.9, 0.99)), "max_steps": (1000, 500)}

A field is true or false, a number, a text, one of a `Literal`'s values, a group (a dataclass), or a tuple of these, of
fixed length or of any; each may be optional (`| None`). A path names it: `optimizer.betas`, `groups.0.learning_rate`.
Values are written plainly: true, 3, 1e-4, any text, none; 0.9,0.95 for a tuple, nothing for an empty one. Groups and
tuples may also be JSON, as in lora={"rank": 8} and groups=[{"name": "llm"}], and so may a text that would be taken for
something else: "none" with its quotes is the word. A field whose metadata is NOT_SET_BY_TEXT, a name that its maker
gives, is no setting: text does not set it. What a field means says the comment on its own lines of the source.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import io
import json
import re
import textwrap
import tokenize
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Config = TypeVar("Config")
MAX_SHOWN_CHARS = 100  # of a wrong value in an error: enough to find it, and the sentence stays a sentence
MAX_NAMES = 20  # of a list in an error: a page of them hides the sentence
MAX_HINTS = 3  # of what may be meant: a choice, not a list
NOT_SET_BY_TEXT = {"set": False}


class ConfigError(ValueError):
    """A field that does not exist, or a value that it cannot take."""


def require(ok: bool, name: str, got: object, need: str) -> None:
    """Raises ConfigError "`name` is `got`; needs `need`." unless `ok`; for a config's own checks."""
    if not ok:
        raise ConfigError(f"{name} is {got}; needs {need}.")


def few(names: Iterable[object]) -> str:
    """Names for a message, however many and long: "a, b, c", or the first MAX_NAMES "and 5,945 more"."""
    texts = [str(name) for name in names]
    joined = ", ".join(_cut(text if text.isprintable() else ascii(text)) for text in texts[:MAX_NAMES])
    return f"{joined} and {len(texts) - MAX_NAMES:,} more" if len(texts) > MAX_NAMES else joined


def shown(value: object) -> str:
    """A value for a message, however long or deep."""
    try:
        return _cut(repr(value))
    except RecursionError:
        return f"{type(value).__name__} in {type(value).__name__}, and so on"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


# ---- text


def override(config: Config, assignments: Sequence[str]) -> Config:
    """`config` with each "path.to.field=value" applied, checked by name and by type; the last one to name a field wins.

    A field of a group that is none makes the group, with its other fields' defaults. A tuple's item is set by its
    number, from 0; the number after the last adds an item.

    Example: override(config, ["lora.rank=8", "groups.0.learning_rate=1e-5", "data.index_folder=none"])
    Raises:  ConfigError that lists the fields there are, and which may be meant, or says which type the field has.
    """
    kind, raw = type(config), to_json(config)
    for assignment in assignments:
        path, equals, text = (part.strip() for part in assignment.partition("="))
        if not (equals and path):
            raise ConfigError(f"{shown(assignment)} is no assignment; needs path.to.field=value, as in data.seed=1.")
        raw = _assign(kind, raw, [], path.split("."), text, kind)
    return from_json(kind, raw)  # built once: fields that are only right together may come in any order


def to_text(value: object) -> str:
    """The text that `override` reads as this value of a field.

    Example: to_text((0.9, 0.95)) == "0.9,0.95"; to_text(None) == "none"; to_text("none") == '"none"'
    """
    if isinstance(value, tuple):
        parts = [to_text(part) for part in value]
        if all(part and "," not in part and part[0] not in '[{"' for part in parts):
            return ",".join(parts)
    if isinstance(value, tuple) or is_dataclass(value):
        return json.dumps(_plain(value), ensure_ascii=False)
    if isinstance(value, str):
        is_plain = value == value.strip() and value.isprintable() and value[:1] != '"' and value.lower() != "none"
        return value if is_plain else json.dumps(value, ensure_ascii=False)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def listing(config: object) -> list[tuple[str, str]]:
    """What `override` would take for each field of a config, and what the field means, with its type.

    A group begins with an empty assignment and its own meaning. What stands after "# " is not set: the fields of a
    group that is none, and of one more item of a tuple of groups.

    Example: listing(tiny())[0] == ("model=tiny", "a preset, or the folder of a model (text)")
    """
    return list(_listed(config, "", ""))


def near_misses(kind: type, path: str) -> list[str]:
    """The fields of this kind of config that `path` may mean: itself, else the likeliest ones, or none.

    Example: near_misses(TrainConfig, "lr") == ["optimizer.learning_rate"]
    """
    parent, _, name = path.rpartition(".")
    if len(path) > MAX_SHOWN_CHARS:  # no field's, and long to compare
        return []
    first_item = re.sub(r"\b\d+\b", "0", parent)  # the paths below name the first item of each tuple
    names = {p: p.rpartition(".")[2] for p in _paths(kind, "")}
    beside = {p: n for p, n in names.items() if p == _join(first_item, n)}
    likely = (
        [p for p in names if p == path],
        [p for p, n in names.items() if n == name],  # the right name in the wrong group
        *(_short_for(name, among) for among in (beside, names)),  # before what is spelled like it: lr is no lora
        *(alike(name, among) for among in (beside, names) for alike in (_spelled_alike, _part_of)),
    )
    hints = next(filter(None, likely), [])[:MAX_HINTS]
    return [parent + hint.removeprefix(first_item) if hint in beside else hint for hint in hints]


# ---- JSON


def to_json(config: object) -> dict[str, Any]:
    """The config as JSON values; `from_json` gives it back."""
    return {f.name: _plain(getattr(config, f.name)) for f in fields(config)}  # type: ignore[arg-type]


def from_json(kind: type[Config], raw: object) -> Config:
    """The dataclass that `to_json` wrote; a field that is absent takes its default.

    Raises: ConfigError when a field is unknown or missing, or a value has the wrong type or fails the config's checks.
    """
    return _from_plain(kind, raw, "", kind)


def diff(old: object, new: object) -> dict[str, tuple[object, object]]:
    """The fields in which two configs of one kind differ: {"data.seed": (old value, new value)}."""
    return dict(_differences(old, new, ""))


# ---- the parts of text


def _assign(kind: Any, raw: Any, at: list[str], names: list[str], text: str, root: type) -> Any:
    """`raw`, the JSON of a field of `kind` at the path `at`, with the field that `names` lead to read from `text`."""
    inner, path = _without_none(kind), ".".join([*at, *names])
    if not names:
        return _parse(kind, text, path)
    here, name, rest = ".".join(at), names[0], names[1:]
    if is_dataclass(inner):
        hints = get_type_hints(inner)
        if name not in hints:
            settings = [known for known in hints if _is_setting(inner, known)]
            raise ConfigError(_unknown(root, path, [*at, name], settings))
        if not _is_setting(inner, name):
            raise ConfigError(f"{path} is {shown((raw or {}).get(name))} and cannot be set; leave it out.")
        if raw is None:  # a group that was not there
            raw = {f.name: _plain(_default(f)) for f in fields(inner) if _has_default(f)}
        return {**raw, name: _assign(hints[name], raw.get(name), [*at, name], rest, text, root)}
    if get_origin(inner) is tuple:
        items = list(raw or ())
        number = int(name) if name.isdecimal() and len(name) < 10 else -1
        if not 0 <= number < len(items) + _is_variadic(inner):
            count = f"{here} has {len(items)} items, numbered from 0"
            raise ConfigError(f"{few([path])}: {count}; there is no item {few([name])}.")
        item_kind = get_args(inner)[0 if _is_variadic(inner) else number]
        item = items[number] if number < len(items) else None
        items[number : number + 1] = [_assign(item_kind, item, [*at, name], rest, text, root)]
        return items
    raise ConfigError(f"{few([path])}: {at[-1]} is {_type_name(inner)} and has no fields.")


def _parse(kind: Any, text: str, path: str) -> Any:
    """The JSON value that `text` stands for in a field of `kind`; the text itself where it fits none, for an error."""
    if _without_none(kind) is not kind:
        return None if text.lower() == "none" else _parse(_without_none(kind), text, path)
    opening = {str: '"', Literal: '"', tuple: "["}.get(get_origin(kind) or kind, "{" if is_dataclass(kind) else None)
    if opening and text.startswith(opening):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    if is_dataclass(kind):
        inner = ", ".join(_join(path, f.name) for f in fields(kind))
        raise ConfigError(f"{path} is a group of fields; set one of {inner}.")
    if get_origin(kind) is tuple:
        parts = [part.strip() for part in text.split(",")] if text else []
        items = _items(kind, path, len(parts))
        return [_parse(k, part, p) for (k, p), part in zip(items, parts)] if len(items) == len(parts) else text
    if get_origin(kind) is Literal:
        return {str(choice): choice for choice in get_args(kind)}.get(text, text)
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text)
    except ValueError:
        return text


def _unknown(root: type, path: str, known_to: list[str], names: Iterable[str]) -> str:
    likely = near_misses(root, path) or near_misses(root, ".".join(known_to))
    hint = f" Did you mean {' or '.join(likely)}?" if likely else ""
    return f"{few([path])}: there is no field {few([known_to[-1]])}.{hint} The fields are {few(names)}."


def _spelled_alike(name: str, names: dict[str, str]) -> list[str]:
    close = difflib.get_close_matches(name, names.values(), n=1)
    return [path for path, known in names.items() if known in close]


def _short_for(name: str, names: dict[str, str]) -> list[str]:
    """lr: learning_rate."""
    return [path for path, n in names.items() if len(name) > 1 and name == "".join(w[:1] for w in n.split("_"))]


def _part_of(name: str, names: dict[str, str]) -> list[str]:
    """grad_norm: max_grad_norm."""
    return [path for path, known in names.items() if set(name.split("_")) <= set(known.split("_"))]


def _paths(kind: Any, path: str) -> Iterator[str]:
    """Every field and group of a kind of config, by its path; of a tuple of groups, the first item's."""
    inner = _without_none(kind)
    if get_origin(inner) is tuple and is_dataclass(_without_none(get_args(inner)[0])):
        yield from _paths(get_args(inner)[0], f"{path}.0")
    elif is_dataclass(inner):
        for name, hint in get_type_hints(inner).items():
            if not _is_setting(inner, name):
                continue
            yield _join(path, name)
            yield from _paths(hint, _join(path, name))


def _listed(group: object, path: str, mark: str) -> Iterator[tuple[str, str]]:
    kind = group if isinstance(group, type) else type(group)
    hints, meanings = get_type_hints(kind), _meanings(kind)
    own = [f for f in fields(kind) if _is_setting(kind, f.name)]
    for f in sorted(own, key=lambda f: is_dataclass(hints[f.name])):  # a group's own fields before its groups
        here, inner = _join(path, f.name), _without_none(hints[f.name])
        value = _default(f) if isinstance(group, type) else getattr(group, f.name)
        about = " ".join(filter(None, [meanings.get(f.name), f"({_type_name(hints[f.name])})"]))
        item = _without_none(get_args(inner)[0]) if get_origin(inner) is tuple else None
        if is_dataclass(inner) and value is not None:
            yield "", f"{here}: {meanings.get(f.name) or _first_line(inner)}"
            yield from _listed(value, here, mark)
        elif is_dataclass(item) and value:
            yield "", f"{here}: {meanings.get(f.name) or about}"
            for number, group_of_tuple in enumerate(value):
                yield from _listed(group_of_tuple, f"{here}.{number}", mark)
        else:
            yield f"{mark}{here}={'' if value is MISSING else to_text(value)}", about
            if is_dataclass(inner):
                yield from _listed(inner, here, "# ")
            elif is_dataclass(item):
                yield from _listed(item, f"{here}.0", "# ")


def _first_line(kind: Any) -> str:
    """Of a dataclass's docstring; the one that dataclasses makes when there is none, its signature, says nothing."""
    text = (inspect.getdoc(kind) or "").partition("\n")[0]
    return "" if text.startswith(f"{kind.__name__}(") else text


@functools.cache
def _meanings(kind: type) -> dict[str, str]:
    """What the comments on the own lines of a dataclass's fields say."""
    source = textwrap.dedent(inspect.getsource(kind))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    return {
        node.target.id: " ".join(comments[n] for n in range(node.lineno, node.end_lineno + 1) if n in comments)
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno
    }


# ---- the parts of JSON


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return to_json(value)
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def _from_plain(kind: Any, value: Any, path: str, root: type) -> Any:
    """A value of type `kind` from a JSON value."""
    inner = _without_none(kind)
    if inner is not kind and value is None:
        return None
    problem = ConfigError(f"{path or root.__name__} is {shown(value)}; needs {_type_name(kind)}.")
    if is_dataclass(inner):
        if not isinstance(value, dict):
            raise problem
        return _group(inner, value, path, root)
    if get_origin(inner) is tuple:
        if not isinstance(value, (list, tuple)) or len(items := _items(inner, path, len(value))) != len(value):
            raise problem
        return tuple(_from_plain(k, part, p, root) for (k, p), part in zip(items, value, strict=True))
    if inner is float and type(value) is int and abs(value) < 2**1023:  # more is no float
        return float(value)
    choices = get_args(inner) if get_origin(inner) is Literal else ()
    if type(value) is not inner and not any(type(c) is type(value) and c == value for c in choices):
        raise problem  # types exactly: True is no int here
    return value


def _group(kind: Any, raw: dict[str, Any], path: str, root: type) -> Any:
    hints = get_type_hints(kind)
    for name in raw:
        if name not in hints:
            at = _join(path, name)
            raise ConfigError(_unknown(root, at, at.split("."), hints))
    for f in fields(kind):
        if f.name not in raw and not _has_default(f):
            raise ConfigError(f"{_join(path, f.name)} is missing; {kind.__name__} needs it.")
    values = {name: _from_plain(hints[name], value, _join(path, name), root) for name, value in raw.items()}
    try:
        return kind(**values)
    except ValueError as error:  # the config's own check
        message = str(error).removeprefix(f"{kind.__name__}: ")
        joint = ("." if re.split(r"[ .]", message)[0] in hints else ": ") if path else ""
        raise ConfigError(f"{path}{joint}{message}") from error


def _differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, tuple[object, object]]]:
    if is_dataclass(old) and type(old) is type(new):
        for f in fields(old):
            yield from _differences(getattr(old, f.name), getattr(new, f.name), _join(path, f.name))
    elif isinstance(old, tuple) and isinstance(new, tuple) and len(old) == len(new) and any(map(is_dataclass, old)):
        for number, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, after, f"{path}.{number}")
    elif old != new:
        yield path, (old, new)


# ---- types


def _without_none(kind: Any) -> Any:
    """X of `X | None`; else `kind`."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    (inner,) = (k for k in get_args(kind) if k is not types.NoneType)
    return inner


def _is_variadic(kind: Any) -> bool:
    return get_args(kind)[-1] is Ellipsis


def _items(kind: Any, path: str, num_items: int) -> list[tuple[Any, str]]:
    """Kind and path of each item of a tuple of `num_items` items; an item that is no group goes by the tuple's path."""
    kinds = get_args(kind)[:1] * num_items if _is_variadic(kind) else get_args(kind)
    return [(k, f"{path}.{i}" if is_dataclass(_without_none(k)) else path) for i, k in enumerate(kinds)]


def _type_name(kind: Any) -> str:
    inner = _without_none(kind)
    if inner is not kind:
        return f"{_type_name(inner)} or none"
    if is_dataclass(kind):
        return f"an object with the fields of {kind.__name__}"  # type: ignore[union-attr]
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        count = "any number of values" if _is_variadic(kind) else f"{len(get_args(kind))} values"
        names = list(dict.fromkeys(_type_name(k) for k in get_args(kind) if k is not Ellipsis))
        each = f"each {names[0]}" if len(names) == 1 else f"which are {', then '.join(names)}"
        if get_origin(first := _without_none(get_args(kind)[0])) is tuple or is_dataclass(first):
            return f"a JSON list{'' if _is_variadic(kind) else f' of {count}'}, {each}"
        return f"{count}, {each}, separated by commas"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]


def _is_setting(kind: Any, name: str) -> bool:
    return bool(kind.__dataclass_fields__[name].metadata.get("set", True))


def _has_default(f: Field[Any]) -> bool:
    return f.default is not MISSING or f.default_factory is not MISSING


def _default(f: Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
