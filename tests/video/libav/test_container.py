"""What is opened, and what is refused."""

from pathlib import Path

import pytest

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")


from eagle_kernels.video import VideoError, probe
from tests.video.make import (
    GoldenSet,
)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty.mp4", r"empty\.mp4: the file is empty \(0 bytes\)"),
        ("noise.mp4", r"noise\.mp4: cannot be opened as a video \(Invalid data"),
        ("text.mp4", r"text\.mp4: cannot be opened as a video"),
        ("no_moov.mp4", r"no_moov\.mp4: cannot be opened as a video .* damaged or cut short"),
        ("playlist.mp4", r"playlist\.mp4: cannot be opened as a video"),
        ("audio_only.mp4", r"audio_only\.mp4: holds no video \(streams: audio\)"),
        ("only_noise_inside.mp4", r"only_noise_inside\.mp4: not one frame can be decoded; it holds 1 packets of h264"),
        ("raw.h264", r"its container \(h264\) does not say when each frame is shown"),
        ("thin_pixels.mp4", r"its pixels are 1/50 as wide as high; needs at most 16 to 1"),
    ],
)
def test_refuses(golden: GoldenSet, name: str, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        probe(golden.bad[name])


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"absent\.mp4: there is no such file"):
        probe(tmp_path / "absent.mp4")
    with pytest.raises(VideoError, match="is not a file"):
        probe(tmp_path)
    with pytest.raises(VideoError, match="there is no such file"):
        probe("http://localhost:1/video.mp4")
