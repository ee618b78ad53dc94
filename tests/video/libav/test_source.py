"""The source of packets: where they come from, and what is left open."""

import os
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")


from eagle_kernels.video import VideoError, decode
from eagle_kernels.video import open as open_video
from eagle_kernels.video.budget import Budget
from eagle_kernels.video.libav import source as libav_source
from eagle_kernels.video.libav.source import Source
from tests.video.make import (
    GoldenSet,
    read,
)


def test_an_unseekable_container_is_read_from_its_start(golden: GoldenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    path = golden.good["b_frames.mp4"].path
    monkeypatch.setattr(Source, "seek", lambda source, key, budget: False)
    assert [read(f.rgb_YX3.numpy()) for f in decode(path, [3.0, 1.0])] == [75, 25]


def test_a_file_that_shrinks_while_it_is_read_ends_in_an_error(golden: GoldenSet, tmp_path: Path) -> None:
    path = tmp_path / "shrinks.mp4"
    path.write_bytes(golden.good["b_frames.mp4"].path.read_bytes())
    frames = decode(path, [0.0, 4.0])
    assert read(next(frames).rgb_YX3.numpy()) == 0
    os.truncate(path, 2000)
    with pytest.raises(VideoError, match=r"frame 100 at 4\.000000 s is damaged or missing"):
        next(frames)


def test_files_are_closed(golden: GoldenSet) -> None:
    path = golden.good["b_frames.mp4"].path

    def num_open() -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(path.resolve()) for fd in os.listdir("/proc/self/fd"))

    list(decode(path, [3.0, 1.0]))
    assert num_open() == 0
    frames = decode(path, [3.0, 1.0])
    next(frames)
    assert num_open() == 1
    frames.close()  # type: ignore[attr-defined]
    assert num_open() == 0


@pytest.mark.parametrize("name", ["b_frames.mp4", "b_frames.mkv", "b_frames.ts", "vp8_hidden.webm"])
def test_reads_as_far_as_the_wanted_packets_and_no_further(golden: GoldenSet, name: str) -> None:
    video = open_video(golden.good[name].path)
    pts_N, budget = video.index.pts_N, Budget(video.index.path, None)
    with closing(Source(video.index)) as source:
        source.rewind()
        wanted = {int(pts_N[3]), int(pts_N[7])}
        window = source.read(wanted, budget)
        assert wanted <= {unit.pts for unit in window}
        assert window[-1].pts in wanted
        assert not wanted <= {unit.pts for unit in window[:-1]}
        few = source.read(None, budget)
        assert 0 < len(few) <= libav_source.FEW_PACKETS
        while few[-1].content:
            few = source.read(None, budget)
        assert (few[-1].pts, few[-1].content) == (None, b"")
        first = source.read(None, budget, key=len(video.index.key_pts_K) - 1)[0]
        assert first.is_key and first.pts == video.index.key_pts_K[-1]


def test_a_window_holds_a_bounded_number_of_packets_and_bytes(
    golden: GoldenSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = open_video(golden.good["b_frames.mp4"].path)
    budget, last = Budget(video.index.path, None), {int(video.index.pts_N[-1])}
    with closing(Source(video.index)) as source:
        for limit, value in (("WINDOW_PACKETS", 5), ("WINDOW_BYTES", 0)):
            with monkeypatch.context() as patch:
                patch.setattr(libav_source, limit, value)
                source.rewind()
                assert len(source.read(last, budget)) == (value or 1)
        source.rewind()
        assert len(source.read(last, budget)) == int(video.index.place_N[-1]) + 1
