"""How many tokens a text of ASCII takes, by a table of its words: exact, and several times faster than encoding it.

    words = WordCounts.of(tokenizer)         # None for a tokenizer that cuts text into words otherwise than Qwen's
    words.count("What moves?")               # 3; None where the text is not ASCII alone, or long

Qwen's tokenizers cut a text into words by a regular expression, and make tokens of each word by itself. So the number
of a text's tokens is the sum over its words, which come again and again. Within ASCII Python's `re` says the same as
the tokenizer's own engine: letters are A to Z, digits 0 to 9, and NFC changes nothing. A word cut out of its text is
one word still: only `\\s+(?!\\S)` looks at what follows, and what it or the alternative after it has matched is all
white space, which it matches whole where nothing follows.
"""

from __future__ import annotations

import json
import re

from tokenizers import Tokenizer

QWEN_WORDS = (  # how Qwen2.5 splits text into words, before it makes tokens of them
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MAX_WORDS = 1 << 17  # limit: that are remembered, some 100 bytes each; then the table begins anew
MAX_CHARS = 1 << 16  # limit: of a text, whose words are listed
_LONG_WORD = 64  # characters: longer ones do not come again
_ASCII_WORDS = re.compile(
    QWEN_WORDS.replace(r"\r\n\p{L}\p{N}", r"\r\n0-9A-Za-z")
    .replace(r"\s\p{L}\p{N}", r"\s0-9A-Za-z")
    .replace(r"\p{L}", "[A-Za-z]")
    .replace(r"\p{N}", "[0-9]"),
    re.ASCII,
)


class _Table(dict[str, int]):
    """Tokens of each word, encoded when it comes for the first time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> int:
        num = len(self._tokenizer.encode(word, add_special_tokens=False))
        if len(word) <= _LONG_WORD:
            if len(self) >= MAX_WORDS:
                self.clear()
            self[word] = num
        return num


class WordCounts:
    """For one tokenizer without added tokens. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._num_of = _Table(tokenizer).__getitem__

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> WordCounts | None:
        """None where its words are not Qwen's, or what becomes of one is not always the same."""
        return cls(tokenizer) if _cuts_as_qwen(json.loads(tokenizer.to_str())) else None

    def count(self, text: str) -> int | None:
        if not text.isascii() or len(text) > MAX_CHARS:
            return None
        return sum(map(self._num_of, _ASCII_WORDS.findall(text)))


def _cuts_as_qwen(fields: dict) -> bool:
    model, normalizer, cuts = fields["model"], fields["normalizer"], fields["pre_tokenizer"]
    if model.get("type") != "BPE" or model.get("dropout") or fields["added_tokens"]:
        return False
    if normalizer is not None and normalizer != {"type": "NFC"}:
        return False
    if (
        cuts is None
        or cuts["type"] != "Sequence"
        or [cut["type"] for cut in cuts["pretokenizers"]] != ["Split", "ByteLevel"]
    ):
        return False
    split, to_bytes = cuts["pretokenizers"]
    return (
        (split["pattern"], split["behavior"], split["invert"]) == ({"Regex": QWEN_WORDS}, "Isolated", False)
        and not to_bytes["add_prefix_space"]
        and not to_bytes["use_regex"]
    )
