"""Processes that hang, die or fail: what is said and written, and that all end."""

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from eagle_model.train import watchdog as module
from eagle_model.train.layout import Layout
from eagle_model.train.ranks import start
from eagle_model.train.watchdog import ENDED, Watchdog
from tests.ranks import RanksError, run


def quickly() -> None:
    module.GRACE_SECONDS, module.TELL_SECONDS, module.LOOK_SECONDS = 0.3, 2.0, 0.1


def test_alone_it_writes_the_stacks_of_a_hang_and_ends(tmp_path, monkeypatch):
    for name, seconds in (("GRACE_SECONDS", 0.1), ("TELL_SECONDS", 0.1), ("LOOK_SECONDS", 0.05)):
        monkeypatch.setattr(module, name, seconds)
    said, codes = [], []

    def waits_for_ever():
        until = time.monotonic() + 20
        while not codes and time.monotonic() < until:
            time.sleep(0.02)

    with Watchdog(
        tmp_path, start(Layout(), "cpu"), seconds=0.4, say=said.append, end=lambda code: codes.append(code)
    ) as dog:
        for k in range(6):  # longer than the limit, but it goes on
            dog.at(f"row {k}")
            time.sleep(0.1)
        assert codes == []
        dog.at("step 7, row 3")
        waits_for_ever()
    assert codes == [ENDED] and len(said) == 1
    assert "Training hangs. Stacks of all threads: " in said[0]
    assert "rank 0: at step 7, row 3, test_watchdog.py:" in said[0] and "in waits_for_ever" in said[0]
    (path,) = tmp_path.glob("stacks-*/rank-0000.txt")
    text = path.read_text()
    assert "what: step 7, row 3\n" in text and f"pid: {os.getpid()}\n" in text
    assert "in waits_for_ever" in text and "eagle_model/train/watchdog.py" in text  # of all threads


def test_without_a_limit_nothing_is_late(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    with Watchdog(tmp_path, start(Layout(), "cpu"), seconds=None, say=print, end=pytest.fail):
        time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_stopped_itself_has_not_hung(tmp_path, monkeypatch):
    """As by Ctrl-Z: the clock went on, and nobody looked at it."""
    clock, jump = time.monotonic, [0.0]
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock() + jump[0])
    codes = []
    with Watchdog(tmp_path, start(Layout(), "cpu"), seconds=100.0, say=print, end=codes.append) as dog:
        dog.at("step 1, row 0")
        time.sleep(0.1)
        jump[0] = 1000.0
        time.sleep(0.2)
        assert codes == [] and list(tmp_path.iterdir()) == []


def training(folder, how):
    """Three ranks, of which the last does something else than the others."""
    quickly()
    ranks = start(Layout(shard=3), "cpu")
    with Watchdog(Path(folder), ranks, seconds=1.0 if how == "sleeps" else 60.0, say=print) as dog:
        dog.at("step 1, row 0")
        ranks.barrier()
        if ranks.rank == 2:
            if how == "sleeps":
                time.sleep(60)
            if how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "raises":
                raise LookupError("nothing there")
        if how == "ends":
            return "ended"
        time.sleep(60)


def test_ranks_that_end_say_nothing(tmp_path):
    assert run(training, 3, str(tmp_path), "ends") == ["ended"] * 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("dies", "Rank 2 has ended without a word, as where it was killed; rank 0 was at step 1, row 0. The other"),
        ("raises", "Rank 2 failed: LookupError: nothing there. The other processes end too."),
    ],
    ids=["dies", "raises"],
)
def test_a_rank_that_is_lost_takes_the_others_down(tmp_path, how, said):
    begin = time.monotonic()
    with pytest.raises(RanksError) as ended:
        run(training, 3, str(tmp_path), how)
    assert time.monotonic() - begin < 20
    text = str(ended.value)
    assert text.count(f"exit status {ENDED}") == 2 and said in text
    assert f"Rank 1 ends: {said}" in text and "Rank 0 ends" not in text


def test_a_hang_is_shown_of_all_ranks(tmp_path):
    with pytest.raises(RanksError) as ended:
        run(training, 3, str(tmp_path), "sleeps")
    text = str(ended.value)
    assert text.count(f"exit status {ENDED}") == 3
    assert text.count("Training hangs. Stacks of all threads: ") == 3  # the first says it, the others why they end
    for ranks in ("0, 1", "2"):
        assert re.search(rf"rank {ranks}: at step 1, row 0, test_watchdog\.py:\d+ in training", text)
    (folder,) = tmp_path.glob("stacks-*")
    assert sorted(path.name for path in folder.iterdir()) == [f"rank-000{rank}.txt" for rank in range(3)]
    assert "in training" in (folder / "rank-0002.txt").read_text()


def first_is_lost(folder):
    quickly()
    ranks = start(Layout(shard=2), "cpu")
    with Watchdog(Path(folder), ranks, seconds=60.0, say=print) as dog:
        dog.at("step 1, row 0")
        ranks.barrier()
        if ranks.is_first:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)


def test_the_first_s_death_is_noticed_too(tmp_path):
    with pytest.raises(
        RanksError, match=r"Rank 0 has ended without a word(?s:.*)exit status 75|exit status 75(?s:.*)Rank 0 has"
    ):
        run(first_is_lost, 2, str(tmp_path))


def test_strangers_are_sent_away():
    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()
    stranger, known = (socket.create_connection(address) for _ in range(2))
    stranger.sendall(b'{"rank": 1, "token": "guessed"}\n')
    known.sendall(b'{"rank": 1, "token": "told"}\n')
    peers = module._accept(listening, 1, "told")
    assert list(peers) == [1] and stranger.recv(10) == b""
    known.sendall(b"\x00 no JSON\n")
    assert peers[1].read() == ([], False)
    for connection in (stranger, known, peers[1].connection):
        connection.close()


def test_a_rank_that_does_not_connect_is_refused(monkeypatch):
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.1)
    with pytest.raises(ValueError, match="2 of 2 processes did not connect to the first within 0 s"):
        module._accept(socket.create_server(("127.0.0.1", 0)), 2, "told")
