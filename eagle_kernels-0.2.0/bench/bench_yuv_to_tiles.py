"""yuv_to_tiles beside what a loader does with a decoder's planes: to RGB by swscale, then frames_to_tiles.

    OMP_NUM_THREADS=1 python -m pytest bench/bench_yuv_to_tiles.py --benchmark-columns=min,median,rounds

All start from the same 8-bit 4:2:0 planes and end in bf16 patches. On the CPU one thread each and CPU seconds, user and
system, so a row compares work. swscale runs with the flags of eagle_kernels.video ("good", which decoding needs for its
50 dB) and with its own defaults ("fast", some 43 dB). On a GPU the planes are already there, and the rival is torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.bench_frames_to_tiles import MEAN, PATCH_PX, STD, TILE_PX, TILING, torch_tiles
from bench.harness import measure, seconds
from eagle_kernels import native
from eagle_kernels.frames_to_tiles import frames_to_tiles
from eagle_kernels.yuv_to_tiles import colours, yuv_to_tiles

SHAPES = {  # num_frames, width_px, height_px, grid
    "video_720p_8_frames": (8, 1280, 720, (1, 1)),
    "video_portrait_8_frames": (8, 720, 1280, (1, 1)),
    "video_360p_8_frames": (8, 640, 360, (1, 1)),
    "video_1080p_4x2": (1, 1920, 1080, (4, 2)),
}

Planes = tuple[Tensor, Tensor, Tensor]


def make(shape: str) -> tuple[Planes, tuple[int, int]]:
    """Waves, moving from frame to frame: within range for every conversion, and not flat."""
    num_frames, width_px, height_px, grid = SHAPES[shape]

    def plane(rows: int, columns: int, low: int, high: int) -> Tensor:
        y, x = torch.arange(rows)[:, None] / rows, torch.arange(columns)[None, :] / columns
        waves = [torch.sin(40 * x + 25 * y + frame) * torch.sin(31 * y - 12 * x) for frame in range(num_frames)]
        return (low + (high - low) * (torch.stack(waves) + 1) / 2).round().to(torch.uint8)

    half = height_px // 2, width_px // 2
    return (plane(height_px, width_px, 60, 200), plane(*half, 100, 150), plane(*half, 110, 150)), grid


def ours(planes: Planes, grid: tuple[int, int]) -> Tensor:
    return yuv_to_tiles(*planes, grid, TILING, matrix="bt709", full_range=False, num_threads=1)


def nv12(planes: Planes) -> Planes:
    y, u, v = planes
    uv = torch.stack([u, v], -1)
    return y, uv[..., 0], uv[..., 1]


def ours_with(simd: str) -> Callable[[Planes, tuple[int, int]], Tensor]:
    def run(planes: Planes, grid: tuple[int, int]) -> Tensor:
        cols, rows = grid
        sizes = {"cols": cols, "rows": rows, "tile_px": TILE_PX, "patch_px": PATCH_PX}
        tiling = native.load().Tiling(thumbnail=True, pass_order="horizontal", mean=MEAN, std=STD, **sizes)
        out = torch.empty(TILING.shape(len(planes[0]) * TILING.num_tiles(grid)), dtype=torch.bfloat16)
        y, u, v = map(native.view, planes)
        numbers = {"colours": colours("bt709", False), "cosited_across": True, "cosited_down": False}
        frames = native.load().YuvFrames(y=y, u=u, v=v, **numbers)
        native.load().yuv_to_tiles_cpu(frames, native.view(out), tiling, 1, simd)
        return out

    return run


def av_frames(planes: Planes) -> list[Any]:
    """As the decoder hands them over."""
    video = pytest.importorskip("av.video")
    frames = []
    for y, u, v in zip(*planes, strict=True):
        frame = video.frame.VideoFrame(y.shape[1], y.shape[0], "yuv420p")
        for to, plane in zip(frame.planes, (y, u, v), strict=True):
            memory = torch.frombuffer(to, dtype=torch.uint8).view(-1, to.line_size)
            memory[: plane.shape[0], : plane.shape[1]] = plane
        frames.append(frame)
    return frames


def swscale_then_ours(flags: str) -> Callable[[list[Any], tuple[int, int]], Tensor]:
    def run(frames: list[Any], grid: tuple[int, int]) -> Tensor:
        reformat = pytest.importorskip("av.video.reformatter")
        good = reformat.Interpolation.ACCURATE_RND | reformat.Interpolation.FULL_CHR_H_INT
        interpolation = reformat.Interpolation.BILINEAR | (good if flags == "good" else 0)
        reformatter = reformat.VideoReformatter()
        tiles = []
        for frame in frames:  # one by one: no copy into one tensor
            rgb = reformatter.reformat(
                frame,
                format="rgb24",
                src_colorspace=reformat.Colorspace.ITU709,
                src_color_range=reformat.ColorRange.MPEG,
                dst_color_range=reformat.ColorRange.JPEG,
                interpolation=interpolation,
                threads=1,
            )
            rgb_1YX3 = torch.from_numpy(rgb.to_ndarray())[None]
            tiles.append(frames_to_tiles(rgb_1YX3, grid, TILING, num_threads=1))
        return torch.cat(tiles)

    return run


SIMD = native.build_info()["simd"]
WAYS: dict[
    str, tuple[Callable[[Planes], Any], Callable[[Any, tuple[int, int]], Tensor]]
] = {  # make ready; what is timed
    "ours": (tuple, ours),
    "ours, NV12": (nv12, ours),
    **({"ours, avx2": (tuple, ours_with("avx2"))} if SIMD == "avx512" else {}),
    **({"ours, portable": (tuple, ours_with(""))} if SIMD else {}),
    "swscale, good, then frames_to_tiles": (av_frames, swscale_then_ours("good")),
    "swscale, fast, then frames_to_tiles": (av_frames, swscale_then_ours("fast")),
}


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cpu(benchmark: Any, shape: str, way: str) -> None:
    planes, grid = make(shape)
    prepare, run = WAYS[way]
    benchmark.group = shape
    benchmark.extra_info.update(clock="CPU seconds, one thread", simd=SIMD, num_frames=len(planes[0]))
    out = benchmark.pedantic(run, args=(prepare(planes), grid), rounds=15, warmup_rounds=5)
    if way.startswith("ours"):
        assert torch.equal(out, ours(planes, grid))
    else:
        assert (out.float() - ours(planes, grid).float()).abs().mean() < 0.02


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; this machine has none")


def torch_on_gpu(planes: Planes, grid: tuple[int, int]) -> Tensor:
    """RGB at full size by a matrix, then torchvision's way."""
    y, u, v = (p[:, None].float() for p in planes)
    u, v = (torch.nn.functional.interpolate(p - 128, y.shape[2:], mode="bilinear") * (255 / 224) for p in (u, v))
    y = (y - 16) * (255 / 219)
    pixels = torch.cat([y + 1.5748 * v, y - 0.1873 * u - 0.4681 * v, y + 1.8556 * u], 1).clamp_(0, 255)
    return torch_tiles(pixels, grid)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.benchmark(timer=seconds)
@pytest.mark.parametrize("way", ["ours", "torch"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gpu(benchmark: Any, shape: str, way: str) -> None:
    planes, grid = make(shape)
    on_gpu, want = tuple(p.cuda() for p in planes), ours(planes, grid)
    run = ours if way == "ours" else torch_on_gpu
    out = run(on_gpu, grid)
    if way == "ours":
        assert torch.equal(out.cpu(), want)
    else:
        assert (out.cpu().float() - want.float()).abs().mean() < 0.02
    benchmark.group = f"GPU, {shape}"
    bytes_moved = on_gpu[0].numel() * 3 // 2 + 2 * out.numel()
    measure(benchmark, lambda: [run(on_gpu, grid)], [out], dtype=out.dtype, bytes_moved=bytes_moved)
