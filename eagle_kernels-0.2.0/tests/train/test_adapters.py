"""Training runs of adapters: what moves, what a checkpoint holds, exact resume, going on from an adapter, 4 bits."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eagle_model.checkpoints import CheckpointError, steps, verify
from eagle_model.data.processor import Processor
from eagle_model.fields import ConfigError, override
from eagle_model.infer import Assistant
from eagle_model.model.eagle import Eagle
from eagle_model.model.lora import LoraConfig, load_adapter, merge
from eagle_model.model.nf4 import is_nf4
from eagle_model.train import trainer
from eagle_model.train.adapters import same_base
from eagle_model.train.config import TrainConfig
from eagle_model.train.metrics import read_metrics
from eagle_model.train.recipes import debug
from eagle_model.train.report import write_report
from eagle_model.train.start import new_model, with_absolute_paths
from eagle_model.train.trainer import Trainer
from tests.train.test_trainer import assert_equal, chats, config_of, quiet, run

__all__ = ["chats"]  # a fixture
LORA = ("lora.rank=4", "lora.targets=q_proj,up_proj,fc1", "lora.dropout=0.1", "optimizer.learning_rate=1e-2")


@pytest.fixture(autouse=True)
def without_a_report(monkeypatch) -> None:
    """Which takes longer than the steps; one test here makes it."""
    monkeypatch.setattr(trainer, "write_report", lambda run, say: run / "report.html")


@pytest.fixture(scope="module")
def base(chats, tmp_path_factory) -> Path:
    """A model's folder, as a release or a run's checkpoint is one."""
    folder = tmp_path_factory.mktemp("base") / "model"
    torch.manual_seed(0)
    model, processor = new_model(with_absolute_paths(config_of(chats)))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def lora_config(chats: Path, base: Path, *assignments: str) -> TrainConfig:
    return override(config_of(chats), [f"model={base}", *LORA, *assignments])


def newest(folder: Path) -> Path:
    return list(steps(folder / "checkpoints").values())[-1]


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(newest(folder) / "adapter_model.safetensors")


def test_adapters_alone_move_and_a_killed_run_goes_on_bit_for_bit(chats, base, tmp_path):
    config = lora_config(chats, base, "dtype=bfloat16", "lora.modules_to_save=mlp1", "max_steps=4")
    said: list[str] = []
    straight = Trainer(config, tmp_path / "straight", say=said.append)
    before = {name: p.detach().clone() for name, p in straight.model.named_parameters()}
    assert straight.train()
    moved = {name for name, p in straight.model.named_parameters() if not torch.equal(p, before[name])}
    assert {name.partition(".lora.")[0] for name in moved if ".lora." in name} == {
        name.partition(".lora.")[0] for name in before if ".lora." in name
    }
    assert {name.split(".")[0] for name in moved if ".lora." not in name} == {"connector"}
    num_trained = sum(p.numel() for p in straight.model.parameters() if p.requires_grad)
    num_all = sum(p.numel() for p in straight.model.parameters())
    assert f"Training {num_trained:,} of {num_all:,} parameters: adapters of {base}." in said

    shutil.copytree(tmp_path / "straight", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoints" / "step-000004")
    run(config, tmp_path / "killed")
    for name in ("adapter_model.safetensors", "training/rank-00000-of-00001.safetensors"):
        first, second = (newest(tmp_path / folder) / name for folder in ("straight", "killed"))
        assert first.read_bytes() == second.read_bytes(), name
    losses = [[m["loss"] for m in read_metrics(tmp_path / f / "metrics.jsonl")] for f in ("straight", "killed")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


def test_a_checkpoint_holds_the_adapters_and_what_belongs_to_them(chats, base, tmp_path):
    config = lora_config(chats, base, "max_steps=2")
    run(config, tmp_path / "run")
    checkpoint = newest(tmp_path / "run")
    names = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    Processor.from_pretrained(base).save_pretrained(tmp_path / "processor")
    assert names - {path.name for path in (tmp_path / "processor").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "manifest.json",
        "training/config.json", "training/rank-00000-of-00001.safetensors", "training/slices.json",
        "training/state.json",
    }  # fmt: skip
    verify(checkpoint)
    assert json.loads((checkpoint / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert {key.split(".")[-2] for key in adapter_of(tmp_path / "run")} == {"lora_A", "lora_B"}
    state = load_file(checkpoint / "training/rank-00000-of-00001.safetensors")
    assert {key.partition(".")[0] for key in state} == {"exp_avg", "exp_avg_sq", "step", "rng"}
    assert all(".lora." in key for key in state if key != "rng.torch_cpu")
    assert "step-000002" in write_report(tmp_path / "run", quiet).read_text()
    with pytest.raises(
        FileNotFoundError, match=r"config\.json is missing; .* It holds an adapter: load the model under"
    ):
        Eagle.from_pretrained(checkpoint)


def test_training_goes_on_from_an_adapter(chats, base, tmp_path):
    run(lora_config(chats, base, "max_steps=3"), tmp_path / "first")
    config = lora_config(chats, base, "max_steps=1", f"adapter={tmp_path / 'first'}", "lora.dropout=0")
    ours = Trainer(config, tmp_path / "second", say=quiet)
    at_start = {name: p.detach().clone() for name, p in ours.model.named_parameters() if ".lora." in name}
    first = Eagle.from_pretrained(base)
    load_adapter(first, tmp_path / "first")
    assert_equal(at_start, {name: p for name, p in first.named_parameters() if ".lora." in name})
    assert ours.train()
    changed = [
        key
        for key, tensor in adapter_of(tmp_path / "second").items()
        if not torch.equal(tensor, adapter_of(tmp_path / "first")[key])
    ]
    assert len(changed) == len(at_start)
    with pytest.raises(
        ValueError, match=r"adapter_config\.json: the adapter of .* has rank 4 and scale 8; the model's has rank 8"
    ):
        Trainer(override(config, ["lora.rank=8"]), tmp_path / "third", say=quiet)


def test_it_starts_from_a_run_and_answers_for_one(chats, base, tmp_path):
    """The model is a run's newest checkpoint; what comes out is asked by the run's folder, and merged."""
    run(config_of(chats, "max_steps=2"), tmp_path / "whole")
    run(lora_config(chats, tmp_path / "whole", "max_steps=2"), tmp_path / "run")
    checkpoint = newest(tmp_path / "whole")
    about = json.loads((newest(tmp_path / "run") / "training" / "state.json").read_text())["base"]
    assert about["folder"] == str(checkpoint)
    question = [{"role": "user", "content": "Spell red."}]
    assistant = Assistant(tmp_path / "whole", adapter=tmp_path / "run", max_new_tokens=8)
    assert not assistant.model.training
    answer = "".join(assistant.stream(question))
    model = Eagle.from_pretrained(checkpoint)
    load_adapter(model, tmp_path / "run")
    merge(model)
    model.save_pretrained(tmp_path / "merged")
    assistant.processor.save_pretrained(tmp_path / "merged")
    assert answer == "".join(Assistant(tmp_path / "merged", max_new_tokens=8).stream(question))
    (checkpoint / "config.json").write_text("{}")
    with pytest.raises(CheckpointError):
        Trainer(lora_config(chats, tmp_path / "whole", "max_steps=3"), tmp_path / "run", say=quiet)


def test_another_model_under_the_adapters_is_refused(chats, base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    config = lora_config(chats, tmp_path / "base", "max_steps=2")
    run(config, tmp_path / "run")
    about = json.loads((newest(tmp_path / "run") / "training" / "state.json").read_text())["base"]
    assert same_base(about, tmp_path) == tmp_path / "base"
    torch.manual_seed(1)
    other, _ = new_model(with_absolute_paths(config_of(chats)))
    (tmp_path / "base" / "model.safetensors").unlink()
    other.save_pretrained(tmp_path / "base")
    with pytest.raises(
        CheckpointError,
        match=r"step-000002 holds adapters of .*/base, whose files are others now: SHA-256 \w+, was \w+\.",
    ):
        Trainer(replace(config, max_steps=3), tmp_path / "run", say=quiet)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(
        CheckpointError, match=r"holds adapters of .*/base.*, which cannot be read: .*Put that model back"
    ):
        Trainer(replace(config, max_steps=3), tmp_path / "run", say=quiet)


def test_configs_that_cannot_be_are_refused(chats, base, tmp_path):
    assert override(debug(), ["lora.rank=4"]).lora == LoraConfig(rank=4)
    for assignments, message in (
        (["adapter=a"], r"adapter is a; needs lora too"),
        (["base_weights=nf4"], r"base_weights is nf4; needs lora too"),
        (
            ["lora.rank=4", "train_vision=false"],
            r"train_vision, train_connector or train_llm is false; needs them all true",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            config_of(chats, *assignments)
    for model in ("tiny", ""):
        with pytest.raises(ConfigError, match=rf"model is '{model}'; needs a folder with config\.json"):
            Trainer(config_of(chats, "lora.rank=4", f"model={model}"), tmp_path / f"run{model}", say=quiet)
    with pytest.raises(ConfigError, match=r"targets is c_attn; no projection has such a name"):
        Trainer(lora_config(chats, base, "lora.targets=c_attn"), tmp_path / "run", say=quiet)


def test_unused_layers_are_left_alone(chats, base, tmp_path):
    """select_layer -2 leaves out the last layer: its adapters get no gradient, and stay as they were."""
    shutil.copytree(base, tmp_path / "base")
    fields = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps(fields | {"select_layer": -2}))
    ours = Trainer(lora_config(chats, tmp_path / "base", "max_steps=1"), tmp_path / "run", say=quiet)
    frozen = {name for name, p in ours.model.named_parameters() if ".lora." in name and not p.requires_grad}
    assert {name.split(".lora.")[0] for name in frozen} >= {"vision.layers.1.mlp.fc1"}
    assert all(name.startswith("vision.layers.1.") for name in frozen)
    assert ours.train()
    assert set(adapter_of(tmp_path / "run"))  # and are saved all the same
    load_adapter(Eagle.from_pretrained(tmp_path / "base"), tmp_path / "run")


def test_the_base_in_4_bits_is_trained_over_and_resumed(chats, base, tmp_path):
    pytest.importorskip("torchao", reason="needs torchao (the extra `qlora`)")
    config = lora_config(chats, base, "base_weights=nf4", "dtype=bfloat16", "max_steps=2", "save_every_steps=1")
    ours = Trainer(config, tmp_path / "run", say=quiet)
    in_4_bits = {name for name, p in ours.model.named_parameters() if is_nf4(p)}
    assert in_4_bits == {
        name for name, p in ours.model.named_parameters()
        if name.startswith("llm.layers") and name.endswith("proj.weight")
    }  # fmt: skip
    assert ours.train()
    assert {name for name, p in ours.model.named_parameters() if is_nf4(p)} == in_4_bits
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(newest(tmp_path / "again"))
    run(config, tmp_path / "again")
    assert_equal(adapter_of(tmp_path / "run"), adapter_of(tmp_path / "again"))
