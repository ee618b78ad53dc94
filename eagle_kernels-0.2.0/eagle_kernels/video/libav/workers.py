"""Decodes the wanted frames of a video, group after group in the caller's thread or several groups side by side.

    groups = plan(index, frames_M, join=False)
    for time_seconds, brightness in decode_groups(
        index, info, groups, lambda picture, m: picture.rgb_YX3().float().mean(),
        num_workers=2, frames_ahead=2, budget=Budget(index.path, None),
    ):
        ...

One codec thread a worker: for sparse frames libav's frame threads restart at every seek and cost 1.2 to 1.45 times the
CPU. Workers take whole groups.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

import numpy as np

from eagle_kernels.video.budget import Budget, CallerHasGone
from eagle_kernels.video.info import PacketIndex, VideoError, VideoInfo
from eagle_kernels.video.libav.drops import drops_are_safe
from eagle_kernels.video.libav.picture import Picture, Scaler
from eagle_kernels.video.libav.reader import Reader
from eagle_kernels.video.plan import Group
from eagle_kernels.video.ranged import RangedFile

FRAMES_AHEAD = 2  # finished frames that a worker may hold of one group where they are large: with
GROUPS_AHEAD = 2  # groups in work or waiting for each worker, this bounds the memory
POLL_SECONDS = 0.1  # between two looks at the budget while a thread waits for another

T = TypeVar("T")
Take = Callable[[Picture, int], T]  # what a caller makes of its m-th frame, in the worker's thread; never None


def decode_groups(
    index: PacketIndex,
    info: VideoInfo,
    groups: Sequence[Group],
    take: Take[T],
    *,
    num_workers: int,
    frames_ahead: int,
    budget: Budget,
) -> Generator[tuple[float, T], None, None]:
    """For each frame of each group, in their order, its own time and what `take` makes of it.

    One worker: nothing is decoded before it is taken. Several: they call `take` side by side, and run ahead of the
    caller by a bounded number of groups, of each of which `frames_ahead` frames are made before they are taken; 0: all,
    which keeps the workers busy where many frames of a group are wanted. The pixels are the same.

    Raises VideoError on reaching a frame that is damaged or missing.
    """
    if num_workers == 1:
        taken = _in_turn(index, groups, take, budget)
    else:
        taken = _side_by_side(index, groups, take, budget, num_workers, frames_ahead)
    if index.ranged is not None:
        taken = _fetched(index, index.ranged, groups, taken, budget)
    given = _with_times(info, [i for group in groups for i in group.frames], taken)
    return given if budget.limit_seconds is None else budget.timed(given)


def _with_times(
    info: VideoInfo, frames: Sequence[int], taken: Generator[T | None, None, None]
) -> Generator[tuple[float, T], None, None]:
    with closing(taken):
        for num_given, (i, result) in enumerate(zip(frames, taken)):
            time_seconds = float(info.frame_times_seconds[i])
            if result is None:
                raise VideoError(
                    f"{info.path}: frame {i} at {time_seconds:.6f} s is damaged or missing in the file and cannot be "
                    f"decoded ({num_given} of the {len(frames)} frames asked for were given before it)."
                )
            yield time_seconds, result


def _fetched(
    index: PacketIndex,
    ranged: RangedFile,
    groups: Sequence[Group],
    taken: Generator[T | None, None, None],
    budget: Budget,
) -> Generator[T | None, None, None]:
    """`taken`, once the packets of all groups are at hand: asked for together, they take one wait, not one a group."""
    with closing(taken):
        if index.samples is not None and groups:
            samples = index.samples()
            places = np.concatenate([np.arange(group.first_place, group.end_place) for group in groups])
            with closing(ranged.open(budget.look)) as file:
                file.need(samples.offset_D[places], samples.size_D[places])
        yield from taken


def _in_turn(
    index: PacketIndex, groups: Sequence[Group], take: Take[T], budget: Budget
) -> Generator[T | None, None, None]:
    drop = drops_are_safe(index, groups, budget)
    scaler = Scaler()
    number = itertools.count()
    with closing(Reader(index, budget)) as reader:
        for group in groups:
            for frame, m in zip(reader.frames(group, drop=drop), number):
                yield None if frame is None else take(Picture(frame, index, scaler), m)


def _side_by_side(
    index: PacketIndex, groups: Sequence[Group], take: Take[T], budget: Budget, num_workers: int, frames_ahead: int
) -> Generator[T | None, None, None]:
    """Each group is a task with a queue of its own; the queues are emptied in the groups' order. Tasks are begun
    in that order too, so the one that is waited for is always at work."""
    drop = drops_are_safe(index, groups, budget)
    every_reader = [Reader(index, budget) for _ in range(num_workers)]
    idle: queue.SimpleQueue[Reader] = queue.SimpleQueue()
    for reader in every_reader:
        idle.put(reader)

    def work(group: Group, first: int, done: queue.Queue[T | BaseException | None]) -> None:
        reader, scaler = idle.get(), Scaler()
        try:
            for m, frame in enumerate(reader.frames(group, drop=drop), first):
                _put(done, None if frame is None else take(Picture(frame, index, scaler), m), budget)
        except CallerHasGone:
            pass
        except BaseException as error:  # handed to the caller, whatever it is
            with contextlib.suppress(CallerHasGone):
                _put(done, error, budget)
        finally:
            idle.put(reader)

    waiting = iter(groups)
    num_begun = 0  # frames of the groups begun
    begun: deque[tuple[Group, queue.Queue[T | BaseException | None]]] = deque()
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="eagle-video")
    try:
        while True:
            for group in itertools.islice(waiting, num_workers * GROUPS_AHEAD - len(begun)):
                done: queue.Queue[T | BaseException | None] = queue.Queue(frames_ahead)
                pool.submit(work, group, num_begun, done)
                begun.append((group, done))
                num_begun += len(group.frames)
            if not begun:
                return
            group, done = begun.popleft()
            for _ in group.frames:
                result = _get(done, budget)
                if isinstance(result, BaseException):
                    raise result
                yield result
    finally:
        budget.leave()
        pool.shutdown(wait=True)
        for reader in every_reader:
            reader.close()


def _put(done: queue.Queue[T | BaseException | None], result: T | BaseException | None, budget: Budget) -> None:
    while True:
        if budget.has_gone:
            raise CallerHasGone
        with contextlib.suppress(queue.Full):
            return done.put(result, timeout=POLL_SECONDS)


def _get(done: queue.Queue[T | BaseException | None], budget: Budget) -> T | BaseException | None:
    while True:
        with contextlib.suppress(queue.Empty):
            return done.get(timeout=POLL_SECONDS)
        budget.check()
