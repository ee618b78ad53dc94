"""Settings of memory: what the model then does, and that a run with them learns the same and resumes exactly."""

import re

import pytest
import torch

from eagle_model.fields import ConfigError, override
from eagle_model.model.config import tiny
from eagle_model.model.recompute import attention_kept, recomputed
from eagle_model.train import trainer as trainer_module
from eagle_model.train.config import TrainConfig
from eagle_model.train.memory import MemoryConfig, use_memory
from eagle_model.train.metrics import read_metrics
from eagle_model.train.offload import Offload
from eagle_model.train.recipes import debug
from eagle_model.train.trainer import Trainer
from tests.model.samples import small_model
from tests.train.test_trainer import assert_equal, chats, config_of, quiet, weights_of
from tests.train.test_trainer import run as train

__all__ = ["chats"]  # a fixture
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def eager_and_without_a_report(monkeypatch):
    monkeypatch.setattr(trainer_module, "write_report", lambda run, say: run / "report.html")
    with torch.compiler.set_stance("force_eager"):  # torchao's update; C++ would take minutes
        yield


def test_the_model_keeps_to_its_settings():
    model = small_model(tiny())
    assert use_memory(model, MemoryConfig(), CPU) is None
    assert use_memory(model, MemoryConfig(activations="block"), CPU) is recomputed
    assert use_memory(model, MemoryConfig(activations="selective"), CPU) is attention_kept
    every = MemoryConfig(activations="offload", mlp_chunk_tokens=5, loss_chunk_mib=2, vision_chunk_tiles=3)
    assert isinstance(use_memory(model, every, CPU), Offload)
    assert [layer.mlp.chunk_tokens for layer in model.llm.layers] == [5] * len(model.llm.layers)
    assert (model.vision_chunk_tiles, model.lm_head.chunk_bytes) == (3, 2 << 20)
    use_memory(model, MemoryConfig(), CPU)
    assert (model.vision_chunk_tiles, model.lm_head.chunk_bytes) == (None, None)
    assert model.llm.layers[0].mlp.chunk_tokens is None


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("memory.mlp_chunk_tokens=0", "memory.mlp_chunk_tokens is 0; needs 1 or more, or none"),
        ("memory.vision_chunk_tiles=-1", "memory.vision_chunk_tiles is -1; needs 1 or more"),
        ("memory.activations=some", "memory.activations is 'some'; needs one of none, block, selective, offload"),
        ("memory.stochastic_rounding=true", "memory.stochastic_rounding is true with optimizer=adamw; needs optim"),
    ],
)
def test_senseless_settings_are_refused(assignment, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        override(debug(), [assignment])


def test_rounding_at_random_is_for_bf16():
    eight = ["memory.optimizer=adamw8bit", "memory.stochastic_rounding=true"]
    with pytest.raises(ConfigError, match="stochastic_rounding is true with dtype=float32; needs dtype=bfloat16"):
        override(debug(), eight)
    assert isinstance(override(debug(), [*eight, "dtype=bfloat16"]), TrainConfig)


def losses(folder):
    return [metrics["loss"] for metrics in read_metrics(folder / "metrics.jsonl")]


def test_a_run_that_saves_memory_is_the_same_run(chats, tmp_path):
    train(config_of(chats, "rows_per_step=2"), tmp_path / "plain")
    same = {"block": (), "selective": (), "offload": ("memory.optimizer=host",)}
    for activations, more in same.items():
        train(config_of(chats, "rows_per_step=2", f"memory.activations={activations}", *more), tmp_path / activations)
        assert_equal(weights_of(tmp_path / activations, 4), weights_of(tmp_path / "plain", 4))
    chunks = ("memory.mlp_chunk_tokens=16", "memory.vision_chunk_tiles=1", "memory.loss_chunk_mib=1")
    train(config_of(chats, "rows_per_step=2", "memory.activations=offload", *chunks), tmp_path / "chunks")
    assert losses(tmp_path / "chunks") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        ("memory.optimizer=adamw8bit", "dtype=bfloat16", "memory.stochastic_rounding=true"),
        ("memory.optimizer=adamw8bit", "dtype=bfloat16"),
        ("memory.optimizer=host", "dtype=bfloat16", "memory.activations=offload", "memory.mlp_chunk_tokens=16"),
    ],
)
def test_a_run_that_was_interrupted_goes_on_exactly(chats, tmp_path, settings):
    pytest.importorskip("torchao")
    straight = train(config_of(chats, *settings), tmp_path / "straight")
    train(config_of(chats, "max_steps=2", *settings), tmp_path / "run")
    torch.manual_seed(7)  # another process has another generator
    resumed = Trainer(config_of(chats, *settings), tmp_path / "run", say=quiet)
    assert resumed.step == 2
    assert resumed.train()
    assert_equal(weights_of(tmp_path / "run", 4), weights_of(tmp_path / "straight", 4))
    assert_equal(resumed.optimizer.state_dict(), straight.optimizer.state_dict())
