"""What is known of a video file before a pixel is asked for, one decoded frame, and the one error of this package.

Dims    N shown frames, Y rows, X columns.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    damage: str | None  # what was wrong with the file, when it had to be read only in part; else None


class Frame(NamedTuple):
    """One frame. `timestamp_seconds` is its own time, the last one at or before the time asked for."""

    timestamp_seconds: float
    rgb_YX3: Tensor  # uint8, contiguous, full range RGB
