"""A video file: what is in it, which frames to take, and the frames.

    video = eagle_kernels.video.open("walk.mp4")
    times = video.choose([0.0, 1.0, 2.0], seek="tolerance")       # the chosen frames' own times: (0.0, 0.96, 1.92)
    for frame in video.frames(times):
        frame.timestamp_seconds, frame.rgb_YX3

Opening reads the container's tables once; everything else goes by them. A frame is named by its own time, exactly, so
that choosing (numbers alone) can happen long before decoding, and the text can name the times of what will be shown.

Dims    N shown frames, M times asked for, Y rows, X columns.
Times   seconds from the first shown frame. The frame for t is the last one with a time <= t: what a player shows then.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from eagle_kernels.video import dali, sidecar
from eagle_kernels.video.budget import Budget
from eagle_kernels.video.info import Frame, PacketIndex, VideoInfo, describe
from eagle_kernels.video.plan import choose_frames, frame_indices, plan
from eagle_kernels.video.ranged import RangedFile

if TYPE_CHECKING:
    from eagle_kernels.video.libav.picture import Picture

T = TypeVar("T")
Times = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Video:
    """An opened file: its index and description, some tens of bytes a frame. No file is held open."""

    index: PacketIndex
    info: VideoInfo

    def choose(
        self,
        timestamps_seconds: Times,
        *,
        seek: Literal["exact", "keyframe", "tolerance"] = "exact",
        tolerance: float = 0.25,
    ) -> NDArray[np.float64]:
        """The own times of the frames to take for these times, in the order asked: (M,) float64. Nothing is decoded.

        Args:    timestamps_seconds: each in [0, duration_seconds]. A time out of `frame_times_seconds` means exactly
                 that frame; so does any other within 1 us before it, so that rounding to microseconds is harmless.
                 seek: "exact": the frame on show at each time. "keyframe": the key frame nearest to each time; one may
                 serve several times. "tolerance": the frame that takes the least decoding among those within
                 `tolerance` times the mean distance of the times asked for (0 to 0.5; nothing but the exact one where a
                 single time is asked for); times that show different frames keep different frames.
        Raises:  VideoError if a time lies outside the file; ValueError if seek or tolerance is none of these.
        """
        frames_M = choose_frames(self.index, self.info, timestamps_seconds, seek=seek, tolerance=tolerance)
        return self.info.frame_times_seconds[frames_M]

    def frames(
        self,
        timestamps_seconds: Times,
        *,
        device: str | torch.device = "cpu",
        num_workers: int = 1,
        time_limit_seconds: float | None = None,
    ) -> Iterator[Frame]:
        """The frame shown at each time, in the order asked: `decode` for a video that is open."""
        device = torch.device(device)
        if device.type == "cpu":
            return _frames(
                self.pictures(
                    timestamps_seconds,
                    lambda picture, _: picture.rgb_YX3(),
                    keeps_frames=True,
                    num_workers=num_workers,
                    time_limit_seconds=time_limit_seconds,
                )
            )
        check_options(num_workers, time_limit_seconds)
        if num_workers != 1 or time_limit_seconds is not None:
            raise ValueError(
                f"video.decode: num_workers is {num_workers} and time_limit_seconds {time_limit_seconds}; "
                f"device={device} needs 1 and None, as both are of the CPU code."
            )
        return dali.decode(self.index, self.info, frame_indices(self.info, timestamps_seconds), device)

    def pictures(
        self,
        timestamps_seconds: Times,
        take: Callable[[Picture, int], T],
        *,
        keeps_frames: bool = False,
        num_workers: int = 1,
        time_limit_seconds: float | None = None,
        stop: Event | None = None,
    ) -> Generator[tuple[float, T], None, None]:
        """`frames` on the CPU for callers that want no RGB: (a frame's own time, take(picture, m)) for the m-th time.

            >>> list(video.pictures([0.0, 1.0], lambda picture, m: float(picture.planes().y_YX.float().mean())))
            [(0.0, 118.2), (1.0, 119.0)]

        Args:    take: called in the thread that decoded the picture, with several workers in any order and side by
                 side. It must not return None. The picture is valid in it alone.
                 keeps_frames: what it returns is large, so workers wait until it was given rather than make more.
                 stop: when another thread sets it, CancelledError is raised before the next packet.
        Raises:  as `decode`, and what `take` raises.
        """
        check_options(num_workers, time_limit_seconds)
        from eagle_kernels.video.libav.workers import FRAMES_AHEAD, decode_groups  # here: works without PyAV till now

        frames_M = frame_indices(self.info, timestamps_seconds)
        return decode_groups(
            self.index,
            self.info,
            plan(self.index, frames_M, join=num_workers == 1),
            take,
            num_workers=num_workers,
            frames_ahead=FRAMES_AHEAD if keeps_frames else 0,
            budget=Budget(self.index.path, time_limit_seconds, stop),
        )


def open(
    path: str | Path,
    *,
    stream: int | None = None,
    index_folder: str | Path | None = None,
    ranged: RangedFile | None = None,
    time_limit_seconds: float | None = None,
    stop: Event | None = None,
) -> Video:
    """Opens one video stream of a file: of several the one that players show (libav's best: the one marked as default,
    if one is, then by bit rate); cover art is not video.

    Reads the tables of an MP4 or the block headers of a Matroska, or else every packet, but decodes one frame only. All
    of them are decoded where nothing else tells the order of frames: an AVI whose pictures are stored in another order
    than shown, or several frames that bear one time. A file that is damaged or cut short gives what can be read, and
    `info.damage` says what was wrong. Films that were joined without new time stamps go on one clock, in their order.

    Args:    stream: the number of a video stream in the file, as libav (`ffprobe`) counts all streams.
             index_folder: a folder for what was found (sidecar.py). The next call there for the same unchanged file
             reads that instead. Nothing is written without it.
             ranged: how the bytes of a file that lies elsewhere are got (ranged.py); `path` is then where they are
             kept.
             time_limit_seconds, stop: as for `Video.pictures`, looked at between packets.
    Raises:  VideoError if there is no such file or stream, it is no video (or audio only, or a still picture), or not
             one frame of it decodes, or the time is up; ImportError without PyAV; OSError if `index_folder` cannot be
             written.
    """
    check_options(1, time_limit_seconds)
    from eagle_kernels.video.libav.index import read_index  # here: the package imports without PyAV

    def read(path: str | Path) -> PacketIndex:
        return read_index(path, stream, Budget(Path(path), time_limit_seconds, stop).started(), ranged)

    if index_folder is None:
        index = read(path)
    else:
        kept = sidecar.read(path, index_folder, stream, ranged)
        index = kept or sidecar.make(path, index_folder, read, stream, ranged)
    return Video(index, describe(index))


def probe(path: str | Path, *, stream: int | None = None, index_folder: str | Path | None = None) -> VideoInfo:
    """What is in a video file: `open(path).info`, with its arguments and errors."""
    return open(path, stream=stream, index_folder=index_folder).info


def decode(
    video: str | Path | Video,
    timestamps_seconds: Times,
    *,
    device: str | torch.device = "cpu",
    num_workers: int = 1,
    time_limit_seconds: float | None = None,
) -> Iterator[Frame]:
    """The frame shown at each time, in the order asked; repeats are allowed. Lazy: a frame is decoded when it is taken.

        >>> [frame.timestamp_seconds for frame in decode("walk.mp4", [0.0, 1.01])]
        [0.0, 1.0]

    The file is opened and the times are checked at once; memory holds one frame, however many are asked for. Ascending
    times are cheapest. Exact: the frame is the one that decoding the whole file from its start would give at that time.

    Every frame is (height_px, width_px, 3) of `probe(path)`: uint8 RGB, full range, by the stream's own colour matrix
    and range (BT.601 where it names none), turned and mirrored as the container asks, with square pixels (the width is
    stretched by the pixel aspect ratio, bilinear). High dynamic range is not tone mapped.

    Args:    video: a file, or one that is open.
             timestamps_seconds: each in [0, duration_seconds], as for `Video.choose` with seek="exact".
             device: "cpu", or a CUDA device: NVDEC through DALI, several engines for one video, for 8-bit 4:2:0
             H.264, HEVC and VP9, with the exceptions in dali.py; never yet run on a GPU.
             num_workers: threads that decode groups of pictures side by side, each with one codec thread and a few
             frames of look-ahead; 1 decodes in the caller's own thread. The frames are the same to the byte.
             time_limit_seconds: for opening the file, and again for its frames; counted while the caller waits for
             them and looked at between packets.
    Raises:  VideoError at once if the file cannot be read or a time lies outside it (the message has both numbers), and
             on reaching a frame that is damaged or missing in the file: the message has its time and how many of the
             frames asked for were given before it; ask for the others in a new call. Nothing takes its place. (Video
             carries no checksums: damage that neither container nor codec notices is shown as it decodes, and where a
             container lost a frame without a trace, the one before it is shown longer.) VideoError too when the time
             is up. ValueError: num_workers or time_limit_seconds is none of the values above.
             ImportError without PyAV, or on a GPU DALI; NotImplementedError for a file that DALI cannot decode right.
    """
    check_options(num_workers, time_limit_seconds)
    video = video if isinstance(video, Video) else open(video, time_limit_seconds=time_limit_seconds)
    return video.frames(
        timestamps_seconds, device=device, num_workers=num_workers, time_limit_seconds=time_limit_seconds
    )


def check_options(num_workers: int, time_limit_seconds: float | None) -> None:
    """Raises ValueError; callers that open files call it before."""
    if not isinstance(num_workers, int) or num_workers < 1:
        raise ValueError(f"video.decode: num_workers is {num_workers}; needs at least 1.")
    if time_limit_seconds is not None and not (isinstance(time_limit_seconds, (int, float)) and time_limit_seconds > 0):
        raise ValueError(f"video.decode: time_limit_seconds is {time_limit_seconds}; needs more than 0, or None.")


def _frames(pictures: Generator[tuple[float, torch.Tensor], None, None]) -> Iterator[Frame]:
    with closing(pictures):
        for picture in pictures:
            yield Frame(*picture)
