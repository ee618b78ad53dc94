"""Small media, as bytes and as files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(level: int = 100, kind: str = "PNG", size: tuple[int, int] = (32, 24)) -> bytes:
    """An image file of one gray."""
    out = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), level, np.uint8)).save(out, kind)
    return out.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a.png and b.jpg."""
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    (folder / "b.jpg").write_bytes(picture(50, "JPEG"))
    return folder
