"""annotate/judge.py: which option a reply chooses, against 200 replies that a person labelled."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagle_model.annotate.judge import chosen_option, contains, words

AGREEMENT = 0.95


def labelled() -> list[tuple[list[str], str, int | None]]:
    """(options, reply, the option it chooses) of labelled_replies.txt: blocks of four options, then "label | reply"."""
    found: list[tuple[list[str], str, int | None]] = []
    options: list[str] = []
    for line in (Path(__file__).parent / "labelled_replies.txt").read_text().splitlines():
        if line.startswith("= "):
            options = [part.strip() for part in line[2:].split("/")]
        elif line and not line.startswith("#"):
            label, _, reply = line.partition(" | ")
            found.append((options, reply.replace("\\n", "\n"), None if label == "-" else "ABCD".index(label)))
    return found


def test_the_judge_agrees_with_a_person() -> None:
    pairs = labelled()
    wrong = [(reply, label) for options, reply, label in pairs if chosen_option(reply, options) != label]
    assert len(pairs) >= 200 and len(wrong) <= (1 - AGREEMENT) * len(pairs), wrong


@pytest.mark.parametrize(
    ("reply", "chosen"), [("B", 1), ("The answer is (C), I think.", 2), ("a red car", 0), ("I cannot tell.", None)]
)
def test_examples(reply: str, chosen: int | None) -> None:
    assert chosen_option(reply, ["A red car", "A blue car", "A van", "A bus"]) == chosen


def test_words_and_their_order() -> None:
    assert words("The red-car, a BUS!") == ["red", "car", "bus"]
    assert contains(["x", "red", "car"], ["red", "car"]) and not contains(["car", "red"], ["red", "car"])
    assert not contains(["a"], [])
    assert words("Ein Fußgänger, зелёный свет") == ["ein", "fußgänger", "зелёный", "свет"]
