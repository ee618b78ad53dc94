"""Work done ahead in threads: bounded, its results in order, and stopped when nobody wants them any more.

    with Prefetch(num_threads=2) as prefetch:
        for path, loading in prefetch.ahead(load, paths, at_once=8):
            use(path, loading.result())      # raises what load(path) raised

Decoding and tokenizing release the interpreter's lock, so threads are enough.
"""

from __future__ import annotations

import math
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
        self,
        work: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        at_once: int,
        size: Callable[[Item], int] = lambda item: 0,
        max_size: float = math.inf,
    ) -> Iterator[tuple[Item, Future[Result]]]:
        """Each item in its order, with its work in the making; at most `at_once` are begun ahead of its use.

        size, max_size: of those begun and not given out, the sizes add up to max_size at most, unless it is one alone.
        Where the iterator is closed, what is not running yet never runs.
        """
        waiting: deque[tuple[Item, Future[Result]]] = deque()
        used, coming = 0, iter(items)
        too_large: list[Item] = []  # for now
        try:
            while True:
                while len(waiting) < at_once:
                    try:
                        item = too_large.pop() if too_large else next(coming)
                    except StopIteration:
                        break
                    if waiting and used + size(item) > max_size:
                        too_large.append(item)
                        break
                    used += size(item)
                    waiting.append((item, self._threads.submit(work, item)))
                if not waiting:
                    return
                used -= size(waiting[0][0])
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
