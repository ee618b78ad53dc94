"""MVBench's twenty folders; every task's fixture is scored in tests/evaluate/test_task.py."""

from pathlib import Path

from eagle_model.evaluate.read import read
from eagle_model.evaluate.tasks import TASKS
from tests.evaluate.official import SETS


def test_mvbench_has_twenty_tasks_with_a_folder_each(tmp_path: Path) -> None:
    task = TASKS["mvbench"]
    assert len(task.files["test"]) == len(task.folders) == 20
    SETS["mvbench"].write(tmp_path)
    found = {q.fields["_file"]: q for q in read(task, tmp_path)}
    assert found["action_sequence"].video == "video/star/Charades_v1_480/B.mp4" and found["action_sequence"].end == 1.0
    assert found["episodic_reasoning"].video == "video/tvqa/frames_fps3_hq/ep"
    assert task.frame_folders == ("video/tvqa/frames_fps3_hq",) and task.frame_folder_fps == 3
