"""Means, macro means and groups; intervals by draws of whole videos."""

import numpy as np
import pytest

from eagle_model.evaluate.totals import Unit, by_group, mean, total


def row(i: int, media: str, value: float, **fields: object) -> dict:
    return {"id": str(i), "task": "t", "media": media, "numbers": {"accuracy": value}, "fields": fields}


def test_means_and_macro_means() -> None:
    rows = [row(0, "a", 1, _file="x"), row(1, "b", 0, _file="x"), row(2, "c", 1, _file="y")]
    assert total("mean", rows)["accuracy"].value == pytest.approx(2 / 3)
    assert total("macro by type", rows)["accuracy"].value == pytest.approx(0.75)
    assert total("mean", [{**rows[0], "numbers": {}}]) == {}


def test_an_interval_is_of_videos_not_of_questions() -> None:
    """Ten questions of each of twenty videos, all alike within a video: as wide as of twenty questions."""
    values = [i % 2 for i in range(20)]
    together = mean([Unit(f"v{i}", value) for i, value in enumerate(values) for _ in range(10)])
    alone = mean([Unit(f"v{i}", value) for i, value in enumerate(values)])
    as_if_apart = mean([Unit(f"{i}/{k}", value) for i, value in enumerate(values) for k in range(10)])
    assert (together.low, together.high) == (alone.low, alone.high)
    assert together.high - together.low > 2.5 * (as_if_apart.high - as_if_apart.low)
    assert together == mean([Unit(f"v{i}", value) for i, value in enumerate(values) for _ in range(10)]), "a fixed seed"


def test_an_interval_covers_as_it_says() -> None:
    """Of 200 samples of 60 from a coin of 0.7, about 95 % have it within theirs."""
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(200):
        number = mean([Unit(str(i), float(value)) for i, value in enumerate(generator.random(60) < 0.7)])
        hits += number.low <= 0.7 <= number.high
    assert 0.88 <= hits / 200 <= 0.99


def test_groups_and_lists_of_them() -> None:
    rows = [row(0, "a", 1, kind=["x", "y"]), row(1, "b", 0, kind=["y"]), row(2, "c", 0, kind=None)]
    found = by_group("mean", rows, "kind")
    assert {name: numbers["accuracy"].value for name, numbers in found.items()} == {"x": 1.0, "y": 0.5}
