"""Rows of an epoch: whole, repeatable, different each epoch, and the same from wherever one begins."""

from itertools import islice, pairwise

from eagle_model.data.schedule import Schedule

LENGTHS = [10 + 7 * i % 40 for i in range(60)]


def schedule(seed: int = 0) -> Schedule:
    return Schedule(LENGTHS, 100, seed=seed)


def test_an_epoch_shows_each_sample_once_and_fills_no_row_too_full() -> None:
    for epoch in range(3):
        rows = schedule().rows(epoch)
        assert sorted(i for row in rows for i in row) == list(range(60))
        assert max(sum(LENGTHS[i] for i in row) for row in rows) <= 100


def test_epochs_and_seeds_differ_and_repeat() -> None:
    one = schedule()
    epochs = [one.rows(epoch) for epoch in range(5)]
    assert all(a != b for a, b in pairwise(epochs))
    assert [one.rows(epoch) for epoch in reversed(range(5))] == epochs[::-1]
    assert schedule().rows(4) == epochs[4]
    assert schedule(seed=1).rows(0) != epochs[0]


def test_rows_from_any_place_go_on_as_from_the_start() -> None:
    all_rows = list(islice(schedule().rows_from(0, 0), 50))
    num_rows = len(schedule().rows(0))
    assert [(row.epoch, row.row) for row in all_rows[:num_rows]] == [(0, k) for k in range(num_rows)]
    assert all_rows[num_rows][:2] == (1, 0)
    assert all_rows[num_rows].samples == schedule().rows(1)[0]
    for k in range(40):
        epoch, row, _ = all_rows[k]
        assert list(islice(schedule().rows_from(epoch, row), 10)) == all_rows[k : k + 10]
    assert next(schedule().rows_from(0, num_rows)) == all_rows[num_rows]  # after the epoch's last row
