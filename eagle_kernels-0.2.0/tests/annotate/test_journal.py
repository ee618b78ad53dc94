"""annotate/journal.py: what was put is there, whatever happened to the process or the disk."""

import errno
import json
from pathlib import Path

import pytest

from eagle_model.annotate.journal import Journal


def record(key: str, **more: object) -> dict:
    return {"key": key, "dollars": 0.25, **more}


def test_records_are_there_at_the_next_start(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.put("a", record("a", text="Ümlaut\n"))
        journal.put("b", record("b"))
        assert journal.get("c") is None
    with Journal(tmp_path / "j.jsonl") as journal:
        assert journal.get("a") == record("a", text="Ümlaut\n") and len(journal) == 2 and journal.dollars == 0.5


@pytest.mark.parametrize("cut", range(1, 30, 7))
def test_a_line_that_was_cut_short_goes(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.put("a", record("a"))
        journal.put("b", record("b"))
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path) as journal:
        assert journal.get("a") and journal.get("b") is None
        journal.put("c", record("c"))
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_a_journal_belongs_to_one_process(tmp_path: Path) -> None:
    with (
        Journal(tmp_path / "j.jsonl"),
        pytest.raises(ValueError, match="in use by another process"),
    ):
        Journal(tmp_path / "j.jsonl")
    Journal(tmp_path / "j.jsonl").__exit__()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text('{"key": "a", "dollars": 0}\nnonsense\n{"key": "b", "dollars": 0}\n')
    with pytest.raises(ValueError, match=r"j.jsonl:2: no line of a journal"):
        Journal(tmp_path / "j.jsonl")


class FullDisk:
    """A file whose disk takes ten bytes more."""

    def __init__(self, file) -> None:
        self.file, self.left = file, 10

    def write(self, data: bytes) -> int:
        if not self.left:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken, self.left = min(self.left, len(data)), 0
        return self.file.write(data[:taken])

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def test_a_full_disk_leaves_whole_lines(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.put("a", record("a"))
        journal._file = FullDisk(journal._file)
        with pytest.raises(OSError, match="No space left"):
            journal.put("b", record("b"))
        assert journal.get("b") is None
    with Journal(tmp_path / "j.jsonl") as journal:
        assert len(journal) == 1


def test_half_a_character_is_kept_as_it_came(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.put("a", record("a", text="\ud83d ü"))
    with Journal(tmp_path / "j.jsonl") as journal:
        assert journal.get("a") == record("a", text="\ud83d ü")
