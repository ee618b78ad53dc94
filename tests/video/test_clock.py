"""Runs of packets that agree on one clock, and times that rise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from eagle_kernels.video.clock import Stored, one_after_another, runs, spread
from eagle_kernels.video.info import NO_TIME

PYRAMID = [0, 4, 2, 1, 3, 8, 6, 5, 7]  # the times of a group of pictures, in the order of storage


def stored(pts: list[int], keys: list[int], shown: list[bool] | None = None) -> Stored:
    num = len(pts)
    flags = np.zeros(num, np.bool_)
    is_key = flags.copy()
    is_key[keys] = True
    return Stored(
        np.array(pts, np.int64),
        np.full(num, NO_TIME),
        np.ones(num, np.int64),
        np.arange(num),
        is_key,
        flags,
        np.ones(num, np.bool_) if shown is None else np.array(shown),
        flags,
    )


def starts(made: Stored, *, reorders: bool, dts: list[int] | None = None) -> list[int]:
    times = None if dts is None else np.array(dts, np.int64)
    return runs(made.pts_D, made.is_key_D, made.is_shown_D, times, reorders=reorders)


def test_an_ordinary_file_is_one_run() -> None:
    pts = PYRAMID + [9 + t for t in PYRAMID]
    assert starts(stored(pts, [0, 9]), reorders=True) == [0]
    assert starts(stored(pts, list(range(18))), reorders=True) == [0], "every packet is called a key frame"
    assert starts(stored([5, 3, 4, *range(6, 20)], [0]), reorders=True) == [0], "leading pictures"
    assert starts(stored([0, 1, 1, 2], [0, 2], [True, False, True, True]), reorders=False) == [0], "VP8: not shown"


def test_a_film_that_begins_anew_is_a_run_of_its_own() -> None:
    assert starts(stored(PYRAMID * 3, [0, 9, 18]), reorders=True) == [0, 9, 18]
    assert starts(stored([*range(40), *range(20, 60)], [0, 40]), reorders=True) == [0, 40], "between others' times"
    assert starts(stored([*range(40), *range(30, 60)], [0, 40]), reorders=True) == [0], "may be reordered"
    dts = [*range(-2, 38), *range(28, 58)]
    assert starts(stored([*range(40), *range(30, 60)], [0, 40]), reorders=True, dts=dts) == [0, 40]
    assert starts(stored([0, 1, 2, 2, 3], [0, 3]), reorders=False) == [0, 3]


def test_runs_go_on_where_the_one_before_ends() -> None:
    made = stored([*PYRAMID, *(100 + t for t in PYRAMID), *PYRAMID], [0, 9, 18])
    moved = one_after_another(made, [0, 9, 18])
    assert sorted(moved.tolist()) == list(range(27))
    assert moved[:9].tolist() == PYRAMID
    hidden = stored([0, 1, NO_TIME, 0, 1], [0, 3])
    assert one_after_another(hidden, [0, 3]).tolist() == [0, 1, NO_TIME, 2, 3]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40))
def test_spread_times_rise_and_stay_where_they_were(times: list[int]) -> None:
    found = spread(np.array(times, np.int64))
    most = int(np.unique(np.maximum.accumulate(times), return_counts=True)[1].max())
    if found is None:
        assert most > 8
        return
    spread_N, finer = found
    assert finer == most
    assert bool((np.diff(spread_N) > 0).all())
    assert (spread_N // finer).tolist() == np.maximum.accumulate(times).tolist()


def test_two_fields_are_one_packet() -> None:
    made = stored([0, 1, 2, 3, 4], [0])._replace(
        is_second_field_D=np.array([False, True, False, False, True]),
        is_corrupt_D=np.array([False, True, False, False, False]),
    )
    joined = made.joined()
    assert joined.pts_D.tolist() == [0, 2, 3]
    assert joined.duration_D.tolist() == [2, 1, 2]
    assert joined.is_corrupt_D.tolist() == [True, False, False]


@pytest.mark.parametrize("num", [20_000])
def test_many_runs_take_linear_time(num: int) -> None:
    pts: NDArray[np.int64] = np.tile(np.arange(2), num)
    found = runs(pts, np.ones(2 * num, np.bool_), np.ones(2 * num, np.bool_), None, reorders=False)
    assert len(found) == num
