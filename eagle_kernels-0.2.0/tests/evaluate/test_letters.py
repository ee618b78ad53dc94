"""A thousand answers and the letter each means: 154 forms labelled by hand, said of two sets of options.

tests/golden/mcq_answers.tsv has options (which set), label ("-" for none) and answer, "\\n" for a new line.
"""

from pathlib import Path

import pytest

from eagle_model.evaluate.letters import lmms_first_letter, lmms_ranked_letter, parse_letter

GOLDEN = Path(__file__).parents[1] / "golden/mcq_answers.tsv"
OPTIONS = (
    ("A red car", "A blue bus", "Two bicycles", "A grey van"),
    ("Because the man is tired", "At the beach in Denver", "He calls his brother", "Before dinner"),
)


def golden() -> list[tuple[tuple[str, ...], str | None, str]]:
    lines = GOLDEN.read_text().splitlines()[1:]
    rows = [line.split("\t", 2) for line in lines]
    return [(OPTIONS[int(k)], None if label == "-" else label, said.replace("\\n", "\n")) for k, label, said in rows]


def test_a_thousand_answers_mean_what_their_labels_say() -> None:
    rows = golden()
    assert len(rows) == 1000 and {label for _, label, _ in rows} == {"A", "B", "C", "D", None}
    wrong = [(said, label, got) for options, label, said in rows if (got := parse_letter(said, options)) != label]
    assert not wrong


def test_lmms_evals_readings_differ_where_docs_say_so() -> None:
    """docs/evaluation.md gives these two numbers."""
    rows = golden()
    assert sum((lmms_first_letter(said, "ABCD") or None) != label for _, label, said in rows) == 284
    assert sum((lmms_ranked_letter(said, "ABCD") or None) != label for _, label, said in rows) == 104


@pytest.mark.parametrize(
    ("said", "ours", "first", "ranked"),
    [
        ("Because B", "B", "B", "B"),  # the first is the B of Because
        ("Because C", "C", "B", "C"),
        ("About C", "C", "A", "C"),
        ("A man and a dog.", None, "A", "A"),
        ("The answer is (C).", "C", "C", "C"),
        ("Neither B nor D, so C.", "C", "B", "C"),
        ("", None, "", ""),
    ],
)
def test_ours_and_theirs(said: str, ours: str | None, first: str, ranked: str) -> None:
    assert parse_letter(said, ("one", "two", "three", "four")) == ours
    assert lmms_first_letter(said, "ABCD") == first
    assert lmms_ranked_letter(said, "ABCD") == ranked


def test_a_letter_that_no_option_has_is_none() -> None:
    assert parse_letter("D", ("yes", "no")) is None
    assert parse_letter("The answer is E.", ("yes", "no")) is None
    assert parse_letter("yes", ("yes", "no")) == "A"


def test_an_option_within_another_is_not_it() -> None:
    assert parse_letter("a red car", ("car", "red car")) == "B"
    assert parse_letter("the car and the bus", ("car", "bus")) is None


def test_long_answers_take_no_long() -> None:
    import time

    started = time.process_time()
    for said in ("answer " * 4000, "A " * 8000, "(" * 16000, "A or " * 6000, "is " * 9000, "not " * 5000 + "A"):
        parse_letter(said, ("yes", "no"))
    assert time.process_time() - started < 4
