"""The reader: where it starts, what it takes, and what it makes of damage."""

import contextlib
import random
import struct
from pathlib import Path

import pytest

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")


from eagle_kernels.video import Frame, VideoError, decode, probe
from eagle_kernels.video.budget import Budget
from eagle_kernels.video.containers import mp4
from eagle_kernels.video.libav.index import read_index
from eagle_kernels.video.libav.source import Source
from tests.video.make import (
    X264,
    X265,
    GoldenSet,
    draw,
    numbers,
    read,
    write_video,
)


def test_decodes_only_the_groups_of_pictures_asked_for(golden: GoldenSet, fed: list[int]) -> None:
    path = golden.good["b_frames.mp4"].path  # 120 frames in groups of 24
    assert numbers(decode(path, [50 / 25, 52 / 25, 100 / 25])) == [50, 52, 100]
    assert len(fed) < 30, "from 48 to 52, from 96 to 100, what is read ahead to reorder, and the first frame to probe"
    fed.clear()
    assert numbers(decode(path, [i / 25 for i in range(120)])) == list(range(120))
    assert len(fed) < 130, "ascending times decode each frame once"


@pytest.mark.parametrize("name", ["b_frames.mkv", "b_frames.ts", "b_frames.flv", "fragmented.mp4", "hevc_open_gop.mp4"])
def test_a_seek_lands_where_it_should(golden: GoldenSet, name: str, fed: list[int]) -> None:
    path = golden.good[name].path
    times = probe(path).frame_times_seconds
    fed.clear()
    assert numbers(decode(path, [times[50]])) == [50]
    assert len(fed) < 20, "the key frame is 48"


def test_damage_is_named_and_never_painted_over(golden: GoldenSet) -> None:
    """A file with noise in its middle gives true frames up to the damage, then an error; and true ones after it."""
    for name in ("garbage_inside.mp4", "garbage_inside.mkv", "garbage_inside.ts"):
        path = golden.bad[name]
        info = probe(path)
        given: list[Frame] = []
        with pytest.raises(VideoError, match=r"is damaged or missing .* \(\d+ of the \d+ frames asked for were given"):
            given.extend(decode(path, info.frame_times_seconds.tolist()))
        assert len(given) >= 10
        for frame in given:
            assert read(frame.rgb_YX3.numpy()) == round(frame.timestamp_seconds * 25)
        missing = 0
        for time_seconds in info.frame_times_seconds.tolist():
            try:
                (frame,) = decode(path, [time_seconds])
            except VideoError as error:
                assert f" at {time_seconds:.6f} s is damaged or missing" in str(error)  # noqa: PT017
                missing += 1
            else:
                assert read(frame.rgb_YX3.numpy()) == round(frame.timestamp_seconds * 25)
        assert 0 < missing < 40


@pytest.mark.parametrize("name", ["b_frames.mp4", "late_start.mp4", "edit_list.mp4", "b_frames.mkv", "vp9.webm"])
def test_a_start_that_is_damaged_moves_no_time(golden: GoldenSet, tmp_path: Path, name: str) -> None:
    good = golden.good[name]
    samples = read_index(good.path).samples
    assert samples is not None
    begin, size = int(samples().offset_D[0]), int(samples().size_D[0])
    content = bytearray(good.path.read_bytes())
    content[begin : begin + size] = random.Random(0).randbytes(size)
    path = tmp_path / name
    path.write_bytes(content)
    info = probe(path)
    assert info.num_frames == len(good.numbers)
    assert "the first frame that decodes has" in str(info.damage)
    given = 0
    for number, time_seconds in zip(good.numbers, info.frame_times_seconds.tolist(), strict=True):
        with contextlib.suppress(VideoError):
            assert numbers(decode(path, [time_seconds])) == [number]
            given += 1
    assert 0 < given < info.num_frames
    with pytest.raises(VideoError, match=r"frame 0 at 0\.000000 s is damaged or missing"):
        next(decode(path, [0.0]))


def test_a_damaged_packet_is_not_tried_from_every_key_frame(tmp_path: Path, fed: list[int]) -> None:
    path = tmp_path / "one_packet.mp4"
    write_video(path, (draw(i) for i in range(480)), options={**X264, "g": "12", "bf": "0", "sc_threshold": "0"})
    samples = read_index(path).samples
    assert samples is not None
    begin, size = int(samples().offset_D[434]), int(samples().size_D[434])
    content = bytearray(path.read_bytes())
    content[begin : begin + size] = random.Random(0).randbytes(size)
    path.write_bytes(content)
    fed.clear()
    assert numbers(decode(path, [433 / 25, 444 / 25])) == [433, 444]
    with pytest.raises(VideoError, match=r"frame 440 at 17\.600000 s is damaged or missing"):
        next(decode(path, [440 / 25]))
    assert len(fed) < 200, "and not all that lie before it, twice"


def test_a_cut_off_file_gives_its_frames(golden: GoldenSet) -> None:
    for name in ("truncated.mp4", "truncated.mkv"):
        path = golden.bad[name]
        times = probe(path).frame_times_seconds.tolist()
        frames = list(decode(path, times))
        assert len(frames) == len(times) >= 25
        for frame in frames:
            assert read(frame.rgb_YX3.numpy()) == round(frame.timestamp_seconds * 25)


def test_reads_one_group_of_pictures_too_early_rather_than_a_wrong_frame(
    golden: GoldenSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A demuxer that always lands after the frame wanted: the frame comes from the start of the file."""
    path = golden.good["b_frames.mp4"].path
    times = probe(path).frame_times_seconds
    real = Source.seek
    landed = []

    def too_late(source: Source, key: int, budget: Budget) -> bool:
        landed.append(key)
        return real(source, len(source.index.key_seek_K) - 1, budget)

    monkeypatch.setattr(Source, "seek", too_late)
    assert [read(f.rgb_YX3.numpy()) for f in decode(path, times[[60, 80, 30]])] == [60, 80, 30]
    assert landed


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_an_empty_sample_stands_for_a_dropped_frame_and_is_no_end(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "dropped.mp4"
    options = {**X265, "x265-params": "log-level=error:keyint=1"} if codec == "libx265" else {**X264, "g": "1"}
    write_video(path, (draw(i) for i in range(20)), codec=codec, options=options)
    tables = mp4.read_tables(path)
    assert tables is not None
    content, place = bytearray(path.read_bytes()), 10
    begin, size = int(tables.samples.offset_D[place]), int(tables.samples.size_D[place])
    end = int(tables.samples.offset_D[-1] + tables.samples.size_D[-1])
    content[begin:end] = content[begin + size : end] + bytes(size)
    struct.pack_into(">I", content, content.find(b"stsz") + 16 + 4 * place, 0)
    path.write_bytes(content)
    info = probe(path)
    assert (info.num_frames, info.duration_seconds) == (19, pytest.approx(0.8))
    left = [*range(place), *range(place + 1, 20)]
    for times in (info.frame_times_seconds, info.frame_times_seconds[::-1]):
        assert sorted(read(f.rgb_YX3.numpy()) for f in decode(path, times)) == left
    (frame,) = decode(path, [0.4])
    assert read(frame.rgb_YX3.numpy()) == place - 1, "shown longer"
