"""The first signal asks, the second acts; an output that nobody reads asks too."""

import errno
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from eagle_model.train.stop import Stop


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt here even where the shell started us in the background, which ignores it."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


def test_the_first_signal_asks_the_second_acts(capfd):
    before = signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested and stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == "\nSIGINT: stopping after this step, then saving. Once more stops at once.\n"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_a_job_or_of_its_terminal_asks_too(number, capfd):
    before = signal.getsignal(number)
    with Stop() as stop:
        signal.raise_signal(number)
        assert stop.signal == number
    assert capfd.readouterr().err.startswith(f"\n{number.name}: stopping after this step")
    assert signal.getsignal(number) is before


def test_the_end_of_a_job_s_time_asks_as_sigterm_does(capfd):
    with Stop() as stop:
        stop.time_is_up()
        assert stop.signal == signal.SIGTERM
    assert capfd.readouterr().err == "time_limit_minutes is nearly over: saving, then stopping.\n"
    with Stop() as stop:
        signal.raise_signal(signal.SIGHUP)
        stop.time_is_up()
        assert stop.signal == signal.SIGHUP  # who asked first


def test_under_nohup_sighup_asks_nothing():
    inherited = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, inherited)


def test_a_terminal_that_is_gone_does_not_hinder_the_request(monkeypatch):
    def gone(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "write", gone)
    with Stop() as stop:
        signal.raise_signal(signal.SIGHUP)
    assert stop.signal == signal.SIGHUP


def test_a_reader_that_went_away_asks_once_and_is_told_no_more(capfd):
    tried: list[str] = []

    def say(message: str) -> None:
        tried.append(message)
        if len(tried) > 1:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    stop = Stop()
    guarded = stop.when_closed(say)
    guarded("a")
    assert not stop.requested
    guarded("b")
    guarded("c")
    assert (stop.signal, tried) == (signal.SIGPIPE, ["a", "b"])
    assert "The output cannot be written (Broken pipe): stopping after this step" in capfd.readouterr().err


def test_in_a_thread_there_are_no_handlers():
    seen: list[object] = []

    def use() -> None:
        with Stop() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGTERM))]


def test_of_several_processes_a_signal_that_comes_again_is_the_same_one(capfd, monkeypatch):
    """A scheduler sends it to all of them, and so does the launcher that it sends it to."""
    with Stop(is_alone=False) as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        monkeypatch.setattr("eagle_model.train.stop.REPEAT_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with Stop(is_first=False) as stop:
        signal.raise_signal(signal.SIGTERM)
    assert stop.requested
    assert capfd.readouterr().err.count("stopping after this step") == 1  # the first process speaks


def test_one_that_is_asked_asks_all():
    class Others:
        def __init__(self, *signals: int | None) -> None:
            self.signals = signals

        def gather(self, mine: int | None) -> list[int | None]:
            return [mine, *self.signals]

    stop = Stop()
    assert not stop.agreed(Others(None, None))
    assert stop.agreed(Others(None, int(signal.SIGTERM))) and stop.signal == signal.SIGTERM
    assert stop.agreed(Others(None, None))  # its own
