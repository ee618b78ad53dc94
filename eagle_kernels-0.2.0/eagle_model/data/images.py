"""Image files: their size as shown from the header alone, and their pixels as RGB.

    image_size(Path("page.png"))       # (width_px, height_px)
    load_image(Path("page.png"))       # uint8 (Y, X, 3)

JPEG is decoded by libjpeg-turbo (simplejpeg), the others of FORMATS by Pillow, HEIC where pillow-heif is installed.
EXIF orientation is applied; EXIF that cannot be read is ignored, as viewers do; transparency goes onto white; gray of
any depth is scaled by that depth, not cut. A file of several frames or pages is no image; a PDF of one page is one.
Nothing but regular files is opened, and an image that would take more than MAX_DECODE_BYTES to decode is refused by its
header.

Dims    Y and X pixels.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from eagle_model.data.documents import load_pages, num_pages, page_size
from eagle_model.data.sample import DOCUMENT_SUFFIX, DataError

try:
    import pillow_heif
except ImportError:  # the extra "heif"
    pillow_heif = None

MAX_DECODE_BYTES = 1 << 30  # limit: of one image while it is decoded, beside its file; as RGB it has a quarter of that
_BYTES_A_PX = {"AVIF": 16, "JPEG2000": 28, "WEBP": 16}  # that decoding takes at most; measured: docs/notes/data.md
_OTHER_BYTES_A_PX = 12  # so 89,478,485 px, where Pillow too begins to suspect a bomb
MAX_FILE_BYTES = (
    MAX_DECODE_BYTES  # limit: above 89 Mpx of four 16-bit channels, uncompressed; some decoders read it all
)
_FASTER_FACTOR = 2.0  # of sizes; 7/8 and its like take longer to decode than the whole
MAX_JPEG_SCANS = 200  # limit: each goes over all pixels again; encoders write about ten
_MAX_PAGES = 64  # of a TIFF, looked at for one that is no smaller copy of the first
_BAND_PX = 1 << 18  # converted at once: what a conversion makes in between stays in the cache

Image.init()  # registers every format now: Pillow does it on demand, and not safely where several threads demand it
if pillow_heif is not None:
    pillow_heif.register_heif_opener()
# Named, because among Pillow's others is EPS, which would run Ghostscript on what an annotation calls an image.
_COMMON = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
FORMATS = tuple(name for name in _COMMON if name in Image.OPEN)  # AVIF came with Pillow 11.3
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_OF_MANY = (
    "AVIF",
    "GIF",
    "PNG",
    "TIFF",
    "WEBP",
)  # formats that hold several pictures; JPEG's and HEIC's have one to show

_ORIENTATION_TAG = 0x0112
_SUBFILE_TAG, _BITS_TAG, _PHOTOMETRIC_TAG, _PLANES_TAG, _SAMPLE_FORMAT_TAG = 254, 258, 262, 284, 339  # of TIFF
_END_OF_IMAGE = b"\xff\xd9"
# Of damaged files Pillow's plugins raise whatever their parsing runs into: SyntaxError, TypeError, KeyError,
# ZeroDivisionError, struct.error, zlib.error ... It stands around their calls alone.
_DAMAGED = Exception
_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # EXIF orientation -> an upright array, seen as it is stored
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, -1),
}


def image_size(path: Path | Image.Image) -> tuple[int, int]:
    """(width_px, height_px) as shown, from the header alone. Raises DataError when it is no image, or too large.

    path: or an image in memory.
    """
    if isinstance(path, Image.Image):
        _need_size(path, "in memory")
        return path.size if _orientation(path) < 5 else (path.height, path.width)
    if path.suffix.lower() == DOCUMENT_SUFFIX:
        _need_one_page(path)
        return page_size(path)
    with _open(path) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def is_still(path: Path) -> bool:
    """Whether the file is a picture by its content, be it a damaged one; an animated GIF is a video.

    What is no regular file counts as a picture too, so that `image_size` says what is wrong with it.
    """
    if not os.path.isfile(path):
        return True
    try:
        with Image.open(path, formats=FORMATS) as image:
            return not (image.format == "GIF" and getattr(image, "is_animated", False))
    except UnidentifiedImageError:
        return _is_heif(path)
    except _DAMAGED:  # `load_image` will say what is wrong with it
        return True


def load_image(path: Path | Image.Image, *, least_px: tuple[int, int] | None = None) -> Tensor:
    """uint8 RGB (Y, X, 3), upright, on white where transparent.

        load_image(Path("photo.jpg"), least_px=(896, 448))      # of 4000 x 3000: (1500, 2000, 3)

    path: or an image in memory; of several frames, the one that it is at.
    least_px: width and height that are enough. A JPEG file is then decoded at a half, a quarter or an eighth of its
    size, the smallest of these that has both: libjpeg-turbo leaves out the high frequencies and computes fewer pixels.
    Other formats, and CMYK, are given whole.

    Raises DataError when it cannot be decoded. A JPEG that lacks its end marker alone is decoded, with a warning.
    """
    if isinstance(path, Image.Image):
        return _load_in_memory(path)
    if path.suffix.lower() == DOCUMENT_SUFFIX:
        _need_one_page(path)
        return next(load_pages(path, [0]))
    with _open(path) as image:
        width, height = image.size
        orientation = _orientation(image)  # before load, which makes some formats upright themselves
        try:
            if image.format in ("JPEG", "MPO"):
                least = least_px and (least_px[::-1] if orientation >= 5 else least_px)
                decoded = _load_jpeg(image, path, least)
                if isinstance(decoded, np.ndarray):
                    if orientation == 1:
                        return torch.from_numpy(decoded)
                    height, width = decoded.shape[:2]
            else:
                image.load()
                decoded = image
            sides = (width, height) if orientation >= 5 else (height, width)
            upright_YX3 = np.empty((*sides, 3), np.uint8)
            stored_YX3 = _STORED[orientation](upright_YX3)
            if isinstance(decoded, np.ndarray):
                stored_YX3[:] = decoded
            else:
                _fill(stored_YX3, decoded, path)
        except DataError:
            raise
        except _DAMAGED as error:
            raise DataError(f"image {path} cannot be decoded: {str(error) or type(error).__name__}.") from error
        return torch.from_numpy(upright_YX3)


def _load_in_memory(image: Image.Image) -> Tensor:
    name = Path("in memory")
    _need_size(image, str(name))
    try:
        upright = ImageOps.exif_transpose(image)  # a copy, which belongs to no file any more
        rgb_YX3 = np.empty((upright.height, upright.width, 3), np.uint8)
        _fill(rgb_YX3, upright, name)
    except DataError:
        raise
    except _DAMAGED as error:
        raise DataError(f"image {name} cannot be decoded: {str(error) or type(error).__name__}.") from error
    return torch.from_numpy(rgb_YX3)


# ---- opening


def _open(path: Path) -> Image.Image:
    _need_file(path)
    try:
        image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise DataError(
            f"image {path} is larger than {MAX_DECODE_BYTES // _OTHER_BYTES_A_PX} pixels; scale it down. {error}"
        ) from error
    except UnidentifiedImageError as error:
        if _is_heif(path):
            raise DataError(
                f"image {path} is HEIC, which needs pillow-heif: pip install 'eagle-kernels[heif]', or convert it."
            ) from error
        raise DataError(f"image {path} cannot be read: {error}; needs one of {', '.join(FORMATS)}.") from error
    except _DAMAGED as error:
        raise DataError(f"image {path} cannot be read: {error}.") from error
    try:
        _need_one_of_a_size(image, path)
    except BaseException:
        image.close()
        raise
    return image


def _need_one_page(path: Path) -> None:
    if (num := num_pages(path)) > 1:
        raise DataError(f"image {path} has {num} pages; an image has one. Give it as a video: its pages are seen so.")


def _need_file(path: Path) -> None:
    """Raises DataError for pipes and devices, which would be waited for, and for what is too large."""
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        raise DataError(f"image {path} does not exist.") from error
    except (OSError, ValueError) as error:  # ValueError: a zero in the name
        raise DataError(f"image {path} cannot be read: {error}.") from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise DataError(f"image {path} cannot be read: it is {kind}; needs a file.")
    if found.st_size > MAX_FILE_BYTES:
        raise DataError(f"image {path} has {found.st_size} bytes, more than {MAX_FILE_BYTES}; scale it down.")


def _need_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    bytes_a_px = _BYTES_A_PX.get(image.format or "", 16 if image.mode == "CMYK" else _OTHER_BYTES_A_PX)
    most = MAX_DECODE_BYTES // bytes_a_px
    if width * height > most:
        raise DataError(
            f"image {name} has {width} x {height} = {width * height} pixels, more than {most}; scale it down."
        )
    if not width * height:  # of files, Pillow refuses them
        raise DataError(f"image {name} has {width} x {height} pixels; needs at least one.")


def _need_one_of_a_size(image: Image.Image, path: Path) -> None:
    _need_size(image, str(path))
    try:
        several = image.format in _OF_MANY and _has_several(image)
    except _DAMAGED as error:
        raise DataError(f"image {path} cannot be read: {error}.") from error
    if several:
        advice = "Give it as a video" if image.format == "GIF" else "Save each as an image, or all as a video"
        raise DataError(f"image {path} has several frames or pages ({image.format}); an image has one. {advice}.")


def _has_several(image: Image.Image) -> bool:
    """Whether there is a second picture to see. In TIFF, smaller copies of the first and masks of it are none."""
    if image.format != "TIFF":
        return bool(getattr(image, "is_animated", False))
    try:
        for page in range(1, _MAX_PAGES):
            image.seek(page)
            if not image.tag_v2.get(_SUBFILE_TAG, 0) & 5:  # type: ignore[attr-defined]
                return True
    except _DAMAGED:  # EOFError: there are no more
        pass
    finally:
        image.seek(0)
    return False


def _is_heif(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:] in _HEIF_BRANDS


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
    return orientation if orientation in _STORED else 1


# ---- JPEG


def _load_jpeg(image: Image.Image, path: Path, least_px: tuple[int, int] | None) -> np.ndarray | Image.Image:
    """RGB (height, width, 3) as stored, or smaller, or the image, loaded, where libjpeg-turbo alone makes no RGB of it
    (CMYK)."""
    data = path.read_bytes()
    if data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise DataError(f"image {path} has more than {MAX_JPEG_SCANS} scans; save it again.")
    if image.mode != "CMYK" and (rgb := _turbo(data, image, least_px)) is not None:
        return rgb
    try:
        image.load()
    except OSError:
        data = data.rstrip(b"\xff") + _END_OF_IMAGE
        rgb = _turbo(data, image, least_px)
        if rgb is None:
            raise
        warnings.warn(f"image {path} lacks its end marker; all of its pixels are there, and it is used.", stacklevel=2)
        if image.mode != "CMYK":
            return rgb
        image = Image.open(io.BytesIO(data), formats=("JPEG",))
        image.load()
    return image


def _turbo(data: bytes, image: Image.Image, least_px: tuple[int, int] | None) -> np.ndarray | None:
    """RGB of a JPEG, of CMYK just something; None where libjpeg-turbo has anything to say against it."""
    try:
        if simplejpeg.decode_jpeg_header(data)[:2] != (image.height, image.width):
            return None  # Pillow has read another header, and by that one we have decided
        if image.mode == "CMYK" or least_px is None:
            return simplejpeg.decode_jpeg(data, "CMYK" if image.mode == "CMYK" else "RGB", strict=True)
        width, height = least_px
        return simplejpeg.decode_jpeg(
            data, "RGB", strict=True, min_width=width, min_height=height, min_factor=_FASTER_FACTOR
        )
    except ValueError:
        return None


# ---- RGB of all other formats


def _fill(rgb_YX3: np.ndarray, image: Image.Image, path: Path) -> None:
    """A loaded image -> RGB on white, some rows at a time."""
    convert = _converter(image, path)
    width, height = image.size
    step = max(1, _BAND_PX // width)
    for top in range(0, height, step):
        bottom = min(height, top + step)
        rgb_YX3[top:bottom] = convert(image.crop((0, top, width, bottom)), top)


def _converter(image: Image.Image, path: Path) -> Callable[[Image.Image, int], np.ndarray]:
    """What makes RGB, or gray of one channel, of rows of the image; beside them it is given the first one's number."""
    transparent = image.info.get("transparency")
    if image.mode.startswith("I"):
        levels = _levels_of_16_bits(image, path)
        return lambda rows, top: _gray(rows, levels, transparent)
    if image.mode == "F":
        raise DataError(f"image {path} has floating point pixels, whose white is unknown. Convert it to 8-bit PNG.")
    if image.format == "TIFF" and 2 in image.tag_v2.get(_SAMPLE_FORMAT_TAG, ()):  # type: ignore[attr-defined]
        raise DataError(f"image {path} has signed pixels, whose white is unknown. Convert it to 8-bit PNG.")
    if _has_deep_planes(image):
        raise DataError(
            f"image {path} stores each colour in a plane of more than 8 bits, which is not read. Convert it to PNG."
        )
    table = _table_of_few_bits(image)
    if image.format == "PNG" and transparent is not None and image.mode in ("L", "RGB"):
        rawmode, low = _png_rawmode(path)
        if rawmode == "RGB;16B":
            return lambda rows, top: _on_white_where(
                rows, low.crop((0, top, rows.width, top + rows.height)), transparent
            )
        if rawmode in ("L;2", "L;4"):  # Pillow scales the pixels, and leaves the transparent one as it was
            largest = 2 ** int(rawmode[2]) - 1
            image.info["transparency"] = (transparent & largest) * 255 // largest
    return lambda rows, top: np.asarray(_to_rgb(rows.point(table) if table else rows))


def _has_deep_planes(image: Image.Image) -> bool:
    """Whether a TIFF has planes of more than 8 bits: Pillow takes their bytes for pixels."""
    if image.format != "TIFF":
        return False
    tags = image.tag_v2  # type: ignore[attr-defined]
    return tags.get(_PLANES_TAG) == 2 and max(tags.get(_BITS_TAG, (1,))) > 8


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _gray(rows: Image.Image, levels: np.ndarray, transparent: int | None) -> np.ndarray:
    values = np.asarray(rows)
    gray = levels[values]
    if transparent is not None:
        gray[values == transparent] = 255
    return gray[..., None]


def _levels_of_16_bits(image: Image.Image, path: Path) -> np.ndarray:
    """The 8-bit level of each value that Pillow gives where gray has more than 8 bits: 65,536 of them, uint8."""
    bits, shift, is_negative = 16, 0, False
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits, is_negative = tags[_BITS_TAG][0], tags.get(_PHOTOMETRIC_TAG) == 0
    elif image.format == "JPEG2000":
        bits = _jpeg2000_bits(path)[0]
        shift = 16 - bits
    if image.mode == "I" and image.format != "PPM":
        least, most = image.getextrema()
        raise DataError(
            f"image {path} has gray values {least} to {most}; needs 8 or 16 bits, without sign. Convert it to PNG."
        )
    largest = 2**bits - 1
    values = np.minimum(np.arange(65_536) >> shift, largest)
    levels = ((values * 255 + largest // 2) // largest).astype(np.uint8)
    return 255 - levels if is_negative else levels


def _table_of_few_bits(image: Image.Image) -> list[int] | None:
    """For Image.point, where JPEG 2000 has fewer than 8 bits: Pillow shifts them up, and white is gray then."""
    if image.format != "JPEG2000" or image.mode not in ("L", "LA", "RGB", "RGBA"):
        return None
    bits = _jpeg2000_bits(Path(image.filename))[: len(image.getbands())]  # type: ignore[attr-defined]
    if min(bits) >= 8:
        return None
    tables = [[(v >> max(0, 8 - b)) * 255 // (2 ** min(b, 8) - 1) for v in range(256)] for b in bits]
    return [level for table in tables for level in table]


def _jpeg2000_bits(path: Path) -> list[int]:
    """Bits of each component, as the codestream's SIZ says."""
    with path.open("rb") as file:
        data = file.read(1 << 20)
    start = data.index(b"\xff\x4f\xff\x51") + 2
    (num_components,) = struct.unpack_from(">H", data, start + 38)
    return [(data[start + 40 + 3 * i] & 127) + 1 for i in range(num_components)]


def _png_rawmode(path: Path) -> tuple[str, Image.Image]:
    """How a PNG's pixels are stored, as Pillow says it; and the image with the low bytes of its 16-bit RGB."""
    image = Image.open(path, formats=("PNG",))
    (tile,) = image.tile[:1]
    if tile.args == "RGB;16B":
        image.tile = [tile._replace(args="RGB;16L")]  # takes the second byte of each pair, the low one in PNG
        image.load()
    return str(tile.args), image


def _on_white_where(high: Image.Image, low: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """16-bit RGB's high bytes, white where the pixel, high and low, is the transparent colour."""
    rgb, low_YX3 = np.array(high), np.asarray(low)
    colour_3 = np.array(colour, np.uint16)
    rgb[((rgb == colour_3 >> 8) & (low_YX3 == (colour_3 & 255))).all(-1)] = 255
    return rgb
