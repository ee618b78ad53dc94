"""Media that lie elsewhere: s3://, gs://, hf://, https://, fetched by fsspec into a local cache of bounded size.

    config = RemoteConfig(prefixes=("s3://films/",), cache_folder="/scratch/media")
    film = config.file("s3://films/walk.mp4")            # a RemoteFile; DataError where no prefix allows it
    film.fetch()                                         # a Path: all of it
    video.open(film.path, ranged=film)                   # or what is asked for alone (eagle_kernels/video/ranged.py)

Nothing is fetched unless a run's config names prefixes; fsspec and what it needs (the extra `remote`) are imported
then. Credentials are those that the services' own tools find (~/.aws, GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN ...).

Cache   A folder for each object: its bytes in a file of the object's size, of which only fetched blocks take room; a
        byte a block that says which are there, written after them; and what the object was. Processes share it: each
        writes the same bytes. What was used longest ago is deleted when `cache_bytes` would be passed.
Change  An object is known by its etag, or whatever its service has like it. What an index pinned must be what is there;
        what nobody pinned is asked for once a process. After each fetch it is asked for again, before the bytes count:
        they are of one object, or Unreachable.
Waiting Every request ends after `timeout_seconds`, is tried again, and is given up when another thread says stop.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import queue
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from eagle_kernels.video.ranged import Unreachable
from eagle_model.data.sample import DataError, ImageRef, Sample, VideoRef, shown
from eagle_model.fields import require

SCHEMES = ("s3", "gs", "hf", "https", "http")
BLOCK_BYTES = 1 << 16  # fetched at once at least: a request takes longer than these
BLOCKS_A_REQUEST = 128  # 8 MiB: what timeout_seconds is for, and a worker's memory
GAP_BLOCKS = 2  # between two wanted blocks that are fetched along, rather than by another request
POLL_SECONDS = 0.05  # between two looks at whether the work is to stop
EVICT_TO = 0.9  # of cache_bytes: deleting goes on so far, so that it is not done for every file
MAX_CHECKED = 1 << 16  # objects that a process remembers to have asked for: bounds the memory
_MAX_URL_CHARS = 2048  # limit: services allow keys of 1024 bytes
_TAGS = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "blob_id", "generation", "Last-Modified", "LastModified")
_BLOCKS, _ABOUT, _LOCK = ".blocks", ".about.json", ".lock"

_checked: dict[str, None] = {}  # entries of the cache that this process found to be what is there


def _look_away() -> None:
    pass


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteConfig:
    """Where media may be fetched from, and how."""

    prefixes: tuple[str, ...]  # rows may name URLs that begin so: s3://films/, https://host/set/
    cache_folder: str  # what was fetched is kept here; on a disk of this machine
    cache_bytes: int = 64 << 30  # that it takes at most
    timeout_seconds: float = 60.0  # for one request of at most 8 MiB
    num_retries: int = 3  # of a request that failed, after 0.5, 1, 2 ... seconds
    num_requests: int = 8  # of one file at a time
    s3_endpoint: str = ""  # of a service like S3: http://localhost:9000; empty: Amazon's
    anonymous: bool = False  # without credentials

    def __post_init__(self) -> None:
        require(bool(self.prefixes), "remote.prefixes", "empty", "what URLs of media must begin with, as s3://films/")
        for prefix in self.prefixes:
            ok = prefix.split("://")[0] in SCHEMES and bool(urlsplit(prefix).netloc) and prefix.endswith("/")
            require(ok, "remote.prefixes", repr(prefix), f"a URL of {', '.join(SCHEMES)} that ends in /")
        require(bool(self.cache_folder), "remote.cache_folder", "empty", "a folder")
        require(self.cache_bytes >= BLOCK_BYTES, "remote.cache_bytes", self.cache_bytes, f"{BLOCK_BYTES} or more")
        require(self.timeout_seconds > 0, "remote.timeout_seconds", self.timeout_seconds, "more than 0")
        require(self.num_retries >= 0, "remote.num_retries", self.num_retries, "0 or more")
        require(self.num_requests >= 1, "remote.num_requests", self.num_requests, "1 or more")

    def file(self, url: str, pin: str | None = None) -> RemoteFile:
        """The object under a URL. Raises DataError where the URL is none that the prefixes allow. Asks nobody."""
        if not url.startswith(self.prefixes):
            raise DataError(f"the URL {shown(url)} begins with none of remote.prefixes: {', '.join(self.prefixes)}.")
        parts = urlsplit(url)
        steps = unquote(parts.path).replace("\\", "/").split("/")
        if len(url) > _MAX_URL_CHARS or not url.isprintable() or ".." in steps or "." in steps or "@" in parts.netloc:
            raise DataError(
                f"the URL {shown(url)} is not taken: needs at most {_MAX_URL_CHARS} characters, no step '..' or '.', "
                "and no password."
            )
        return RemoteFile(url, self, pin)


class Identity(NamedTuple):
    """What an object is. A URL whose object is another one has another tag."""

    num_bytes: int
    tag: str  # "etag:..."; "" where the service has nothing of the kind


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """An object under a URL: a `RangedFile`. A few bytes that may be pickled; nothing is open."""

    url: str
    config: RemoteConfig
    pin: str | None = None  # the tag that it must have: `identity().tag` of before

    @property
    def name(self) -> str:
        return self.url

    @property
    def path(self) -> Path:
        """Where what was fetched is kept. Not to be read but after `fetch`."""
        last = re.sub(r"[^\w.-]", "_", unquote(urlsplit(self.url).path).rpartition("/")[2])[-80:].lstrip(".")
        return self._folder / (last or "file")

    @property
    def stamp(self) -> list[int | str]:
        return list(self.identity())

    def identity(self, look: Callable[[], None] = _look_away) -> Identity:
        """Its size and tag. Raises Unreachable where there is none, or another one than was pinned."""
        with self._opened(look) as entry:
            return entry.identity

    def open(self, look: Callable[[], None] = _look_away) -> Entry:
        return self._entry(look)

    def fetch(self, look: Callable[[], None] = _look_away) -> Path:
        """All of it, in the local file that is returned. Raises Unreachable; what `look` raises passes."""
        with self._opened(look) as entry:
            entry.need(np.zeros(1, np.int64), np.array([entry.identity.num_bytes]))
        return self.path

    @contextmanager
    def _opened(self, look: Callable[[], None]) -> Iterator[Entry]:
        entry = self._entry(look)
        try:
            yield entry
        finally:
            entry.close()

    @property
    def _folder(self) -> Path:
        key = hashlib.sha256(self.url.encode()).hexdigest()[:40]
        return Path(self.config.cache_folder) / key[:2] / key

    def _entry(self, look: Callable[[], None]) -> Entry:
        """Its part of the cache, made where there is none or the object changed."""
        folder = self._folder
        key = str(folder)
        kept = _read_about(folder)
        is_known = kept is not None and (key in _checked if self.pin is None else kept.tag == self.pin)
        if kept is None or not is_known:
            found = self.ask(look)
            if kept != found:
                self._make(folder, found)
                kept = found
            if len(_checked) >= MAX_CHECKED:
                _checked.clear()
            _checked[key] = None
        try:
            return Entry(self, kept, self.path, look)
        except FileNotFoundError:  # deleted meanwhile, to make room
            self._make(folder, kept)
            return Entry(self, kept, self.path, look)

    def ask(self, look: Callable[[], None] = _look_away) -> Identity:
        """What is there now. Raises Unreachable."""
        (info,) = self.tried([lambda: self._files.info(self.url)], look)
        if info.get("type") == "directory" or not isinstance(info.get("size"), int):
            raise Unreachable(f"{self.url}: the server does not say how many bytes it has; it cannot be read.")
        found = Identity(info["size"], _tag(info))
        if self.pin is not None and found.tag != self.pin:
            raise Unreachable(
                f"{self.url}: it is another object than the index knows: {found.tag or 'no tag'} now, {self.pin} then. "
                "Prepare the data again."
            )
        if found.num_bytes > self.config.cache_bytes:
            raise Unreachable(
                f"{self.url}: has {found.num_bytes} bytes, remote.cache_bytes is {self.config.cache_bytes}. Raise it."
            )
        return found

    def _make(self, folder: Path, identity: Identity) -> None:
        """An entry of which nothing is there yet, in the place of an older one."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
        try:
            for name, num_bytes in ((self.path.name, identity.num_bytes), (_BLOCKS, _num_blocks(identity.num_bytes))):
                with open(beside / name, "wb") as file:
                    file.truncate(num_bytes)
            (beside / _ABOUT).write_text(
                json.dumps({"url": self.url, "bytes": identity.num_bytes, "tag": identity.tag})
            )
            try:
                os.rename(beside, folder)
            except OSError:  # there is one, maybe just made by another process
                if _read_about(folder) != identity:
                    _delete(folder)
                    os.rename(beside, folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    # -- requests

    @property
    def _files(self) -> Any:
        return _filesystem(self.url.split("://")[0], self.config, os.getpid())

    def read(self, start: int, end: int) -> bytes:
        """Those bytes, by one request."""
        files = self._files
        if self.url.startswith("http"):  # `cat_file` takes whatever comes; a file looks at the answer first
            with files.open(self.url, "rb", block_size=BLOCK_BYTES, cache_type="none", size=end) as file:
                file.seek(start)
                content = file.read(end - start)
        else:
            content = files.cat_file(self.url, start=start, end=end)
        if len(content) != end - start:
            raise OSError(f"{len(content)} bytes came of {end - start}")
        return bytes(content)

    def read_whole(self, place: Path) -> None:
        """All bytes into a file, by one request that asks for no range."""
        self._files.get_file(self.url, str(place))

    def tried(
        self, calls: Sequence[Callable[[], Any]], look: Callable[[], None], *, seconds: float | None = None
    ) -> list[Any]:
        """What the calls return, side by side, each tried again where it failed by what may pass.

        Raises Unreachable, and RangeIgnored.
        """
        results: list[Any] = [None] * len(calls)
        left, seconds = list(range(len(calls))), seconds or self.config.timeout_seconds
        for number in range(self.config.num_retries + 1):
            if number:
                _wait(0.5 * 2 ** (number - 1), look)
            outcomes = _side_by_side([calls[i] for i in left], seconds, look)
            failed = {i: outcome for i, outcome in zip(left, outcomes) if isinstance(outcome, BaseException)}
            results = [outcomes[left.index(i)] if i in left else result for i, result in enumerate(results)]
            if not failed:
                return results
            error = next(iter(failed.values()))
            if isinstance(error, ImportError):
                raise error
            if isinstance(error, ValueError) and "range requests" in str(error):
                raise RangeIgnored
            reason, may_pass = _reason(error, seconds)
            if not may_pass:
                raise Unreachable(f"{self.url}: {reason}") from error
            left = list(failed)
        raise Unreachable(f"{self.url}: {reason} It was tried {self.config.num_retries + 1} times.") from error


class RangeIgnored(Exception):
    """The server gives whole files alone."""


class Entry:
    """An object's part of the cache, open: a `ByteReader`."""

    def __init__(self, remote: RemoteFile, identity: Identity, place: Path, look: Callable[[], None]) -> None:
        self.identity, self._look = identity, look
        self._remote, self._place = remote, place
        self._file = os.open(place, os.O_RDWR)
        try:
            self._blocks = os.open(place.with_name(_BLOCKS), os.O_RDWR)
            os.utime(place.with_name(_BLOCKS))  # used now
        except BaseException:
            os.close(self._file)
            raise

    def close(self) -> None:
        os.close(self._file)
        os.close(self._blocks)

    def pread(self, num_bytes: int, offset: int) -> bytes:
        num_bytes = max(0, min(num_bytes, self.identity.num_bytes - offset))
        if num_bytes:
            self.need(np.array([offset]), np.array([num_bytes]))
        return os.pread(self._file, num_bytes, offset)

    def need(self, offset_D: NDArray[Any], size_D: NDArray[Any]) -> None:
        """Fetches the blocks of these spans that are not there."""
        num_blocks = _num_blocks(self.identity.num_bytes)
        edges = np.zeros(num_blocks + 1, np.int64)
        first_D = np.asarray(offset_D, np.int64) // BLOCK_BYTES
        end_D = -(-(np.asarray(offset_D, np.int64) + np.asarray(size_D, np.int64)) // BLOCK_BYTES)
        np.add.at(edges, first_D.clip(0, num_blocks), 1)
        np.add.at(edges, end_D.clip(0, num_blocks), -1)
        is_there = np.frombuffer(os.pread(self._blocks, num_blocks, 0), np.uint8) != 0
        missing = np.flatnonzero((np.cumsum(edges[:-1]) > 0) & ~is_there)
        if len(missing) == 0:
            return
        runs = _runs(missing)
        _reserve(self._remote.config, sum(end - first for first, end in runs) * BLOCK_BYTES, self._place.parent)
        try:
            at_once = self._remote.config.num_requests
            for k in range(0, len(runs), at_once):
                self._fetch(runs[k : k + at_once])
        except RangeIgnored:
            self._fetch_whole()

    def _fetch(self, runs: Sequence[tuple[int, int]]) -> None:
        spans = [(first * BLOCK_BYTES, min(end * BLOCK_BYTES, self.identity.num_bytes)) for first, end in runs]
        calls = [lambda span=span: self._remote.read(*span) for span in spans]
        contents = self._remote.tried(calls, self._look)
        if spans != [(0, self.identity.num_bytes)]:
            self._check_unchanged()
        for (first, end), (start, _), content in zip(runs, spans, contents):
            _write_all(self._file, content, start)
            _write_all(self._blocks, b"\1" * (end - first), first)

    def _fetch_whole(self) -> None:
        num_bytes = self.identity.num_bytes
        _reserve(self._remote.config, num_bytes, self._place.parent)
        handle, name = tempfile.mkstemp(dir=self._place.parent, prefix=".whole-")
        os.close(handle)
        try:
            requests = 1 + num_bytes // (BLOCKS_A_REQUEST * BLOCK_BYTES)
            seconds = requests * self._remote.config.timeout_seconds
            self._remote.tried([lambda: self._remote.read_whole(Path(name))], self._look, seconds=seconds)
            if os.path.getsize(name) != num_bytes:
                raise Unreachable(f"{self._remote.url}: {os.path.getsize(name)} bytes came of {num_bytes}.")
            self._check_unchanged()
            with open(name, "rb") as whole:
                for start in range(0, num_bytes, BLOCKS_A_REQUEST * BLOCK_BYTES):
                    _write_all(self._file, whole.read(BLOCKS_A_REQUEST * BLOCK_BYTES), start)
            _write_all(self._blocks, b"\1" * _num_blocks(num_bytes), 0)
        finally:
            Path(name).unlink(missing_ok=True)

    def _check_unchanged(self) -> None:
        now = self._remote.ask(self._look)
        if now != self.identity:
            _checked.pop(str(self._place.parent), None)
            raise Unreachable(
                f"{self._remote.url}: it was changed while it was read: {self.identity.tag} of "
                f"{self.identity.num_bytes} bytes before, {now.tag} of {now.num_bytes} now."
            )


def local_file(remote: RemoteFile, stop: threading.Event | None = None) -> Path:
    """All of an object, as a file. Raises DataError; CancelledError when another thread sets `stop`."""

    def look() -> None:
        if stop is not None and stop.is_set():
            raise CancelledError

    try:
        return remote.fetch(look)
    except (Unreachable, OSError) as error:
        raise DataError(str(error)) from error


def fetched(medium: ImageRef | VideoRef, stop: threading.Event | None = None) -> Path:
    """The file of a medium, fetched where it lies elsewhere. Raises as `local_file`."""
    return medium.path if medium.remote is None else local_file(medium.remote, stop)


def tags(sample: Sample) -> list[str | None]:
    """Of each of sample.media, what pins it; None for files of this machine. Raises DataError."""
    try:
        return [None if medium.remote is None else medium.remote.identity().tag for medium in sample.media]
    except (Unreachable, OSError) as error:
        raise DataError(str(error)) from error


def pinned(sample: Sample, tags: Sequence[str | None]) -> Sample:
    """The sample with media that must be those which had these tags."""
    left = iter(tags)

    def pin(part: str | ImageRef | VideoRef) -> str | ImageRef | VideoRef:
        if isinstance(part, str):
            return part
        tag = next(left)
        return part if part.remote is None else replace(part, remote=replace(part.remote, pin=tag))

    turns = [replace(turn, parts=tuple(map(pin, turn.parts))) for turn in sample.turns]
    return replace(sample, turns=tuple(turns))


# ---- requests


@lru_cache(maxsize=16)
def _filesystem(scheme: str, config: RemoteConfig, process: int) -> Any:
    """process: its number, as what talks to a server does not survive a fork."""
    seconds = config.timeout_seconds
    try:
        import fsspec

        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if scheme in ("http", "https"):
            import aiohttp

            # Bytes as they are, since ranges count those.
            options |= {"headers": {"Accept-Encoding": "identity"}}
            options |= {
                "client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds)}
            }
        elif scheme == "s3":
            waits = {"connect_timeout": seconds, "read_timeout": seconds, "retries": {"max_attempts": 1}}
            options |= {"anon": config.anonymous, "endpoint_url": config.s3_endpoint or None, "config_kwargs": waits}
        elif scheme == "gs":
            options |= {"token": "anon" if config.anonymous else None, "requests_timeout": seconds}
        elif config.anonymous:
            options |= {"token": False}
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise ImportError(f"{scheme}:// needs a package: pip install 'eagle-kernels[remote]'. {error}") from error


def _side_by_side(
    calls: Sequence[Callable[[], Any]], seconds: float, look: Callable[[], None]
) -> list[Any | BaseException]:
    """What each call returns or raises; TimeoutError for those that take longer, which go on unheeded: libraries have
    waits that no timeout of theirs ends."""
    done: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

    def work(i: int) -> None:
        try:
            done.put((i, calls[i]()))
        except BaseException as error:
            done.put((i, error))

    for i in range(len(calls)):
        threading.Thread(target=work, args=(i,), daemon=True, name="eagle-remote").start()
    outcomes: list[Any] = [TimeoutError()] * len(calls)
    deadline, num_left = time.monotonic() + seconds, len(calls)
    while num_left and time.monotonic() < deadline:
        try:
            i, outcomes[i] = done.get(timeout=POLL_SECONDS)
            num_left -= 1
        except queue.Empty:
            look()
    return outcomes


def _wait(seconds: float, look: Callable[[], None]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        look()
        time.sleep(POLL_SECONDS)


def _reason(error: BaseException, seconds: float) -> tuple[str, bool]:
    """Why a request failed, and whether it may do better the next time."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else error
    status = getattr(cause, "status", None)
    if status in (401, 403) or isinstance(cause, PermissionError):
        return "access is denied. Give credentials, or leave it out.", False
    if status in (404, 410) or cause is None or (isinstance(error, FileNotFoundError) and not _is_network(cause)):
        return "there is no such object.", False
    if isinstance(cause, TimeoutError) or type(cause).__name__ in (
        "TimeoutError",
        "ReadTimeoutError",
        "ServerTimeoutError",
    ):
        return f"no answer within remote.timeout_seconds = {seconds:g} s.", True
    return f"{type(cause).__name__}: {str(cause)[:200] or 'the connection broke'}.", True


def _is_network(error: BaseException) -> bool:
    """HTTP files are said to be missing whatever went wrong; why says the cause."""
    return isinstance(error, (OSError, TimeoutError)) or type(error).__module__.split(".")[0] in ("aiohttp", "asyncio")


def _tag(info: dict[str, Any]) -> str:
    """What of a service's answer names the object's content."""
    lfs = info.get("lfs")
    if isinstance(lfs, dict) and lfs.get("sha256"):
        return f"sha256:{lfs['sha256']}"
    return next((f"{name.lower()}:{info[name]}" for name in _TAGS if info.get(name)), "")


# ---- the cache


def _num_blocks(num_bytes: int) -> int:
    return -(-num_bytes // BLOCK_BYTES)


def _runs(missing: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Blocks in spans of a request each: (first, end)."""
    runs: list[tuple[int, int]] = []
    for block in missing.tolist():
        if runs and block - runs[-1][1] < GAP_BLOCKS and block - runs[-1][0] < BLOCKS_A_REQUEST:
            runs[-1] = (runs[-1][0], block + 1)
        else:
            runs.append((block, block + 1))
    return runs


def _read_about(folder: Path) -> Identity | None:
    try:
        about = json.loads((folder / _ABOUT).read_text())
        return Identity(int(about["bytes"]), str(about["tag"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_all(file: int, content: bytes, at: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(file, view, at)
        view, at = view[written:], at + written


def _reserve(config: RemoteConfig, num_bytes: int, for_entry: Path) -> None:
    """Makes room for so many bytes more. All processes count in one file, which is locked while it is changed."""
    folder = Path(config.cache_folder)
    with open(folder / _LOCK, "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        counted = lock.read(32)
        used = int(counted) if counted.isdigit() else sum(num for _, num, _ in _entries(folder))
        if used + num_bytes > config.cache_bytes:
            used = _evict(folder, int(EVICT_TO * config.cache_bytes) - num_bytes, for_entry)
        lock.truncate(0)
        lock.write(str(used + num_bytes))


def _entries(folder: Path) -> list[tuple[int, int, Path]]:
    """(when it was last used, the bytes it takes, where) of each."""
    found = []
    for entry in folder.glob("??/[!.]*"):
        try:
            used = (entry / _BLOCKS).stat().st_mtime_ns
            found.append((used, sum(file.stat().st_blocks * 512 for file in entry.iterdir()), entry))
        except OSError:  # deleted meanwhile
            continue
    return sorted(found)


def _evict(folder: Path, most: int, kept: Path) -> int:
    """Deletes what was used longest ago until no more than `most` bytes are left; those that are."""
    entries = _entries(folder)
    left = sum(num_bytes for _, num_bytes, _ in entries)
    for _, num_bytes, entry in entries:
        if left <= most:
            break
        if entry != kept:
            _delete(entry)
            left -= num_bytes
    return left


def _delete(entry: Path) -> None:
    """By another name first, so that nobody finds a part of it. Who has it open reads on."""
    gone = entry.with_name(f".gone-{entry.name}-{os.getpid()}-{threading.get_ident()}")
    try:
        os.rename(entry, gone)
    except OSError:
        return
    shutil.rmtree(gone, ignore_errors=True)
