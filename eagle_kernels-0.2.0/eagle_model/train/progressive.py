"""Progressive training: runs one after the other, each starting from the model that the one before has made.

    eagle train progressive --run runs/eagle --set model=start --set data.recipe=mix.json     # stages 2, 3 and 4

    stages = stages_of(["stage2", "stage3"], ["model=start", "data.recipe=mix.json", "stage3:max_steps=50"])
    done = Progressive(stages, "runs/eagle").train()      # False: it was told to stop; the same again resumes

runs/eagle/
    progressive.json     which stages are done
    stage2/              a run, as the trainer makes it
    stage3/              the next, its model the newest checkpoint of stage2
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from eagle_model.checkpoints import steps
from eagle_model.fields import ConfigError, diff, few, override, shown
from eagle_model.files import read_json, write_json
from eagle_model.train.config import CHANGEABLE_ON_RESUME, TrainConfig, read_config
from eagle_model.train.layout import check_layout
from eagle_model.train.ranks import num_processes, start
from eagle_model.train.recipes import recipe
from eagle_model.train.start import with_absolute_paths
from eagle_model.train.trainer import Trainer

STAGES = ("stage2", "stage3", "stage4")  # of the paper's progressive mixed post-training
STATE = "progressive.json"
CHANGEABLE_WHEN_DONE = CHANGEABLE_ON_RESUME - {"max_steps", "num_epochs"}  # longer, it would give another model


def stages_of(names: Sequence[str], assignments: Sequence[str]) -> list[TrainConfig]:
    """The configs of recipes by name, with `assignments` (fields.override) to all of them, or to one: "stage3:seed=1".

    Raises: ConfigError where `recipe` or `override` do.
    """
    common = [text for text in assignments if text.partition(":")[0] not in names]
    return [
        override(recipe(name), common + [rest for stage, _, rest in map(_split, assignments) if stage == name])
        for name in names
    ]


def _split(assignment: str) -> tuple[str, str, str]:
    return assignment.partition(":")


class Progressive:
    """Stages in their folder, whose names are those of their recipes (`TrainConfig.recipe_name`)."""

    def __init__(
        self,
        stages: Sequence[TrainConfig],
        folder: str | Path,
        *,
        device: torch.device | str | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """The first stage starts from its own `model`; that of every other is replaced.

        Raises: ConfigError when a stage has no data or a layout that cannot work, two have one name, the folder holds
                something else, or a stage that is done was another one.
        """
        self.folder, self.stopped_by = Path(folder), None
        self._device, self._say = device, say
        names = [stage.recipe_name for stage in stages]
        if not names or len({*names, ""}) <= len(names):
            raise ConfigError(f"The stages are {few(map(repr, names)) or 'none'}; needs one or more, of unlike names.")
        if without := [stage.recipe_name for stage in stages if not stage.data.recipe]:
            raise ConfigError(f"data.recipe of {few(without)} is empty; needs a recipe: --set data.recipe=FILE.")
        for stage in stages:  # the last may come days later
            try:
                check_layout(stage.layout, num_processes=num_processes(), rows_per_step=stage.rows_per_step)
            except ConfigError as error:
                raise ConfigError(f"Stage {stage.recipe_name}: {error}") from error
        befores = [None, *map(self._start_of, names[:-1], names[1:])]
        self.stages = {
            stage.recipe_name: with_absolute_paths(replace(stage, model=str(before)) if before else stage)
            for stage, before in zip(stages, befores, strict=True)
        }
        self._refuse_foreign()
        self._done = self._read_done()
        for name in self._done:
            self._check_same(name)

    stopped_by: signal.Signals | None  # the signal that ended `train` early

    def _start_of(self, before: str, name: str) -> Path:
        """The folder that stage `name` starts from: that of the stage before. One that has started says where that
        was; the folder of all stages may have moved since."""
        if steps(self.folder / name / "checkpoints"):
            started_from = Path(read_config(self.folder / name / "config.json").model)
            if started_from.name == before:
                return started_from
        return self.folder / before

    def train(self) -> bool:
        """Trains the stages that are not done, in order; returns whether all are. What a stage raises goes through."""
        ranks = start(next(iter(self.stages.values())).layout, self._device)  # the stages' trainers find its processes
        self._is_first = ranks.is_first
        done = self._train()
        ranks.close()
        return done

    def _train(self) -> bool:
        self._write_done()
        for number, (name, config) in enumerate(self.stages.items(), 1):
            about = f"Stage {number} of {len(self.stages)}, {name}"
            if name in self._done:
                about += ": is done."
            else:
                about += f": from {config.model}."
            if self._is_first:
                self._say(about)
            if name in self._done:
                continue
            trainer = Trainer(config, self.folder / name, device=self._device, say=self._say)
            if not trainer.train():
                self.stopped_by = trainer.stopped_by
                return False
            self._done.append(name)
            self._write_done()
        return True

    def _refuse_foreign(self) -> None:
        folder = self.folder
        if (folder / "run.json").exists() or steps(folder / "checkpoints"):
            raise ConfigError(
                f"{folder} is a run of its own; stages need a folder that holds their runs. Name another."
            )
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        if STATE not in names and (foreign := [name for name in names if not name.startswith(f".{STATE}")]):
            raise ConfigError(f"{folder} holds files but no {STATE}: {few(sorted(foreign))}. Give a new folder.")

    def _read_done(self) -> list[str]:
        path = self.folder / STATE
        if not path.exists():
            return []
        raw = read_json(path)
        done = raw.get("done") if isinstance(raw, dict) else None
        if not isinstance(done, list) or done != list(self.stages)[: len(done)]:
            raise ConfigError(
                f"{path} says that {shown(done)} are done; the stages are {few(self.stages)}. Give the stages that it "
                "began with, in their order, or a new folder."
            )
        return done

    def _write_done(self) -> None:
        if not self._is_first:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / STATE, {"stages": list(self.stages), "done": self._done})

    def _check_same(self, name: str) -> None:
        changed = diff(read_config(self.folder / name / "config.json"), self.stages[name])
        refused = [
            f"{path}: {shown(before)} -> {shown(after)}"
            for path, (before, after) in changed.items()
            if path not in CHANGEABLE_WHEN_DONE
        ]
        if refused:
            raise ConfigError(
                f"Stage {name} in {self.folder} is done, and was another: {'; '.join(refused)}. The stages after it "
                "start from what it has made. Set these back, or give a new folder."
            )
