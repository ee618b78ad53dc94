"""Single images; every task's fixture is scored in tests/evaluate/test_task.py."""

from pathlib import Path

from eagle_model.evaluate.read import read
from eagle_model.evaluate.tasks import TASKS
from tests.evaluate.official import SETS, png


def test_images_are_bytes_base64_or_paths(tmp_path: Path) -> None:
    for name in ("mmstar", "mmbench", "hallusionbench", "erqa"):
        SETS[name].write(tmp_path)
    assert next(read(TASKS["mmstar"], tmp_path)).images == (png(),)
    assert next(read(TASKS["mmbench"], tmp_path)).images == (png(size=(64, 48)),)
    assert len(next(read(TASKS["erqa"], tmp_path)).images) == 2
    shown = {q.id: q.images for q in read(TASKS["hallusionbench"], tmp_path)}
    assert shown["VD/chart/0/0/0"] == ("hallusion_bench/a.png",) and shown["VS/chart/1/0/0"] == ()
