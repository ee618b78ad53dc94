"""Files that are there whole or not at all, whenever a write is cut short.

    write_json(run / "run.json", {"run": "a1b2"})       # afterwards it holds the old text or the new, never a part

A file is written beside its place, flushed to the disk and renamed, so that a name never stands for half a file; its
permissions are those of any new file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 22
MAX_JSON_BYTES = 1 << 26  # of a JSON file: many times what any model's folder holds, and read in a second


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, flushes it to the disk and gives it its name.

    Example:  write_whole(path, lambda beside: image.save(beside, "png"))
    Raises:   what `write` raises, and OSError; `path` is then as it was, and nothing is left beside it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the umask gives; safetensors makes files for their owner's eyes alone
        write(temporary)
        temporary.chmod(mode)
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` in UTF-8, whole or not at all."""
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: object) -> None:
    """Writes `content` to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def append(file: FileIO, text: str) -> None:
    """Adds text to a file that is open for it without a buffer. Raises OSError where the disk is full, with a part
    written."""
    rest = text.encode()
    while rest:  # a disk that fills up takes a part
        rest = rest[file.write(rest) :]


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """What a JSON file holds, whoever wrote it.

    Raises: ValueError naming the file when it is no plain file, larger than `max_bytes`, or no JSON in UTF-8.
    """
    if not path.is_file():  # a pipe would be waited for
        raise ValueError(f"{path} is no file.")
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{path} has more than {max_bytes} bytes; no file of its kind is so large.")
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None


def os_error(error: Exception, path: Path) -> Exception:
    """The OSError that a library written in Rust tells in words: "No space left on device (os error 28)"."""
    number = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(number[1]), os.strerror(int(number[1])), str(path)) if number else error


def os_reason(error: OSError) -> str:
    """What the system said and of which file: "No space left on device (runs/first/metrics.jsonl)"."""
    said = error.strerror or str(error)
    return f"{said} ({error.filename})" if error.filename else said


def is_out_of_memory(error: BaseException) -> bool:
    """Of Python, a GPU, or a CPU's tensors, for which torch has no class of its own."""
    by_name = type(error).__name__ == "OutOfMemoryError"  # torch's, which need not be imported to ask
    return isinstance(error, MemoryError) or by_name or "DefaultCPUAllocator" in str(error)


def flush(path: Path) -> None:
    """Returns when a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
