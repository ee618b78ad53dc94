"""Checkpoints as they are read: which there are, and whether every byte is as it was written.

    newest = latest(Path("runs/first/checkpoints"), print)     # all of it checked; None when there is none
    model = read_newest(Path("runs/first"), Eagle.from_pretrained)    # what is read is checked, and nothing else

    checkpoints/step-000123/                  complete: it got its name after everything in it was on the disk
        config.json, model.safetensors, ...   the model and its processor: what `Eagle.from_pretrained` loads
        training/...                          what training needs beside them
        manifest.json                         step, run, size and SHA-256 of every other file, and a SHA-256 of these

`eagle_model.train.checkpoint` writes them. There is no pickle: safetensors and JSON only, so that reading a checkpoint
cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from eagle_model.fields import MAX_NAMES, shown
from eagle_model.files import os_reason, read_json, sha256

Content = TypeVar("Content")
Value = TypeVar("Value")
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 22  # 120 bytes a file: some ten thousand files
MAX_REASONS = 3  # why checkpoints cannot be used: sentences, where MAX_NAMES is for names
_STEP_NAME = re.compile(r"step-([0-9]{6,})")


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, or not be trusted; the message names the file and the check that failed."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    step: int
    run: str  # the id of the run that wrote it
    files: dict[str, FileEntry]  # by path inside the checkpoint, with "/"

    def to_json(self) -> dict[str, Any]:
        """What manifest.json holds: all of this, and the SHA-256 of its JSON, written closely and in sorted order."""
        content = asdict(self)
        close = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return {**content, "sha256": hashlib.sha256(close.encode()).hexdigest()}


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint, with the names and sizes of its files checked, not their contents.

    Raises: CheckpointError that names the file and the check that failed.
    """
    manifest = _parse(checkpoint / MANIFEST)
    for name, entry in manifest.files.items():
        _check_size(checkpoint / name, entry)
    return manifest


def verify(checkpoint: Path, *, share: tuple[int, int] = (0, 1)) -> Manifest:
    """The manifest of a checkpoint whose every byte is as it was written.

    share: (i, n) checks the bytes of every n-th file alone, from the i-th on; of the others, names and sizes.
    Raises: CheckpointError that names the file and the check that failed.
    """
    manifest, (first, every) = read_manifest(checkpoint), share
    for name in sorted(manifest.files)[first::every]:
        _check_bytes(checkpoint / name, manifest.files[name])
    return manifest


def listed_files(folder: Path) -> frozenset[str] | None:
    """The files that the manifest in a folder lists; None where there is no manifest, as in a released model's folder.

    Raises: CheckpointError for a manifest that cannot be read.
    """
    return frozenset(_parse(folder / MANIFEST).files) if (folder / MANIFEST).exists() else None


def verify_listed(folder: Path, names: Iterable[str]) -> None:
    """Checks files that are about to be read, and these alone, where a manifest stands beside them.

    Example: verify_listed(folder, ["config.json"])
    Raises:  CheckpointError when one is not listed, or not as it was written.
    """
    if not (folder / MANIFEST).exists():
        return
    files = _parse(folder / MANIFEST).files
    for name in names:
        if name not in files:
            raise CheckpointError(f"{folder / name} is not listed in {MANIFEST}: it is no part of the checkpoint.")
        _check_size(folder / name, files[name])
        _check_bytes(folder / name, files[name])


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of files in a folder, as its manifest has them or, where there is none, as they are."""
    files = _parse(folder / MANIFEST).files if (folder / MANIFEST).exists() else {}
    return {name: files[name].sha256 if name in files else sha256(folder / name) for name in names}


def _parse(path: Path) -> Manifest:
    try:
        if not path.exists():
            raise CheckpointError(f"{path} is missing; every complete checkpoint has one.")
        raw = read_json(path, max_bytes=MAX_MANIFEST_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read as a manifest: {os_reason(error)}.") from None
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read as a manifest: {error}") from None
    try:
        files = {
            name: FileEntry(_typed(int, e["num_bytes"]), _typed(str, e["sha256"])) for name, e in raw["files"].items()
        }
        manifest = Manifest(step=_typed(int, raw["step"]), run=_typed(str, raw["run"]), files=files)
        as_written = raw["sha256"] == manifest.to_json()["sha256"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a manifest: {shown(error)}.") from None
    if not as_written:
        raise CheckpointError(f"{path} cannot be read as a manifest: its own SHA-256 is not that of its content.")
    named = _STEP_NAME.fullmatch(path.parent.name)
    if named and int(named[1]) != manifest.step:
        raise CheckpointError(f"{path} is of step {manifest.step}; its folder's name says {path.parent.name}.")
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts or not name.isprintable():
            raise CheckpointError(f"{path} lists {shown(name)}; needs names inside the checkpoint.")
    return manifest


def _typed(kind: type[Value], value: object) -> Value:
    if type(value) is not kind:
        raise TypeError(f"{shown(value)} where {kind.__name__} is needed")
    return value


def _check_size(file: Path, entry: FileEntry) -> None:
    try:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; the manifest lists it.")
        size = file.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {os_reason(error)}.") from None
    if size != entry.num_bytes:
        raise CheckpointError(f"{file} has {size} bytes; the manifest says {entry.num_bytes}.")


def _check_bytes(file: Path, entry: FileEntry) -> None:
    try:
        got = sha256(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {os_reason(error)}.") from None
    if got != entry.sha256:
        raise CheckpointError(f"{file} has SHA-256 {got}; the manifest says {entry.sha256}.")


def steps(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder by step, ascending, by their names alone; empty when there is no such folder."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if (match := _STEP_NAME.fullmatch(path.name)) and path.is_dir() and path.name == f"step-{int(match[1]):06d}":
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def latest(folder: Path, say: Callable[[str], None], *, check: Callable[[Path], object] = verify) -> Path | None:
    """The newest checkpoint that passes `check`; None when there is none at all. Changes nothing.

    Args:   say: is told of each newer checkpoint that was passed over, and why.  check: raises CheckpointError.
    Raises: CheckpointError when there are checkpoints and none passes: starting over is not for us to decide.
    """
    refused = []
    for path in reversed(steps(folder).values()):
        try:
            check(path)
        except CheckpointError as error:
            refused.append(str(error))
            if len(refused) <= MAX_NAMES:
                say(f"Passing over {path.name}: {error}")
        else:
            return path
    if refused:
        more = f" And {len(refused) - MAX_REASONS:,} more." if len(refused) > MAX_REASONS else ""
        raise CheckpointError(f"No checkpoint in {folder} can be used. {' '.join(refused[:MAX_REASONS])}{more}")
    return None


def read_newest(folder: Path, read: Callable[[Path], Content], say: Callable[[str], object] = warnings.warn) -> Content:
    """What `read` makes of the newest checkpoint of a run's folder, or of `folder` itself where that is no run's.

    Nothing is checked here: `read` checks what it reads, as `Eagle.from_pretrained` does, and need not wait for the
    rest. A checkpoint that fails is passed over for the one before; one that a trainer deleted meanwhile is no error.

    Args:    say: is told of each newer checkpoint that was passed over, and why.
    Example: read_newest(Path("runs/first"), Processor.from_pretrained)
    Raises:  CheckpointError when it is a run's folder and no checkpoint can be read, FileNotFoundError when it is none;
             what `read` raises otherwise.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; needs that of a checkpoint or of a run.")
    refused: list[str] = []
    waiting = [folder] if not _is_run(folder) else list(steps(folder / "checkpoints").values())
    while waiting:
        path = waiting.pop()
        try:
            return read(path)
        except (OSError, ValueError) as error:
            if not path.is_dir():  # deleted between the look and the reading: by then there is a newer one
                return read_newest(folder, read, say)
            if path == folder or not isinstance(error, CheckpointError):
                raise
            refused.append(str(error))
            if len(refused) <= MAX_NAMES:
                say(f"Passing over {path.name}: {error}")
    raise CheckpointError(f"{folder} is a run without a checkpoint that can be read. {' '.join(refused[:MAX_REASONS])}")


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").exists() or bool(steps(folder / "checkpoints"))
