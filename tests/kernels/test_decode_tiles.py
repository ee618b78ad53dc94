"""decode_tiles: tiles of the true frames, by planes or by RGB as the stream alone says, in the memory of the result."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")

import av

from eagle_kernels.decode_tiles import FRAMES_AT_ONCE, DecodedTiles, _tile_in_batches, decode_tiles
from eagle_kernels.frames_to_tiles import frames_to_tiles
from eagle_kernels.tiles import Tiling
from eagle_kernels.video import VideoError, decode, probe
from eagle_kernels.video import open as open_video
from eagle_kernels.video.libav import picture as libav_picture
from eagle_kernels.video.libav import reader
from eagle_kernels.video.libav.picture import Picture
from eagle_kernels.yuv_to_tiles import yuv_to_tiles_ref
from tests.video.make import (
    GOOD_NAMES,
    MATRIX_TAGS,
    GoldenSet,
    draw,
    ordinary_priority,
    read,
    smooth_picture,
    to_planes,
    write_planes,
    write_video,
)

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
PICTURES = {**HALF, "dtype": torch.uint8, "layout": "tiles"}  # what can be looked at
TILES_28 = Tiling(tile_px=28, **HALF)
BY_RGB = {"444.mp4", "10_bit.mp4", "hevc_10_bit.mp4", "odd.mp4"}
TURNED = {"turned_90.mp4": -1, "turned_180.mp4": 2, "turned_270.mp4": 1, "mirrored.mp4": 0}  # quarters, anticlockwise
STRETCHED = {"wide_pixels.mp4", "wide_pixels.mkv"}  # by `decode`, before they can be tiled
LEFT = {"h264", "hevc", "mpeg2video", "mpeg4"}


def decibel(a: Tensor, b: Tensor) -> float:
    error = float(((a.double() - b.double()) ** 2).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def by_rgb(path: Path, times: list[float], grid: tuple[int, int], tiling: Tiling) -> Tensor:
    """Every frame decoded first."""
    return frames_to_tiles(torch.stack([frame.rgb_YX3 for frame in decode(path, times)]), grid, tiling)


def planes_by_pyav(path: Path) -> list[list[Tensor]]:
    """Y, U and V of every frame of the file, decoded from its start to its end."""
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic)
        frames = []
        for frame in container.decode(stream):
            rows = [np.frombuffer(bytes(p), np.uint8).reshape(p.height, p.line_size) for p in frame.planes]
            if frame.format.name == "nv12":
                rows = [rows[0], rows[1][:, ::2], rows[1][:, 1::2]]
            widths = (frame.width, (frame.width + 1) // 2, (frame.width + 1) // 2)
            frames.append([torch.from_numpy(r[:, :width].copy()) for r, width in zip(rows, widths)])
        return frames


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_the_true_frames_of_every_kind_of_file(golden: GoldenSet, name: str) -> None:
    video = golden.good[name]
    info = probe(video.path)
    wanted = [len(video.numbers) - 1, *range(0, len(video.numbers), 13)]
    times = info.frame_times_seconds[wanted].tolist()
    result = decode_tiles(video.path, times, (1, 1), Tiling(tile_px=112, **PICTURES))
    assert isinstance(result, DecodedTiles)
    assert list(result.timestamps_seconds) == times
    assert [read(tile.permute(1, 2, 0).numpy()) for tile in result.tiles_IPK] == [video.numbers[i] for i in wanted]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_the_stream_alone_decides_between_planes_and_rgb(golden: GoldenSet, name: str) -> None:
    """By RGB: the bits of `decode` and `frames_to_tiles`. By planes: those of what a plain decoder gives, and close."""
    video = golden.good[name]
    wanted = sorted({0, len(video.numbers) // 2, len(video.numbers) - 1})
    times = probe(video.path).frame_times_seconds[wanted].tolist()
    tiling = Tiling(thumbnail=True, tile_px=28, **PICTURES)
    tiles = decode_tiles(video.path, times, (2, 1), tiling).tiles_IPK
    rgb_tiles = by_rgb(video.path, times, (2, 1), tiling)
    if name in BY_RGB:
        assert torch.equal(tiles, rgb_tiles)
        return
    if name not in STRETCHED:
        assert decibel(tiles, rgb_tiles) > 50
    all_planes = planes_by_pyav(video.path)[
        -len(video.numbers) :
    ]  # an edit list's and a cut stream's first are not shown
    if name == "vp8_hidden.webm":
        all_planes = planes_by_pyav(video.path)
    y, u, v = (torch.stack(planes) for planes in zip(*(all_planes[i] for i in wanted)))
    colours = {"matrix": "bt601", "full_range": name in ("full_range.mp4", "mjpeg.avi")}
    chroma = "left" if video.codec in LEFT else "center"
    stored_grid = (1, 2) if name in ("turned_90.mp4", "turned_270.mp4") else (2, 1)
    want = yuv_to_tiles_ref(y, u, v, stored_grid, tiling, chroma=chroma, **colours)
    if name in TURNED:
        want = torch.cat([turned(frame, stored_grid, (2, 1), TURNED[name]) for frame in want.unflatten(0, (-1, 3))])
    assert torch.equal(tiles, want)


def turned(tiles_IXYC: Tensor, stored: tuple[int, int], shown: tuple[int, int], quarters: int) -> Tensor:
    """Whole tiles of a frame, with its thumbnail last: put together, turned, and cut again. 0 quarters: mirrored."""

    def turn(picture_CYX: np.ndarray) -> np.ndarray:
        return np.rot90(picture_CYX, quarters, (1, 2)) if quarters else picture_CYX[:, :, ::-1]

    *tiles, thumbnail = tiles_IXYC.numpy()
    whole = np.concatenate([np.concatenate(tiles[r::1][: stored[0]], 2) for r in range(0, len(tiles), stored[0])], 1)
    rows = np.split(turn(whole), shown[1], 1)
    cut = [tile for row in rows for tile in np.split(row, shown[0], 2)]
    return torch.from_numpy(np.stack([*cut, turn(thumbnail)]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
@pytest.mark.parametrize("name", TURNED)
def test_turned_patches_are_those_of_turned_tiles(golden: GoldenSet, name: str, dtype: torch.dtype) -> None:
    how = {"tile_px": 28, "thumbnail": True, "dtype": dtype, **HALF}
    path, times = golden.good[name].path, [0.0, 0.6]
    for grid in ((3, 2), (1, 1)):
        patches = decode_tiles(path, times, grid, Tiling(patch_px=7, **how)).tiles_IPK
        tiles = decode_tiles(path, times, grid, Tiling(layout="tiles", **how)).tiles_IPK
        assert torch.equal(patches, tiles.unfold(2, 7, 7).unfold(3, 7, 7).permute(0, 2, 3, 1, 4, 5).reshape_as(patches))


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", ["601", "709", "2020", "none"])
def test_colours_are_those_the_stream_names(tmp_path: Path, matrix: str, full_range: bool) -> None:
    true_YX3 = smooth_picture(112, 112)
    planes = to_planes(true_YX3, "601" if matrix == "none" else matrix, full_range)
    write_planes(tmp_path / "colour.mp4", planes, MATRIX_TAGS[matrix], full_range)
    (tile_3YX,) = decode_tiles(tmp_path / "colour.mp4", [0.0], (1, 1), Tiling(tile_px=112, **PICTURES)).tiles_IPK
    assert decibel(tile_3YX, torch.from_numpy(true_YX3).permute(2, 0, 1)) > 51.5  # as test_decode.py asks of RGB


@pytest.mark.parametrize("tag", [4, 7])  # ITU-T H.273: FCC, SMPTE 240M
def test_other_matrices_go_through_rgb(tmp_path: Path, tag: int) -> None:
    write_planes(tmp_path / "colour.mp4", to_planes(smooth_picture(), "601", False), tag, False)
    tiling = Tiling(tile_px=56, **PICTURES)
    tiles = decode_tiles(tmp_path / "colour.mp4", [0.0], (1, 1), tiling).tiles_IPK
    assert torch.equal(tiles, by_rgb(tmp_path / "colour.mp4", [0.0], (1, 1), tiling))


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mpg", "mpeg1video", "yuv420p"),
        ("a.mpg", "mpeg2video", "yuv420p"),
        ("a.avi", "mjpeg", "yuvj420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mp4", "libx265", "yuv420p"),
        ("a.webm", "libvpx", "yuv420p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.mp4", "libsvtav1", "yuv420p"),
        ("a.avi", "rawvideo", "nv12"),
    ],
)
def test_chroma_lies_where_libav_takes_it_to_lie(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    """Coloured squares: swscale, which is told, makes RGB that is 5 dB nearer to one place than to the others."""
    rgb_YX3 = np.random.default_rng(0).integers(90, 166, (8, 8, 3), dtype=np.uint8).repeat(14, 0).repeat(14, 1)
    with ordinary_priority(), av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 112, 112, pix_fmt
        stream.codec_context.bit_rate = 4_000_000
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(rgb_YX3, format="rgb24").reformat(format=pix_fmt)
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    tiling = Tiling(tile_px=112, **PICTURES)
    rgb_tiles = by_rgb(tmp_path / name, [0.0], (1, 1), tiling)
    tiles = decode_tiles(tmp_path / name, [0.0], (1, 1), tiling).tiles_IPK
    y, u, v = (plane[None] for plane in planes_by_pyav(tmp_path / name)[0])
    colours = {"matrix": "bt601", "full_range": pix_fmt == "yuvj420p"}
    by_place = [
        yuv_to_tiles_ref(y, u, v, (1, 1), tiling, chroma=chroma, **colours) for chroma in ("left", "center", "top_left")
    ]
    best, second, _ = sorted(by_place, key=lambda other: -decibel(other, rgb_tiles))
    assert torch.equal(tiles, best)
    assert decibel(best, rgb_tiles) > decibel(second, rgb_tiles) + 5


def test_order_repeats_and_workers_change_no_bit(golden: GoldenSet) -> None:
    for name in ("b_frames.mp4", "open_gop.ts", "10_bit.mp4"):
        path = golden.good[name].path
        times = probe(path).frame_times_seconds
        in_order = decode_tiles(path, times.tolist(), (1, 1), TILES_28).tiles_IPK
        order = random.Random(0).sample(range(len(times)), 20)
        order += [order[3], order[3], 0]
        for num_workers in (1, 3):
            result = decode_tiles(path, times[order].tolist(), (1, 1), TILES_28, num_workers=num_workers)
            assert result.timestamps_seconds == tuple(times[order].tolist())
            assert torch.equal(result.tiles_IPK, in_order[order])


def test_a_repeat_beside_a_worker_goes_to_its_own_place(golden: GoldenSet) -> None:
    path = golden.good["b_frames.mp4"].path
    wanted = [24, 24, 23, 60, 60, 1, 24]  # in groups of 24
    result = decode_tiles(path, [i / 25 for i in wanted], (1, 1), Tiling(tile_px=112, **PICTURES), num_workers=2)
    assert [read(tile.permute(1, 2, 0).numpy()) for tile in result.tiles_IPK] == wanted


@pytest.mark.parametrize("options", [{"seek": "keyframe"}, {"seek": "tolerance", "tolerance": 0.5}])
def test_chosen_frames_of_an_open_video_have_their_own_times(golden: GoldenSet, options: dict) -> None:
    video = open_video(golden.good["b_frames.mp4"].path)
    asked = [0.1, 0.9, 2.0, 4.7]
    result = decode_tiles(video, video.choose(asked, **options), (1, 1), Tiling(tile_px=112, **PICTURES))
    assert result.timestamps_seconds == tuple(video.choose(asked, **options).tolist())
    assert result.timestamps_seconds != tuple(asked)
    shown = [read(tile.permute(1, 2, 0).numpy()) for tile in result.tiles_IPK]
    assert shown == [round(t * 25) for t in result.timestamps_seconds]


@pytest.mark.parametrize("name", ["b_frames.mp4", "444.mp4"])
def test_grids_thumbnails_layouts_and_dtypes(golden: GoldenSet, name: str) -> None:
    """uint8 tiles are the whole picture in pieces; everything else follows from them."""
    path = golden.good[name].path
    times = [0.0, 1.0]
    tiling = Tiling(tile_px=28, patch_px=14, thumbnail=True, **HALF)
    pictures = replace(tiling, dtype=torch.uint8, layout="tiles")
    cut = decode_tiles(path, times, (3, 2), pictures).tiles_IPK
    assert cut.shape == (2 * 7, 3, 28, 28)
    alone = decode_tiles(path, times, (1, 1), pictures).tiles_IPK
    assert torch.equal(cut.unflatten(0, (2, 7))[:, 6], alone)
    for dtype in (torch.bfloat16, torch.float32):
        patches = decode_tiles(path, times, (3, 2), replace(tiling, dtype=dtype)).tiles_IPK
        assert patches.shape == (2 * 7, 4, 588)
        blocks = ((cut.float() / 255 - 0.5) / 0.5).to(dtype).unflatten(3, (2, 14)).unflatten(2, (2, 14))
        assert torch.equal(patches, blocks.permute(0, 2, 4, 1, 3, 5).reshape(14, 4, 588))


def test_the_result_may_be_part_of_the_caller_s_tensor(golden: GoldenSet) -> None:
    path = golden.good["b_frames.mp4"].path
    want = decode_tiles(path, [0.0, 1.0], (1, 1), TILES_28).tiles_IPK
    whole = torch.full((4, 4, 588), torch.nan, dtype=torch.bfloat16)
    result = decode_tiles(path, [0.0, 1.0], (1, 1), TILES_28, out=whole[1:3])
    assert result.tiles_IPK.data_ptr() == whole[1:3].data_ptr()
    assert torch.equal(whole[1:3], want)
    assert whole[[0, 3]].isnan().all()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.empty(3, 4, 588, dtype=torch.bfloat16), r"out's shape is \(3, 4, 588\); needs \(2, 4, 588\)"),
        (torch.empty(2, 4, 588), "out's dtype is torch.float32; needs torch.bfloat16"),
        (torch.empty(2, 4, 588, dtype=torch.bfloat16, device="meta"), "out's device is meta; needs cpu"),
        (torch.empty(588, 4, 2, dtype=torch.bfloat16).permute(2, 1, 0), "out's strides is .*contiguous"),
    ],
)
def test_refuses_a_tensor_that_does_not_fit(golden: GoldenSet, out: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"decode_tiles: {message}"):
        decode_tiles(golden.good["b_frames.mp4"].path, [0.0, 1.0], (1, 1), TILES_28, out=out)


def test_no_times_no_tiles(golden: GoldenSet) -> None:
    result = decode_tiles(golden.good["b_frames.mp4"].path, [], (2, 2), Tiling(**HALF))
    assert result.timestamps_seconds == ()
    assert result.tiles_IPK.shape == (0, 1024, 588)


def test_arguments_are_checked_before_the_file_is_opened(tmp_path: Path) -> None:
    absent = tmp_path / "absent.mp4"
    for wrong, message in [
        ({"tiling": HALF}, "decode_tiles: tiling is a dict; needs a Tiling"),
        ({"grid": (0, 1)}, "decode_tiles: grid is"),
        ({"num_workers": 0}, "num_workers is 0; needs at least 1"),
        ({"time_limit_seconds": -1.0}, "time_limit_seconds is -1.0"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            decode_tiles(absent, [0.0], **{"grid": (1, 1), "tiling": TILES_28, **wrong})
        assert not isinstance(error.value, VideoError)
    with pytest.raises(VideoError, match=r"absent\.mp4: there is no such file"):
        decode_tiles(absent, [0.0], (1, 1), TILES_28)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_missing_frame_is_named_as_by_decode(golden: GoldenSet, num_workers: int) -> None:
    path = golden.bad["garbage_inside.mp4"]
    times = probe(path).frame_times_seconds.tolist()
    with pytest.raises(VideoError) as by_decode:
        list(decode(path, times))
    with pytest.raises(VideoError) as error:
        decode_tiles(path, times, (1, 1), TILES_28, num_workers=num_workers)
    assert str(error.value) == str(by_decode.value)
    assert "is damaged or missing" in str(error.value)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_time_limit_ends_the_work(golden: GoldenSet, num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reader.decode
    path = golden.good["long_gop.mp4"].path
    monkeypatch.setattr(reader, "decode", lambda packet, decoder: time.sleep(0.02) or whole(packet, decoder))
    with pytest.raises(VideoError, match=r"decoding took more than time_limit_seconds = 0\.2 s"):
        decode_tiles(path, [0.0, 11.0], (1, 1), TILES_28, num_workers=num_workers, time_limit_seconds=0.2)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_another_thread_can_stop_the_work(golden: GoldenSet, num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stop, whole = threading.Event(), reader.decode
    num_fed = 0

    def slowly(packet: av.Packet, decoder: av.VideoCodecContext) -> list[av.VideoFrame] | None:
        nonlocal num_fed
        num_fed += 1
        if num_fed == 40:
            stop.set()
        return whole(packet, decoder)

    monkeypatch.setattr(reader, "decode", slowly)
    path = golden.good["long_gop.mp4"].path  # 300 pictures
    with pytest.raises(CancelledError):
        decode_tiles(path, [0.0, 11.0], (1, 1), TILES_28, num_workers=num_workers, stop=stop)
    assert num_fed <= 40 + num_workers
    assert not [t for t in threading.enumerate() if t.name.startswith("eagle-video")]


def test_no_worker_waits_for_the_frames_of_an_earlier_group(golden: GoldenSet) -> None:
    """Many frames of each of two groups: the second is done while the first still works on its first frame."""
    second_done = threading.Event()

    def take(picture: Picture, m: int) -> bool:
        if m == 47:
            second_done.set()
        return m > 0 or second_done.wait(20)

    times = [i / 25 for i in range(48)]  # two groups of 24
    taken = [ok for _, ok in open_video(golden.good["b_frames.mp4"].path).pictures(times, take, num_workers=2)]
    assert taken == [True] * 48


def test_what_a_worker_raises_reaches_the_caller(golden: GoldenSet) -> None:
    def broken(picture: Picture, m: int) -> bool:
        raise MemoryError("no more")

    for num_workers in (1, 2):
        with pytest.raises(MemoryError, match="no more"):
            list(open_video(golden.good["b_frames.mp4"].path).pictures([0.0], broken, num_workers=num_workers))


def test_no_rgb_picture_and_no_copy_of_the_planes(golden: GoldenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libav_picture, "to_rgb", lambda *args: pytest.fail("an RGB picture was made"))
    path = golden.good["b_frames.mp4"].path
    decode_tiles(path, [0.0, 1.0], (1, 1), TILES_28)

    def addresses(picture: Picture, m: int) -> tuple[list[int], list[int]]:
        planes = picture.planes()
        assert planes is not None
        ours = [plane.data_ptr() for plane in (planes.y_YX, planes.u_HW, planes.v_HW)]
        return ours, [plane.buffer_ptr for plane in picture.frame.planes]

    for _, (ours, libav_s) in open_video(path).pictures([0.0, 1.0], addresses):
        assert ours == libav_s


def test_memory_is_the_result_and_a_few_frames(tmp_path: Path) -> None:
    """120 frames of 640 x 480 are 105 MiB of RGB; 56 px tiles of them are 2 MiB."""
    path = tmp_path / "large.mp4"
    write_video(path, (draw(i % 60, 640, 480) for i in range(120)), options={"preset": "ultrafast", "g": "30"})
    code = f"""
from pathlib import Path
from eagle_kernels import Tiling, decode_tiles
from eagle_kernels.video import decode
times = [i / 25 for i in range(120)]
tiling = Tiling(mean=(0.5,) * 3, std=(0.5,) * 3, tile_px=56)
decode_tiles({str(path)!r}, times[:1], (1, 1), tiling)
def peak(): return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])  # KiB
before = peak()
decode_tiles({str(path)!r}, times, (1, 1), tiling, num_workers=2)
as_one = peak() - before
frames = list(decode({str(path)!r}, times))
print(as_one, peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    as_one_kib, decoded_first_kib = map(int, done.stdout.split())
    assert decoded_first_kib > 100 * 1024
    assert as_one_kib < decoded_first_kib / 3


def test_batches_of_a_gpu_end_where_the_frames_do(golden: GoldenSet) -> None:
    path = golden.good["b_frames.mp4"].path
    times = [i / 25 for i in range(FRAMES_AT_ONCE + 3)]
    tiling = Tiling(thumbnail=True, tile_px=28, **PICTURES)
    want = by_rgb(path, times, (2, 1), tiling)
    out = torch.empty_like(want)

    def tiles(frames_LYX3: Tensor) -> Tensor:
        assert len(frames_LYX3) <= FRAMES_AT_ONCE
        return frames_to_tiles(frames_LYX3, (2, 1), tiling)

    got = _tile_in_batches(decode(path, times), tiles, out.unflatten(0, (len(times), 3)), None)
    assert got == tuple(times)
    assert torch.equal(out, want)
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError):
        _tile_in_batches(decode(path, times), tiles, out.unflatten(0, (len(times), 3)), stop)


@pytest.mark.gpu
def test_gpu_tiles_are_those_of_its_frames(golden: GoldenSet) -> None:
    pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI (the extra `dali`)")
    path = golden.good["b_frames.mp4"].path
    times = [i / 25 for i in range(0, 120, 9)]
    tiling = Tiling(tile_px=112, **PICTURES)
    result = decode_tiles(path, times, (1, 1), tiling, device="cuda")
    assert result.tiles_IPK.is_cuda
    assert [read(tile.permute(1, 2, 0).cpu().numpy()) for tile in result.tiles_IPK] == list(range(0, 120, 9))
    frames_LYX3 = torch.stack([frame.rgb_YX3 for frame in decode(path, times, device="cuda")])
    assert torch.equal(result.tiles_IPK, frames_to_tiles(frames_LYX3, (1, 1), tiling))
