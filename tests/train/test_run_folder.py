"""A run folder is one trainer's alone; what a killed one left is noticed, tidied, and in nobody's way."""

import errno
import fcntl
import json
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eagle_model.fields import ConfigError
from eagle_model.train import run_folder
from eagle_model.train.checkpoint import save
from eagle_model.train.run_folder import LOCK, take

HOLD = "import sys; from pathlib import Path; from eagle_model.train.run_folder import take\n"
HOLD += "lock = take(Path(sys.argv[1]), print); print('taken', flush=True); sys.stdin.read()"


def hold(folder: Path) -> subprocess.Popen:
    """Another process, which has the lock when this returns."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "taken\n"
    return process


def must_not_speak(message: str) -> None:
    raise AssertionError(f"said: {message}")


def test_the_folder_is_made_and_says_who_has_it_and_since_when(tmp_path):
    folder = tmp_path / "runs" / "first"
    lock = take(folder, must_not_speak)
    owner = json.loads((folder / LOCK).read_text())
    assert (owner["process"], owner["host"]) == (os.getpid(), platform.node())
    since = rf"since {re.escape(owner['since'])}\. Let that trainer end, or give --run another folder\.$"
    with pytest.raises(ConfigError, match=rf"first is in use by process {os.getpid()} of \w+ on .*, {since}"):
        take(folder, must_not_speak)
    assert json.loads((folder / LOCK).read_text()) == owner  # to be refused changes nothing
    lock.release()
    lock.release()
    take(folder, must_not_speak).release()


def test_another_process_is_refused_until_this_one_ends(tmp_path):
    other = hold(tmp_path)
    with pytest.raises(ConfigError, match=f"in use by process {other.pid} of "):
        take(tmp_path, must_not_speak)
    other.kill()
    other.wait()
    said: list[str] = []
    take(tmp_path, said.append).release()
    assert len(said) == 1
    assert re.match(rf"Stale lock on .*: process {other.pid} of .*, since \d{{4}}-.*, was killed or lost its", said[0])


def test_a_lock_ends_with_its_last_reference(tmp_path):
    lock = take(tmp_path, must_not_speak)
    del lock
    take(tmp_path, lambda message: None).release()


def test_of_another_machine_it_says_what_to_do_if_that_crashed(tmp_path):
    lock = take(tmp_path, must_not_speak)
    owner = json.loads((tmp_path / LOCK).read_text()) | {"host": "elsewhere"}
    (tmp_path / LOCK).write_text(json.dumps(owner))
    with pytest.raises(ConfigError, match=r"on elsewhere, since .* If that machine has crashed, delete .*run\.lock\."):
        take(tmp_path, must_not_speak)
    lock.release()


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 9999, '{"process": "' + "x" * 9999, "\x00\xff"])
def test_a_damaged_lock_file_is_no_obstacle(tmp_path, text):
    (tmp_path / LOCK).write_text(text, encoding="latin-1")
    lock = take(tmp_path, must_not_speak)
    (tmp_path / LOCK).write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="is in use by another trainer"):
        take(tmp_path, must_not_speak)
    lock.release()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    said: list[str] = []
    take(tmp_path, said.append).release()
    assert said == [f"{tmp_path} cannot be locked (Function not implemented): see to it that no other trainer uses it."]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOSPC])
@pytest.mark.parametrize("at", ["mkdir", "open"])
def test_a_folder_that_cannot_be_written_to_is_refused_at_once(tmp_path, monkeypatch, number, at):
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(run_folder.Path, at, refuse)
    reason = re.escape(os.strerror(number))
    with pytest.raises(
        ConfigError, match=rf"run cannot be used: {reason} \(.*run.*\)\. A run needs a folder that it can"
    ):
        take(tmp_path / "run", must_not_speak)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match=r"run cannot be used: Permission denied"):
        take(tmp_path / "run", must_not_speak)


def test_a_disk_without_room_for_the_lock_is_refused(tmp_path):
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n" + HOLD
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert re.search(r"ConfigError: .* cannot be used: File too large", done.stderr), done.stderr
    take(tmp_path, must_not_speak).release()


# ---- whose folder it is


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds files but no run: thesis\.tex\. Give a new or an empty folder"):
        take(tmp_path, must_not_speak)
    with pytest.raises(ConfigError, match=r"thesis\.tex is a file; a run needs a folder"):
        take(tmp_path / "thesis.tex", must_not_speak)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    for i in range(30):
        (tmp_path / f"{i}.tex").touch()
    with pytest.raises(ConfigError, match=r"no run: 0\.tex, .* and 11 more\."):
        take(tmp_path, must_not_speak)


def test_what_killed_trainers_left_is_removed_and_no_obstacle(tmp_path):
    """As when a kill comes while run.json is first written."""
    left = [
        ".run.json.123.tmp",
        ".config.json.9.tmp",
        ".metrics.jsonl.7.tmp",
        ".skipped.json.7.tmp",
        ".report.html.7.tmp",
    ]
    for name in left:
        (tmp_path / name).write_text("{")
    take(tmp_path, must_not_speak).release()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    for name in (*left, ".vimrc.1.tmp"):  # the last is somebody else's
        (tmp_path / name).write_text("{")
    (tmp_path / "checkpoints" / "step-000003.partial").mkdir(parents=True)
    take(tmp_path, must_not_speak).release()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".vimrc.1.tmp", "checkpoints", LOCK]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_checkpoints_make_a_folder_a_run_s_even_without_run_json(tmp_path):
    save(tmp_path / "checkpoints", 3, "abc", lambda folder: (folder / "a").write_text("x"))
    (tmp_path / "notes.txt").write_text("mine")
    take(tmp_path, must_not_speak).release()
    assert (tmp_path / "notes.txt").exists()


KILLED_STARTS = """
import os, signal, sys
from pathlib import Path
from eagle_model.files import write_json
from eagle_model.train.run_folder import take

def die_before(number):  # before the number-th call that changes names or reaches the disk
    left = [number]
    def counting(real):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    for name in ("fsync", "replace", "mkdir", "ftruncate", "open", "unlink"):
        setattr(os, name, counting(getattr(os, name)))

folder = Path(sys.argv[1])
for number in range(1, 100):
    if (child := os.fork()) == 0:
        die_before(number)
        lock = take(folder, lambda message: None)
        for name in ("run.json", "config.json"):
            write_json(folder / name, {"run": number})
        os._exit(0)
    killed = os.waitpid(child, 0)[1] == signal.SIGKILL
    take(folder, lambda message: None).release()
    assert not list(folder.glob(".*")), list(folder.iterdir())
    if not killed:
        break
print(number)
"""


def test_a_kill_at_any_moment_of_the_start_leaves_a_usable_folder(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED_STARTS, tmp_path / "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 8 < int(done.stdout) < 99


def test_a_run_that_sigterm_ends_leaves_no_lock(tmp_path):
    other = hold(tmp_path)
    other.send_signal(signal.SIGTERM)
    assert other.wait() == -signal.SIGTERM
    take(tmp_path, lambda message: None).release()
