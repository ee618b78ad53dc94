"""Several processes that train together, for tests: gloo on this machine's CPU, one thread each.

    def sums(scale):                             # at the top of a test's module; it runs in every process
        ranks = start(Layout(shard=2))           # finds the process group that is there
        return float(ranks.total(torch.tensor(scale * (1.0 + ranks.rank))))

    assert run(sums, 2, 10.0) == [30.0, 30.0]    # what each returned, by rank

Arguments and results are what JSON can say; larger ones go through files (pass `str(tmp_path)`). Every call has new
processes: they are forked from one that has imported everything, which costs 3 CPU seconds once a session and a few
milliseconds a process. So a call costs about what its work does, nothing is left over from the last one, and a process
that dies takes no other test with it.

Raises   RanksError with the tracebacks of those that failed; the rest are killed. Whoever waits longer than the timeout
         shows where, and so does whoever waits for a process that has died.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from eagle_model.train.forks import fork


class RanksError(RuntimeError):
    """A process of a call failed, died or hung."""


def run(function: Callable[..., Any], num_processes: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """function(*args) in so many processes of one process group; what each returns, by rank.

    function: at the top of an importable module. timeout: seconds, of all of it.
    """
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        call = {
            "module": function.__module__,
            "name": function.__qualname__,
            "args": args,
            "num_processes": num_processes,
            "folder": folder,
            "timeout": timeout,
        }
        failures = _ask(_parent(), call)
        if failures:
            raise RanksError(f"{function.__qualname__} in {num_processes} processes:\n" + "\n".join(failures))
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(num_processes)]


# ---- in the test's process: the one that all others are forked from

_started: subprocess.Popen[str] | None = None


def _parent() -> subprocess.Popen[str]:
    global _started
    if _started is None or _started.poll() is not None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-m", "tests.ranks"]
        _started = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        atexit.register(_end, _started)
    return _started


def _ask(parent: subprocess.Popen[str], call: dict[str, Any]) -> list[str]:
    assert parent.stdin is not None and parent.stdout is not None
    try:
        parent.stdin.write(json.dumps(call) + "\n")
        parent.stdin.flush()
        answer = parent.stdout.readline()
    except BaseException:  # an interrupted test leaves nothing running
        _end(parent)
        raise
    return json.loads(answer) if answer else [f"the process that forks has ended ({parent.wait()})"]


def _end(parent: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()


# ---- in that one


def _serve() -> None:
    """Answers calls, one a line, until there are no more."""
    import torch.distributed.fsdp  # noqa: F401 - imported once, here

    import eagle_model.train.trainer  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what processes print is no answer
    for line in sys.stdin:
        call = json.loads(line)
        try:
            importlib.import_module(call["module"])  # once too
            failures = _fork_and_wait(call)
        except Exception:
            failures = [traceback.format_exc()]
        answers.write(json.dumps(failures) + "\n")
        answers.flush()


def _fork_and_wait(call: dict[str, Any]) -> list[str]:
    """What went wrong, for each process that did not end well."""
    failures = fork(partial(_work, call), call["num_processes"], Path(call["folder"]), seconds=call["timeout"])
    return [f"---- rank {rank}: {how}\n{said}" for rank, how, said in sorted(failures)]


def _work(call: dict[str, Any], rank: int) -> None:
    import torch.distributed as dist

    from eagle_model.train.ranks import leave

    folder, size = Path(call["folder"]), call["num_processes"]
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    function = importlib.import_module(call["module"])
    for part in call["name"].split("."):
        function = getattr(function, part)
    result = json.dumps(function(*call["args"]))
    if dist.is_initialized():
        leave(rank, size)
    (folder / f"{rank}.json").write_text(result)


if __name__ == "__main__":
    _serve()
