"""Rows of an epoch: whole, repeatable, different each epoch, the same from wherever one begins, neighbours alike."""

from __future__ import annotations

import threading
import time
from itertools import islice, pairwise

import numpy as np
import pytest

from bench.mix import mixed_samples
from eagle_model.data import schedule as schedule_module
from eagle_model.data.schedule import Place, Schedule, training_cost, waves

LENGTHS = [10 + 7 * i % 40 for i in range(60)]


def schedule(seed: int = 0, **options: int) -> Schedule:
    return Schedule(LENGTHS, 100, seed=seed, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("block_samples", [7, 1000])
def test_an_epoch_shows_each_sample_once_and_fills_no_row_too_full(block_samples: int) -> None:
    for epoch in range(3):
        rows = schedule(block_samples=block_samples).rows(epoch)
        assert sorted(i for row in rows for i in row) == list(range(60))
        assert max(sum(LENGTHS[i] for i in row) for row in rows) <= 100


def test_epochs_and_seeds_differ_and_repeat() -> None:
    one = schedule(block_samples=15)
    epochs = [one.rows(epoch) for epoch in range(5)]
    assert all(a != b for a, b in pairwise(epochs))
    assert [one.rows(epoch) for epoch in reversed(range(5))] == epochs[::-1]
    assert schedule(block_samples=15).rows(4) == epochs[4]
    assert schedule(seed=1, block_samples=15).rows(0) != epochs[0]
    assert [one.num_rows(epoch) for epoch in range(5)] == [len(rows) for rows in epochs]


@pytest.mark.parametrize("block_samples", [15, 1000])
def test_rows_from_any_place_go_on_as_from_the_start(block_samples: int) -> None:
    whole = schedule(block_samples=block_samples)
    all_rows = list(islice(whole.rows_from(Place()), 50))
    num_rows = whole.num_rows(0)
    assert [row.samples for row in all_rows[:num_rows]] == whole.rows(0)
    assert [row.place.rows_before + row.place.row for row in all_rows[:num_rows]] == list(range(num_rows))
    assert all_rows[num_rows].place == Place(epoch=1)
    assert all_rows[num_rows].samples == whole.rows(1)[0]
    for k in range(40):
        for place in (all_rows[k].place, all_rows[k - 1].after if k else Place()):  # after a block's last row too
            got = list(islice(schedule(block_samples=block_samples).rows_from(place), 10))
            assert got == all_rows[k : k + 10]


def test_a_block_is_packed_ahead_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    pack = schedule_module.pack

    def counted(*args: object, **options: object) -> object:
        threads.append(threading.current_thread())
        return pack(*args, **options)  # type: ignore[arg-type]

    def packed() -> int:
        """Blocks of this schedule: others may still have one to pack."""
        return sum(thread in one._thread._threads for thread in threads)

    monkeypatch.setattr(schedule_module, "pack", counted)
    one = schedule(block_samples=15)
    next(one.rows_from(Place()))
    deadline = time.monotonic() + 10
    while packed() < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert packed() == 2
    (thread,) = one._thread._threads
    assert thread is not threading.current_thread() and thread.name.startswith("eagle-packing")
    one.close()
    assert not thread.is_alive()


def test_waves_go_up_and_down() -> None:
    assert waves([5, 1, 3, 9, 7, 8, 2, 4], 3) == [1, 2, 0, 3, 5, 4, 6, 7]
    assert waves([2, 1], 1) == [0, 1]
    assert waves([], 4) == []


@pytest.mark.parametrize("context_tokens", [32_768, 131_072])
def test_the_committed_mix_fills_rows_and_ranks_share_it_evenly(context_tokens: int) -> None:
    """8 ranks, steps of 64 rows: what the dearest rank does in a round, and in a step, against the mean one."""
    tokens, tiles, seconds = mixed_samples(20_000, context_tokens)
    counts = {"tokens": tokens, "tiles": tiles, "seconds": seconds, "cost": training_cost(tokens, tiles)}
    excess: dict[int, dict[str, tuple[float, float]]] = {}
    for rows_per_step in (1, 64):
        rows = Schedule(
            tokens, context_tokens, seed=0, tiles_N=tiles, decode_seconds_N=seconds, rows_per_step=rows_per_step
        ).rows(0)
        assert tokens.sum() / (len(rows) * context_tokens) >= 0.99
        excess[rows_per_step] = {name: excess_of([of[row].sum() for row in rows]) for name, of in counts.items()}
    shuffled, waved = excess[1], excess[64]
    assert waved["tokens"][0] < 0.005
    assert waved["cost"][0] < 0.6 * shuffled["cost"][0] and waved["cost"][1] < 0.5 * shuffled["cost"][1]
    assert waved["tiles"][1] < 0.06 and waved["tiles"][1] < 0.9 * shuffled["tiles"][1]
    assert waved["seconds"][1] < 0.06 and waved["seconds"][1] < 0.9 * shuffled["seconds"][1]


def excess_of(sums: list[float]) -> tuple[float, float]:
    """By how much the most of 8 ranks is above their mean: in a round of a row each, in a step of 8 rounds."""
    rounds = np.array(sums)[: len(sums) // 64 * 64].reshape(-1, 8, 8)
    steps = rounds.sum(1)
    return float((rounds.max(2) / rounds.mean(2)).mean() - 1), float((steps.max(1) / steps.mean(1)).mean() - 1)
