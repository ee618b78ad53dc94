"""metrics.jsonl holds every step once, whatever interrupted the run."""

import json
import os

import pytest

from eagle_model.train.metrics import MetricsLog, StepMetrics, StepProgress, peak_rss_bytes, read_metrics


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


@pytest.mark.parametrize("line", ["not json\n", "[]\n", "{}\n", "3\n"])
def test_other_damage_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1)
    path.write_text(path.read_text() + line + path.read_text())
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: is no line of metrics"):
        read_metrics(path)


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


def test_peak_rss_is_bytes():
    assert 20 << 20 < peak_rss_bytes() < 1 << 40
