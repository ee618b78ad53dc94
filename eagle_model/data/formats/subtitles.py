"""Subtitles, SubRip (.srt) or WebVTT (.vtt) -> what is said and when, as text to show beside a video.

    subtitles_text(Path("film.srt"))
    # "1.0 - 3.5 s: Where is it?\\n4.0 - 6.0 s: Behind you."

Tags (<i>, <v Anna>, {\\an8}) are taken out, HTML's names of characters become the characters, a cue's lines one line.
Cues are in the file's order. WebVTT's notes, styles and regions are no cues. A file has at most MAX_FILE_BYTES.
"""

from __future__ import annotations

import codecs
import html
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from eagle_model.data.annotations import need_file
from eagle_model.data.sample import DataError

MAX_FILE_BYTES = 16 << 20  # limit: of a film, some 100 KB
SUFFIXES = (".srt", ".vtt")
ROLLING_SECONDS = 0.05  # between cues of which the second shows lines of the first
_TIME = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2})[,.](\d{1,3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s|$)", re.ASCII)
_TAG = re.compile(r"<[^<>]{0,200}>|\{\\[^{}]{0,200}\}")


class Cue(NamedTuple):
    start_seconds: float
    end_seconds: float
    text: str


def subtitles_text(path: Path) -> str:
    """A line a cue. Raises DataError for a file that has no cue, is too large or not UTF-8."""
    if not (cues := read_cues(path, once=True)):
        raise DataError(f"{path}: has no cue with a time and a text; needs SubRip or WebVTT.")
    return "\n".join(f"{start:.1f} - {end:.1f} s: {text}" for start, end, text in cues)


def read_cues(path: Path, *, once: bool = False) -> list[Cue]:
    """The cues in the file's order, each with the seconds at which it is on show; none where nothing is said.

    once: lines that the cue just before shows already are left out. Captions that were made by a machine roll: each of
    their lines is in two or three cues.

    Raises DataError for a file that is too large, not UTF-8 (or UTF-16 that says so), or has text and no time."""
    need_file(path, "the subtitles")
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{path}: larger than {MAX_FILE_BYTES} bytes; no subtitles of one video.")
    try:
        text = data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: byte {error.start + 1}. Convert it, with iconv for example.") from None
    cues: list[Cue] = []
    before: list[str] = []  # the lines of the cue before, which ends at `until`
    until = 0.0
    for start, end, shown in _timed(text.replace("\r\n", "\n").replace("\r", "\n").split("\n")):
        lines = [line for line in (html.unescape(_TAG.sub("", line)).strip() for line in shown) if line]
        if not lines:
            continue
        said = _fresh(lines, before) if once and start - until < ROLLING_SECONDS else lines
        before, until = lines, end
        if said:
            cues.append(Cue(start, end, " ".join(said)))
    if not cues and "-->" not in text and text.strip() and not text.startswith("WEBVTT"):
        raise DataError(f"{path}: has no cue with a time and a text; needs SubRip or WebVTT.")
    return cues


def _timed(lines: list[str]) -> Iterator[tuple[float, float, list[str]]]:
    """(start, end, lines) of what stands after each line of times.

    In WebVTT an empty line ends a cue, and one of spaces is text. In SubRip as it is found, empty lines stand within
    cues and are missing between them: a cue goes on to the number before the next one's times.
    """
    is_vtt = lines[0].startswith("WEBVTT")
    times = [(i, match) for i, line in enumerate(lines) if (match := _TIMES.match(line))]
    begun = next_empty = -1  # of WebVTT's block: the empty line before it
    for (i, match), (next_i, _) in zip_longest(times, times[1:], fillvalue=(len(lines), None)):
        stop = next_i
        if is_vtt:
            while next_empty < i:
                begun, next_empty = next_empty, _find_empty(lines, next_empty + 1)
            if lines[begun + 1].split()[:1] in (["NOTE"], ["STYLE"], ["REGION"]):
                continue
            stop = min(stop, next_empty)
        elif next_i < len(lines) and lines[next_i - 1].strip().isdecimal() and next_i - 1 > i:
            stop = next_i - 1
        yield *_seconds(match), lines[i + 1 : stop]


def _find_empty(lines: list[str], start: int) -> int:
    return next((i for i in range(start, len(lines)) if not lines[i]), len(lines))


def _fresh(lines: list[str], before: list[str]) -> list[str]:
    """The lines after those that the cue before ends with."""
    most = min(len(lines), len(before))
    return next((lines[n:] for n in range(most, 0, -1) if lines[:n] == before[-n:]), lines)


def _seconds(match: re.Match[str]) -> tuple[float, float]:
    start, end = match.groups()[:4], match.groups()[4:]
    return tuple(  # type: ignore[return-value]
        3600 * int(hours or 0) + 60 * int(minutes) + int(seconds) + int(part.ljust(3, "0")) / 1000
        for hours, minutes, seconds, part in (start, end)
    )
