"""Judges: asked over an endpoint, of a pinned model, once an answer, with marks that stay on their scale."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from eagle_model.evaluate.judge import JUDGED, JUDGES, judge_rows, judgements, with_judgement
from eagle_model.evaluate.runner import Run
from eagle_model.evaluate.tasks import TASKS
from eagle_model.evaluate.totals import total
from eagle_model.infer.endpoint import Endpoint, EndpointConfig
from eagle_model.infer.json_answers import JsonAnswerError
from tests.evaluate.official import SETS
from tests.evaluate.test_runner import Says

Marks = Callable[[dict], dict]


def judged_by(model: str, marks: Marks, asked: list[dict]) -> Endpoint:
    def handler(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        asked.append(body)
        choice = {"message": {"content": json.dumps(marks(body))}, "finish_reason": "stop"}
        return httpx2.Response(200, json={"choices": [choice], "usage": {}})

    config = EndpointConfig(url="http://x/v1", model=model, max_retries=0)
    return Endpoint(config, transport=httpx2.MockTransport(handler), sleep=lambda seconds: None)


def answered(name: str, folder: Path) -> Run:
    SETS[name].write(folder)
    run = Run(folder / "out", TASKS[name], folder, about={})
    run.go(Says())
    return run


@pytest.mark.parametrize(
    ("name", "marks", "number", "value"),
    [
        ("mmbench_video", {"mark": 2}, "score", 2.0),
        ("mmvet", {"mark": 5}, "accuracy", 0.5),
        ("openeqa", {"mark": 4}, "accuracy", 0.75),  # (4 - 1) / 4
        ("mlvu_generation", {"accuracy": 3, "relevance": 5}, "G-Avg", 8.0),
        ("cgbench_open", {"mark": 1}, "accuracy", 1.0),
    ],
)
def test_marks_become_the_benchmarks_number(name: str, marks: dict, number: str, value: float, tmp_path: Path) -> None:
    run, asked = answered(name, tmp_path), []
    assert total(run.task.total, run.rows()) == {}
    endpoint = judged_by(JUDGES[run.task.judge].model, lambda body: marks, asked)
    num = len(run.rows())
    assert judge_rows(run.out, tmp_path, run.questions(), run.answered(), endpoint) == num
    assert judge_rows(run.out, tmp_path, run.questions(), run.answered(), endpoint) == 0, "no answer is judged twice"
    assert total(run.task.total, run.rows())[number].value == pytest.approx(value)
    assert len(asked) == num and {row["judge"] for row in run.rows()} == {JUDGES[run.task.judge].model}
    said = asked[0]["messages"][0]["content"]
    assert "Answer to judge: A" in said and asked[0]["response_format"]["json_schema"]["strict"]


def test_cgbenchs_judge_looks_at_the_clue_where_it_cannot_tell(tmp_path: Path, film: Path) -> None:
    run, asked = answered("cgbench_open", tmp_path), []
    (tmp_path / "cg_videos_720p").mkdir()
    shutil.copy(film, tmp_path / "cg_videos_720p/f.mp4")
    for path in tmp_path.glob("cgbench.json"):
        rows = json.loads(path.read_text())
        path.write_text(json.dumps([{**row, "clue_intervals": [[0.5, 1.0], [2, 2.5]]} for row in rows]))

    def marks(body: dict) -> dict:
        return {"mark": 2 if isinstance(body["messages"][0]["content"], str) else 1}

    endpoint = judged_by("gpt-4o-2024-08-06", marks, asked)
    judge_rows(run.out, tmp_path, run.questions(), run.answered(), endpoint)
    looked = [body for body in asked if not isinstance(body["messages"][0]["content"], str)]
    assert len(looked) == 2 and [p["type"] for p in looked[0]["messages"][0]["content"]].count("image_url") == 8
    assert total("mean", run.rows())["accuracy"].value == 1.0


def test_mathvistas_judge_reads_the_answer_out_of_the_text(tmp_path: Path) -> None:
    run, asked = answered("mathvista", tmp_path), []
    assert total("mean", run.rows())["accuracy"].value == 0.0
    endpoint = judged_by("gpt-4-0613", lambda body: {"value": "8"}, asked)
    judge_rows(run.out, tmp_path, run.questions(), run.answered(), endpoint)
    assert total("mean", run.rows())["accuracy"].value == pytest.approx(1 / 3)


def test_another_judge_is_named_or_refused(tmp_path: Path) -> None:
    run, asked = answered("mmvet", tmp_path), []
    endpoint = judged_by("some-other", lambda body: {"mark": 10}, asked)
    with pytest.raises(ValueError, match="is judged by gpt-4-0613, and the endpoint's model is some-other"):
        judge_rows(run.out, tmp_path, run.questions(), run.answered(), endpoint)
    judge_rows(run.out, tmp_path, run.questions(), run.answered(), endpoint, model="some-other")
    assert judgements(run.out)["v1_0"]["judge"] == "some-other"


def test_marks_off_the_scale_are_refused_and_another_answer_is_not_scored(tmp_path: Path) -> None:
    run = answered("mmvet", tmp_path)
    endpoint = judged_by("gpt-4-0613", lambda body: {"mark": 11}, [])
    with pytest.raises(JsonAnswerError):
        judge_rows(run.out, tmp_path, run.questions(), run.answered(), endpoint)
    assert (run.out / JUDGED).read_text() == ""
    with pytest.raises(ValueError, match="the judge read another answer"):
        with_judgement({"id": "1", "text": "A"}, {"said": "B", "numbers": {}, "judge": "j"})
