"""Images of every mode and orientation, and damaged files."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from eagle_model.data.images import image_size, is_still, load_image
from eagle_model.data.sample import DataError


def gradient(width: int = 12, height: int = 8) -> np.ndarray:
    """(height, width, 3), no two pixels alike, so that any turn or mirror shows."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0] = np.arange(width) * 20
    rgb[..., 1] = np.arange(height)[:, None] * 30
    rgb[..., 2] = 77
    return rgb


# ---- modes


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.dtype == torch.uint8
    assert loaded.is_contiguous()
    np.testing.assert_array_equal(loaded.numpy(), gradient())
    assert image_size(tmp_path / "a.png") == (12, 8)


def saved(folder: Path, image: Image.Image, suffix: str, **options: object) -> Tensor:
    path = folder / f"image.{suffix}"
    image.save(path, **options)  # type: ignore[arg-type]
    loaded = load_image(path)
    assert image_size(path) == (loaded.shape[1], loaded.shape[0])
    return loaded


def test_transparency_goes_onto_white(tmp_path: Path) -> None:
    rgba = np.dstack([gradient(), np.array([0, 64, 128, 255] * 24, np.uint8).reshape(8, 12)])
    alpha = rgba[..., 3:].astype(float) / 255
    white = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha))
    assert np.abs(saved(tmp_path, Image.fromarray(rgba, "RGBA"), "png").numpy() - white).max() <= 1

    gray_alpha = Image.fromarray(rgba[..., [0, 3]].copy(), "LA")
    white = np.rint(rgba[..., :1] * alpha + 255 * (1 - alpha)).repeat(3, axis=2)
    assert np.abs(saved(tmp_path, gray_alpha, "png").numpy() - white).max() <= 1


def test_palettes_and_transparent_colours(tmp_path: Path) -> None:
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    assert saved(tmp_path, palette, "png").tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    for suffix in ("png", "gif"):
        assert saved(tmp_path, palette, suffix, transparency=1).tolist() == [[[255, 0, 0], [255] * 3, [0, 0, 255]]]
    rgb = Image.fromarray(gradient())
    see_through = saved(tmp_path, rgb, "png", transparency=(20, 30, 77))
    assert see_through[1, 1].tolist() == [255, 255, 255]
    assert see_through[1, 2].tolist() == [40, 30, 77]


def test_16_bit_gray_is_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 257, 128 * 257, 65_535, 256, 385]], np.uint16)
    expected = [[0, 1, 128, 255, 1, 1]]
    loaded = saved(tmp_path, Image.fromarray(values), "png")
    assert loaded.tolist() == [[[v, v, v] for v in row] for row in expected]
    (tmp_path / "big.pgm").write_bytes(b"P5 6 1 65535\n" + values.astype(">u2").tobytes())
    assert load_image(tmp_path / "big.pgm").tolist() == loaded.tolist()
    assert saved(tmp_path, Image.fromarray(values), "tif").tolist() == loaded.tolist()


def test_modes_without_a_known_white_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.5, 1.5]], np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match=r"f\.tif has floating point pixels, whose white is unknown"):
        load_image(tmp_path / "f.tif")
    Image.fromarray(np.array([[0, 70_000]], np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(DataError, match=r"i\.tif has gray values 0 to 70000; needs 8 or 16 bits"):
        load_image(tmp_path / "i.tif")


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "LAB", "HSV"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    source = Image.new("RGB", (4, 3), (255, 255, 255)) if mode == "1" else Image.new("RGB", (4, 3), (200, 200, 200))
    if mode == "LAB":
        lab = Image.new("LAB", (4, 3), (200, 128, 128))
        assert saved(tmp_path, lab, "tif").shape == (3, 4, 3)
        return
    suffix = {"CMYK": "jpg", "YCbCr": "jpg", "HSV": "png"}.get(mode, "png")
    image = source.convert(mode) if mode != "HSV" else source.convert("HSV").convert("RGB")
    loaded = saved(tmp_path, image, suffix)
    assert loaded.shape == (3, 4, 3)
    assert (loaded.float() - float(source.getpixel((0, 0))[0])).abs().max() <= 2  # type: ignore[index]


# ---- orientation

UPRIGHT = {  # EXIF orientation: what a viewer does to the stored pixels
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    loaded = saved(tmp_path, Image.fromarray(gradient()), suffix, exif=exif, **options)
    np.testing.assert_array_equal(loaded.numpy(), UPRIGHT[orientation](gradient()))


def test_nonsense_orientation_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 99
    assert saved(tmp_path, Image.fromarray(gradient()), "png", exif=exif).shape == (8, 12, 3)


def test_exif_that_cannot_be_read_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gradient()).save(tmp_path / "a.webp", lossless=True, exif=exif)
    whole = (tmp_path / "a.webp").read_bytes()
    assert b"MM\x00*" in whole
    (tmp_path / "a.webp").write_bytes(whole.replace(b"MM\x00*", b"M?\x00*"))
    assert image_size(tmp_path / "a.webp") == (12, 8)
    assert load_image(tmp_path / "a.webp").shape == (8, 12, 3)


# ---- still or not


def test_a_picture_is_known_by_its_content(tmp_path: Path, media: Path) -> None:
    frames = [Image.fromarray(gradient() // k) for k in (1, 2)]
    frames[0].save(tmp_path / "still.gif")
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "text.png").write_text("no image")
    found = {path.name: is_still(path) for path in (*sorted(tmp_path.iterdir()), media / "cut.png", media / "clip.mp4")}
    assert found == {"moving.gif": False, "still.gif": True, "text.png": False, "cut.png": True, "clip.mp4": False}


# ---- damage


def test_damaged_and_missing_images(tmp_path: Path, media: Path) -> None:
    assert image_size(media / "cut.png") == (64, 64)  # the header is whole: planning cannot know
    with pytest.raises(DataError, match=r"image .*cut\.png cannot be decoded: "):
        load_image(media / "cut.png")
    with pytest.raises(DataError, match=r"image .*none\.png does not exist"):
        image_size(tmp_path / "none.png")
    for name, content in (("empty.png", b""), ("text.jpg", b"no image at all")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"image .*{name} cannot be read: cannot identify image file"):
            image_size(tmp_path / name)
    with pytest.raises(DataError, match=r"cannot be read: .*directory"):
        image_size(tmp_path)


def test_damaged_avif(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.avif")
    whole = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "a.avif").write_bytes(whole.replace(b"iloc", b"????"))
    with pytest.raises(DataError, match=r"a\.avif cannot be (read|decoded): "):
        load_image(tmp_path / "a.avif")


def test_postscript_is_no_image(tmp_path: Path) -> None:
    """Pillow would hand it to Ghostscript, a program that runs what the file says."""
    Image.fromarray(gradient()).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg cannot be read: .*; needs one of .*JPEG, .*PNG"):
        image_size(tmp_path / "a.jpg")


def test_every_format_is_registered_before_a_thread_asks() -> None:
    code = "from eagle_model.data.images import FORMATS; from PIL import Image; print(set(FORMATS) <= set(Image.OPEN))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "True\n"


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + pixels


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 50_000])  # above our limit; above Pillow's own too
def test_decompression_bombs_are_refused_by_their_header(tmp_path: Path, side: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(side, side))
    for read in (image_size, load_image):
        with pytest.raises(DataError, match=r"bomb\.png .*than 89478485.*scale it down"):
            read(tmp_path / "bomb.png")
