"""The media that clients of a server name: each becomes a file of the server's own before anything reads it.

    store = MediaStore(folder, MediaLimits(allowed=(Path("/data/films"),)))
    upload = store.upload([b"..."], name="film.mp4")            # what POST /v1/files does
    with store.holding() as path_of:
        path_of("data:image/png;base64,...", "image")           # or file:///data/films/a.mp4, https://..., upload.id

What was checked is what is read: a file of an allowed folder is opened without following links, found to be a regular
file, and linked under a name of the server's own (copied, where it lies on another disk), so that a name that changes
afterwards changes nothing. Files lie in one folder under names made of their content's SHA-256, are kept while there is
room, since a second question about a film finds it there, and leave the least recently used first; one that a request
reads, or that a client uploaded, stays.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote_to_bytes, urlsplit

from eagle_model.infer.fetch import RequestError, fetch

Kind = Literal["image", "video"]
_UPLOAD = re.compile(r"file-[0-9a-f]{32}")
_COPY_BYTES = 1 << 20
_NOT_INSIDE = {errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.EACCES, errno.ENAMETOOLONG, errno.EINVAL, errno.ENXIO}


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaLimits:
    allowed: tuple[Path, ...] = ()  # folders whose files clients may name, as file:///folder/film.mp4
    hosts: tuple[str, ...] = ()  # that http(s) URLs may name; "*": all public ones; none: no URL is fetched
    max_file_bytes: int = 2 << 30  # limit: two hours of film at 2 Mbit/s, four times over
    max_store_bytes: int = 16 << 30  # limit: of all files together; the disk's, in a temporary folder
    fetch_seconds: float = 60.0  # limit: for one URL

    def check(self) -> None:
        """Raises ValueError for an allowed folder that is none."""
        for allowed in self.allowed:
            if not allowed.is_dir():
                raise ValueError(f"{allowed} is no folder; needs one whose files clients may name.")


@dataclass(slots=True)
class Upload:
    """A file that a client sent, as OpenAI's /v1/files describes it."""

    id: str
    name: str
    num_bytes: int
    created_at: int  # seconds since 1970
    path: Path


@dataclass(slots=True)
class _Kept:
    num_bytes: int
    users: int = 0  # requests that read it now
    uploads: set[str] = field(default_factory=set)  # ids


class MediaStore:
    """Safe to share between threads."""

    def __init__(self, folder: Path, limits: MediaLimits) -> None:
        """folder: the server's own, for its files alone.

        Raises ValueError where `limits.check` does.
        """
        limits.check()
        self.folder, self.limits = folder, limits
        self._allowed = [allowed.resolve() for allowed in limits.allowed]
        self._kept: dict[str, _Kept] = {}  # by file name, the least recently used first
        self._uploads: dict[str, Upload] = {}
        self._num_bytes = 0
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return self._num_bytes

    # -- uploads

    def upload(self, chunks: Iterable[bytes], *, name: str) -> Upload:
        """Keeps a client's file until it deletes it. Raises RequestError: 413 where it is too large."""
        path, kept = self._add(chunks, suffix=_suffix(name))
        with self._lock:
            upload = Upload(f"file-{secrets.token_hex(16)}", name, kept.num_bytes, int(time.time()), path)
            self._uploads[upload.id] = upload
            kept.uploads.add(upload.id)
            kept.users -= 1
        return upload

    def uploads(self) -> list[Upload]:
        with self._lock:
            return list(self._uploads.values())

    def get(self, upload_id: str) -> Upload:
        with self._lock:
            if upload_id not in self._uploads:
                raise RequestError(f"there is no file {upload_id[:60]!r}; upload it to /v1/files.", status=404)
            return self._uploads[upload_id]

    def delete(self, upload_id: str) -> None:
        upload = self.get(upload_id)
        with self._lock:
            if self._uploads.pop(upload_id, None) is not None:
                self._kept[upload.path.name].uploads.discard(upload_id)
        self._make_room(0)

    # -- what requests name

    @contextlib.contextmanager
    def holding(self) -> Iterator[Callable[[str, Kind], Path]]:
        """A function from a URL to the path of a file that stays there until the block is left."""
        held: list[str] = []

        def path_of(url: str, kind: Kind) -> Path:
            path = self._path(url, kind)
            held.append(path.name)
            return path

        try:
            yield path_of
        finally:
            with self._lock:
                for name in held:
                    self._kept[name].users -= 1

    def _path(self, url: str, kind: Kind) -> Path:
        """The file of a URL, with one user more."""
        if _UPLOAD.fullmatch(url):
            path = self.get(url).path
            with self._lock:
                return self._use(path.name)
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            return self._add(_data(url, self.limits.max_file_bytes), suffix="")[0]
        if scheme == "file":
            return self._allowed_file(url)
        if scheme in ("http", "https"):
            if not self.limits.hosts:
                raise RequestError(
                    "this server fetches nothing by http: upload the file to /v1/files, or send a data URL."
                )
            chunks = fetch(
                url,
                hosts=self.limits.hosts,
                max_bytes=self.limits.max_file_bytes,
                seconds=self.limits.fetch_seconds,
            )
            return self._add(chunks, suffix="")[0]
        raise RequestError(
            f"the {kind}'s url is {url[:60]!r}; needs a data URL, the id of a file sent to /v1/files, or a file:// or "
            "https:// URL where this server allows them."
        )

    def _use(self, name: str) -> Path:
        """Counts one user more; the most recently used comes last. Needs the lock."""
        kept = self._kept.pop(name)
        kept.users += 1
        self._kept[name] = kept
        return self.folder / name

    def _add(self, chunks: Iterable[bytes], *, suffix: str) -> tuple[Path, _Kept]:
        """Writes a file, named by its content; one that is there is used again. It has one user more."""
        limit, digest, num_bytes = self.limits.max_file_bytes, hashlib.sha256(), 0
        partial = self.folder / f".{secrets.token_hex(8)}"
        head = b""
        try:
            with partial.open("xb") as file:
                for chunk in chunks:
                    num_bytes += len(chunk)
                    if num_bytes > limit:
                        raise RequestError(f"the file is larger than {limit} bytes.", status=413)
                    head = head or chunk[:5]
                    digest.update(chunk)
                    file.write(chunk)
            if not num_bytes:
                raise RequestError("the file is empty.")
            return self._keep(partial, digest.hexdigest() + (".pdf" if head == b"%PDF-" else suffix), num_bytes)
        finally:
            partial.unlink(missing_ok=True)

    def _keep(self, partial: Path, name: str, num_bytes: int) -> tuple[Path, _Kept]:
        """Gives a file its name, unless there is one of that name already."""
        with self._lock:
            if name in self._kept:
                return self._use(name), self._kept[name]
        self._make_room(num_bytes)
        with self._lock:
            if name not in self._kept:
                os.replace(partial, self.folder / name)
                self._kept[name] = _Kept(num_bytes)
                self._num_bytes += num_bytes
            return self._use(name), self._kept[name]

    def _make_room(self, num_bytes: int) -> None:
        """Removes files that nobody uses until so many bytes fit. Raises RequestError, 507, where they do not."""
        with self._lock:
            for name, kept in list(self._kept.items()):
                if self._num_bytes + num_bytes <= self.limits.max_store_bytes:
                    return
                if not kept.users and not kept.uploads:
                    (self.folder / name).unlink(missing_ok=True)
                    self._num_bytes -= self._kept.pop(name).num_bytes
            if self._num_bytes + num_bytes > self.limits.max_store_bytes:
                raise RequestError(
                    f"the server keeps {self._num_bytes} bytes of files and has no room for {num_bytes} more; delete "
                    "some of /v1/files.",
                    status=507,
                )

    # -- files of allowed folders

    def _allowed_file(self, url: str) -> Path:
        refused = RequestError(f"{url[:200]} is no regular file of a folder that this server allows.", status=403)
        try:
            parts = urlsplit(url)
            path = os.fsdecode(unquote_to_bytes(parts.path))
        except ValueError as error:  # no URL, or half of a surrogate pair in it
            raise refused from error
        if parts.netloc not in ("", "localhost") or "\0" in path or ".." in path.split("/"):
            raise refused
        for folder in self._allowed:
            with contextlib.suppress(ValueError):
                inner = Path(path).relative_to(folder)
                break
        else:
            raise refused
        try:
            descriptor = _open_beneath(folder, inner.parts)
        except OSError as error:
            if error.errno in _NOT_INSIDE:
                raise refused from error
            raise
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise refused
            return self._take(descriptor, status, inner.suffix.lower())
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int, status: os.stat_result, suffix: str) -> Path:
        """Makes an open file one of the store's: a second name of it, or a copy."""
        if status.st_size > self.limits.max_file_bytes:
            raise RequestError(f"the file is larger than {self.limits.max_file_bytes} bytes.", status=413)
        about = f"{status.st_dev}-{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
        name = hashlib.sha256(about.encode()).hexdigest() + "-linked" + _suffix(suffix)
        with self._lock:
            if name in self._kept:
                return self._use(name)
        partial = self.folder / f".{secrets.token_hex(8)}"
        try:  # with src_dir_fd Python calls linkat, which follows /proc's link to the open file
            os.link(f"/proc/self/fd/{descriptor}", partial, src_dir_fd=descriptor, follow_symlinks=True)
        except OSError:  # another disk, or a system without such links
            return self._add(_read(descriptor), suffix=suffix)[0]
        try:
            return self._keep(partial, name, status.st_size)[0]
        finally:
            partial.unlink(missing_ok=True)


def _open_beneath(folder: Path, parts: tuple[str, ...]) -> int:
    """Opens a file inside a folder, going down name by name; a symbolic link anywhere is an OSError.

    O_NONBLOCK: the open of a pipe that nobody writes to would wait for ever.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for i, part in enumerate(parts):
        how = os.O_RDONLY | os.O_NOFOLLOW | (os.O_DIRECTORY if i < len(parts) - 1 else os.O_NONBLOCK | os.O_NOCTTY)
        try:
            inner = os.open(part, how, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


def _read(descriptor: int) -> Iterator[bytes]:
    while chunk := os.read(descriptor, _COPY_BYTES):
        yield chunk


def _data(url: str, max_bytes: int) -> Iterator[bytes]:
    """The bytes of a data URL (RFC 2397), base64 or escaped."""
    head, comma, body = url.partition(",")
    if not comma:
        raise RequestError(f"{url[:40]!r} is no data URL; needs data:image/png;base64,... or alike.")
    if len(body) > 3 * max_bytes:
        raise RequestError(f"the data URL is larger than {max_bytes} bytes.", status=413)
    if not head.lower().endswith(";base64"):
        yield unquote_to_bytes(body)
        return
    try:
        packed = b"".join(unquote_to_bytes(body).split())  # encoders of mail break lines
        yield base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"a data URL's base64 cannot be read: {error}.") from error


def _suffix(name: str) -> str:
    """Of a client's file name; the document's alone tells anything."""
    return ".pdf" if name.lower().endswith(".pdf") else ""
