"""The files that servers take, for sets whose labels are hidden."""

import json
from pathlib import Path

from eagle_model.evaluate.runner import Run
from eagle_model.evaluate.submission import write_submission
from eagle_model.evaluate.tasks import TASKS
from tests.evaluate.official import IMAGE, SETS, parquet
from tests.evaluate.test_runner import Says


def rows_of(name: str, folder: Path, split: str | None = None) -> list[dict]:
    run = Run(folder / "out" / name, TASKS[name], folder, about={}, split=split)
    run.go(Says())
    return run.rows()


def test_a_table_of_indices(tmp_path: Path) -> None:
    SETS["egoschema"].write(tmp_path)
    rows = rows_of("egoschema", tmp_path)
    rows[1] = {**rows[1], "parsed": "C"}
    path = write_submission(tmp_path, TASKS["egoschema"], rows)
    assert path is not None and path.read_text() == "q_uid,answer\nu1,0\nu2,2\n"


def test_a_list_of_texts_with_the_ids_as_numbers(tmp_path: Path) -> None:
    rows = [{"questionId": "57344", "question": "When?", "image": IMAGE, "answers": None}]
    parquet("DocVQA/test-0.parquet", rows)(tmp_path)
    path = write_submission(tmp_path, TASKS["docvqa"], rows_of("docvqa", tmp_path, "test"))
    assert path is not None and json.loads(path.read_text()) == [{"questionId": 57344, "answer": "A"}]


def test_what_has_answers_is_not_submitted(tmp_path: Path) -> None:
    SETS["docvqa"].write(tmp_path)
    assert write_submission(tmp_path, TASKS["docvqa"], rows_of("docvqa", tmp_path)) is None
    SETS["videomme"].write(tmp_path)
    assert write_submission(tmp_path, TASKS["videomme"], rows_of("videomme", tmp_path)) is None


def test_mmbench_is_submitted_with_its_rotations(tmp_path: Path) -> None:
    import base64

    from tests.evaluate.official import png, tsv

    image = base64.b64encode(png()).decode()
    row = {"index": 5, "question": "Which?", "A": "x", "B": "y", "category": "c", "l2-category": "l", "image": image}
    tsv("MMBench_TEST_EN_V11.tsv", [row])(tmp_path)
    path = write_submission(tmp_path, TASKS["mmbench"], rows_of("mmbench", tmp_path, "test"))
    assert path is not None and path.read_text() == "index\tprediction\n5\tA\n1000005\tA\n"
