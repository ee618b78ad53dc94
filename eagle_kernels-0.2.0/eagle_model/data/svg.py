"""Histograms as SVG, drawn without a library: a page that holds them needs nothing else.

histogram([3, 5, 5, 900])      # "<svg ...>": few different values have a bar each, others bins
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

WIDTH_PX, HEIGHT_PX, _BELOW_PX = 320, 120, 16
NUM_BINS = 40
MAX_BARS = 16  # different whole values that get a bar each
FAR_APART = 50  # the largest to the smallest, from where on bins go by magnitude


def histogram(values: Sequence[float] | NDArray) -> str:
    """Bars with how many values each holds, as a tooltip, and the least and the largest value below."""
    array = np.asarray(values, np.float64)
    if not len(array):
        return "<p>none</p>"
    counts, names = bins(array)
    highest, width = counts.max(), WIDTH_PX / len(counts)
    bars = []
    for k, num in enumerate(counts.tolist()):
        if num:
            height = max(1.0, HEIGHT_PX * num / highest)
            place = f"x='{k * width:.1f}' y='{HEIGHT_PX - height:.1f}' width='{width * 0.9:.1f}' height='{height:.1f}'"
            bars.append(f"<rect {place} fill='#4a7ab5'><title>{names[k]}: {num:,}</title></rect>")
    text = f"y='{HEIGHT_PX + 12}' font-size='11' fill='#555'"
    labels = [
        f"<text x='0' {text}>{array.min():,.4g}</text>",
        f"<text x='{WIDTH_PX / 2}' {text} text-anchor='middle'>median {np.median(array):,.4g}</text>",
        f"<text x='{WIDTH_PX}' {text} text-anchor='end'>{array.max():,.4g}</text>",
    ]
    size = f"width='{WIDTH_PX}' height='{HEIGHT_PX + _BELOW_PX}'"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size}>{''.join(bars)}{''.join(labels)}</svg>"


def bins(array: NDArray[np.float64]) -> tuple[NDArray[np.int64], list[str]]:
    """How many values each bar stands for, and which; by magnitude where the values lie far apart."""
    different, counts = np.unique(array, return_counts=True)
    if len(different) <= MAX_BARS:
        return counts, [f"{value:,.4g}" for value in different.tolist()]
    low, high = float(different[0]), float(different[-1])
    is_far = low > 0 and high / low > FAR_APART
    edges = np.geomspace(low, high, NUM_BINS + 1) if is_far else np.linspace(low, high, NUM_BINS + 1)
    edges[0], edges[-1] = low, high  # geomspace rounds
    counts, _ = np.histogram(array, edges)
    bounds = edges.tolist()
    return counts, [f"{begin:,.4g} to {end:,.4g}" for begin, end in pairwise(bounds)]
