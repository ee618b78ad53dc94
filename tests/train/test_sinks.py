"""TensorBoard's own reader finds what was written; W&B is told the same record; what is missing is said by name."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from eagle_model.fields import ConfigError
from eagle_model.train.sinks import LoggingConfig, flat, open_sinks
from tests.train.test_metrics import metrics

FULL = replace(metrics(3), grad_norms={"vision": 0.5, "llm": 2.0}, mfu=0.4, dataset_losses={"a/b": 1.5})


def test_a_record_is_flat_and_none_is_left_out():
    names = flat(FULL)
    assert names["grad_norms/vision"] == 0.5 and names["dataset_losses/a/b"] == 1.5 and names["mfu"] == 0.4
    assert names["loss"] == 1.0 and "peak_device_bytes" not in names and "dataset_tokens" not in names
    assert all(type(value) in (int, float) for value in names.values())


def test_nothing_is_opened_unasked(tmp_path):
    assert open_sinks(LoggingConfig(), tmp_path, "run", {}) == []
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_s_reader_reads_the_events(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (sink,) = open_sinks(LoggingConfig(tensorboard=True), tmp_path, "run", {})
    for step in (1, 2):
        sink.write(replace(FULL, step=step, loss=4.0 / step))
    sink.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 4.0), (2, 2.0)]
    assert [e.value for e in events.Scalars("grad_norms/llm")] == [2.0, 2.0]
    assert set(events.Tags()["scalars"]) == set(flat(FULL))


def test_of_a_killed_run_tensorboard_shows_each_step_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps_done, steps in ((0, (1, 2, 3)), (1, (2, 3, 4))):
        (sink,) = open_sinks(LoggingConfig(tensorboard=True), tmp_path, "run", {}, steps_done=steps_done)
        for step in steps:
            sink.write(replace(FULL, step=step, loss=10.0 * steps_done + step))
        sink.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 12.0), (3, 13.0), (4, 14.0)]


def test_wandb_is_told_the_same(tmp_path, monkeypatch):
    begun, logged, ended = [], [], []
    run = SimpleNamespace(log=lambda record, step: logged.append((step, record)), finish=lambda: ended.append(True))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: begun.append(given) or run))
    (sink,) = open_sinks(LoggingConfig(wandb_project="eagle"), tmp_path / "first", "abc", {"max_steps": 4})
    sink.write(FULL)
    sink.close()
    (given,) = begun
    assert (given["project"], given["mode"], given["id"], given["resume"]) == ("eagle", "offline", "abc", "allow")
    assert (given["name"], given["config"], given["dir"]) == ("first", {"max_steps": 4}, str(tmp_path / "first"))
    assert logged == [(3, flat(FULL))] and ended == [True]


@pytest.mark.parametrize("config", [LoggingConfig(tensorboard=True), LoggingConfig(wandb_project="eagle")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, config):
    for module in ("wandb", "torch.utils.tensorboard.writer"):
        monkeypatch.setitem(sys.modules, module, None)
    name = "tensorboard" if config.tensorboard else "wandb"
    with pytest.raises(ConfigError, match=rf"asks for {name}, which is not installed .*eagle-kernels\[{name}\]"):
        open_sinks(config, tmp_path, "run", {})


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match=r"wandb_mode is 'later'; needs 'offline' or 'online'"):
        LoggingConfig(wandb_mode="later")
