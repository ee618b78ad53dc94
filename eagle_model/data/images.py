"""Image files: their size as shown from the header alone, and their pixels as RGB.

    image_size(Path("page.png"))       # (width_px, height_px)
    load_image(Path("page.png"))       # uint8 (Y, X, 3)

Pillow decodes FORMATS. EXIF orientation is applied; EXIF that cannot be read is ignored, as viewers do; transparency
goes onto white; 16-bit gray is scaled, not cut.

Dims    Y and X pixels.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from eagle_model.data.sample import DataError

MAX_IMAGE_PX = 89_478_485  # width x height; 256 MiB as RGB, and where Pillow too begins to suspect a bomb

Image.init()  # registers every format now: Pillow does it on demand, and not safely where several threads demand it
# Named, because among Pillow's others is EPS, which would run Ghostscript on what an annotation calls an image.
_COMMON = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
FORMATS = tuple(name for name in _COMMON if name in Image.OPEN)  # AVIF came with Pillow 11.3

_ORIENTATION_TAG = 0x0112
# What Pillow raises for damaged files; RuntimeError is AVIF's.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, RuntimeError, struct.error)
_TRANSPOSE = {  # EXIF orientation -> what makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def image_size(path: Path) -> tuple[int, int]:
    """(width_px, height_px) as shown, from the header alone. Raises DataError when it is no image, or too large."""
    with _open(path) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def is_still(path: Path) -> bool:
    """Whether the file is a picture by its content, be it a damaged one; an animated GIF is a video."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return not (image.format == "GIF" and getattr(image, "is_animated", False))
    except UnidentifiedImageError:
        return False
    except (Image.DecompressionBombError, *_DAMAGED):  # `load_image` will say what is wrong with it
        return True


def load_image(path: Path) -> Tensor:
    """uint8 RGB (Y, X, 3), upright, on white where transparent. Raises DataError when it cannot be decoded."""
    with _open(path) as image:
        orientation = _orientation(image)  # before load, which makes some formats upright themselves
        try:
            image.load()
            rgb = _to_rgb(image, path)
        except DataError:
            raise
        except _DAMAGED as error:
            raise DataError(f"image {path} cannot be decoded: {error}.") from error
        if orientation in _TRANSPOSE:
            rgb = rgb.transpose(_TRANSPOSE[orientation])
        return torch.from_numpy(np.array(rgb))


def _open(path: Path) -> Image.Image:
    try:
        image = Image.open(path, formats=FORMATS)
    except FileNotFoundError as error:
        raise DataError(f"image {path} does not exist.") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"image {path} is larger than {MAX_IMAGE_PX} pixels; scale it down. {error}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"image {path} cannot be read: {error}; needs one of {', '.join(FORMATS)}.") from error
    except _DAMAGED as error:
        raise DataError(f"image {path} cannot be read: {error}.") from error
    width, height = image.size
    if width * height > MAX_IMAGE_PX:
        image.close()
        raise DataError(
            f"image {path} has {width} x {height} = {width * height} pixels, more than {MAX_IMAGE_PX}; scale it down."
        )
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation still to be applied, 1 to 8, read without decoding."""
    if image.format == "TIFF":  # Pillow makes TIFF upright while loading, and its size says so already
        return 1
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1  # Pillow would decode the whole file to look for EXIF after the pixels
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DAMAGED:
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit gray: I;16 and its byte orders, or I where the format has no other mode
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise DataError(
                f"image {path} has gray values {values.min()} to {values.max()}; needs 8 or 16 bits. Convert it to PNG."
            )
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")  # 65535 -> 255, rounded
    if image.mode == "F":
        raise DataError(f"image {path} has floating point pixels, whose white is unknown. Convert it to 8-bit PNG.")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")
