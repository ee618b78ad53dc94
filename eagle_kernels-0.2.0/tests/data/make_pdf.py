"""Small PDF files, written by hand: the format's own objects, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def gray(level: int) -> bytes:
    """A page of one gray level, 0 to 255."""
    return b"%.4f g 0 0 100000 100000 re f" % (level / 255)


def write_pdf(
    path: Path, pages: Sequence[bytes], *, width: float = 60, height: float = 40, trailer: bytes = b""
) -> Path:
    """pages: the drawing instructions of each.  width, height: in points, of which an inch has 72."""
    kids = b" ".join(b"%d 0 R" % (3 + 2 * i) for i in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
    ]
    for i, content in enumerate(pages):
        box = b"[0 0 %f %f]" % (width, height)
        objects.append(b"<< /Type /Page /Parent 2 0 R /MediaBox %s /Contents %d 0 R >>" % (box, 4 + 2 * i))
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    data = b"%PDF-1.4\n"
    starts = []
    for number, text in enumerate(objects, start=1):
        starts.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, text)
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    table += b"".join(b"%010d 00000 n \n" % start for start in starts)
    end = b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, trailer, len(data))
    path.write_bytes(data + table + end)
    return path
