"""SIGKILL at any moment, of one process or of all: the newest complete checkpoint loads, and the run ends as if nothing
had been.

A life is a call of `tests.ranks.run`: processes that are forked, train, and are killed by a clock of their own, which
is set when a chosen phase of a chosen step begins. "Any" is any moment from the fork on: while locking, planning,
resuming, training or reporting.
"""

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eagle_model.checkpoints import latest, read_manifest
from eagle_model.fields import override
from eagle_model.model.eagle import Eagle
from eagle_model.train import checkpoint, saver, state, watchdog
from eagle_model.train import trainer as trainer_module
from eagle_model.train.config import TrainConfig
from eagle_model.train.metrics import read_metrics
from eagle_model.train.recipes import debug
from eagle_model.train.trainer import Trainer
from tests.ranks import RanksError, run
from tests.train.chats import quiet, without_report, write_chats

PHASES = ("any", "data", "step", "save", "commit")
STEPS = 12
LAYOUTS = {1: [], 2: ["layout.shard=2"]}


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    return write_chats(tmp_path_factory.mktemp("chats"))


def config_of(chats: str, num_processes: int) -> TrainConfig:
    base = [f"data.recipe={chats}/chats.jsonl", "processor.sampling.context_tokens=160", "dtype=bfloat16"]
    base += [f"max_steps={STEPS}", "save_every_steps=1", "keep_last=2", "rows_per_step=2", *LAYOUTS[num_processes]]
    return override(debug(), base)


def live(chats: str, folder: str, num_processes: int, victims: list[int], phase: str, at: int, delay: float) -> float:
    """Trains to the end, or until the clock of a victim has run out; how long that took.

    at: how often the phase has begun when the clock is set; delay: seconds that it runs.
    """
    began = time.monotonic()
    torch.set_num_threads(1)
    watchdog.GRACE_SECONDS = watchdog.TELL_SECONDS = watchdog.LOOK_SECONDS = saver.GRACE_SECONDS = 0.2
    trainer_module.write_report = without_report  # its curves take longer than the steps
    if int(os.environ.get("RANK", 0)) in victims:
        set_clock(phase, at, delay)
    trainer = Trainer(config_of(chats, num_processes), folder, device="cpu", say=quiet)
    assert trainer.train()
    return time.monotonic() - began


def set_clock(phase: str, at: int, delay: float) -> None:
    def start() -> None:
        clock = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
        clock.daemon = True
        clock.start()

    if phase == "any":
        start()
        return
    owner, name = {
        "data": (Trainer, "_rows"),
        "step": (trainer_module, "accumulate_gradients"),
        "save": (state.Share, "write"),
        "commit": (checkpoint, "commit"),
    }[phase]
    real, left = getattr(owner, name), [at]

    def counting(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            start()
        return real(*args, **kwargs)

    setattr(owner, name, counting)


class Killed:
    """A run that is killed and started again, until it is done; then the next."""

    def __init__(self, chats: Path, folder: Path, num_processes: int, seed: int) -> None:
        self.chats, self.folder, self.num_processes = str(chats), folder, num_processes
        self.chance, self.num_killed, self.newest, self.runs = random.Random(seed), 0, 0, 0
        self.seconds = max(
            run(live, num_processes, self.chats, str(folder / "straight"), num_processes, [], "any", 0, 0.0)
        )

    @property
    def run_folder(self) -> Path:
        return self.folder / f"run-{self.runs}"

    def life(self, victims: list[int], phase: str) -> None:
        """One life; counts if a kill ended it."""
        most = self.seconds if phase == "any" else 0.03
        args = (victims, phase, self.chance.randint(1, 3), self.chance.uniform(0, most))
        try:
            run(live, self.num_processes, self.chats, str(self.run_folder), self.num_processes, *args)
        except RanksError as error:
            if "died of SIGKILL" not in str(error):
                raise
            self.num_killed += 1
            self.look()
        else:
            self.compare()
            self.runs, self.newest = self.runs + 1, 0

    def look(self) -> None:
        """The newest complete checkpoint is whole, loads, and is none before the newest of the last life."""
        folder = self.run_folder / "checkpoints"
        left = [path.name for path in folder.glob("*")]
        assert len(left) <= 2 + 2, left  # keep_last, one being written, one being deleted
        newest = latest(folder, must_not_speak)
        if newest is not None:
            step = read_manifest(newest).step
            assert step >= self.newest
            self.newest = step
            Eagle.from_pretrained(newest)
        else:
            assert self.newest == 0

    def compare(self) -> None:
        """Weights, the optimizer, the loader's place, and the losses of all steps: those of the straight run."""
        ours, theirs = (f / "checkpoints" / f"step-{STEPS:06d}" for f in (self.run_folder, self.folder / "straight"))
        names = {path.relative_to(theirs) for path in theirs.rglob("*.safetensors")}
        assert names == {path.relative_to(ours) for path in ours.rglob("*.safetensors")}
        assert len(names) == 2 * self.num_processes
        for name in names:
            mine, other = load_file(ours / name), load_file(theirs / name)
            assert mine.keys() == other.keys()
            assert [key for key in mine if not torch.equal(mine[key], other[key])] == []
        states = [json.loads((at / "training/state.json").read_text())["loader"] for at in (ours, theirs)]
        assert states[0] == states[1]
        losses = [
            [(m["step"], m["loss"], m["grad_norm"]) for m in read_metrics(f / "metrics.jsonl")]
            for f in (self.run_folder, self.folder / "straight")
        ]
        assert losses[0] == losses[1] and [m[0] for m in losses[0]] == list(range(1, STEPS + 1))

    def finish(self) -> None:
        run(live, self.num_processes, self.chats, str(self.run_folder), self.num_processes, [], "any", 0, 0.0)
        self.compare()


def must_not_speak(message: str) -> None:
    raise AssertionError(f"said: {message}")


@pytest.mark.parametrize(("num_processes", "phases"), [(1, ["save"]), (2, ["step", "commit"])], ids=["one", "two"])
def test_killed_it_goes_on_as_if_nothing_had_been(chats, tmp_path, num_processes, phases):
    killed = Killed(chats, tmp_path, num_processes, seed=num_processes)
    for number, phase in enumerate(phases):
        killed.life([number % num_processes] if phase != "commit" else [0], phase)
    assert killed.num_killed == len(phases)
    killed.finish()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_kills(chats, tmp_path):
    """10 of one process alone, 20 of one of two, 20 of both at once."""
    total = 0
    for num_processes, kinds, wanted in ((1, [[0]], 10), (2, [[0], [1]], 20), (2, [[0, 1]], 20)):
        folder = tmp_path / f"{num_processes}-{len(kinds)}"
        killed, number = Killed(chats, folder, num_processes, seed=wanted), 0
        while killed.num_killed < wanted:
            phase = PHASES[number % len(PHASES)]
            # Only the first process commits.
            killed.life([0] if phase == "commit" else kinds[number // len(PHASES) % len(kinds)], phase)
            number += 1
            assert number < 3 * wanted
        killed.finish()
        total += killed.num_killed
    assert total == 50
