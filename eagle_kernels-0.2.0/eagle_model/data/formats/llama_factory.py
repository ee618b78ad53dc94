"""LLaMA-Factory's dataset_info.json -> the files it names and what a record of each means.

    for name, files, to_row in read_dataset_info(Path("data/dataset_info.json")):
        ...                                  # to_row(record) is a row of ours

Layout  {name: {file_name, formatting: alpaca | sharegpt, columns: {...}, tags: {...}}}, file_name (a file, or a folder
        of such) beside the dataset_info.json, media relative to it. Alpaca's columns are prompt, query, response,
        history, system, images, videos; ShareGPT's messages, system, tools, images, videos, with the names of its
        turns' fields and roles in tags. As there, texts have the tags <image> and <video> for the media of the lists.
        Entries that are on a hub (no file_name) are no files here: they are left out, and named by `left_out`.
Source  data/README.md of hiyouga/LLaMA-Factory at 015ff25.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from eagle_model.data.formats.records import embedded
from eagle_model.data.sample import DataError, shown
from eagle_model.files import read_json

FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}  # where `columns` names no other
_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_NOT_LEARNED = ("chosen", "rejected", "kto_tag", "audios")


class Entry(NamedTuple):
    name: str
    files: list[Path]
    to_row: Callable[[object], dict]


def read_dataset_info(path: Path) -> list[Entry]:
    """The entries that are files. Raises DataError where an entry is malformed or its file is missing."""
    return [_entry(path, name, about) for name, about in _entries(path).items() if "file_name" in about]


def left_out(path: Path) -> list[str]:
    """The names of those that are on a hub."""
    return [name for name, about in _entries(path).items() if "file_name" not in about]


def _entries(path: Path) -> dict[str, dict]:
    try:
        found = read_json(path)
    except ValueError as error:
        raise DataError(str(error)) from None
    if not isinstance(found, dict) or not all(isinstance(about, dict) for about in found.values()):
        raise DataError(f"{path}: needs an object {{name: {{file_name, ...}}}}.")
    return found


def _entry(path: Path, name: str, about: dict) -> Entry:
    where = f"{path}: {name!r}"
    file_name, formatting = about["file_name"], about.get("formatting", "alpaca")
    columns, tags = about.get("columns", {}), {**_TAGS, **about.get("tags", {})}
    if formatting not in ("alpaca", "sharegpt"):
        raise DataError(f"{where}: formatting is {shown(formatting)}; needs alpaca or sharegpt.")
    if about.get("ranking") or any(column in columns for column in _NOT_LEARNED):
        raise DataError(f"{where} holds preferences or sound, which are not learned; name the other sets with --only.")
    if not isinstance(file_name, str) or Path(file_name).is_absolute() or ".." in Path(file_name).parts:
        raise DataError(f"{where}: file_name is {shown(file_name)}; needs a path inside {path.parent}.")
    named = path.parent / file_name
    files = sorted(f for f in named.iterdir() if f.suffix.lower() in FILE_SUFFIXES) if named.is_dir() else [named]
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"{where}: file_name {named} does not exist, or holds no {', '.join(FILE_SUFFIXES)}.")
    if formatting == "alpaca":
        return Entry(name, files, lambda record: _alpaca(record, {**_ALPACA, **columns}))
    return Entry(name, files, lambda record: _sharegpt(record, {"messages": "conversations", **columns}, tags))


def _beside(record: dict, columns: dict[str, str]) -> dict:
    """What goes beside the turns: media, system, tools, id."""
    row: dict = {
        name: embedded(record[columns[name]], name) for name in ("images", "videos") if _has(record, columns, name)
    }
    row |= {name: record[columns[name]] for name in ("system", "tools") if _has(record, columns, name)}
    return row | ({"id": record["id"]} if isinstance(record.get("id"), (str, int)) else {})


def _has(record: dict, columns: dict[str, str], name: str) -> bool:
    return name in columns and record.get(columns[name]) not in (None, "", [])


def _need_object(record: object) -> dict:
    if not isinstance(record, dict):
        raise DataError(f"the record is {shown(record)}; needs an object.")
    return record


def _alpaca(record: object, columns: dict[str, str]) -> dict:
    record = _need_object(record)
    texts = {name: record.get(columns[name]) or "" for name in ("prompt", "query", "response")}
    history = record.get(columns["history"]) or [] if "history" in columns else []
    pairs = [*history, ["\n".join(filter(None, [texts["prompt"], texts["query"]])), texts["response"]]]
    if not all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair) for pair in pairs):
        raise DataError(f"the record is {shown(record)}; needs texts, and a history of [question, answer].")
    messages = [{"role": role, "content": text} for pair in pairs for role, text in zip(("user", "assistant"), pair)]
    return {"messages": messages, **_beside(record, columns)}


def _sharegpt(record: object, columns: dict[str, str], tags: dict[str, str]) -> dict:
    record = _need_object(record)
    turns = record.get(columns["messages"])
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{columns['messages']} is {shown(turns)}; needs a list of turns.")
    roles = {tags["user_tag"]: "user", tags["assistant_tag"]: "assistant", tags["observation_tag"]: "observation"}
    roles[tags["system_tag"]] = "system"
    messages = []
    for turn in turns:
        role, content = turn.get(tags["role_tag"]), turn.get(tags["content_tag"])
        if role == tags["function_tag"]:
            messages.append({"role": "assistant", "content": "", "tool_calls": _calls(content)})
        elif role in roles and isinstance(content, str):
            messages.append({"role": roles[role], "content": content})
        else:
            raise DataError(
                f"a turn is {shown(turn)}; needs one of the roles {', '.join(map(str, roles))}, and a text."
            )
    return {"messages": messages, **_beside(record, columns)}


def _calls(content: object) -> list[dict]:
    """A turn of function calls: JSON of {name, arguments}, or a list of such."""
    try:
        calls = json.loads(content) if isinstance(content, str) else content
    except (ValueError, RecursionError):
        raise DataError(f"a function call is {shown(content)}; needs JSON of {{name, arguments}}.") from None
    return [{"function": call} for call in (calls if isinstance(calls, list) else [calls])]
