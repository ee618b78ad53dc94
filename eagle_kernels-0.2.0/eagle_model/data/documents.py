"""PDF documents: how many pages there are, how large each is, and its pixels as RGB.

    num_pages(Path("paper.pdf"))                             # 12
    for page_YX3 in load_pages(Path("paper.pdf"), [0, 5]):   # uint8 (1650, 1275, 3): US letter at 150 dots an inch
        ...

Rendered by PDFium (pypdfium2, the extra "pdf"), annotations and forms as they are filled in included, on white. PDFium
is not safe to use from several threads: a lock lets one in at a time. No script in a document is run.

Bounds  A file has at most MAX_FILE_BYTES and MAX_PAGES, and PDFium reads of it what a page needs. A page is rendered at
        DOTS_AN_INCH, or coarser where it would have more than MAX_PAGE_PX. Rendering stops after MAX_PAGE_SECONDS, or
        a limit for the whole document; PDFium asks between the objects of a page. What it cannot be asked to stop at,
        unpacking a page's instructions, it bounds at 1 GiB of them: measured, 2.6 GB of memory and a minute.

Dims    Y and X pixels.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eagle_model.data.sample import DataError

try:
    import pypdfium2 as pdfium
    import pypdfium2.raw as pdfium_c
except ImportError:  # the extra "pdf"
    pdfium = None

DOTS_AN_INCH = 150  # as office scanners give them: a page of A4 is 1240 x 1754 px, with letters of 10 points legible
MAX_PAGE_PX = 1 << 24  # limit: 48 MiB as RGB; A2 at 150 dots an inch has 8.7 Mpx
MAX_PAGES = 20_000  # limit: a long book has 2,000; a page count that was made up would fill the memory
MAX_FILE_BYTES = 1 << 30  # limit: a scanned book of 1,000 pages has some 300 MB
MAX_PAGE_SECONDS = 60.0  # limit: of rendering one page; pages of text take a twentieth of a second
_POINTS_AN_INCH = 72
_LOCK = threading.RLock()


def num_pages(path: Path) -> int:
    """At least 1. Raises DataError when the file is missing, damaged, encrypted or without a page."""
    with _opened(path) as pdf:
        return len(pdf)


def page_size(path: Path, page: int = 0) -> tuple[int, int]:
    """(width_px, height_px) of a page, counted from 0, as `load_pages` renders it. Errors as of `num_pages`."""
    with _opened(path) as pdf:
        return _size_px(pdf, page, path)


def load_pages(path: Path, pages: Sequence[int], *, time_limit_seconds: float | None = None) -> Iterator[Tensor]:
    """uint8 RGB (Y, X, 3) of each of these pages, counted from 0, in the order asked.

    time_limit_seconds: for all of them together, beside MAX_PAGE_SECONDS for each.
    Raises DataError, as `num_pages` does, or when there is no such page, or rendering takes too long.
    """
    left = float("inf") if time_limit_seconds is None else time_limit_seconds
    for page in pages:
        with _opened(path) as pdf:  # anew for each: nothing of PDFium's is held while the caller has a page
            started = time.monotonic()
            rendered_YX3 = _render(pdf, page, path, min(left, MAX_PAGE_SECONDS))
            left -= time.monotonic() - started
        yield torch.from_numpy(rendered_YX3)


@contextmanager
def _opened(path: Path) -> Iterator[pdfium.PdfDocument]:
    if pdfium is None:
        raise DataError(f"{path} is a PDF, which needs pypdfium2: pip install 'eagle-kernels[pdf]'.")
    if not os.path.isfile(path):
        raise DataError(f"document {path} does not exist or is not a file.")
    if (num_bytes := os.path.getsize(path)) > MAX_FILE_BYTES:
        raise DataError(f"document {path} has {num_bytes} bytes, more than {MAX_FILE_BYTES}; split it.")
    with _LOCK:
        raw = pdfium_c.FPDF_LoadDocument(os.fsencode(path) + b"\0", None)
        if not raw:
            raise DataError(f"document {path} {_why_not_opened(pdfium_c.FPDF_GetLastError())}")
        pdf = pdfium.PdfDocument(raw)
        try:
            pdf.init_forms()  # before any page is opened
            if not 1 <= len(pdf) <= MAX_PAGES:
                advice = f"more than {MAX_PAGES}; split it" if len(pdf) else "none that can be seen; leave it out"
                raise DataError(f"document {path} has {len(pdf)} pages, {advice}.")
            yield pdf
        except pdfium.PdfiumError as error:
            raise DataError(f"document {path} is damaged: {error} Repair it, or print it to a new PDF.") from error
        finally:
            pdf.close()


def _why_not_opened(error_code: int) -> str:
    if error_code in (pdfium_c.FPDF_ERR_PASSWORD, pdfium_c.FPDF_ERR_SECURITY):
        return "is encrypted and needs a password. Save it without one."
    return "is no PDF, or a damaged one. Repair it, or print it to a new PDF."


def _size_px(pdf: pdfium.PdfDocument, page: int, path: Path) -> tuple[int, int]:
    if not 0 <= page < len(pdf):
        raise DataError(f"document {path} has {len(pdf)} pages; there is no page {page + 1}.")
    width, height = pdf.get_page_size(page)
    if not 0 < width * height < float("inf"):
        raise DataError(f"document {path}: page {page + 1} is {width:g} x {height:g} points; it cannot be shown.")
    scale = min(DOTS_AN_INCH / _POINTS_AN_INCH, (MAX_PAGE_PX / (width * height)) ** 0.5)
    # A strip thinner than a pixel is one pixel thick, so its length has a limit of its own.
    width_px, height_px = (min(max(1, round(side * scale)), MAX_PAGE_PX >> 8) for side in (width, height))
    return width_px, height_px


def _render(pdf: pdfium.PdfDocument, number: int, path: Path, limit_seconds: float) -> np.ndarray:
    width, height = _size_px(pdf, number, path)
    rgb_YX3 = np.full((height, width, 3), 255, np.uint8)
    pixels = (ctypes.c_ubyte * rgb_YX3.nbytes).from_buffer(rgb_YX3.data)
    deadline = time.monotonic() + limit_seconds
    pause = pdfium_c.IFSDK_PAUSE(version=1)
    pause.NeedToPauseNow = type(pause.NeedToPauseNow)(lambda _: time.monotonic() > deadline)
    page = pdf[number]
    bitmap = pdfium.PdfBitmap.new_native(width, height, pdfium_c.FPDFBitmap_BGR, rev_byteorder=True, buffer=pixels)
    try:
        where = (0, 0, width, height, 0, pdfium_c.FPDF_ANNOT | pdfium_c.FPDF_REVERSE_BYTE_ORDER)
        status = pdfium_c.FPDF_RenderPageBitmap_Start(bitmap, page, *where, pause)
        pdfium_c.FPDF_RenderPage_Close(page)
        if status == pdfium_c.FPDF_RENDER_TOBECONTINUED:
            raise DataError(
                f"document {path}: page {number + 1} takes longer to render than {limit_seconds:.3g} s. "
                "Print it to a new PDF, as images, or leave it out."
            )
        if status != pdfium_c.FPDF_RENDER_DONE:
            raise DataError(f"document {path}: page {number + 1} cannot be rendered. Print it to a new PDF.")
        if pdf.formenv:
            pdfium_c.FPDF_FFLDraw(pdf.formenv, bitmap, page, *where)
    finally:
        bitmap.close()
        page.close()
    return rgb_YX3
