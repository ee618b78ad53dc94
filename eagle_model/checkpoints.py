"""Checkpoints as they are read: which there are, and whether every byte is as it was written.

    newest = latest(Path("runs/first/checkpoints"), print)     # checked; None when there is none

    checkpoints/step-000123/                  complete: it got its name after everything in it was on the disk
        config.json, model.safetensors, ...   the model and its processor: what `Eagle.from_pretrained` loads
        training/...                          what training needs beside them
        manifest.json                         step, run, and size and SHA-256 of every other file

`eagle_model.train.checkpoint` writes them. There is no pickle: safetensors and JSON only, so that reading a checkpoint
cannot run code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eagle_model.files import sha256

MANIFEST = "manifest.json"
_STEP_NAME = re.compile(r"step-(\d{6,})")


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


def read_manifest(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint, with the names and sizes of its files checked, not their contents.

    Raises: CheckpointError that names the file and the check that failed.
    """
    path = checkpoint / MANIFEST
    try:
        raw = json.loads(path.read_text())
        files = {str(name): FileEntry(int(e["num_bytes"]), str(e["sha256"])) for name, e in raw["files"].items()}
        manifest = Manifest(step=int(raw["step"]), run=str(raw["run"]), files=files)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; every complete checkpoint has one.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read as a manifest: {error!r}.") from None
    for name, entry in manifest.files.items():
        file = checkpoint / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"{path} lists {name!r}; needs names inside the checkpoint.")
        if not file.is_file():
            raise CheckpointError(f"{file} is missing; the manifest lists it.")
        if file.stat().st_size != entry.num_bytes:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes; the manifest says {entry.num_bytes}.")
    return manifest


def verify(checkpoint: Path) -> Manifest:
    """The manifest of a checkpoint whose every byte is as it was written.

    Raises: CheckpointError that names the file and the check that failed.
    """
    manifest = read_manifest(checkpoint)
    for name, entry in manifest.files.items():
        got = sha256(checkpoint / name)
        if got != entry.sha256:
            raise CheckpointError(f"{checkpoint / name} has SHA-256 {got}; the manifest says {entry.sha256}.")
    return manifest


def steps(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder by step, ascending, by their names alone; empty when there is no such folder."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if (match := _STEP_NAME.fullmatch(path.name)) and path.is_dir():
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def latest(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that passes `verify`; None when there is none at all. Changes nothing.

    Args:   say: is told of each newer checkpoint that was passed over, and why.
    Raises: CheckpointError when there are checkpoints and none passes: starting over is not for us to decide.
    """
    refused = []
    for path in reversed(steps(folder).values()):
        try:
            verify(path)
        except CheckpointError as error:
            refused.append(str(error))
            say(f"Passing over {path.name}: {error}")
        else:
            return path
    if refused:
        raise CheckpointError(f"No checkpoint in {folder} can be used. " + " ".join(refused))
    return None
