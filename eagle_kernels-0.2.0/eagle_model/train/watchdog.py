"""A watchdog: training that hangs, or loses a process, ends with the reason said, so that it can be started again.

    with Watchdog(run, ranks, seconds=1200, say=print) as watchdog:
        for step in ...:
            watchdog.at(f"step {step}")          # whenever something is done that may take `seconds`, not longer
            ...

Each process has a thread that looks at the clock. All are connected to the first one's, by a socket that the system
closes when a process dies, however it does.

Hang     Where `at` was not called for so long in one process, all write the Python stacks of their threads into
         RUN/stacks-.../rank-0000.txt, and tell the first where they are; it says which rank waits where, and all end.
Death    Where a process ends without a word, or with an error, the first says so and the others end.
Exit     ENDED. A process has GRACE_SECONDS to end by itself first: where all have found the same mistake of a user's,
         each says so as it would alone. torchrun then starts all anew, if it was told to (--max-restarts).
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import platform
import secrets
import selectors
import socket
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from eagle_model.fields import ConfigError
from eagle_model.train.ranks import Ranks

ENDED = 75  # exit code: BSD's EX_TEMPFAIL, "try again"
GRACE_SECONDS = 10.0  # from a reason to end until a process is ended
TELL_SECONDS = 10.0  # that the first waits for what the others say of a hang
CONNECT_SECONDS = 60.0  # until all are connected
LOOK_SECONDS = 0.5  # between looks at the clock
STOPPED_SECONDS = 30.0  # between two looks: the thread did not run, so neither did anything else
MAX_LINE_BYTES = 1 << 16  # of what one tells another: some hundred are usual
KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}  # a machine that lost its power: 35 s


class Watchdog:
    """Of one process; all make it together. Use it as a context manager, in the thread that trains."""

    def __init__(
        self,
        run_folder: Path,
        ranks: Ranks,
        *,
        seconds: float | None,
        say: Callable[[str], None],
        end: Callable[[int], object] = os._exit,
    ) -> None:
        """seconds: that may pass between two calls of `at`; None: any time.  say: of the first rank, for the terminal.
        end: what ends the process."""
        self._ranks, self._seconds, self._say, self._end = ranks, seconds, say, end
        self._what, self._since = "the start", time.monotonic()
        self._trained = threading.get_ident()
        name = f"stacks-{datetime.now():%Y%m%d-%H%M%S}"
        self._folder: Path = run_folder / ranks.gather(name)[0]
        self._closing, self._error = threading.Event(), ""
        self._peers: dict[int, _Peer] = {}  # of the first rank all others, of the others the first
        self._hung: float | None = None  # since when that is known
        self._told: dict[int, dict[str, Any]] = {}  # what ranks say of a hang

    def at(self, what: str) -> None:
        """Says that training goes on, and what comes now."""
        self._what, self._since = what, time.monotonic()

    def __enter__(self) -> Watchdog:
        self._trained = threading.get_ident()
        self._connect()
        self.at(self._what)
        self._thread = threading.Thread(target=self._watch, name="eagle-watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._error = f"{type(error).__name__}: {error}" if error is not None else ""
        self._closing.set()
        self._thread.join()

    # -- who is connected to whom

    def _connect(self) -> None:
        num_others = self._ranks.layout.processes - 1
        if num_others == 0:
            return
        is_one_machine = len(set(self._ranks.gather(platform.node()))) == 1
        if self._ranks.is_first:
            listening = socket.create_server(("127.0.0.1" if is_one_machine else "", 0), backlog=num_others)
            token = secrets.token_hex(16)
            self._ranks.gather([listening.getsockname()[1], token])
            self._peers = _accept(listening, num_others, token)
        else:
            port, token = self._ranks.gather(None)[0]
            host = "127.0.0.1" if is_one_machine else os.environ.get("MASTER_ADDR", "127.0.0.1")
            try:
                connection = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
            except OSError as error:
                raise ConfigError(
                    f"rank {self._ranks.rank} cannot reach the first process at {host}:{port} ({error}). Processes "
                    "need to reach each other on any port; set MASTER_ADDR to an address of the first machine."
                ) from error
            self._peers = {0: _Peer(connection)}
            self._peers[0].tell({"rank": self._ranks.rank, "token": token})
        self._ranks.barrier()

    # -- the thread

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer.connection, selectors.EVENT_READ, rank)
            looked = time.monotonic()
            while not self._closing.is_set():
                for rank, line in self._heard(selector, LOOK_SECONDS):
                    self._take(rank, line)
                before, looked = looked, time.monotonic()
                if looked - before > STOPPED_SECONDS:  # this process itself was, by Ctrl-Z or a scheduler
                    self._since = looked
                waited = looked - self._since
                if self._hung is None and self._seconds is not None and waited > self._seconds:
                    self._hang()
                if self._hung is not None and self._has_heard_all():
                    self._all_end(self._report())
            if self._error and self._peers:  # of another's death, perhaps: then that is what to say
                for rank, line in self._heard(selector, LOOK_SECONDS):
                    if "died" in line:
                        self._say(self._death(rank))
        for peer in self._peers.values():
            peer.tell({"failed": self._error} if self._error else {"bye": True})
            peer.connection.close()

    def _heard(self, selector: selectors.BaseSelector, seconds: float) -> list[tuple[int, dict[str, Any]]]:
        """What other ranks have said, those first that say nothing any more: {"died": True}, of our own making."""
        if not self._peers:
            self._closing.wait(seconds)
            return []
        died, said = [], []
        for key, _ in selector.select(seconds):
            rank, peer = key.data, self._peers[key.data]
            lines, is_open = peer.read()
            said += [(rank, line) for line in lines]
            peer.has_left = peer.has_left or any("bye" in line or "failed" in line for line in lines)
            if not is_open:
                selector.unregister(peer.connection)
                del self._peers[rank]
                if not peer.has_left:
                    died.append((rank, {"died": True}))
        return died + said

    def _take(self, rank: int, line: dict[str, Any]) -> None:
        if "died" in line:
            self._all_end(self._death(rank))
        elif "failed" in line:
            self._all_end(f"Rank {rank} failed: {line['failed']}. The other processes end too.")
        elif "end" in line:
            self._end_soon(line["end"])
        elif "dump" in line or "hang" in line:
            if "hang" in line:
                self._told[rank] = line["hang"]
            if self._hung is None:
                self._hang()

    def _death(self, rank: int) -> str:
        return (
            f"Rank {rank} has ended without a word, as where it was killed; rank {self._ranks.rank} was at "
            f"{self._what}. The other processes end too. The same command resumes."
        )

    def _hang(self) -> None:
        """Writes this process's stacks. The first asks the others for theirs, whoever noticed; they tell it."""
        self._hung = time.monotonic()
        mine = self._told[self._ranks.rank] = self._about()
        self._dump(mine)
        for peer in self._peers.values():
            peer.tell({"dump": True} if self._ranks.is_first else {"hang": mine})

    def _has_heard_all(self) -> bool:
        """Of a hang; whoever is not the first waits twice as long for its word, and then ends alone."""
        assert self._hung is not None
        if self._ranks.is_first and all(rank in self._told for rank in self._peers):
            return True
        return time.monotonic() - self._hung > TELL_SECONDS * (1 if self._ranks.is_first else 2)

    def _about(self) -> dict[str, Any]:
        frames = traceback.extract_stack(sys._current_frames().get(self._trained))
        # Innermost, but of no library: ours, or of a script that we call back.
        ours = [f for f in frames if "eagle_model" in f.filename or "/lib/python" not in f.filename] or frames
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} in {ours[-1].name}" if ours else "an ended thread"
        seconds = round(time.monotonic() - self._since, 1)
        return {"what": self._what, "place": place, "seconds": seconds, "host": platform.node(), "pid": os.getpid()}

    def _dump(self, about: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # the disk may be what it waits for
            self._folder.mkdir(exist_ok=True)
            with (self._folder / f"rank-{self._ranks.rank:04d}.txt").open("w") as file:
                file.write("".join(f"{name}: {value}\n" for name, value in about.items()))
                file.flush()
                faulthandler.dump_traceback(file)

    def _report(self) -> str:
        """Who waits where; of a rank that is not the first, what it knows of itself."""
        waiting = defaultdict(list)
        for rank, about in sorted(self._told.items()):
            waiting[f"at {about['what']}, {about['place']}"].append(rank)
        silent = [rank for rank in range(self._ranks.layout.processes) if rank not in self._told]
        if silent and self._ranks.is_first:
            waiting["said nothing"] = silent
        lines = [f"  rank {', '.join(map(str, ranks))}: {where}" for where, ranks in waiting.items()]
        return "\n".join([f"Training hangs. Stacks of all threads: {self._folder}", *lines])

    def _all_end(self, why: str) -> None:
        """Says why, tells all others, and ends this process unless it ends by itself."""
        if self._ranks.is_first or 0 not in self._peers:
            self._say(why)
        for peer in self._peers.values():
            peer.tell({"end": why})
        self._end_soon(why)

    def _end_soon(self, why: str) -> None:
        if self._closing.wait(GRACE_SECONDS):
            return
        if not self._ranks.is_first:
            with contextlib.suppress(OSError):
                os.write(2, f"Rank {self._ranks.rank} ends: {why.splitlines()[0]}\n".encode())
        self._end(ENDED)
        self._closing.set()  # where `end` returns


class _Peer:
    """A connection to another process's watchdog: lines of JSON."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.has_left, self._rest = connection, False, b""
        connection.settimeout(LOOK_SECONDS)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):  # Linux has them
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def tell(self, line: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it has died: reading says so
            self.connection.sendall(json.dumps(line).encode() + b"\n")

    def first_line(self) -> dict[str, Any]:
        for _ in range(round(TELL_SECONDS / LOOK_SECONDS)):
            lines, is_open = self.read()
            if lines or not is_open:
                return lines[0] if lines else {}
        return {}

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """The whole lines that have come, and whether more may; what is no line of ours ends the connection."""
        try:
            received = self.connection.recv(MAX_LINE_BYTES)
        except TimeoutError:
            return [], True
        except OSError:
            received = b""
        *lines, self._rest = (self._rest + received).split(b"\n")
        try:
            parsed = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            return [], False
        is_ours = all(isinstance(line, dict) for line in parsed) and len(self._rest) <= MAX_LINE_BYTES
        return (parsed, bool(received)) if is_ours else ([], False)


def _accept(listening: socket.socket, num_others: int, token: str) -> dict[int, _Peer]:
    """The other ranks, when all are there; whoever does not know the token is sent away."""
    peers: dict[int, _Peer] = {}
    until = time.monotonic() + CONNECT_SECONDS
    with listening:
        while len(peers) < num_others:
            listening.settimeout(max(0.01, until - time.monotonic()))
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                raise ConfigError(
                    f"{num_others - len(peers)} of {num_others} processes did not connect to the first within "
                    f"{CONNECT_SECONDS:.0f} s. Processes need to reach each other on any port."
                ) from None
            peer = _Peer(connection)
            hello = peer.first_line()
            if hello.get("token") == token:
                peers[hello["rank"]] = peer
            else:
                connection.close()
    return peers
