"""The chapters that a container names, as MP4, Matroska and others do: (start, end, title) in seconds from the first
shown frame's time 0 of the container's clock.

    read_chapters(Path("film.mkv"))        # [(0.0, 61.5, "Opening"), (61.5, 140.0, "The walk")]
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from eagle_kernels.video.libav.container import named, open_file

MAX_CHAPTERS = 10_000  # limit: a container that names more is damaged; the first are taken


def read_chapters(path: Path) -> list[tuple[float, float, str]]:
    """In their order; a chapter without a title has an empty one. Raises VideoError when it is no container."""
    with named(path), closing(open_file(path)) as container:
        found = container.chapters()[:MAX_CHAPTERS]
        return [
            (float(c["start"] * c["time_base"]), float(c["end"] * c["time_base"]), c["metadata"].get("title", ""))
            for c in found
        ]
