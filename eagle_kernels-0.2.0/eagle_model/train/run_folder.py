"""The folder of a run: made, written to and locked before anything is planned, so that one trainer alone uses it.

    lock = take(Path("runs/first"), print)      # ConfigError: "... is in use by process 4242 of ann on node7, ..."
    lock.release()

The lock is the kernel's (flock), which ends with the process that holds it, however that ends. `run.lock` says in JSON
who took it and when; text that is still there when the lock is free was left by a trainer that was killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import getpass
import json
import os
import platform
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TextIO

from eagle_model.checkpoints import steps
from eagle_model.fields import ConfigError, few
from eagle_model.files import os_reason
from eagle_model.train.checkpoint import remove_interrupted

LOCK = "run.lock"
MAX_OWNER_CHARS = 1000  # of run.lock: it has some hundred
_TEMPORARY = re.compile(
    r"\.(run\.json|config\.json|metrics\.jsonl|skipped\.json|report\.html|not-finite.*|out-of-memory.*)\.\d+\.tmp"
)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without locks answer


def take(folder: Path, say: Callable[[str], None]) -> RunLock:
    """Locks `folder`, which is made if need be, and removes what trainers that were killed left half written there.

    Args:    say: is told of a lock whose trainer was killed, and of a file system that has no locks.
    Raises:  ConfigError when the folder is in use, holds something else than a run, or cannot be written to.
    """
    _refuse_foreign(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder, say)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be used: {os_reason(error)}. A run needs a folder that it can write to."
        ) from error
    try:
        _remove_half_written(folder)
    except OSError as error:
        lock.release()
        raise ConfigError(f"{folder} cannot be tidied: {os_reason(error)}.") from error
    return lock


class RunLock:
    """Held from the making of it until `release`, the end of the process, or the end of the last reference to it."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._file: TextIO | None = (folder / LOCK).open("a+", encoding="utf-8", errors="replace")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(_in_use(folder, self._owner())) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            say(f"{folder} cannot be locked ({error.strerror}): see to it that no other trainer uses it.")
        if owner := self._owner():
            say(f"Stale lock on {folder}: {_described(owner)}, was killed or lost its machine.")
        try:
            self._file.truncate(0)
            self._file.write(json.dumps(_this_process()))
            self._file.flush()
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Gives the folder back. May be called again."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError), file:  # a full disk keeps no lock
                file.truncate(0)  # the file stays: a name that comes and goes could be locked by two

    def _owner(self) -> dict[str, object]:
        assert self._file is not None
        self._file.seek(0)
        try:
            owner = json.loads(self._file.read(MAX_OWNER_CHARS))
        except (ValueError, RecursionError):
            return {}
        return owner if isinstance(owner, dict) else {}


def _this_process() -> dict[str, object]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return {"process": os.getpid(), "user": user, "host": platform.node(), "since": now}


def _described(owner: dict[str, object]) -> str:
    process, user, host, since = (few([owner.get(key, "?")]) for key in ("process", "user", "host", "since"))
    return f"process {process} of {user} on {host}, since {since}"


def _in_use(folder: Path, owner: dict[str, object]) -> str:
    who = _described(owner) if owner else "another trainer"
    elsewhere = owner.get("host", platform.node()) != platform.node()
    crashed = f" If that machine has crashed, delete {folder / LOCK}." if elsewhere else ""
    return f"{folder} is in use by {who}. Let that trainer end, or give --run another folder.{crashed}"


def _refuse_foreign(folder: Path) -> None:
    """A folder is a run's when it has run.json, run.lock or a checkpoint; a new run may have an empty one."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; a run needs a folder.")
    try:
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        is_run = not {"run.json", LOCK}.isdisjoint(names) or bool(steps(folder / "checkpoints"))
    except OSError as error:
        raise ConfigError(f"{folder} cannot be looked into: {os_reason(error)}.") from error
    if not is_run and (foreign := [name for name in names if not _TEMPORARY.fullmatch(name)]):
        raise ConfigError(f"{folder} holds files but no run: {few(foreign)}. Give a new or an empty folder.")


def _remove_half_written(folder: Path) -> None:
    """Safe under the lock alone: what a living trainer is writing looks the same."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink()
    remove_interrupted(folder / "checkpoints")
