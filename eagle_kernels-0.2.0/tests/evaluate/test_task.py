"""Every benchmark's fixture in the official layout, read and scored as worked out by hand."""

import string
from pathlib import Path

import pytest

from eagle_model.evaluate.judge import JUDGES
from eagle_model.evaluate.published import PUBLISHED
from eagle_model.evaluate.read import read
from eagle_model.evaluate.runner import row_of
from eagle_model.evaluate.scores import SCORES
from eagle_model.evaluate.task import letter
from eagle_model.evaluate.tasks import TASKS
from eagle_model.evaluate.totals import TOTALS, total
from tests.evaluate.official import SETS

REPLY = {"error": None, "is_cut": False, "is_reduced": False}


@pytest.mark.parametrize("name", TASKS)
def test_the_official_layout_is_read_and_scored_as_by_hand(name: str, tmp_path: Path) -> None:
    task, official = TASKS[name], SETS[name]
    official.write(tmp_path)
    parts = [TASKS[part] for part in task.parts] or [task]
    questions = [question for part in parts for question in read(part, tmp_path)]
    assert {question.id for question in questions} == set(official.said)
    rows = [
        row_of(question, {**REPLY, "id": question.id, "text": official.said[question.id]}) for question in questions
    ]
    found = total(task.total, rows)
    assert {key: found[key].value for key in official.golden} == pytest.approx(dict(official.golden))
    assert bool(found) == bool(official.golden)


@pytest.mark.parametrize("name", TASKS)
def test_a_declaration_names_what_there_is(name: str) -> None:
    task = TASKS[name]
    assert task.score in SCORES and task.total in TOTALS and (not task.judge or task.judge in JUDGES)
    assert task.title and task.source and task.revision and task.seen and task.columns
    assert all(part in TASKS for part in task.parts)
    assert task.max_frames == (512 if name.startswith("videomme") else 32 if name == "cgbench_clue" else 256)
    assert task.tiled == (name == "perception_test")
    added = {"_name", "_file", "_folder", "_row", "_line"}
    said = {field for _, field, _, _ in string.Formatter().parse(task.id) if field}
    inside = task.each or "{" in str(task.columns.get("inputs"))
    assert inside or said <= {*task.columns, *added}, "an id of columns that the declaration does not name"


def test_every_table_of_the_paper_has_its_task() -> None:
    assert set(PUBLISHED) <= set(TASKS)
    assert PUBLISHED["longvideobench"]["accuracy"]["Eagle2.5-8B"] == 66.4
    assert "lvbench" not in PUBLISHED, "the paper's 66.4 is LongVideoBench's"


def test_letters_follow_each_other() -> None:
    assert [letter(i) for i in (0, 3, 25)] == ["A", "D", "Z"]
