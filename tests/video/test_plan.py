"""The planner, on numbers alone: which frames a time may mean, which packets they take, what may be left out."""

import dataclasses
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_kernels.video.info import Orientation, PacketIndex, VideoInfo
from eagle_kernels.video.plan import (
    JOIN_PICTURES,
    NalFormat,
    choose_frames,
    nal_format,
    needed,
    plan,
)
from eagle_kernels.video.probe import describe


def make_index(num_frames: int = 120, group: int = 24, leading: int = 0) -> PacketIndex:
    """A frame every 40 ms, a key frame every `group`; `leading` of the frames before each are stored behind it."""
    key_N = np.arange(0, num_frames, group)
    order = []
    for key in key_N.tolist():
        held = list(range(max(0, key - leading), key))
        order = [i for i in order if i not in held] + [key, *held, *range(key + 1, min(key + group, num_frames))]
    place_N = np.argsort(order)
    return PacketIndex(
        path=Path("made.mp4"),
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
        samples=None,
    )


def described(index: PacketIndex) -> VideoInfo:
    return describe(dataclasses.replace(index))


def test_a_group_is_fed_as_far_as_its_last_frame_needs() -> None:
    index = make_index()
    assert plan(index, np.array([50, 52, 100])) == [(2, 48, 53, (50, 52)), (4, 96, 101, (100,))]
    assert plan(index, np.array([0])) == [(0, 0, 1, (0,))]
    assert plan(index, np.array([], np.int64)) == []


def test_leading_pictures_are_fed_from_the_group_before() -> None:
    index = make_index(leading=2)  # 46 and 47 are stored behind 48
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


def nal_units(*units: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(unit)) + unit for unit in units)


AVC, AVC_START_CODES, HEVC = NalFormat("h264", 4, 0), NalFormat("h264", 0, 0), NalFormat("hevc", 4, 2)
SEI, SLICE, REF_SLICE, IDR, PPS = b"\x06\x01", b"\x01\x9a", b"\x41\x9a", b"\x65\x88", b"\x68\xce"
HEVC_SEI, HEVC_PPS, CRA = b"\x4e\x01", b"\x44\x01", b"\x2a\x01"


TSA, STSA = 2, 4  # as sub-layer non-reference pictures


def trail(layer: int, *, is_reference: bool, kind: int = 0) -> bytes:
    return bytes([(kind + is_reference) << 1, layer + 1])


@pytest.mark.parametrize(
    ("nal", "packet", "want"),
    [
        (AVC, nal_units(SLICE), False),
        (AVC, nal_units(SEI, SLICE, SLICE), False),
        (AVC, nal_units(REF_SLICE), True),
        (AVC, nal_units(SLICE, REF_SLICE), True),  # one field of two
        (AVC, nal_units(IDR), True),
        (AVC, nal_units(SEI), True),  # no picture
        (AVC, nal_units(PPS, SLICE), True),  # later pictures may go by it
        (AVC, nal_units(SLICE)[:-1], True),  # cut short
        (AVC, nal_units(SLICE) + b"\0\0\0\0", True),
        (AVC, b"", True),
        (AVC_START_CODES, b"\0\0\0\1" + SEI + b"\0\0\1" + SLICE, False),
        (AVC_START_CODES, b"\0\0\0\1" + SEI + b"\0\0\1" + REF_SLICE, True),
        (HEVC, nal_units(HEVC_SEI, trail(2, is_reference=False)), False),
        (HEVC, nal_units(trail(1, is_reference=False)), True),  # the layer above may refer to it
        (HEVC, nal_units(trail(2, is_reference=True)), True),
        (HEVC, nal_units(HEVC_PPS, trail(2, is_reference=False)), True),
        (HEVC, nal_units(trail(2, is_reference=False), trail(1, is_reference=False)), True),  # of no one layer
        (HEVC, nal_units(CRA), True),
        (HEVC, nal_units(trail(-1, is_reference=False)), True),  # no layer
    ],
)
def test_what_is_needed_whatever_is_wanted_behind_it(nal: NalFormat, packet: bytes, want: bool) -> None:
    for form in (packet, memoryview(packet)):
        assert needed([form], [False], nal, is_last=False) == [want]
        assert needed([form], [True], nal, is_last=True) == [True]


def test_layers_above_those_wanted_behind_are_not_needed() -> None:
    layers = [0, 2, 1, 2, 0, 2, 1, 2]
    packets = [nal_units(trail(layer, is_reference=layer < 2)) for layer in layers]

    def places(wanted: int) -> list[int]:
        keep = needed(packets, [i == wanted for i in range(8)], HEVC, is_last=True)
        return [i for i in range(8) if keep[i]]

    assert places(4) == [0, 4]
    assert places(6) == [0, 2, 4, 6]
    assert places(7) == [0, 2, 4, 6, 7]
    assert places(1) == [0, 1]


def test_a_picture_that_gives_access_to_its_layer_cuts_off_what_lies_before() -> None:
    layers = [0, 1, 2, 2, 1, 2, 2, 0, 1, 2, 2]

    def places(kinds: dict[int, int], wanted: int) -> list[int]:
        packets = [nal_units(trail(layers[i], is_reference=True, kind=kinds.get(i, 0))) for i in range(11)]
        keep = needed(packets, [i == wanted for i in range(11)], HEVC, is_last=True)
        return [i for i in range(11) if keep[i]]

    assert places({}, 10) == list(range(11))
    assert places({8: TSA}, 10) == [0, 7, 8, 9, 10]
    assert places({8: STSA}, 10) == list(range(11)), "layer 2 may refer back to layer 1 and 2"
    assert places({8: STSA, 9: STSA}, 10) == [0, 1, 4, 7, 8, 9, 10], "to layer 1 still"
    assert places({8: STSA}, 8) == [0, 7, 8]
    assert places({10: TSA}, 10) == [0, 1, 4, 7, 8, 10]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 40), st.integers(1, 6), st.integers(1, 20))
def test_what_layers_allow_a_picture_to_refer_to_is_fed(seed: int, length: int, num_wanted: int, window: int) -> None:
    """Pictures of any layer, which refer to all that the standard lets them."""
    noise = np.random.default_rng(seed)
    layers, marks = noise.integers(0, 3, length).tolist(), noise.integers(0, 2, length).astype(bool).tolist()
    kinds = [int(noise.choice([0, 0, 0, TSA, STSA])) if layer else 0 for layer in layers]
    packets = [nal_units(trail(layers[i], is_reference=marks[i], kind=kinds[i])) for i in range(length)]

    def may_refer(picture: int, other: int) -> bool:
        if layers[other] > layers[picture] or (layers[other] == layers[picture] and not marks[other]):
            return False
        return not any(
            (kinds[i] == TSA and layers[i] <= layers[other])
            or (kinds[i] == STSA and layers[i] == layers[other] == layers[picture])
            for i in range(other + 1, picture + 1)
        )

    wanted = set(noise.integers(0, length, num_wanted).tolist())
    end = max(wanted) + 1
    kept: list[bool] = []
    for at in range(0, end, window):
        part = range(at, min(at + window, end))
        is_wanted = [i in wanted for i in part]
        kept += needed([packets[i] for i in part], is_wanted, HEVC, is_last=at + window >= end)
    leads_to = set(wanted)
    for picture in reversed(range(end)):
        if picture in leads_to:
            leads_to |= {other for other in range(picture) if may_refer(picture, other)}
    assert all(kept[i] for i in leads_to)
    if window >= end:
        assert kept == [i in leads_to for i in range(end)], "and nothing else"


def test_the_form_of_packets_is_read_from_the_decoder_configuration() -> None:
    avcc = bytes([1, 100, 0, 31, 0xFC | 3, 0xE1, 0])
    hvcc = bytearray(23)
    hvcc[0], hvcc[21] = 1, 2 << 3 | 1
    assert nal_format("h264", avcc) == ("h264", 4, 0)
    assert nal_format("h264", b"\0\0\0\1\x67") == ("h264", 0, 0)
    assert nal_format("hevc", b"\0\0\1\x40") == ("hevc", 0, 6)
    assert nal_format("hevc", bytes(hvcc)) == ("hevc", 2, 1)
    hvcc[21] = 1  # the number of layers is unknown
    assert nal_format("hevc", bytes(hvcc)) == ("hevc", 2, 6)
    for codec, record in (("hevc", bytes(hvcc[:22])), ("h264", None), ("vp9", avcc)):
        assert nal_format(codec, record) is None
