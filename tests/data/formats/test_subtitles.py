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


ROLLING = """WEBVTT
Kind: captions

00:00:00.160 --> 00:00:02.389 align:start position:0%
 
so<00:00:00.480><c> this</c><00:00:00.719><c> is</c>

00:00:02.389 --> 00:00:02.399 align:start position:0%
so this is
 

00:00:02.399 --> 00:00:04.000 align:start position:0%
so this is
how<00:00:02.600><c> it</c><00:00:02.719><c> goes</c>

00:00:04.000 --> 00:00:04.010 align:start position:0%
how it goes
 

00:00:09.000 --> 00:00:10.000 align:start position:0%
how it goes
"""


def test_a_line_that_rolls_is_said_once(tmp_path: Path) -> None:
    """As YouTube's automatic captions are, of which each line is shown three times (yt-dlp issue 1734)."""
    (tmp_path / "a.vtt").write_text(ROLLING)
    assert [cue.text for cue in read_cues(tmp_path / "a.vtt", once=True)] == [
        "so this is",
        "how it goes",
        "how it goes",
    ]
    assert read_cues(tmp_path / "a.vtt", once=True)[0].start_seconds == 0.16  # after its line of one space
    assert [cue.text for cue in read_cues(tmp_path / "a.vtt")][:3] == [
        "so this is",
        "so this is",
        "so this is how it goes",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1\n00:01,000 --> 00:02,000\nA\n2\n00:03,000 --> 00:04,000\nB\n", ["A", "B"]),  # no empty lines between
        ("1\n00:01,000 --> 00:02,000\nA\n\nmore\n\n2\n00:03,000 --> 00:04,000\nB\n", ["A more", "B"]),
        ("1\n00:01,000 --> 00:02,000\nIn 1984\n1984\n\n00:03,000 --> 00:04,000\nB\n", ["In 1984 1984", "B"]),
        ("1\n00:00,000 --> 00:00,000\n\n2\n00:03,000 --> 00:04,000\nB\n", ["B"]),
        ("1\n00:01,000 --> 00:02,000\nA\n \n2\n00:03,000 --> 00:04,000\n\n\nB\n", ["A", "B"]),
        ("WEBVTT\n\nNOTE\n00:01.000 --> 00:02.000\nleft out\n\n00:03.000 --> 00:04.000\nB\n\nid\n", ["B"]),
        ("WEBVTT\n\nNOTED\n00:03.000 --> 00:04.000\nB\n00:05.000 --> 00:06.000\nC", ["B", "C"]),
    ],
    ids=["joined", "empty line within", "a number is said", "says nothing", "spaces", "notes", "no note"],
)
def test_files_as_they_are_found(tmp_path: Path, text: str, said: list[str]) -> None:
    (tmp_path / "a.srt").write_text(text)
    assert [cue.text for cue in read_cues(tmp_path / "a.srt")] == said


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf_16_that_says_so(tmp_path: Path, encoding: str) -> None:
    mark = "" if encoding == "utf-16" else "\ufeff"
    (tmp_path / "a.srt").write_bytes((mark + SRT.removeprefix("\ufeff")).encode(encoding))
    assert subtitles_text(tmp_path / "a.srt") == SAID
