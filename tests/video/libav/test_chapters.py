"""libav/chapters.py: the chapters that a container names."""

from fractions import Fraction
from pathlib import Path

import av
import pytest

from eagle_kernels.video import VideoError
from eagle_kernels.video.libav.chapters import read_chapters
from tests.video.make import draw, write_video


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_chapters_are_read_as_they_were_written(tmp_path: Path, name: str) -> None:
    written = [
        {"id": i, "start": s, "end": e, "time_base": Fraction(1, 1000), "metadata": {"title": t}}
        for i, (s, e, t) in enumerate([(0, 1500, "Opening"), (1500, 2000, "Ende ä")])
    ]
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.set_chapters(written)
        for i in range(20):
            frame = av.VideoFrame.from_ndarray(draw(i), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert read_chapters(tmp_path / name) == [(0.0, 1.5, "Opening"), (1.5, 2.0, "Ende ä")]


def test_most_files_name_none(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [draw(i) for i in range(3)])
    assert read_chapters(tmp_path / "a.mp4") == []


def test_what_is_no_container_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"none")
    with pytest.raises(VideoError, match="cannot be opened as a video"):
        read_chapters(tmp_path / "a.mp4")
