"""All benchmarks by name: `TASKS["videomme"]`. Each file here is one table; `eagle eval tasks` prints them."""

from __future__ import annotations

from eagle_model.evaluate.task import Task
from eagle_model.evaluate.tasks import documents, images, long_video, short_video

TASKS: dict[str, Task] = {
    task.name: task for table in (long_video, short_video, documents, images) for task in table.TASKS
}
