"""Three numbers stand for an array of times, bit for bit; what is uneven stays an array."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_model.data.frame_times import EvenTimes, frame_times
from eagle_model.data.sampling import SamplingConfig, evenly, max_frames_of

TICKS = st.sampled_from([1 / 15_360, 1 / 90_000, 1e-3, 1001 / 30_000, 1 / 24, 1.0])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 4000), TICKS, st.data())
def test_even_times_are_their_array(num: int, step: int, tick: float, data: st.DataObject) -> None:
    ticks = np.arange(num) * step
    times, array = frame_times(ticks, tick), ticks * tick
    assert isinstance(times, EvenTimes)
    begin = data.draw(st.integers(0, num - 1))
    end = data.draw(st.integers(begin + 1, num))
    times, array = times[begin:end], array[begin:end]
    assert np.asarray(times).tolist() == array.tolist()
    assert (len(times), times[0], times[-1]) == (len(array), array[0], array[-1])
    wanted = np.sort(
        np.concatenate([array, np.nextafter(array, 9e9), np.nextafter(array, -1), array + step * tick / 3])
    )
    for side in ("left", "right"):
        assert times.searchsorted(wanted, side=side).tolist() == array.searchsorted(wanted, side=side).tolist()
    assert times.searchsorted(wanted[0]) == array.searchsorted(wanted[0])
    few = data.draw(st.integers(1, len(array)))
    assert evenly(times, few).tolist() == evenly(array, few).tolist()
    assert max_frames_of(times, SamplingConfig()) == max_frames_of(array, SamplingConfig())


def test_uneven_times_stay_an_array() -> None:
    assert frame_times(np.array([0, 33, 67, 100]), 1e-3).tolist() == [0.0, 0.033, 0.067, 0.1]
    assert isinstance(frame_times(np.array([0, 0, 0]), 1e-3), np.ndarray)
