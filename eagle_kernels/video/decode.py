"""Frames by time: which frame a time means, and who decodes it.

Dims    N shown frames, M times asked for, Y rows, X columns.
Times   seconds from the first shown frame. The frame for t is the last one with a time <= t: what a player shows then.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from eagle_kernels.video import decode_dali
from eagle_kernels.video.info import Frame, PacketIndex, VideoError, VideoInfo
from eagle_kernels.video.plan import choose_frames, frame_indices, plan
from eagle_kernels.video.probe import load

if TYPE_CHECKING:
    from eagle_kernels.video.decode_cpu import Budget, Picture

__all__ = ["decode", "decode_with", "frame_indices"]

T = TypeVar("T")


def decode(
    path: str | Path,
    timestamps_seconds: Sequence[float],
    *,
    device: str | torch.device = "cpu",
    seek: str = "exact",
    tolerance: float = 0.25,
    num_workers: int = 1,
    time_limit_seconds: float | None = None,
    index_folder: str | Path | None = None,
) -> Iterator[Frame]:
    """The frame shown at each time, in the order asked; repeats are allowed. Lazy: a frame is decoded when it is taken.

    The file is opened and the times are checked at once; memory holds one frame, however many are asked for. Ascending
    times are cheapest. Exact: the frame is the one that decoding the whole file from its start would give at that time.

    Every frame is (height_px, width_px, 3) of `probe(path)`: uint8 RGB, full range, by the stream's own colour matrix
    and range (BT.601 where it names none), turned and mirrored as the container asks, with square pixels (the width is
    stretched by the pixel aspect ratio, bilinear). High dynamic range is not tone mapped.

    Args:    timestamps_seconds: each in [0, duration_seconds]. A time out of `frame_times_seconds` means exactly that
             frame; so does any other within 1 us before it, so that rounding to microseconds is harmless.
             device: "cpu", or a CUDA device: NVDEC through DALI, several engines for one video, for 8-bit 4:2:0
             H.264, HEVC and VP9, with the exceptions in decode_dali.py; never yet run on a GPU.
             seek: "exact"; "keyframe": the key frame nearest to each time; "tolerance": the frame that takes the least
             decoding among those within `tolerance` times the mean distance of the times asked for (0 to 0.5; nothing
             but the exact one where a single time is asked for). Every frame comes with its own, true time.
             num_workers: threads that decode groups of pictures side by side, each with one codec thread and a few
             frames of look-ahead; 1 decodes in the caller's own thread. The frames are the same to the byte.
             time_limit_seconds: for the file, counted while the caller waits for frames and looked at between packets.
             index_folder: keeps the index beside the data set, as in `probe`.
    Raises:  VideoError at once if the file cannot be read or a time lies outside it (the message has both numbers), and
             on reaching a frame that is damaged or missing in the file: the message has its time and how many of the
             frames asked for were given before it; ask for the others in a new call. Nothing takes its place. (Video
             carries no checksums: damage that neither container nor codec notices is shown as it decodes, and where a
             container lost a frame without a trace, the one before it is shown longer.) VideoError too when the time
             is up. ValueError: seek, tolerance, num_workers or time_limit_seconds is none of the values above.
             ImportError without PyAV, or on a GPU DALI; NotImplementedError for a file that DALI cannot decode right.
    """
    device = torch.device(device)
    if device.type == "cpu":
        pictures = decode_with(
            path,
            timestamps_seconds,
            lambda picture, _: picture.rgb_YX3(),
            keeps_frames=True,
            seek=seek,
            tolerance=tolerance,
            num_workers=num_workers,
            time_limit_seconds=time_limit_seconds,
            index_folder=index_folder,
        )
        return _frames(pictures)
    _check_options(num_workers, time_limit_seconds)
    if num_workers != 1 or time_limit_seconds is not None:
        raise ValueError(
            f"video.decode: num_workers is {num_workers} and time_limit_seconds {time_limit_seconds}; device={device} "
            f"needs 1 and None, as both are of the CPU code."
        )
    index, info = load(path, index_folder)
    frames_M = choose_frames(index, info, timestamps_seconds, seek=seek, tolerance=tolerance)
    return decode_dali.decode(index, info, frames_M, device)


def decode_with(
    path: str | Path,
    timestamps_seconds: Sequence[float],
    take: Callable[[Picture, int], T],
    *,
    keeps_frames: bool = False,
    seek: str = "exact",
    tolerance: float = 0.25,
    num_workers: int = 1,
    time_limit_seconds: float | None = None,
    index_folder: str | Path | None = None,
    stop: Event | None = None,
) -> Generator[tuple[float, T], None, None]:
    """`decode` on the CPU for callers that want no RGB: (a frame's own time, take(picture, m)) for the m-th time asked.

    Args:    take: called in the thread that decoded the picture, with several workers in any order and side by side.
             It must not return None. The picture is valid in it alone.
             keeps_frames: what it returns is large, so workers wait until it was given rather than make more.
             stop: when another thread sets it, CancelledError is raised before the next packet.
    Raises:  as `decode`, and what `take` raises.
    """
    _check_options(num_workers, time_limit_seconds)
    index, info = load(path, index_folder)
    from eagle_kernels.video.decode_cpu import Budget  # here: the package imports without PyAV

    frames_M = choose_frames(index, info, timestamps_seconds, seek=seek, tolerance=tolerance)
    budget = Budget(index.path, time_limit_seconds, stop)
    return _decode_cpu(index, info, frames_M, take, keeps_frames, num_workers, budget)


def _check_options(num_workers: int, time_limit_seconds: float | None) -> None:
    if num_workers < 1:
        raise ValueError(f"video.decode: num_workers is {num_workers}; needs at least 1.")
    if time_limit_seconds is not None and not time_limit_seconds > 0:
        raise ValueError(f"video.decode: time_limit_seconds is {time_limit_seconds}; needs more than 0, or None.")


def _frames(pictures: Generator[tuple[float, torch.Tensor], None, None]) -> Iterator[Frame]:
    with closing(pictures):
        for picture in pictures:
            yield Frame(*picture)


def _decode_cpu(
    index: PacketIndex,
    info: VideoInfo,
    frames_M: NDArray[np.int64],
    take: Callable[[Picture, int], T],
    keeps_frames: bool,
    num_workers: int,
    budget: Budget,
) -> Generator[tuple[float, T], None, None]:
    from eagle_kernels.video.decode_cpu import FRAMES_AHEAD, decode_groups

    groups = plan(index, frames_M, join=num_workers == 1)
    frames_ahead = FRAMES_AHEAD if keeps_frames else 0
    decoded = decode_groups(index, groups, take, num_workers=num_workers, frames_ahead=frames_ahead, budget=budget)
    with closing(decoded):
        for num_given, i in enumerate(frames_M.tolist()):
            budget.start()
            taken = next(decoded)
            budget.pause()
            time_seconds = float(info.frame_times_seconds[i])
            if taken is None:
                raise VideoError(
                    f"{info.path}: frame {i} at {time_seconds:.6f} s is damaged or missing in the file and cannot be "
                    f"decoded ({num_given} of the {len(frames_M)} frames asked for were given before it)."
                )
            yield time_seconds, taken
