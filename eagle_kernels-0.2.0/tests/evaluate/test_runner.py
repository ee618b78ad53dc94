"""A run goes on after a kill without asking again, over any number of processes, and refuses what is of another run."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from eagle_model.data.sample import DataError
from eagle_model.evaluate.answer import Reply
from eagle_model.evaluate.runner import Run
from eagle_model.evaluate.task import Question
from eagle_model.evaluate.tasks import TASKS
from tests.evaluate.official import SETS, jsonl

TASK = TASKS["lvbench"]
NUM = 12


def write(folder: Path) -> None:
    qa = [{"uid": str(i), "question": f"Is {i} it?", "answer": "A", "question_type": ["x"]} for i in range(NUM)]
    jsonl("video_info.meta.jsonl", [{"key": f"v{i}", "qa": qa[i : i + 3]} for i in range(0, NUM, 3)])(folder)


class Says:
    """Says "A", in another order, and stops dead where it is told to."""

    def __init__(self, stop_after: int | None = None, bad: str = "") -> None:
        self.asked: list[str] = []
        self.stop_after, self.bad = stop_after, bad

    def __call__(self, questions: Iterable[Question]) -> Iterator[Reply]:
        for question in reversed(list(questions)):
            if len(self.asked) == self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(question.id)
            error = "no such film" if question.id == self.bad else None
            yield Reply(id=question.id, text="" if error else "A", error=error)


def test_a_run_that_was_ended_goes_on(tmp_path: Path) -> None:
    write(tmp_path)
    out = tmp_path / "out"
    first, second, third = Says(stop_after=5), Says(), Says()
    with pytest.raises(KeyboardInterrupt):
        Run(out, TASK, tmp_path, about={"model": "m"}).go(first)
    run = Run(out, TASK, tmp_path, about={"model": "m"})
    assert not run.is_complete()
    with pytest.raises(ValueError, match="7 questions are not answered yet"):
        run.rows()
    path = out / "predictions-0.jsonl"
    path.write_bytes(path.read_bytes() + b'{"id": "3", "te')  # what a kill leaves
    assert run.go(second) == 7 and run.go(third) == 0
    assert sorted(first.asked + second.asked, key=int) == [str(i) for i in range(NUM)] and not third.asked
    assert [row["id"] for row in run.rows()] == [str(i) for i in range(NUM)]
    assert all(row["numbers"]["accuracy"] == 1 for row in run.rows())


def test_processes_share_the_films_and_another_number_takes_up(tmp_path: Path) -> None:
    write(tmp_path)
    out = tmp_path / "out"

    def of(rank: int, num_ranks: int) -> Run:
        return Run(out, TASK, tmp_path, about={}, rank=rank, num_ranks=num_ranks)

    says = [Says(stop_after=4), Says(), Says(), Says(), Says()]
    with pytest.raises(KeyboardInterrupt):
        of(0, 2).go(says[0])
    of(1, 2).go(says[1])
    for rank in range(3):
        of(rank, 3).go(says[2 + rank])
    asked = [i for s in says for i in s.asked]
    assert sorted(asked, key=int) == [str(i) for i in range(NUM)]
    assert of(0, 3).is_complete()


def test_a_run_of_something_else_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    Run(tmp_path / "out", TASK, tmp_path, about={"model": "m"})
    with pytest.raises(ValueError, match=r"run of another kind \(model: 'm', now 'n'\)"):
        Run(tmp_path / "out", TASK, tmp_path, about={"model": "n"})
    with pytest.raises(ValueError, match="limit: None, now 3"):
        Run(tmp_path / "out", TASK, tmp_path, about={"model": "m"}, limit=3)


def test_a_bad_question_ends_the_run_or_counts_as_wrong(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match=r"no such film \(--skip-bad"):
        Run(tmp_path / "a", TASK, tmp_path, about={}).go(Says(bad="4"))
    run = Run(tmp_path / "b", TASK, tmp_path, about={})
    run.go(Says(bad="4"), skip_bad=True)
    (bad,) = [row for row in run.rows() if row["error"]]
    assert bad["id"] == "4" and bad["numbers"]["accuracy"] == 0


def test_two_writers_of_one_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    run = Run(tmp_path / "out", TASK, tmp_path, about={})

    def meanwhile(questions: Iterable[Question]) -> Iterator[Reply]:
        with pytest.raises(ValueError, match="is being written by another process"):
            run.go(Says())
        return Says()(questions)

    assert run.go(meanwhile) == NUM


def test_an_answer_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    run = Run(tmp_path / "out", TASK, tmp_path, about={})
    run.go(Says())
    row = (run.out / "predictions-0.jsonl").read_text().splitlines()[0]
    (run.out / "predictions-1.jsonl").write_text(row + "\n")
    with pytest.raises(ValueError, match="is answered twice"):
        run.rows()


def test_parts_of_a_task_are_asked_one_after_the_other(tmp_path: Path) -> None:
    SETS["cgbench"].write(tmp_path)
    run = Run(tmp_path / "out", TASKS["cgbench"], tmp_path, about={}, limit=1)
    run.go(Says())
    assert {row["task"] for row in run.rows()} == {f"cgbench_{p}" for p in ("clue", "long", "grounding", "open")}


def test_clips_of_a_film_are_one_cluster(tmp_path: Path) -> None:
    SETS["mvbench"].write(tmp_path)
    run = Run(tmp_path / "out", TASKS["mvbench"], tmp_path, about={})
    run.go(Says())
    assert {row["media"] for row in run.rows()} == {q.video for q in run.questions()}


def test_no_reply_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path)
    run = Run(tmp_path / "out", TASK, tmp_path, about={})
    with pytest.raises(RuntimeError, match=f"{NUM} questions got no reply"):
        run.go(lambda questions: iter(list(questions)[:0]))


@pytest.mark.slow
def test_a_process_that_is_killed_anywhere_leaves_nothing_repeated_or_lost(tmp_path: Path) -> None:
    """Killed at random instants until it is through; each run writes what it asked into a log of its own."""
    write(tmp_path)
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from eagle_model.evaluate.runner import Run
        from tests.evaluate.test_runner import TASK, Reply
        folder = Path(sys.argv[1])
        def says(questions):
            for q in questions:
                time.sleep(0.02)
                yield Reply(id=q.id, text="A" * 50)
        Run(folder / "out", TASK, folder, about={}).go(says)
    """)
    num_kills = 0
    for delay in (0.03, 0.05, 0.08, 0.05, 0.1, 30.0):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=Path(__file__).parents[2])
        path, before = tmp_path / "out/predictions-0.jsonl", time.monotonic()
        size = path.stat().st_size if path.exists() else 0
        while (
            process.poll() is None
            and time.monotonic() - before < 60
            and not (path.exists() and path.stat().st_size > size)
        ):
            time.sleep(0.005)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            num_kills += 1
            process.wait()
    rows = Run(tmp_path / "out", TASK, tmp_path, about={}).rows()
    lines = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    assert num_kills >= 2 and len(rows) == len(lines) == len(set(lines)) == NUM
