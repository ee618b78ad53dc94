"""DALI: what it cannot do right is refused beforehand or put right; the rest is the CPU executor's, to the bit.

Without a GPU DALI decodes VP9 alone; the tests run the same calls with its CPU code, where DALI is installed.
"""

import itertools
import pickle
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench import bench_decode_dali
from bench.bench_decode import make_video, spread
from bench.bench_decode_dali import measure_here, ways
from eagle_kernels.video import Video, VideoError, decode
from eagle_kernels.video import dali as video_dali
from eagle_kernels.video import open as open_video
from eagle_kernels.video.dali import Packets, frames_of, read_packets, streams, why_not
from eagle_kernels.video.info import describe
from eagle_kernels.video.libav.source import PacketReader
from tests.video.make import (
    B_FRAMES,
    LUMA,
    MATRIX_TAGS,
    VPX,
    GoldenSet,
    draw,
    read,
    set_display_matrix,
    smooth_picture,
    to_planes,
    write_planes,
    write_video,
)

LOSSLESS = {"lossless": "1", "g": "10"}
HIDDEN = {"lag-in-frames": "25", "auto-alt-ref": "1", "deadline": "realtime", "cpu-used": "6", "b": "300k", "g": "45"}


@pytest.fixture
def dali() -> None:
    pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI (the extra `dali`)")


def why(path: Path, backend: str = "cuda") -> str | None:
    opened = open_video(path)
    index, info = opened.index, opened.info
    with closing(PacketReader(index)) as reader:
        return why_not(info, reader.format, backend)


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
        ("interlaced.mp4", "it is interlaced"),
        ("vp9_odd.webm", r"its size is odd \(63x47\)"),
    ],
)
def test_names_the_cpu_for_what_a_gpu_does_not_decode_right(
    golden: GoldenSet, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setattr(video_dali, "_dali", lambda: None)  # as if installed
    with pytest.raises(NotImplementedError, match=rf'{reason}.*Use device="cpu"') as error:
        decode(golden.good[name].path, [0.0], device="cuda")
    assert not isinstance(error.value, VideoError)


def test_refuses_frames_that_no_idr_comes_before(
    golden: GoldenSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A recording of open groups, its IDR cut off: the CPU starts at recovery points."""
    monkeypatch.setattr(video_dali, "_dali", lambda: None)
    content = golden.good["open_gop.ts"].path.read_bytes()
    path = tmp_path / "recorded.ts"
    path.write_bytes(content[: 188 * 3] + content[len(content) // 188 // 2 * 188 :])
    last_seconds = float(open_video(path).info.frame_times_seconds[-1])
    assert len(list(decode(path, [last_seconds]))) == 1
    with pytest.raises(NotImplementedError, match=r'some of its frames have no IDR picture .*Use device="cpu"'):
        decode(path, [last_seconds], device="cuda")


def test_refuses_damaged_files(golden: GoldenSet) -> None:
    assert "it is damaged (the file ends inside frame 59" in (why(golden.bad["truncated.mp4"]) or "")


NAMES = {1: "bt709", 2: "undef", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "YCgCo", 9: "bt2020nc", 10: "bt2020c"}


@pytest.mark.parametrize("matrix", NAMES)
def test_takes_colours_that_are_linear_in_what_dali_gives(tmp_path: Path, matrix: int) -> None:
    path = tmp_path / "colours.mp4"
    write_video(path, [draw(0)], options={"x264-params": f"colormatrix={NAMES[matrix]}"})
    if matrix in (8, 10):  # nor does swscale know these: the file cannot be opened
        with pytest.raises(VideoError, match=rf"colours\.mp4: its colours \(MatrixCoefficients {matrix}, yuv420p\)"):
            why(path)
    else:
        assert why(path) is None


def test_takes_full_range_from_the_codec_s_headers_alone(golden: GoldenSet, tmp_path: Path) -> None:
    """DALI's CPU code takes it from VP9 too (see below); what its GPU code does is not known."""
    assert why(golden.good["full_range.mp4"].path) is None
    path = tmp_path / "full.webm"
    write_video(path, [draw(0)], codec="libvpx-vp9", options=LOSSLESS, tags={"color_range": 2})
    assert why(path) == "its colours are of full range, which no header of H.264 or HEVC says"
    assert why(path, "cpu") is None


@pytest.mark.parametrize(
    "name",
    [
        *("b_frames.mp4", "hevc.mp4", "vp9.webm", "variable.mp4", "edit_list.mp4", "late_start.mkv", "wide_pixels.mp4"),
        *("turned_90.mp4", "mirrored.mp4", "cover_first.mp4"),
    ],
)
def test_takes_ordinary_files(golden: GoldenSet, name: str) -> None:
    assert why(golden.good[name].path) is None


def test_dali_s_cpu_code_is_told_from_its_gpu_code(golden: GoldenSet) -> None:
    assert why(golden.good["b_frames.mp4"].path, "cpu") == "its codec is h264 and not one of vp9"
    assert why(golden.good["vp9.webm"].path, "cpu") is None


@given(
    st.lists(st.integers(0, 30), max_size=60), st.integers(1, 9), st.integers(1, 4), st.sampled_from(["vp9", "hevc"])
)
def test_a_call_holds_no_more_than_it_may(asked: list[int], most_frames: int, num_shards: int, codec: str) -> None:
    """Ten frames a group; HEVC's take a stream each. What is asked for twice is held once."""
    index = SimpleNamespace(codec=codec, pts_N=np.arange(40), key_pts_K=np.arange(0, 40, 10))
    frame_bytes = video_dali.CALL_BYTES // most_frames
    parts = list(video_dali.frames_a_call(index, np.array(asked, np.int64), frame_bytes, num_shards))
    assert [i for part in parts for i in part.tolist()] == asked
    for part in parts:
        assert 1 <= len(set(part.tolist())) <= most_frames
        assert codec == "vp9" or len(set((part // 10).tolist())) <= num_shards
    for part, following in itertools.pairwise(parts):  # and none ends before it must
        both = {*part.tolist(), int(following[0])}
        assert len(both) > most_frames or (codec == "hevc" and len({i // 10 for i in both}) > num_shards)


@pytest.mark.parametrize("name", ["vp9.webm", "vp9_odd.webm"])
@pytest.mark.parametrize("call_bytes", [1, 3 * 64 * 48 * 4, 2**30])
@pytest.mark.parametrize("num_shards", [1, 2, 7])
def test_gives_the_frames_asked_for(
    golden: GoldenSet, monkeypatch: pytest.MonkeyPatch, dali: None, name: str, call_bytes: int, num_shards: int
) -> None:
    """In the order asked, repeats included, with their own times, whatever the calls and shards; and they are kept."""
    monkeypatch.setattr(video_dali, "CALL_BYTES", call_bytes)
    video = golden.good[name]
    opened = open_video(video.path)
    index, info = opened.index, opened.info
    wanted = [59, 0, 5, 5, 4, 30, 31, 58]
    frames = list(video_dali._frames(index, info, np.array(wanted), None, num_shards=num_shards))
    assert [read(frame.rgb_YX3.numpy()) for frame in frames] == wanted
    assert [frame.timestamp_seconds for frame in frames] == [float(info.frame_times_seconds[i]) for i in wanted]
    assert frames[2].rgb_YX3.data_ptr() != frames[3].rgb_YX3.data_ptr()


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("plain.mp4", {}),
        ("long_groups.mkv", {"options": {**VPX, "g": "1000"}}),
        ("key_frames.webm", {"options": {**VPX, "g": "1"}}),
        ("hidden.webm", {"options": HIDDEN}),
        ("hidden.mp4", {"options": HIDDEN}),
        ("uneven.mkv", {"times_ms": [40 * i + i * i % 37 for i in range(200)]}),
        ("late.mp4", {"times_ms": [7_000 + 40 * i for i in range(200)]}),
        ("cut.mp4", {"times_ms": [40 * (i - 10) for i in range(200)]}),  # the first 10 hidden by an edit list
        ("live.webm", {"muxer_options": {"live": "1"}}),
        ("with_sound.mkv", {"audio_seconds": 2.0}),
    ],
)
def test_gives_random_frames_of_any_container(tmp_path: Path, dali: None, name: str, how: dict) -> None:
    path = tmp_path / name
    write_video(path, (draw(i) for i in range(200)), codec="libvpx-vp9", **{"options": VPX, **how})
    opened = open_video(path)
    index, info = opened.index, opened.info
    first = 200 - info.num_frames
    assert first == (10 if name == "cut.mp4" else 0)
    rng = np.random.default_rng(0)
    for num_shards in (1, 3, 7):
        wanted = rng.integers(0, info.num_frames, 12)
        frames = video_dali._frames(index, info, wanted, None, num_shards=num_shards)
        assert [read(frame.rgb_YX3.numpy()) for frame in frames] == (wanted + first).tolist()


def test_packets_go_to_another_process_and_give_the_same_frames(golden: GoldenSet, dali: None) -> None:
    opened = open_video(golden.good["vp9.webm"].path)
    wanted = np.array([59, 0, 5, 5, 30])
    packets = read_packets(opened.index, opened.info, wanted, backend="cpu", num_shards=2)
    assert isinstance(packets, Packets)
    assert 0 < packets.num_bytes < 2 * opened.index.path.stat().st_size
    sent = pickle.loads(pickle.dumps(packets))
    frames = zip(frames_of(sent, None), video_dali._frames(opened.index, opened.info, wanted, None), strict=True)
    assert all(a.timestamp_seconds == b.timestamp_seconds and torch.equal(a.rgb_YX3, b.rgb_YX3) for a, b in frames)
    plain = open_video(golden.good["b_frames.mp4"].path)
    reason = read_packets(plain.index, plain.info, wanted, backend="cpu")
    assert reason == "its codec is h264 and not one of vp9"


def test_asks_dali_for_the_planned_packets_alone(
    golden: GoldenSet, monkeypatch: pytest.MonkeyPatch, dali: None
) -> None:
    """Groups of 24: frames 3 and 50 take the first 4 packets and 3 of the third group, in two files of one batch."""
    fed = []
    monkeypatch.setattr(video_dali, "streams", lambda *a, **k: fed.append(streams(*a, **k)) or fed[-1])
    opened = open_video(golden.good["vp9.webm"].path)
    index, info = opened.index, opened.info
    assert [read(f.rgb_YX3.numpy()) for f in video_dali._frames(index, info, np.array([50, 3]), None)] == [50, 3]
    ((one, two),) = fed
    assert sorted([len(one.packets), len(two.packets)]) == [3, 4]


def test_no_frame_is_made_up_where_dali_counts_fewer(golden: GoldenSet, dali: None) -> None:
    """By default DALI gives black for a number that is too large."""
    index = open_video(golden.good["vp9.webm"].path).index
    with closing(PacketReader(index)) as reader:
        (stream,) = streams(reader, np.array([3]), num_shards=1, backend="cpu")
        file, form = reader.matroska(stream.packets), reader.format
    stream.number_of[int(index.pts_N[3])] = 4
    call, packets = video_dali.Call([file], [stream.number_of], []), video_dali._packets(index, form, ())
    with pytest.raises(RuntimeError, match=r"vp9.webm: DALI does not decode 1 frames of it.*") as error:
        video_dali._call(video_dali._pipeline(None, 1), call, packets)
    assert "out-of-bounds frame index 4" in str(error.value)


def still(num_frames: int = 6) -> list[np.ndarray]:
    colours = np.random.default_rng(0).integers(20, 236, (12, 16, 3), dtype=np.uint8)
    return [np.roll(colours, i, 0).repeat(8, 0).repeat(8, 1) for i in range(num_frames)]


@pytest.mark.parametrize("tags", [{}, {"colorspace": 5}, {"color_range": 2}])
def test_gives_the_bits_of_the_cpu_executor(tmp_path: Path, dali: None, tags: dict) -> None:
    path = tmp_path / "colours.webm"
    write_video(path, still(), codec="libvpx-vp9", options=LOSSLESS, tags=tags)
    opened = open_video(path)
    index, info = opened.index, opened.info
    ours = decode(path, info.frame_times_seconds[[4, 1]])
    for frame, same in zip(video_dali._frames(index, info, np.array([4, 1]), None), ours, strict=True):
        assert torch.equal(frame.rgb_YX3, same.rgb_YX3)


def decibels(rgb: Tensor, true: np.ndarray) -> float:
    return 10 * float(np.log10(255**2 / ((rgb.numpy().astype(np.float64) - true) ** 2).mean()))


@pytest.mark.parametrize(
    ("contrast", "least_decibels"),
    [
        (1.0, 51.5),  # measured: 51.8 to 53.6; as DALI gives them 32 to 34 dB, the CPU executor 52.8 to 53.6
        (1.25, 43.0),  # a ninth of the pixels clipped by BT.601: measured 43.3 to 53.3; 31 to 33 dB as DALI gives them
    ],
)
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", LUMA)
def test_colours_are_true(
    tmp_path: Path, dali: None, matrix: str, full_range: bool, contrast: float, least_decibels: float
) -> None:
    path = tmp_path / "colours.mkv"
    true = (127.5 + contrast * (smooth_picture() - 127.5)).clip(0, 255)
    write_planes(path, to_planes(true, matrix, full_range, "centre"), MATRIX_TAGS[matrix], full_range, "libvpx-vp9")
    opened = open_video(path)
    index, info = opened.index, opened.info
    with closing(PacketReader(index)) as reader:
        assert (reader.format.matrix, reader.format.is_full_range) == (MATRIX_TAGS[matrix], full_range)
    (frame,) = video_dali._frames(index, info, np.array([0]), None)
    assert decibels(frame.rgb_YX3, true) > least_decibels


@pytest.mark.parametrize("matrix", [1, 5, 7, 9])
def test_the_matrix_is_that_of_the_standard(matrix: int) -> None:
    """ITU-T H.273, 8.3: white and greys stay; Y', Cb, Cr by one matrix and back by the other is the identity."""
    back = video_dali.from_bt601(matrix)
    if matrix == 5:
        assert back is None
        return
    k_r, k_b = {1: (0.2126, 0.0722), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}[matrix]
    for rgb in np.random.default_rng(0).random((20, 3)):
        luma = k_r * rgb[0] + (1 - k_r - k_b) * rgb[1] + k_b * rgb[2]
        blue, red = (rgb[2] - luma) / (2 * (1 - k_b)), (rgb[0] - luma) / (2 * (1 - k_r))
        wrong = [luma + 1.402 * red, 0.0, luma + 1.772 * blue]
        wrong[1] = (luma - 0.299 * wrong[0] - 0.114 * wrong[2]) / 0.587
        assert np.allclose(np.array(back) @ wrong, rgb, atol=1e-12)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turns_pictures(tmp_path: Path, dali: None, degrees: int) -> None:
    path = tmp_path / "turned.mp4"
    write_video(path, still(3), codec="libvpx-vp9", options=LOSSLESS)
    set_display_matrix(path, {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees])
    opened = open_video(path)
    index, info = opened.index, opened.info
    assert info.rotation_degrees == degrees
    (same,) = decode(path, [0.0])
    (frame,) = video_dali._frames(index, info, np.array([0]), None)
    assert torch.equal(frame.rgb_YX3, same.rgb_YX3)
    assert frame.rgb_YX3.is_contiguous()


@pytest.mark.parametrize("width_px", [192, 171, 64])
def test_makes_pixels_square(tmp_path: Path, dali: None, width_px: int) -> None:
    """Not to the bit: the CPU executor stretches luma and chroma, this one RGB."""
    path = tmp_path / "stretched.webm"  # libvpx writes no pixel aspect: the index is told one
    write_video(path, [smooth_picture().astype(np.uint8)], codec="libvpx-vp9", options=LOSSLESS)
    index = replace(open_video(path).index, scaled_width_px=width_px)
    (same,) = (frame.rgb_YX3 for frame in Video(index, describe(index)).frames([0.0]))
    (frame,) = video_dali._frames(index, describe(index), np.array([0]), None)
    assert frame.rgb_YX3.shape == same.shape == (96, width_px, 3)
    assert decibels(frame.rgb_YX3, same.numpy()) >= 48


def test_dali_s_errors_name_the_file(golden: GoldenSet, dali: None) -> None:
    opened = open_video(golden.good["b_frames.mp4"].path)
    index, info = opened.index, opened.info
    with pytest.raises(RuntimeError, match=r'b_frames.mp4: DALI does not decode 1 frames of it. device="cpu" may'):
        list(video_dali._frames(index, info, np.array([3]), None))


def test_the_bench_compares_like_with_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dali: None) -> None:
    path = tmp_path / "made.webm"
    make_video(path, "vp9", 128, 96, 2)
    for way in ways("cpu"):
        assert measure_here(way, path, spread(path, 4), "cpu")["is_exact"]
    decode_way, others = bench_decode_dali.decode, spread(path, 4) // 2
    monkeypatch.setattr(
        bench_decode_dali, "decode", lambda way, path, places, device: decode_way(way, path, others, device)
    )
    assert not measure_here(ways("cpu")[0], path, spread(path, 4), "cpu")["is_exact"]


# On a GPU. 256 x 192: NVDEC takes neither HEVC nor VP9 as small as the golden set.
X265 = "log-level=error:keyint=24:min-keyint=24:bframes=4:scenecut=0"
GPU_FILES = {
    "b_frames.mp4": {"options": B_FRAMES},
    "b_frames.ts": {"options": B_FRAMES},
    "idr_alone.mp4": {"options": {"g": "1"}},
    "open_gop.mp4": {"options": {"x264-params": "open-gop=1:keyint=24:min-keyint=24:bframes=3:scenecut=0"}},
    "intra_refresh.mkv": {"options": {"x264-params": "intra-refresh=1:keyint=30:bframes=2:scenecut=0"}},
    "edit_list.mp4": {"options": B_FRAMES, "times_ms": [40 * (i - 10) for i in range(120)]},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": X265 + ":open-gop=0"}},
    "hevc_open_gop.mkv": {"codec": "libx265", "options": {"x265-params": X265 + ":open-gop=1"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": VPX},
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", GPU_FILES)
def test_gpu_gives_the_frames_asked_for(tmp_path: Path, dali: None, name: str) -> None:
    path = tmp_path / name
    write_video(path, (draw(i, 256, 192) for i in range(120)), **GPU_FILES[name])
    info = open_video(path).info
    first = 120 - info.num_frames  # hidden by an edit list
    wanted = [info.num_frames - 1, 0, 5, 5, 30, 31, *np.random.default_rng(0).integers(0, info.num_frames, 20).tolist()]
    frames = list(decode(path, info.frame_times_seconds[wanted], device="cuda"))
    assert all(frame.rgb_YX3.is_cuda and frame.rgb_YX3.shape == (192, 256, 3) for frame in frames)
    assert [read(frame.rgb_YX3.cpu().numpy()) for frame in frames] == [first + i for i in wanted]


@pytest.mark.gpu
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", LUMA)
def test_gpu_colours_are_true(tmp_path: Path, dali: None, matrix: str, full_range: bool) -> None:
    """Less than the CPU's: the GPU code rounds chroma before it converts."""
    path = tmp_path / "colours.mp4"
    true = smooth_picture(192, 256)
    write_planes(path, to_planes(true, matrix, full_range, "centre"), MATRIX_TAGS[matrix], full_range)
    (frame,) = decode(path, [0.0], device="cuda")
    assert decibels(frame.rgb_YX3.cpu(), true) > 45


@pytest.mark.gpu
def test_gpu_turns_pictures(tmp_path: Path, dali: None) -> None:
    path = tmp_path / "turned.mp4"
    write_video(path, [np.rot90(draw(i, 256, 192)) for i in range(3)], options=B_FRAMES)
    set_display_matrix(path, (0, 1, -1, 0))
    assert [read(frame.rgb_YX3.cpu().numpy()) for frame in decode(path, [0.0, 0.08], device="cuda")] == [0, 2]
