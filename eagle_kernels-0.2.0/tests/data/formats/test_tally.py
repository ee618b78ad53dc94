"""Quantiles and repeats of streams, in little memory."""

from __future__ import annotations

import numpy as np
import pytest

from eagle_model.data.formats import tally
from eagle_model.data.formats.tally import Quantiles, Repeats


def test_quantiles_to_two_percent() -> None:
    values = np.random.default_rng(0).lognormal(6, 2, 5000)
    quantiles = Quantiles()
    for value in values:
        quantiles.add(float(value))
    for share in (0.01, 0.5, 0.99):
        assert quantiles.quantile(share) == pytest.approx(np.quantile(values, share, method="inverted_cdf"), rel=0.01)
    summary = quantiles.summary()
    assert summary["count"] == 5000 and summary["max"] == pytest.approx(values.max(), rel=1e-3)


def test_quantiles_of_few_and_of_none() -> None:
    quantiles = Quantiles()
    assert quantiles.summary() == {}
    quantiles.add(0)
    quantiles.add(3)
    assert quantiles.summary() == pytest.approx({"min": 0, "median": 0, "p99": 3, "max": 3, "count": 2}, rel=0.01)


def test_repeats_and_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_AT_ONCE", 7)
    entries = [str(i).encode() for i in [*range(30), 3, 3, 20]]
    with Repeats() as repeats:
        for entry in entries:
            repeats.add(entry)
        assert repeats.found(10) == (3, [[4, 31, 32], [21, 33]])
        assert repeats.found(1)[0] == 3 and len(repeats.found(1)[1]) == 1


@pytest.mark.parametrize("num", [0, 1])
def test_repeats_of_none_and_one(num: int) -> None:
    with Repeats() as repeats:
        for _ in range(num):
            repeats.add(b"x")
        assert repeats.found(5) == (0, [])


def test_all_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_AT_ONCE", 4)
    with Repeats() as repeats:
        for _ in range(20):
            repeats.add(b"x")
        assert repeats.found(5) == (19, [list(range(1, 11))])
