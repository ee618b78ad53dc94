"""How far a step is, what the run has cost so far, and when it may be done: a line every few seconds.

progress = Progress("clip", num_parts=50, budget=budget, say=print)
progress.begin(num_items=200); progress.item_done(); progress.part_done()
# clip: part 1 of 50, item 12 of 200; 123 requests, 0.42 dollars; 31 min left
"""

from __future__ import annotations

import time
from collections.abc import Callable

from eagle_model.infer.endpoint import Budget

SAY_SECONDS = 5.0  # between two lines


class Progress:
    """A line every few seconds: how far a step is, what it has cost, and when it may be done."""

    def __init__(self, name: str, num_parts: int, budget: Budget, say: Callable[[str], object]) -> None:
        self._name, self._num_parts, self._budget, self._say = name, num_parts, budget, say
        self._done, self._items, self._num_items = 0, 0, 1
        self._started, self._work, self._said = time.monotonic(), 0.0, 0.0

    def begin(self, num_items: int) -> None:
        self._items, self._num_items = 0, max(1, num_items)

    def item_done(self) -> None:
        self._items += 1
        self._work += 1 / self._num_items  # of parts done by this process
        if time.monotonic() - self._said > SAY_SECONDS:
            self._said = time.monotonic()
            self._say(self.line())

    def part_done(self) -> None:
        self._done, self._items = self._done + 1, 0

    def line(self) -> str:
        budget, passed = self._budget, time.monotonic() - self._started
        left = self._num_parts - self._done - self._items / self._num_items
        eta = f"{left * passed / self._work / 60:.0f} min left" if self._work else "no time known"
        cost = f"{budget.num_requests:,} requests, {budget.dollars:.2f} dollars"
        part = f"part {self._done + 1} of {self._num_parts}, item {self._items} of {self._num_items}"
        return f"{self._name}: {part}; {cost}; {eta}"
