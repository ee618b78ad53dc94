"""Saving while training goes on: a copy is made beside the next step, and a thread writes it.

    saver = Saver(run / "checkpoints", run_id, ranks, in_background=True)
    saver.begin(400, lambda staging: share_of(..., staging=staging), rest=write_rest, then=tidy)
    saver.copied()                               # before anything that was to be saved changes: the optimizer's step
    saver.check()                                # at every later step: raises what went wrong in the thread
    saver.wait()                                 # the end: all is on the disk, or an error
    saver.close()

Phases   copied: every process copies its share. A step changes nothing of it before the optimizer's update, so most is
         copied beside the next forward and backward pass. handed in: its thread writes, fsyncs, hashes and lists.
         committed: when all have handed in, the first process's thread writes the rest and the manifest, and renames.
         A process that dies before that leaves a folder which nobody takes for a checkpoint.
Order    One save at a time: the next one waits for the last.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from eagle_model.train import checkpoint
from eagle_model.train.first import on_all
from eagle_model.train.ranks import Ranks
from eagle_model.train.staging import Staging

GRACE_SECONDS = 8.0  # that a trainer which has failed waits for others' files: the watchdog ends it after 10


class Written(Protocol):
    """What a process saves; state.Share."""

    rows: dict[str, list[int]]

    def write(self, folder: Path) -> list[str]: ...


class Saver:
    """The saves of one trainer, into a folder that is its own. All processes make the same calls."""

    def __init__(self, folder: Path, run: str, ranks: Ranks, *, in_background: bool) -> None:
        """in_background: copies first; else `begin` returns when the checkpoint is complete."""
        self.folder, self.run, self.ranks = folder, run, ranks
        self.saved_step = 0  # the newest that is known to be complete
        self.longest_seconds = 0.0  # of a save, from `begin` until it was complete
        self._staging = Staging(ranks.device) if in_background else None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._off = threading.Event()
        self._is_copied = threading.Event()
        self._is_copied.set()
        self.step: int | None = None  # that is being saved
        self._partial: Path | None = None
        self._handing_in: Future[None] | None = None
        self._committing: Future[None] | None = None

    def begin(
        self,
        step: int,
        take: Callable[[Staging | None], Written],
        *,
        rest: Callable[[Path, Any, Sequence[Mapping[str, Any]]], None],
        then: Callable[[], None],
    ) -> None:
        """Starts to save `step`, when the save before is complete.

        Args:    take: makes this process's share.  rest: writes into the folder, on the first process alone, given its
                 share and all processes' rows.  then: what is to be done there when the checkpoint is complete.
        Raises:  OSError and CheckpointError as `wait` does.
        """
        self.wait()
        self.step, began = step, time.monotonic()
        try:
            self._partial = self._agree(lambda: checkpoint.begin(self.folder, step) if self.ranks.is_first else None)
            if self._staging is not None:
                self._staging.begin()
            share = take(self._staging)
        except BaseException:
            self._fail()
            raise
        partial = self._partial or self.folder / f"step-{step:06d}.partial"
        self._is_copied.clear()
        self._handing_in = self._thread.submit(self._hand_in, partial, share)
        if self.ranks.is_first:

            def commit() -> None:
                files, rows = checkpoint.handed_in(partial, self.ranks.layout.processes, self._off.is_set)
                rest(partial, share, rows)
                checkpoint.commit(partial, self.run, files)
                self._partial, self.saved_step = None, step
                self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
                then()

            self._committing = self._thread.submit(commit)
        if self._staging is None:
            self.wait()

    def _hand_in(self, partial: Path, share: Written) -> None:
        try:
            if self._staging is not None:
                self._staging.finish()
        finally:
            self._is_copied.set()
        names = share.write(partial)
        checkpoint.hand_in(partial, self.ranks.rank, names, share.rows)

    def copied(self) -> None:
        """Returns when what `begin` was given may change."""
        self._is_copied.wait()

    def check(self) -> None:
        """Raises what went wrong in this process's thread so far; costs nothing."""
        for job in (self._handing_in, self._committing):
            if job is not None and job.done() and job.exception() is not None:
                self._fail()
                job.result()

    def wait(self) -> None:
        """Returns when the save that was begun is complete; all processes call it together.

        Raises: on every process, OSError or CheckpointError when one of them could not write its part. What there was
                of it is deleted.
        """
        if self.step is None:
            return
        handing_in, committing = self._handing_in, self._committing
        try:
            self._agree(lambda: handing_in.result() if handing_in is not None else None)
            self._agree(lambda: committing.result() if committing is not None else None)
        except BaseException:
            self._fail()
            raise
        self.saved_step, self.step = self.step, None
        self._handing_in = self._committing = None

    def _agree(self, do: Callable[[], Any]) -> Any:
        """What `do` returns; where it fails in one process, all raise."""
        return on_all(self.ranks, do, otherwise=OSError)

    def _fail(self) -> None:
        """Ends a save that cannot be completed."""
        self.step = None
        self._off.set()  # the thread may wait for a part that never comes
        for job in (self._handing_in, self._committing):
            if job is not None:
                with contextlib.suppress(Exception):
                    job.result()
        self._handing_in = self._committing = None
        self._off.clear()
        if self._partial is not None:
            checkpoint.give_up(self._partial)
            self._partial = None

    def close(self) -> None:
        """The end of the thread. A save that was begun and not waited for, as where training failed, is completed if
        the other processes hand in their parts within GRACE_SECONDS. May be called again."""
        until = time.monotonic() + GRACE_SECONDS
        for job in (self._handing_in, self._committing):
            while job is not None and not job.done() and time.monotonic() < until:
                time.sleep(checkpoint.POLL_SECONDS)
        if self.step is not None and self._committing is not None and not self._is_good(self._committing):
            self._fail()
        self._off.set()
        self._thread.shutdown(wait=True)
        if self._staging is not None:
            self._staging.close()

    @staticmethod
    def _is_good(job: Future[None]) -> bool:
        return job.done() and job.exception() is None
