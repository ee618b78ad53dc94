"""Worker processes read what threads read; one that is killed is named and replaced, and nothing is lost."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from itertools import islice
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tokenizers import Tokenizer

from eagle_model.data import workers as workers_module
from eagle_model.data.index import plan_recipe
from eagle_model.data.loader import DataConfig, Loader
from eagle_model.data.prefetch import Prefetch
from eagle_model.data.processor import Processor
from eagle_model.data.reader import Part, ReadOptions, Wanted, read_part
from eagle_model.data.sample import DataError
from eagle_model.data.workers import MAX_ENDS, WorkerError, Workers
from tests.data.conftest import chat_row, tiny_config
from tests.data.test_loader import assert_same

Recipe = Callable[..., Path]
MEDIA = [{}, {"image": "wide.png"}, {"video": "clip.mp4"}, {"image": "cut.png"}]
ROWS = [chat_row(f"Question {i}?", f"Answer {i}.", id=f"s{i}", **MEDIA[i % 4]) for i in range(16)]
STOP = threading.Event()


@pytest.fixture(scope="module")
def processor(tokenizer: Tokenizer) -> Processor:
    return Processor(tokenizer, tiny_config(context_tokens=512, max_frames=8))


def wanted(recipe: Path, processor: Processor) -> list[Wanted]:
    with Prefetch(2) as prefetch:
        index = plan_recipe(recipe, processor, prefetch)
    return [Wanted(k, plan, (0, plan.num_tiles)) for k in range(index.num_samples) for plan in [index.plan(k)]]


def assert_same_part(a: Part, b: Part) -> None:
    assert [(one.place, one.tiles, one.tokens.id) for one in a.samples] == [
        (one.place, one.tiles, one.tokens.id) for one in b.samples
    ]
    for one, other in zip(a.samples, b.samples, strict=True):
        for name in ("token_ids_T", "labels_T", "visual_positions_N"):
            assert torch.equal(getattr(one.tokens, name), getattr(other.tokens, name)), name
    assert torch.equal(a.patches_IPK, b.patches_IPK)
    assert {k: str(error) for k, error in a.failed.items()} == {k: str(error) for k, error in b.failed.items()}


def test_what_a_process_reads_and_what_happens_when_it_is_killed(recipe: Recipe, processor: Processor) -> None:
    """One worker for all of it: starting takes seconds."""
    asked, said = wanted(recipe(ROWS), processor), list[str]()
    here = read_part(processor, asked, ReadOptions(), stop=STOP)
    workers = Workers(1, processor, ReadOptions(), say=said.append)
    try:
        assert_same_part(workers.read(asked, stop=STOP), here)
        assert_same_part(workers.read(asked[:1], stop=STOP), read_part(processor, asked[:1], ReadOptions(), stop=STOP))
        first = workers.read(asked, stop=STOP, first_failure_ends=True)
        assert list(first.failed) == [3] and isinstance(first.failed[3], DataError)

        pid = workers.pids[0]
        os.kill(pid, signal.SIGKILL)
        begin = time.monotonic()
        assert_same_part(workers.read(asked, stop=STOP), here)
        assert said == [f"Data worker 0 (process {pid}) was ended by SIGKILL between rows; another takes over."]
        assert workers.pids != [pid] and time.monotonic() - begin < 60

        wrong = [asked[0]._replace(tiles=(0, 99))]
        with pytest.raises(WorkerError, match=r"(?s)data worker 0: Traceback .*load_sample: tiles are \(0, 99\)"):
            workers.read(wrong, stop=STOP)
        assert_same_part(workers.read(asked, stop=STOP), here)  # it goes on

        (pid,) = workers.pids
        stop = threading.Event()
        stop.set()
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(CancelledError):
            workers.read(asked, stop=stop)
    finally:
        workers.close()
    workers.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert all(one.tokens.token_ids_T.numel() for one in here.samples)


def test_workers_that_never_begin_are_an_error_that_says_what_to_do(
    recipe: Recipe, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "_Worker", _Scripted)
    monkeypatch.setattr(_Scripted, "has_started", False, raising=False)
    said: list[str] = []
    workers = Workers(1, processor, ReadOptions(), say=said.append)
    asked = wanted(recipe(ROWS), processor)
    _Scripted.script = [(None, "ended with status 1")] * MAX_ENDS
    with pytest.raises(WorkerError, match=r"ended with status 1 before it had begun, as 2 before it\. .*__main__"):
        workers.read(asked, stop=STOP)
    assert len(said) == MAX_ENDS - 1


class _Scripted:
    """A worker that reads in this process, and ends where the script says so."""

    script: ClassVar[list[tuple[int | None, str]]] = []  # place, how
    has_started = True

    def __init__(self, number: int, arguments: tuple) -> None:
        self.number = number
        self.process = type("Process", (), {"pid": 1000 + number})()

    def read(self, wanted: list[Wanted], first_failure_ends: bool, limits: dict[int, float], stop: object) -> Part:
        places = [one.place for one in wanted]
        if self.script and self.script[0][0] in [None, *places]:
            place, how = self.script.pop(0)
            raise workers_module._Ended(how, place, is_slow=how == "slow")
        return Part([], torch.empty(0), {})

    def end(self) -> None:
        pass


def test_a_sample_that_ends_worker_after_worker_or_takes_too_long_is_bad(
    recipe: Recipe, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "_Worker", _Scripted)
    asked, said = wanted(recipe(ROWS), processor), list[str]()
    workers = Workers(1, processor, ReadOptions(video_time_limit_seconds=7.0), say=said.append)
    _Scripted.script = [(2, "was ended by SIGSEGV")] * (MAX_ENDS - 1)
    assert not workers.read(asked, stop=STOP).failed
    assert said == ["Data worker 0 (process 1000) was ended by SIGSEGV at sample s2 "
                    f"({asked[2].plan.sample.where}); its row is read again."] * (MAX_ENDS - 1)  # fmt: skip
    _Scripted.script = [(2, "was ended by SIGSEGV")] * MAX_ENDS + [(6, "slow")]
    failed = workers.read(asked, stop=STOP).failed
    assert {k: str(error) for k, error in failed.items()} == {
        2: "sample s2: 3 worker processes that read it ended; the last was ended by SIGSEGV.",
        6: "sample s6: reading took more than 12 s, and was ended.",
    }
    assert "took too long at sample s6" in said[-1]


def test_a_loader_with_processes_gives_what_one_with_threads_gives(recipe: Recipe, processor: Processor) -> None:
    """Resumed in the middle, with another number of workers; quarantine and substitutes alike."""
    path = recipe(ROWS)
    threads = DataConfig(recipe=str(path), on_bad_sample="substitute")
    with Loader(threads, processor) as loader:
        want, states = [], []
        for batch in islice(loader, 2 * loader.num_rows):
            want.append(batch)
            states.append(loader.state_dict())
    processes = DataConfig(recipe=str(path), on_bad_sample="substitute", workers="process", num_workers=1)
    with Loader(processes, processor) as loader:
        loader.load_state_dict(states[0])
        for k, batch in enumerate(islice(loader, len(want) - 1), start=1):
            assert_same(batch, want[k])
            assert loader.state_dict() == states[k]
    assert len(states[-1]["skipped"]) == 4


@pytest.mark.slow
def test_workers_killed_at_random_change_nothing(recipe: Recipe, processor: Processor) -> None:
    """At any moment, but not more than one for each row that comes, for as long as it takes to kill 12."""
    rows = [chat_row(f"Question {i}?", id=f"s{i}", **MEDIA[i % 3]) for i in range(60)]
    path, said, rng = recipe(rows), list[str](), random.Random(0)
    config = DataConfig(recipe=str(path))
    with Loader(config, processor) as loader:
        want = list(islice(loader, loader.num_rows))
        start = loader.state_dict() | {"epoch": 0, "block": 0, "row": 0, "rows_before": 0}
    processes = DataConfig(recipe=str(path), workers="process", num_workers=3)
    is_over, longest, num_rows = threading.Event(), 0.0, 0

    def kill(workers: Workers) -> None:
        num_killed = 0
        while not is_over.wait(rng.uniform(0.02, 0.4)):
            if num_rows > num_killed:
                os.kill(rng.choice(workers.pids), signal.SIGKILL)
                num_killed = num_rows

    with Loader(processes, processor, say=said.append) as loader:
        next(loader)
        assert loader._workers is not None
        killer = threading.Thread(target=kill, args=(loader._workers,))
        killer.start()
        try:
            while len(said) < 12:
                loader.load_state_dict(start)
                for batch in want:
                    begin = time.monotonic()
                    assert_same(next(loader), batch)
                    longest, num_rows = max(longest, time.monotonic() - begin), num_rows + 1
        finally:
            is_over.set()
            killer.join()
    assert all("was ended by SIGKILL" in text for text in said)
    assert longest < 60  # a new worker imports what it needs: a second where nothing else runs
