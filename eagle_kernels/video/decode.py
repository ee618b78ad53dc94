"""Frames by time: which frame a time means, and who decodes it.

Dims    N shown frames, M times asked for, Y rows, X columns.
Times   seconds from the first shown frame. The frame for t is the last one with a time <= t: what a player shows then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from eagle_kernels.video import decode_dali
from eagle_kernels.video.info import Frame, VideoError, VideoInfo
from eagle_kernels.video.probe import describe

if TYPE_CHECKING:
    from eagle_kernels.video.decode_cpu import PacketIndex

TOLERANCE_SECONDS = 1e-6  # a time this little before a frame's own means that frame: times pass through decimal text


def decode(
    path: str | Path, timestamps_seconds: Sequence[float], *, device: str | torch.device = "cpu"
) -> Iterator[Frame]:
    """The frame shown at each time, in the order asked; repeats are allowed. Lazy: a frame is decoded when it is taken.

    The file is opened and the times are checked at once; memory holds one frame, however many are asked for. Ascending
    times are cheapest. Exact: the frame is the one that decoding the whole file from its start would give at that time.

    Every frame is (height_px, width_px, 3) of `probe(path)`: uint8 RGB, full range, by the stream's own colour matrix
    and range (BT.601 where it names none), turned and mirrored as the container asks, with square pixels (the width is
    stretched by the pixel aspect ratio, bilinear). High dynamic range is not tone mapped.

    Args:    timestamps_seconds: each in [0, duration_seconds]. A time out of `frame_times_seconds` means exactly that
             frame; so does any other within 1 us before it, so that rounding to microseconds is harmless.
             device: "cpu"; a CUDA device is for a later version.
    Raises:  VideoError at once if the file cannot be read or a time lies outside it (the message has both numbers), and
             on reaching a frame that is damaged or missing in the file: the message has its time and how many of the
             frames asked for were given before it; ask for the others in a new call. Nothing takes its place. (Video
             carries no checksums: damage that neither container nor codec notices is shown as it decodes, and where a
             container lost a frame without a trace, the one before it is shown longer.)
             ImportError without PyAV; ImportError, NotImplementedError: `device` is not the CPU.
    """
    device = torch.device(device)
    if device.type != "cpu":
        decode_dali.refuse(device)
    from eagle_kernels.video.decode_cpu import read_index  # here: the package imports without PyAV

    index = read_index(path)
    info = describe(index)
    return _decode_cpu(index, info, frame_indices(info, timestamps_seconds))


def frame_indices(info: VideoInfo, timestamps_seconds: Sequence[float]) -> NDArray[np.int64]:
    """(M,) the number of the frame shown at each time, counted from 0 as in `info.frame_times_seconds`.

    Raises VideoError if a time lies outside [0, duration_seconds].
    """
    times_N = info.frame_times_seconds
    asked_M = np.asarray(timestamps_seconds, np.float64).reshape(-1)
    inside_M = (asked_M >= -TOLERANCE_SECONDS) & (asked_M <= info.duration_seconds + TOLERANCE_SECONDS)
    if not inside_M.all():  # NaN too
        asked = float(asked_M[~inside_M][0])
        raise VideoError(
            f"{info.path}: asked for the frame at {asked:.6f} s; it lasts from 0 to {info.duration_seconds:.6f} s."
        )
    at_M = np.searchsorted(times_N, asked_M, side="right") - 1
    next_M = np.minimum(at_M + 1, len(times_N) - 1)
    # Not where the time is a frame's own: even frames less than a microsecond apart are told apart then.
    is_own_M = (at_M >= 0) & (times_N[at_M] == asked_M)
    return np.where(~is_own_M & (times_N[next_M] - asked_M <= TOLERANCE_SECONDS), next_M, at_M)


def _decode_cpu(index: PacketIndex, info: VideoInfo, wanted_M: NDArray[np.int64]) -> Iterator[Frame]:
    from eagle_kernels.video.decode_cpu import decode_at

    frames = decode_at(index, (int(index.pts_N[i]) for i in wanted_M))
    for num_given, (i, rgb_YX3) in enumerate(zip(wanted_M, frames)):
        time_seconds = float(info.frame_times_seconds[i])
        if rgb_YX3 is None:
            raise VideoError(
                f"{info.path}: frame {i} at {time_seconds:.6f} s is damaged or missing in the file and cannot be "
                f"decoded ({num_given} of the {len(wanted_M)} frames asked for were given before it)."
            )
        yield Frame(time_seconds, rgb_YX3)
