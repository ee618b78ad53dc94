"""annotate/filter.py: each reason for dropping a question, by a question that has it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from eagle_model.annotate.config import AnnotateConfig
from eagle_model.annotate.filter import alike, anchor_marks, filter_step, free_reason, leaks, shuffled
from eagle_model.annotate.work import Run
from tests.annotate.told import Told

ANCHOR = "A woman walks along a street past shops and parked bicycles while people talk in front of a bakery"


def row(**more: object) -> dict:
    base = {"id": "q", "kind": "clip", "question": "What does the woman carry?", "short": "a basket"}
    base |= {"wrong": ["a bag", "a dog", "a book"], "start": 5.0, "end": 15.0, "anchor": ANCHOR}
    return base | more


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({}, None),
        ({"start": None, "end": None}, None),
        ({"wrong": ["A  Basket!", "a dog", "a book"]}, "options"),
        ({"wrong": ["a dog", "the dog", "a book"]}, "options"),
        ({"short": "!"}, "options"),
        ({"start": 5.0, "end": 5.0}, "interval"),
        ({"end": 60.2}, "interval"),
        ({"end": 60.04}, None),
        ({"start": -1.0}, "interval"),
        ({"question": "What is in the basket? Is it a basket?"}, "question_leak"),
    ],
    ids=range(10),
)
def test_what_is_free(more: dict, reason: str | None) -> None:
    assert free_reason(row(**more), 60.0) == reason


@pytest.mark.parametrize(
    ("anchor", "marks"),
    [
        (None, []),
        (ANCHOR, []),
        ("word " * 14, ["anchor_length"]),
        ("word " * 15, []),
        ("word " * 30, []),
        ("word " * 31, ["anchor_length"]),
        (ANCHOR + " with a basket", ["anchor_leak"]),
    ],
    ids=range(7),
)
def test_anchors(anchor: str | None, marks: list[str]) -> None:
    assert anchor_marks(row(anchor=anchor), 15, 30) == marks


@pytest.mark.parametrize(
    ("answer", "text", "leaked"),
    [
        ("a red car", "There is a red car.", True),
        ("a red car", "The car that passes is red.", True),  # all of its words, in another order
        ("a red car", "A car passes.", False),
        ("red", "They read a book.", False),
        ("in the house", "The house burns.", False),  # one word that says something is no answer
        ("of the", "of the", True),
        ("He is in it", "It is in he", False),
    ],
    ids=range(7),
)
def test_leaks(answer: str, text: str, leaked: bool) -> None:
    assert leaks(answer, text) is leaked


def test_questions_about_other_clips_are_others() -> None:
    assert alike(row(), row(short="a hat")) == 1.0
    assert alike(row(), row(start=6.0)) == 0.0
    assert alike(row(), row(question="What does the woman carry now?")) == pytest.approx(4 / 7)
    assert alike(row(), row(question="Where does she go?")) < 0.3


def checked(make_config: Callable[..., AnnotateConfig], choose: Callable[[str, int, bool, list], str], *rows: dict):
    """The rows after the filter; choose(the question, the number of pictures asked with, blind, options) -> what the
    model takes."""
    told = Told(lambda text, number: "")
    ask, options_of = told.asking(), re.compile(r"^([A-D])\. (.*)$", re.MULTILINE)

    def says(text: str, number: int) -> str:
        options = {option: letter for letter, option in options_of.findall(text)}
        media = [part for part in told.parts[-1] if part["type"] == "video"]
        wanted = choose(text, told.options[-1]["seed"], told.options[-1]["blind"], media)
        return options.get(wanted, wanted)

    told.says = says
    run = Run(make_config("http://none/v1"), annotator=told, reader=told)
    video = {
        "id": "v",
        "path": "v.mp4",
        "duration_seconds": 60.0,
        "licence": "CC0",
        "source": "s",
        "questions": list(rows),
    }
    return filter_step(run).work(video, ask), told


def test_a_good_question_is_asked_five_times_and_kept(make_config: Callable[..., AnnotateConfig]) -> None:
    def choose(text: str, seed: int, blind: bool, media: list) -> str:
        return "a bag" if blind or media[0].get("times") else "a basket"

    (kept,), told = checked(make_config, choose, row())
    assert (kept["reason"], kept["marks"], kept["licence"]) == (None, [], "CC0")
    assert [len(parts) for parts in told.parts] == [1, 1, 2, 2, 2]
    assert [options["blind"] for options in told.options] == [True, True, False, False, False]
    (frame,), clip = told.parts[2][0]["times"], told.parts[3][0]
    assert 5.0 <= frame <= 15.0 and (clip["start"], clip["end"], clip["max_frames"]) == (5.0, 15.0, 16)
    orders = {parts[-1]["text"] for parts in told.parts}
    assert len(orders) >= 3  # options are shuffled each time


@pytest.mark.parametrize(
    ("choose", "reason", "marks", "num_asked"),
    [
        (lambda text, seed, blind, media: "a basket", "blind", [], 2),
        (lambda text, seed, blind, media: "a basket" if not blind or seed else "a bag", None, ["one_frame"], 5),
        (lambda text, seed, blind, media: "a bag" if blind else "a basket", None, ["one_frame"], 5),
        (lambda text, seed, blind, media: "a bag", "disputed", [], 5),
        (lambda text, seed, blind, media: "a bag" if blind or seed else "a basket", "unstable", ["one_frame"], 5),
        (lambda text, seed, blind, media: "I do not know.", "unstable", [], 5),
    ],
    ids=["blind", "by chance", "one frame", "disputed", "unstable", "no answer"],
)
def test_what_answers_tell(make_config: Callable[..., AnnotateConfig], choose, reason, marks, num_asked) -> None:
    (found,), told = checked(make_config, choose, row())
    assert (found["reason"], found["marks"], len(told.parts)) == (reason, marks, num_asked)


def test_a_duplicate_of_a_dropped_question_stays(make_config: Callable[..., AnnotateConfig]) -> None:
    def choose(text: str, seed: int, blind: bool, media: list) -> str:
        return "a bag" if blind else "a basket"

    rows = [row(id="a", wrong=["a dog", "a dog", "x"]), row(id="b"), row(id="c"), row(id="d", start=6.0)]
    found, _ = checked(make_config, choose, *rows)
    assert [r["reason"] for r in found] == ["options", None, "duplicate", None]


def test_orders_are_even() -> None:
    first = [shuffled(0, i)[0] for i in range(4000)]
    assert all(900 < first.count(i) < 1100 for i in range(4))
