"""Images of every mode and orientation, and damaged files."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin
from torch import Tensor

from eagle_model.data import images
from eagle_model.data.images import image_size, is_still, load_image
from eagle_model.data.sample import DataError
from tests.data.make_pdf import gray, write_pdf


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


def png(width: int, depth: int, colour: int, row: bytes, transparent: bytes = b"") -> bytes:
    """One row, uncompressed in meaning: `row` is its bytes, as PNG packs them. colour: 0 gray, 2 RGB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0))
    trns = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + trns + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


PNGS = {  # the transparent value in the depth of the pixels; what is seen
    "1 bit": (png(4, 1, 0, b"\xa0", b"\0\1"), [255, 0, 255, 0]),
    "1 bit, black": (png(4, 1, 0, b"\xa0", b"\0\0"), [255, 255, 255, 255]),
    "2 bits": (png(4, 2, 0, bytes([0b00011011]), b"\0\1"), [0, 255, 170, 255]),
    "4 bits": (png(4, 4, 0, b"\x05\xaf", b"\0\5"), [0, 255, 170, 255]),
    "8 bits": (png(4, 8, 0, b"\0\5\x0a\xff", b"\0\5"), [0, 255, 10, 255]),
    "16 bits": (png(4, 16, 0, struct.pack(">4H", 0, 1000, 1001, 65_535), struct.pack(">H", 1000)), [0, 255, 4, 255]),
}


@pytest.mark.parametrize("name", PNGS)
def test_a_transparent_gray_is_white_at_any_depth(tmp_path: Path, name: str) -> None:
    data, expected = PNGS[name]
    (tmp_path / "a.png").write_bytes(data)
    assert load_image(tmp_path / "a.png").tolist() == [[[v, v, v] for v in expected]]


def test_a_transparent_colour_of_16_bits_is_that_colour_alone(tmp_path: Path) -> None:
    colours = [(256, 512, 768), (257, 512, 768), (65_535, 0, 0)]
    row = struct.pack(">9H", *(value for colour in colours for value in colour))
    (tmp_path / "a.png").write_bytes(png(3, 16, 2, row, struct.pack(">3H", *colours[0])))
    assert load_image(tmp_path / "a.png").tolist() == [[[255, 255, 255], [1, 2, 3], [255, 0, 0]]]


def tiff(bits: int, row: bytes, *, width: int, black: int = 0, sample_format: int = 1, order: str = "<") -> bytes:
    """One row of gray, uncompressed; `black` is the value of it, 0, or 1 where white is 0."""
    tags = [(256, 4, width), (257, 4, 1), (258, 3, bits), (259, 3, 1), (262, 3, 1 - black), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 4, 1), (279, 4, len(row)), (339, 3, sample_format)]
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(row)) + row
    data += struct.pack(order + "H", len(tags))
    for tag, kind, value in tags:
        packed = struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
        data += struct.pack(order + "HHI", tag, kind, 1) + packed
    return data + struct.pack(order + "I", 0)


TIFFS = {
    "1 bit": (tiff(1, b"\xa0\0", width=4), [255, 0, 255, 0]),
    "2 bits": (tiff(2, b"\x1b\0", width=4), [0, 85, 170, 255]),
    "4 bits": (tiff(4, b"\x05\xaf", width=4), [0, 85, 170, 255]),
    "8 bits, white is 0": (tiff(8, b"\0\5\x0a\xff", width=4, black=1), [255, 250, 245, 0]),
    "12 bits": (tiff(12, b"\x00\x0f\xff\x80\x00\x10", width=4), [0, 255, 128, 1]),
    "16 bits": (tiff(16, struct.pack("<4H", 0, 65_535, 257, 128), width=4), [0, 255, 1, 0]),
    "16 bits, big-endian": (tiff(16, struct.pack(">4H", 0, 65_535, 257, 128), width=4, order=">"), [0, 255, 1, 0]),
    "16 bits, white is 0": (tiff(16, struct.pack("<4H", 0, 65_535, 257, 128), width=4, black=1), [255, 0, 254, 255]),
}


@pytest.mark.parametrize("name", TIFFS)
def test_gray_is_scaled_by_its_own_depth(tmp_path: Path, name: str) -> None:
    data, expected = TIFFS[name]
    (tmp_path / "a.tif").write_bytes(data)
    assert load_image(tmp_path / "a.tif").tolist() == [[[v, v, v] for v in expected]]


@pytest.mark.parametrize(("bits", "sample_format"), [(8, 2), (16, 2), (32, 1), (32, 2)])
def test_signed_and_32_bit_gray_has_no_known_white(tmp_path: Path, bits: int, sample_format: int) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(bits, bytes(range(bits)), width=8, sample_format=sample_format))
    with pytest.raises(DataError, match=r"a\.tif has (signed pixels, whose white is|gray values .* without sign)"):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize("order", "<>")
def test_planes_of_more_than_8_bits_are_refused(tmp_path: Path, order: str) -> None:
    """Their bytes would be pixels. One row of two red pixels, then of green and of blue."""
    bits, ends = struct.pack(order + "3H", 16, 16, 16), struct.pack(order + "3I", 8, 12, 16)
    tags = [(256, 3, 1, 2), (257, 3, 1, 1), (258, 3, 3, 20), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 3, 26)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 3, 38), (284, 3, 1, 2)]
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 50)
    data += b"\xff" * 4 + b"\0" * 8 + bits + ends + struct.pack(order + "3I", 4, 4, 4) + struct.pack(order + "H", 10)
    for tag, kind, count, value in tags:
        packed = struct.pack(order + "HH", value, 0) if kind == 3 and count == 1 else struct.pack(order + "I", value)
        data += struct.pack(order + "HHI", tag, kind, count) + packed
    (tmp_path / "a.tif").write_bytes(data + struct.pack(order + "I", 0))
    with pytest.raises(DataError, match=r"a\.tif stores each colour in a plane of more than 8 bits"):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 9, 12, 16])
def test_jpeg_2000_is_scaled_by_its_own_depth(tmp_path: Path, bits: int) -> None:
    """Samples are coded around the middle of their range, so other bits in the header give other values."""
    largest, made = 2**bits - 1, 8 if bits <= 8 else 16
    values = np.linspace(0, largest, 64).round().astype(np.int64).reshape(4, 16)
    stored = values - 2 ** (bits - 1) + 2 ** (made - 1)
    Image.fromarray(stored.astype(np.uint8 if made == 8 else np.uint16)).save(tmp_path / "a.jp2", irreversible=False)
    data = bytearray((tmp_path / "a.jp2").read_bytes())
    data[data.index(b"\xff\x51") + 40] = bits - 1
    (tmp_path / "a.jp2").write_bytes(data)
    loaded = load_image(tmp_path / "a.jp2").numpy()
    assert np.abs(loaded - (values * 255 / largest)[..., None]).max() <= 1
    assert loaded.max() == 255


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


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_of_jpeg_and_gray(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    gray = (np.arange(96, dtype=np.uint16) * 600).reshape(8, 12)
    loaded = saved(tmp_path, Image.fromarray(gray), "png", exif=exif)
    levels = (gray // 257 + (gray % 257 > 128))[..., None].repeat(3, axis=2)
    np.testing.assert_array_equal(loaded.numpy(), UPRIGHT[orientation](levels))
    for image in (Image.fromarray(gradient()), Image.fromarray(gradient()).convert("CMYK")):
        plain = saved(tmp_path, image, "jpg", quality=95)
        loaded = saved(tmp_path, image, "jpg", quality=95, exif=exif)
        np.testing.assert_array_equal(loaded.numpy(), UPRIGHT[orientation](plain.numpy()))


def test_a_large_image_is_converted_in_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (37, 29, 4), np.uint8)
    for image in (Image.fromarray(rgba), Image.fromarray(rgba[..., :3].copy()).quantize(16)):
        whole = saved(tmp_path, image, "png")
        for band in (1, 64, 29 * 5):
            monkeypatch.setattr(images, "_BAND_PX", band)
            assert torch.equal(load_image(tmp_path / "image.png"), whole)


# ---- JPEG


@pytest.mark.parametrize("mode", ["L", "RGB", "YCbCr", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_jpeg_is_what_pillow_makes_of_it(tmp_path: Path, mode: str, progressive: bool, subsampling: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)
    options = {} if mode in ("L", "CMYK") else {"subsampling": subsampling}
    Image.fromarray(noise).convert(mode).save(tmp_path / "a.jpg", progressive=progressive, **options)
    with Image.open(tmp_path / "a.jpg") as image:
        np.testing.assert_array_equal(load_image(tmp_path / "a.jpg").numpy(), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("least_px", "half"), [((83, 61), 1), ((42, 31), 2), ((43, 31), 1), ((21, 16), 4), ((1, 1), 8)]
)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_is_decoded_as_small_as_is_enough(
    tmp_path: Path, least_px: tuple[int, int], half: int, progressive: bool
) -> None:
    """Pillow's `draft` asks libjpeg-turbo for the same."""
    noise = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", progressive=progressive, subsampling="4:2:0")
    with Image.open(tmp_path / "a.jpg") as image:
        image.draft("RGB", (83 // half, 61 // half))
        expected = np.asarray(image)
    assert expected.shape == (-(-61 // half), -(-83 // half), 3)
    np.testing.assert_array_equal(load_image(tmp_path / "a.jpg", least_px=least_px).numpy(), expected)


def test_a_turned_jpeg_is_as_large_as_is_enough_once_it_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gradient(80, 40)).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg", least_px=(20, 40)).shape == (40, 20, 3)
    assert load_image(tmp_path / "a.jpg", least_px=(21, 40)).shape == (80, 40, 3)


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("RGB", "png")])
def test_what_libjpeg_turbo_does_not_scale_is_given_whole(tmp_path: Path, mode: str, suffix: str) -> None:
    Image.fromarray(gradient(80, 40)).convert(mode).save(tmp_path / f"a.{suffix}")
    assert load_image(tmp_path / f"a.{suffix}", least_px=(10, 10)).shape == (40, 80, 3)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_marker_is_decoded_with_a_note(tmp_path: Path, mode: str, progressive: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(tmp_path / "a.jpg", progressive=progressive)
    whole, pixels = (tmp_path / "a.jpg").read_bytes(), load_image(tmp_path / "a.jpg")
    for num_bytes in (1, 2):
        (tmp_path / "a.jpg").write_bytes(whole[:-num_bytes])
        with pytest.warns(UserWarning, match=r"a\.jpg lacks its end marker; all of its pixels are there"):
            assert torch.equal(load_image(tmp_path / "a.jpg"), pixels)
    for cut in (whole[:-4], whole[: len(whole) // 2], whole[: len(whole) // 2] + whole[-2:]):
        (tmp_path / "a.jpg").write_bytes(cut)
        if cut[-2:] == whole[-2:] or progressive:  # Pillow shows it, gray where it is not there
            continue
        with pytest.raises(DataError, match=r"a\.jpg cannot be decoded: image file is truncated"):
            load_image(tmp_path / "a.jpg")


def test_a_jpeg_of_endless_scans_is_refused(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.jpg", progressive=True)
    data = (tmp_path / "a.jpg").read_bytes()
    last = data.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(data[:last] + data[last:-2] * 300 + data[-2:])
    with pytest.raises(DataError, match=r"a\.jpg has more than 200 scans; save it again"):
        load_image(tmp_path / "a.jpg")


# ---- HEIC


def test_heic(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    smooth = np.asarray(Image.fromarray(gradient()).resize((96, 64), Image.Resampling.BICUBIC))
    Image.fromarray(smooth).save(tmp_path / "a.heic", quality=95)
    loaded = load_image(tmp_path / "a.heic")
    assert image_size(tmp_path / "a.heic") == (96, 64)
    assert np.abs(loaded.numpy().astype(int) - smooth).mean() < 4
    assert is_still(tmp_path / "a.heic")
    for orientation in (5, 6, 7, 8):  # by the container's own turn and mirror
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(smooth).save(tmp_path / "b.heic", quality=95, exif=exif.tobytes())
        turned = load_image(tmp_path / "b.heic")
        assert image_size(tmp_path / "b.heic") == (64, 96)
        assert np.abs(turned.numpy().astype(int) - UPRIGHT[orientation](smooth)).mean() < 4


def test_heic_without_its_package_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    monkeypatch.setattr(images, "FORMATS", tuple(name for name in images.FORMATS if name != "HEIF"))
    assert is_still(tmp_path / "a.heic")
    with pytest.raises(DataError, match=r"a\.heic is HEIC, which needs pillow-heif: pip install 'eagle-"):
        image_size(tmp_path / "a.heic")


# ---- several pictures


@pytest.mark.parametrize("suffix", ["png", "webp", "avif", "tif", "gif"])
def test_a_file_of_several_frames_or_pages_is_no_image(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(gradient() // k) for k in (1, 2, 3)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    advice = "Give it as a video" if suffix == "gif" else "Save each as an image, or all as a video"
    for read in (image_size, load_image):
        with pytest.raises(
            DataError, match=rf"a\.{suffix} has several frames or pages .*; an image has one\. {advice}"
        ):
            read(tmp_path / f"a.{suffix}")
    frames[0].save(tmp_path / f"b.{suffix}", save_all=True)
    assert load_image(tmp_path / f"b.{suffix}").shape == (8, 12, 3)


def test_smaller_copies_and_what_cameras_add_are_no_second_picture(tmp_path: Path) -> None:
    frames = [Image.fromarray(gradient() // k) for k in (1, 2)]
    with TiffImagePlugin.AppendingTiffWriter(str(tmp_path / "pyramid.tif"), True) as file:
        for frame, subfile in zip(frames, (0, 1)):
            frame.save(file, format="TIFF", tiffinfo={254: subfile})
            file.newFrame()
    np.testing.assert_array_equal(load_image(tmp_path / "pyramid.tif").numpy(), gradient())
    frames[0].save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "phone.jpg").shape == (8, 12, 3)


# ---- what is no file


def test_a_pipe_or_a_device_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe.png", tmp_path / "link.png", Path("/dev/zero")):
        for read in (image_size, load_image):
            with pytest.raises(DataError, match="cannot be read: it is a pipe or a device; needs a file"):
                read(path)
        assert is_still(path)


def test_a_file_and_its_decoding_have_bounds_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix, bytes_a_px in [("png", 12), ("webp", 16), ("jp2", 28), ("jpg", 16)]:
        image = Image.fromarray(gradient())
        (image.convert("CMYK") if suffix == "jpg" else image).save(tmp_path / f"a.{suffix}")
        monkeypatch.setattr(images, "MAX_DECODE_BYTES", bytes_a_px * 96)
        assert load_image(tmp_path / f"a.{suffix}").shape == (8, 12, 3)
        monkeypatch.setattr(images, "MAX_DECODE_BYTES", bytes_a_px * 96 - 1)
        with pytest.raises(DataError, match=rf"a\.{suffix} has 12 x 8 = 96 pixels, more than 95; scale it down"):
            load_image(tmp_path / f"a.{suffix}")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(DataError, match=r"large\.png has 1073741825 bytes, more than 1073741824; scale it down"):
        image_size(tmp_path / "large.png")


def test_16_bit_gray_takes_no_more_than_it_must(tmp_path: Path) -> None:
    """89 Mpx of it, 174 KB as a file, took 18 bytes a pixel; here 24 Mpx in a process of its own."""
    Image.fromarray(np.zeros((4900, 4900), np.uint16)).save(tmp_path / "a.png")
    code = """if True:
        import sys
        from pathlib import Path
        from eagle_model.data.images import load_image
        peak = lambda: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
        before = peak()
        load_image(Path(sys.argv[1]))
        print(peak() - before)
    """
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(found.stdout) * 1024 < 8 * 4900 * 4900  # 5.1 measured


def test_running_out_of_memory_is_a_bad_image(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError

    monkeypatch.setattr(images.np, "empty", fail)
    with pytest.raises(DataError, match=r"square\.png cannot be decoded: MemoryError"):
        load_image(media / "square.png")


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


def test_a_document_of_one_page_is_an_image(tmp_path: Path) -> None:
    one = write_pdf(tmp_path / "one.pdf", [gray(77)])
    assert image_size(one) == (125, 83)
    assert load_image(one).shape == (83, 125, 3)
    assert (load_image(one) == 77).all()
    assert not is_still(one)  # files that are given without a kind: a document is shown page by page
    two = write_pdf(tmp_path / "two.pdf", [gray(77)] * 2)
    for read in (image_size, load_image):
        with pytest.raises(DataError, match=r"two\.pdf has 2 pages; an image has one\. Give it as a video"):
            read(two)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_an_image_in_memory_is_read_as_its_file_is(mode: str, tmp_path: Path) -> None:
    kept = {"CMYK": "TIFF", "YCbCr": "TIFF"}.get(mode, "PNG")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 4), np.uint8)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels)
    image = image if mode == "I;16" else image.convert("RGB").convert(mode) if mode in "1P" else image.convert(mode)
    path = tmp_path / "a"
    image.save(path, kept)
    for opened in (image, Image.open(path)):  # the second is decoded when it is needed
        assert image_size(opened) == image_size(path) == (5, 7)
        assert torch.equal(load_image(opened), load_image(path))
    assert image.size == (5, 7)  # it is not changed


def test_images_in_memory_are_turned_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new("RGB", (4, 2), (9, 8, 7))
    image.getexif()[0x0112] = 6
    assert image_size(image) == (2, 4)
    assert load_image(image).shape == (4, 2, 3)
    with pytest.raises(DataError, match="image in memory has 0 x 3 pixels; needs at least one"):
        image_size(Image.new("RGB", (0, 3)))
    with pytest.raises(DataError, match=r"image in memory has floating point pixels"):
        load_image(Image.new("F", (3, 3)))
    monkeypatch.setattr(images, "MAX_DECODE_BYTES", 12)
    for read in (image_size, load_image):
        with pytest.raises(DataError, match="image in memory has 4 x 2 = 8 pixels, more than 1; scale it down"):
            read(image)
