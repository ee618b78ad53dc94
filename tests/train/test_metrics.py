"""metrics.jsonl holds every step once, whatever interrupted the run."""

import json
import os
import subprocess
import sys
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

import pytest

from eagle_model.train.metrics import (
    MAX_LINE_BYTES,
    MetricsLog,
    StepMetrics,
    StepProgress,
    peak_rss_bytes,
    read_metrics,
)

ROOT = Path(__file__).parents[2]


def metrics(step: int, loss: float = 1.0) -> StepMetrics:
    return StepMetrics(
        step=step,
        epoch=0,
        loss=loss,
        learning_rate=1e-3,
        grad_norm=0.5,
        num_tokens=100,
        num_supervised_tokens=10,
        tokens_per_second=50.0,
        step_seconds=2.0,
        data_wait_seconds=0.1,
        num_skipped_samples=0,
        peak_rss_bytes=1 << 20,
    )


def write(path, steps_done, *steps, loss=1.0):
    log = MetricsLog(path, steps_done=steps_done)
    for step in steps:
        log.write(metrics(step, loss))
    log.close()


def test_a_resumed_run_logs_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2, 3, 4, 5)
    write(path, 3, 4, 5, 6, loss=2.0)  # the checkpoint was that of step 3
    assert [(m["step"], m["loss"]) for m in read_metrics(path)] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 2.0),
        (5, 2.0),
        (6, 2.0),
    ]


def test_each_line_is_on_its_way_when_the_step_is_over(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", steps_done=0)
    log.write(metrics(1))
    assert [m["step"] for m in read_metrics(tmp_path / "metrics.jsonl")] == [1]  # before close
    log.close()


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2, 3)
    os.truncate(path, path.stat().st_size - 20)
    assert [m["step"] for m in read_metrics(path)] == [1, 2]
    write(path, 3, 4)
    assert [m["step"] for m in read_metrics(path)] == [1, 2, 4]


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b"[]\n",
        b"{}\n",
        b"3\n",
        b"\xff\n",
        b"\0\0\n",  # what a crash of the machine leaves
        b"[" * 60_000 + b"\n",
        b"x" * (MAX_LINE_BYTES - 1) + b"\n",
        json.dumps(asdict(metrics(2)) | {"step": 1e999}).encode() + b"\n",
        json.dumps(asdict(metrics(2)) | {"loss": "4"}).encode() + b"\n",
        json.dumps(asdict(metrics(2)) | {"loss": float("nan")}).encode() + b"\n",
    ],
)
def test_other_damage_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1)
    path.write_bytes(path.read_bytes() + line + path.read_bytes())
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: is no line of metrics .* Move the file away") as caught:
        read_metrics(path)
    assert len(str(caught.value)) < 400
    said: list[str] = []
    assert [m["step"] for m in read_metrics(path, said.append)] == ([1] if len(line) == MAX_LINE_BYTES else [1, 1])
    assert len(said) == 1


def test_a_line_without_an_end_is_not_read_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of zeros, none of it on the disk
    with pytest.raises(ValueError, match=r"metrics\.jsonl:1: is no line of metrics"):
        read_metrics(path)


def test_a_full_disk_takes_a_part_of_a_line_that_is_left_out_later(tmp_path):
    """The file may have 1000 bytes, as under `ulimit -f`: a line fits, the next does not."""
    code = f"""
import resource
from pathlib import Path
from tests.train.test_metrics import MetricsLog, metrics
log = MetricsLog(Path({str(tmp_path / "metrics.jsonl")!r}), steps_done=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
log.write(metrics(1))
try:
    log.write(metrics(2))
except OSError as error:
    print(error.strerror)
log.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("File too large\n", "")
    assert (tmp_path / "metrics.jsonl").stat().st_size == 400
    assert [m["step"] for m in read_metrics(tmp_path / "metrics.jsonl")] == [1]


def test_what_is_not_finite_is_never_written(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", steps_done=0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write(metrics(1, float("nan")))
    log.close()


def test_lines_are_json_objects_with_units_in_their_names(tmp_path):
    write(tmp_path / "metrics.jsonl", 0, 1)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert {"loss", "tokens_per_second", "data_wait_seconds", "peak_rss_bytes", "num_skipped_samples"} <= set(line)


def test_plain_progress_says_what_is_left():
    said: list[str] = []
    progress = StepProgress(steps_done=10, max_steps=14, log_every_steps=2, say=said.append)
    with progress:
        for step in (11, 12, 13, 14):
            progress.show(metrics(step))
    assert len(said) == 2
    assert said[0] == "step 12/14  loss 1.0000  50 tokens/s  lr 1.00e-03  grad norm 0.50  0:04 left"
    assert said[1].startswith("step 14/14")
    assert said[1].endswith("0:00 left")


def test_progress_shows_the_utilization_where_it_is_known():
    said: list[str] = []
    with StepProgress(steps_done=0, max_steps=1, log_every_steps=1, say=said.append) as progress:
        progress.show(replace(metrics(1), mfu=0.413))
    assert "50 tokens/s  MFU 41.3%  lr" in said[0]


def test_files_of_earlier_versions_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    names = {f.name for f in fields(StepMetrics) if f.default is MISSING and f.default_factory is MISSING}
    assert len(names) == 12
    old = {name: value for name, value in asdict(metrics(1)).items() if name in names}
    path.write_text(json.dumps(old) + "\n")
    (read,) = read_metrics(path)
    assert read == asdict(metrics(1))


@pytest.mark.parametrize(
    "change", [{"grad_norms": 3}, {"grad_norms": {"llm": "1"}}, {"dataset_losses": {"a": float("inf")}}, {"mfu": "x"}]
)
def test_what_a_new_field_cannot_be_is_named(tmp_path, change):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(asdict(metrics(1)) | change) + "\n")
    with pytest.raises(ValueError, match=rf"{next(iter(change))} is .*; needs (a )?finite number"):
        read_metrics(path)


def test_peak_rss_is_bytes():
    assert 20 << 20 < peak_rss_bytes() < 1 << 40
