"""The records of a video: what is known of a file before a pixel is asked for, one decoded frame, and the one error.

    video = eagle_kernels.video.open("walk.mp4")
    video.info.num_frames, video.info.duration_seconds, video.info.frame_times_seconds[:3]   # 120, 4.8, [0, .04, .08]

Dims    N shown frames, K key frames, D packets in the order of storage, Y rows, X columns.
Times   in `VideoInfo` seconds from the first shown frame; in the other records pts, in ticks of `time_base` seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from eagle_kernels.video.ranged import RangedFile

CLOCK_SECONDS = 1e-3  # Matroska and FLV keep times in whole milliseconds, and pass them on when a file is rewritten


class VideoError(ValueError):
    """A video file that cannot be read, or a time that it cannot show. The message says which and why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoInfo:
    """One video file, as a player shows it. Times are seconds from the first shown frame, which is at 0.0."""

    path: Path
    codec: str  # libav's name: "h264", "hevc", "vp9", "av1", ...
    width_px: int  # as shown: square pixels, after rotation; every decoded frame has this size
    height_px: int
    rotation_degrees: int  # 0, 90, 180 or 270, clockwise, that the container asks a player to apply; decode() does
    num_frames: int  # frames shown; what an edit list cuts away is not counted
    duration_seconds: float  # the end of the last frame
    frames_per_second: float  # average: num_frames / duration_seconds
    is_variable_frame_rate: (
        bool  # some frame lies more than 1 ms and 1 tick of the container's clock off an even spacing
    )
    frame_times_seconds: NDArray[np.float64]  # (N,) ascending, read-only
    key_frames: NDArray[np.int64]  # (K,) numbers of the shown frames that decoding can start at, ascending, read-only
    damage: str | None  # what was wrong with the file, when it had to be read only in part; else None


class Frame(NamedTuple):
    """One frame. `timestamp_seconds` is its own time, the last one at or before the time asked for."""

    timestamp_seconds: float
    rgb_YX3: Tensor  # uint8, contiguous, full range RGB


class Orientation(NamedTuple):
    """How stored pixels are turned to be shown: first swap rows and columns, then flip."""

    transpose: bool = False
    flip_y: bool = False
    flip_x: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Where the packets lie in the file, in the order of storage, and what opens a decoder for them.

    `head`, followed by the bytes of the first `num_head_samples` packets, is a small file of the same stream.
    """

    pts_D: NDArray[np.int64]
    is_key_D: NDArray[np.bool_]  # a decoder may start here: sync samples and open random access points
    offset_D: NDArray[np.int64]  # bytes from the start of the file
    size_D: NDArray[np.int32]
    head: bytes
    num_head_samples: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Tables:
    """One video track, as the container's own tables or headers tell it."""

    stream: int  # the track's number in the file, as libav counts
    time_base: Fraction
    samples: Samples
    duration_D: NDArray[np.int64]  # 0 if unknown
    is_shown_D: NDArray[np.bool_]  # False: decoded for the sake of others, and never shown or cut away by an edit list
    stated_seconds: float | None  # the end that the container states for all its tracks together, if it does so


NO_TIME = -(1 << 63)  # of a packet that shows nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class PacketClock:
    """Times and bounds of the packets where the container's own do not do (clock.py). These packets are counted from
    the beginning of the file, and not sought by time."""

    pts_D: NDArray[np.int64]  # NO_TIME: shows nothing
    num_stored_D: NDArray[np.int32]  # packets of the container that make this one: 2 where each holds one field
    is_key_D: NDArray[np.bool_]
    is_damaged_D: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class PacketIndex:
    """One video stream, as its container tells it. The place of a packet is its number in the order of storage, which
    is the order of decoding."""

    path: Path
    stream: int  # its number in the file, as libav counts
    codec: str
    time_base: Fraction  # seconds of one tick
    pts_N: NDArray[np.int64]  # of each shown frame, ascending
    place_N: NDArray[np.int32]  # of each shown frame's packet
    last_duration: int  # ticks that the last frame is shown; 0 if unknown
    key_pts_K: NDArray[np.int64]  # of each packet that a decoder can start at, ascending
    key_seek_K: NDArray[np.int64]  # the time that makes the demuxer go there
    key_place_K: NDArray[np.int32]
    key_position_K: NDArray[np.int64]  # bytes from the start of the file, -1 if unknown: whether a seek landed there
    scaled_width_px: int  # stored size with square pixels, before turning
    scaled_height_px: int
    orientation: Orientation
    rotation_degrees: int
    damage: str | None
    decoder_tells_keys: bool  # the decoder marks the frames it can start at: what the container calls one is checked
    samples: Callable[[], Samples] | None  # None: the packets are found by libav's demuxer alone
    clock: PacketClock | None  # None: the container's times do
    ranged: RangedFile | None = None  # of a file that lies elsewhere: `path` is where what was fetched of it is kept


def describe(index: PacketIndex) -> VideoInfo:
    """The packets' numbers as a player would tell them."""
    tick_seconds = float(index.time_base)
    if int(index.pts_N[-1]) - int(index.pts_N[0]) >= 1 << 52:  # float64 could not tell neighbours apart
        raise VideoError(f"{index.path}: its times span {index.pts_N[-1] - index.pts_N[0]} ticks; it is damaged.")
    times_N = (index.pts_N - index.pts_N[0]) * tick_seconds
    shown_K = np.searchsorted(index.pts_N, index.key_pts_K).clip(max=len(times_N) - 1)
    key_frames = np.unique(shown_K[index.pts_N[shown_K] == index.key_pts_K])  # an edit list may hide some
    for array in (times_N, key_frames):
        array.flags.writeable = False
    num_frames = len(times_N)
    duration_seconds = float(times_N[-1] + index.last_duration * tick_seconds)
    even_N = np.linspace(0.0, times_N[-1], num_frames)
    off_seconds = float(np.abs(times_N - even_N).max())
    width_px, height_px = index.scaled_width_px, index.scaled_height_px
    if index.orientation.transpose:
        width_px, height_px = height_px, width_px
    return VideoInfo(
        path=index.path,
        codec=index.codec,
        width_px=width_px,
        height_px=height_px,
        rotation_degrees=index.rotation_degrees,
        num_frames=num_frames,
        duration_seconds=duration_seconds,
        frames_per_second=num_frames / duration_seconds if duration_seconds > 0 else 0.0,
        is_variable_frame_rate=off_seconds > 1.01 * max(tick_seconds, CLOCK_SECONDS),  # 1 %: floating point
        frame_times_seconds=times_N,
        key_frames=key_frames,
        damage=index.damage,
    )
