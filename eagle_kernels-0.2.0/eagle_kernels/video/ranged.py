"""Videos that lie elsewhere, as in an object store, and are read in parts: the bytes that a plan needs, and no others.

    film = video.open(place, ranged=ranged)      # `ranged` knows how to get bytes; `place` is where they are kept
    list(film.frames([0.0, 600.0]))              # fetches the tables of an MP4, and the packets of two groups

Whoever opens such a video gives a `RangedFile`; this package has none of its own. A file is read in parts where its
index knows the packets' places: an MP4 by its tables, a Matroska once a sidecar has its blocks. Of all others `fetch`
brings the whole.

Dims    D spans of bytes.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from numpy.typing import NDArray

READ_AHEAD_BYTES = 1 << 16  # of `open_binary`, which reads headers of some bytes one after another


class Unreachable(Exception):
    """Bytes of a file that lies elsewhere cannot be had. The message says which file and why.

    Not an OSError, nor a ValueError: those tell of damage, and are caught where a damaged header may be read otherwise.
    """


class ByteReader(Protocol):
    """A file that is open."""

    def pread(self, num_bytes: int, offset: int) -> bytes:
        """As os.pread: fewer bytes at the end of the file. Raises Unreachable, OSError."""

    def need(self, offset_D: NDArray[Any], size_D: NDArray[Any]) -> None:
        """Fetches these spans together, so that `pread` has them at hand."""

    def close(self) -> None: ...


class RangedFile(Protocol):
    """A file that lies elsewhere; what is fetched of it is kept in a local file, the `path` that goes with it."""

    @property
    def name(self) -> str:
        """What messages call it, and an index kept for it is found by: a URL."""

    @property
    def stamp(self) -> list[int | str]:
        """Its size in bytes, and a text that is another one where its content is."""

    def open(self, look: Callable[[], None]) -> ByteReader:
        """look: called now and then while bytes are waited for; what it raises passes."""

    def fetch(self, look: Callable[[], None]) -> object:
        """Brings all of it, so that the local file can be read as any other."""


class LocalFile:
    """A ByteReader of a file on this machine."""

    def __init__(self, path: Path) -> None:
        self._file = io.FileIO(path)

    def pread(self, num_bytes: int, offset: int) -> bytes:
        return os.pread(self._file.fileno(), num_bytes, offset)

    def need(self, offset_D: NDArray[Any], size_D: NDArray[Any]) -> None:
        pass  # the system reads ahead

    def close(self) -> None:
        self._file.close()


def open_bytes(path: Path, ranged: RangedFile | None, look: Callable[[], None]) -> ByteReader:
    return LocalFile(path) if ranged is None else ranged.open(look)


def open_binary(ranged: RangedFile, look: Callable[[], None]) -> BinaryIO:
    """The file as one that is read and sought in, for readers of headers."""
    return io.BufferedReader(_Stream(ranged.open(look), int(ranged.stamp[0])), READ_AHEAD_BYTES)


def stamp_of(path: Path, ranged: RangedFile | None) -> list[int | str]:
    """What tells that a video was changed: its size, and when it was last written in nanoseconds, or another tag."""
    if ranged is not None:
        return ranged.stamp
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


class _Stream(io.RawIOBase):
    def __init__(self, reader: ByteReader, num_bytes: int) -> None:
        super().__init__()
        self._reader, self._num_bytes, self._at = reader, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._num_bytes}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        content = self._reader.pread(len(buffer), self._at)
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            self._reader.close()
        super().close()
