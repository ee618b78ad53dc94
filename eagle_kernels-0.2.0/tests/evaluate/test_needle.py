"""Needles: the same each time, where they are said to be, and what finding them is worth."""

from pathlib import Path

import numpy as np
import pytest

from eagle_model.evaluate.answer import of_engine, seen_by_model
from eagle_model.evaluate.needle import KINDS, heat_map, needles, share_found
from eagle_model.evaluate.runner import Run
from eagle_model.evaluate.show import parts
from eagle_model.evaluate.task import Question
from eagle_model.infer.engine import Engine
from tests.evaluate.test_runner import Says


def signs(question: Question, plain: list[np.ndarray]) -> list[int]:
    """The frames that are not the film's own."""
    shown = [np.asarray(part["image"]) for part in question.made() if part["type"] == "image"]
    return [i for i, (a, b) in enumerate(zip(shown, plain, strict=True)) if not np.array_equal(a, b)]


def test_needles_are_where_they_are_said_to_be(film: Path) -> None:
    from eagle_model.evaluate.needle import _film

    plain = [np.asarray(picture) for _, picture in _film(film, 16, 64)]
    found = list(needles(film, lengths=(16,), depths=3, frame_px=64))
    assert [(q.fields["kind"], q.fields["depth"]) for q in found] == [(k, d) for k in KINDS for d in (0.0, 0.5, 1.0)]
    for question in found:
        at = signs(question, plain)
        kind = question.fields["kind"]
        assert round(question.fields["depth"] * 15) in at
        assert len(at) == {"one": 1, "many": 3, "order": 3}.get(kind, question.answer)


def test_the_same_arguments_make_the_same_questions(film: Path) -> None:
    first, again = (list(needles(film, lengths=(9,), depths=2, repeats=2, frame_px=64)) for _ in range(2))
    assert [(q.id, q.text, q.answer, q.options) for q in first] == [(q.id, q.text, q.answer, q.options) for q in again]
    assert len({q.id for q in first}) == len(first) == 16
    other = list(needles(film, lengths=(9,), depths=2, repeats=2, frame_px=64, seed=1))
    assert [q.answer for q in first] != [q.answer for q in other]


def test_what_is_found_is_worth(film: Path) -> None:
    assert share_found("4821", ["4821"]) == 1 and share_found("14821", ["4821"]) == 0
    assert share_found("1111, 2222 and 4", ["1111", "3333", "2222"]) == pytest.approx(2 / 3)
    assert share_found("There are 2, not 3.", 2) == 1 and share_found("none", 2) == 0


def test_kinds_and_lengths_there_are_none_of(film: Path) -> None:
    with pytest.raises(ValueError, match="the kind 'two' is unknown; needs one of one, many"):
        list(needles(film, kinds=("two",)))
    with pytest.raises(ValueError, match="needs at least 8 frames"):
        list(needles(film, lengths=(4,)))


def test_a_run_of_needles_and_its_picture(film: Path, engine: Engine, tmp_path: Path) -> None:
    from eagle_model.evaluate.needle import TASK

    made = lambda: needles(film, lengths=(8, 10), depths=2, kinds=("one", "order"), frame_px=64)  # noqa: E731
    run = Run(tmp_path / "out", TASK, film, about={}, made=made)
    assert run.go(of_engine(engine, film.parent)) == 8 and run.go(Says()) == 0
    rows = run.rows()
    assert {row["num_tiles"] for row in rows} == {8, 10}
    assert len(seen_by_model(engine.processor, film.parent)(next(run.questions()))) == 8
    heat_map(tmp_path / "map.png", rows)
    assert (tmp_path / "map.png").stat().st_size > 5000


def test_a_context_that_is_too_small_says_so(film: Path, engine: Engine) -> None:
    (question,) = needles(film, lengths=(200,), depths=1, kinds=("one",), frame_px=64)
    (reply,) = of_engine(engine, film.parent)([question])
    assert "context_tokens" in str(reply.error)
    assert len(parts(question, film.parent, most_frames=1)) == 401
