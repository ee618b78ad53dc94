"""The held-out loss: training's formula, the same number each time, and training goes on as if nobody had looked."""

import contextlib
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from eagle_model.checkpoints import latest, verify
from eagle_model.data.loader import Loader
from eagle_model.data.processor import Processor
from eagle_model.model.eagle import Eagle
from eagle_model.train.step_log import read_log
from eagle_model.train.trainer import Trainer, accumulate_gradients
from eagle_model.train.validation import Validation
from tests.train.chats import assert_equal, config_of, quiet, run, weights_of, without_report, write_chats


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    folder = write_chats(tmp_path_factory.mktemp("chats"))
    lines = (folder / "chats.jsonl").read_text().splitlines(keepends=True)
    (folder / "held-out.jsonl").write_text("".join(lines[2:7]))
    (folder / "other.jsonl").write_text("".join(lines[:3]))
    (folder / "asked.jsonl").write_text("".join(lines[:2]))
    return folder


def validated(chats, *settings):
    return config_of(chats, f"validation.recipe={chats / 'held-out.jsonl'}", "validation.every_steps=1", *settings)


def test_it_is_training_s_loss_of_all_rows_and_moves_nothing(chats, tmp_path):
    config = validated(chats, "loss_per=turn")
    trainer = Trainer(config, tmp_path / "run", say=quiet)
    model, validation = trainer.model, trainer.validation
    before = (trainer.loader.state_dict(), torch.get_rng_state())
    loss, num_rows = validation.loss(model)
    assert (loss, num_rows) == validation.loss(model)
    assert model.training and model.vision.training
    assert (trainer.loader.state_dict(), torch.equal(torch.get_rng_state(), before[1])) == (before[0], True)
    with Loader(validation._loader.config, trainer.processor) as rows:
        assert rows.num_rows == num_rows >= 2
        total, mass = accumulate_gradients(model, [next(rows) for _ in range(num_rows)], loss_per="turn")
    assert loss == pytest.approx(float(total / mass), rel=1e-6)
    trainer.close()


def test_held_out_rows_are_read_whole_where_training_s_are_streamed(chats, tmp_path):
    with contextlib.closing(Trainer(validated(chats, "data.streaming=true"), tmp_path / "run", say=quiet)) as trainer:
        loss, num_rows = trainer.validation.loss(trainer.model)
        assert (loss > 0, num_rows) == (True, trainer.validation._loader.num_rows)
        assert trainer.validation._loader.num_samples == 5


def test_a_run_that_is_looked_at_and_interrupted_is_the_run_that_is_not(chats, tmp_path):
    asked = (f"answers.prompts={chats / 'asked.jsonl'}", "answers.every_steps=3", "answers.max_new_tokens=3")
    looked_at = validated(chats, *asked, "keep_last=1")
    folder = tmp_path / "run"

    def killed(message):
        if message.startswith("step 3/"):
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        Trainer(looked_at, folder, say=killed).train()
    run(looked_at, folder)
    run(config_of(chats), tmp_path / "plain")
    assert_equal(weights_of(folder, 4), weights_of(tmp_path / "plain", 4))
    file = "checkpoints/step-000004/training/rank-00000-of-00001.safetensors"
    assert_equal(*(load_file(f / file) for f in (folder, tmp_path / "plain")))  # random generators too

    losses = {line["step"]: line["loss"] for line in read_log(folder / "validation.jsonl")}
    assert list(losses) == [1, 2, 3, 4]  # each once, though steps 3 and 4 were come to from step 2 again
    assert [line["step"] for line in read_log(folder / "answers.jsonl")] == [3, 3, 4, 4]
    best = min(losses, key=losses.get)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [f"best-{best:06d}", "step-000004"]
    assert latest(folder / "checkpoints", quiet) == folder / "checkpoints/step-000004"
    kept = folder / f"checkpoints/best-{best:06d}"
    assert verify(kept).step == best
    model = Eagle.from_pretrained(kept)
    again = Validation(looked_at, Processor.from_pretrained(kept), tmp_path, steps_done=0)
    assert again.loss(model)[0] == losses[best]
    again.close()
    assert re.search(
        r"<h2>Held-out loss</h2>.*<h2>Answers</h2>.*It is red\.", (folder / "report.html").read_text(), re.S
    )


def test_a_run_ends_early_for_want_of_a_lower_loss(chats, tmp_path, monkeypatch):
    monkeypatch.setattr("eagle_model.train.trainer.write_report", without_report)
    never = ("validation.min_improvement=100", "max_steps=9")
    folder = tmp_path / "run"
    trainer = run(validated(chats, *never, "validation.patience=2"), folder)
    assert (trainer.step, trainer.is_done) == (3, True)  # the first is the lowest, then two that are not lower
    said: list[str] = []
    again = Trainer(validated(chats, *never, "validation.patience=2"), folder, say=said.append)
    assert again.train() and again.step == 3
    assert any("no lower loss on held-out data since step 1: nothing to train" in line for line in said)
    on = Trainer(validated(chats, *never, "validation.patience=3"), folder, say=quiet)  # it may change its mind
    assert on.train() and on.step == 4

    # Other held-out data: their losses do not compare.
    shutil.copy(chats / "other.jsonl", tmp_path / "moved.jsonl")
    shutil.copy(chats / "red.png", tmp_path)
    shutil.copy(chats / "green.png", tmp_path)
    said.clear()
    other = f"validation.recipe={tmp_path / 'moved.jsonl'}"
    trainer = Trainer(validated(chats, *never, other, "validation.patience=3"), folder, say=said.append)
    assert "The held-out data have changed: looking for the lowest loss anew." in said
    assert not trainer.is_done
    trainer.close()
