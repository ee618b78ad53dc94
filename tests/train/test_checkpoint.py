"""A checkpoint is there whole or not at all, is never overwritten, and only older ones of the run are deleted."""

import ast
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from eagle_model.checkpoints import CheckpointError, latest, steps, verify
from eagle_model.train import checkpoint
from eagle_model.train.checkpoint import begin, commit, give_up, hand_in, handed_in, keep_best, prune, save

ROOT = Path(__file__).parents[2]


def write_some(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "training").mkdir()
    (folder / "training" / "state.json").write_text('{"step": 1}')


def must_not_speak(message: str) -> None:
    raise AssertionError(f"said: {message}")


def test_holds_what_was_written_and_a_manifest_of_it(tmp_path):
    path = save(tmp_path / "checkpoints", 123, "run-a", write_some)
    assert path == tmp_path / "checkpoints" / "step-000123"
    manifest = verify(path)
    assert (manifest.step, manifest.run) == (123, "run-a")
    assert sorted(manifest.files) == ["model.safetensors", "training/state.json"]
    assert latest(path.parent, must_not_speak) == path
    assert [p.name for p in path.parent.iterdir()] == ["step-000123"]  # nothing is left beside it


def test_everything_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    events, real_fsync, real_rename = [], os.fsync, os.rename
    target_of = lambda fd: Path(os.readlink(f"/proc/self/fd/{fd}")).name  # noqa: E731
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(target_of(fd)), real_fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), real_rename(a, b)))
    save(tmp_path, 1, "run", write_some)
    at = events.index("rename")
    needed = {"step-000001.partial", "model.safetensors", "training", "state.json", "manifest.json"}
    assert set(events[:at]) == needed
    assert events[at + 1 :] == [tmp_path.name]


def test_is_never_overwritten(tmp_path):
    save(tmp_path, 5, "run", write_some)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(
        CheckpointError, match=r"step-000005 exists, and a checkpoint is never overwritten\. Move it away"
    ):
        save(tmp_path, 5, "run", lambda folder: (folder / "other").write_text("other"))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_failed_write_leaves_no_checkpoint_and_loses_nothing(tmp_path):
    save(tmp_path, 1, "run", write_some)

    def disk_is_full(folder: Path) -> None:
        write_some(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, "run", disk_is_full)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]  # half a checkpoint would keep the disk full
    assert latest(tmp_path, must_not_speak).name == "step-000001"
    assert save(tmp_path, 2, "run", write_some).name == "step-000002"


def test_what_kills_have_left_is_deleted_by_the_next_save(tmp_path):
    for name in ("step-000001.partial", "step-000007.partial", "step-000003.removing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("x")
    (tmp_path / "step-000002.damaged-1").mkdir()
    save(tmp_path, 1, "run", write_some)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000002.damaged-1"]


def test_writing_nothing_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="holds no file; needs files"):
        save(tmp_path, 1, "run", lambda folder: None)


def test_set_aside_frees_the_name_and_keeps_the_bytes(tmp_path):
    path = save(tmp_path, 1, "run", write_some)
    aside = checkpoint.set_aside(path)
    assert aside.name == "step-000001.damaged-1"
    assert (aside / "model.safetensors").exists()
    assert steps(tmp_path) == {}
    assert checkpoint.set_aside(save(tmp_path, 1, "run", write_some)).name == "step-000001.damaged-2"


def test_the_best_is_kept_whatever_becomes_of_its_step(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, "run", write_some)
    best = keep_best(tmp_path, 1)
    assert best.name == "best-000001" and verify(best).step == 1
    assert best.joinpath("model.safetensors").samefile(tmp_path / "step-000001/model.safetensors")  # no second copy
    prune(tmp_path, "run", 1, must_not_speak)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-000001", "step-000003"]
    assert latest(tmp_path, must_not_speak) == tmp_path / "step-000003"
    assert keep_best(tmp_path, 1) == best  # again, as after a kill
    (tmp_path / "best-000003.partial").mkdir()
    (tmp_path / "best-000002.removing").mkdir()
    keep_best(tmp_path, 3)
    checkpoint.remove_interrupted(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-000003", "step-000003"]


def test_the_best_is_copied_where_there_are_no_links(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    save(tmp_path, 1, "run", write_some)
    assert verify(keep_best(tmp_path, 1)).step == 1


def test_prune_deletes_only_older_complete_ones_of_this_run(tmp_path):
    save(tmp_path, 1, "another run", write_some)
    for step in range(2, 8):
        save(tmp_path, step, "run", write_some)
    os.truncate(tmp_path / "step-000003" / "model.safetensors", 1)
    (tmp_path / "step-000004" / "notes.txt").write_text("mine")
    (tmp_path / "step-000008.damaged-1").mkdir()
    said: list[str] = []
    prune(tmp_path, "run", 2, said.append)
    names = sorted(p.name for p in tmp_path.iterdir())
    kept = ["step-000001", "step-000003", "step-000004", "step-000006", "step-000007", "step-000008.damaged-1"]
    assert names == kept
    assert len(said) == 1
    assert "step-000003" in said[0]
    assert "has 1 bytes" in said[0]


# ---- by several processes


def write_part(partial: Path, rank: int) -> None:
    (partial / f"{rank}.bin").write_bytes(bytes([rank]) * 100)
    hand_in(partial, rank, [f"{rank}.bin"], {"rank": rank})


def test_all_hand_in_and_the_first_commits(tmp_path):
    partial = begin(tmp_path, 7)
    later = [threading.Timer(delay, write_part, (partial, rank)) for rank, delay in ((0, 0.1), (1, 0.2), (2, 0))]
    for timer in later:
        timer.start()
    files, told = handed_in(partial, 3, lambda: False)
    assert told == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
    assert sorted(files) == ["0.bin", "1.bin", "2.bin"]
    (partial / "config.json").write_text("{}")
    assert steps(tmp_path) == {}
    path = commit(partial, "run", files)
    assert set(verify(path).files) == {"0.bin", "1.bin", "2.bin", "config.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["step-000007"]


def test_nobody_waits_for_what_was_given_up(tmp_path):
    partial = begin(tmp_path, 7)
    write_part(partial, 0)
    with pytest.raises(CheckpointError, match=r"lacks what process 1 was to write: the save was given up"):
        handed_in(partial, 2, lambda: True)
    give_up(partial)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["another machine's disk", "cut short"])
def test_a_part_that_is_not_there_is_no_checkpoint(tmp_path, what):
    partial = begin(tmp_path, 7)
    write_part(partial, 0)
    files, _ = handed_in(partial, 1, lambda: False)
    if what == "cut short":
        os.truncate(partial / "0.bin", 5)
    else:
        (partial / "0.bin").unlink()
        (partial / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"lacks 0\.bin, which another process wrote\. All machines of a run"):
        commit(partial, "run", files)
    assert steps(tmp_path) == {}


def test_two_that_write_the_same_are_refused(tmp_path):
    partial = begin(tmp_path, 7)
    (partial / "a").write_text("a")
    for rank in range(2):
        hand_in(partial, rank, ["a"], None)
    with pytest.raises(CheckpointError, match="a was written by several processes"):
        handed_in(partial, 2, lambda: False)


KILLED_SAVES = """
import os, random, signal, sys, time
from pathlib import Path
from eagle_model import checkpoints
from eagle_model.train import checkpoint

def write_step(step):
    def write(folder):
        for name in ("a", "b"):
            with open(folder / name, "wb") as file:
                for _ in range(64):
                    file.write(bytes([step % 256]) * 4096)
    return write

def save_and_prune(folder, step):
    checkpoint.save(folder, step, "run", write_step(step))
    checkpoint.prune(folder, "run", 2, print)

def die_before(number):  # before the number-th call that changes names or reaches the disk
    left = [number]
    def counting(real):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        return call
    for name in ("fsync", "rename", "mkdir", "rmdir", "unlink"):
        setattr(os, name, counting(getattr(os, name)))

def check(folder, at_least):
    newest = checkpoints.latest(folder, lambda message: sys.exit("passed over: " + message))
    step = checkpoints.verify(newest).step
    assert newest.name == f"step-{step:06d}" and step >= at_least, (newest, at_least)
    assert (newest / "b").read_bytes() == bytes([step % 256]) * (64 * 4096)
    return step

folder, kills = Path(sys.argv[1]), 0
for step in (1, 2):
    save_and_prune(folder, step)
newest = 2
for number in range(1, 100):
    if (child := os.fork()) == 0:
        die_before(number)
        save_and_prune(folder, newest + 1)
        os._exit(0)
    killed = os.waitpid(child, 0)[1] == signal.SIGKILL
    kills += killed
    newest = check(folder, newest)
    if not killed:
        break
assert 15 < kills < 99, kills  # every call of a save was a place to die, and then it came through
chance = random.Random(0)
for _ in range(40):
    if (child := os.fork()) == 0:
        step = newest
        while True:
            step += 1
            save_and_prune(folder, step)
    time.sleep(chance.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    newest = check(folder, newest)
print("newest", newest)
"""


def test_a_kill_at_any_moment_leaves_a_loadable_checkpoint(tmp_path):
    """SIGKILL before each file-system call of a save in turn, then at 40 random moments of a stream of saves."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED_SAVES, tmp_path], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert int(done.stdout.split()[-1]) > 3  # saves went through between the kills


BANNED = {  # modules and names that unpickle what they read, or pickle what they write
    "pickle", "_pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "torch.load", "torch.save",
    "torch.serialization", "torch.distributed.checkpoint", "torch.distributed.rpc", "torch.hub", "numpy.lib.format",
}  # fmt: skip
BANNED_CALLS = {  # whatever they are called on: collectives of objects pickle them
    "all_gather_object", "gather_object", "scatter_object_list", "broadcast_object_list", "send_object_list",
    "recv_object_list", "async_save", "load_state_dict_from_url", "allow_pickle", "weights_only",
}  # fmt: skip


def names_in(node: ast.AST) -> list[str]:
    """What a node of a syntax tree imports, reads or passes by name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Attribute):
        return [ast.unparse(node)]
    return [node.arg or ""] if isinstance(node, ast.keyword) else []


def is_banned(name: str) -> bool:
    return any(name == ban or name.startswith(f"{ban}.") for ban in BANNED) or name.split(".")[-1] in BANNED_CALLS


def test_nothing_in_the_tree_can_unpickle():
    """No import of pickle or of what loads pickles, no torch.load, no torch.save, no torch.distributed.checkpoint, no
    collective of objects."""
    found = []
    for package in ("eagle_kernels", "eagle_model", "bench", "examples"):
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                found += [
                    f"{file.relative_to(ROOT)}:{node.lineno}: {name}" for name in names_in(node) if is_banned(name)
                ]
    assert found == []
    source = """
import pickle
from torch.distributed import checkpoint
from torch import load
torch.distributed.checkpoint.save({})
dist.all_gather_object(found, 1)
np.load(path, allow_pickle=True)
"""
    caught = {node.lineno for node in ast.walk(ast.parse(source)) if any(map(is_banned, names_in(node)))}
    assert caught == {2, 3, 4, 5, 6, 7}  # the walk sees what it is to see
