"""Shares of data for tests, without processes: each rank a thread, `gather` a barrier between them.

assert together(2, 1, lambda share: share.gather(share.data_rank)) == [[0, 1], [0, 1]]
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Meeting:
    def __init__(self, num_ranks: int) -> None:
        self.barrier = threading.Barrier(num_ranks, timeout=60)
        self.values: list[str] = [""] * num_ranks


class Rank:
    """One of num_data * num_context threads."""

    def __init__(self, rank: int, num_data: int, num_context: int, meeting: _Meeting) -> None:
        self.data_rank, self.context_rank = divmod(rank, num_context)
        self.num_data, self.num_context = num_data, num_context
        self._rank, self._meeting = rank, meeting

    def gather(self, value: Any, /) -> list[Any]:
        self._meeting.values[self._rank] = json.dumps(value)
        self._meeting.barrier.wait()
        values = [json.loads(text) for text in self._meeting.values]
        self._meeting.barrier.wait()
        return values


def together(num_data: int, num_context: int, work: Callable[[Rank], Result]) -> list[Result]:
    """work(share) on every rank at once; what each returns, by rank. A rank that raises breaks the others' wait."""
    num_ranks = num_data * num_context
    meeting = _Meeting(num_ranks)

    def run(rank: int) -> Result:
        try:
            return work(Rank(rank, num_data, num_context, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(num_ranks) as threads:
        futures = [threads.submit(run, rank) for rank in range(num_ranks)]
        errors = [error for future in futures if (error := future.exception())]
    for error in errors:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [future.result() for future in futures]
