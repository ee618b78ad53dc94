"""Media in LMDB, by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagle_model.data.formats.lmdb_media import LmdbFiles
from eagle_model.data.formats.media import Embedded
from eagle_model.data.sample import DataError, OutsideRootError
from tests.data.formats.conftest import picture

lmdb = pytest.importorskip("lmdb", reason="needs lmdb (the extra `data`)")


def write_lmdb(path: Path, entries: dict[str, bytes], *, subdir: bool) -> None:
    with lmdb.open(str(path), subdir=subdir, map_size=1 << 20) as opened, opened.begin(write=True) as transaction:
        for key, data in entries.items():
            transaction.put(key.encode(), data)


@pytest.mark.parametrize("subdir", [True, False])
def test_bytes_by_key(root: Path, subdir: bool) -> None:
    write_lmdb(root / "x.lmdb", {"0001": picture()}, subdir=subdir)
    with LmdbFiles(root) as files:
        assert files.read({"lmdb_file": "x.lmdb", "lmdb_key": "0001"}) == Embedded(picture())
        for entry in (
            {"lmdb_file": "x.lmdb", "lmdb_key": "2"},
            {"lmdb_file": "y.lmdb", "lmdb_key": "1"},
            {"lmdb_file": "x"},
        ):
            with pytest.raises(DataError):
                files.read(entry)


def test_files_that_are_no_lmdb(root: Path) -> None:
    (root / "bad.lmdb").write_bytes(bytes(5000))
    (root / "empty.lmdb").mkdir()
    with LmdbFiles(root) as files:
        for name in ("bad.lmdb", "empty.lmdb"):
            with pytest.raises(DataError, match="cannot be read"):
                files.read({"lmdb_file": name, "lmdb_key": "1"})
    assert not list((root / "empty.lmdb").iterdir())  # nothing is made


@pytest.mark.parametrize("subdir", [True, False])
def test_a_file_that_is_cut_off_is_refused_before_it_is_read(root: Path, subdir: bool) -> None:
    """The library would end the process with SIGBUS."""
    write_lmdb(root / "x.lmdb", {str(i): bytes(9000) for i in range(9)}, subdir=subdir)
    path = root / "x.lmdb/data.mdb" if subdir else root / "x.lmdb"
    path.write_bytes(path.read_bytes()[:20_000])
    with LmdbFiles(root) as files:
        for _ in range(2):
            with pytest.raises(DataError, match="cut off: it has 20000 bytes"):
                files.read({"lmdb_file": "x.lmdb", "lmdb_key": "5"})


def test_paths_stay_inside_the_root(root: Path) -> None:
    write_lmdb(root.parent / "out.lmdb", {"1": picture()}, subdir=False)
    (root / "link.lmdb").symlink_to(root.parent / "out.lmdb")
    with LmdbFiles(root) as files:
        for name in ("../out.lmdb", str(root.parent / "out.lmdb"), "link.lmdb"):
            with pytest.raises(OutsideRootError):
                files.read({"lmdb_file": name, "lmdb_key": "1"})
    with LmdbFiles(root, allow_outside_root=True) as files:
        assert files.read({"lmdb_file": "link.lmdb", "lmdb_key": "1"}) == Embedded(picture())


def test_more_files_than_are_kept_open(root: Path) -> None:
    for i in range(10):
        write_lmdb(root / f"{i}.lmdb", {"k": picture(i)}, subdir=False)
    with LmdbFiles(root) as files:
        for i in [*range(10), 0]:
            assert files.read({"lmdb_file": f"{i}.lmdb", "lmdb_key": "k"}) == Embedded(picture(i))
