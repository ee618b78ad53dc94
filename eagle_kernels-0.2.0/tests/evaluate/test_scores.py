"""From an answer to a question's numbers; every rule is met again in each benchmark's own fixture (test_task.py)."""

from pathlib import Path

import pytest

from eagle_model.evaluate.read import read
from eagle_model.evaluate.scores import SCORES
from eagle_model.evaluate.tasks import TASKS
from tests.evaluate.official import SETS


@pytest.mark.parametrize("name", ["mmstar", "docvqa", "charades_sta", "hallusionbench", "textvqa", "mathvista"])
def test_nothing_said_is_wrong_and_a_hidden_answer_has_no_numbers(name: str, tmp_path: Path) -> None:
    from dataclasses import replace

    SETS[name].write(tmp_path)
    question = next(read(TASKS[name], tmp_path))
    score = SCORES[TASKS[name].score]
    parsed, numbers = score(question, "")
    assert parsed == "" and next(iter(numbers.values())) == 0.0
    assert score(replace(question, answer=None), "B")[1] == {}


def test_an_unread_letter_is_counted(tmp_path: Path) -> None:
    SETS["videomme"].write(tmp_path)
    question = next(read(TASKS["videomme"], tmp_path))
    _, numbers = SCORES["letter"](question, "I cannot tell.")
    assert numbers == {"accuracy": 0.0, "lmms_first": 0.0, "lmms_ranked": 0.0, "unread": 1.0}


@pytest.mark.parametrize("said", ["9" * 500, "9" * 500 + " to 6.5", "[[1" + "0" * 500 + ", 3]]", "²", "-"])
def test_a_model_that_goes_on_and_on_is_wrong(said: str, tmp_path: Path) -> None:
    """No number is so long: as a float it would be infinite."""
    for name in ("mathvista", "charades_sta", "cgbench_grounding", "chartqa", "mmlongbench_doc", "slidevqa"):
        SETS[name].write(tmp_path)
        for question in read(TASKS[name], tmp_path):
            _, numbers = SCORES[question.task.score](question, said)
            assert next(iter(numbers.values())) == 0.0
