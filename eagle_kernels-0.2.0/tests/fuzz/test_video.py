"""Damaged videos in every container: frames of the size that the index says, the same ones in any order of asking, or a
VideoError that names the file; soon, in bounded memory, and nothing else.

The same frames, not the same pixels: where damage inside a picture is none to the codec, decoders fill the hole with
what they have, the picture before or old memory, and that depends on where they began.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")

import av
import torch

from eagle_kernels import video
from eagle_kernels.video import Video, VideoError
from tests.fuzz.mutations import damaged
from tests.rounds import Rounds, by_rounds
from tests.video.make import B_FRAMES, VPX, X264, X265, draw, read, write_video

SECONDS = 20  # of CPU for one small file, on a busy machine; the slowest takes two
MEMORY_BYTES = 1 << 29  # that the process may grow by, whatever a header states
NUM_FRAMES = 14
MPEG = {"q": "3", "g": "6"}
P_FRAMES = {**X264, "bf": "0", "g": "5"}
H265 = {**X265, "x265-params": "log-level=error:keyint=5:bframes=2"}
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
FILES: dict[str, list[dict]] = {
    "mp4": [
        {"options": {**B_FRAMES, "g": "6"}},
        {"codec": "libx265", "options": H265},
        {"codec": "mpeg4", "options": MPEG},
        {"options": P_FRAMES, "audio_seconds": 0.5},
    ],
    "mov": [{"codec": "mjpeg", "pix_fmt": "yuvj420p", "options": {"q": "3"}}],
    "3gp": [{"options": P_FRAMES, "muxer_options": FRAGMENTS}],
    "mkv": [
        {"options": {**B_FRAMES, "g": "6"}},
        {"options": P_FRAMES, "muxer_options": {"live": "1"}},
        {"codec": "libsvtav1", "options": {"preset": "12", "g": "6", "svtav1-params": "lp=1"}},
    ],
    "webm": [{"codec": "libvpx-vp9", "options": VPX, "pix_fmt": "yuva420p"}, {"codec": "libvpx", "options": VPX}],
    "ts": [{"options": {**B_FRAMES, "g": "6"}}, {"codec": "mpeg2video", "options": {**MPEG, "bf": "2"}}],
    "mpg": [{"codec": "mpeg1video", "options": {**MPEG, "bf": "2"}, "muxer": "mpeg"}],
    "avi": [{"codec": "mpeg4", "options": MPEG}, {"options": {**B_FRAMES, "g": "6"}}],
    "flv": [{"options": {**B_FRAMES, "g": "6"}}, {"codec": "flv", "options": MPEG}],
    "asf": [{"codec": "wmv2", "options": MPEG}],
    "mxf": [{"codec": "mpeg2video", "options": MPEG}],
    "ivf": [{"codec": "libvpx", "options": VPX}],
    "gif": [{"codec": "gif", "pix_fmt": "rgb8", "options": {}}],
}


@pytest.fixture(scope="module")
def good_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    av.logging.set_level(None)  # libav prints about every damaged file
    folder = tmp_path_factory.mktemp("good")
    files: dict[str, list[bytes]] = {}
    for suffix, ways in FILES.items():
        for number, how in enumerate(ways):
            path = folder / f"{number}.{suffix}"
            write_video(path, (draw(i) for i in range(NUM_FRAMES)), **how)
            assert video.probe(path).num_frames >= NUM_FRAMES - 1  # GIF leaves out what is not changed
            files.setdefault(suffix, []).append(path.read_bytes())
    return files


UNREADABLE = -1


def number_in(rgb_YX3: torch.Tensor) -> int:
    try:
        return read(rgb_YX3.numpy())
    except AssertionError:
        return UNREADABLE


def asked_singly(opened: Video, times: Sequence[float]) -> dict[float, int | None]:
    """The number in the frame at each time, None where it is refused."""
    found: dict[float, int | None] = {}
    for seconds in times:
        try:
            (frame,) = opened.frames([seconds], time_limit_seconds=SECONDS)
        except VideoError as error:
            assert str(opened.info.path) in str(error)  # noqa: PT017
            found[seconds] = None
        else:
            assert frame.rgb_YX3.shape == (opened.info.height_px, opened.info.width_px, 3)
            found[seconds] = number_in(frame.rgb_YX3)
    return found


def check(path: Path) -> bool:
    """Whether anything could be read."""
    try:
        opened = video.open(path, time_limit_seconds=SECONDS)
    except VideoError as error:
        assert str(path) in str(error)  # noqa: PT017
        return False
    times = opened.info.frame_times_seconds
    assert bool((times[1:] > times[:-1]).all())
    assert opened.info.width_px * opened.info.height_px <= 1 << 26
    asked = times[:: max(1, len(times) // 4)][:4].tolist()
    forward, backward = asked_singly(opened, asked), asked_singly(opened, asked[::-1])
    together: dict[float, int] = {}
    with suppress(VideoError):
        for frame in opened.frames(asked, time_limit_seconds=SECONDS):
            together[frame.timestamp_seconds] = number_in(frame.rgb_YX3)
    for seconds in asked:
        given = [forward[seconds], backward[seconds], *([together[seconds]] if seconds in together else [])]
        assert given.count(None) in (0, len(given)), "refused in one order, given in another"
        assert len(set(given) - {UNREADABLE, None}) <= 1, "different frames"
    return True


@by_rounds(12)
@pytest.mark.parametrize("suffix", FILES)
def test_damaged_videos(suffix: str, rounds: Rounds, tmp_path: Path, good_files: dict[str, list[bytes]]) -> None:
    rng, files, num_read = random.Random(rounds.seed), good_files[suffix], 0
    path = tmp_path / f"damaged.{suffix}"
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    for _ in rounds:
        path.write_bytes(damaged(rng.choice(files), rng, files))
        started = time.process_time()
        num_read += check(path)
        assert time.process_time() - started < SECONDS
    assert num_read
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - peak_bytes < MEMORY_BYTES


@pytest.mark.parametrize("suffix", FILES)
def test_videos_cut_short(suffix: str, tmp_path: Path, good_files: dict[str, list[bytes]]) -> None:
    """By a byte, two, a few, a header's length: what is there is given."""
    path = tmp_path / f"cut.{suffix}"
    for content in good_files[suffix]:
        for num_bytes in (1, 2, 9, 150):
            path.write_bytes(content[:-num_bytes])
            check(path)
        path.write_bytes(content[:-1])
        # MP4's tables may stand at the end, and are useless without their last byte.
        assert check(path) or suffix in ("mp4", "mov", "3gp")
