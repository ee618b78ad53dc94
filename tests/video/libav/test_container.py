"""What is opened, and what is refused."""

from pathlib import Path

import pytest

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")


import av

from eagle_kernels.video import VideoError, probe
from eagle_kernels.video.libav.container import named
from tests.video.make import GoldenSet, draw


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


@pytest.mark.parametrize("suffix", ["avi", "mkv", "flv", "mp4"])
def test_tags_need_not_be_utf_8(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"title.{suffix}"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "CAFEXXXX"
        stream = container.add_stream("mpeg4" if suffix == "avi" else "libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(draw(i), format="rgb24").reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    content = path.read_bytes()
    assert b"CAFEXXXX" in content
    path.write_bytes(content.replace(b"CAFEXXXX", b"Caf\xe9 \xa9 "))
    assert (probe(path).damage, probe(path).num_frames) == (None, 6)


def test_what_libraries_raise_is_named(tmp_path: Path) -> None:
    for error in (ValueError("31 is not a valid Type"), MemoryError(), OverflowError("too large")):
        with (
            pytest.raises(VideoError, match=rf"a\.mp4: cannot be read as a video \({type(error).__name__}"),
            named(Path("a.mp4")),
        ):
            raise error
    with pytest.raises(VideoError, match=r"^as it is$"), named(Path("a.mp4")):
        raise VideoError("as it is")
    with pytest.raises(KeyError), named(Path("a.mp4")):
        raise KeyError("our own mistakes stay what they are")
