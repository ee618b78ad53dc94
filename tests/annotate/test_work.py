"""annotate/work.py: nothing is asked twice, whenever the process is killed, by the server's own log."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from eagle_model.annotate import prompts
from eagle_model.annotate.ask import Answer, Ask, Unanswered
from eagle_model.annotate.config import AnnotateConfig
from eagle_model.annotate.journal import Journal
from eagle_model.annotate.records import QUESTIONS
from eagle_model.annotate.steps import STEPS, run_named
from eagle_model.annotate.work import Run, Step, find_parts, read_part, run_step, spent, stale, write_part
from eagle_model.data.sample import DataError
from eagle_model.files import write_json
from eagle_model.infer.endpoint import BudgetReached, EndpointConfig, EndpointError, Reply, RequestRefused
from eagle_model.infer.json_answers import JsonAnswerError
from tests.annotate.conftest import ASSIGNMENTS, LIST, annotator, expected_rows, films, row_of

CHOOSE = prompts.load("choose")
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
SETTLED_SECONDS = 0.2  # after a kill: the server has written down what it was at
Make = Callable[..., AnnotateConfig]


class Answers:
    """In an endpoint's place: says what it is told, and remembers what it was asked."""

    def __init__(self, says: Callable[[str, int], str] = lambda text, seed: '{"n": 1}', *, workers: int = 1) -> None:
        self.config = EndpointConfig(url="http://none/v1", model="told", max_concurrent=workers)
        self.says, self.asked = says, []

    def ask(self, messages, *, max_tokens, temperature, seed, json_schema) -> Reply:
        text = messages[0]["content"][-1]["text"]
        self.asked.append((text, seed))
        said = self.says(text, seed)
        reply = Reply(
            text=said,
            finish_reason="stop",
            prompt_tokens=1,
            answer_tokens=1,
            dollars=0.5,
            seconds=0.0,
            num_tries=1,
            raw={},
        )
        if json_schema and not said.startswith('{"n": '):
            error = JsonAnswerError("not JSON")
            error.reply = reply
            raise error
        return reply


def run_with(make_config: Make, answers: Answers, *assignments: str, share: tuple[int, int] = (0, 1)) -> Run:
    return Run(make_config("http://none/v1", *assignments), share=share, annotator=answers, reader=answers)


def begin(run: Run, num_parts: int = 1) -> None:
    """Finished parts of a first step, two videos each."""
    folder = run.folder / "select"
    folder.mkdir(parents=True)
    for number in range(num_parts):
        rows = [{"id": f"v{2 * number}"}, {"id": f"v{2 * number + 1}"}]
        write_part(folder, number, rows, QUESTIONS)
        write_json(folder / f"part-{number:05d}.done.json", {"num_requests": 0, "dollars": 0.0})


def step(work: Callable[[dict, Ask], list], settings: object = None) -> Step:
    return Step(
        name="story",
        inputs=("select",),
        settings=settings,
        prompts=(CHOOSE,),
        columns=QUESTIONS,
        items=lambda parts: parts["select"].to_pylist(),
        work=work,
    )


def ask_once(video: dict, ask: Ask) -> list[dict]:
    answer = asked(video, ask)
    return [{"id": video["id"], "answer": str(answer.value["n"]), "request": answer.key}]


def asked(video: dict, ask: Ask) -> Answer:
    return ask(CHOOSE, [{"type": "text", "text": video["id"]}], SCHEMA, item=video["id"])


def test_what_is_done_is_not_done_again(make_config: Make) -> None:
    answers = Answers()
    run = run_with(make_config, answers)
    begin(run, 2)
    first = run_step(run, step(ask_once))
    assert (first.num_parts, first.num_rows, first.num_requests, first.dollars) == (2, 4, 4, 2.0)
    assert run_step(run, step(ask_once)) == first and len(answers.asked) == 4
    assert [row["id"] for row in read_part(run.folder / "story", 1).to_pylist()] == ["v2", "v3"]
    assert spent(run.folder) == (4, 2.0)


def test_a_part_whose_rows_are_lost_is_made_from_its_journal(make_config: Make) -> None:
    answers = Answers()
    run = run_with(make_config, answers)
    begin(run)
    run_step(run, step(ask_once))
    (run.folder / "story/part-00000.parquet").unlink()
    (run.folder / "story/part-00000.done.json").unlink()
    assert run_step(run, step(ask_once)).num_rows == 2 and len(answers.asked) == 2


def test_other_inputs_make_a_part_anew_from_the_answers_that_fit(make_config: Make) -> None:
    answers = Answers()
    run = run_with(make_config, answers)
    begin(run)
    run_step(run, step(ask_once))
    write_part(run.folder / "select", 0, [{"id": "v1"}, {"id": "v9"}], QUESTIONS)
    run_step(run, step(ask_once))
    assert [text for text, _ in answers.asked] == ["v0", "v1", "v9"]
    assert [row["id"] for row in read_part(run.folder / "story", 0).to_pylist()] == ["v1", "v9"]


def test_a_bad_answer_is_kept_and_another_is_asked_for(make_config: Make) -> None:
    answers = Answers(lambda text, seed: "no" if seed < 1 else '{"n": 2}')
    run = run_with(make_config, answers)
    begin(run)
    assert run_step(run, step(ask_once)).num_requests == 4
    assert answers.asked[:2] == [("v0", 0), ("v0", 1)]
    lines = (run.folder / "story/part-00000.jsonl").read_text().splitlines()
    assert [json.loads(line)["problem"] for line in lines] == ["not JSON", None] * 2


def test_an_item_without_a_good_answer_is_left_out_and_told(make_config: Make) -> None:
    run = run_with(make_config, Answers(lambda text, seed: "no" if text == "v1" else '{"n": 2}'))
    begin(run)
    totals = run_step(run, step(ask_once))
    assert totals.num_rows == 1 and totals.num_requests == 4
    assert (
        totals.failures[0]["item"] == "v1"
        and "3 answers, none good; the last: not JSON" in totals.failures[0]["problem"]
    )


def test_an_empty_answer_is_none(make_config: Make) -> None:
    """As of a model that thought until its tokens were out: it says nothing, and that is no choice of an option."""

    def work(video: dict, ask: Ask) -> list[dict]:
        return [{"id": ask(CHOOSE, [{"type": "text", "text": video["id"]}], None, item=video["id"]).value}]

    answers = Answers(lambda text, seed: " " if seed < 1 else "A")
    run = run_with(make_config, answers)
    begin(run)
    assert run_step(run, step(work)).num_rows == 2 and len(answers.asked) == 4
    silent = run_with(make_config, Answers(lambda text, seed: ""), "out=other")
    begin(silent)
    totals = run_step(silent, step(work))
    assert totals.num_rows == 0 and "the last: an empty answer" in totals.failures[0]["problem"]


def test_more_room_to_think_asks_again_for_what_had_too_little(make_config: Make) -> None:
    run = run_with(make_config, Answers(lambda text, seed: "no" if text == "v1" else '{"n": 2}'))
    begin(run)
    assert run_step(run, step(ask_once)).num_rows == 1
    roomy = Answers()
    roomy.config = replace(roomy.config, thinking_tokens=500)
    again = run_with(make_config, roomy)
    (again.folder / "story/part-00000.done.json").unlink()
    assert run_step(again, step(ask_once)).num_rows == 2 and [text for text, _ in roomy.asked] == ["v1"]


def test_some_of_an_items_questions_may_be_refused(make_config: Make) -> None:
    def work(video: dict, ask: Ask) -> list[dict]:
        def one(name: str) -> dict:
            if name != "v1 a":
                raise RequestRefused(f"refuses: HTTP 400: {name}")
            return {"id": name}

        return ask.some((f"{video['id']} {letter}", partial(one, f"{video['id']} {letter}")) for letter in "cab")

    run = run_with(make_config, Answers())
    begin(run)
    totals = run_step(run, step(work))
    assert [row["id"] for row in read_part(run.folder / "story", 0).to_pylist()] == ["v1 a"]
    assert [f["item"] for f in totals.failures] == ["v0", "v1 b", "v1 c"]  # of v0 nothing is left


def test_other_pictures_make_a_step_anew_that_shows_some(make_config: Make) -> None:
    answers = Answers()
    run = run_with(make_config, answers)
    begin(run)
    silent = replace(step(ask_once), name="segment", prompts=(), work=lambda video, ask: [{"id": video["id"]}])
    run_step(run, step(ask_once))
    run_step(run, silent)
    answers.config = replace(answers.config, image_px=128)
    assert stale(run, step(ask_once)) == 1 and stale(run, silent) == 0
    answers.config = replace(answers.config, image_px=512, max_concurrent=2)
    assert stale(run, step(ask_once)) == 0


@pytest.mark.parametrize(
    "error", [DataError("cut off"), Unanswered("none"), RequestRefused("refuses: HTTP 400")], ids=str
)
def test_an_item_that_fails_ends_no_step(make_config: Make, error: Exception) -> None:
    def work(video: dict, ask: Ask) -> list[dict]:
        if video["id"] == "v0":
            raise error
        return ask_once(video, ask)

    run = run_with(make_config, Answers())
    begin(run)
    totals = run_step(run, step(work))
    assert totals.num_rows == 1 and totals.failures == [{"item": "v0", "problem": str(error)}]


def test_a_server_that_refuses_everything_ends_the_step(make_config: Make) -> None:
    def work(video: dict, ask: Ask) -> list[dict]:
        raise RequestRefused("http://none/v1 refuses: HTTP 400: no images")

    run = run_with(make_config, Answers())
    begin(run)
    with pytest.raises(EndpointError, match=r"every request is refused; the first: .* no images"):
        run_step(run, step(work))
    assert not list((run.folder / "story").glob("*.done.json"))


def test_a_last_part_that_is_refused_ends_no_step(make_config: Make) -> None:
    def work(video: dict, ask: Ask) -> list[dict]:
        if video["id"] in ("v2", "v3"):
            raise RequestRefused("http://none/v1 refuses: HTTP 400: content policy")
        return ask_once(video, ask)

    run = run_with(make_config, Answers())
    begin(run, 2)
    totals = run_step(run, step(work))
    assert totals.num_rows == 2 and [failure["item"] for failure in totals.failures] == ["v2", "v3"]


def test_an_endpoint_that_is_gone_ends_the_step_and_loses_nothing(make_config: Make) -> None:
    def says(text: str, seed: int) -> str:
        if text == "v1":
            raise EndpointError("gone")
        return '{"n": 3}'

    run = run_with(make_config, Answers(says))
    begin(run)
    with pytest.raises(EndpointError, match="gone"):
        run_step(run, step(ask_once))
    back = Answers()
    assert run_step(run_with(make_config, back), step(ask_once)).num_rows == 2
    assert [text for text, _ in back.asked] == ["v1"]
    assert [row["answer"] for row in read_part(run.folder / "story", 0).to_pylist()] == ["3", "1"]


def test_a_budget_counts_what_earlier_starts_spent(make_config: Make, tmp_path: Path) -> None:
    films(tmp_path / "films")
    log = tmp_path / "log.jsonl"
    with annotator(log, faults=False) as url:
        for most in (3, 3, 5):  # the second start asks nothing
            run = Run(make_config(url, *ASSIGNMENTS, f"budget.max_requests={most}", "annotator.max_concurrent=1"))
            run_named(run, "select")
            run_named(run, "segment")
            with pytest.raises(BudgetReached, match=f"max_requests is {most}"):
                run_named(run, "story")
            assert len(log.read_text().splitlines()) == most == spent(run.folder)[0]


def test_processes_share_the_parts(make_config: Make) -> None:
    answers = Answers()
    run = run_with(make_config, answers)
    begin(run, 3)
    shares = [run_with(make_config, answers, share=(i, 2)) for i in range(2)]
    assert [run_step(one, step(ask_once)).num_parts for one in shares] == [2, 1]
    assert find_parts(run.folder / "story") == [0, 1, 2] and len(answers.asked) == 6


def test_a_step_before_is_asked_for(make_config: Make) -> None:
    with pytest.raises(ValueError, match="run `eagle annotate select` first"):
        run_step(run_with(make_config, Answers()), step(ask_once))


# ---- kills


class Killer:
    """Kills runs over a film or two, and reads both sides: the server's log, and what is on disk."""

    def __init__(self, folder: Path, make_config: Make, num_kills: int, wait: Callable[[int], int]) -> None:
        self.folder, self.make_config, self.num_kills, self.wait = folder, make_config, num_kills, wait
        self.log, self.run_folder, self.num_killed = folder / "log.jsonl", folder / "run", 0
        self.num_logged = self.log_bytes = 0  # of the server's log, as far as it was read
        self.chance = random.Random(num_kills)
        films(folder / "films", LIST[1:])  # the two small ones
        self.log.touch()

    def requests(self) -> list[dict]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def has_logged(self, wanted: int | None) -> bool:
        """Whether the log has so many lines by now."""
        with self.log.open("rb") as file:
            file.seek(self.log_bytes)
            more = file.read()
        self.log_bytes += len(more)
        self.num_logged += more.count(b"\n")
        return wanted is not None and self.num_logged >= wanted

    def on_disk(self) -> set[str]:
        """The requests whose answers lie in a journal, whole."""
        journals = self.run_folder.glob("*/part-*.jsonl")
        lines = [line for path in journals for line in path.read_bytes().splitlines(keepends=True)]
        return {json.loads(line)["raw"]["id"] for line in lines if line.endswith(b"\n")}

    def start(self, config: AnnotateConfig) -> int:
        if (child := os.fork()) == 0:
            try:
                run = Run(config)
                for name in STEPS:
                    run_named(run, name)
            finally:
                os._exit(0)
        return child

    def ends_by_itself(self, child: int, wanted: int | None) -> bool:
        """Waits for the child, and kills it once so many requests are in the log."""
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if self.has_logged(wanted):
                time.sleep(self.chance.uniform(0, 0.02))
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                self.num_killed += 1
                time.sleep(SETTLED_SECONDS)
                return False
            time.sleep(0.002)
        return True

    def one_run(self, config: AnnotateConfig) -> None:
        """Kills a run and starts it again until it ends, or there were kills enough."""
        begun, num_lost, is_over = len(self.requests()), 0, False
        while not is_over:
            before, kept = len(self.requests()), self.on_disk()
            is_last = self.num_killed == self.num_kills
            wanted = None if is_last else before + self.wait(self.num_killed)
            is_over = self.ends_by_itself(self.start(config), wanted)
            now = self.requests()[before:]
            assert not kept & {r["id"] for r in now}, "an answer that was on the disk was asked for again"
            lost = {r["id"] for r in now if r["status"] == 200} - self.on_disk()
            assert len(lost) <= config.annotator.max_concurrent, "more was lost than was in flight"
            num_lost += len(lost)
        answered = Counter(r["id"] for r in self.requests()[begun:] if r["status"] == 200)
        assert sum(answered.values()) - len(answered) <= num_lost
        rows = [json.loads(line) for line in (self.run_folder / "build/train.jsonl").read_text().splitlines()]
        assert [row_of(row) for row in rows] == [r for r in expected_rows() if not r[0].startswith("bigbuckbunny")]

    def go(self) -> None:
        with annotator(self.log, faults=True) as url:
            config = self.make_config(url, *ASSIGNMENTS, "part_videos=1")
            while self.num_killed < self.num_kills:
                shutil.rmtree(self.run_folder, ignore_errors=True)
                self.one_run(config)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, make_config: Make) -> None:
    Killer(tmp_path, make_config, 2, lambda kill: (8, 20)[kill]).go()


@pytest.mark.slow
def test_runs_that_are_killed_fifty_times_go_on_where_they_were(tmp_path: Path, make_config: Make) -> None:
    Killer(tmp_path, make_config, 50, lambda kill: 1 + kill % 3).go()


def test_parts_of_other_settings_are_counted(make_config: Make) -> None:
    run = run_with(make_config, Answers())
    begin(run, 2)
    assert stale(run, step(ask_once)) == 0  # nothing is done yet
    run_step(run, step(ask_once))
    assert stale(run, step(ask_once)) == 0 and stale(run, step(ask_once, run.config.clip)) == 2
    write_part(run.folder / "select", 1, [{"id": "v9"}], QUESTIONS)
    assert stale(run, step(ask_once)) == 1


def test_a_part_that_another_process_does_keeps_its_note(make_config: Make) -> None:
    run = run_with(make_config, Answers())
    begin(run)
    run_step(run, step(ask_once))
    with Journal(run.folder / "story/part-00000.jsonl"), pytest.raises(ValueError, match="in use by another process"):
        run_step(run, step(ask_once, run.config.clip))
    assert find_parts(run.folder / "story") == [0]
