"""Image files to RGB: `load_image` beside what loaders write by hand, Pillow's decoder and np.array.

    OMP_NUM_THREADS=1 python -m pytest bench/bench_images.py --benchmark-columns=min,median,rounds

One thread and CPU seconds, so a row compares work; the bench fails when the pixels differ. The pictures are gradients
with noise, so that they compress about as photographs do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from eagle_model.data.images import load_image

FILES: dict[str, tuple[int, int, str, dict[str, int]]] = {  # width_px, height_px, suffix, options
    "jpeg_3_35_mp": (2184, 1536, "jpg", {"quality": 88}),
    "jpeg_0_3_mp": (640, 480, "jpg", {"quality": 88}),
    "png_3_35_mp": (2184, 1536, "png", {"compress_level": 1}),
}


def pillow(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def decoder_alone(path: Path) -> Tensor:
    """libjpeg-turbo without a look at the header, the size, or the EXIF of the file."""
    return torch.from_numpy(simplejpeg.decode_jpeg(path.read_bytes(), "RGB"))


WAYS: dict[str, Callable[[Path], Tensor]] = {"ours": load_image, "Pillow": pillow, "simplejpeg": decoder_alone}


def make(folder: Path, name: str) -> Path:
    width_px, height_px, suffix, options = FILES[name]
    y, x = np.mgrid[:height_px, :width_px]
    smooth = np.stack([x * 0.1 + y * 0.05, y * 0.12, (x + y) * 0.07], -1) % 256
    noise = np.random.default_rng(0).normal(0, 12, smooth.shape)
    path = folder / f"{name}.{suffix}"
    Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FILES)
def test_cpu(benchmark: Any, name: str, way: str, tmp_path: Path) -> None:
    if way == "simplejpeg" and not name.startswith("jpeg"):
        pytest.skip("decodes JPEG alone")
    path = make(tmp_path, name)
    benchmark.group = name
    benchmark.extra_info.update(clock="CPU seconds, one thread", pillow=PIL.__version__)
    assert torch.equal(benchmark.pedantic(WAYS[way], args=(path,), rounds=15, warmup_rounds=2), pillow(path))
