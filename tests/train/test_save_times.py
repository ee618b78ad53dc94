"""When the clock says to save, and that a job ends in time."""

import pytest

from eagle_model.train.save_times import SaveTimes


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_every_so_many_minutes_after_the_last_save():
    clock = Clock()
    times = SaveTimes(save_every_minutes=10, time_limit_minutes=None, clock=clock)
    assert times.looks_at_clock and not times.is_save_due and not times.is_up
    clock.seconds += 599
    assert not times.is_save_due
    clock.seconds += 1
    assert times.is_save_due
    times.saved()
    assert not times.is_save_due
    clock.seconds += 10_000_000
    assert times.is_save_due and not times.is_up
    assert not SaveTimes(save_every_minutes=None, time_limit_minutes=None).looks_at_clock


@pytest.mark.parametrize(
    ("minutes", "step_seconds", "save_seconds", "stops_after"),
    [
        (60, 100, 50, 33),  # 3600 - 60 of reserve - 2 * (100 + 50) = 3240
        (60, 100, 0, 34),
        (1, 1, 0, 52),  # 60 - a tenth - 2
        (60, 4000, 0, 1),  # later than the limit: at once
    ],
)
def test_stops_while_there_is_time_for_two_more_steps_and_saves(minutes, step_seconds, save_seconds, stops_after):
    clock = Clock()
    times = SaveTimes(save_every_minutes=None, time_limit_minutes=minutes, clock=clock)
    num_steps = 0
    while not times.is_up:
        clock.seconds += step_seconds
        times.step_done(longest_save_seconds=save_seconds)
        num_steps += 1
    assert num_steps == stops_after


def test_the_first_step_may_be_the_longest():
    """What is before it, planning among it, is no step's time; what compiles in it is."""
    clock = Clock()
    times = SaveTimes(save_every_minutes=None, time_limit_minutes=100, clock=clock)
    clock.seconds += 1000
    times.step_done(longest_save_seconds=0)
    for seconds in (700, 10, 10):
        clock.seconds += seconds
        times.step_done(longest_save_seconds=0)
    clock.seconds = 1000 + 6000 - 60 - 2 * 700 - 1
    assert not times.is_up
    clock.seconds += 1
    assert times.is_up
