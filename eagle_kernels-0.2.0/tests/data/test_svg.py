"""Histograms: every value is in one bar, few values have bars of their own, and the picture is well-formed."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from eagle_model.data.svg import MAX_BARS, NUM_BINS, bins, histogram


@pytest.mark.parametrize(
    "values", [[5], [1, 2, 2, 7], [0.0, 0.0], range(1000), np.geomspace(1, 1e6, 99), [0, *range(60)]]
)
def test_every_value_is_counted_once(values) -> None:
    drawn = ElementTree.fromstring(histogram(values))
    titles = [title.text for title in drawn.iter("{http://www.w3.org/2000/svg}title")]
    assert sum(int(re.sub(".*: ", "", title).replace(",", "")) for title in titles) == len(values)


def test_few_values_have_their_own_bars_and_far_ones_bins_by_magnitude() -> None:
    counts, names = bins(np.array([4.0, 1.0, 4.0]))
    assert (counts.tolist(), names) == ([1, 2], ["1", "4"])
    counts, names = bins(np.arange(1.0, MAX_BARS + 2))
    assert len(names) == len(counts) == NUM_BINS
    _, names = bins(np.geomspace(1, 1e4, 100))
    assert names[0] == "1 to 1.259"  # 1e4 ** (1 / 40)


def test_of_nothing_there_is_no_picture() -> None:
    assert histogram([]) == "<p>none</p>"
