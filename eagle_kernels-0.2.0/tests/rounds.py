"""Tests that go on for a while: some rounds in `make test`, as many as their CPU seconds allow in `make slow`.

    @by_rounds(12)                # two tests: of 12 rounds; marked slow, of --slow-seconds
    def test_damage(rounds):
        rng = random.Random(rounds.seed)
        for _ in rounds:
            ...
        assert rounds.num         # how many there were

A slow test's rounds are the same on every machine, but for their number: those of one that failed come again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import pytest

SLOW_SECONDS = 6.0  # of CPU for each slow test that counts no rounds; `pytest --slow-seconds` gives another number
SLOW = "slow"


@dataclass
class Rounds:
    """Counts from 0, `most` times or for `seconds` of this process's CPU time, once at least; afresh in each loop."""

    most: int | None
    seconds: float
    num: int = 0

    @property
    def seed(self) -> int:
        """Other rounds in a slow test than in the short one."""
        return self.most or 0

    def __iter__(self) -> Iterator[int]:
        end = time.process_time() + self.seconds
        for number in count():
            if number and (time.process_time() >= end if self.most is None else number == self.most):
                return
            yield number
            self.num += 1


def by_rounds(most: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("rounds", [most, pytest.param(SLOW, marks=pytest.mark.slow)], indirect=True)
