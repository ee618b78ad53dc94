"""DALI: what it cannot do right is refused beforehand; what is left comes out as from the CPU executor, to the bit.

Without a GPU DALI decodes VP9 alone; the tests run the same calls with its CPU code, where DALI is installed.
"""

import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from eagle_kernels.video import VideoError, decode, decode_dali
from eagle_kernels.video.decode_dali import why_not
from eagle_kernels.video.probe import load
from tests.video.make import GoldenSet, draw, read, write_video

LOSSLESS = {"lossless": "1", "g": "10"}


@pytest.fixture
def dali() -> None:
    pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI (the extra `dali`)")


def why(path: Path, backend: str = "cuda") -> str | None:
    from eagle_kernels.video.decode_cpu import PacketReader

    index, info = load(path, None)
    with closing(PacketReader(index)) as reader:
        return why_not(index, info, reader.format, backend)


def test_without_dali_says_what_to_install(golden: GoldenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # as if not installed
    with pytest.raises(ImportError, match=r'pip install "eagle-kernels\[dali\]"') as error:
        decode(golden.good["one_frame.mp4"].path, [0.0], device="cuda")
    assert not isinstance(error.value, VideoError)


def test_refuses_devices_that_are_neither_cpu_nor_cuda(golden: GoldenSet) -> None:
    with pytest.raises(ValueError, match="device is meta; needs 'cpu', or a CUDA device"):
        decode(golden.good["one_frame.mp4"].path, [0.0], device="meta")


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"time_limit_seconds": 5.0}])
def test_refuses_options_of_the_cpu_code(golden: GoldenSet, options: dict) -> None:
    with pytest.raises(ValueError, match="needs 1 and None, as both are of the CPU code"):
        decode(golden.good["one_frame.mp4"].path, [0.0], device="cuda", **options)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("av1.mp4", "its codec is av1 and not one of h264, hevc, vp9"),
        ("vp8_hidden.webm", "its codec is vp8 and not one of"),
        ("10_bit.mp4", "its pixels are yuv420p10le and not 8-bit 4:2:0"),
        ("444.mp4", "its pixels are yuv444p and not 8-bit 4:2:0"),
        ("turned_90.mp4", r"it is to be turned \(90 degrees\)"),
        ("mirrored.mp4", "or mirrored"),
        ("wide_pixels.mp4", r"its pixels are not square \(64x48 are shown as 96x48\)"),
        ("edit_list.mp4", r"it holds pictures that are not shown \(50 of 60 are\)"),
        ("cover_first.mp4", "it holds 2 video streams"),
    ],
)
def test_names_the_cpu_for_what_a_gpu_does_not_decode_right(
    golden: GoldenSet, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setattr(decode_dali, "_dali", lambda: None)  # as if installed
    with pytest.raises(NotImplementedError, match=rf'{reason}.*Use device="cpu"') as error:
        decode(golden.good[name].path, [0.0], device="cuda")
    assert not isinstance(error.value, VideoError)


def test_refuses_damaged_files(golden: GoldenSet) -> None:
    assert "it is damaged (the file ends inside frame 59" in (why(golden.bad["truncated.mp4"]) or "")


@pytest.mark.parametrize(("matrix", "is_taken"), [(2, True), (5, True), (6, True), (1, False), (9, False)])
def test_takes_bt601_colours_alone(tmp_path: Path, matrix: int, is_taken: bool) -> None:
    path = tmp_path / "colours.mp4"
    write_video(
        path,
        [draw(0)],
        tags={"colorspace": matrix} if matrix in (1, 5) else {},
        options={"x264-params": f"colormatrix={NAMES[matrix]}"},
    )
    reason = why(path)
    assert (reason is None) == is_taken, reason
    assert is_taken or f"its colours are those of matrix {matrix} " in (reason or "")


NAMES = {1: "bt709", 2: "undef", 5: "bt470bg", 6: "smpte170m", 9: "bt2020nc"}


@pytest.mark.parametrize("name", ["b_frames.mp4", "hevc.mp4", "vp9.webm", "full_range.mp4", "variable.mp4"])
def test_takes_ordinary_files(golden: GoldenSet, name: str) -> None:
    assert why(golden.good[name].path) is None


def test_dali_s_cpu_code_is_told_from_its_gpu_code(golden: GoldenSet) -> None:
    assert why(golden.good["b_frames.mp4"].path, "cpu") == "its codec is h264 and not one of vp9"
    assert why(golden.good["vp9.webm"].path, "cpu") is None


@pytest.mark.parametrize("name", ["vp9.webm", "vp9_odd.webm"])
@pytest.mark.parametrize("call_bytes", [1, 3 * 64 * 48 * 4, 2**30])
def test_gives_the_frames_asked_for(
    golden: GoldenSet, monkeypatch: pytest.MonkeyPatch, dali: None, name: str, call_bytes: int
) -> None:
    """In the order asked, repeats included, with their own times, whatever the number of calls; and they are kept."""
    monkeypatch.setattr(decode_dali, "CALL_BYTES", call_bytes)
    video = golden.good[name]
    index, info = load(video.path, None)
    wanted = [59, 0, 5, 5, 4, 30, 31, 58]
    frames = list(decode_dali._frames(index, info, np.array(wanted), None))
    assert [read(frame.rgb_YX3.numpy()) for frame in frames] == wanted
    assert [frame.timestamp_seconds for frame in frames] == [float(info.frame_times_seconds[i]) for i in wanted]
    assert frames[2].rgb_YX3.data_ptr() != frames[3].rgb_YX3.data_ptr()


@pytest.mark.parametrize("tags", [{}, {"colorspace": 5}, {"color_range": 2}])
def test_gives_the_bits_of_the_cpu_executor(tmp_path: Path, dali: None, tags: dict) -> None:
    colours = np.random.default_rng(0).integers(20, 236, (12, 16, 3), dtype=np.uint8)
    path = tmp_path / "colours.webm"
    write_video(
        path,
        [np.roll(colours, i, 0).repeat(8, 0).repeat(8, 1) for i in range(6)],
        codec="libvpx-vp9",
        options=LOSSLESS,
        tags=tags,
    )
    index, info = load(path, None)
    ours = decode(path, info.frame_times_seconds[[4, 1]])
    for frame, same in zip(decode_dali._frames(index, info, np.array([4, 1]), None), ours, strict=True):
        assert torch.equal(frame.rgb_YX3, same.rgb_YX3)


def test_dali_s_errors_name_the_file(golden: GoldenSet, dali: None) -> None:
    index, info = load(golden.good["b_frames.mp4"].path, None)
    with pytest.raises(RuntimeError, match=r'b_frames.mp4: DALI does not decode frames \[3\]. device="cpu" may'):
        list(decode_dali._frames(index, info, np.array([3]), None))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", ["b_frames.mp4", "hevc.mp4", "vp9.webm", "intra_refresh.mp4", "open_gop.mp4", "variable.mkv"]
)
def test_gpu_gives_the_frames_asked_for(golden: GoldenSet, dali: None, name: str) -> None:
    video = golden.good[name]
    wanted = [len(video.numbers) - 1, 0, 5, 5, 30, 31]
    for i, frame in zip(
        wanted, decode(video.path, [video.times_seconds[i] for i in wanted], device="cuda"), strict=True
    ):
        assert frame.rgb_YX3.is_cuda
        assert read(frame.rgb_YX3.cpu().numpy()) == video.numbers[i]
