"""A run: questions to whoever answers, each reply at once to a line of a file; what is there is not asked again.

    run = Run(Path("out/videomme"), task, Path("Video-MME"), about={"model": "runs/first"})
    run.go(of_model(assistant, Path("Video-MME")))
    rows = run.rows()          # all scored answers, in the order of the questions

    out/run.json                what was asked of whom; a run of something else is refused
    out/predictions-0.jsonl     a line an answer, of process 0: id, text, what was seen, numbers, parsed
    out/judged.jsonl            a judge's scores, where the task has a judge (judge.py)

A line is written whole and flushed before the next question's: after a kill the last line may be cut short; it is cut
off, and that question asked again. Under torchrun each process answers its share of the videos and writes a file of its
own; a run may be taken up by another number of processes.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path
from typing import Any

from eagle_model.data.sample import DataError, shown
from eagle_model.evaluate.answer import Answer, Reply, share, together
from eagle_model.evaluate.judge import judgements, with_judgement
from eagle_model.evaluate.lines import cut_off, read_lines
from eagle_model.evaluate.read import read
from eagle_model.evaluate.scores import SCORES
from eagle_model.evaluate.task import Question, Task
from eagle_model.evaluate.tasks import TASKS
from eagle_model.files import append, read_json, write_json

ABOUT, PREDICTIONS = "run.json", "predictions-{}.jsonl"
_REPLY = tuple(field.name for field in fields(Reply))


class Run:
    """One task's predictions in one folder. Not safe for threads; processes have a rank each."""

    def __init__(
        self,
        out: Path,
        task: Task,
        data: Path,
        *,
        about: Mapping[str, Any],
        split: str | None = None,
        limit: int | None = None,
        rank: int = 0,
        num_ranks: int = 1,
        made: Callable[[], Iterator[Question]] | None = None,
    ) -> None:
        """about: what else makes the answers what they are: the model, its adapter, the server.
        limit: the first so many questions of each part alone.
        made: gives the questions in place of official files, the same at each call: needles.
        Raises ValueError where the folder holds a run of something else."""
        self.out, self.task, self.data, self.split, self.limit = out, task, data, split, limit
        self.rank, self.num_ranks, self.made = rank, num_ranks, made
        self.left_out: list[str] = []  # records that the task does not take
        mine = {"task": task.name, "split": split, "limit": limit, "data": str(data.resolve()), **about}
        out.mkdir(parents=True, exist_ok=True)
        if (out / ABOUT).is_file():
            theirs = read_json(out / ABOUT)
            differs = [k for k in sorted({*mine, *theirs}) if mine.get(k) != theirs.get(k)]
            if differs:
                said = ", ".join(f"{k}: {shown(theirs.get(k))}, now {shown(mine.get(k))}" for k in differs)
                raise ValueError(f"{out} holds a run of another kind ({said}). Give another folder, or the same run.")
        elif rank == 0:
            write_json(out / ABOUT, mine)

    def questions(self) -> Iterator[Question]:
        """All of the task, or of its parts, in order."""
        self.left_out.clear()
        for name in self.task.parts or (self.task.name,):
            part = self.task if name == self.task.name else TASKS[name]
            if self.made is None:
                questions = read(part, self.data, split=self.split, on_left_out=self.left_out.append)
            else:
                questions = self.made()
            yield from islice(questions, self.limit)

    def answered(self) -> dict[str, dict[str, Any]]:
        """id -> row, of all processes' files. Raises ValueError for a question that is answered twice."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(self.out.glob(PREDICTIONS.format("*"))):
            for row in read_lines(path):
                if row["id"] in found:
                    raise ValueError(f"{path}: question {row['id']} is answered twice; it was in {self.out} already.")
                found[row["id"]] = row
        return found

    def go(
        self, answer: Answer, *, skip_bad: bool = False, progress: Callable[[dict[str, Any]], object] | None = None
    ) -> int:
        """Asks what is not answered yet of this process's share; returns how many were.

        skip_bad: a question that cannot be shown counts as wrong, and is listed, rather than ending the run.
        Raises: DataError for such a question; ValueError where another process writes the same file.
        """
        path = self.out / PREDICTIONS.format(self.rank)
        num_asked = 0
        with path.open("ab", buffering=0) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(f"{path} is being written by another process; let it end first.") from None
            cut_off(path)
            done = self.answered()
            asked: dict[str, Question] = {}

            def left() -> Iterator[Question]:
                for question in together(share(self.questions(), self.rank, self.num_ranks)):
                    if question.id not in done:
                        asked[question.id] = question
                        yield question

            for reply in answer(left()):
                question = asked.pop(reply.id)
                if reply.error is not None and not skip_bad:
                    raise DataError(f"{reply.error} (--skip-bad counts such questions as wrong.)")
                row = row_of(question, asdict(reply))
                append(file, json.dumps(row, ensure_ascii=False) + "\n")
                num_asked += 1
                if progress:
                    progress(row)
            if asked:
                raise RuntimeError(f"{len(asked)} questions got no reply, the first of them {next(iter(asked))}.")
        return num_asked

    def rows(self) -> list[dict[str, Any]]:
        """All rows in the questions' order, scored anew, so that a better scorer needs no new answers; with the judge's
        scores. Raises ValueError while some are missing."""
        done, judged = self.answered(), judgements(self.out)
        rows, missing = [], 0
        for question in self.questions():
            if question.id not in done:
                missing += 1
                continue
            row = row_of(question, {name: done[question.id][name] for name in _REPLY})
            rows.append(with_judgement(row, judged.get(question.id)))
        if missing:
            raise ValueError(f"{self.out}: {missing} questions are not answered yet. Run it again: it goes on there.")
        return rows

    def is_complete(self) -> bool:
        done = self.answered()
        return all(question.id in done for question in self.questions())


def row_of(question: Question, reply: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the predictions: the reply, how it is read, and what it scores."""
    score = SCORES[question.task.score]
    parsed, numbers = score(question, reply["text"])
    return {
        **reply,
        "task": question.task.name,
        "media": question.video or question.media,  # clips of one film stand and fall together
        "parsed": parsed,
        "answer": question.answer,
        "numbers": numbers,
        "fields": dict(question.fields),
    }
