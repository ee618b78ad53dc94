"""The table beside the published numbers, and the page with answers beside what was seen."""

import json
from pathlib import Path

from PIL import Image

from eagle_model.evaluate.report import Seen, evenly, lines, page, write_report
from eagle_model.evaluate.runner import Run
from eagle_model.evaluate.task import Question
from eagle_model.evaluate.tasks import TASKS
from tests.evaluate.official import SETS
from tests.evaluate.test_runner import Says

ABOUT = {"model": "runs/<first>", "adapter": None}


def run_of(name: str, folder: Path) -> Run:
    SETS[name].write(folder)
    run = Run(folder / "out", TASKS[name], folder, about={})
    run.go(Says())
    return run


def seen(question: Question) -> list[Seen]:
    return [Seen("1.00 s", Image.new("RGB", (300, 200)))]


def test_the_table_has_our_number_both_of_lmms_eval_and_the_papers(tmp_path: Path) -> None:
    run = run_of("videomme", tmp_path)
    table = lines(run.task, run.rows(), ABOUT)
    assert "| | this run | Eagle2.5-8B (published) | GPT-4o (published) |" in table[6]
    (accuracy,) = [line for line in table if line.startswith("| accuracy")]
    assert accuracy.startswith("| accuracy | 25.0 (") and "| 72.4 | 71.9 | 75.0 | 64.2 | 65.1 |" in accuracy
    assert any(line.startswith("| lmms-eval's first letter | 25.0") for line in table)
    assert "| short | 33.3 " in "\n".join(table) and "| long | 0.0 " in "\n".join(table)
    assert table[4].startswith("4 questions. In brackets 95 % intervals")


def test_all_files_of_a_report(tmp_path: Path) -> None:
    run = run_of("videomme", tmp_path)
    paths = write_report(run.out, run.task, run.rows(), ABOUT, list(run.questions()), seen)
    assert [path.name for path in paths] == ["report.md", "scores.json", "report.html"]
    scores = json.loads(paths[1].read_text())
    assert scores["numbers"]["accuracy"]["value"] == 0.25 and scores["numbers"]["accuracy"]["num"] == 4
    assert scores["published"]["accuracy"]["Eagle2.5-8B"] == 72.4


def test_the_page_stands_alone_and_escapes(tmp_path: Path) -> None:
    run = run_of("videomme", tmp_path)
    rows = [{**row, "text": "<script>alert(1)</script>"} for row in run.rows()]
    html = page(run.task, rows, ABOUT, list(run.questions()), seen)
    assert "<script" not in html and "&lt;script&gt;" in html and "runs/&lt;first&gt;" in html
    assert html.count("data:image/jpeg;base64,") == 4 and "http" not in html.replace("http-equiv", "")
    wrong, right = html.index("<h2>Wrong"), html.index("<h2>Right")
    assert wrong < html.index("001-1") < right < html.index("001-3")


def test_hidden_answers_are_counted_and_submitted(tmp_path: Path) -> None:
    run = run_of("egoschema", tmp_path)
    assert [path.name for path in write_report(run.out, run.task, run.rows(), {})] == [
        "report.md",
        "scores.json",
        "egoschema.csv",
    ]
    table = (run.out / "report.md").read_text()
    assert "2 questions, 2 without a public answer" in table and "| no answer is public |" in table


def test_some_evenly_of_many() -> None:
    assert evenly(3) == [0, 1, 2] and evenly(100, 3) == [0, 50, 99]
