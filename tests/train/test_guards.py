"""Steps that are left out, when they end a run, and losses that are reported: as logged, and as taken up again."""

import math
import random
from collections import deque

import pytest

from eagle_model.fields import ConfigError
from eagle_model.train.guards import MIN_STEPS, Guards, GuardsConfig, spike_score
from eagle_model.train.layout import Layout
from eagle_model.train.metrics import MetricsLog
from eagle_model.train.ranks import start
from eagle_model.train.step_log import read_log
from tests.ranks import run
from tests.train.test_metrics import metrics

NAN, IDS = math.nan, [(0, ["a", "b"]), (1, ["c"])]


def guards_of(folder, *, steps_done=0, said=None, **config):
    said = [] if said is None else said
    return Guards(GuardsConfig(**config), folder, start(Layout(), "cpu"), say=said.append, steps_done=steps_done)


def test_the_score_is_of_median_and_deviation():
    assert spike_score(4.0, deque([1.0, 1.2] * 10)) == pytest.approx(2.9 / 0.14826)
    assert spike_score(9.0, deque([1.0] * (MIN_STEPS - 1))) == 0.0
    assert spike_score(2.1, deque([2.0] * MIN_STEPS)) == pytest.approx(0.1 / 0.02)  # at least 1 % of the median
    noise = random.Random(0)
    losses = deque(3.0 + 0.1 * noise.gauss(0, 1) for _ in range(1000))
    assert spike_score(3.5, losses) == pytest.approx(5.0, rel=0.1)  # of normal numbers: standard deviations
    losses.extend([50.0] * 100)  # spikes do not hide the next one
    assert spike_score(3.5, losses) > 4.0


def test_a_spike_is_said_and_logged_with_its_samples(tmp_path):
    said: list[str] = []
    guards = guards_of(tmp_path, said=said, spike_steps=30)
    noise = random.Random(1)
    losses = [2.0 + 0.05 * noise.random() for _ in range(40)]
    for step, loss in enumerate(losses, 1):
        assert guards.may_take(step, loss, 1.0, IDS, bad_ids=[])
    assert said == []
    assert guards.may_take(41, 9.0, 7.5, IDS, bad_ids=[])  # reported, and taken
    assert len(said) == 1 and said[0].startswith("step 41: loss 9.0000 is ")
    assert f"its samples: {tmp_path / 'guards.jsonl'}" in said[0]
    (line,) = read_log(tmp_path / "guards.jsonl")
    assert (line["step"], line["kind"], line["loss"], line["grad_norm"]) == (41, "spike", 9.0, 7.5)
    assert line["sample_ids"] == [["a", "b"], ["c"]] and line["score"] > 100
    quiet = guards_of(tmp_path, said=said, spike_score=None)
    for step in range(42, 80):
        assert quiet.may_take(step, 2.0 if step < 79 else 1e6, 1.0, IDS, bad_ids=[])
    assert len(said) == 1


def test_steps_in_a_row_end_it_and_one_between_them_does_not(tmp_path):
    said: list[str] = []
    guards = guards_of(tmp_path, said=said, max_not_finite=3)
    fine = [True, False, False, True, False, False]
    for step, is_fine in enumerate(fine, 1):
        loss, norm = (1.0, 1.0) if is_fine else ((NAN, 1.0), (1.0, math.inf))[step % 2]
        assert guards.may_take(step, loss, norm, IDS, bad_ids=[] if is_fine else ["b"]) is is_fine
        assert not guards.is_over
    assert guards.num_left_out == 4 and len(said) == 4
    assert said[0] == (
        "step 2 is left out: loss is nan, gradient norm 1.0 (1 in a row; 3 end the run). Not finite are: b. Its "
        f"samples: {tmp_path / 'guards.jsonl'}"
    )
    lines = read_log(tmp_path / "guards.jsonl")
    assert [(line["step"], line["loss"], line["bad_ids"]) for line in lines][:2] == [
        (2, "nan", ["b"]),
        (3, "1.0", ["b"]),
    ]
    again = guards_of(tmp_path, steps_done=6, max_not_finite=3)  # as a resumed run begins
    assert again.num_left_out == 4
    assert not again.may_take(7, NAN, NAN, IDS, bad_ids=[]) and again.is_over and again.num_left_out == 4
    earlier = guards_of(tmp_path, steps_done=4, max_not_finite=3)
    assert earlier.num_left_out == 2
    assert not earlier.may_take(5, NAN, NAN, IDS, bad_ids=[]) and not earlier.is_over
    assert [line["step"] for line in read_log(tmp_path / "guards.jsonl")] == [2, 3, 5]


def test_by_default_the_first_ends_it_and_is_not_logged(tmp_path):
    guards = guards_of(tmp_path)
    assert not guards.may_take(1, NAN, 1.0, IDS, bad_ids=[]) and guards.is_over
    assert read_log(tmp_path / "guards.jsonl") == []


def test_a_resumed_run_knows_the_losses_before(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl", steps_done=0)
    for step in range(1, 31):
        log.write(metrics(step, 1.0 if step <= 25 else 50.0))
    log.close()
    said: list[str] = []
    assert guards_of(tmp_path, steps_done=25, said=said).may_take(26, 5.0, 1.0, IDS, bad_ids=[])
    assert "of the" not in said and len(said) == 1 and "above the last 25 losses' median, 1.0000" in said[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_not_finite": 0}, "max_not_finite is 0; needs 1 or more"),
        ({"spike_steps": 5}, "spike_steps is 5; needs 20 or more"),
        ({"spike_score": 0.0}, "spike_score is 0.0; needs a number above 0, or none"),
        ({"hang_minutes": math.inf}, "hang_minutes is inf; needs a number above 0, or none"),
    ],
)
def test_wrong_configs(config, message):
    with pytest.raises(ConfigError, match=message):
        GuardsConfig(**config)


def of_two_ranks(folder):
    from pathlib import Path

    ranks, said = start(Layout(shard=2), "cpu"), []
    guards = Guards(GuardsConfig(max_not_finite=2), Path(folder), ranks, say=said.append, steps_done=0)
    mine = [(ranks.rank, [f"s{ranks.rank}"]), (ranks.rank + 2, [f"s{ranks.rank + 2}"])]
    takes = [
        guards.may_take(1, NAN, 1.0, mine, bad_ids=[f"s{ranks.rank}"]),
        guards.may_take(2, 1.0, 1.0, mine, bad_ids=[]),
    ]
    return [takes, guards.num_left_out]


def test_rows_of_all_ranks_are_named_in_their_order(tmp_path):
    assert run(of_two_ranks, 2, str(tmp_path)) == [[[False, True], 1]] * 2
    (line,) = read_log(tmp_path / "guards.jsonl")
    assert line["sample_ids"] == [["s0"], ["s1"], ["s2"], ["s3"]] and line["bad_ids"] == ["s0", "s1"]
