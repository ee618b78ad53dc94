"""A substitute is of the same source, no longer, with no more tiles, and the same whoever asks."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle_model.data import substitutes as substitutes_module
from eagle_model.data.substitutes import MAX_ATTEMPTS, Substitutes


def test_the_next_shorter_ones_of_the_same_source() -> None:
    source_of = np.array([0, 0, 0, 0, 0, 1, 1])
    tokens = np.array([10, 30, 20, 20, 50, 20, 15])
    tiles = np.array([0, 1, 0, 2, 1, 0, 0])
    substitutes = Substitutes(source_of, tokens, tiles)
    assert [substitutes.of(4, attempt) for attempt in range(4)] == [1, 2, 0, None]  # 3 has too many tiles
    assert [substitutes.of(2, attempt) for attempt in range(2)] == [0, None]
    assert substitutes.of(0, 0) is None  # nothing is shorter
    assert substitutes.of(5, 0) == 6 and substitutes.of(6, 0) is None  # source 0 is no help


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=40))
def test_any_substitute_fits_where_its_sample_stood(samples: list[tuple[int, int, int]]) -> None:
    source_of, tokens, tiles = (np.array(column) for column in zip(*samples, strict=True))
    substitutes = Substitutes(source_of, tokens, tiles)
    for i in range(len(samples)):
        found = [j for attempt in range(MAX_ATTEMPTS + 2) if (j := substitutes.of(i, attempt)) is not None]
        assert i not in found and len(set(found)) == len(found) <= MAX_ATTEMPTS
        for j in found:
            assert source_of[j] == source_of[i] and tokens[j] <= tokens[i] and tiles[j] <= tiles[i]


def test_who_asks_while_another_thread_still_sorts_gets_the_right_one(monkeypatch: pytest.MonkeyPatch) -> None:
    substitutes = Substitutes(np.zeros(3, np.int64), np.array([3, 1, 2]), np.zeros(3, np.int64))
    is_sorting, may_go_on = threading.Event(), threading.Event()
    empty_like = np.empty_like

    def slow_once(array: np.ndarray) -> np.ndarray:
        if not is_sorting.is_set():
            is_sorting.set()
            may_go_on.wait(10)
        return empty_like(array)

    monkeypatch.setattr(substitutes_module.np, "empty_like", slow_once)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(substitutes.of, 0, 0)
        assert is_sorting.wait(10)
        second = substitutes.of(2, 0)
        may_go_on.set()
        assert (first.result(), second) == (2, 1)
