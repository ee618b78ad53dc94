"""Saves in a thread: training waits for the copy alone, errors come back, and one save is complete before the next."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest
import torch

from eagle_model.checkpoints import CheckpointError, steps, verify
from eagle_model.train import saver as saver_module
from eagle_model.train.layout import Layout
from eagle_model.train.ranks import start
from eagle_model.train.saver import Saver
from tests.ranks import RanksError, run


class Share:
    """A file of this process's rank; `gate` holds its writing up."""

    def __init__(self, rank: int = 0, gate: threading.Event | None = None, error: Exception | None = None) -> None:
        self.rank, self.gate, self.error = rank, gate, error
        self.rows = {"w": [rank, 1]}

    def write(self, folder: Path) -> list[str]:
        if self.gate is not None:
            assert self.gate.wait(30)
        (folder / f"{self.rank}.bin").write_bytes(bytes([self.rank]) * 1000)
        if self.error is not None:
            raise self.error
        return [f"{self.rank}.bin"]


def nothing(*_: object) -> None:
    pass


def new(folder: Path, *, in_background: bool = True) -> Saver:
    return Saver(folder, "run", start(Layout(), "cpu"), in_background=in_background)


def test_training_goes_on_while_it_is_written_and_the_next_save_waits(tmp_path):
    saver, gate, order = new(tmp_path), threading.Event(), []
    saver.begin(1, lambda staging: Share(gate=gate), rest=nothing, then=lambda: order.append("complete"))
    assert steps(tmp_path) == {} and saver.saved_step == 0
    saver.check()
    threading.Timer(0.2, gate.set).start()

    def take(staging):
        order.append("copied")
        return Share()

    saver.begin(2, take, rest=nothing, then=nothing)
    assert order == ["complete", "copied"]
    assert 1 in steps(tmp_path)
    saver.wait()
    assert list(steps(tmp_path)) == [1, 2] and saver.saved_step == 2
    assert saver.longest_seconds >= 0.2
    saver.close()
    for path in steps(tmp_path).values():
        assert set(verify(path).files) == {"0.bin"}


def test_what_is_copied_later_is_copied_before_anything_may_change(tmp_path, monkeypatch):
    saver, gate = new(tmp_path), threading.Event()
    finish = saver_module.Staging.finish

    def slow(staging) -> None:
        assert gate.wait(30)
        finish(staging)

    monkeypatch.setattr(saver_module.Staging, "finish", slow)
    weight, kept = torch.zeros(4), []

    def take(staging):
        kept.append(staging.copy(weight, later=True))
        return Share()

    saver.begin(1, take, rest=nothing, then=nothing)
    opener = threading.Timer(0.2, gate.set)
    opener.start()
    saver.copied()
    weight += 1
    assert gate.is_set() and kept[0].tolist() == [0] * 4
    saver.wait()
    saver.copied()  # nothing is being copied
    saver.close()
    assert list(steps(tmp_path)) == [1]


def test_a_copy_that_fails_lets_training_go_on_to_hear_of_it(tmp_path, monkeypatch):
    saver = new(tmp_path)

    def fail(staging) -> None:
        raise RuntimeError("no copy")

    monkeypatch.setattr(saver_module.Staging, "finish", fail)
    saver.begin(1, lambda staging: Share(), rest=nothing, then=nothing)
    saver.copied()
    with pytest.raises(RuntimeError, match="no copy"):
        until_it_raises(saver.check)
    assert list(tmp_path.iterdir()) == []
    saver.close()


def test_without_a_background_it_is_complete_at_once(tmp_path):
    saver = new(tmp_path, in_background=False)
    saver.begin(1, lambda staging: Share() if staging is None else None, rest=nothing, then=nothing)
    assert list(steps(tmp_path)) == [1] and saver.saved_step == 1
    saver.close()


def test_the_rest_is_written_when_all_shares_are_there(tmp_path):
    saver, seen = new(tmp_path), []

    def rest(folder: Path, share: Share, rows) -> None:
        seen.append((share.rank, list(rows), sorted(path.name for path in folder.iterdir())))
        (folder / "config.json").write_text("{}")

    saver.begin(3, lambda staging: Share(), rest=rest, then=nothing)
    saver.wait()
    saver.close()
    assert seen == [(0, [{"w": [0, 1]}], ["0.bin"])]
    assert set(verify(tmp_path / "step-000003").files) == {"0.bin", "config.json"}


def until_it_raises(check) -> None:
    for _ in range(5000):
        check()
        time.sleep(0.002)


@pytest.mark.parametrize("where", ["share", "rest", "take"])
@pytest.mark.parametrize("asked_by", ["check", "begin", "wait"])
def test_what_went_wrong_comes_back_and_nothing_is_left(tmp_path, where, asked_by):
    saver, full = new(tmp_path), OSError(errno.ENOSPC, "No space left on device")

    def fail(*_: object) -> None:
        raise full

    def begin() -> None:
        share = Share(error=full if where == "share" else None)
        take = fail if where == "take" else lambda staging: share
        saver.begin(1, take, rest=fail if where == "rest" else nothing, then=nothing)

    if where == "take":
        with pytest.raises(OSError, match="No space left"):
            begin()
    else:
        begin()
        ask = {
            "check": lambda: until_it_raises(saver.check),
            "begin": lambda: saver.begin(2, lambda staging: Share(), rest=nothing, then=nothing),
            "wait": saver.wait,
        }[asked_by]
        with pytest.raises(OSError, match="No space left"):
            ask()
    assert list(tmp_path.iterdir()) == [] and saver.saved_step == 0
    saver.begin(1, lambda staging: Share(), rest=nothing, then=nothing)  # with room it goes on
    saver.wait()
    saver.close()
    assert list(steps(tmp_path)) == [1]


def test_a_step_that_is_there_is_left_as_it_is(tmp_path):
    saver = new(tmp_path)
    saver.begin(1, lambda staging: Share(), rest=nothing, then=nothing)
    with pytest.raises(CheckpointError, match=r"step-000001 exists, and a checkpoint is never overwritten"):
        saver.begin(1, lambda staging: Share(), rest=nothing, then=nothing)
    saver.wait()
    assert saver.saved_step == 1
    saver.close()
    assert list(steps(tmp_path)) == [1]


def test_a_trainer_that_fails_completes_what_it_has_begun(tmp_path):
    saver, gate = new(tmp_path), threading.Event()
    saver.begin(1, lambda staging: Share(gate=gate), rest=nothing, then=nothing)
    threading.Timer(0.1, gate.set).start()
    saver.close()
    assert list(steps(tmp_path)) == [1]
    saver.close()  # again


def test_what_is_done_afterwards_fails_and_the_checkpoint_stays(tmp_path):
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    saver = new(tmp_path)
    saver.begin(1, lambda staging: Share(), rest=nothing, then=fail)
    with pytest.raises(OSError, match="No space left"):
        saver.wait()
    assert list(steps(tmp_path)) == [1] and saver.saved_step == 1
    saver.close()


# ---- several processes


def save_in_three(folder: str, failing: int) -> list[str]:
    """Two saves; in the second, one process cannot write. What each heard."""
    ranks = start(Layout(shard=3), "cpu")
    saver, told = Saver(Path(folder), "run", ranks, in_background=True), []
    for step in (1, 2, 3):
        error = OSError(errno.ENOSPC, "No space left on device", "x") if (step, ranks.rank) == (2, failing) else None
        share = Share(ranks.rank, error=error)
        try:
            saver.begin(step, lambda staging, share=share: share, rest=nothing, then=nothing)
            saver.wait()
        except OSError as caught:
            told.append(str(caught))
    saver.close()
    return [*told, str(saver.saved_step)]


def test_one_that_cannot_write_is_told_of_by_all(tmp_path):
    told = run(save_in_three, 3, str(tmp_path), 1)
    assert told[1] == ["[Errno 28] No space left on device: 'x'", "3"]
    assert told[0] == told[2] == ["process 1: No space left on device (x)", "3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000001", "step-000003"]
    assert set(verify(tmp_path / "step-000001").files) == {"0.bin", "1.bin", "2.bin"}


def die_in_a_save(folder: str) -> None:
    ranks = start(Layout(shard=2), "cpu")
    saver_module.GRACE_SECONDS = 0.5
    saver = Saver(Path(folder), "run", ranks, in_background=True)
    saver.begin(1, lambda staging: Share(ranks.rank), rest=nothing, then=nothing)
    saver.wait()
    gate = threading.Event()
    saver.begin(2, lambda staging: Share(ranks.rank, gate if ranks.rank else None), rest=nothing, then=nothing)
    if ranks.rank:
        os._exit(7)
    saver.close()  # does not wait for ever
    assert list(steps(Path(folder))) == [1]


def test_a_process_that_dies_leaves_the_checkpoint_before(tmp_path):
    with pytest.raises(RanksError, match="rank 1: exit status 7"):
        run(die_in_a_save, 2, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    verify(tmp_path / "step-000001")
