"""Prompts are files (prompts/*.txt, or a folder of the user's own), and each row has the hash of the one it is from.

    prompt = load("clip_caption")
    prompt.fill(speech="")            # the text that is sent
    prompt.version                    # "5d1f0c2a9b3e": of its text and of the schema that its answer must keep

$names in a file are filled in. The schema of the answer stays with the code that reads it, and is no matter of taste.
"""

from __future__ import annotations

import hashlib
import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "prompts"
MAX_PROMPT_BYTES = 1 << 16  # limit: of a file; the longest has 2 KB


def _text(least: int = 1, most: int = 4000) -> dict[str, Any]:
    return {"type": "string", "minLength": least, "maxLength": most}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_CAPTION = _object({"brief": _text(most=600), "detailed": _text()})
_WRONG = {"type": "array", "items": _text(most=400), "minItems": 3, "maxItems": 3}
_QUESTION = _object({"question": _text(most=1000), "answer": _text(), "short": _text(most=400), "wrong": _WRONG})
_FLAG = {"type": "boolean"}


def schema_of(name: str, types: tuple[str, ...] = ()) -> dict[str, Any]:
    """The schema that answers to the prompt `name` keep; types: of `clip_questions`, those asked for."""
    if name in ("story_caption", "clip_caption"):
        return _CAPTION
    if name == "story_questions":
        return _object({"questions": {"type": "array", "items": _QUESTION, "minItems": 1, "maxItems": 20}})
    if name == "clip_questions":
        return _object({t: {**_QUESTION, "type": ["object", "null"]} for t in types})
    if name == "choose":
        return {}  # a letter, which judge.py reads
    return _object({"watermark": _FLAG, "unsafe": _FLAG, "still": _FLAG})  # screen


@dataclass(frozen=True)
class Prompt:
    name: str
    text: str
    version: str

    def fill(self, **values: object) -> str:  # the names are the file's, not ours
        """The text with its $names filled in. Raises KeyError for one that was not given."""
        return string.Template(self.text).substitute(values)


def load(name: str, folder: str | Path | None = None) -> Prompt:
    """The prompt of this name: the user's file where `folder` has one, else ours.

    Raises: ValueError naming the file when it is too long or its $names are none that are filled in; and for a folder
            that is none, or has a file which is no prompt's.
    """
    if folder:
        _check_folder(Path(folder))
    own = Path(folder) / f"{name}.txt" if folder else None
    path = own if own is not None and own.is_file() else FOLDER / f"{name}.txt"
    data = path.read_bytes()[: MAX_PROMPT_BYTES + 1]
    if len(data) > MAX_PROMPT_BYTES:
        raise ValueError(f"{path} has more than {MAX_PROMPT_BYTES} bytes; no prompt is so long.")
    text = data.decode("utf-8")
    if any(match["invalid"] is not None for match in string.Template.pattern.finditer(text)):
        raise ValueError(f"{path}: a $ stands before no name; write $$ for the sign itself.")
    known = _names((FOLDER / f"{name}.txt").read_text(encoding="utf-8"))
    if unknown := sorted(_names(text) - known):
        raise ValueError(f"{path}: ${unknown[0]} is filled by nothing; known are {', '.join(sorted(known)) or 'none'}.")
    schema = json.dumps(schema_of(name), sort_keys=True)
    return Prompt(name, text, hashlib.sha256(f"{text}\n{schema}".encode()).hexdigest()[:12])


def _check_folder(folder: Path) -> None:
    names = {path.name for path in FOLDER.glob("*.txt")}
    if not folder.is_dir():
        raise ValueError(f"prompts is {folder}, which is no folder.")
    if strange := sorted(path.name for path in folder.glob("*.txt") if path.name not in names):
        raise ValueError(f"{folder / strange[0]} is no prompt that is used; the names are {', '.join(sorted(names))}.")


def _names(text: str) -> set[str]:
    found = (match["named"] or match["braced"] for match in string.Template.pattern.finditer(text))
    return {name for name in found if name}
