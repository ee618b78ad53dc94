"""Pixels: what a plan asked for, and nothing else, as normalised patches in the order of the text's placeholders.

Dims    I tiles, P = (tile_px / patch_px)**2 patches a tile, K = 3 * patch_px**2, L frames, Y and X pixels.
Images  Pillow decodes FORMATS; EXIF orientation is applied, EXIF that cannot be read is ignored, as viewers do;
        transparency goes onto white; 16-bit gray is scaled, not cut.
Videos  `eagle_kernels.decode_tiles`: each frame becomes one tile in the thread that decodes it, and is not kept.
"""

from __future__ import annotations

import struct
import threading
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from eagle_kernels.decode_tiles import decode_tiles
from eagle_kernels.frames_to_tiles import frames_to_tiles
from eagle_kernels.tiles import Tiling
from eagle_kernels.video import VideoError
from eagle_model.data.media import DataError, Sample, visual_order
from eagle_model.data.sampling import VisualPlan

MAX_IMAGE_PX = 89_478_485  # width x height; 256 MiB as RGB, and where Pillow too begins to suspect a bomb
PIXELS_DTYPE = torch.bfloat16  # the 256 values of (x / 255 - 0.5) / 0.5 stay apart in bf16

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
        return 1  # Pillow would decode the whole file to look for EXIF behind the pixels
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


def load_patches(
    sample: Sample,
    plan: VisualPlan,
    *,
    tile_px: int,
    patch_px: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    num_decode_workers: int = 1,
    index_folder: str | Path | None = None,
    stop: threading.Event | None = None,
) -> Tensor:
    """Patches of all tiles, (I, P, K) in PIXELS_DTYPE: images with their grid and thumbnail, videos one tile a frame.

    num_decode_workers, index_folder: as `video.decode`; they change no bit.
    stop: when another thread sets it, CancelledError is raised before the next image or packet of a video.
    Raises DataError when a file cannot be decoded, or the text shows other media than the plan counted, naming both.
    """
    num_tiles = sum(grid.num_tiles for grid in plan.grids) + sum(len(times) for times in plan.timestamps_seconds)
    patches_IPK = torch.empty(num_tiles, (tile_px // patch_px) ** 2, 3 * patch_px**2, dtype=PIXELS_DTYPE)
    tiling = Tiling(tile_px=tile_px, patch_px=patch_px, mean=mean, std=std, dtype=PIXELS_DTYPE)
    filled = 0
    for kind, k in visual_order(sample):
        if stop is not None and stop.is_set():
            raise CancelledError
        if kind == "image":
            grid = plan.grids[k]
            patches_IPK[filled : filled + grid.num_tiles] = frames_to_tiles(
                load_image(sample.images[k].path)[None],
                grid,
                replace(tiling, thumbnail=True),
                num_threads=1,  # the loader's workers are threads already
            )
            filled += grid.num_tiles
            continue
        video, times = sample.videos[k], plan.timestamps_seconds[k]
        try:
            decode_tiles(
                video.path,
                times,
                (1, 1),
                tiling,
                out=patches_IPK[filled : filled + len(times)],
                num_workers=num_decode_workers,
                index_folder=index_folder,
                stop=stop,
            )
        except (VideoError, OSError) as error:
            raise DataError(f"video {video.path} cannot be decoded: {error}") from error
        filled += len(times)
    if filled != num_tiles:
        raise DataError(f"{sample.id}: its text shows {filled} tiles, but the plan has {num_tiles}.")
    return patches_IPK
