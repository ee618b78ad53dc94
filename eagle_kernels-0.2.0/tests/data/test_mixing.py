"""Every source comes as often as its repeats, weight and the temperature say; all its samples equally often."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle_model.data.mixing import Mix

SOURCE_OF = np.array([0] * 100 + [1] * 10 + [2] * 40)


def mix(weights: list[float], repeats: list[str] | None = None, temperature: float = 1.0, seed: int = 0) -> Mix:
    fractions = [Fraction(text) for text in repeats or ["1"] * len(weights)]
    return Mix(SOURCE_OF, repeats=fractions, weights=weights, temperature=temperature, seed=seed)


def shown(mix: Mix, num_epochs: int) -> Counter[int]:
    return Counter(np.concatenate([mix.order(epoch) for epoch in range(num_epochs)]).tolist())


def test_each_sample_once_where_nothing_is_weighted() -> None:
    for epoch in range(3):
        assert sorted(mix([2, 2, 2]).order(epoch).tolist()) == list(range(150))


@pytest.mark.parametrize("repeat", ["0.1", "0.5", "1", "2.5", "3.3333333333333"])
def test_repeats_are_spread_evenly_and_the_same_in_every_epoch(repeat: str) -> None:
    one = mix([1, 1, 1], [repeat, "1", "1"])
    want = [int((i + 1) * Fraction(repeat)) - int(i * Fraction(repeat)) for i in range(100)] + [1] * 50
    for epoch in range(2):
        assert np.bincount(one.order(epoch), minlength=150).tolist() == want


def test_weights_change_who_is_shown_and_not_how_long_an_epoch_is() -> None:
    one = mix([1, 9, 0.5])
    assert one.num_shown == 150
    assert one.shares == [72, 64, 14]  # of 71.4, 64.3, 14.3
    assert np.bincount(SOURCE_OF[one.order(0)]).tolist() == one.shares


def test_temperature_brings_shares_together() -> None:
    spread = [np.ptp(mix([1, 1, 1], temperature=t).shares) for t in (1.0, 2.0, 5.0, 1e6)]
    assert spread == sorted(spread, reverse=True) and spread[0] == 90 and spread[-1] == 0


def test_any_weight_that_a_float_holds_is_compared() -> None:
    assert mix([1e308, 1e308, 5e307]).shares == mix([2, 2, 1]).shares
    assert mix([1e-320, 1e308, 1e308]).shares == [0, 30, 120]
    assert mix([1, 1, 1], temperature=1e-3).shares == [150, 0, 0]


def test_what_one_epoch_leaves_out_the_next_ones_show() -> None:
    """40 samples of which an epoch shows 19, 10 of which it shows 85: over many epochs all come equally often."""
    one = mix([1, 9, 0.5])
    counts = shown(one, 20)
    for source in range(3):
        times = [counts[i] for i in np.flatnonzero(source == SOURCE_OF)]
        assert max(times) - min(times) <= 1


def test_frequencies_are_the_shares_within_three_sigma_anywhere_in_an_epoch() -> None:
    one = mix([1, 9, 0.5])
    picked = np.concatenate([SOURCE_OF[one.order(epoch)[:30]] for epoch in range(50)])
    for source, share in enumerate(one.shares):
        p = share / one.num_shown
        sigma = (len(picked) * p * (1 - p)) ** 0.5
        assert abs((picked == source).sum() - p * len(picked)) < 3 * sigma


@given(
    st.lists(st.tuples(st.integers(0, 30), st.floats(0.01, 100), st.sampled_from(["0.3", "1", "2"])), min_size=1),
    st.floats(0.5, 10),
    st.integers(0, 5),
)
def test_any_mix_is_whole_and_repeats_itself(sources: list, temperature: float, epoch: int) -> None:
    source_of = np.repeat(np.arange(len(sources)), [size for size, _, _ in sources])
    weights, repeats = [w for _, w, _ in sources], [Fraction(r) for _, _, r in sources]
    one, same = (Mix(source_of, repeats=repeats, weights=weights, temperature=temperature, seed=3) for _ in range(2))
    order = one.order(epoch)
    assert len(order) == one.num_shown == sum(int(size * Fraction(r)) for size, _, r in sources)
    assert np.array_equal(order, same.order(epoch))
    assert np.bincount(source_of[order], minlength=len(sources)).tolist() == one.shares


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    one = mix([1, 1, 1])
    assert not np.array_equal(one.order(0), one.order(1))
    assert not np.array_equal(one.order(0), mix([1, 1, 1], seed=1).order(0))
    assert one.order(0)[:5].tolist() == [7, 31, 120, 52, 59]  # for ever: saved states rely on it
