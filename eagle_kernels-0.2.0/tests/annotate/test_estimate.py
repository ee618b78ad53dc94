"""annotate/estimate.py: counts of a collection, worked out by hand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from eagle_model.annotate import estimate as module
from eagle_model.annotate.config import AnnotateConfig
from eagle_model.annotate.estimate import Collection, estimate, search_cost
from eagle_model.annotate.records import VIDEOS
from eagle_model.annotate.work import write_part
from tests.annotate.conftest import films


def test_requests_of_110_000_videos_of_ten_minutes(make_config: Callable[..., AnnotateConfig]) -> None:
    found = estimate(make_config("http://none/v1"), Collection(110_000, 600.0))
    by_name = {step.name: step.num_requests for step in found.steps}
    assert by_name["select"] == 0
    assert by_name["story"] == 55_000 * (8 + 1)
    assert by_name["clip"] == 110_000 * 8 * 2  # 12 pieces a video on average, of which 8 are taken
    questions = 55_000 * 5 + 110_000 * 8 * 5 * 0.7
    assert found.num_questions == pytest.approx(questions)
    assert by_name["filter"] == pytest.approx(questions * 2 + questions * 0.65 * 3)
    assert found.num_requests == pytest.approx(sum(by_name.values()))
    clip = next(step for step in found.steps if step.name == "clip")
    assert clip.prompt_tokens == pytest.approx(110_000 * 8 * 2 * (50 * 260 + 220))
    assert found.dollars == pytest.approx(sum(s.prompt_tokens + 10 * s.answer_tokens for s in found.steps) / 1e6)
    assert found.select_gpu_hours == pytest.approx(66e6 / module.ENCODER_FRAMES_PER_SECOND / 3600)
    assert found.feature_bytes == 6.6e6 * 768 * 2
    text = "\n".join(found.lines())
    assert "110,000 videos of 600 s, 6,600,000 clips of 10 s" in text and "disk: features 10.1 GB" in text


def test_ten_million_clips_against_a_million(make_config: Callable[..., AnnotateConfig]) -> None:
    found = estimate(make_config("http://none/v1"), Collection(10_000_000, 10.0))
    flops = 2 * 768 * (1e7 * 1e6 + 1e7 * 5e6)  # with the reference, and with itself
    assert found.search_gpu_hours == pytest.approx(flops / 3e14 / 3600)
    assert found.search_bytes < 100 * 2**20


def test_what_is_not_asked_costs_nothing(make_config: Callable[..., AnnotateConfig]) -> None:
    config = make_config("http://none/v1", "filter.blind_votes=0", "filter.repeat_votes=0", "filter.one_frame=false")
    found = estimate(replace(config), Collection(1000, 600.0))
    assert next(step for step in found.steps if step.name == "filter").num_requests == 0


def test_of_videos_that_select_saw_their_durations_are_taken(
    make_config: Callable[..., AnnotateConfig], tmp_path: Path
) -> None:
    films(tmp_path / "films")
    config = make_config("http://none/v1")
    assert estimate(config, mean_seconds=90.0).collection == Collection(3, 90.0, 0)
    rows = [{"id": str(seconds), "duration_seconds": seconds} for seconds in (10.0, 40.0)]
    (tmp_path / "run/select").mkdir(parents=True)
    write_part(tmp_path / "run/select", 0, rows, VIDEOS)
    assert estimate(config).collection == Collection(2, 25.0, 0)


def test_a_search_says_what_it_takes_before_it_starts() -> None:
    said = search_cost(10_000_000, 1_000_000, 768)
    assert said.startswith("select: compares 10,000,000 clips with 1,000,000") and "core hours, 88 MiB" in said
