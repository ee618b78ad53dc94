"""The planner, on numbers alone: which frames a time may mean, which packets they take, what may be left out."""

import dataclasses
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_kernels.video.info import Orientation, PacketIndex, VideoInfo, describe
from eagle_kernels.video.plan import JOIN_PICTURES, choose_frames, frame_indices, plan


def make_index(num_frames: int = 120, group: int = 24, leading: int = 0) -> PacketIndex:
    """A frame every 40 ms, a key frame every `group`; `leading` of the frames before each are stored after it."""
    key_N = np.arange(0, num_frames, group)
    order = []
    for key in key_N.tolist():
        held = list(range(max(0, key - leading), key))
        order = [i for i in order if i not in held] + [key, *held, *range(key + 1, min(key + group, num_frames))]
    place_N = np.argsort(order)
    return PacketIndex(
        path=Path("made.mp4"),
        stream=0,
        codec="h264",
        time_base=Fraction(1, 25),
        pts_N=np.arange(num_frames),
        place_N=place_N.astype(np.int32),
        last_duration=1,
        key_pts_K=key_N,
        key_seek_K=key_N,
        key_place_K=place_N[key_N].astype(np.int32),
        scaled_width_px=64,
        scaled_height_px=48,
        orientation=Orientation(),
        rotation_degrees=0,
        damage=None,
        decoder_tells_keys=False,
        samples=None,
        clock=None,
    )


def described(index: PacketIndex) -> VideoInfo:
    return describe(dataclasses.replace(index))


def test_a_group_is_fed_as_far_as_its_last_frame_needs() -> None:
    index = make_index()
    assert plan(index, np.array([50, 52, 100])) == [(2, 48, 53, (50, 52)), (4, 96, 101, (100,))]
    assert plan(index, np.array([0])) == [(0, 0, 1, (0,))]
    assert plan(index, np.array([], np.int64)) == []


def test_leading_pictures_are_fed_from_the_group_before() -> None:
    index = make_index(leading=2)  # 46 and 47 are stored after 48
    assert plan(index, np.array([46]))[0] == (1, 22, 48, (46,))
    assert plan(index, np.array([48]))[0] == (2, 46, 47, (48,))


def test_a_seek_that_skips_little_is_none() -> None:
    index = make_index()
    near, far = 48 - JOIN_PICTURES - 1, 48 - JOIN_PICTURES - 2
    assert plan(index, np.array([near, 48])) == [(1, 24, 49, (near, 48))]
    assert [g.frames for g in plan(index, np.array([far, 48]))] == [(far,), (48,)]
    assert [g.frames for g in plan(index, np.array([near, 48]), join=False)] == [(near,), (48,)]


def test_going_back_starts_a_group_anew_and_repeats_do_not() -> None:
    index = make_index()
    assert [g.frames for g in plan(index, np.array([52, 50, 50, 55]))] == [(52,), (50, 50, 55)]


def test_before_the_first_key_frame_decoding_starts_with_the_file() -> None:
    index = dataclasses.replace(
        make_index(), key_pts_K=np.array([48]), key_seek_K=np.array([48]), key_place_K=np.array([48], np.int32)
    )
    assert plan(index, np.array([30, 50]), join=False) == [(-1, 0, 31, (30,)), (0, 48, 51, (50,))]
    none = np.array([], np.int64)
    without = dataclasses.replace(index, key_pts_K=none, key_seek_K=none, key_place_K=none.astype(np.int32))
    assert plan(without, np.array([30, 50])) == [(-1, 0, 51, (30, 50))]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 119), max_size=40),
    st.integers(1, 60),
    st.integers(0, 3),
    st.booleans(),
)
def test_every_frame_is_planned_in_order_and_fed(frames: list[int], group: int, leading: int, join: bool) -> None:
    index = make_index(group=group, leading=min(leading, group - 1))
    groups = plan(index, np.array(frames, np.int64), join=join)
    assert [i for g in groups for i in g.frames] == frames
    for g in groups:
        assert g.first_place == (index.key_place_K[g.key] if g.key >= 0 else 0)
        assert list(g.frames) == sorted(g.frames)
        assert g.end_place == max(index.place_N[list(g.frames)]) + 1, "not one packet more"
        assert all(g.first_place <= index.place_N[i] for i in g.frames)
        assert index.key_pts_K[g.key] <= index.pts_N[g.frames[0]]


def test_key_frames_are_the_nearest() -> None:
    index = make_index()
    info = described(index)
    asked = [0.0, 0.47, 0.48, 0.49, 1.0, 4.79]  # key frames at 0, 0.96, 1.92, 2.88, 3.84
    assert choose_frames(index, info, asked, seek="keyframe", tolerance=0.25).tolist() == [0, 0, 0, 24, 24, 96]


def test_without_a_key_frame_that_is_shown_the_exact_frame_is_given() -> None:
    index = dataclasses.replace(make_index(), key_pts_K=np.array([-5]), key_place_K=np.array([0], np.int32))
    assert choose_frames(index, described(index), [1.0], seek="keyframe", tolerance=0.25).tolist() == [25]


def packets_fed(index: PacketIndex, frames: np.ndarray) -> int:
    return sum(g.end_place - g.first_place for g in plan(index, frames))


def test_tolerance_takes_the_cheapest_within_reach() -> None:
    index = make_index(600)
    info = described(index)
    asked = np.linspace(0, 23, 24)  # 1 s apart, key frames 0.96 s apart
    exact = choose_frames(index, info, asked, seek="exact", tolerance=0.25)
    near = choose_frames(index, info, asked, seek="tolerance", tolerance=0.25)
    times = info.frame_times_seconds
    assert (np.abs(times[near] - asked) <= 0.25 + 1e-9).all()
    assert packets_fed(index, near) < packets_fed(index, exact) / 2
    assert choose_frames(index, info, asked, seek="tolerance", tolerance=0.0).tolist() == exact.tolist()
    assert choose_frames(index, info, [3.3], seek="tolerance", tolerance=0.5).tolist() == [82], (
        "one time has no spacing"
    )
    assert choose_frames(index, info, [], seek="tolerance", tolerance=0.5).tolist() == []


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0, 4.8), min_size=1, max_size=20),
    st.integers(1, 60),
    st.floats(0, 0.5),
)
def test_tolerance_stays_in_reach(asked: list[float], group: int, tolerance: float) -> None:
    index = make_index(group=group)
    info = described(index)
    near = choose_frames(index, info, asked, seek="tolerance", tolerance=tolerance)
    exact = choose_frames(index, info, asked, seek="exact", tolerance=tolerance)
    distinct = np.unique(asked)
    reach = tolerance * (distinct[-1] - distinct[0]) / max(1, len(distinct) - 1)
    is_near = np.abs(info.frame_times_seconds[near] - np.array(asked)) <= reach + 1e-6
    assert (is_near | (near == exact)).all()


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 119), min_size=1, max_size=40, unique=True),
    st.integers(1, 60),
    st.integers(0, 3),
    st.floats(0, 0.5),
)
def test_no_frame_serves_two_times_and_their_order_stays(
    frames: list[int], group: int, leading: int, tolerance: float
) -> None:
    """However uneven the times are, as those of a video of varying rate."""
    index = make_index(group=group, leading=min(leading, group - 1))
    info = described(index)
    asked = info.frame_times_seconds[sorted(frames)]
    chosen = choose_frames(index, info, asked, seek="tolerance", tolerance=tolerance)
    assert (np.diff(chosen) > 0).all()
    order = np.random.default_rng(len(frames)).permutation(len(frames))
    assert len(set(choose_frames(index, info, asked[order], seek="tolerance", tolerance=tolerance).tolist())) == len(
        frames
    )


@pytest.mark.parametrize(
    ("seek", "tolerance", "message"),
    [
        ("fast", 0.25, "seek is 'fast'; needs one of 'exact', 'keyframe', 'tolerance'"),
        ("tolerance", 0.6, r"tolerance is 0\.6; needs a share of the spacing, 0 to 0\.5"),
        ("tolerance", float("nan"), "tolerance is nan"),
    ],
)
def test_refuses_other_rules(seek: str, tolerance: float, message: str) -> None:
    index = make_index()
    with pytest.raises(ValueError, match=message):
        choose_frames(index, described(index), [0.0], seek=seek, tolerance=tolerance)


def test_a_time_just_before_a_frame_means_it() -> None:
    info = described(make_index())
    assert frame_indices(info, [0.04, 0.04 - 0.9e-6, 0.04 - 1.1e-6, -0.9e-6]).tolist() == [1, 1, 0, 0]
    rounded = [round(float(t), 6) for t in info.frame_times_seconds]
    assert frame_indices(info, rounded).tolist() == list(range(120))
    assert frame_indices(info, [info.duration_seconds]).tolist() == [119]
    assert frame_indices(info, []).tolist() == []


def test_times_closer_than_the_tolerance_are_told_apart() -> None:
    times = np.arange(10) * 1e-7
    info = dataclasses.replace(described(make_index()), frame_times_seconds=times, num_frames=10)
    assert frame_indices(info, times.tolist()).tolist() == list(range(10))
