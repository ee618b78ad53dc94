"""frames_to_tiles beside what Eagle's own loader does: Pillow's resize and crop, then torch's normalise and cast; and
beside torch alone, whose resize of uint8 with antialiasing is the strongest rival on a CPU.

    OMP_NUM_THREADS=1 python -m pytest bench/bench_frames_to_tiles.py --benchmark-columns=min,median,rounds

All start from the same decoded uint8 frames and end in bf16 patches; the bench fails when ours and Pillow's differ, or
torch's, whose weights have fewer bits, by more than a step or two. On the CPU one thread each and CPU seconds, user and
system, so a row compares work. On a GPU the frames are already there, and the rival is what torchvision's transforms do
there: resize in floating point, round, normalise, cut. Its pixels differ by some steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch import Tensor

from bench.harness import measure, seconds
from eagle_kernels import native
from eagle_kernels.frames_to_tiles import frames_to_tiles, images_to_tiles
from eagle_kernels.tiles import Tiling

ORDER = "pillow" if int(PIL.__version__.split(".")[0]) >= 13 else "horizontal"  # that of the Pillow at hand
MEAN = STD = (0.5, 0.5, 0.5)
TILE_PX, PATCH_PX = 448, 14
TILING = Tiling(tile_px=TILE_PX, patch_px=PATCH_PX, mean=MEAN, std=STD, thumbnail=True)
SHAPES = {  # num_frames, width_px, height_px, grid
    "image_1080p_4x2": (1, 1920, 1080, (4, 2)),
    "image_4k_4x3": (1, 3840, 2160, (4, 3)),
    "image_640x480_4x3": (1, 640, 480, (4, 3)),
    "video_720p_8_frames": (8, 1280, 720, (1, 1)),
    "video_portrait_8_frames": (8, 720, 1280, (1, 1)),  # columns first in Pillow 13
}


def make(shape: str) -> tuple[Tensor, tuple[int, int]]:
    num_frames, width_px, height_px, grid = SHAPES[shape]
    values = np.random.default_rng(0).integers(0, 256, (num_frames, height_px, width_px, 3), dtype=np.uint8)
    return torch.from_numpy(values), grid


def ours(frames: Tensor, grid: tuple[int, int], num_threads: int = 1) -> Tensor:
    return frames_to_tiles(frames, grid, TILING, pass_order=ORDER, num_threads=num_threads)


def ours_with(simd: str) -> Callable[[Tensor, tuple[int, int]], Tensor]:
    def run(frames: Tensor, grid: tuple[int, int]) -> Tensor:
        cols, rows = grid
        sizes = {"cols": cols, "rows": rows, "tile_px": TILE_PX, "patch_px": PATCH_PX}
        tiling = native.load().Tiling(thumbnail=True, pass_order=ORDER, mean=MEAN, std=STD, **sizes)
        out = torch.empty(TILING.shape(len(frames) * TILING.num_tiles(grid)), dtype=torch.bfloat16)
        native.load().frames_to_tiles_cpu(native.view(frames), native.view(out), tiling, 1, simd)
        return out

    return run


def pillow_then_torch(frames: Tensor, grid: tuple[int, int]) -> Tensor:
    cols, rows = grid
    images = []
    for frame in frames.numpy():
        image = Image.fromarray(frame)
        whole = image.resize((cols * TILE_PX, rows * TILE_PX), Image.Resampling.BICUBIC)
        for tile in range(cols * rows):
            x, y = tile % cols * TILE_PX, tile // cols * TILE_PX
            images.append(whole.crop((x, y, x + TILE_PX, y + TILE_PX)))
        if cols * rows > 1:
            images.append(image.resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC))
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float() / 255
    tiles = ((pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).to(torch.bfloat16)
    side = TILE_PX // PATCH_PX
    blocks = tiles.unflatten(3, (side, PATCH_PX)).unflatten(2, (side, PATCH_PX))
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def torch_uint8(frames: Tensor, grid: tuple[int, int]) -> Tensor:
    """torch's resize of bytes, whose channels lie side by side as decoded frames have them; patches while they are
    bytes; one multiplication and one addition in place."""
    (cols, rows), side = grid, TILE_PX // PATCH_PX
    frames_L3YX = frames.permute(0, 3, 1, 2)

    def resize(cols: int, rows: int) -> Tensor:
        size = rows * TILE_PX, cols * TILE_PX
        whole = torch.nn.functional.interpolate(frames_L3YX, size, mode="bicubic", antialias=True)
        return whole.unflatten(3, (cols, TILE_PX)).unflatten(2, (rows, TILE_PX)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)

    tiles = resize(cols, rows)  # frame, tile, 3, y, x
    if cols * rows > 1:
        tiles = torch.cat([tiles, resize(1, 1)], 1)
    blocks = tiles.flatten(0, 1).unflatten(3, (side, PATCH_PX)).unflatten(2, (side, PATCH_PX)).permute(0, 2, 4, 1, 3, 5)
    factor, shift = 1 / (255 * STD[0]), -MEAN[0] / STD[0]  # one for all channels
    return blocks.flatten(3).flatten(1, 2).float().mul_(factor).add_(shift).bfloat16()


@pytest.fixture
def one_torch_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


SIMD = native.build_info()["simd"]
WAYS: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
    "ours": ours,
    **({"ours, avx2": ours_with("avx2")} if SIMD == "avx512" else {}),
    **({"ours, portable": ours_with("")} if SIMD else {}),
    "Pillow, then torch": pillow_then_torch,
    "torch, uint8": torch_uint8,
}


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cpu(benchmark: Any, shape: str, way: str, one_torch_thread: None) -> None:
    frames, grid = make(shape)
    benchmark.group = shape
    benchmark.extra_info.update(clock="CPU seconds, one thread", simd=SIMD, pillow=PIL.__version__)
    out = benchmark.pedantic(WAYS[way], args=(frames, grid), rounds=9, warmup_rounds=1)
    if way == "torch, uint8":
        assert (out.float() - ours(frames, grid).float()).abs().mean() < 0.02
    else:
        assert torch.equal(out, ours(frames, grid))


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; this machine has none")


def torch_tiles(pixels_L3YX: Tensor, grid: tuple[int, int]) -> Tensor:
    """What torchvision's transforms do: resize in floating point, round, normalise, cut; the patches of `ours`."""
    cols, rows = grid

    def resize(height_px: int, width_px: int) -> Tensor:
        resized = torch.nn.functional.interpolate(pixels_L3YX, (height_px, width_px), mode="bicubic", antialias=True)
        return resized.round_().clamp_(0, 255)

    whole = resize(rows * TILE_PX, cols * TILE_PX).unflatten(2, (rows, TILE_PX)).unflatten(4, (cols, TILE_PX))
    tiles = whole.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # frame, tile, 3, y, x
    if cols * rows > 1:
        tiles = torch.cat([tiles, resize(TILE_PX, TILE_PX)[:, None]], 1)
    mean, std = (torch.tensor(v, device=pixels_L3YX.device).view(3, 1, 1) for v in (MEAN, STD))
    tiles = ((tiles.flatten(0, 1) / 255 - mean) / std).to(torch.bfloat16)
    side = TILE_PX // PATCH_PX
    blocks = tiles.unflatten(3, (side, PATCH_PX)).unflatten(2, (side, PATCH_PX))
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.benchmark(timer=seconds)
@pytest.mark.parametrize("way", ["ours", "torch"])
@pytest.mark.parametrize("shape", SHAPES)
def test_gpu(benchmark: Any, shape: str, way: str) -> None:
    frames, grid = make(shape)
    on_gpu, want = frames.cuda(), ours(frames, grid)
    run = ours if way == "ours" else lambda frames, grid: torch_tiles(frames.permute(0, 3, 1, 2).float(), grid)
    out = run(on_gpu, grid)
    if way == "ours":
        assert torch.equal(out.cpu(), want)
    else:
        assert (out.cpu().float() - want.float()).abs().mean() < 0.01
    benchmark.group = f"GPU, {shape}"
    bytes_moved = on_gpu.numel() + 2 * out.numel()
    measure(benchmark, lambda: [run(on_gpu, grid)], [out], dtype=out.dtype, bytes_moved=bytes_moved)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.benchmark(timer=seconds)
@pytest.mark.parametrize("way", ["one call", "one by one"])
def test_gpu_images_of_many_sizes(benchmark: Any, way: str) -> None:
    cases = [make(shape) for shape in SHAPES if shape.startswith("image")] * 4
    images, grids = [frames[0].cuda() for frames, _ in cases], [grid for _, grid in cases]

    def one_call() -> Tensor:
        return images_to_tiles(images, grids, TILING, pass_order=ORDER)

    def one_by_one() -> Tensor:
        return torch.cat([ours(image[None], grid) for image, grid in zip(images, grids, strict=True)])

    benchmark.group = "GPU, 12 images of three sizes"
    run, want = one_call if way == "one call" else one_by_one, one_by_one()
    assert torch.equal(run(), want)
    measure(benchmark, lambda: [run()], [want], dtype=want.dtype)
