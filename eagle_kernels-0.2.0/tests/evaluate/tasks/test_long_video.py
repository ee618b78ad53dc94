"""What is told apart among long videos; every task's fixture is scored in tests/evaluate/test_task.py."""

from pathlib import Path

from eagle_model.evaluate.read import read
from eagle_model.evaluate.tasks import TASKS
from eagle_model.evaluate.tasks.long_video import TASKS as TABLE
from tests.evaluate.official import SETS


def test_subtitles_are_variants_with_names_of_their_own() -> None:
    said = {task.name: task.subtitles for task in TABLE if task.subtitle_file}
    assert said["videomme"] == "none" and said["videomme_subtitles_block"] == "block"
    assert said["videomme_subtitles_frames"] == "frames" and said["longvideobench_subtitles"] == "interleaved"


def test_cgbench_asks_the_clue_of_its_own_film_and_for_seconds_of_the_whole(tmp_path: Path) -> None:
    SETS["cgbench"].write(tmp_path)
    clue, where = (next(read(TASKS[f"cgbench_{part}"], tmp_path)) for part in ("clue", "grounding"))
    assert clue.video == "cg_clue_videos/1.mp4" and where.video == "cg_videos_720p/f.mp4"
    assert where.answer == [[0.0, 10.0]] and '{"result": [[start, end]' in where.text and where.task.tell_duration
