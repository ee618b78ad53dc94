"""The trainer on several processes: the same numbers as on one, one set of files, and one decision about everything."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from eagle_model.fields import ConfigError, override
from eagle_model.model.eagle import Eagle
from eagle_model.train import watchdog
from eagle_model.train.config import TrainConfig
from eagle_model.train.first import FirstFailed
from eagle_model.train.metrics import read_metrics
from eagle_model.train.progressive import Progressive
from eagle_model.train.recipes import debug
from eagle_model.train.run_folder import take
from eagle_model.train.step_log import read_log
from eagle_model.train.trainer import Trainer, TrainingError
from tests.ranks import RanksError, run
from tests.train.chats import without_report, write_chats

ROOT = Path(__file__).parents[2]

LAYOUTS = {
    "2-data": ["layout.shard=2"],
    "2-context": ["layout.context=2"],
    "2-data-2-context": ["layout.shard=2", "layout.context=2"],
}
SLOW = {
    "2-copies-2-context": ["layout.replicate=2", "layout.context=2"],
    "4-data-cut-head": ["layout.shard=4", "layout.vocab_parallel=true"],
    "4-context-ring": ["layout.context=4", "layout.method=ring"],
    "2-context-chunks": ["layout.context=2", "memory.vision_chunk_tiles=1", "memory.activations=block"],
}
CASES = [pytest.param(layout, id=name) for name, layout in LAYOUTS.items()]
CASES += [pytest.param(layout, id=name, marks=pytest.mark.slow) for name, layout in SLOW.items()]


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    """Chats with pictures, one of which cannot be decoded; some held out, and a question."""
    folder = write_chats(tmp_path_factory.mktemp("chats"))
    (folder / "blue.png").write_bytes((folder / "blue.png").read_bytes()[:60])  # its header can be read
    lines = (folder / "chats.jsonl").read_text().splitlines(keepends=True)
    (folder / "held-out.jsonl").write_text("".join(lines[:3]))
    (folder / "asked.jsonl").write_text(lines[0])
    return folder


def config_of(chats: str | Path, *assignments: str) -> TrainConfig:
    base = [
        f"data.recipe={chats}/chats.jsonl",
        "data.on_bad_sample=skip",
        "processor.sampling.context_tokens=160",
        "rows_per_step=4",
        "max_steps=3",
        "save_every_steps=2",
        "neftune_alpha=5",
        f"validation.recipe={chats}/held-out.jsonl",
        "validation.every_steps=2",
        f"answers.prompts={chats}/asked.jsonl",
        "answers.every_steps=3",
        "answers.max_new_tokens=4",
    ]
    return override(debug(), [*base, *assignments])


def train(chats, folder, assignments):
    """On one rank of many, or on the only one; what it said."""
    said: list[str] = []
    trainer = Trainer(config_of(chats, *assignments), folder, device="cpu", say=said.append)
    with mock.patch("eagle_model.train.trainer.write_report", without_report):
        assert trainer.train()
    return said


@pytest.fixture(scope="module")
def alone(chats, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(chats, folder, [])
    return folder


def weights(folder: Path, step: int = 3):
    return dict(Eagle.from_pretrained(folder / "checkpoints" / f"step-{step:06d}").named_parameters())


def assert_same_run(many: Path, one: Path) -> None:
    same = ("step", "epoch", "learning_rate", "num_tokens", "num_supervised_tokens", "num_skipped_samples")
    same += ("model_flops", "padding_share", "truncation_share", "dataset_tokens")
    for m, o in zip(*(read_metrics(folder / "metrics.jsonl") for folder in (many, one)), strict=True):
        assert {name: m[name] for name in same} == {name: o[name] for name in same}
        assert m["loss"] == pytest.approx(o["loss"], rel=1e-5)
        assert m["grad_norm"] == pytest.approx(o["grad_norm"], rel=1e-4)
        assert m["grad_norms"] == pytest.approx(o["grad_norms"], rel=1e-4)
        assert m["dataset_losses"] == pytest.approx(o["dataset_losses"], rel=1e-5)
    for m, o in zip(*(read_log(folder / "validation.jsonl") for folder in (many, one)), strict=True):
        assert (m["step"], m["num_rows"], m["loss"]) == (o["step"], o["num_rows"], pytest.approx(o["loss"], rel=1e-4))
    assert read_log(many / "answers.jsonl") == read_log(one / "answers.jsonl")
    assert (many / "skipped.json").read_bytes() == (one / "skipped.json").read_bytes()
    assert len(json.loads((one / "skipped.json").read_text())) == 1
    states = [json.loads((f / "checkpoints/step-000003/training/state.json").read_text()) for f in (many, one)]
    assert states[0]["loader"] == states[1]["loader"]
    ours, theirs = weights(many), weights(one)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert (weight - theirs[name]).abs().max() < 2e-4, name  # of updates of 1e-3
    assert json.loads((many / "run.json").read_text())["done"] is True


@pytest.mark.parametrize("layout", CASES)
def test_a_layout_trains_as_one_process_does(chats, alone, tmp_path, layout):
    num = config_of(chats, *layout).layout.processes
    said = run(train, num, str(chats), str(tmp_path / "run"), layout)
    assert_same_run(tmp_path / "run", alone)
    assert said[1:] == [[]] * (num - 1)  # the first speaks


# ---- what ends it


def quickly() -> None:
    watchdog.GRACE_SECONDS, watchdog.TELL_SECONDS, watchdog.LOOK_SECONDS = 0.5, 3.0, 0.1


def disturbed(chats, folder, assignments, rank, at_step, how):
    """Training of which one rank does something when a step begins."""
    quickly()
    trainer = Trainer(config_of(chats, *assignments), folder, device="cpu", say=print)
    take_step = trainer._train_step

    def step():
        if trainer.ranks.rank == rank and trainer.step + 1 == at_step:
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "raises":
                raise LookupError("nothing there")
            if how == "sleeps":
                time.sleep(60)
            signal.raise_signal(signal.SIGTERM)
        return take_step()

    trainer._train_step = step
    with mock.patch("eagle_model.train.trainer.write_report", without_report):
        done = trainer.train()
    return [done, trainer.step, trainer.stopped_by]


PLAIN = ("validation=none", "answers=none", "max_steps=4")


@pytest.fixture(scope="module")
def straight(chats, tmp_path_factory) -> Path:
    """A run of one process that nothing disturbs."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(chats, folder, PLAIN)
    return folder


@pytest.mark.parametrize(
    "layout",
    [["layout.shard=2"], pytest.param(["layout.context=2"], marks=pytest.mark.slow)],
    ids=["2-data", "2-context"],
)
def test_a_signal_to_one_stops_all_and_any_number_resumes(chats, straight, tmp_path, layout):
    settings = [*PLAIN, *layout]
    told = run(disturbed, 2, str(chats), str(tmp_path / "run"), settings, 1, 3, "is asked to stop")
    assert told == [[False, 3, signal.SIGTERM]] * 2
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["step-000002", "step-000003"]
    assert json.loads((tmp_path / "run/run.json").read_text())["done"] is False
    train(chats, tmp_path / "run", PLAIN)  # one process goes on
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (tmp_path / "run", straight))
    assert [m["loss"] for m in ours] == pytest.approx([m["loss"] for m in theirs], rel=1e-4)
    assert json.loads((tmp_path / "run/run.json").read_text())["done"] is True


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("dies", "Rank 1 has ended without a word"),
        ("raises", "Rank 1 failed: LookupError: nothing there|Another process is gone in step 3"),
        pytest.param(
            "sleeps", r"rank 1: at what comes after step 2, test_trainer_ranks\.py:\d+ in step", marks=pytest.mark.slow
        ),
    ],
    ids=["dies", "raises", "sleeps"],
)
def test_a_rank_that_is_lost_ends_all_and_the_run_goes_on(chats, straight, tmp_path, how, said):
    settings = [*PLAIN, "guards.hang_minutes=0.05"]
    begin = time.monotonic()
    with pytest.raises(RanksError) as ended:
        run(disturbed, 2, str(chats), str(tmp_path / "run"), [*settings, "layout.shard=2"], 1, 3, how)
    assert time.monotonic() - begin < 60
    assert re.search(said, str(ended.value)), str(ended.value)
    assert [m["step"] for m in read_metrics(tmp_path / "run/metrics.jsonl")] == [1, 2]
    if how == "sleeps":
        assert len(list((tmp_path / "run").glob("stacks-*/rank-*.txt"))) == 2
    run(train, 2, str(chats), str(tmp_path / "run"), [*settings, "layout.context=2"])
    ours, theirs = (read_metrics(folder / "metrics.jsonl") for folder in (tmp_path / "run", straight))
    assert [m["loss"] for m in ours] == pytest.approx([m["loss"] for m in theirs], rel=1e-4)


def one_without_data(chats, folder):
    """Rank 1 alone finds no recipe, as on a machine that lacks the disk."""
    if os.environ["RANK"] == "1":
        mock.patch("eagle_model.data.index.read_recipe", side_effect=ConfigError("there is no recipe")).start()
    Trainer(config_of(chats, *PLAIN, "layout.shard=2"), folder, device="cpu", say=print)


def test_a_rank_that_cannot_start_ends_all(chats, tmp_path):
    with pytest.raises(RanksError) as ended:
        run(one_without_data, 2, str(chats), str(tmp_path / "run"))
    assert "ConfigError: there is no recipe" in str(ended.value)
    assert "LostProcess: Another process ended before the first step" in str(ended.value)


def refused(chats, folder, assignments):
    try:
        trainer = Trainer(config_of(chats, *PLAIN, *assignments), folder, device="cpu", say=print)
        trainer.train()
    except (ValueError, TrainingError) as error:
        return f"{type(error).__name__}: {error}"


def test_a_bad_sample_is_raised_everywhere(chats, tmp_path):
    told = run(refused, 2, str(chats), str(tmp_path / "run"), ["data.on_bad_sample=raise", "layout.shard=2"])
    assert told[0] == told[1] and told[0].startswith("DataError: sample blue: image ")


def told_another(chats, folder):
    return refused(chats, folder, ["layout.shard=2", f"data.seed={os.environ['RANK']}"])


def test_processes_that_were_told_different_things_are_refused(chats, tmp_path):
    told = run(told_another, 2, str(chats), str(tmp_path / "run"))
    assert told[0] == told[1]
    assert told[0].startswith(
        "ConfigError: process 1 was given another configuration than process 0: data.seed: 0 -> 1"
    )
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused_everywhere(chats, tmp_path):
    lock = take(tmp_path / "run", print)
    first, other = run(refused, 2, str(chats), str(tmp_path / "run"), ["layout.shard=2"])
    lock.release()
    assert re.match(r"ConfigError: .*run is in use by process \d+ of ", first)
    assert other == f"FirstFailed: the first process failed: {first}"


def not_finite(chats, folder, assignments, steps):
    """Training in which one rank's loss is not finite in some steps."""
    trainer = Trainer(config_of(chats, *PLAIN, *assignments), folder, device="cpu", say=print)
    forward = trainer.model.forward

    def broken(batch, *args, **options):
        loss = forward(batch, *args, **options)
        return loss * float("nan") if trainer.ranks.rank == 1 and trainer.step + 1 in steps else loss

    trainer.model.forward = broken
    try:
        with mock.patch("eagle_model.train.trainer.write_report", without_report):
            return [trainer.train(), trainer.step]
    except (TrainingError, FirstFailed) as error:
        return [type(error).__name__, str(error)]


def test_steps_that_are_not_finite_on_one_rank_are_left_out_on_all(chats, tmp_path):
    folder, settings = tmp_path / "run", ["layout.shard=2", "guards.max_not_finite=2"]
    assert run(not_finite, 2, str(chats), str(folder), settings, [2]) == [[True, 4]] * 2
    (line,) = read_log(folder / "guards.jsonl")
    assert (line["step"], line["kind"], line["loss"]) == (2, "not_finite", "nan")
    lines = read_metrics(folder / "metrics.jsonl")
    assert [m["step"] for m in lines] == [1, 3, 4]
    assert [m["num_left_out_steps"] for m in lines] == [0, 1, 1]
    first, other = run(not_finite, 2, str(chats), str(tmp_path / "ended"), settings, [2, 3])
    assert first[0] == "TrainingError" and first[1].startswith("Step 3: loss is nan, gradient norm nan;")
    assert other[0] == "FirstFailed"
    about = json.loads((tmp_path / "ended/not-finite-step-000003.json").read_text())
    rows = read_log(tmp_path / "ended/guards.jsonl")[0]["sample_ids"]
    assert len(rows) == 4 and len(about["sample_ids"]) > len(rows[0])  # of all ranks


# ---- several stages


def stages(chats, folder, layouts):
    configs = [
        replace(config_of(chats, *PLAIN, "max_steps=2", f"layout.{layout}=2"), recipe_name=layout) for layout in layouts
    ]
    said: list[str] = []
    with mock.patch("eagle_model.train.trainer.write_report", without_report):
        progressive = Progressive(configs, folder, device="cpu", say=said.append)
        return [progressive.train(), said[:1]]


@pytest.mark.slow
def test_each_stage_may_have_a_layout_of_its_own(chats, tmp_path):
    first, other = run(stages, 2, str(chats), str(tmp_path / "stages"), ["shard", "context"])
    assert first == [True, ["Stage 1 of 2, shard: from tiny."]]
    assert other == [True, []]
    assert json.loads((tmp_path / "stages/progressive.json").read_text())["done"] == ["shard", "context"]
    assert run(stages, 2, str(chats), str(tmp_path / "stages"), ["shard", "context"])[0][1] == [
        "Stage 1 of 2, shard: is done."
    ]


# ---- torchrun


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.mark.slow
def test_torchrun_starts_a_killed_run_again(chats, tmp_path):
    """One of two workers is killed; the launcher starts both anew, and they go on from the newest checkpoint."""
    folder = tmp_path / "run"
    settings = [f"data.recipe={chats}/chats.jsonl", "data.on_bad_sample=skip", "processor.sampling.context_tokens=160"]
    settings += ["rows_per_step=2", "max_steps=30", "save_every_steps=5", "layout.shard=2", "log_every_steps=1"]
    train_command = ["-m", "eagle_model.cli", "train", "debug", "--run-folder", str(folder)]
    train_command += [word for text in settings for word in ("--set", text)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*TORCHRUN, "--max-restarts", "1", "--monitor-interval", "0.5", *train_command]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
    until = time.monotonic() + 200
    while not (folder / "checkpoints/step-000005").exists() and time.monotonic() < until:
        time.sleep(0.05)
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(workers) == 2
    os.kill(workers[1], signal.SIGKILL)
    text = (tmp_path / "log").read_text()
    assert process.wait(timeout=200) == 0, text
    steps = [m["step"] for m in read_metrics(folder / "metrics.jsonl")]
    assert steps == list(range(1, 31))
    text = (tmp_path / "log").read_text()
    assert re.search(r"Resuming .* after step \d+\.", text)
    assert "Rank 1 has ended without a word" in text
    assert json.loads((folder / "run.json").read_text())["done"] is True
