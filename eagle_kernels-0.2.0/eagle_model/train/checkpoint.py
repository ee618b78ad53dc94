"""Writing checkpoints so that they survive a crash at any moment; `eagle_model.checkpoints` reads them.

    save(run / "checkpoints", 123, run_id, lambda folder: model.save_pretrained(folder))

    checkpoints/step-000123/              complete: it got its name after everything in it was on the disk
    checkpoints/step-000123.partial/      a save that was interrupted; the next trainer deletes it
    checkpoints/step-000123.damaged-1/    was complete, then failed its check; set aside, never deleted
    checkpoints/step-000100.removing/     complete and no longer kept; its deletion was interrupted
    checkpoints/best-000080/              the files of step-000080, kept whatever becomes of that; never resumed from

A save writes beside, fsyncs every file and folder, renames, and fsyncs the parent: the name `step-000123` appears at
once or not at all. Where several processes save, each writes its files and hands in a list of them; when all have, the
first commits. `eagle_model.train.saver` does so in threads.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eagle_model.checkpoints import MANIFEST, CheckpointError, FileEntry, Manifest, read_manifest, steps
from eagle_model.fields import few
from eagle_model.files import flush, read_json, sha256, write_json

POLL_SECONDS = 0.02  # between looks for what another process hands in
_PARTIAL = ".partial"


def save(folder: Path, step: int, run: str, write: Callable[[Path], None]) -> Path:
    """Makes `folder`/step-<step> of what `write(empty_folder)` puts into the folder it is given.

    Returns: the checkpoint, complete and on the disk.
    Raises:  CheckpointError when that step is there already (it is left as it is), or `write` wrote nothing.
    """
    partial = begin(folder, step)
    try:
        write(partial)
        return commit(partial, run, {})
    except BaseException:
        give_up(partial)
        raise


# ---- the same by several processes: the first begins, all hand in, the first commits


def begin(folder: Path, step: int) -> Path:
    """An empty folder for all that step-<step> is to hold. Raises CheckpointError when that step is there already."""
    final = folder / f"step-{step:06d}"
    if final.exists():
        raise CheckpointError(
            f"{final} exists, and a checkpoint is never overwritten. Move it away or use another folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    remove_interrupted(folder)
    partial = final.with_name(final.name + _PARTIAL)
    partial.mkdir()
    return partial


def hand_in(partial: Path, rank: int, names: Iterable[str], told: object) -> None:
    """Lists files that process `rank` has written, all of them on the disk, with their sizes and SHA-256.

    told: what the one who commits is to know, JSON-able.
    """
    files = {name: asdict(_entry(partial / name)) for name in names}
    write_json(partial / _list_name(rank), {"files": files, "told": told})


def handed_in(partial: Path, num_ranks: int, is_off: Callable[[], bool]) -> tuple[dict[str, FileEntry], list[Any]]:
    """Waits until so many processes have handed in: their files by name, and what each has told.

    is_off: asked now and then; when it says so, nobody is waited for any longer.
    Raises: CheckpointError when it is off, or two processes have written the same file.
    """
    files: dict[str, FileEntry] = {}
    told = []
    for rank in range(num_ranks):
        while not (partial / _list_name(rank)).exists():
            if is_off():
                raise CheckpointError(f"{partial} lacks what process {rank} was to write: the save was given up.")
            time.sleep(POLL_SECONDS)
        listed = read_json(partial / _list_name(rank))
        told.append(listed["told"])
        if twice := files.keys() & listed["files"].keys():
            raise CheckpointError(f"{partial}: {few(sorted(twice))} was written by several processes.")
        files |= {name: FileEntry(**entry) for name, entry in listed["files"].items()}
    for rank in range(num_ranks):
        (partial / _list_name(rank)).unlink()
    return files, told


def commit(partial: Path, run: str, files: Mapping[str, FileEntry]) -> Path:
    """Makes a checkpoint of a folder that `begin` made: all that is in it gets into the manifest, and to the disk.

    files: those of them that were handed in.
    Raises: CheckpointError when one of these is missing, as on machines that do not share the folder, or all are.
    """
    step = int(partial.name.removesuffix(_PARTIAL).removeprefix("step-"))
    there = {path.relative_to(partial).as_posix(): path for path in sorted(partial.rglob("*")) if path.is_file()}
    if lost := [name for name in files if name not in there or there[name].stat().st_size != files[name].num_bytes]:
        raise CheckpointError(
            f"{partial} lacks {few(lost)}, which another process wrote. All machines of a run must see its folder."
        )
    if not there or MANIFEST in there:
        raise CheckpointError(f"{partial} holds {few(there) or 'no file'}; needs files, and none named {MANIFEST}.")
    entries = {name: files.get(name) or _entry(path) for name, path in there.items()}
    manifest = Manifest(step=step, run=run, files=entries)
    (partial / MANIFEST).write_text(json.dumps(manifest.to_json(), indent=2))
    for path in (partial, *partial.rglob("*")):
        if path.relative_to(partial).as_posix() not in files:
            flush(path)
    final = partial.with_name(partial.name.removesuffix(_PARTIAL))
    os.rename(partial, final)
    flush(final.parent)
    return final


def give_up(partial: Path) -> None:
    """Deletes what a save that failed has written: on a full disk, half a checkpoint is what fills it."""
    shutil.rmtree(partial, ignore_errors=True)


def _entry(file: Path) -> FileEntry:
    return FileEntry(file.stat().st_size, sha256(file))


def _list_name(rank: int) -> str:
    return f"handed-in-{rank:05d}.json"


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
