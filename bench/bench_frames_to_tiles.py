"""frames_to_tiles beside what Eagle's own loader does: Pillow's resize and crop, then torch's normalise and cast.

    python -m pytest bench/bench_frames_to_tiles.py --benchmark-columns=min,median,rounds

Both start from the same decoded uint8 frames and end in the same bf16 patches; the bench fails when they differ. One
thread each, so a row compares work; `ours, all threads` is what a user gets. On a GPU the frames are already there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch import Tensor

from eagle_kernels.frames_to_tiles import frames_to_tiles

ORDER = "pillow" if int(PIL.__version__.split(".")[0]) >= 13 else "horizontal"  # that of the Pillow at hand
MEAN = STD = (0.5, 0.5, 0.5)
TILE_PX, PATCH_PX = 448, 14
SHAPES = {  # num_frames, width_px, height_px, grid
    "image_1080p_4x2": (1, 1920, 1080, (4, 2)),
    "image_4k_4x3": (1, 3840, 2160, (4, 3)),
    "image_640x480_4x3": (1, 640, 480, (4, 3)),
    "video_720p_8_frames": (8, 1280, 720, (1, 1)),
}


def make(shape: str) -> tuple[Tensor, tuple[int, int]]:
    num_frames, width_px, height_px, grid = SHAPES[shape]
    values = np.random.default_rng(0).integers(0, 256, (num_frames, height_px, width_px, 3), dtype=np.uint8)
    return torch.from_numpy(values), grid


def ours(frames: Tensor, grid: tuple[int, int], num_threads: int = 0) -> Tensor:
    return frames_to_tiles(frames, grid, mean=MEAN, std=STD, thumbnail=True, pass_order=ORDER, num_threads=num_threads)


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


@pytest.fixture
def one_torch_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


WAYS: dict[str, Callable[[Tensor, tuple[int, int]], Tensor]] = {
    "ours, 1 thread": lambda frames, grid: ours(frames, grid, num_threads=1),
    "ours, all threads": ours,
    "Pillow, then torch, 1 thread": pillow_then_torch,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_cpu(benchmark: Any, shape: str, way: str, one_torch_thread: None) -> None:
    frames, grid = make(shape)
    benchmark.group = shape
    out = benchmark.pedantic(WAYS[way], args=(frames, grid), rounds=5, warmup_rounds=1)
    assert torch.equal(out, ours(frames, grid))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU; this machine has none")
@pytest.mark.parametrize("shape", SHAPES)
def test_gpu(benchmark: Any, shape: str) -> None:
    frames, grid = make(shape)
    on_gpu = frames.cuda()

    def run() -> Tensor:
        out = ours(on_gpu, grid)
        torch.cuda.synchronize()
        return out

    benchmark.group = shape
    benchmark.extra_info["bytes_moved"] = on_gpu.numel() + 2 * run().numel()
    out = benchmark.pedantic(run, rounds=20, warmup_rounds=3)
    assert torch.equal(out.cpu(), ours(frames, grid))
