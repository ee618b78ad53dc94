"""Work done ahead in threads: bounded, its results in order, and stopped when nobody wants them any more.

    with Prefetch(num_threads=2) as prefetch:
        for path, loading in prefetch.ahead(load, paths, at_once=8):
            use(path, loading.result())      # raises what load(path) raised

Decoding and tokenizing release the interpreter's lock, so threads are enough.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Prefetch:
    """A pool of threads. `stop` is set when it closes: long work looks at it and ends early."""

    def __init__(self, num_threads: int) -> None:
        self.stop = threading.Event()
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="eagle-data")

    def ahead(
        self, work: Callable[[Item], Result], items: Iterable[Item], *, at_once: int
    ) -> Iterator[tuple[Item, Future[Result]]]:
        """Each item in its order, with its work in the making; at most `at_once` are begun ahead of its use.

        Where the iterator is closed, what is not running yet never runs.
        """
        waiting: deque[tuple[Item, Future[Result]]] = deque()
        try:
            for item in items:
                waiting.append((item, self._threads.submit(work, item)))
                if len(waiting) >= at_once:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()

    def close(self) -> None:
        """Ends the threads; work in progress ends as soon as it looks at `stop`. May be called again."""
        self.stop.set()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
