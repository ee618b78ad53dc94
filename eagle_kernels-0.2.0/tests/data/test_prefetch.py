"""Work done ahead keeps its order and its bound, gives its errors where they belong, and stops."""

import threading
import time
from concurrent.futures import CancelledError
from itertools import count

import pytest

from eagle_model.data.prefetch import Prefetch


def test_results_come_in_order_whatever_ends_first() -> None:
    def work(i: int) -> int:
        time.sleep(0.01 * (3 - i % 4))
        return i * i

    with Prefetch(4) as prefetch:
        got = [(item, future.result()) for item, future in prefetch.ahead(work, range(20), at_once=4)]
    assert got == [(i, i * i) for i in range(20)]


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_no_more_is_begun_than_asked(at_once: int) -> None:
    begun: list[int] = []
    with Prefetch(8) as prefetch:
        coming = prefetch.ahead(begun.append, count(), at_once=at_once)
        time.sleep(0.02)
        assert begun == []  # nothing before the first is asked for
        for k in range(3):
            next(coming)[1].result()
            deadline = time.monotonic() + 5
            while len(begun) < k + at_once and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)
            assert sorted(begun) == list(range(k + at_once))


def test_an_error_is_its_own_item_s_alone() -> None:
    def work(i: int) -> float:
        return 1 / i

    with Prefetch(2) as prefetch:
        futures = [future for _, future in prefetch.ahead(work, [1, 0, 2], at_once=2)]
    assert (futures[0].result(), futures[2].result()) == (1.0, 0.5)
    with pytest.raises(ZeroDivisionError):
        futures[1].result()


def test_what_waits_when_the_iterator_ends_is_never_begun() -> None:
    release, begun = threading.Event(), []

    def work(i: int) -> None:
        begun.append(i)
        release.wait(10)

    with Prefetch(1) as prefetch:
        coming = prefetch.ahead(work, range(5), at_once=4)
        _, first = next(coming)
        del coming
        release.set()
        first.result()
    assert begun == [0]


def test_close_stops_work_that_looks() -> None:
    started = threading.Event()

    def work(i: int) -> None:
        started.set()
        if prefetch.stop.wait(10):
            raise CancelledError

    prefetch = Prefetch(1)
    futures = [future for _, future in prefetch.ahead(work, range(2), at_once=5)]
    assert started.wait(10)
    begin = time.monotonic()
    prefetch.close()
    assert time.monotonic() - begin < 5
    for future in futures:
        with pytest.raises(CancelledError):
            future.result()
    prefetch.close()


def test_what_is_begun_and_not_given_out_is_no_larger_than_asked_unless_it_is_one() -> None:
    """Sizes 3, 4, 9, 2, 2: of at most 7 the first two are begun at once, the large one alone, the last two together."""
    begun: list[int] = []
    sizes = [3, 4, 9, 2, 2]
    with Prefetch(8) as prefetch:
        coming = prefetch.ahead(begun.append, range(5), at_once=8, size=sizes.__getitem__, max_size=7)
        for want in ([0, 1], [0, 1], [0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]):
            next(coming)[1].result()
            deadline = time.monotonic() + 5
            while len(begun) < len(want) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.02)
            assert sorted(begun) == want
        assert list(coming) == []
