"""Chapters that people wrote: in a list of videos, in ViTT's or VidChapters' files, in a description, in the container.

chapters_of_description("0:00 Intro\\n1:05 - The walk\\n")     # [(0.0, None, "Intro"), (65.0, None, "The walk")]
spans = closed(chapters, duration_seconds=140.0)              # [(0.0, 65.0, "Intro"), (65.0, 140.0, "The walk")]
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from eagle_model.data.annotations import json_members, json_rows
from eagle_model.data.sample import DataError

Chapter = tuple[float, float | None, str]  # start, end where it is told, title
Span = tuple[float, float, str]
MIN_SECONDS = 1.0  # of a chapter: what is shorter is a slip of whoever wrote it
MAX_LINE_CHARS = 300  # limit: of a description's line with a time stamp, whose reading takes the square of it


def _stamp(name: str) -> str:
    return rf"(?:(?P<{name}_h>[0-9]{{1,2}}):)?(?P<{name}_m>[0-9]{{1,3}}):(?P<{name}_s>[0-5][0-9])"


_RANGE = rf"[\[(]?{_stamp('start')}(?:\s*[-–—~]\s*{_stamp('end')})?[\])]?"
_FORMS = (  # a list's lines are all of one
    re.compile(rf"^\W*(?:[0-9]{{1,3}}[.)]\W*)?{_RANGE}\s*[-–—:|.]*\s*(?P<title>\S.*?)\s*$"),
    re.compile(rf"^\s*(?P<title>\S.*?)\s*[-–—:|]*\s*{_RANGE}\s*$"),
)


def chapters_of_description(text: str) -> list[Chapter]:
    """Lines with a time stamp, or two, at one end, as a video's page takes them for chapters: the first at 0:00,
    ascending, the stamps all before the titles or all after them.

    Else none: stamps in a description may as well be of highlights.
    """
    lines = [line for line in text.splitlines() if len(line) <= MAX_LINE_CHARS]
    for form in _FORMS:
        found: list[Chapter] = []
        for match in filter(None, map(form.match, lines)):
            start = _seconds(match, "start")
            assert start is not None
            found.append((start, _seconds(match, "end"), match["title"]))
        starts = [start for start, _, _ in found]
        if len(found) >= 2 and starts[0] == 0 and all(a < b for a, b in pairwise(starts)):
            return found
    return []


def _seconds(match: re.Match[str], name: str) -> float | None:
    if match[f"{name}_s"] is None:
        return None
    return 3600.0 * int(match[f"{name}_h"] or 0) + 60.0 * int(match[f"{name}_m"]) + int(match[f"{name}_s"])


def closed(chapters: Sequence[Chapter], duration_seconds: float) -> list[Span]:
    """Chapters with their ends, in order, inside the video; those shorter than MIN_SECONDS are left out."""
    ordered = sorted(chapters, key=lambda c: c[0])
    spans = []
    for i, (start, end, title) in enumerate(ordered):
        next_start = ordered[i + 1][0] if i + 1 < len(ordered) else duration_seconds
        start, end = max(0.0, start), min(duration_seconds, next_start if end is None else end)
        if end - start >= MIN_SECONDS:
            spans.append((start, end, " ".join(title.split())))
    return spans


def read_vitt(path: Path) -> dict[str, list[Chapter]]:
    """ViTT-annotations.json, which is JSON Lines: {id, annotations: [{timestamp (ms), tag}]}. Of several sets of one
    video, the one with most chapters."""
    found: dict[str, list[Chapter]] = {}
    for where, row in json_rows(path, lines=True):
        try:
            chapters: list[Chapter] = [(t["timestamp"] / 1000, None, str(t["tag"])) for t in row["annotations"]]  # type: ignore[index]
            video = str(row["id"])  # type: ignore[index]
        except (KeyError, TypeError):
            raise DataError(f"{where}: no row of ViTT; needs id and annotations of timestamp and tag.") from None
        if len(chapters) > len(found.get(video, ())):
            found[video] = chapters
    return found


def read_vidchapters(path: Path) -> dict[str, list[Chapter]]:
    """VidChapters-7M, processed as its authors do: {video: {duration, timestamps: [[start, end]], sentences}}."""
    found: dict[str, list[Chapter]] = {}
    for where, video, about in json_members(path):
        try:
            times, titles = about["timestamps"], about["sentences"]  # type: ignore[index]
            found[video] = [(float(s), float(e), str(title)) for (s, e), title in zip(times, titles, strict=True)]
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{where}: no entry of VidChapters; needs timestamps and as many sentences.") from None
    return found
