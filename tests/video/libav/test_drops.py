"""What is left out changes no byte, and is left out only where a check found it so."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")


from eagle_kernels.video import decode, probe
from eagle_kernels.video.libav import drops, reader, source
from tests.video.make import (
    X264,
    GoldenSet,
    draw,
    numbers,
    write_video,
)


def test_packets_that_nothing_refers_to_are_left_out(
    golden: GoldenSet, fed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = golden.good["b_frames.mp4"].path
    wanted = [20, 23, 44, 68, 92, 116]
    drops._verdicts.clear()
    num_fed = []
    for worth_a_check in (6, 4, 6):  # the check takes 24 of 113 packets: not checked, checked, known
        monkeypatch.setattr(drops, "WORTH_A_CHECK", worth_a_check)
        fed.clear()
        assert numbers(decode(path, [i / 25 for i in wanted])) == wanted
        num_fed.append(len(fed))
    assert num_fed[0] > 100
    assert num_fed[2] < 0.6 * num_fed[0], "B frames that no other picture refers to"
    assert num_fed[1] < num_fed[2] + 24 + 16, "the check takes one frame more, both ways"


def test_the_check_finds_its_frame_where_all_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "dense.mp4"
    options = {**X264, "g": "100", "x264-params": "bframes=3:b-pyramid=normal:scenecut=0"}
    write_video(path, (draw(i) for i in range(400)), options=options)
    drops._verdicts.clear()
    assert numbers(decode(path, probe(path).frame_times_seconds)) == list(range(400))
    assert list(drops._verdicts.values()) == [True]


def test_a_file_without_such_packets_costs_no_check(
    tmp_path: Path, fed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "all_referred_to.mp4"
    write_video(path, (draw(i) for i in range(96)), options={**X264, "g": "24", "bf": "0", "sc_threshold": "0"})
    times = probe(path).frame_times_seconds[[15, 39, 63, 87]].tolist()
    for worth_a_check in (10**9, 0):
        monkeypatch.setattr(drops, "WORTH_A_CHECK", worth_a_check)
        fed.clear()
        assert numbers(decode(path, times)) == [15, 39, 63, 87]
        assert len(fed) == 4 * 16 + 1, "and the first frame to describe the file"


def test_a_file_that_lies_about_them_is_decoded_whole(golden: GoldenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every packet but the key frames claims that nothing refers to it."""
    path = golden.good["b_frames.mp4"].path
    drops._verdicts.clear()

    def keys_and_wanted(packets: list[bytes], is_wanted: list[bool], nal: object, *, is_last: bool) -> list[bool]:
        return [wanted or packet[4] & 31 in (5, 6, 7, 9) for packet, wanted in zip(packets, is_wanted, strict=True)]

    monkeypatch.setattr(reader, "needed", keys_and_wanted)
    monkeypatch.setattr(drops, "WORTH_A_CHECK", 4)
    assert numbers(decode(path, [i / 25 for i in (20, 44, 68, 92, 116)])) == [20, 44, 68, 92, 116]
    assert list(drops._verdicts.values()) == [False]
    drops._verdicts.clear()


def moving_pictures(num_frames: int, width_px: int = 128, height_px: int = 96) -> Iterator[NDArray[np.uint8]]:
    """Coarse noise that slides, and a block that jumps: something for every picture to refer to."""
    noise_YX3 = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    for i in range(num_frames):
        rgb_YX3 = noise_YX3[i % 200 : i % 200 + height_px, 2 * i % 300 : 2 * i % 300 + width_px].copy()
        rgb_YX3[:16, 7 * i % 112 : 7 * i % 112 + 16] = i % 256
        yield rgb_YX3


SVT = {"preset": "10", "crf": "40", "g": "300"}


X265_LAYERS = "log-level=error:keyint=250:bframes=7:rc-lookahead=20:b-adapt=0:scenecut=0:temporal-layers="


@pytest.mark.parametrize(
    ("name", "codec", "options", "share_fed"),
    [
        ("layers.mp4", "libsvtav1", {**SVT, "svtav1-params": "lp=1:hierarchical-levels=4"}, 0.3),
        ("layers.mkv", "libsvtav1", {**SVT, "svtav1-params": "lp=1:hierarchical-levels=5"}, 0.3),
        ("low_delay.mp4", "libsvtav1", {**SVT, "svtav1-params": "lp=1:pred-struct=1"}, 0.6),
        ("grain.mp4", "libsvtav1", {**SVT, "svtav1-params": "lp=1:film-grain=20"}, 0.4),
        ("switch.mp4", "libsvtav1", {**SVT, "svtav1-params": "lp=1:sframe-dist=32:sframe-mode=2"}, 1.0),
        ("three.mp4", "libx265", {"preset": "ultrafast", "x265-params": X265_LAYERS + "3"}, 0.4),
        ("four.mp4", "libx265", {"preset": "ultrafast", "x265-params": X265_LAYERS + "4"}, 0.3),
        ("four.mkv", "libx265", {"preset": "ultrafast", "x265-params": X265_LAYERS + "4"}, 0.3),
    ],
)
def test_only_what_the_wanted_frames_lean_on_is_decoded(
    tmp_path: Path,
    name: str,
    codec: str,
    options: dict[str, str],
    share_fed: float,
    fed: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the byte, for frames chosen by chance; a stream that uses more than is followed is decoded whole."""
    path = tmp_path / name
    write_video(path, moving_pictures(160), codec=codec, options=options, recount_dts=codec == "libx265")
    times = probe(path).frame_times_seconds
    whole = [frame.rgb_YX3 for frame in decode(path, times.tolist())]
    monkeypatch.setattr(drops, "WORTH_A_CHECK", 0)
    for seed in range(6):
        wanted = sorted(random.Random(seed).sample(range(160), 5))
        list(decode(path, times[wanted].tolist()))  # the check
        fed.clear()
        frames = list(decode(path, times[wanted].tolist()))
        assert [frame.timestamp_seconds for frame in frames] == times[wanted].tolist()
        assert all(torch.equal(frame.rgb_YX3, whole[i]) for i, frame in zip(wanted, frames, strict=True))
        num_whole = wanted[-1] + 1
        assert (len(fed) >= num_whole) if share_fed == 1.0 else (len(fed) < share_fed * num_whole + 6), (
            len(fed),
            num_whole,
        )
        with monkeypatch.context() as patch:
            patch.setattr(source, "WINDOW_PACKETS", 37)  # what lies at the end of a window is kept as well
            frames = list(decode(path, times[wanted].tolist()))
        assert all(torch.equal(frame.rgb_YX3, whole[i]) for i, frame in zip(wanted, frames, strict=True))
