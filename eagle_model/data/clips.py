"""Clips of videos: which frames there are to sample from, and how long the clip lasts. No pixel is read.

clip = open_clip(VideoRef(Path("film.mp4"), start_seconds=10, end_seconds=20))
clip.frame_times_seconds[0]        # 10.0, or a little more: the first frame shown from then on
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eagle_kernels.video import VideoError, probe
from eagle_model.data.sample import DataError, VideoRef

CLIP_END_SLACK_SECONDS = 1.0  # annotations round a video's end up; a clip that ends later still has wrong times


class Clip(NamedTuple):
    frame_times_seconds: np.ndarray  # to sample from, counted from the file's first shown frame
    duration_seconds: float


def open_clip(video: VideoRef, *, seek: str = "exact", index_folder: str | Path | None = None) -> Clip:
    """The frames shown in [start, end), or the one on show at `start` where none begins in it; of these the key frames,
    if seek is "keyframe" and the clip has any.

    The last frame counts as long as the mean of the others, so n frames at a constant rate r last n / r. A single frame
    lasts as long as the file's frames do on average; a file that holds one frame and no duration, a second.
    index_folder: keeps the indexes of videos, as `video.probe` does; it changes no number.
    Raises DataError when the file is missing or damaged, or the clip does not lie in it.
    """
    if not os.path.isfile(video.path):  # pathlib's raises for a name that is too long
        raise DataError(f"video {video.path} does not exist or is not a file.")
    try:
        info = probe(video.path, index_folder=index_folder)
    except (VideoError, OSError) as error:
        raise DataError(f"video {video.path} cannot be read: {error}") from error
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
        return Clip(times, 1 / info.frames_per_second if info.frames_per_second > 0 else 1.0)
    duration_seconds = float(times[-1] - times[0]) * len(times) / (len(times) - 1)
    keys = info.key_frames[(info.key_frames >= first) & (info.key_frames < last)]
    return Clip(info.frame_times_seconds[keys] if seek == "keyframe" and len(keys) else times, duration_seconds)
