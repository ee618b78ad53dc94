"""Pages and pictures of texts; every task's fixture is scored in tests/evaluate/test_task.py."""

from pathlib import Path

from eagle_model.evaluate.read import read
from eagle_model.evaluate.tasks import TASKS
from tests.evaluate.official import SETS


def test_pages_are_pictures_of_a_deck_or_of_a_pdf(tmp_path: Path) -> None:
    SETS["slidevqa"].write(tmp_path)
    SETS["mmlongbench_doc"].write(tmp_path)
    assert len(next(read(TASKS["slidevqa"], tmp_path)).images) == 2
    document = next(read(TASKS["mmlongbench_doc"], tmp_path))
    assert document.video == "documents/d.pdf" and document.answer == "3"
