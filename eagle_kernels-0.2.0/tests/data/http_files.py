"""A server of files on this machine, as well behaved as it is told to be.

with serving(folder) as server:
    server.url("a.mp4")                # http://127.0.0.1:PORT/a.mp4
    server.asked                       # [("HEAD", "a.mp4", None), ("GET", "a.mp4", (0, 65536))]: bytes asked for
    server.mood = "slow"               # no answer for as long as the server runs
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Server:
    folder: Path
    port: int = 0
    mood: str = "good"  # no ranges | slow | breaks off | fails once | denies | dripping
    etags: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, tuple[int, int] | None]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    on_get: object = None  # called after each answer to a GET

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    @property
    def num_bytes(self) -> int:
        return sum(end - start for _, _, span in self.asked if span for start, end in [span])


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *args: object) -> None:
        self.files = server
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(has_body=False)

    def do_GET(self) -> None:
        self.answer(has_body=True)
        if callable(self.files.on_get):
            self.files.on_get()

    def answer(self, *, has_body: bool) -> None:
        files, name = self.files, self.path.lstrip("/").partition("?")[0]
        place = files.folder / name
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        span = (int(asked[1]), int(asked[2]) + 1) if asked else None
        files.asked.append((self.command, name, span))
        if files.mood == "slow":
            files.closing.wait()
            return
        if files.mood == "denies" or not place.is_file():
            self.send_error(403 if files.mood == "denies" else 404)
            return
        if files.mood == "fails once":
            files.mood = "good"
            self.send_error(503)
            return
        content = place.read_bytes()
        whole = len(content)
        is_part = span is not None and files.mood != "no ranges"
        if is_part and span is not None:
            content = content[span[0] : span[1]]
        self.send_response(206 if is_part else 200)
        self.send_header("Content-Length", str(len(content)))
        if is_part and span is not None:
            self.send_header("Content-Range", f"bytes {span[0]}-{span[0] + len(content) - 1}/{whole}")
        if tag := files.etags.get(name, f'"{hash(place.read_bytes()) & 0xFFFF}"'):
            self.send_header("ETag", tag)
        self.end_headers()
        if not has_body:
            return
        if files.mood == "breaks off":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif files.mood == "dripping":
            for byte in content:
                if files.closing.wait(0.05):
                    return
                self.wfile.write(bytes([byte]))
        else:
            self.wfile.write(content)


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    files = Server(folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, files)) as server:
        server.daemon_threads = True
        files.port = server.server_port
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield files
        finally:
            files.closing.set()
            server.shutdown()
