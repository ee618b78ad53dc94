"""Media as bytes: what they are called, and files named by their content."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from eagle_model.data.formats import media
from eagle_model.data.formats.media import BrokenMediumError, Embedded, MediaStore, from_base64, kind_of, suffix_of
from tests.data.formats.conftest import picture

STARTS = [
    (picture(), ".png"),
    (picture(kind="JPEG"), ".jpg"),
    (picture(kind="GIF"), ".gif"),
    (picture(kind="WEBP"), ".webp"),
    (picture(kind="BMP"), ".bmp"),
    (picture(kind="TIFF"), ".tif"),
    (picture(kind="PPM"), ".ppm"),
    (picture(kind="AVIF"), ".avif"),
    (b"\0\0\0\x18ftypmp42....", ".mp4"),
    (b"\0\0\0\x14ftypqt  ....", ".mov"),
    (b"RIFF\0\0\0\0AVI LIST", ".avi"),
    (b"\x1a\x45\xdf\xa3\x9fB\x86", ".mkv"),
    (b"%PDF-1.7\n", ".pdf"),
    (b"G" + bytes(187) + b"G", ".ts"),
    (b"Good morning" + bytes(200), None),
    (b"\x80\x04\x95pickle", None),
    (b"", None),
]


@pytest.mark.parametrize(("data", "suffix"), STARTS, ids=[str(i) for i in range(len(STARTS))])
def test_a_file_is_called_by_its_first_bytes(data: bytes, suffix: str | None) -> None:
    assert suffix_of(data) == suffix


def test_equal_bytes_are_one_file(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    name = store.put(Embedded(picture()))
    digest = hashlib.sha256(picture()).hexdigest()
    assert name == f"{digest[:2]}/{digest[2:4]}/{digest}.png"
    assert store.put(Embedded(picture())) == name
    assert (store.num_files, store.num_bytes) == (1, len(picture()))
    assert (tmp_path / name).read_bytes() == picture()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / name]


def test_a_file_that_a_crash_left_empty_is_written_again(tmp_path: Path) -> None:
    store = MediaStore(tmp_path)
    name = store.put(Embedded(picture()))
    (tmp_path / name).write_bytes(b"")
    assert store.put(Embedded(picture())) == name and (tmp_path / name).read_bytes() == picture()


def test_what_is_no_medium_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MediaStore(tmp_path)
    with pytest.raises(BrokenMediumError, match="no known image"):
        store.put(Embedded(b"\x80\x04."))
    monkeypatch.setattr(media, "MAX_MEDIUM_BYTES", 10)
    with pytest.raises(BrokenMediumError, match="more than 10"):
        store.put(Embedded(picture()))
    assert not list(tmp_path.iterdir())


def test_base64_with_and_without_a_data_url() -> None:
    text = base64.b64encode(picture()).decode()
    assert from_base64(text) == from_base64(f"data:image/png;base64,{text}") == Embedded(picture())
    for wrong, message in (("a*b", "no base64"), ("data:image/png,abc", "not base64")):
        with pytest.raises(ValueError, match=message):
            from_base64(wrong)


def test_base64_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_BASE64_CHARS", 100)
    with pytest.raises(ValueError, match="more than 100"):
        from_base64("A" * 101)


def test_kinds_by_name() -> None:
    assert [kind_of(name) for name in ("a.JPG", "b.mkv", "c.pdf", "d.txt", "e")] == [
        "image",
        "video",
        "video",
        None,
        None,
    ]
