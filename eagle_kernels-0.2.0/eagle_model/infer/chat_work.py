"""One chat request at the engine, seen from an event loop: a thread waits for files and plans; the loop does not.

    work = ChatWork(engine, store, asked, pool, metrics, Inbox(asyncio.get_running_loop()))
    work.start()
    requests = await work.begun()                       # raises what is wrong with the request
    async for index, event in work.events(): ...        # of all its answers, as they come
    work.cancel()                                       # at any time: the engine gives the memory back

A request takes one thread of the pool until its answers have ended, which sleeps while they come: the engine's own
thread puts events into the loop's inbox. A thread for each stream would have to be woken for each token.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from eagle_model.infer.chat_request import ChatRequest
from eagle_model.infer.fetch import RequestError
from eagle_model.infer.media import MediaStore
from eagle_model.infer.metrics import ServerMetrics
from eagle_model.infer.request import Event, Request

if TYPE_CHECKING:
    from eagle_model.infer.engine import Engine


class Inbox:
    """What threads hand to an event loop: the loop is woken once for all that comes before it looks."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._is_waking = False

    def call(self, function: Callable[..., object], *given: Any) -> None:
        """Calls it in the loop, soon. Raises RuntimeError where the loop is closed."""
        self._calls.append((function, given))
        if not self._is_waking:  # set before the loop looks, cleared before it looks: nothing is left behind
            self._is_waking = True
            self._loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._is_waking = False
        while self._calls:
            function, given = self._calls.popleft()
            function(*given)


class ChatWork:
    """Made and awaited on one event loop."""

    def __init__(
        self,
        engine: Engine,
        store: MediaStore,
        asked: ChatRequest,
        pool: Executor,
        metrics: ServerMetrics,
        inbox: Inbox,
        *,
        adapter: str | None = None,
    ) -> None:
        self._engine, self._store, self._asked, self._pool, self._metrics = engine, store, asked, pool, metrics
        self._adapter, self._inbox = adapter, inbox
        self._came: asyncio.Queue[Any] = asyncio.Queue()  # requests; (index, event, when); an exception; None: the end
        self._requests: list[Request] = []
        self._is_cancelled = threading.Event()
        self._arrived = time.perf_counter()
        self._last_tokens: dict[int, float] = {}  # of each answer: when it came
        self._is_answered = threading.Semaphore(0)  # once for each answer that has ended
        self.ended = asyncio.get_running_loop().create_future()  # when nothing of it is left
        self.is_late = False

    def start(self) -> None:
        self._pool.submit(self._run)

    def cancel(self, *, is_late: bool = False) -> None:
        self.is_late = self.is_late or is_late
        self._is_cancelled.set()
        for request in list(self._requests):
            request.cancel()

    async def begun(self) -> list[Request]:
        """The engine's requests, once all are accepted. Raises RequestError, DataError or QueueFull."""
        came = await self._came.get()
        if isinstance(came, BaseException):
            raise came
        return came

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """(which answer, its event), until all have ended. Raises what the engine failed with."""
        while (came := await self._came.get()) is not None:
            if isinstance(came, BaseException):
                raise came
            index, event, seconds = came
            self._time(index, event, seconds)
            yield index, event

    def _time(self, index: int, event: Event, seconds: float) -> None:
        if event.token_ids:
            last = self._last_tokens.get(index)
            histogram = self._metrics.first_token if last is None else self._metrics.between_tokens
            histogram.observe(seconds - (self._arrived if last is None else last))
            self._last_tokens[index] = seconds
        if event.finish_reason is not None:
            self._metrics.finished.labels(event.finish_reason).inc()

    # -- in threads

    def _run(self) -> None:
        try:
            with self._store.holding() as path_of:
                self._submit(path_of)
                for index, request in enumerate(self._requests):
                    request.listen(partial(self._hear, index))
                for _ in self._requests:
                    self._is_answered.acquire()
            self._count()
            self._metrics.whole.observe(time.perf_counter() - self._arrived)
            self._put(None)
        except (ValueError, ImportError) as error:  # a DataError, a number that this model has not, an extra that lacks
            self.cancel()
            self._put(RequestError(str(error).replace(f"{self._store.folder}/", "")))  # our folder is nobody's business
        except Exception as error:  # for whoever awaits
            self.cancel()
            self._put(error)
        finally:
            self._call(self._end)

    def _submit(self, path_of: Any) -> None:
        asked = self._asked
        messages = asked.local_messages(path_of)
        for i in range(asked.n):
            if self._is_cancelled.is_set():
                raise RequestError("the request was cancelled.", status=408)
            seed = asked.sampling.seed
            sampling = asked.sampling if seed is None else replace(asked.sampling, seed=seed + i)
            more: dict[str, Any] = {"tiles": asked.tiles, "frames": asked.frames, "fps": asked.fps}
            self._requests.append(self._engine.submit(messages, sampling, adapter=self._adapter, **more))
        if self._is_cancelled.is_set():  # it may have been since the last look
            self.cancel()
        self._put(list(self._requests))

    def _hear(self, index: int, event: Event) -> None:
        """In the engine's thread: nothing here may wait."""
        self._put((index, event, time.perf_counter()))
        if event.finish_reason is not None:
            self._is_answered.release()

    def _count(self) -> None:
        """Tokens, and why answers ended. Raises what the engine failed with."""
        metrics, usages = self._metrics, [request.usage for request in self._requests]
        metrics.prompt_tokens.inc(usages[0].prompt_tokens)
        metrics.cached_tokens.inc(usages[0].cached_tokens)
        metrics.completion_tokens.inc(sum(usage.completion_tokens for usage in usages))
        for request in self._requests:
            if request.error is not None:
                raise request.error

    def _put(self, item: Any) -> None:
        self._call(self._came.put_nowait, item)

    def _call(self, function: Any, *given: Any) -> None:
        try:
            self._inbox.call(function, *given)
        except RuntimeError:  # the loop is closed: the server ends, and nobody waits
            self.cancel()

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
