"""Writing checkpoints so that they survive a crash at any moment; `eagle_model.checkpoints` reads them.

    save(run / "checkpoints", 123, run_id, lambda folder: model.save_pretrained(folder))

    checkpoints/step-000123/              complete: it got its name after everything in it was on the disk
    checkpoints/step-000123.partial/      a save that was interrupted; the next trainer deletes it
    checkpoints/step-000123.damaged-1/    was complete, then failed its check; set aside, never deleted
    checkpoints/step-000100.removing/     complete and no longer kept; its deletion was interrupted
    checkpoints/best-000080/              the files of step-000080, kept whatever becomes of that; never resumed from

A save writes beside, fsyncs every file and folder, renames, and fsyncs the parent: the name `step-000123` appears at
once or not at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from eagle_model.checkpoints import MANIFEST, CheckpointError, FileEntry, Manifest, read_manifest, steps
from eagle_model.fields import few
from eagle_model.files import flush, sha256


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
    partial = final.with_name(f"{final.name}.partial")
    remove_interrupted(folder)
    try:
        _fill(partial, step, run, write)
        os.rename(partial, final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk, half a checkpoint is what fills it
        raise
    flush(folder)
    return final


def _fill(partial: Path, step: int, run: str, write: Callable[[Path], None]) -> None:
    partial.mkdir()
    write(partial)
    files = {path.relative_to(partial).as_posix(): path for path in sorted(partial.rglob("*")) if path.is_file()}
    if not files or MANIFEST in files:
        raise CheckpointError(f"{partial} holds {few(files) or 'no file'}; needs files, and none named {MANIFEST}.")
    entries = {name: FileEntry(path.stat().st_size, sha256(path)) for name, path in files.items()}
    manifest = Manifest(step=step, run=run, files=entries)
    (partial / MANIFEST).write_text(json.dumps(manifest.to_json(), indent=2))
    for path in (partial, *partial.rglob("*")):
        flush(path)


def set_aside(checkpoint: Path) -> Path:
    """Renames a damaged checkpoint, so that its step can be written again and nothing of it is lost."""
    aside = _unused_name(checkpoint, "damaged")
    os.rename(checkpoint, aside)
    flush(checkpoint.parent)
    return aside


def keep_best(folder: Path, step: int) -> Path:
    """Makes `folder`/best-<step> of the files of step-<step>, by hard links, and deletes the best there was before.

    Returns: the new folder, which stays when step-<step> is pruned. `latest` and `steps` do not see it.
    Raises:  OSError when it cannot be made, as where step-<step> is not there.
    """
    best = folder / f"best-{step:06d}"
    if not best.exists():
        partial = best.with_name(f"{best.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder / f"step-{step:06d}", partial, copy_function=_link)
        for path in (partial, *partial.rglob("*")):
            flush(path)
        os.rename(partial, best)
        flush(folder)
    for other in folder.glob("best-*"):
        if re.fullmatch(r"best-[0-9]{6,}", other.name) and other != best:
            _remove(other)
    return best


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def _remove(path: Path) -> None:
    # Renamed first: a deletion that is cut short must not leave half a checkpoint under a whole one's name.
    removing = path.with_name(path.name + ".removing")
    os.rename(path, removing)
    shutil.rmtree(removing)


def prune(folder: Path, run: str, keep_last: int, say: Callable[[str], None]) -> None:
    """Deletes the complete checkpoints of this run but the newest `keep_last` (>= 1).

    A checkpoint that is damaged, belongs to another run, or holds a file that is not in its manifest is neither counted
    nor touched; `say` is told of the damaged.
    """
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
        _remove(path)


def remove_interrupted(folder: Path) -> None:
    """Deletes what saves and deletions that were cut short have left; for the one trainer that writes to `folder`."""
    for pattern in ("step-*.partial", "step-*.removing", "best-*.partial", "best-*.removing"):
        for path in folder.glob(pattern):
            shutil.rmtree(path)


def _unused_name(path: Path, ending: str) -> Path:
    number = 1
    while (candidate := path.with_name(f"{path.name}.{ending}-{number}")).exists():
        number += 1
    return candidate
