"""Media in LMDB, as Eagle's rows name them: {"lmdb_file": "images.lmdb", "lmdb_key": "000001"} -> their bytes.

    with LmdbFiles(Path("root")) as files:
        files.read({"lmdb_file": "images.lmdb", "lmdb_key": "000001"})     # Embedded(data=b"\\xff\\xd8...")

Read by lmdb (the extra "data"), which maps a file into memory and trusts its pages. A file that is cut off would end
the process, and is refused by its length; one that was made to do harm still can. Read only those of people whom you
trust; converting once leaves plain files for training.
"""

from __future__ import annotations

from pathlib import Path

from eagle_model.data.formats.folders import need_inside
from eagle_model.data.formats.media import MAX_MEDIUM_BYTES, Embedded
from eagle_model.data.sample import DataError, OutsideRootError, shown

_MAX_OPEN = 8  # at a time; each is mapped whole, which takes addresses and no memory


class LmdbFiles:
    """The LMDB files of one folder, opened as they are asked for. Paths stay inside the folder, links followed.

    A context manager; reading needs the package lmdb, and raises ModuleNotFoundError without it.
    """

    def __init__(self, root: Path, *, allow_outside_root: bool = False) -> None:
        self.root, self.allow_outside_root = root, allow_outside_root
        self._open: dict[Path, object] = {}

    def read(self, entry: dict) -> Embedded:
        """Raises DataError, the reason alone, where file or key is not there."""
        import lmdb

        name, key = entry.get("lmdb_file"), entry.get("lmdb_key")
        if not isinstance(name, str) or not isinstance(key, str) or not name or not key or "\0" in name:
            raise DataError(f"{shown(entry)} needs lmdb_file and lmdb_key, texts.")
        if not self.allow_outside_root and (Path(name).is_absolute() or ".." in Path(name).parts):
            raise OutsideRootError(f"lmdb_file {name!r} leaves the root {str(self.root)!r}. Give a path inside it.")
        path = self.root / name
        need_inside(path, None if self.allow_outside_root else self.root.resolve())
        if not path.exists():
            raise DataError(f"lmdb_file {path} does not exist.")
        try:
            if path not in self._open:
                if len(self._open) >= _MAX_OPEN:
                    self.close()
                opened = lmdb.open(
                    str(path), readonly=True, create=False, lock=False, readahead=False, subdir=path.is_dir()
                )
                _need_whole(path / "data.mdb" if path.is_dir() else path, opened)
                self._open[path] = opened
            with self._open[path].begin(buffers=True) as transaction:  # type: ignore[attr-defined]
                found = transaction.get(key.encode())
                if found is None:
                    raise DataError(f"{path} has no key {key!r}.")
                if len(found) > MAX_MEDIUM_BYTES:
                    raise DataError(f"{path}: {key!r} has {len(found)} bytes, more than {MAX_MEDIUM_BYTES}.")
                return Embedded(bytes(found))
        except lmdb.Error as error:
            raise DataError(f"{path} cannot be read: {error}.") from None

    def close(self) -> None:
        for opened in self._open.values():
            opened.close()  # type: ignore[attr-defined]
        self._open = {}

    def __enter__(self) -> LmdbFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _need_whole(path: Path, opened: object) -> None:
    """Raises DataError where a file is shorter than its pages: reading one that is not there ends the process."""
    pages = opened.info()["last_pgno"] + 1  # type: ignore[attr-defined]
    needed = pages * opened.stat()["psize"]  # type: ignore[attr-defined]
    if (num_bytes := path.stat().st_size) < needed:
        opened.close()  # type: ignore[attr-defined]
        raise DataError(f"{path} is cut off: it has {num_bytes} bytes, and its pages {needed}. Copy it anew.")
