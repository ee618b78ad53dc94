"""Checkpoints that survive a crash at any moment, and say so when they did not survive something else.

    checkpoints/step-000123/              complete: it got its name after everything in it was on the disk
        config.json, model.safetensors, ...   the model and its processor: what `Eagle.from_pretrained` loads
        training/...                          what training needs beside them
        manifest.json                         step, run, and size and SHA-256 of every other file
    checkpoints/step-000123.partial-1/    a save that was interrupted; skipped, never deleted
    checkpoints/step-000123.damaged-1/    was complete, then failed its check; set aside, never deleted
    checkpoints/step-000100.removing/     complete and no longer kept; its deletion was interrupted

A save writes beside, fsyncs every file and folder, renames, and fsyncs the parent: the name `step-000123` appears at
once or not at all. There is no pickle: safetensors and JSON only, so that reading a checkpoint cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from eagle_model.model.weights import flush, write_whole

MANIFEST = "manifest.json"
_STEP_NAME = re.compile(r"step-(\d{6,})")
_CHUNK_BYTES = 1 << 22


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


def save(folder: Path, step: int, run: str, write: Callable[[Path], None]) -> Path:
    """Makes `folder`/step-<step> of what `write(empty_folder)` puts into the folder it is given.

    Returns: the checkpoint, complete and on the disk.
    Raises:  CheckpointError when that step is there already (it is left as it is), or `write` wrote nothing.
    """
    final = folder / f"step-{step:06d}"
    if final.exists():
        raise CheckpointError(
            f"{final} exists, and a checkpoint is never overwritten. Move it away or use another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    partial = _unused_name(final, "partial")
    partial.mkdir()
    write(partial)
    files = {path.relative_to(partial).as_posix(): path for path in sorted(partial.rglob("*")) if path.is_file()}
    if not files or MANIFEST in files:
        raise CheckpointError(f"{partial} holds {sorted(files) or 'no file'}; needs files, and none named {MANIFEST}.")
    entries = {name: FileEntry(path.stat().st_size, _sha256(path)) for name, path in files.items()}
    manifest = Manifest(step=step, run=run, files=entries)
    (partial / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2))
    for path in (partial, *partial.rglob("*")):
        flush(path)
    os.rename(partial, final)
    flush(folder)
    return final


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
        got = _sha256(checkpoint / name)
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


def set_aside(checkpoint: Path) -> Path:
    """Renames a damaged checkpoint, so that its step can be written again and nothing of it is lost."""
    aside = _unused_name(checkpoint, "damaged")
    os.rename(checkpoint, aside)
    flush(checkpoint.parent)
    return aside


def prune(folder: Path, run: str, keep_last: int, say: Callable[[str], None]) -> None:
    """Deletes the complete checkpoints of this run but the newest `keep_last` (>= 1).

    What is incomplete, belongs to another run, or holds a file that is not in its manifest is neither counted nor
    touched; `say` is told of what is incomplete.
    """
    for path in folder.glob("step-*.removing"):  # an earlier deletion that was interrupted
        shutil.rmtree(path)
    complete = []
    for path in steps(folder).values():
        try:
            manifest = read_manifest(path)
        except CheckpointError as error:
            say(f"Keeping {path.name} as it is: {error}")
            continue
        names = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()}
        if manifest.run == run and names == {*manifest.files, MANIFEST}:
            complete.append(path)
    for path in complete[:-keep_last]:
        # Renamed first: a deletion that is cut short must not leave half a checkpoint under a whole one's name.
        removing = path.with_name(path.name + ".removing")
        os.rename(path, removing)
        shutil.rmtree(removing)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a small text file: afterwards it holds the old text or the new, never a part of one."""
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def _unused_name(path: Path, ending: str) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.{ending}-{number}")).exists():
        number += 1
    return candidate


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
