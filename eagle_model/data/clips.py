"""Clips of videos: which frames there are to sample from, and how long the clip lasts. No pixel is read.

clip = open_clip(VideoRef(Path("film.mp4"), start_seconds=10, end_seconds=20), seek="tolerance")
clip.frame_times_seconds[0]        # 10.0, or a little more: the first frame shown from then on
clip.choose((10.0, 15.0, 20.0))    # (10.0, 14.4, 19.2): frames near these times that are cheap to decode
open_clip(VideoRef(Path("paper.pdf"))).frame_times_seconds    # 0.0, 1.0, ...: a document's pages, by their numbers
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eagle_kernels import video as video_files
from eagle_kernels.video import Video, VideoError
from eagle_model.data.documents import num_pages
from eagle_model.data.sample import DataError, VideoRef, is_document

# Videos that stay open: clips of one film follow each other in data sets, and what was planned just now is loaded next.
# An index takes some 40 bytes a frame, so these 8 take 35 MB if each is an hour; plans hold none.
OPEN_VIDEOS = 8
CLIP_END_SLACK_SECONDS = 1.0  # annotations round a video's end up; a clip that ends later still has wrong times


Times = tuple[float, ...]


class Clip(NamedTuple):
    frame_times_seconds: (
        np.ndarray
    )  # to sample from, counted from the file's first shown frame; or page numbers, from 0
    duration_seconds: float | None  # None: a document
    choose: Callable[[Times], Times]  # the own times of the frames to take for sampled ones: as many, none twice


def open_video(
    path: Path,
    index_folder: str | Path | None = None,
    time_limit_seconds: float | None = None,
    stop: threading.Event | None = None,
) -> Video:
    """`video.open`; a file that did not change since it was opened last is not read again. Errors as there."""
    try:
        status = os.stat(path)
    except OSError:
        return video_files.open(path, index_folder=index_folder)  # says what is wrong
    return _opened(path, index_folder, time_limit_seconds, stop, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=OPEN_VIDEOS)
def _opened(
    path: Path,
    index_folder: str | Path | None,
    time_limit_seconds: float | None,
    stop: threading.Event | None,
    num_bytes: int,
    changed_ns: int,
) -> Video:
    return video_files.open(path, index_folder=index_folder, time_limit_seconds=time_limit_seconds, stop=stop)


def open_clip(
    video: VideoRef,
    *,
    seek: str = "exact",
    tolerance: float = 0.25,
    index_folder: str | Path | None = None,
    time_limit_seconds: float | None = None,
    stop: threading.Event | None = None,
) -> Clip:
    """The frames shown in [start, end), or the one on show at `start` where none begins in it; of these the key frames,
    if seek is "keyframe" and the clip has any.

    The last frame counts as long as the mean of the others, so n frames at a constant rate r last n / r. A single frame
    lasts as long as the file's frames do on average; a file that holds one frame and no duration, a second.
    seek, tolerance: as for `Video.choose`; with "tolerance" `choose` takes cheaper frames near those sampled.
    index_folder, time_limit_seconds, stop: as for `video.open`; they change no number.
    Raises DataError when the file is missing or damaged, or the clip does not lie in it; a document has no clip.
    """
    if is_document(video.path):
        if (video.start_seconds, video.end_seconds) != (None, None):
            raise DataError(f"document {video.path} has pages, not seconds; take its start and end out.")
        return Clip(np.arange(num_pages(video.path), dtype=np.float64), None, _as_sampled)
    if not os.path.isfile(video.path):  # pathlib's raises for a name that is too long
        raise DataError(f"video {video.path} does not exist or is not a file.")
    try:
        opened = open_video(video.path, index_folder, time_limit_seconds, stop)
    except (VideoError, OSError) as error:
        raise DataError(f"video {video.path} cannot be read: {error}") from error
    info = opened.info
    if info.damage is not None:
        raise DataError(f"video {video.path} is damaged: {info.damage} Repair or remux it, or leave the sample out.")
    start, end = video.start_seconds or 0.0, video.end_seconds
    latest = max(start, 0.0 if end is None else end - CLIP_END_SLACK_SECONDS)
    if latest > 0 and latest >= info.duration_seconds:
        raise DataError(
            f"the clip is {start:g} s to {'the end' if end is None else f'{end:g} s'}, but video {video.path} lasts "
            f"{info.duration_seconds:.3f} s. Correct the clip's times."
        )
    times = info.frame_times_seconds
    first = int(np.searchsorted(times, start, side="left"))
    last = len(times) if end is None else int(np.searchsorted(times, end, side="left"))
    if first >= last:
        first = int(np.searchsorted(times, start, side="right")) - 1
        last = first + 1
    times = times[first:last]
    if len(times) == 1:
        return Clip(times, 1 / info.frames_per_second if info.frames_per_second > 0 else 1.0, _as_sampled)
    duration_seconds = float(times[-1] - times[0]) * len(times) / (len(times) - 1)
    if seek == "tolerance":
        return Clip(times, duration_seconds, partial(_cheap_frames, opened, times[0], times[-1], tolerance))
    keys = info.key_frames[(info.key_frames >= first) & (info.key_frames < last)]
    sampled = info.frame_times_seconds[keys] if seek == "keyframe" and len(keys) else times
    return Clip(sampled, duration_seconds, _as_sampled)


def _as_sampled(times: Times) -> Times:
    return times


def _cheap_frames(video: Video, first: float, last: float, tolerance: float, times: Times) -> Times:
    chosen = video.choose(times, seek="tolerance", tolerance=tolerance)
    is_inside = (chosen >= first) & (chosen <= last)  # of the clip, not only of the video
    return tuple(np.where(is_inside, chosen, times).tolist())
