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
_STAMP = r"(?:(\d{1,2}):)?(\d{1,3}):([0-5]\d)"
_LINE = re.compile(rf"^\s*(?:[-*•]|\d{{1,3}}[.)])?\s*[\[(]?{_STAMP}[\])]?\s*[-–—:|.]*\s*(\S.*?)\s*$", re.ASCII)
_LINE_END = re.compile(rf"^\s*(\S.*?)\s*[-–—:|]*\s*[\[(]?{_STAMP}[\])]?\s*$", re.ASCII)


def chapters_of_description(text: str) -> list[Chapter]:
    """Lines with a time stamp at one end, as a video's page takes them for chapters: the first at 0:00, ascending.

    Else none: stamps in a description may as well be of highlights.
    """
    found: list[Chapter] = []
    for line in text.splitlines():
        if match := _LINE.match(line):
            hours, minutes, seconds, title = match.groups()
        elif match := _LINE_END.match(line):
            title, hours, minutes, seconds = match.groups()
        else:
            continue
        found.append((3600.0 * int(hours or 0) + 60.0 * int(minutes) + int(seconds), None, title))
    starts = [start for start, _, _ in found]
    is_list = len(found) >= 2 and starts[0] == 0 and all(a < b for a, b in pairwise(starts))
    return found if is_list else []


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
