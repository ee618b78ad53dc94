"""Logs by step: once each however often the run resumes, and damage named by its line."""

import pytest

from eagle_model.train.step_log import StepLog, read_log


def test_what_comes_after_the_step_of_a_resume_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    log = StepLog(path, steps_done=0)
    for step in (2, 4, 4, 6):
        log.write({"step": step, "text": "é\n"})
    with path.open("a") as file:
        file.write('{"step": 8, "te')  # a crash cut it short
    StepLog(path, steps_done=4).write({"step": 6, "text": "again"})
    assert [(line["step"], line["text"]) for line in read_log(path)] == [
        (2, "é\n"),
        (4, "é\n"),
        (4, "é\n"),
        (6, "again"),
    ]
    assert read_log(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("line", ["{", "[1]", '{"loss": 1}', '{"step": "2"}', '{"step": true}', "[" * 100_000])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl:2: is no line of a log; needs a JSON object with a step\. Move"):
        read_log(path)
    said: list[str] = []
    assert [found["step"] for found in read_log(path, said.append)] == [1, 3]
    assert len(said) == 1
