"""`eagle data prepare` as a map over parts, by datatrove: on this machine, a Slurm cluster or Ray.

    python examples/prepare_cluster.py recipe.json prepared models/eagle --tasks 8 --workers 4
    python examples/prepare_cluster.py recipe.json prepared models/eagle --tasks 200 --slurm cpu_partition

Needs pip install 'eagle-kernels[cluster]', and a folder `prepared` that all machines see. The parts are cut here, each
task prepares every n-th of them, and at the end what was written is counted: datatrove calls a task completed that ran
to its end, whatever became of what it wrote. Started again it goes on with the tasks that are not completed. On Slurm
the tasks are only submitted: when they are done, the same line with --finish counts, and writes prepared.json.

Without datatrove the same map is any launcher that calls prepare_part(out, k) for every k, in any order.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from eagle_model.data.prepare import begin, finish, prepare_part
from eagle_model.data.processor import Processor


class PrepareParts(PipelineStep):
    """Every n-th part, n tasks in all. A part that is there already is not prepared again."""

    name, type = "Prepare parts", "Eagle"

    def __init__(self, out: Path, num_parts: int) -> None:
        super().__init__()
        self.out, self.num_parts = out, num_parts

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        for k in range(rank, self.num_parts, world_size):
            with self.track_time():
                counts = prepare_part(self.out, k)
            for name, num in counts.items():
                self.stat_update(name, value=num)
        yield from ()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("processor", type=Path, help="a model's folder, a run's or a checkpoint's")
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2, help="tasks at a time, without --slurm")
    parser.add_argument("--slurm", metavar="PARTITION")
    parser.add_argument("--finish", action="store_true", help="the tasks are done: count what they wrote")
    given = parser.parse_args(arguments)
    if not given.finish:
        plan = begin(given.recipe, Processor.from_pretrained(given.processor), given.out)
        shared: dict[str, Any] = {
            "pipeline": [PrepareParts(given.out.absolute(), plan.num_parts)],
            "tasks": given.tasks,
            "logging_dir": str(given.out.absolute() / "tasks"),  # which tasks are completed, and what they said
        }
        if given.slurm:
            SlurmPipelineExecutor(**shared, time="24:00:00", partition=given.slurm, job_name="eagle-prepare").run()
            return
        LocalPipelineExecutor(**shared, workers=given.workers, start_method="spawn").run()
    done = finish(given.out)
    print(f"{done['rows']:,} rows, {done['skipped']:,} of them bad, in {done['num_parts']} parts")


if __name__ == "__main__":
    main()
