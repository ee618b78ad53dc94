"""annotate/page.py: frames beside questions, and nothing of a text is markup."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from eagle_model.annotate.config import AnnotateConfig
from eagle_model.annotate.page import write_page
from tests.annotate.test_build import question
from tests.data.conftest import write_video


def test_a_page_shows_frames_and_texts(tmp_path: Path, make_config: Callable[..., AnnotateConfig]) -> None:
    (tmp_path / "films").mkdir()
    write_video(tmp_path / "films/v.mp4")  # 2 s, ever brighter
    shown = question(start=0.0, end=2.0, question="Is <b> & a letter?", reason="blind", marks=["one_frame"])
    write_page(tmp_path / "page", make_config("http://none/v1", "build.shown_frames=2"), [shown])
    text = (tmp_path / "page/index.html").read_text()
    assert "Is &lt;b&gt; &amp; a letter?" in text and "dropped: blind" in text and "one_frame" in text
    first, second = sorted((tmp_path / "page").glob("*.jpg"))
    assert first.name in text and second.name in text
    assert Image.open(first).convert("L").getpixel((9, 9)) < Image.open(second).convert("L").getpixel((9, 9))


def test_a_video_that_is_gone_and_pictures_of_an_earlier_page(
    tmp_path: Path, make_config: Callable[..., AnnotateConfig]
) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "page/0123456789-0.jpg").write_bytes(b"")
    (tmp_path / "page/mine.jpg").write_bytes(b"")
    write_page(tmp_path / "page", make_config("http://none/v1"), [question()])
    assert "cannot be shown" in (tmp_path / "page/index.html").read_text()
    assert [p.name for p in (tmp_path / "page").glob("*.jpg")] == ["mine.jpg"]
