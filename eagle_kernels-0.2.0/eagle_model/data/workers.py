"""Worker processes that read samples: nothing they do holds the interpreter that trains.

    workers = Workers(4, processor, ReadOptions(), say=print)
    part = workers.read(wanted, stop=stop)       # as reader.read_part; from as many threads as there are workers
    workers.close()

Each is a child of a fork server that has imported this module and done nothing else: a process forked from one that has
used torch's threads may hang in its first matrix product. Pixels come in memory that both processes map (an anonymous
file, whose descriptor is handed over): they are not copied, and are gone with whoever holds them last.

A worker that ends, whatever killed it, is noticed at once: its pipe closes. It is said which sample it was at, another
takes its place, and the row is read again. A sample at which MAX_ENDS workers have ended is a bad sample; so is one
that takes longer than its time limit, where a decoder does not look at the clock: its worker is ended.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from mmap import mmap
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from eagle_model.data.chat import TokenizedSample
from eagle_model.data.executor import VideoTiles
from eagle_model.data.processor import PIXELS_DTYPE, Processor, ProcessorConfig
from eagle_model.data.reader import Part, Read, ReadOptions, Wanted, read_part
from eagle_model.data.sample import DataError, Sample

MAX_ENDS = 3  # of workers at one sample, or before they had begun: chance does not do it three times
START_SECONDS = 300.0  # limit: imports on a busy machine take a minute
GRACE_SECONDS = 5.0  # beyond its time limit, in which a decoder that looks at the clock ends by itself
LOOK_SECONDS = 0.1  # between looks at whether all is to stop


class WorkerError(RuntimeError):
    """A worker process that cannot start, or that met a mistake of the program."""


class _Ended(Exception):
    """A worker that is gone, how, and the place of the sample it was at."""

    def __init__(self, how: str, place: int | None, *, is_slow: bool = False) -> None:
        super().__init__(how)
        self.how, self.place, self.is_slow = how, place, is_slow


class _Worker:
    """One process and this end of its pipe."""

    def __init__(self, number: int, arguments: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self.number = number
        self._pipe, its_pipe = context.Pipe()
        self.process: ForkServerProcess = context.Process(
            target=_serve, args=(its_pipe, *arguments), name=f"eagle-data-{number}", daemon=True
        )
        self.process.start()
        its_pipe.close()
        self._is_ready = False

    def read(self, wanted: Sequence[Wanted], first_failure_ends: bool, limits: dict[int, float], stop: Any) -> Part:
        place: int | None = None
        try:
            if not self._is_ready:
                self._answer(stop, time.monotonic() + START_SECONDS)
                self._is_ready = True
            self._pipe.send((wanted, first_failure_ends))
            deadline = None
            while True:
                kind, told = self._answer(stop, deadline)
                if kind == "begin":
                    place = told
                    deadline = None if place is None or place not in limits else time.monotonic() + limits[place]
                elif kind == "bug":
                    raise WorkerError(f"data worker {self.number}: {told}")
                else:
                    return self._part(*told)
        except TimeoutError:
            self.end()
            raise _Ended("took too long", place, is_slow=True) from None
        except (EOFError, ConnectionError):
            raise _Ended(self._how(), place) from None

    def _answer(self, stop: threading.Event, deadline: float | None) -> tuple[str, Any]:
        while not self._pipe.poll(LOOK_SECONDS):
            if stop.is_set():
                self.end()  # what it is at may take long
                raise CancelledError
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError
        return self._pipe.recv()

    def _part(self, samples: list[Any], failed: dict[int, str], shape: Any, deferred: list[VideoTiles]) -> Part:
        if shape[0]:
            memory = os.fdopen(recv_handle(self._pipe), "r+b")
            with memory:
                mapped = mmap(memory.fileno(), 0)
            flat = torch.frombuffer(mapped, dtype=PIXELS_DTYPE, count=int(np.prod(shape)))
            patches_IPK = flat.view(shape)
        else:
            patches_IPK = torch.empty(shape, dtype=PIXELS_DTYPE)
        read = [
            Read(place, TokenizedSample(id, *map(torch.from_numpy, arrays)), tiles)
            for place, (id, *arrays), tiles in samples
        ]
        return Part(read, patches_IPK, {place: DataError(text) for place, text in failed.items()}, deferred)

    def _how(self) -> str:
        self.process.join(GRACE_SECONDS)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"ended with status {code}"

    @property
    def has_started(self) -> bool:
        return self._is_ready

    def end(self) -> None:
        self.process.kill()
        self.process.join(GRACE_SECONDS)
        self._pipe.close()


class Workers:
    """So many worker processes; `read` may be called by as many threads at once."""

    def __init__(
        self, num_workers: int, processor: Processor, options: ReadOptions, *, say: Callable[[str], object]
    ) -> None:
        self._arguments = (processor.tokenizer.to_str(), processor.config, options)
        self._limit, self._say = options.video_time_limit_seconds, say
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all = {number: _Worker(number, self._arguments) for number in range(num_workers)}
        for worker in self._all.values():
            self._idle.put(worker)

    @property
    def pids(self) -> list[int]:
        return [pid for worker in self._all.values() if (pid := worker.process.pid) is not None]

    def read(self, wanted: Sequence[Wanted], *, stop: threading.Event, first_failure_ends: bool = False) -> Part:
        """As `read_part`. Raises WorkerError for a worker that cannot start or that finds a mistake of the program."""
        worker, failed, ends = self._idle.get(), dict[int, DataError](), Counter[int | None]()
        plans = {one.place: one.plan for one in wanted}
        limits = {}
        if self._limit is not None:
            limits = {k: self._limit * max(1, len(plan.sample.videos)) + GRACE_SECONDS for k, plan in plans.items()}
        try:
            while True:
                left = [one for one in wanted if one.place not in failed]
                try:
                    part = worker.read(left, first_failure_ends, limits, stop)
                    return part._replace(failed=part.failed | failed)
                except _Ended as ended:
                    if stop.is_set():
                        raise CancelledError from None
                    ends[ended.place] += ended.place is not None or not worker.has_started
                    sample = None if ended.place is None else plans[ended.place].sample
                    error = self._error_of(worker, ended, sample, ends[ended.place], limits.get(ended.place or 0, 0.0))
                    worker = self._all[worker.number] = _Worker(worker.number, self._arguments)
                    if ended.place is not None and error is not None:
                        failed[ended.place] = error
                        if first_failure_ends:
                            return Part([], torch.empty(0, dtype=PIXELS_DTYPE), failed)
        finally:
            self._idle.put(worker)

    def _error_of(
        self, worker: _Worker, ended: _Ended, sample: Sample | None, num_ends: int, limit_seconds: float
    ) -> DataError | None:
        """Says what has happened; an error where the sample is to blame. num_ends: of workers at this sample, or before
        they had begun. Raises WorkerError where none can begin."""
        who = f"data worker {worker.number} (process {worker.process.pid})"
        if sample is None:
            if num_ends >= MAX_ENDS:
                raise WorkerError(
                    f"{who} {ended.how} before it had begun, as {MAX_ENDS - 1} before it. If it has printed that a "
                    "process was started too early, put what starts training in your script under "
                    '`if __name__ == "__main__":`; or set data.workers=thread.'
                )
            self._say(f"D{who[1:]} {ended.how} between rows; another takes over.")
            return None
        at = f"sample {sample.id}" + ("" if sample.where in ("", sample.id) else f" ({sample.where})")
        if ended.is_slow:
            self._say(f"D{who[1:]} took too long at {at}: another takes over.")
            return DataError(f"sample {sample.id}: reading took more than {limit_seconds:g} s, and was ended.")
        self._say(f"D{who[1:]} {ended.how} at {at}; its row is read again.")
        if num_ends < MAX_ENDS:
            return None
        return DataError(f"sample {sample.id}: {MAX_ENDS} worker processes that read it ended; the last {ended.how}.")

    def close(self) -> None:
        """Ends the processes, whatever they are at. May be called again."""
        for worker in self._all.values():
            worker.end()


# ---- in the worker process


def _serve(pipe: Connection, tokenizer: str, config: ProcessorConfig, options: ReadOptions) -> None:
    """Reads what it is told to until the pipe is closed, as it is when the training process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all of a terminal's processes: the trainer decides
    torch.set_num_threads(1)
    processor, stop = Processor(Tokenizer.from_str(tokenizer), config), threading.Event()
    try:
        pipe.send(("ready", None))
        while True:
            wanted, first_failure_ends = pipe.recv()
            with _Memory() as memory:
                try:
                    part = read_part(
                        processor,
                        wanted,
                        options,
                        stop=stop,
                        first_failure_ends=first_failure_ends,
                        begin=lambda place: pipe.send(("begin", place)),
                        empty=memory.empty,
                    )
                except ConnectionError:
                    return
                except Exception:
                    pipe.send(("bug", traceback.format_exc()))
                    continue
                pipe.send(("begin", None))  # no sample is to blame from here on
                samples = [(place, _arrays(tokens), tiles) for place, tokens, tiles in part.samples]
                failed = {place: str(error) for place, error in part.failed.items()}
                pipe.send(("done", (samples, failed, tuple(part.patches_IPK.shape), part.deferred)))
                if len(part.patches_IPK):
                    send_handle(pipe, memory.fd, os.getppid())
    except (EOFError, ConnectionError):
        return


def _arrays(tokens: TokenizedSample) -> list[Any]:
    """Not as tensors: torch would hand each over by a file of its own."""
    return [tokens.id, tokens.token_ids_T.numpy(), tokens.labels_T.numpy(), tokens.visual_positions_N.numpy()]


class _Memory:
    """Memory without a name that another process may map."""

    def __init__(self) -> None:
        self.fd = -1

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        num_bytes = int(np.prod(shape)) * PIXELS_DTYPE.itemsize
        if not num_bytes:
            return torch.empty(shape, dtype=PIXELS_DTYPE)
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("eagle-pixels")
        else:  # not Linux
            with tempfile.TemporaryFile() as file:
                self.fd = os.dup(file.fileno())
        os.ftruncate(self.fd, num_bytes)
        return torch.frombuffer(mmap(self.fd, num_bytes), dtype=PIXELS_DTYPE).view(shape)

    def __enter__(self) -> _Memory:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.fd >= 0:
            os.close(self.fd)
