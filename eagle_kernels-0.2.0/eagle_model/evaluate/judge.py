"""Answers that a model judges: which model, what it is asked, and what its marks are worth. JUDGES is the table.

    judge_rows(out, questions, rows, endpoint)        # out/judged.jsonl: resumable, a line an answer
    numbers = judgements(out)["q7"]["numbers"]        # {"score": 2.0}

A judge is part of the benchmark: each has the name of the model that its authors, or their peers, score with, and a run
that was judged by another says so in every table. The texts below are our own: they ask for the same marks on the same
scale as the official ones, whose wording is not ours to ship; docs/evaluation.md lists what that may change.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eagle_model.data.sample import DataError, shown
from eagle_model.evaluate.lines import cut_off, read_lines
from eagle_model.evaluate.scores import SCORES
from eagle_model.evaluate.show import Part, clue_frames
from eagle_model.evaluate.task import Question
from eagle_model.files import append

if TYPE_CHECKING:
    from eagle_model.infer.endpoint import Endpoint

JUDGED = "judged.jsonl"
MAX_JUDGE_TOKENS = 512
CLUE_FRAMES = 8  # that CG-Bench's second step sees

_COMPARE = "Question: {question}\nRight answer: {answer}\nAnswer to judge: {said}\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    model: str  # pinned, as the server calls it
    prompt: str  # of {question}, {answer}, {said} and the question's kept columns
    marks: tuple[str, ...]  # integers that the judge gives, by name
    low: int
    high: int
    number: str  # what the table calls it
    score: Callable[[Mapping[str, int]], float]
    looks_again: str = ""  # a second prompt, asked with the frames of the clue where the first mark is 2


def _mark(marks: Mapping[str, int]) -> float:
    return float(marks["mark"])


JUDGES: Mapping[str, Judge] = {
    "mmbench_video": Judge(
        model="gpt-4-1106-preview",
        prompt=_COMPARE + "How close in meaning is the answer to the right one? 0: not at all; 1: little of it is "
        "right; 2: most of it; 3: all of it. Grammar does not count.",
        marks=("mark",), low=0, high=3, number="score", score=_mark,
    ),
    "mmvet": Judge(
        model="gpt-4-0613",
        prompt=_COMPARE + "<AND> in the right answer means that all parts are needed, <OR> that one is enough. Which "
        "part of the right answer does the answer give? In tenths: 0 for nothing, 10 for all of it.",
        marks=("mark",), low=0, high=10, number="accuracy", score=lambda marks: marks["mark"] / 10,
    ),
    "openeqa": Judge(
        model="gpt-4-1106-preview",
        prompt=_COMPARE + "Other right answers: {extra_answers}\nHow well does the answer match a right one? 1: not at "
        "all; 5: perfectly.",
        marks=("mark",), low=1, high=5, number="accuracy", score=lambda marks: (marks["mark"] - 1) / 4,
    ),
    "mlvu": Judge(
        model="gpt-4-1106-preview",
        prompt=_COMPARE + "Points that count: {scoring_points}\nGive two marks from 1 to 5. accuracy: how many of the "
        "points, or of what the right answer says, are there and right; relevance: how far the answer keeps to the "
        "question and says nothing that is false.",
        marks=("accuracy", "relevance"), low=1, high=5, number="judged", score=lambda marks: float(sum(marks.values())),
    ),
    "cgbench": Judge(
        model="gpt-4o-2024-08-06",
        prompt=_COMPARE + "1: the answer means the same as the right one, or contains it; 0: it means something else; "
        "2: the two may describe the same scene in other words, and one would have to see it.",
        marks=("mark",), low=0, high=2, number="accuracy", score=_mark,
        looks_again="Question: {question}\nAnswer to judge: {said}\nThe frames are of the part of the video that "
        "answers the question. 1: they show that the answer is right; 0: they do not.",
    ),
    "mathvista": Judge(  # reads the answer out of a longer text; the scorer then compares it
        model="gpt-4-0613",
        prompt="Question: {question}\nAnswer: {said}\nWhich value, or which option, is the answer? Give it alone, as "
        "text.",
        marks=(), low=0, high=0, number="accuracy", score=lambda marks: 0.0,
    ),
}  # fmt: skip


def _schema(judge: Judge) -> dict[str, Any]:
    mark = {"type": "integer", "minimum": judge.low, "maximum": judge.high}
    properties = dict.fromkeys(judge.marks, mark) or {"value": {"type": "string"}}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def judgements(out: Path) -> dict[str, dict[str, Any]]:
    """id -> what the judge said; {} where nothing was judged."""
    path = out / JUDGED
    return {row["id"]: row for row in read_lines(path)} if path.is_file() else {}


def with_judgement(row: dict[str, Any], judged: Mapping[str, Any] | None) -> dict[str, Any]:
    """A row with the judge's numbers in the place of its own. Raises ValueError where it judged another text."""
    if judged is None:
        return row
    if judged["said"] != row["text"]:
        raise ValueError(f"question {row['id']}: the judge read another answer. Delete {JUDGED} and judge again.")
    return {**row, "numbers": judged["numbers"], "judge": judged["judge"]}


def judge_rows(
    out: Path,
    folder: Path,
    questions: Iterable[Question],
    rows: Mapping[str, Mapping[str, Any]],
    endpoint: Endpoint,
    *,
    model: str | None = None,
) -> int:
    """Has each answer judged that was not yet; returns how many were.

    Args:    model: the judge to name in tables in place of the task's own, where the endpoint has another.
    Raises:  ValueError where the endpoint's model is not the task's judge and none is named; EndpointError.
    """
    path = out / JUDGED
    path.touch()
    cut_off(path)
    done = judgements(out)
    waiting = [q for q in questions if q.task.judge and q.answer is not None and q.id not in done]
    for question in waiting:
        judge = JUDGES[question.task.judge]
        if (model or judge.model) != endpoint.config.model:
            raise ValueError(
                f"{question.task.title} is judged by {judge.model}, and the endpoint's model is "
                f"{endpoint.config.model}. Take that one, or name this one as the judge: no number compares then."
            )

    def ask(question: Question) -> dict[str, Any]:
        return _judged(question, str(rows[question.id]["text"]), folder, endpoint)

    with path.open("ab", buffering=0) as file, ThreadPoolExecutor(endpoint.config.max_concurrent) as pool:
        for judged in pool.map(ask, waiting):
            append(file, json.dumps(judged, ensure_ascii=False) + "\n")
    return len(waiting)


def _judged(question: Question, said: str, folder: Path, endpoint: Endpoint) -> dict[str, Any]:
    judge = JUDGES[question.task.judge]
    columns = {"scoring_points": "none", "extra_answers": "none", "question": question.text, **question.fields}
    words = {**columns, "answer": question.answer, "said": said}
    prompt = judge.prompt.format_map(words)

    def marks_of(content: str | list[Part], schema: dict[str, Any]) -> dict[str, Any]:
        messages = [{"role": "user", "content": content}]
        given = endpoint.ask(messages, max_tokens=MAX_JUDGE_TOKENS, json_schema=schema).json
        if not isinstance(given, dict):
            raise DataError(f"the judge of question {question.id} said {shown(given)}; needs an object.")
        return given

    marks = marks_of(prompt, _schema(judge))
    if not judge.marks:
        _, numbers = SCORES[question.task.score](question, str(marks["value"]))
    else:
        if judge.looks_again and marks["mark"] == 2:
            frames = clue_frames(question, folder, most=CLUE_FRAMES)
            again = {**_schema(judge), "properties": {"mark": {"type": "integer", "minimum": 0, "maximum": 1}}}
            marks = marks_of([*frames, {"type": "text", "text": judge.looks_again.format_map(words)}], again)
        numbers = {judge.number: judge.score(marks)}
    return {"id": question.id, "judge": endpoint.config.model, "said": said, "marks": marks, "numbers": numbers}
