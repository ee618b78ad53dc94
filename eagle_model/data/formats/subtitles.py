"""Subtitles, SubRip (.srt) or WebVTT (.vtt) -> what is said and when, as text to show beside a video.

    subtitles_text(Path("film.srt"))
    # "1.0 - 3.5 s: Where is it?\\n4.0 - 6.0 s: Behind you."

Tags (<i>, <v Anna>, {\\an8}) are taken out, HTML's names of characters become the characters, a cue's lines one line.
Cues are in the file's order. WebVTT's notes, styles and regions are no cues. A file has at most MAX_FILE_BYTES.

Files are as people's tools leave them: a line of times begins a cue, whether a blank line is before it or not, and what
follows a blank line inside a cue of SubRip still belongs to it. Times may lack their fraction.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import NamedTuple

from eagle_model.data.annotations import need_file
from eagle_model.data.sample import DataError

MAX_FILE_BYTES = 16 << 20  # limit: of a film, some 100 KB
SUFFIXES = (".srt", ".vtt")
_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})(?:[,.](\d{1,3}))?"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?![\d:.,])", re.ASCII)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")  # as Windows' editor begins such a file
_TAG = re.compile(r"<[^<>]{0,200}>|\{\\[^{}]{0,200}\}")


class Cue(NamedTuple):
    start_seconds: float
    end_seconds: float
    text: str


def subtitles_text(path: Path) -> str:
    """A line a cue. Raises DataError for a file that has no cue, is too large or not UTF-8."""
    if not (cues := read_cues(path)):
        raise DataError(f"{path}: has no cue with a time and a text; needs SubRip or WebVTT.")
    return "\n".join(f"{start:.1f} - {end:.1f} s: {text}" for start, end, text in cues)


def read_cues(path: Path) -> list[Cue]:
    """The cues in the file's order, each with the seconds at which it is on show; none where nothing is said.

    Raises DataError for a file that is too large, not UTF-8, or has text and no time."""
    need_file(path, "the subtitles")
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{path}: larger than {MAX_FILE_BYTES} bytes; no subtitles of one video.")
    try:
        text = data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: byte {error.start + 1}. Convert it, with iconv for example.") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    is_vtt = text.startswith("WEBVTT")
    cues: list[Cue] = []
    said: list[str] = []  # of the last cue
    is_in_cue = False
    for i, line in enumerate(lines):
        if match := _TIMES.match(line):
            if cues:
                _finish(cues, said)
            cues.append(Cue(*_seconds(match), ""))
            said, is_in_cue = [], True
        elif not line.strip():
            is_in_cue = is_in_cue and not is_vtt
        elif is_in_cue and not _numbers_next(lines, i):
            said.append(line)
    if cues:
        _finish(cues, said)
    if not cues and "-->" not in text and text.strip() and not is_vtt:
        raise DataError(f"{path}: has no cue with a time and a text; needs SubRip or WebVTT.")
    return [cue for cue in cues if cue.text]


def _finish(cues: list[Cue], said: list[str]) -> None:
    """Gives the last cue its text."""
    text = " ".join(filter(None, (html.unescape(_TAG.sub("", line)).strip() for line in said)))
    cues[-1] = cues[-1]._replace(text=text)


def _numbers_next(lines: list[str], i: int) -> bool:
    """Whether a line is the number of the cue after it."""
    if not lines[i].strip().isdigit():
        return False
    after = next((line for line in lines[i + 1 :] if line.strip()), "")
    return bool(_TIMES.match(after))


def _seconds(match: re.Match[str]) -> tuple[float, float]:
    start, end = match.groups()[:4], match.groups()[4:]
    return tuple(  # type: ignore[return-value]
        3600 * int(hours or 0) + 60 * int(minutes) + int(seconds) + int((part or "0").ljust(3, "0")) / 1000
        for hours, minutes, seconds, part in (start, end)
    )
