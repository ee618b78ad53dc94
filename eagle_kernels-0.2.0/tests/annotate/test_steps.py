"""annotate/steps.py: all steps, on real film, against an annotator that is as bad as servers are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from eagle_model.annotate.config import AnnotateConfig
from eagle_model.annotate.steps import STEPS, run_named
from eagle_model.annotate.work import Run, read_part
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import read_samples
from tests.annotate.conftest import ASSIGNMENTS, annotator, expected_rows, films, row_of
from tests.annotate.simulate import simulate


def test_three_films_become_the_rows_written_by_hand(
    tmp_path: Path, make_config: Callable[..., AnnotateConfig]
) -> None:
    films(tmp_path / "films")
    log, lines = tmp_path / "log.jsonl", []
    with annotator(log, faults=True) as url:
        run = Run(make_config(url, *ASSIGNMENTS), say=lines.append)
        totals = {step: run_named(run, step) for step in STEPS}
        built = {p: p.read_bytes() for p in (run.folder / "build").rglob("*") if p.is_file()}
        answered = Counter(json.loads(line)["status"] for line in log.read_text().splitlines())
        again = Run(make_config(url, *ASSIGNMENTS))
        for step in STEPS:  # once more: nothing is asked, nothing changes
            assert run_named(again, step).num_rows == totals[step].num_rows
        assert len(log.read_text().splitlines()) == sum(answered.values())
        assert {p: p.read_bytes() for p in built} == built

    rows = [json.loads(line) for line in (run.folder / "build/train.jsonl").read_text().splitlines()]
    assert [row_of(row) for row in rows] == expected_rows()
    assert answered[200] == again.budget.num_requests == run.budget.num_requests
    assert answered[429] and answered[500] and not any(t.failures for t in totals.values())
    journals = [json.loads(line) for p in run.folder.glob("*/part-*.jsonl") for line in p.read_text().splitlines()]
    assert len(journals) == answered[200] and sum(j["problem"] is not None for j in journals) > 0
    assert run.budget.dollars == pytest.approx(sum(j["dollars"] for j in journals)) and run.budget.dollars > 0
    keys = {j["key"]: j["raw"] for j in journals}
    assert all(row["about"]["request"] in keys for row in rows)  # every row leads to its raw answer
    reasons = Counter(row["reason"] for row in read_part(run.folder / "filter", 0).to_pylist())
    assert reasons == {
        None: 13, "duplicate": 2, "question_leak": 1, "options": 1, "unstable": 1, "disputed": 1, "blind": 1,
    }  # fmt: skip
    (source,) = read_recipe(run.folder / "build/recipe.json")
    assert [sample.id for sample in read_samples(source)] == [row[0] for row in expected_rows()]
    page = (run.folder / "build/page/index.html").read_text()
    assert page.count("<article>") == 4 and page.count("<img") == 8
    assert "CC BY 3.0, Blender Foundation" in (run.folder / "build/card.md").read_text()
    assert any("requests" in line and "min left" in line for line in lines)


def test_simulated_videos_go_through_filter_and_build(tmp_path: Path) -> None:
    took = simulate(tmp_path, 300)
    assert took["num_questions"] == 1200 and 4 * 1200 < took["num_asked"] < 5 * 1200  # a sixteenth ends blind
    assert 1200 < took["num_training_rows"] <= took["num_rows"] < 3000


@pytest.mark.slow
def test_a_hundred_thousand_videos_take_less_than_ten_minutes(tmp_path: Path) -> None:
    took = simulate(tmp_path, 100_000)
    assert took["num_questions"] == 400_000
    assert took["filter_seconds"] + took["build_seconds"] < 600, took


def test_an_unknown_step_is_refused(make_config: Callable[..., AnnotateConfig]) -> None:
    with pytest.raises(ValueError, match="there is no step 'stories'; the steps are select, segment"):
        run_named(Run(make_config("http://127.0.0.1:9/v1")), "stories")
