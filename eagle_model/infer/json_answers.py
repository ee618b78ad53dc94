"""JSON that a model wrote, read and held against a JSON schema: whatever the server promises, this is checked here.

    schema = {"type": "object", "properties": {"brief": {"type": "string"}}, "required": ["brief"]}
    read_json_answer('```json\n{"brief": "A dog runs."}\n```', schema)      # {"brief": "A dog runs."}

Of JSON Schema what structured output knows: type (one or several), properties, required, additionalProperties (false),
items, enum, minItems, maxItems, minLength, maxLength, minimum, maximum. Another keyword is refused: it would not be
checked.
"""

from __future__ import annotations

import json
import re
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
_NOTES = {"description", "title", "$schema"}  # which check nothing
_KNOWN = {"type", "properties", "required", "additionalProperties", "items", "enum", *_NOTES}
_LIMITS = {"minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum"}
_KNOWN |= _LIMITS
_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)


class JsonAnswerError(ValueError):
    """An answer that is no JSON, or breaks the schema. `reply` is the answer, where there is one."""

    reply: Any = None


def read_json_answer(text: str, schema: dict[str, Any]) -> Any:
    """The value in a model's answer: the whole of it, or what its one Markdown fence holds. Raises JsonAnswerError."""
    fenced = [] if text.lstrip().startswith(("{", "[")) else _FENCED.findall(text)
    try:
        value = json.loads(fenced[0] if len(fenced) == 1 else text)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # "\ud83d" alone, which no file of rows can hold
        raise JsonAnswerError("half of a character, as of an emoji that was cut in two") from None
    except (ValueError, RecursionError) as error:
        raise JsonAnswerError(f"not JSON: {error}") from None
    if problem := schema_problem(value, schema):
        raise JsonAnswerError(problem)
    return value


def json_problem(text: str, schema: dict[str, Any]) -> str | None:
    """Why `read_json_answer` would refuse a text, or None."""
    try:
        read_json_answer(text, schema)
    except JsonAnswerError as error:
        return str(error)
    return None


def schema_problem(value: Any, schema: dict[str, Any], at: str = "answer") -> str | None:
    """Why a value breaks a schema, or None. Raises ValueError for a schema with a keyword that is not known here."""
    if unknown := sorted(set(schema) - _KNOWN):
        raise ValueError(
            f"the schema of {at} has {unknown[0]!r}, which is not checked; known are {', '.join(sorted(_KNOWN))}."
        )
    names = schema.get("type")
    names = [names] if isinstance(names, str) else names
    if names and not any(_is(value, name) for name in names):
        return f"{at} is {json.dumps(value)[:60]}; needs {' or '.join(names)}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{at} is {json.dumps(value)[:60]}; needs one of {json.dumps(schema['enum'])[:200]}"
    if isinstance(value, (str, list)):
        unit, word = ("Length", "characters") if isinstance(value, str) else ("Items", "items")
        least, most = schema.get(f"min{unit}", 0), schema.get(f"max{unit}", len(value))
        if not least <= len(value) <= most:
            return f"{at} has {len(value)} {word}; needs {least} to {schema.get(f'max{unit}', 'any')}"
    if isinstance(value, (int, float)) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        return f"{at} is {value}; needs {schema.get('minimum', 'any')} to {schema.get('maximum', 'any')}"
    if isinstance(value, list) and "items" in schema:
        problems = (schema_problem(item, schema["items"], f"{at}[{i}]") for i, item in enumerate(value))
        return next(filter(None, problems), None)
    return _object_problem(value, schema, at) if isinstance(value, dict) else None


def without_limits(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with no limit of lengths and numbers, for servers that refuse any schema with one."""
    plain = {key: value for key, value in schema.items() if key not in _LIMITS}
    if "properties" in plain:
        plain["properties"] = {name: without_limits(of) for name, of in plain["properties"].items()}
    if "items" in plain:
        plain["items"] = without_limits(plain["items"])
    return plain


def _object_problem(value: dict[str, Any], schema: dict[str, Any], at: str) -> str | None:
    properties = schema.get("properties", {})
    if missing := [name for name in schema.get("required", ()) if name not in value]:
        return f"{at} lacks {missing[0]!r}"
    extra = sorted(set(value) - set(properties))
    if extra and schema.get("additionalProperties") is False:
        return f"{at} has {extra[0]!r}, which is not asked for"
    problems = (schema_problem(value[n], properties[n], f"{at}.{n}") for n in properties if n in value)
    return next(filter(None, problems), None)


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):  # which Python takes for an integer
        return name == "boolean"
    return isinstance(value, _TYPES[name])
