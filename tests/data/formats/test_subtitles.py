"""SubRip and WebVTT as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagle_model.data.formats import subtitles
from eagle_model.data.formats.subtitles import read_cues, subtitles_text
from eagle_model.data.sample import DataError

SRT = (
    "\ufeff1\r\n00:00:01,000 --> 00:00:03,500\r\n<i>Where</i>\r\nis it?\r\n\r\n"
    "2\r\n01:00:04,000 --> 01:00:06,000\r\n{\\an8}Behind &amp; up.\r\n"
)
VTT = """WEBVTT - a title

NOTE 00:01.000 is no cue

STYLE
::cue { color: red }

intro
00:01.000 --> 00:03.500 align:start position:0%
<v Anna><c.yellow>Where</c> is it?

01:00:04.000 --> 01:00:06.000
Behind &amp; up.

00:09.000 --> 00:10.000

"""
SAID = "1.0 - 3.5 s: Where is it?\n3604.0 - 3606.0 s: Behind & up."


@pytest.mark.parametrize(("name", "text"), [("a.srt", SRT), ("a.vtt", VTT)])
def test_cues_with_their_times(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert subtitles_text(tmp_path / name) == SAID


@pytest.mark.parametrize(
    ("data", "message"), [(b"hello", "no cue"), (b"\xff\xfe1", "not UTF-8"), (b"x" * 101, "larger")]
)
def test_other_files(tmp_path: Path, data: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subtitles, "MAX_FILE_BYTES", 100)
    (tmp_path / "a.srt").write_bytes(data)
    with pytest.raises(DataError, match=message):
        subtitles_text(tmp_path / "a.srt")


@pytest.mark.parametrize("text", ["", "\n\n", "WEBVTT\n\n", "1\n00:00:01,000 --> 00:00:02,000\n\n"], ids=range(4))
def test_a_film_in_which_nothing_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.srt").write_text(text)
    assert read_cues(tmp_path / "a.srt") == []
    with pytest.raises(DataError, match="no cue"):
        subtitles_text(tmp_path / "a.srt")
