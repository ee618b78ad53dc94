"""Clips of videos: which frames there are to sample from, and how long the clip lasts. No pixel is read.

clip = open_clip(VideoRef(Path("film.mp4"), start_seconds=10, end_seconds=20), seek="tolerance")
clip.frame_times_seconds[0]        # 10.0, or a little more: the first frame shown from then on
clip.choose(np.array([10.0, 15.0, 20.0]))    # [10.0, 14.4, 19.2]: frames near these times that are cheap to decode
open_clip(VideoRef(Path("paper.pdf"))).frame_times_seconds    # 0.0, 1.0, ...: a document's pages, by their numbers
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from eagle_kernels import video as video_files
from eagle_kernels.video import Video, VideoError, VideoInfo
from eagle_kernels.video.ranged import Unreachable
from eagle_model.data.documents import num_pages
from eagle_model.data.frame_times import FrameTimes
from eagle_model.data.remote import RemoteFile, fetched
from eagle_model.data.sample import DOCUMENT_SUFFIX, DataError, VideoRef

if TYPE_CHECKING:
    from eagle_model.data.proxies import Proxies

# Videos that stay open: clips of one film follow each other in data sets, and what was planned just now is loaded next.
# An index takes some 40 bytes a frame, so these 8 take 35 MB if each is an hour; plans hold none.
OPEN_VIDEOS = 8
CLIP_END_SLACK_SECONDS = 1.0  # annotations round a video's end up; a clip that ends later still has wrong times


class Clip(NamedTuple):
    frame_times_seconds: FrameTimes  # to sample from, counted from the file's first shown frame; or page numbers
    duration_seconds: float | None  # None: a document
    choose: Callable[[NDArray], NDArray] | None = None  # the times of the frames to take for sampled ones: as many,
    # none twice; None: those
    num_frames: int = 0  # in the clip, key frames or not; of a document, pages
    frames_a_key: float = 1.0  # frames of the file for each one that decoding can start at
    frame_px: int = 0  # pixels of a frame


class VideoFacts(NamedTuple):
    """What planning needs to know of a video file: of VideoInfo, what `clip_of` reads."""

    frame_times_seconds: FrameTimes
    key_frames: NDArray[np.int64]
    duration_seconds: float
    frames_per_second: float
    width_px: int
    height_px: int
    damage: str | None


def open_video(
    path: Path,
    index_folder: str | Path | None = None,
    time_limit_seconds: float | None = None,
    stop: threading.Event | None = None,
    remote: RemoteFile | None = None,
) -> Video:
    """`video.open`; a file that did not change since it was opened last is not read again. Errors as there.

    remote: the file, where it lies elsewhere; then Unreachable is raised too.
    """
    if remote is not None:
        num_bytes, tag = remote.identity()
        return _opened(path, index_folder, time_limit_seconds, stop, num_bytes, tag, remote)
    try:
        status = os.stat(path)
    except OSError:
        return video_files.open(path, index_folder=index_folder)  # says what is wrong
    return _opened(path, index_folder, time_limit_seconds, stop, status.st_size, status.st_mtime_ns, None)


@lru_cache(maxsize=OPEN_VIDEOS)
def _opened(
    path: Path,
    index_folder: str | Path | None,
    time_limit_seconds: float | None,
    stop: threading.Event | None,
    num_bytes: int,
    changed: int | str,
    remote: RemoteFile | None,
) -> Video:
    return video_files.open(
        path, index_folder=index_folder, ranged=remote, time_limit_seconds=time_limit_seconds, stop=stop
    )


def open_clip(
    video: VideoRef,
    *,
    seek: str = "exact",
    tolerance: float = 0.25,
    index_folder: str | Path | None = None,
    time_limit_seconds: float | None = None,
    stop: threading.Event | None = None,
    proxies: Proxies | None = None,
) -> Clip:
    """The frames shown in [start, end), or the one on show at `start` where none begins in it; of these the key frames,
    if seek is "keyframe" and the clip has any.

    The last frame counts as long as the mean of the others, so n frames at a constant rate r last n / r. A single frame
    lasts as long as the file's frames do on average; a file that holds one frame and no duration, a second.
    seek, tolerance: as for `Video.choose`; with "tolerance" `choose` takes cheaper frames near those sampled.
    index_folder, time_limit_seconds, stop: as for `video.open`; they change no number.
    proxies: where the video has one, the frames are those that it holds, and the original is not opened.
    Raises DataError when the file is missing or damaged, or the clip does not lie in it; a document has no clip.
    """
    if video.path.suffix.lower() == DOCUMENT_SUFFIX:
        if (video.start_seconds, video.end_seconds) != (None, None):
            raise DataError(f"document {video.path} has pages, not seconds; take its start and end out.")
        return document_clip(num_pages(fetched(video, stop)))
    if proxies is not None and (proxy := proxies.of(video)) is not None:
        return clip_of(video, proxy.facts)._replace(duration_seconds=proxy.clip_seconds(video))
    if video.remote is None and not os.path.isfile(video.path):  # pathlib's raises for a name that is too long
        raise DataError(f"video {video.path} does not exist or is not a file.")
    try:
        opened = open_video(video.path, index_folder, time_limit_seconds, stop, video.remote)
    except Unreachable as error:
        raise DataError(f"video {error}") from error
    except (VideoError, OSError) as error:
        raise DataError(f"video {video.path} cannot be read: {error}") from error
    return clip_of(video, opened.info, seek=seek, tolerance=tolerance, choose=opened.choose)


def document_clip(num_pages: int) -> Clip:
    return Clip(np.arange(num_pages, dtype=np.float64), None, num_frames=num_pages)


def clip_of(
    video: VideoRef,
    info: VideoInfo | VideoFacts,
    *,
    seek: str = "exact",
    tolerance: float = 0.25,
    choose: Callable[..., NDArray[np.float64]] | None = None,
) -> Clip:
    """`open_clip` of a video that is known already. choose: as `Video.choose`, called with seek="tolerance" alone;
    None: the frames are taken as they are sampled."""
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
    first = int(times.searchsorted(start, side="left"))
    last = len(times) if end is None else int(times.searchsorted(end, side="left"))
    if first >= last:
        first = int(times.searchsorted(start, side="right")) - 1
        last = first + 1
    clip = Clip(
        times[first:last],
        None,
        num_frames=last - first,
        frames_a_key=len(times) / max(1, len(info.key_frames)),
        frame_px=info.width_px * info.height_px,
    )
    times = clip.frame_times_seconds
    if len(times) == 1:
        return clip._replace(duration_seconds=1 / info.frames_per_second if info.frames_per_second > 0 else 1.0)
    clip = clip._replace(duration_seconds=float(times[-1] - times[0]) * len(times) / (len(times) - 1))
    if seek == "tolerance" and choose is not None:
        return clip._replace(choose=partial(_cheap_frames, choose, times[0], times[-1], tolerance))
    keys = info.key_frames[(info.key_frames >= first) & (info.key_frames < last)]
    if seek == "keyframe" and len(keys):
        return clip._replace(frame_times_seconds=info.frame_times_seconds[keys])
    return clip


def _cheap_frames(
    choose: Callable[..., NDArray], first: float, last: float, tolerance: float, times_n: NDArray
) -> NDArray:
    chosen_n = choose(times_n, seek="tolerance", tolerance=tolerance)
    is_inside = (chosen_n >= first) & (chosen_n <= last)  # of the clip, not only of the video
    return np.where(is_inside, chosen_n, times_n)
