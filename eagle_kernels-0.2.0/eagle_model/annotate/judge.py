"""Which option a reply chooses, by fixed rules: no model judges a model.

    chosen_option("The answer is (B), the dog.", ["A cat", "A dog", "A cow", "A fox"])      # 1
    chosen_option("I cannot see the video.", [...])                                         # None

A letter that stands as an answer counts first: alone, at the start with a mark after it, or after "answer", "option" or
"choose", the last of these where there are several. Else the one option whose words are all in the reply, in order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCD"
_DENIED = re.compile(
    r"\b(?:not|isn't|neither|nor|rather than|instead of)\s+(?:option\s+)?\(?[A-D]\)?(?![\w'])", re.IGNORECASE
)
_ALONE = re.compile(r"\W*(?:option\s+)?([A-Da-d])\W*", re.IGNORECASE)
_FIRST = re.compile(r"[\s*(\[\"']*([A-D])\s*(?:[).:,\]*\n-]|–|—|\bbecause\b)")
_TOLD = re.compile(
    r"(?:answer|option|choice|choose|pick|select|correct one|go with)\b"
    r"(?:\s+(?:is|would be|must be|should be|letter|option))*"
    r"[\s:*\"']*[(\[]?\**([A-D])\b(?!')",
)
_WORDS = re.compile(r"[^\W_]+")  # of any language


def chosen_option(reply: str, options: Sequence[str]) -> int | None:
    """The number of the option that a reply chooses, from 0, or None where it does not say."""
    text = _DENIED.sub(" ", reply.strip())
    if match := _ALONE.fullmatch(text) or _FIRST.match(text):
        return _number(match[1], options)
    if told := [m[1] for m in _TOLD.finditer(_upper_told(text))]:
        return _number(told[-1], options)
    said = words(text)
    named = [i for i, option in enumerate(options) if contains(said, words(option))]
    longest = [i for i in named if not any(i != j and contains(words(options[j]), words(options[i])) for j in named)]
    return longest[0] if len(longest) == 1 else None


def _number(letter: str, options: Sequence[str]) -> int | None:
    number = LETTERS.index(letter.upper())
    return number if number < len(options) else None


def _upper_told(text: str) -> str:
    """ "ANSWER IS b" as _TOLD reads it: its words small, a single letter after them large."""
    small = re.sub(
        r"\b(?:answer|option|choice|choose|pick|select|is|correct one|go with)\b",
        lambda m: m[0].lower(),
        text,
        flags=re.I,
    )
    return re.sub(
        r"\b(answer|option)((?:\s+is)?[\s:*\"']*[(\[]?\**)([b-d])\b(?!')", lambda m: m[1] + m[2] + m[3].upper(), small
    )


def words(text: str) -> list[str]:
    """The words of a text, small, without articles."""
    return [w for w in _WORDS.findall(text.lower()) if w not in ("a", "an", "the")]


def contains(text: Sequence[str], part: Sequence[str]) -> bool:
    """Whether the words of `part` stand in `text`, in order and together."""
    return bool(part) and any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))
