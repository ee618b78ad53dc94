"""Which combinations of several factors a slow test takes: any two values of two factors meet, which takes few.

@pytest.mark.parametrize(("width", "causal", "kind"), pairs([64, 128], [True, False], ["a", "b", "c"]))

The others carry the marker `exhaustive`: `make ptx` runs them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import pytest


def pairs(*factors: Iterable[Any]) -> list[Any]:
    """Every combination as a pytest.param, marked slow or exhaustive; the same ones in every process."""
    rows = list(product(*factors))
    meetings = {row: set(combinations(enumerate(row), 2)) for row in rows}
    left: set[Any] = set().union(*meetings.values())
    taken = set()
    while left:
        row = max(rows, key=lambda row: len(meetings[row] & left))  # the first of several
        taken.add(row)
        left -= meetings[row]
    return [pytest.param(*row, marks=pytest.mark.slow if row in taken else pytest.mark.exhaustive) for row in rows]
