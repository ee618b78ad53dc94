"""Servers on this machine that speak as much of Google Cloud Storage's and of Hugging Face's protocol as reading takes.

with serving_cloud(folder, "gs") as server: ...      # STORAGE_EMULATOR_HOST=server.address
with serving_cloud(folder, "hf") as server: ...      # HF_ENDPOINT=server.address

Objects are the files of `folder`: gs://BUCKET/NAME is folder/BUCKET/NAME, hf://datasets/USER/SET/NAME is
folder/USER/SET/NAME. What a server is asked is in `asked`; what it does not know is a 404.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


class CloudServer:
    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.asked = folder, 0, list[str]()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, server: CloudServer, *args: object) -> None:
        self.cloud = server
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, *args: object) -> None:
        pass

    def json(self, content: object, status: int = 200) -> None:
        self.send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def bytes_of(self, place: Path, headers: dict[str, str]) -> None:
        content = place.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.send(content, headers=headers)
            return
        start, end = int(asked[1]), int(asked[2] or len(content) - 1) + 1
        part = content[start:end]
        span = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        self.send(part, 206, {**headers, "Content-Range": span})


class _Google(_Handler):
    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.cloud.asked.append(self.path)
        found = re.fullmatch(r"/(download/)?storage/v1/b/([^/]+)/o/(.+)", parts.path)
        place = self.cloud.folder / found[2] / unquote(found[3]) if found else None
        if found is None or place is None or not place.is_file():
            if re.fullmatch(r"/storage/v1/b/[^/]+/o/?", parts.path):
                self.json({"kind": "storage#objects", "items": []})
                return
            self.json({"error": {"code": 404, "message": "Not Found"}}, 404)
            return
        if "alt=media" in parts.query or found[1]:
            self.bytes_of(place, {"Content-Type": "application/octet-stream"})
            return
        content = place.read_bytes()
        about = {"name": unquote(found[3]), "bucket": found[2], "size": str(len(content)), "kind": "storage#object"}
        about |= {"md5Hash": b64encode(hashlib.md5(content).digest()).decode(), "generation": "7"}
        about |= {"updated": "2026-01-01T00:00:00.000Z", "timeCreated": "2026-01-01T00:00:00.000Z"}
        self.json({**about, "contentType": "application/octet-stream", "storageClass": "STANDARD"})

    do_HEAD = do_GET


class _Hub(_Handler):
    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.cloud.asked.append(self.path)
        if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            place = self.cloud.folder / found[1] / found[2]
            if place.is_file():
                etag = hashlib.sha1(place.read_bytes()).hexdigest()
                self.bytes_of(place, {"ETag": f'"{etag}"', "X-Repo-Commit": self.commit})
                return
            self.send(b"Entry not found", 404, {"X-Error-Code": "EntryNotFound"})
        elif found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/[^/]+(/.*)?", path):
            folder = self.cloud.folder / found[1] / (found[2] or "").strip("/")
            self.json([self.about(found[1], file) for file in sorted(folder.iterdir())] if folder.is_dir() else [])
        elif (found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(/revision/.+)?", path)) and self.is_set(found[1]):
            self.json(
                {"id": found[1], "sha": self.commit, "siblings": [], "private": False, "downloads": 0, "tags": []}
            )
        else:
            self.send(b"Repository Not Found", 404, {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def is_set(self, name: str) -> bool:
        return (self.cloud.folder / name).is_dir()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        path = unquote(urlsplit(self.path).path)
        self.cloud.asked.append(self.path)
        found = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/[^/]+", path)
        if found is None:
            self.send(b"Not Found", 404)
            return
        paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        places = [self.cloud.folder / found[1] / name for name in paths]
        self.json([self.about(found[1], place) for place in places if place.exists()])

    def about(self, name: str, place: Path) -> dict[str, object]:
        path = str(place.relative_to(self.cloud.folder / name))
        if place.is_dir():
            return {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
        content = place.read_bytes()
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        oid = hashlib.sha1(content).hexdigest()
        return {"type": "file", "path": path, "size": len(content), "oid": oid, "lfs": lfs}


@contextmanager
def serving_cloud(folder: Path, scheme: str) -> Iterator[CloudServer]:
    """scheme: gs or hf."""
    server = CloudServer(folder)
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial({"gs": _Google, "hf": _Hub}[scheme], server))
    http.daemon_threads = True
    server.port = http.server_address[1]
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
