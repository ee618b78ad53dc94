"""`eagle eval` in a terminal: a benchmark from its files to its page, needles, and rows that were trained on."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from eagle_model.cli import app
from eagle_model.evaluate.decontaminate import video_looks
from tests.evaluate.conftest import film, model_folder  # noqa: F401
from tests.evaluate.official import SETS


def eagle(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)
    if isinstance(result.exception, ValueError):
        return 2, str(result.exception)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def data(tmp_path: Path, film: Path) -> Path:  # noqa: F811
    SETS["videomme"].write(tmp_path / "set")
    (tmp_path / "set/data").mkdir()
    for name in ("v1", "v2"):
        shutil.copy(film, tmp_path / f"set/data/{name}.mp4")
    return tmp_path / "set"


def test_a_benchmark_from_its_files_to_its_page(data: Path, model_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ("eval", model_folder, "--task", "videomme", "--data", data, "--out", tmp_path / "out")
    code, said = eagle(*words)
    assert code == 0 and "# Video-MME, without subtitles" in said and "72.4" in said
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"run.json", "predictions-0.jsonl", "report.md", "scores.json", "report.html"}
    before = (tmp_path / "out/predictions-0.jsonl").read_bytes()
    assert eagle(*words) == (code, said) and (tmp_path / "out/predictions-0.jsonl").read_bytes() == before
    assert (tmp_path / "out/report.html").read_text().count("data:image/jpeg") == 4 * 8


def test_processes_of_torchrun_share_and_the_last_one_reports(
    data: Path,
    model_folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ("eval", model_folder, "--task", "videomme", "--data", data, "--out", tmp_path / "out", "--no-page")
    said = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        said.append(eagle(*words))
    assert said[0] == (0, "") and said[1][0] == 0 and "\n4 questions" in said[1][1]
    lines = [len((tmp_path / f"out/predictions-{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)]
    assert lines == [3, 1]  # a film each


def test_needles(film: Path, model_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    words = (
        "--task",
        "needle",
        "--data",
        film,
        "--lengths",
        "8,9",
        "--depths",
        2,
        "--out",
        tmp_path / "out",
        "--no-page",
    )
    code, said = eagle("eval", model_folder, *words)
    assert code == 0 and "# Needles in a film" in said and (tmp_path / "out/needles.png").is_file()
    assert eagle("eval", model_folder, *words[:5], "x", *words[6:]) == (
        2,
        "--lengths is 'x'; needs numbers of frames, as 64,256.",
    )


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("eval", "m", "--task", "videomme"), "needs --task and --data"),
        (("eval", "--task", "videomme", "--data", "."), "needs a model's folder, or --endpoint"),
        (("eval", "m", "--task", "video", "--data", "."), "--task is 'video'; needs one of videomme"),
        (("eval", "m", "--task", "videomme", "--data", "nowhere"), "--data is nowhere; needs the benchmark's folder"),
        (("eval", "tasks", "nothing"), "no task has 'nothing' in its name"),
        (("eval", "decontaminate", "r.json", "--task", "x", "--data", "."), "--task is 'x'; needs one of"),
    ],
)
def test_mistakes_are_one_sentence(words: tuple[str, ...], problem: str) -> None:
    code, said = eagle(*words)
    assert code == 2 and problem in said


def test_tasks_are_listed() -> None:
    code, said = eagle("eval", "tasks", "docvqa", "--long")
    assert code == 0 and "docvqa: DocVQA. lmms-lab/DocVQA" in said and "questionId (str)" in said


def test_rows_that_were_trained_on_are_found(data: Path, tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "Which colour is 1? Say it."}, {"from": "gpt", "value": "Red."}]
    shutil.copy(data / "data/v1.mp4", tmp_path / "mine.mp4")
    rows = [{"id": "a", "conversations": turns}, {"id": "b", "video": "mine.mp4", "conversations": turns}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--task", "videomme", "--data", data, "--out", tmp_path / "found.jsonl")
    code, said = eagle("eval", "decontaminate", tmp_path / "rows.jsonl", *words)
    assert code == 3 and "1 of 2 rows share something with Video-MME" in said
    (match,) = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert (match["id"], match["kind"], match["question"]) == ("b", "file", "001-1")


def test_hashes_of_a_benchmark_are_written_for_select(data: Path, tmp_path: Path) -> None:
    words = ("eval", "decontaminate", "--task", "videomme", "--data", data)
    code, said = eagle(*words, "--hashes", tmp_path / "known.txt")
    assert code == 0 and "hashes of Video-MME" in said
    known = {int(line, 16) for line in (tmp_path / "known.txt").read_text().splitlines()}
    assert known and known >= set(video_looks(data / "data/v1.mp4"))
    assert eagle(*words)[0] == 2
