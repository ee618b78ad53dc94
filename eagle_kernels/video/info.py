"""What is known of a video file before a pixel is asked for, one decoded frame, and the one error of this package.

Dims    N shown frames, K key frames, D packets in the order of storage, Y rows, X columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


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

    `head` and the bytes of the first `num_head_samples` packets behind it are a small file of the same stream.
    """

    pts_D: NDArray[np.int64]
    is_key_D: NDArray[np.bool_]
    offset_D: NDArray[np.int64]  # bytes from the start of the file
    size_D: NDArray[np.int32]
    head: bytes
    num_head_samples: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Tables:
    """One video track, as the container's own tables or headers tell it. Times are ticks of `time_base` seconds."""

    time_base: Fraction
    pts_D: NDArray[np.int64]
    duration_D: NDArray[np.int64]  # 0 if unknown
    is_shown_D: NDArray[np.bool_]  # False: decoded for the sake of others, and never shown or cut away by an edit list
    is_key_D: NDArray[np.bool_]  # a decoder may start here: sync samples and open random access points
    offset_D: NDArray[np.int64]  # bytes from the start of the file
    size_D: NDArray[np.int32]
    head: bytes  # with the first `num_head_samples` samples behind it a small file: all that opening a decoder takes
    num_head_samples: int
    stated_seconds: float | None  # the end that the container states for all its tracks together, if it does so


@dataclass(frozen=True, kw_only=True, eq=False)
class PacketIndex:
    """One video stream, as its container tells it. Times are pts in units of `time_base` seconds; the place of a packet
    is its number in the order of storage, which is the order of decoding."""

    path: Path
    codec: str
    time_base: Fraction
    pts_N: NDArray[np.int64]  # of each shown frame, ascending
    place_N: NDArray[np.int32]  # of each shown frame's packet
    last_duration: int  # ticks that the last frame is shown; 0 if unknown
    key_pts_K: NDArray[np.int64]  # of each packet that a decoder can start at, ascending
    key_seek_K: NDArray[np.int64]  # the time that makes the demuxer go there
    key_place_K: NDArray[np.int32]
    scaled_width_px: int  # stored size with square pixels, before turning
    scaled_height_px: int
    orientation: Orientation
    rotation_degrees: int
    damage: str | None
    samples: Callable[[], Samples] | None  # None: the packets are found by libav's demuxer alone
