"""Step 2, segment: chapters where somebody wrote some, else shots, merged; and what is said in each.

run_step(run, segment_step(run))        # segment/part-00000.parquet: records.SEGMENTS, some rows a video
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from eagle_kernels.video.libav.chapters import read_chapters
from eagle_model.annotate.ask import Ask
from eagle_model.annotate.chapters import (
    Chapter,
    Span,
    chapters_of_description,
    closed,
    read_vidchapters,
    read_vitt,
)
from eagle_model.annotate.records import SEGMENTS
from eagle_model.annotate.shots import find_cuts, merged
from eagle_model.annotate.work import Rows, Run, Step
from eagle_model.data.clips import open_video
from eagle_model.data.formats.subtitles import read_cues
from eagle_model.files import sha256

HUMAN = ("list", "vitt", "vidchapters", "description", "container")  # who made segments that people wrote
MAX_SPEECH_CHARS = 4000  # of a segment: what a prompt holds beside 50 frames


def segment_step(run: Run) -> Step:
    config, root = run.config.segment, run.config.media_root
    vitt = read_vitt(Path(config.vitt)) if config.vitt else {}
    vidchapters = read_vidchapters(Path(config.vidchapters)) if config.vidchapters else {}

    def work(video: dict[str, Any], _: Ask) -> Rows:
        path, duration = root / video["path"], video["duration_seconds"]
        made_by, spans = _human(video, path, vitt, vidchapters)
        if not spans:
            cuts = find_cuts(
                open_video(path), frames_per_second=config.shot_frames_per_second, threshold=config.shot_threshold
            )
            pieces = merged(
                cuts,
                duration_seconds=duration,
                min_seconds=config.min_seconds,
                max_seconds=config.max_seconds,
                max_pieces=config.max_segments,
            )
            made_by, spans = "shots", [(start, end, "") for start, end in pieces]
        cues = read_cues(root / video["subtitles"], once=True) if video["subtitles"] else []
        return [
            {
                "id": video["id"],
                "number": number,
                "start": start,
                "end": end,
                "title": title,
                "made_by": made_by,
                "speech": speech_in(cues, start, end),
            }
            for number, (start, end, title) in enumerate(spans)
        ]

    return Step(
        name="segment",
        inputs=("select",),
        settings=config,
        made_from=tuple(sha256(Path(p)) for p in (config.vitt, config.vidchapters) if p),
        prompts=(),
        columns=SEGMENTS,
        items=_videos,
        work=work,
    )


def _videos(parts: dict[str, pa.Table]) -> Rows:
    return parts["select"].to_pylist()


def _human(
    video: dict[str, Any], path: Path, vitt: dict[str, list[Chapter]], vidchapters: dict[str, list[Chapter]]
) -> tuple[str, list[Span]]:
    """Who made the chapters, and these: of the first source that has any."""
    names = (video["id"], Path(video["path"]).stem)
    listed = [(c["start"], c["end"], c["title"]) for c in video["chapters"] or ()]
    sources: dict[str, list[Chapter]] = {
        "list": listed,
        "vitt": next((vitt[n] for n in names if n in vitt), []),
        "vidchapters": next((vidchapters[n] for n in names if n in vidchapters), []),
        "description": chapters_of_description(video["description"] or ""),
        "container": list(read_chapters(path)),
    }
    for made_by, chapters in sources.items():
        if spans := closed(chapters, video["duration_seconds"]):
            return made_by, spans
    return "", []


def speech_in(cues: Sequence[tuple[float, float, str]], start: float, end: float) -> str:
    """What is said from start to end: each cue belongs to the segment that holds its middle."""
    said = " ".join(text for a, b, text in cues if start <= (a + b) / 2 < end)
    return said if len(said) <= MAX_SPEECH_CHARS else said[:MAX_SPEECH_CHARS].rsplit(" ", 1)[0] + " ..."
