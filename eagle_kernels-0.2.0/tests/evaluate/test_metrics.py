"""Metrics against values worked out by hand; where a peer gives another one, its own stands beside."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_model.evaluate import metrics


@pytest.mark.parametrize(
    ("a", "b", "steps"), [("", "", 0), ("kitten", "sitting", 3), ("abc", "", 3), ("flaw", "lawn", 2)]
)
def test_edit_distance(a: str, b: str, steps: int) -> None:
    assert metrics.edit_distance(a, b) == metrics.edit_distance(b, a) == steps


@given(st.text("ab", max_size=6), st.text("ab", max_size=6), st.text("ab", max_size=6))
@settings(max_examples=60, deadline=None)
def test_edit_distance_is_a_distance(a: str, b: str, c: str) -> None:
    d = metrics.edit_distance
    assert (d(a, b) == 0) == (a == b) and d(a, c) <= d(a, b) + d(b, c)


@pytest.mark.parametrize(
    ("said", "answers", "value"),
    [
        ("42", ["42"], 1.0),
        (" The  Cat ", ["the cat"], 1.0),
        ("hello", ["hallo"], 0.8),
        ("abcd", ["abxy"], 0.5),  # at the threshold it counts
        ("abc", ["xyz"], 0.0),
        ("abcde", ["abxyz", "abcdf"], 0.8),
    ],
)
def test_anls(said: str, answers: list[str], value: float) -> None:
    assert metrics.anls(said, answers) == pytest.approx(value)


def test_anls_by_the_strict_rule_does_not_count_at_the_threshold() -> None:
    assert metrics.anls("abcd", ["abxy"], is_strict=True) == 0.0


@pytest.mark.parametrize(
    ("said", "answer", "is_right"),
    [
        ("105", "100", True),
        ("105.1", "100", False),
        ("52%", "0.5", True),
        ("0", "0", True),
        ("0.01", "0", False),  # lmms-eval compares as texts here: also wrong
        ("1,000", "1000", True),  # lmms-eval: wrong, its float() refuses the comma
        ("Yes", "yes", True),
        ("Spain.", "Spain", True),  # lmms-eval: wrong, the full stop is a character of the answer
        ("Spain.", "Spain.", True),
        ("nan", "nan", True),
    ],
)
def test_relaxed(said: str, answer: str, is_right: bool) -> None:
    assert metrics.relaxed(said, answer) is is_right


@pytest.mark.parametrize(
    ("said", "num_equal", "value"),
    [("stop", 0, 0.0), ("stop", 1, 0.3), ("stop", 2, 0.6), ("stop", 3, 0.9), ("stop", 4, 1.0), ("stop", 10, 1.0)],
)
def test_vqa_accuracy_of_ten(said: str, num_equal: int, value: float) -> None:
    # 1 of 10: that one left out 0, the nine others 1/3 each: 0.3; 2: 2 x 1/3 + 8 x 2/3; 3: 3 x 2/3 + 7 x 1
    assert metrics.vqa_accuracy(said, ["stop"] * num_equal + ["go"] * (10 - num_equal)) == pytest.approx(value)


def test_vqa_answers_are_compared_without_articles_marks_and_words_for_digits() -> None:
    assert metrics.vqa_normal("The two dogs, 1,000.") == "2 dogs 1000"
    assert metrics.vqa_normal("Don't") == metrics.vqa_normal("dont")
    assert metrics.vqa_normal("3.5") == "3.5"


def test_slidevqa_words_and_f1() -> None:
    words = metrics.slidevqa_words
    assert words("Twelve hours", "How many hours is it?") == ["12", "hrs"]
    assert words("Twelve dogs", "Say how many dogs there are.") == ["12"]
    assert words("Yes, it is so", "Is it?") == ["yes"]
    assert metrics.em_f1(["a", "b"], ["b", "c", "c"]) == (0.0, pytest.approx(0.4))  # 1 of 2 and of 3: 2 / 5
    assert metrics.em_f1(["x"], ["x"]) == (1.0, 1.0)
    assert metrics.em_f1(["x"], ["y"]) == (0.0, 0.0)


def test_ocr() -> None:
    assert metrics.ocr_contains("It reads \uff21\uff22\uff23.", ["abc"])  # full width
    assert not metrics.ocr_contains("ab c", ["abc"])
    assert metrics.ocr_contains("x ^ {2}", ["x^{2}"], is_formula=True)
    assert not metrics.ocr_contains("X^{2}", ["x^{2}"], is_formula=True)


@pytest.mark.parametrize(
    ("said", "wanted", "value"),
    [
        ([[0, 10]], [[5, 15]], 1 / 3),
        ([[0, 10]], [[10, 20]], 0.0),
        ([[10, 0]], [[0, 10]], 1.0),
        ([[0, 5], [3, 10]], [[0, 20]], 0.5),  # what overlaps counts once
        ([], [[0, 1]], 0.0),
        ([[1, 1]], [[1, 1]], 0.0),
    ],
)
def test_intersection_over_union(said: list, wanted: list, value: float) -> None:
    assert metrics.intersection_over_union(said, wanted) == pytest.approx(value)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=5), st.integers(0, 20), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_intersection_over_union_counts_seconds(spans: list[tuple[int, int]], start: int, length: int) -> None:
    ours = {s for a, b in spans for s in range(min(a, b), max(a, b))}
    theirs = set(range(start, start + length))
    value = metrics.intersection_over_union(spans, [[start, start + length]])
    assert value == pytest.approx(len(ours & theirs) / len(ours | theirs))


@pytest.mark.parametrize(
    ("said", "span"),
    [
        ("The given query happens in 24.3 - 30.4 seconds.", [24.3, 30.4]),
        ("from 3 to 8.5 s", [3.0, 8.5]),
        ("Start: 12, end: 4", [4.0, 12.0]),
        ("between 00:01:05 and 00:01:10", [65.0, 70.0]),
        ("5s – 9s", [5.0, 9.0]),
        ("At 7 seconds.", None),
        ("", None),
    ],
)
def test_spans(said: str, span: list[float] | None) -> None:
    assert metrics.parse_span(said) == span


def test_intervals_at_most_five() -> None:
    assert metrics.parse_intervals('{"result": [[1, 2.5], (8, 4)]}') == [[1.0, 2.5], [4.0, 8.0]]
    assert len(metrics.parse_intervals(str([[i, i + 1] for i in range(9)]))) == 5


@pytest.mark.parametrize(
    ("said", "answer", "kind", "value"),
    [
        ("3", "3", "Int", 1.0),
        ("three", "3", "Int", 0.0),
        ("12.3%", "0.123", "Float", 1.0),
        ("0.5", "0.6", "Float", 0.0),
        ("Ann Le", "Ann Lee", "Str", 6 / 7),
        ("page 4", "page 5", "Str", 0.0),  # exact
        ("2020-01-03", "2020-01-02", "Str", 0.0),
        ("['b', 'a']", "['a', 'b']", "List", 1.0),
        ("a, b", "['a', 'b', 'c']", "List", 0.0),
        ("Not answerable", "Not answerable", "None", 1.0),
    ],
)
def test_long_documents(said: str, answer: str, kind: str, value: float) -> None:
    assert metrics.long_document_score(said, answer, kind) == pytest.approx(value)
