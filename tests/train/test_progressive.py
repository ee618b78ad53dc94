"""Stages one after the other: each from the one before, resumed wherever they were killed, and none changed behind."""

import json
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from eagle_model.fields import ConfigError, override
from eagle_model.train import trainer
from eagle_model.train.config import read_config
from eagle_model.train.metrics import read_metrics
from eagle_model.train.progressive import STAGES, Progressive, stages_of
from eagle_model.train.recipes import recipe, stage3
from tests.train.chats import assert_equal, quiet, weights_of, without_report, write_chats

CONTEXTS = {"stage1": 256, "stage1_5": 512, "stage2": 1024, "stage3": 2048, "stage4": 4096}
SMALL = [
    "processor.tile_px=28",
    "processor.patch_px=7",
    "max_steps=2",
    "num_epochs=none",
    "rows_per_step=1",
    "dtype=float32",
    "optimizer.learning_rate=1e-3",
    "max_position_embeddings=none",
    "save_every_steps=1",
    "log_every_steps=1",
    "data.num_workers=1",
]


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    return write_chats(tmp_path_factory.mktemp("chats"))


def small(chats, names=tuple(CONTEXTS), *settings):
    contexts = [f"{name}:processor.sampling.context_tokens={CONTEXTS[name]}" for name in names]
    return stages_of(names, [*SMALL, *contexts, f"data.recipe={chats / 'chats.jsonl'}", "model=tiny", *settings])


def test_assignments_go_to_all_stages_or_to_one():
    stages = stages_of(["stage2", "stage3"], ["data.recipe=a:b.json", "stage3:seed=7", "stage3:max_steps=5", *SMALL])
    got = [(stage.recipe_name, stage.seed, stage.max_steps) for stage in stages]
    assert got == [("stage2", 0, 2), ("stage3", 7, 5)]  # what is said to one wins
    assert {stage.data.recipe for stage in stages} == {"a:b.json"}
    assert stages_of(["stage3"], []) == [stage3()]
    assert [recipe(name).processor.sampling.context_tokens for name in STAGES] == [32_768, 65_536, 131_072]
    with pytest.raises(ConfigError, match=r"stage4:seed: there is no field stage4:seed"):
        stages_of(["stage3"], ["stage4:seed=7"])


@pytest.mark.timeout(600)  # seconds of a machine that others use too; alone it takes a twentieth
def test_killed_in_stages_and_between_them_it_ends_as_if_nothing_had_happened(chats, tmp_path, monkeypatch):
    """All five stages in small, contexts 256 to 4,096, from one command."""
    monkeypatch.setattr(trainer, "write_report", without_report)
    straight, folder = tmp_path / "straight", tmp_path / "killed"
    assert Progressive(small(chats), straight, say=quiet).train()
    models = [read_config(straight / name / "config.json").model for name in CONTEXTS]
    assert models == ["tiny", *(str(straight / name) for name in list(CONTEXTS)[:-1])]
    first = load_file(straight / "stage1/checkpoints/step-000001/model.safetensors")
    second = weights_of(straight / "stage1", 2)
    assert {name.split(".")[0] for name in first if not torch.equal(first[name], second[name])} == {"mlp1"}

    seen: list[str] = []

    def killing(*moments):
        def say(message):
            seen.append(message)
            if any(message.startswith(moment) for moment in moments):
                raise RuntimeError("killed")

        return say

    def write_nothing(self):
        if len(self._done) == 3:
            raise RuntimeError("killed")

    for moment in ("step 2/2", "step 1/2"):  # in a stage, twice
        with pytest.raises(RuntimeError, match="killed"):
            Progressive(small(chats), folder, say=killing(moment)).train()
    with monkeypatch.context() as patch:  # between stages: stage 2 is done, and nobody wrote so
        patch.setattr(Progressive, "_write_done", write_nothing)
        with pytest.raises(RuntimeError, match="killed"):
            Progressive(small(chats), folder, say=quiet).train()
    assert Progressive(small(chats), folder, say=seen.append).train()
    assert "Stage 1 of 5, stage1: is done." in seen
    for name in CONTEXTS:
        assert_equal(weights_of(folder / name, 2), weights_of(straight / name, 2))
        assert [m["step"] for m in read_metrics(folder / name / "metrics.jsonl")] == [1, 2]
    assert json.loads((folder / "progressive.json").read_text())["done"] == list(CONTEXTS)
    _refuses_what_would_change_the_past(chats, folder)


def _refuses_what_would_change_the_past(chats, folder):
    with pytest.raises(ConfigError, match=r"Stage stage1_5 in .* is done, and was another: max_steps: 2 -> 3\. The st"):
        Progressive(small(chats, tuple(CONTEXTS), "stage1_5:max_steps=3"), folder, say=quiet)
    with pytest.raises(ConfigError, match=r"says that .* are done; the stages are stage1, stage2\. Give the stages"):
        Progressive(small(chats, ("stage1", "stage2")), folder, say=quiet)
    quieter = small(chats, tuple(CONTEXTS), "log_every_steps=7")
    said: list[str] = []
    assert Progressive(quieter, folder, say=said.append).train()
    assert said == [f"Stage {i} of 5, {name}: is done." for i, name in enumerate(CONTEXTS, 1)]
    moved = folder.rename(folder.with_name("moved"))
    assert Progressive(quieter, moved, say=quiet).train()
    moved.rename(folder)
    with pytest.raises(ConfigError, match=r"stage1 is a run of its own; stages need a folder that holds their runs"):
        Progressive(quieter, folder / "stage1", say=quiet)


def test_what_cannot_be_a_list_of_stages(chats, tmp_path, monkeypatch):
    (stage,) = small(chats, ("stage2",))
    for stages in ([], [stage, stage], [replace(stage, recipe_name="")]):
        with pytest.raises(ConfigError, match=r"The stages are .*; needs one or more, of unlike names"):
            Progressive(stages, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data\.recipe of stage2 is empty; needs a recipe: --set data\.recipe=FILE"):
        Progressive([override(stage, ["data.recipe="])], tmp_path / "run")
    shared_out = override(replace(stage, recipe_name="stage3"), ["layout.shard=2"])
    with pytest.raises(ConfigError, match=r"^Stage stage3: layout \(shard=2\) cannot work: .*; there are 1\. "):
        Progressive([stage, shared_out], tmp_path / "run")
    monkeypatch.setenv("WORLD_SIZE", "2")  # then a stage of one process is none
    with pytest.raises(ConfigError, match=r"^Stage stage2: layout \(one process\) cannot work: .*; there are 2\. "):
        Progressive([stage], tmp_path / "run")
    monkeypatch.delenv("WORLD_SIZE")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"holds files but no progressive\.json: notes\.txt\. Give a new folder"):
        Progressive([stage], tmp_path)


def test_a_request_to_stop_is_handed_on(chats, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "write_report", without_report)

    def say(message):
        if message.startswith("step 1/"):
            signal.raise_signal(signal.SIGHUP)

    progressive = Progressive(small(chats, ("stage2", "stage3")), tmp_path / "run", say=say)
    assert not progressive.train()
    assert progressive.stopped_by == signal.SIGHUP
    assert not (tmp_path / "run/stage3").exists()
