"""The trainer beside the end-to-end runs: accumulation, freezing, what stops it, and what a resumed run may change.

The data are small: chats about one-colour images and chats about nothing, no video.
"""

import contextlib
import errno
import json
import re
import resource
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.checkpoints import CheckpointError, FileEntry, Manifest, read_manifest, steps
from eagle_model.data.loader import Loader
from eagle_model.data.packing import pack_row
from eagle_model.data.processor import Processor
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import read_samples
from eagle_model.data.sample import DataError
from eagle_model.fields import ConfigError, override
from eagle_model.model.recompute import recomputed
from eagle_model.train import state
from eagle_model.train.config import CHANGEABLE_ON_RESUME, read_config
from eagle_model.train.metrics import read_metrics
from eagle_model.train.recipes import debug
from eagle_model.train.start import new_model
from eagle_model.train.trainer import Trainer, TrainingError, accumulate_gradients
from tests.train.chats import COLOURS, assert_equal, config_of, quiet, run, tokenizer_file, weights_of, write_chats


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    return write_chats(tmp_path_factory.mktemp("chats"))


# ---- gradients of a step


@pytest.fixture
def rows_and_one(chats) -> tuple[torch.nn.Module, list[PackedBatch], PackedBatch]:
    """A model, its samples in two rows of unlike lengths, and the same samples in one row."""
    config = config_of(chats, "processor.sampling.context_tokens=4000")
    torch.manual_seed(0)
    model, processor = new_model(config)
    samples = list(read_samples(read_recipe(config.data.recipe)[0]))
    loaded = [processor.load_sample(processor.plan_sample(sample)) for sample in samples]

    def row(part):
        return pack_row([tokens for tokens, _ in part], torch.cat([patches for _, patches in part]))

    return model, [row(loaded[:3]), row(loaded[3:])], row(loaded)


def gradients(model, batches, **options):
    model.zero_grad()
    total, mass = accumulate_gradients(model, batches, **options)
    mass = mass.clamp(min=1)
    return total / mass, {name: p.grad / mass for name, p in model.named_parameters()}


def test_rows_added_up_are_one_long_row(rows_and_one):
    model, rows, one = rows_and_one
    counts = [int((row.labels_T != IGNORE_INDEX).sum()) for row in rows]
    assert counts[1] > 1.5 * counts[0]  # a mean of rows would weigh them wrongly
    loss, grads = gradients(model, rows)
    loss_of_one, grads_of_one = gradients(model, [one])
    torch.testing.assert_close(loss, loss_of_one)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, grads_of_one[name], atol=1e-6, rtol=1e-4, msg=name)


def test_checkpointed_activations_give_the_same_gradients(rows_and_one):
    model, rows, _ = rows_and_one
    loss, grads = gradients(model, rows)
    again, grads_again = gradients(model, rows, run_layer=recomputed)
    assert torch.equal(loss, again)
    assert_equal(grads, grads_again)


def test_rows_without_a_label_have_loss_zero(rows_and_one):
    model, rows, _ = rows_and_one
    silent = [replace(row, labels_T=torch.full_like(row.labels_T, IGNORE_INDEX), num_labelled=0) for row in rows]
    loss, grads = gradients(model, silent)
    assert loss == 0
    assert all((grad == 0).all() for grad in grads.values())


@pytest.mark.parametrize("part", ["vision", "connector", "llm"])
def test_freezing_trains_the_rest_alone(chats, tmp_path, part):
    off = [f"train_{name}=false" for name in ("vision", "connector", "llm") if name != part]
    config = config_of(chats, *off, "max_steps=1", "dtype=bfloat16")
    trainer = Trainer(config, tmp_path / "run", say=quiet)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    assert trainer.train()
    moved = {name.split(".")[0] for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {part, "lm_head"} if part == "llm" else moved == {part}


# ---- what stops it


def test_a_loss_that_is_not_finite_stops_before_the_update(chats, tmp_path):
    config = config_of(chats, "max_steps=3", "save_every_steps=2")
    run(replace(config, max_steps=2), tmp_path / "run")
    trainer = Trainer(config, tmp_path / "run", say=quiet)
    with torch.no_grad():
        trainer.model.connector.out.bias.fill_(float("nan"))
    with pytest.raises(
        TrainingError, match=r"Step 3: loss is nan, gradient norm nan; .*The newest checkpoint is step 2's"
    ):
        trainer.train()
    (path,) = (tmp_path / "run").glob("not-finite-step-000003.json")
    about = json.loads(path.read_text())
    assert about["loss"] == "nan"
    assert set(about["sample_ids"]) <= {*COLOURS, *(f"spell-{colour}" for colour in COLOURS)}
    assert list(steps(tmp_path / "run" / "checkpoints")) == [2]
    assert [m["step"] for m in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    run(config, tmp_path / "run")  # and from there it can go on
    run(config, tmp_path / "straight")
    assert_equal(weights_of(tmp_path / "run", 3), weights_of(tmp_path / "straight", 3))


def test_a_signal_ends_it_after_the_step_with_a_checkpoint(chats, tmp_path):
    said: list[str] = []

    def say(message: str) -> None:
        said.append(message)
        if message.startswith("step 2/"):
            signal.raise_signal(signal.SIGHUP)

    trainer = Trainer(config_of(chats, "max_steps=9", "save_every_steps=9"), tmp_path / "run", say=say)
    assert not trainer.train()
    assert trainer.stopped_by == signal.SIGHUP
    assert list(steps(tmp_path / "run" / "checkpoints")) == [2]
    assert said[-2:] == [
        "Stopped after step 2 of 9; it is saved. The same command resumes.",
        f"Report: {tmp_path / 'run' / 'report.html'}",
    ]
    run(config_of(chats, "max_steps=3"), tmp_path / "run")


def test_a_reader_that_went_away_ends_it_as_a_signal_does(chats, tmp_path):
    def say(message: str) -> None:
        if message.startswith("step 2/"):
            raise BrokenPipeError(32, "Broken pipe")

    trainer = Trainer(config_of(chats, "max_steps=9", "save_every_steps=9"), tmp_path / "run", say=say)
    assert not trainer.train()
    assert trainer.stopped_by == signal.SIGPIPE
    assert list(steps(tmp_path / "run" / "checkpoints")) == [2]


# ---- when and how it saves


def test_saves_by_the_clock(chats, tmp_path):
    config = config_of(chats, "save_every_steps=1000", "save_every_minutes=1e-6", "keep_last=9")
    run(config, tmp_path / "run")
    assert list(steps(tmp_path / "run" / "checkpoints")) == [1, 2, 3, 4]
    run(replace(config, save_every_minutes=100.0), tmp_path / "seldom")
    assert list(steps(tmp_path / "seldom" / "checkpoints")) == [4]


def test_before_a_job_s_time_is_over_it_saves_and_stops(chats, tmp_path, capfd):
    config = config_of(chats, "save_every_steps=1000", "time_limit_minutes=1e-4")
    trainer = Trainer(config, tmp_path / "run", say=quiet)
    assert not trainer.train()
    assert trainer.stopped_by == signal.SIGTERM  # the exit code of a run that was told to stop
    assert "time_limit_minutes is nearly over: saving, then stopping." in capfd.readouterr().err
    assert list(steps(tmp_path / "run" / "checkpoints")) == [1]
    run(replace(config, time_limit_minutes=None), tmp_path / "run")
    run(config_of(chats), tmp_path / "straight")
    assert_equal(weights_of(tmp_path / "run", 4), weights_of(tmp_path / "straight", 4))


def test_a_save_that_fails_in_the_background_ends_training_at_the_next_step(chats, tmp_path, monkeypatch):
    write = state.Share.write

    def full(share: state.Share, folder: Path) -> list[str]:
        if folder.name != "step-000001.partial":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        return write(share, folder)

    monkeypatch.setattr(state.Share, "write", full)
    trainer = Trainer(config_of(chats, "save_every_steps=1", "max_steps=50"), tmp_path / "run", say=quiet)
    with pytest.raises(
        TrainingError,
        match=r"The checkpoint of step 2 could not be written: No space .*The newest checkpoint is step 1's",
    ):
        trainer.train()
    assert trainer.step <= 3
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000001"]


def test_saved_in_the_background_or_not_it_is_the_same(chats, tmp_path):
    for name in ("true", "false"):
        run(config_of(chats, f"save_in_background={name}"), tmp_path / name)
    for file in ("model.safetensors", "training/rank-00000-of-00001.safetensors", "training/slices.json"):
        first, second = (tmp_path / name / "checkpoints/step-000004" / file for name in ("true", "false"))
        assert first.read_bytes() == second.read_bytes()


# ---- the run folder


def test_a_second_trainer_is_refused_and_harms_nothing(chats, tmp_path):
    folder = tmp_path / "run"
    run(config_of(chats), folder)
    first = Trainer(config_of(chats, "max_steps=6"), folder, say=quiet)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"run is in use by process \d+ of .* on .*, since \d{4}-"):
        Trainer(config_of(chats, "max_steps=6"), folder, say=quiet)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert first.train()
    run(config_of(chats, "max_steps=7"), folder)  # given back


def test_a_trainer_that_cannot_be_made_gives_the_folder_back(chats, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        Trainer(config_of(chats, "data.recipe=/nowhere.jsonl"), tmp_path / "run", say=quiet)
    run(config_of(chats, "max_steps=1"), tmp_path / "run")


def test_a_folder_that_cannot_be_written_to_is_refused_before_planning(chats, tmp_path):
    (tmp_path / "file").write_text("")
    said: list[str] = []
    with pytest.raises(ConfigError, match=r"file/run cannot be used: Not a directory"):
        Trainer(config_of(chats), tmp_path / "file" / "run", say=said.append)
    assert said == []


def test_run_json_may_be_lost_where_checkpoints_hold_all(chats, tmp_path):
    folder = tmp_path / "run"
    run(config_of(chats), folder)
    run_id = json.loads((folder / "run.json").read_text())["run"]
    (folder / "run.json").write_text("{")
    run(config_of(chats, "max_steps=5"), folder)
    assert json.loads((folder / "run.json").read_text())["run"] == run_id
    for name in ("run.json", "run.lock", "config.json"):
        (folder / name).unlink()
    run(config_of(chats, "max_steps=6"), folder)
    assert json.loads((folder / "run.json").read_text())["run"] == run_id
    assert [m["step"] for m in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_checkpoint_of_another_run_is_refused(chats, tmp_path):
    run(config_of(chats), tmp_path / "one")
    foreign = tmp_path / "one" / "checkpoints" / "step-000004"
    manifest = read_manifest(foreign)
    (tmp_path / "one" / "run.json").write_text('{"run": "other"}')
    with pytest.raises(
        CheckpointError, match=r"step-000004 is of run \w+, and .*run\.json of run \w+\. Move away what"
    ):
        Trainer(config_of(chats), tmp_path / "one", say=quiet)
    (foreign / "manifest.json").write_text(json.dumps(replace(manifest, run="other").to_json()))
    with pytest.raises(
        CheckpointError, match=r"manifest\.json is of run and step other, 4, training/state\.json of \w+, 4"
    ):
        Trainer(config_of(chats), tmp_path / "one", say=quiet)


def test_what_the_manifest_does_not_list_is_not_read(chats, tmp_path):
    run(config_of(chats), tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-000004"
    manifest = read_manifest(newest)
    for name in ("training/rank-00000-of-00001.safetensors", "training/slices.json", "config.json"):
        files = {n: entry for n, entry in manifest.files.items() if n != name}
        (newest / "manifest.json").write_text(json.dumps(replace(manifest, files=files).to_json()))
        with pytest.raises(CheckpointError, match=rf"holds {name}, which its manifest does not list"):
            Trainer(config_of(chats), tmp_path / "run", say=quiet)


@contextlib.contextmanager
def no_file_larger_than(num_bytes: int) -> Iterator[None]:
    """As under `ulimit -f`: the system refuses the rest of a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_sentence_and_the_run_goes_on_with_room(chats, tmp_path):
    folder, config = tmp_path / "run", config_of(chats)

    def fails(num_bytes: int) -> str:
        trainer = Trainer(config, folder, say=quiet)
        with pytest.raises(TrainingError) as caught, no_file_larger_than(num_bytes):
            trainer.train()
        assert [path for path in folder.rglob("*") if "tmp" in path.suffix or "partial" in path.name] == []
        return str(caught.value)

    goes_on = r"\. Make room or mend the folder; the same command then goes on from there\.$"
    assert re.match(rf"samples/ could not be written: File too large\. There is no checkpoint{goes_on}", fails(100))
    run(replace(config, max_steps=2), folder)
    newest = r"\. The newest checkpoint is step 2's"
    a_part_of_a_line = (folder / "metrics.jsonl").stat().st_size + 100
    message = fails(a_part_of_a_line)
    assert re.match(rf"metrics\.jsonl could not be written: File too large{newest}{goes_on}", message)
    model = r"\(.*step-000004\.partial/model\.safetensors\)"
    assert re.match(rf"The checkpoint of step 4 could not .*: File too large {model}{newest}{goes_on}", fails(200_000))
    assert list(steps(folder / "checkpoints")) == [2]
    run(config, folder)
    run(config, tmp_path / "straight")
    assert_equal(weights_of(folder, 4), weights_of(tmp_path / "straight", 4))
    assert [m["step"] for m in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_step_that_does_not_fit_into_memory_is_named(chats, tmp_path, monkeypatch):
    trainer = Trainer(config_of(chats), tmp_path / "run", say=quiet)
    monkeypatch.setattr(trainer.model, "forward", lambda *_, **__: torch.empty(2**60))
    with pytest.raises(
        TrainingError, match=r"Step 1 does not fit into memory \(.*DefaultCPUAllocator.*\)\. There is no che"
    ) as refused:
        trainer.train()
    settings = re.findall(r"(memory\.\w+)=(\w+) or (\w+)|(memory\.\w+)=(\w+)", str(refused.value))
    named = [(a or d, value) for a, b, c, d, e in settings for value in (b, c, e) if value]
    assert len(named) == 6
    for name, value in named:  # what it says to try can be set
        override(debug(), [f"{name}={value}"])
    trainer = Trainer(config_of(chats), tmp_path / "run", say=quiet)
    monkeypatch.setattr(trainer.model, "forward", lambda *_, **__: [0] * 2**60)
    with pytest.raises(TrainingError, match=r"Step 1 does not fit into memory\. There is no checkpoint"):
        trainer.train()
    trainer = Trainer(config_of(chats), tmp_path / "run", say=quiet)
    monkeypatch.setattr(trainer.model, "forward", lambda *_, **__: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):  # a defect stays one
        trainer.train()


def test_trains_in_a_thread_too(chats, tmp_path):
    """Python allows signal handlers in the main thread alone; elsewhere there are none, and training works."""
    done: list[bool] = []
    trainer = Trainer(config_of(chats, "max_steps=1"), tmp_path / "run", say=quiet)
    thread = threading.Thread(target=lambda: done.append(trainer.train()))
    thread.start()
    thread.join()
    assert done == [True]


# ---- resume


def test_a_run_may_get_longer(chats, tmp_path):
    run(config_of(chats), tmp_path / "run")
    said: list[str] = []
    longer = Trainer(config_of(chats, "max_steps=6"), tmp_path / "run", say=said.append)
    assert longer.train()
    assert "Changed since step-000004: max_steps: 4 -> 6" in said
    assert list(steps(tmp_path / "run" / "checkpoints")) == [2, 4, 6]
    assert read_config(tmp_path / "run" / "config.json").max_steps == 6


def test_a_finished_run_stays_as_it_is(chats, tmp_path):
    run(config_of(chats), tmp_path / "run")
    before = weights_of(tmp_path / "run", 4)
    trainer = run(config_of(chats), tmp_path / "run")
    assert trainer.step == 4
    assert list(steps(tmp_path / "run" / "checkpoints")) == [2, 4]
    assert_equal(weights_of(tmp_path / "run", 4), before)
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 4


def test_another_configuration_is_refused_by_name(chats, tmp_path):
    run(config_of(chats), tmp_path / "run")
    changed = config_of(chats, "optimizer.learning_rate=0.5", "data.seed=3", "max_steps=9")
    with pytest.raises(ConfigError) as caught:
        Trainer(changed, tmp_path / "run", say=quiet)
    message = str(caught.value)
    assert "data.seed: 0 -> 3; optimizer.learning_rate: 0.001 -> 0.5" in message
    assert "max_steps: 4" not in message
    assert f"A run may change {', '.join(sorted(CHANGEABLE_ON_RESUME))} alone." in message


def test_another_recipe_is_refused_by_its_name(chats, tmp_path):
    run(config_of(chats), tmp_path / "run")
    other = replace(config_of(chats), recipe_name="tiny")
    with pytest.raises(ConfigError, match=r"another configuration: recipe_name: 'debug' -> 'tiny'\. Set these back"):
        Trainer(other, tmp_path / "run", say=quiet)


def test_the_config_of_a_run_makes_the_same_run_again(chats, tmp_path):
    run(config_of(chats, "seed=3", "data.seed=4"), tmp_path / "first")
    saved = tmp_path / "first" / "config.json"
    run(read_config(saved), tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == saved.read_bytes()
    for file in ("model.safetensors", "training/rank-00000-of-00001.safetensors"):
        first, again = (tmp_path / name / "checkpoints" / "step-000004" / file for name in ("first", "again"))
        assert first.read_bytes() == again.read_bytes()
    losses = [[m["loss"] for m in read_metrics(tmp_path / name / "metrics.jsonl")] for name in ("first", "again")]
    assert losses[0] == losses[1]
    in_checkpoint = tmp_path / "first" / "checkpoints" / "step-000002" / "training" / "config.json"
    assert in_checkpoint.read_bytes() == saved.read_bytes()


def test_a_run_of_an_older_version_is_refused(chats, tmp_path):
    """Version 1 kept its config in run.json and state.json."""
    old = run(config_of(chats), tmp_path / "run").checkpoints / "step-000004"
    for folder in (old, old.with_name("step-000002")):
        (folder / "training" / "config.json").unlink()
        manifest = json.loads((folder / "manifest.json").read_text())
        files = {n: FileEntry(**entry) for n, entry in manifest["files"].items() if n != "training/config.json"}
        older = Manifest(step=manifest["step"], run=manifest["run"], files=files)
        (folder / "manifest.json").write_text(json.dumps(older.to_json()))
    before = (old / "manifest.json").read_bytes()
    with pytest.raises(
        ConfigError,
        match=r"step-000004/training/config\.json does not exist\. Runs of version 4 have that file; a run of an older",
    ):
        Trainer(config_of(chats), tmp_path / "run", say=quiet)
    assert (old / "manifest.json").read_bytes() == before


def test_a_run_goes_on_where_its_data_have_moved(chats, tmp_path):
    run(config_of(chats), tmp_path / "stayed")
    run(config_of(chats), tmp_path / "moved")
    shutil.copytree(chats, tmp_path / "new")
    for folder, place in (("stayed", chats), ("moved", tmp_path / "new")):
        run(config_of(place, "max_steps=6"), tmp_path / folder)
    assert_equal(weights_of(tmp_path / "moved", 6), weights_of(tmp_path / "stayed", 6))


def test_a_checkpoint_can_be_read_by_whom_the_umask_lets(chats, tmp_path):
    trainer = run(config_of(chats), tmp_path / "run")
    files = [path for path in trainer.checkpoints.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert {path.stat().st_mode for path in files} == {(tmp_path / "run" / "run.json").stat().st_mode}


def test_other_data_under_the_same_name_is_refused(chats, tmp_path):
    file = chats / "growing.jsonl"
    lines = (chats / "chats.jsonl").read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:4]))
    config = config_of(chats, f"data.recipe={file}", f"tokenizer={tokenizer_file(chats, tmp_path)}")
    run(config, tmp_path / "run")
    file.write_text("".join(lines))
    with pytest.raises(ValueError, match="the state is of other data: 4 samples an epoch then, 8 now"):
        Trainer(replace(config, max_steps=6), tmp_path / "run", say=quiet)


def test_a_damaged_checkpoint_is_set_aside_and_its_step_trained_again(chats, tmp_path):
    run(config_of(chats), tmp_path / "run")
    straight = weights_of(tmp_path / "run", 4)
    checkpoints = tmp_path / "run" / "checkpoints"
    with (checkpoints / "step-000004" / "model.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff\x00\xff")
    said: list[str] = []
    trainer = Trainer(config_of(chats), tmp_path / "run", say=said.append)
    assert trainer.step == 2
    assert said[0].startswith("Passing over step-000004: ")
    assert "model.safetensors has SHA-256" in said[0]
    assert "Set step-000004 aside as step-000004.damaged-1." in said
    assert trainer.train()
    assert_equal(weights_of(tmp_path / "run", 4), straight)
    assert (checkpoints / "step-000004.damaged-1" / "model.safetensors").exists()

    for path in steps(checkpoints).values():
        (path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* can be used\. .*config\.json is missing"):
        Trainer(config_of(chats), tmp_path / "run", say=quiet)


def test_a_run_that_never_saved_starts_anew(chats, tmp_path):
    Trainer(config_of(chats), tmp_path / "run", say=quiet).close()
    said: list[str] = []
    trainer = Trainer(config_of(chats, "seed=5", "max_steps=1"), tmp_path / "run", say=said.append)
    assert said == [
        f"Planning the samples of {chats / 'chats.jsonl'}.",
        "8 samples in 2 rows an epoch.",
        "4 images, 0 videos, 4 text-only samples.",
        "1 steps of 1 rows, 160 tokens at most.",
        f"{tmp_path / 'run'} holds a run without a complete checkpoint: starting it anew.",
    ]
    assert trainer.train()
    assert read_config(tmp_path / "run" / "config.json").seed == 5


# ---- where it starts


def test_a_recipe_is_needed(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.recipe is empty; needs a recipe or an annotation file: --set"):
        Trainer(debug(), tmp_path / "run", say=quiet)
    assert not (tmp_path / "run").exists()


def test_a_processor_s_files_are_saved_with_every_checkpoint_and_what_others_wrote_in_them_stays(chats, tmp_path):
    model, processor = new_model(config_of(chats))
    model.save_pretrained(tmp_path / "model")
    Processor(
        processor.tokenizer, processor.config, kept={"preprocessor_config.json": {"of_tomorrow": 1}}
    ).save_pretrained(tmp_path / "model")
    run(config_of(chats, f"model={tmp_path / 'model'}"), tmp_path / "run")
    saved = tmp_path / "run" / "checkpoints" / "step-000004"
    assert json.loads((saved / "preprocessor_config.json").read_text())["of_tomorrow"] == 1
    assert (saved / "chat_template.jinja").exists()
    assert Processor.from_pretrained(tmp_path / "run").kept.keys() == Processor.from_pretrained(saved).kept.keys()


def test_epochs_are_counted(chats, tmp_path):
    trainer = run(config_of(chats, "max_steps=7"), tmp_path / "run")
    rows = Loader(trainer.config.data, trainer.processor)
    epochs = []
    for _ in range(7):
        next(rows)
        epochs.append(rows.epoch)
    rows.close()
    assert [m["epoch"] for m in read_metrics(tmp_path / "run" / "metrics.jsonl")] == epochs
    assert max(epochs) >= 1


def test_epochs_say_how_long_a_run_is(chats, tmp_path):
    """8 samples in 2 rows an epoch; the last step takes what it lacks from the next epoch."""
    epochs = ("max_steps=none", "num_epochs=3", "rows_per_step=2", "save_every_steps=1")

    def killed(message):
        if message.startswith("step 2/3"):
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        Trainer(config_of(chats, *epochs), tmp_path / "run", say=killed).train()
    assert run(config_of(chats, *epochs), tmp_path / "run").step == 3
    run(config_of(chats, "max_steps=3", "rows_per_step=2"), tmp_path / "straight")
    assert_equal(weights_of(tmp_path / "run", 3), weights_of(tmp_path / "straight", 3))
    said: list[str] = []
    longer = Trainer(config_of(chats, *epochs, "num_epochs=4"), tmp_path / "run", say=said.append)
    assert "Changed since step-000003: num_epochs: 3 -> 4" in said and longer.max_steps == 4
    longer.close()


def test_rows_that_cannot_be_loaded_make_an_epoch_shorter(tmp_path):
    folder = write_chats(tmp_path)
    whole = (folder / "red.png").read_bytes()
    (folder / "red.png").write_bytes(whole[:60])  # its header can be read, its pixels cannot
    lines = (folder / "chats.jsonl").read_text().splitlines(keepends=True)
    (folder / "chats.jsonl").write_text(lines[0] + lines[1])
    settings = ("max_steps=none", "num_epochs=2", "data.on_bad_sample=skip", "processor.sampling.context_tokens=60")
    trainer = Trainer(config_of(folder, *settings), tmp_path / "run", say=quiet)
    assert trainer.loader.num_rows == 2 and trainer.max_steps == 4
    assert trainer.train()
    assert len(trainer.loader.skipped) == 1
    assert trainer.step < 4 and trainer.loader.rows_left(2) == 0


# ---- seeing it


def test_a_run_is_seen(chats, tmp_path, monkeypatch):
    """What each step was like, a trace of the third, and TensorBoard's events."""
    pytest.importorskip("tensorboard")
    said: list[str] = []
    config = config_of(chats, "logging.tensorboard=true", "train_vision=false")
    assert Trainer(config, tmp_path / "run", say=said.append, profile=True).train()
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [set(m["grad_norms"]) for m in lines] == [{"connector", "embeddings", "llm", "lm_head"}] * 4
    for m in lines:
        assert m["dataset_tokens"] == {"chats": m["num_supervised_tokens"]}
        assert m["dataset_losses"]["chats"] == pytest.approx(m["loss"], rel=0.3)  # weighed otherwise
        assert sum(norm**2 for norm in m["grad_norms"].values()) ** 0.5 == pytest.approx(m["grad_norm"], rel=1e-4)
        assert 0 < m["model_flops"] < 1e12 and m["mfu"] is None
        assert 0 <= m["padding_share"] < 0.5 and m["truncation_share"] == 0
    trace = tmp_path / "run" / "trace-step-000003.json"
    assert f"Trace of step 3: {trace}" in said and json.loads(trace.read_text())["traceEvents"]
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Loss by data set</h2>" in page and "torch " + torch.__version__ in page


@pytest.mark.slow
def test_compiled_layers_train_alike(chats, tmp_path):
    """Layers run again in backward too. The first step takes minutes."""
    losses = {}
    for name, assignments in (("plain", []), ("compiled", ["compile=true", "memory.activations=block"])):
        run(config_of(chats, "max_steps=2", *assignments), tmp_path / name)
        losses[name] = [m["loss"] for m in read_metrics(tmp_path / name / "metrics.jsonl")]
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-4)
