"""Subtitles, SubRip (.srt) or WebVTT (.vtt) -> what is said and when, as text to show beside a video.

    subtitles_text(Path("film.srt"))
    # "1.0 - 3.5 s: Where is it?\\n4.0 - 6.0 s: Behind you."

Tags (<i>, <v Anna>, {\\an8}) are taken out, HTML's names of characters become the characters, a cue's lines one line.
Cues are in the file's order. WebVTT's notes, styles and regions are no cues. A file has at most MAX_FILE_BYTES.
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
_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})[,.](\d{1,3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s|$)", re.ASCII)
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
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: byte {error.start + 1}. Convert it, with iconv for example.") from None
    cues: list[Cue] = []
    for block in re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.strip("\n").split("\n")
        at = next((i for i, line in enumerate(lines[:2]) if _TIMES.match(line)), None)  # after a number or name
        if at is None:
            continue
        start, end = _seconds(_TIMES.match(lines[at]))  # type: ignore[arg-type]
        said = " ".join(filter(None, (html.unescape(_TAG.sub("", line)).strip() for line in lines[at + 1 :])))
        if said:
            cues.append(Cue(start, end, said))
    if not cues and "-->" not in text and text.strip() and not text.startswith("WEBVTT"):
        raise DataError(f"{path}: has no cue with a time and a text; needs SubRip or WebVTT.")
    return cues


def _seconds(match: re.Match[str]) -> tuple[float, float]:
    start, end = match.groups()[:4], match.groups()[4:]
    return tuple(  # type: ignore[return-value]
        3600 * int(hours or 0) + 60 * int(minutes) + int(seconds) + int(part.ljust(3, "0")) / 1000
        for hours, minutes, seconds, part in (start, end)
    )
