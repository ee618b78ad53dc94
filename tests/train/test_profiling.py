"""A trace that Chrome reads, and a snapshot of memory without a pickle."""

import json

import pytest
import torch

from eagle_model.train import profiling


@pytest.mark.parametrize(
    ("steps_done", "max_steps", "traced"), [(0, 10, [3]), (0, 2, [2]), (0, 1, [1]), (5, 10, [8]), (9, 10, [10])]
)
def test_the_third_step_or_the_last(steps_done, max_steps, traced):
    steps = range(steps_done + 1, max_steps + 1)
    found = [s for s in steps if profiling.is_traced(s, steps_done=steps_done, max_steps=max_steps)]
    assert found == traced


def test_a_trace_names_the_operators(tmp_path):
    with profiling.traced(tmp_path / "trace.json"):
        torch.ones(8, 8) @ torch.ones(8, 8)
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert "aten::mm" in {event.get("name") for event in events}
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


def test_what_fails_leaves_no_trace(tmp_path):
    with pytest.raises(ValueError, match="within"), profiling.traced(tmp_path / "trace.json"):
        raise ValueError("within")
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_is_json(tmp_path, monkeypatch):
    segments = [{"address": 1, "total_size": 1 << 21, "blocks": [{"size": 512, "state": "active_allocated"}]}]
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda device: {"segments": segments, "other": {1, 2}})
    monkeypatch.setattr(torch.cuda, "memory_summary", lambda device: "line 1\nline 2")
    path = tmp_path / "memory.json"
    assert profiling.write_memory_snapshot(path, torch.device("cuda")) == path
    written = json.loads(path.read_text())
    assert written["snapshot"]["segments"] == segments
    assert written["summary"] == ["line 1", "line 2"]


def test_a_cpu_has_no_snapshot(tmp_path):
    assert profiling.write_memory_snapshot(tmp_path / "memory.json", torch.device("cpu")) is None
    assert list(tmp_path.iterdir()) == []
