"""The columns of the parquet files that steps hand on, and the list of videos that a run begins with.

for video in list_videos(Path("films"), root=Path("films")):
    video["id"], video["path"]             # "trip/a.mp4", "trip/a.mp4": its path under the root is its name
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from eagle_model.data.annotations import json_rows
from eagle_model.data.formats.subtitles import SUFFIXES as SUBTITLES
from eagle_model.data.sample import DataError

VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".mpeg", ".flv", ".ogv", ".gif"}
_TEXTS = ("id", "path", "title", "description", "licence", "source", "subtitles")

_SPAN = pa.struct([("start", pa.float64()), ("end", pa.float64()), ("title", pa.string())])
VIDEOS = pa.schema(
    [
        *((name, pa.string()) for name in _TEXTS),
        ("chapters", pa.list_(_SPAN)),  # those that came with the list of videos
        ("duration_seconds", pa.float64()),
        ("width_px", pa.int32()),
        ("height_px", pa.int32()),
        ("marks", pa.list_(pa.string())),
        ("num_clips", pa.int32()),
        ("new_clips", pa.list_(pa.float64())),  # starts of the clips that are unlike all of the reference
    ]
)
SEGMENTS = pa.schema(
    [
        ("id", pa.string()),  # of the video
        ("number", pa.int32()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("title", pa.string()),
        ("made_by", pa.string()),  # list, vitt, vidchapters, description, container or shots
        ("speech", pa.string()),
    ]
)
QUESTIONS = pa.schema(
    [
        ("id", pa.string()),
        ("video", pa.string()),
        ("kind", pa.string()),  # caption, story or clip
        ("type", pa.string()),  # of a clip's question
        ("question", pa.string()),
        ("answer", pa.string()),
        ("short", pa.string()),
        ("wrong", pa.list_(pa.string())),
        ("start", pa.float64()),  # of the chapter or clip; none: the whole video
        ("end", pa.float64()),
        ("anchor", pa.string()),  # the brief caption
        ("prompt", pa.string()),  # name@version
        ("model", pa.string()),
        ("request", pa.string()),  # the key of the journal's line with the raw answer
    ]
)
CHECKED = pa.schema(
    [
        *QUESTIONS,
        ("reason", pa.string()),  # why it is dropped; none: it is kept
        ("marks", pa.list_(pa.string())),
        ("duration_seconds", pa.float64()),
        ("path", pa.string()),
        ("licence", pa.string()),
        ("source", pa.string()),
    ]
)


def list_videos(videos: Path, *, root: Path) -> Iterator[dict[str, Any]]:
    """The videos of a folder, by name; or of a JSON Lines file, in its order, with what it says of each.

    Rows are {"path": relative to root} and, each as it likes, id, title, description, licence, source (text), subtitles
    (a path of .srt or .vtt; else a file named as the video is looked for) and chapters ([{"start", "title", "end"}]).

    Raises: DataError for a row without a path, with a field of another type, or of a path that leads out of the root.
    """
    if videos.is_dir():
        found = sorted(p for p in videos.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES and p.is_file())
        rows: Iterator[tuple[str, Any]] = ((str(p), {"path": str(p.relative_to(root))}) for p in found)
    else:
        rows = json_rows(videos)
    seen: set[str] = set()
    for where, row in rows:
        if isinstance(row, DataError):
            raise row
        video = _video(row, where, root)
        if video["id"] in seen:
            raise DataError(f"{where}: the id {video['id']!r} was there before; each video needs its own.")
        seen.add(video["id"])
        yield video


def _video(row: Any, where: str, root: Path) -> dict[str, Any]:
    if not isinstance(row, dict) or not isinstance(row.get("path"), str):
        raise DataError(f"{where}: needs an object with the path of a video.")
    for name in _TEXTS:
        if not isinstance(row.get(name), (str, type(None))):
            raise DataError(f"{where}: {name} is {str(row[name])[:60]!r}; needs a text.")
    path = Path(row["path"])
    for name in ("path", "subtitles"):
        inside = Path(row.get(name) or "")
        if inside.is_absolute() or ".." in inside.parts:
            raise DataError(f"{where}: {name} {row[name]!r} leads out of {root}; needs a path under it.")
    try:
        row["path"].encode()
    except UnicodeEncodeError:
        raise DataError(f"{row['path']!a}: a name that is not UTF-8 can stand in no row; rename the file.") from None
    video = {name: row.get(name) for name in _TEXTS}
    video["id"] = row.get("id") or row["path"]
    if video["subtitles"] is None:
        beside = (path.with_suffix(suffix) for suffix in SUBTITLES)
        video["subtitles"] = next((str(p) for p in beside if (root / p).is_file()), None)
    return {**video, "chapters": _chapters(row.get("chapters"), where)}


def _chapters(chapters: Any, where: str) -> list[dict[str, Any]] | None:
    if chapters is None:
        return None
    need = f"{where}: chapters needs a list of objects with start (seconds) and title."
    if not isinstance(chapters, list) or not all(isinstance(c, dict) for c in chapters):
        raise DataError(need)
    try:
        ends = [None if c.get("end") is None else float(c["end"]) for c in chapters]
        return [{"start": float(c["start"]), "end": e, "title": str(c["title"])} for c, e in zip(chapters, ends)]
    except (KeyError, TypeError, ValueError):
        raise DataError(need) from None
