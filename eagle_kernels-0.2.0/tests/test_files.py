"""A file is there whole or not at all, and a failed write leaves the old one and nothing beside it."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from eagle_model.files import flush, os_error, os_reason, read_json, sha256, write_json, write_text, write_whole


def test_text_and_json_are_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "Grüße\n")
    assert path.read_bytes() == "Grüße\n".encode()
    write_json(path, {"é": [1, 2.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1, 2.5, None]}
    assert list(tmp_path.iterdir()) == [path]


def test_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events, real_fsync, real_replace = [], os.fsync, os.replace
    target_of = lambda fd: Path(os.readlink(f"/proc/self/fd/{fd}")).name  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(target_of(fd)), real_fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), real_replace(a, b)))
    write_text(tmp_path / "a", "text")
    assert events == [f".a.{os.getpid()}.tmp", "replace", tmp_path.name]


@pytest.mark.parametrize("when", ["write", "fsync"])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch, when):
    (tmp_path / "a").write_text("old")

    def no_space(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    if when == "fsync":
        monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "a", no_space if when == "write" else lambda beside: beside.write_text("new"))
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]


def test_permissions_are_those_of_any_new_file(tmp_path):
    def write_for_the_owner_alone(beside: Path) -> None:
        beside.write_text("x")
        beside.chmod(0o600)

    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a", write_for_the_owner_alone)
    finally:
        os.umask(before)
    assert oct((tmp_path / "a").stat().st_mode & 0o777) == "0o640"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "a is not JSON: Expecting property name"),
        (b"[" * 200_000, "a is not JSON: maximum recursion depth"),
        (b'"\xe9"', "a is not JSON: 'utf-8' codec"),
        (b"1" * 5000, "a is not JSON: Exceeds the limit"),
        (b" " * 7000, "a has more than 6000 bytes; no file of its kind is so large"),
    ],
)
def test_a_file_that_is_no_json_is_named(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(tmp_path / "a", max_bytes=max(6000, len(content) if content[:1] == b"[" else 0))
    assert len(str(caught.value)) < 500


def test_nothing_but_a_plain_file_is_read_as_json(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent", Path("/dev/zero")):
        with pytest.raises(ValueError, match=f"{path} is no file"):
            read_json(path)
    write_json(tmp_path / "a", {"b": [1]})
    assert read_json(tmp_path / "a") == {"b": [1]}


def test_what_the_system_said_is_one_sentence(tmp_path):
    full = os_error(Exception("I/O error: No space left on device (os error 28)"), tmp_path / "a")
    assert isinstance(full, OSError) and full.errno == 28
    assert os_reason(full) == f"No space left on device ({tmp_path / 'a'})"
    assert os_reason(OSError("in words")) == "in words"
    other = Exception("invalid shape")
    assert os_error(other, tmp_path) is other


def test_flush_takes_files_and_folders(tmp_path):
    (tmp_path / "a").write_text("x")
    flush(tmp_path / "a")
    flush(tmp_path)
    with pytest.raises(FileNotFoundError):
        flush(tmp_path / "absent")


def test_sha256_of_a_file_longer_than_one_read(tmp_path):
    data = bytes(range(256)) * (1 << 15)  # 8 MiB
    (tmp_path / "a").write_bytes(data + b"end")
    assert sha256(tmp_path / "a") == hashlib.sha256(data + b"end").hexdigest()
