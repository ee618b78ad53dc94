"""Streams for a decoder that counts pictures: number n of each is the frame that was wanted, by libav's own count."""

import heapq
import io
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle_kernels.video import dali
from eagle_kernels.video import open as open_video
from eagle_kernels.video.bitstream.pictures import Syntax, picture
from eagle_kernels.video.dali import streams, with_true_starts_only
from eagle_kernels.video.info import PacketIndex
from eagle_kernels.video.libav.index import index_from_packets
from eagle_kernels.video.libav.source import PacketReader
from eagle_kernels.video.plan import Group
from eagle_kernels.video.shards import ONE_GROUP_A_STREAM, Packet, Stream, lay_out, split
from tests.video.bitstream.test_pictures import (
    AGAIN,
    ANNEX_B_SYNTAX,
    AVC_SYNTAX,
    HIDDEN_INTER,
    INTER,
    KEY,
    VP9,
    vp9_key,
)
from tests.video.make import GoldenSet, av, draw, read, write_video

HIDDEN = {"lag-in-frames": "25", "auto-alt-ref": "1", "deadline": "realtime", "cpu-used": "6", "b": "300k", "g": "45"}
# One picture a packet, 8-bit 4:2:0, whatever the container, the times and the groups.
NAMES = (
    *("b_frames.mp4", "b_frames.mkv", "b_frames.ts", "b_frames.flv", "fragmented.mp4", "live.mkv", "long_gop.mp4"),
    *("one_frame.mp4", "open_gop.mp4", "open_gop.ts", "intra_refresh.mp4", "intra_refresh.mkv", "intra_refresh.ts"),
    *("full_range.mp4", "hevc.mp4", "hevc_open_gop.mp4", "hevc_open_gop.mkv", "vp9.webm", "wide_pixels.mp4"),
    *("cover_first.mp4", "with_audio.mkv", "variable.mp4", "variable.mkv", "late_start.mp4", "late_start.mkv"),
    *("edit_list.mp4", "cut_start.ts"),
)


def made_of(
    index: PacketIndex, frames: np.ndarray, num_shards: int, backend: str = "cuda"
) -> list[tuple[Stream, bytes]]:
    with closing(PacketReader(index)) as reader:
        index = with_true_starts_only(reader, frames)
    with closing(PacketReader(index)) as reader:
        laid_out = streams(reader, frames, num_shards=num_shards, backend=backend)
        return [(stream, reader.matroska(stream.packets)) for stream in laid_out]


def decoded(file: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(file)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", NAMES)
def test_a_number_is_the_frame_that_was_wanted(golden: GoldenSet, name: str) -> None:
    video = golden.good[name]
    opened = open_video(video.path)
    index, info = opened.index, opened.info
    rng = np.random.default_rng(len(name))
    for num_shards in (1, 3):
        for num_frames in (1, 3, 9):
            frames = np.unique(rng.integers(0, info.num_frames, num_frames))
            found = {}
            for stream, file in made_of(index, frames, 99 if index.codec in ONE_GROUP_A_STREAM else num_shards):
                pictures = decoded(file)
                assert len(pictures) == len(stream.packets)
                found |= {pts: read(pictures[number]) for pts, number in stream.number_of.items()}
            assert found == {int(index.pts_N[i]): video.numbers[i] for i in frames}


def test_every_frame_of_every_group_at_once(golden: GoldenSet) -> None:
    for name in ("b_frames.mp4", "hevc_open_gop.mkv", "open_gop.ts"):
        video = golden.good[name]
        opened = open_video(video.path)
        index, info = opened.index, opened.info
        found = {}
        for stream, file in made_of(index, np.arange(info.num_frames), 99):
            pictures = decoded(file)
            found |= {pts: read(pictures[number]) for pts, number in stream.number_of.items()}
        assert [found[int(pts)] for pts in index.pts_N] == list(video.numbers)


def test_only_the_packets_of_the_plan_are_fed(golden: GoldenSet) -> None:
    """120 frames in groups of 24; frame 30 needs its group's first 4 packets shown to it, and one that it refers to."""
    index = open_video(golden.good["b_frames.mp4"].path).index
    ((stream, _),) = made_of(index, np.array([30]), 7)
    place = int(index.place_N[30])
    assert len(stream.packets) == place + 1 - 24
    assert stream.packets[0].starts_group and not any(packet.starts_group for packet in stream.packets[1:])
    assert [packet.dts for packet in stream.packets] == list(range(len(stream.packets)))
    assert all(packet.pts >= packet.dts for packet in stream.packets)
    assert sorted(packet.pts - stream.reorders for packet in stream.packets) == list(range(len(stream.packets)))


def test_open_recovery_points_of_h264_are_no_start(golden: GoldenSet) -> None:
    """x264 writes one IDR and then recovery points: everything from the IDR on is fed, once, in one group."""
    index = open_video(golden.good["open_gop.mp4"].path).index
    assert len(index.key_pts_K) == 5
    ((stream, _),) = made_of(index, np.array([30, 60, 100]), 7)
    assert len(stream.packets) == int(index.place_N[100]) + 1
    assert [packet.starts_group for packet in stream.packets].count(True) == 1


def test_leading_pictures_of_hevc_are_left_out(golden: GoldenSet) -> None:
    index = open_video(golden.good["hevc_open_gop.mp4"].path).index
    key = int(index.key_place_K[1])
    num_leading = sum(index.place_N[: int(index.key_pts_K[1] // 512)] > key)
    frame = int(np.searchsorted(index.pts_N, index.key_pts_K[1])) + 8
    ((stream, _),) = made_of(index, np.array([frame]), 7)
    assert num_leading > 0
    assert len(stream.packets) == int(index.place_N[frame]) + 1 - key - num_leading


def test_pictures_that_an_edit_list_hides_are_fed_and_counted(golden: GoldenSet) -> None:
    """libav marks their packets; they have no place in an index made of packets, and a group may start with one."""
    video = golden.good["edit_list.mp4"]
    index = index_from_packets(video.path)
    assert index.samples is None and len(index.key_pts_K) == 2  # the first is hidden
    for frames in (np.array([0]), np.array([3, 13, 14, 15, 49])):
        found = {}
        for stream, file in made_of(index, frames, 2):
            pictures = decoded(file)
            assert len(pictures) == len(stream.packets)
            found |= {pts: read(pictures[number]) for pts, number in stream.number_of.items()}
        assert found == {int(index.pts_N[i]): video.numbers[i] for i in frames}


def test_no_stream_is_larger_than_dali_reads(golden: GoldenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    index = open_video(golden.good["b_frames.mp4"].path).index
    monkeypatch.setattr(dali, "STREAM_BYTES", 100)
    with pytest.raises(NotImplementedError, match=r"b_frames.mp4: \d+ bytes of it must be decoded at one go"):
        made_of(index, np.array([23]), 1)


def test_idr_pictures_in_a_row_stay_apart(tmp_path: Path) -> None:
    """Every other IDR picture: x264 changes idr_pic_id from one to the next, so these bear the same."""
    path = tmp_path / "intra.mp4"
    write_video(path, (draw(i) for i in range(12)), options={"g": "1"})
    index = open_video(path).index
    ((stream, file),) = made_of(index, np.arange(0, 12, 2), 1)
    assert all(bytes(packet.content[4:6]) == b"\x09\x10" for packet in stream.packets)
    assert [read(rgb) for rgb in decoded(file)] == list(range(0, 12, 2))


def test_vp9_with_pictures_that_are_not_shown(tmp_path: Path) -> None:
    """Whoever counts shown frames can be fed; whoever counts pictures cannot."""
    path = tmp_path / "hidden.webm"
    write_video(path, (draw(i) for i in range(90)), codec="libvpx-vp9", options=HIDDEN)
    index = open_video(path).index
    with closing(PacketReader(index)) as reader:
        packets = reader.packets(Group(0, 0, 90, ()))
    assert max(picture(packet.content, VP9).num_coded for packet in packets) == 2
    frames = np.array([5, 40, 44, 45, 89])
    for num_shards in (1, 2):
        found = []
        for stream, file in made_of(index, frames, num_shards, "cpu"):
            pictures = decoded(file)
            found += [read(pictures[number]) for number in stream.number_of.values()]
        assert sorted(found) == frames.tolist()
    with pytest.raises(NotImplementedError, match=r'a packet of 2 pictures, 1 of them shown.*Use device="cpu"'):
        made_of(index, frames, 1, "cuda")


GROUPS = st.lists(st.integers(1, 40), min_size=1, max_size=30).map(
    lambda lengths: [Group(i, sum(lengths[:i]), sum(lengths[: i + 1]), (i,)) for i in range(len(lengths))]
)


@given(groups=GROUPS, num_shards=st.integers(1, 9))
def test_split_loses_nothing_and_balances(groups: list[Group], num_shards: int) -> None:
    shards = split(groups, num_shards)
    assert sorted(group for shard in shards for group in shard) == groups
    assert len(shards) == min(num_shards, len(groups))
    assert all(shard == sorted(shard) and shard for shard in shards)
    loads = [sum(group.end_place - group.first_place for group in shard) for shard in shards]
    longest = max(group.end_place - group.first_place for group in groups)
    assert max(loads) - min(loads) <= longest


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60, unique=True), st.integers(1, 25))
def test_the_earliest_of_eight_is_the_next_where_a_stream_is_taken(times: list[int], reach: int) -> None:
    """DALI's GPU code holds BUFFERED pictures, as they are decoded, and hands out the earliest; `reorders` is what
    decides whether that is their order."""
    times = sorted(times, key=lambda t: t + 7919 * t % reach)  # out of order, but not by far
    stored = [Packet(KEY, 0), *(Packet(INTER, t) for t in times)]
    stream = lay_out([(stored, [0])], VP9, counts_coded=True)
    assert isinstance(stream, Stream)
    held, given_out = [], []
    for packet in stream.packets:
        heapq.heappush(held, packet.pts)
        if len(held) == dali.BUFFERED:
            given_out.append(heapq.heappop(held))
    given_out += sorted(held)
    assert (given_out == sorted(given_out)) == (stream.reorders < dali.BUFFERED)


@given(
    packet=st.binary(max_size=60),
    code=st.sampled_from([ANNEX_B_SYNTAX, AVC_SYNTAX, Syntax("h264", 1), Syntax("hevc", 0), Syntax("hevc", 4), VP9]),
)
def test_noise_is_no_picture_or_one_but_never_an_error(packet: bytes, code: Syntax) -> None:
    assert 0 <= picture(packet, code).num_shown <= max(8, len(packet))
    stream = lay_out([([Packet(packet, 7)], [7])], code, counts_coded=True)
    assert isinstance(stream, str) or stream.number_of == {7: 0}


@pytest.mark.parametrize(
    ("stored", "wanted", "reason"),
    [
        ([], [0], "can be reached from a picture that starts afresh"),
        ([(INTER, 0)], [0], "from a picture that starts afresh"),
        ([(KEY, 0), (INTER, 3)], [2], "the times of its packets are not what its index says"),
        ([(KEY, 0), (INTER, 3), (INTER, 3)], [3], "the times of its packets are not"),
        ([(KEY, 0), (HIDDEN_INTER, 3)], [3], "a packet of 1 pictures, 0 of them shown"),
        ([(KEY, 0), (vp9_key(32, 24), 3)], [3], "its size or its codec's headers change on the way"),
        ([(KEY, 0), (AGAIN, 3)], [3], "a packet of 0 pictures, 1 of them shown"),
    ],
)
def test_says_why_a_stream_s_numbers_are_not_known(stored: list, wanted: list, reason: str) -> None:
    said = lay_out([([Packet(*packet) for packet in stored], wanted)], VP9, counts_coded=True)
    assert isinstance(said, str)
    assert reason in said
