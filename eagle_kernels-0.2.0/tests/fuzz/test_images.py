"""Damaged images of every format: pixels of the size that the header said, or a DataError; soon, and nothing else."""

from __future__ import annotations

import io
import random
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eagle_model.data.images import FORMATS, image_size, is_still, load_image
from eagle_model.data.sample import DataError
from tests.data.test_images import PNGS, TIFFS
from tests.fuzz.mutations import damaged
from tests.rounds import Rounds, by_rounds

SECONDS = 10  # of CPU for one small file, on a busy machine; the slowest takes a second


def good_files() -> dict[str, list[bytes]]:
    """Of each format, in its modes."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (21, 30, 3), np.uint8))
    rgba = Image.fromarray(rng.integers(0, 256, (21, 30, 4), np.uint8))
    gray16 = Image.fromarray(rng.integers(0, 65_536, (21, 30), np.uint16))
    colour, progressive = {"transparency": (1, 2, 3)}, {"progressive": True}
    palette, gray, cmyk = rgb.quantize(16), rgb.convert("L"), rgb.convert("CMYK")
    exif = Image.Exif()
    exif[0x0112] = 6
    saved: dict[str, list[tuple[Image.Image, dict]]] = {
        "AVIF": [(rgb, {"exif": exif}), (rgba, {})],
        "BMP": [(rgb, {}), (palette, {}), (rgb.convert("1"), {})],
        "GIF": [(palette, {}), (palette, {"transparency": 1})],
        "HEIF": [(rgb, {"exif": exif.tobytes()}), (rgba, {})],
        "JPEG": [(rgb, {"exif": exif}), (gray, {}), (cmyk, {}), (rgb, progressive), (rgb, {"subsampling": "4:4:4"})],
        "JPEG2000": [(rgb, {}), (rgba, {}), (gray16, {}), (gray, {"no_jp2": True})],
        "PNG": [(rgba, {"exif": exif}), (gray16, {}), (palette, {"transparency": 1}), (rgb, colour)],
        "PPM": [(rgb, {}), (gray, {}), (gray16, {}), (rgb.convert("1"), {})],
        "TIFF": [(rgb, {"exif": exif}), (gray16, {}), (cmyk, {})]
        + [(rgb, {"compression": kind}) for kind in ("tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate")],
        "WEBP": [(rgb, {"exif": exif}), (rgba, {"lossless": True})],
    }  # fmt: skip
    files: dict[str, list[bytes]] = {}
    for name in FORMATS:
        for image, options in saved[name]:
            data = io.BytesIO()
            image.save(data, name, **options)
            files.setdefault(name, []).append(data.getvalue())
    frames = io.BytesIO()
    rgb.save(frames, "PNG", save_all=True, append_images=[rgb.transpose(Image.Transpose.ROTATE_180)])
    files["PNG"] += [frames.getvalue(), *(data for data, _ in PNGS.values())]
    files["TIFF"] += [data for data, _ in TIFFS.values()]
    return files


@by_rounds(60)
@pytest.mark.parametrize("name", FORMATS)
def test_images(name: str, rounds: Rounds, tmp_path: Path) -> None:
    files, rng, num_read = good_files()[name], random.Random(rounds.seed), 0
    path = tmp_path / "image"
    for _ in rounds:
        path.write_bytes(damaged(rng.choice(files), rng, files))
        started = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of what it passes over
            is_still(path)
            try:
                width, height = image_size(path)
                pixels = load_image(path)
            except DataError as error:
                assert str(path) in str(error)  # noqa: PT017
            else:
                assert pixels.shape == (height, width, 3)
                assert pixels.dtype == torch.uint8
                num_read += 1
        assert time.process_time() - started < SECONDS
    assert num_read
