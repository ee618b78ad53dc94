"""A video file described without decoding it: size, rate, and the time of every frame.

Dims    N shown frames.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eagle_kernels.video import sidecar
from eagle_kernels.video.info import PacketIndex, VideoInfo

CLOCK_SECONDS = 1e-3  # Matroska and FLV keep times in whole milliseconds, and pass them on when a file is rewritten


def probe(path: str | Path, *, index_folder: str | Path | None = None) -> VideoInfo:
    """Describes the first video stream of a file (the one marked as default, if one is; cover art is not video).

    Reads the tables of an MP4 or the block headers of a Matroska, or else every packet, but decodes one frame only. A
    file that is damaged or cut short gives what can be read, and `damage` says what was wrong.

    index_folder: a folder for what was found (sidecar.py). The next call there for the same unchanged file reads that
    instead. Nothing is written without it.

    Raises VideoError if there is no such file, it is no video (or audio only), or not one frame of it decodes;
    ImportError without PyAV; OSError if `index_folder` cannot be written.
    """
    return load(path, index_folder)[1]


def load(path: str | Path, index_folder: str | Path | None) -> tuple[PacketIndex, VideoInfo]:
    """The file's index and description, as `probe`."""
    from eagle_kernels.video.decode_cpu import read_index  # here: the package imports without PyAV

    if index_folder is None:
        index = read_index(path)
    else:
        kept = sidecar.read(path, index_folder)
        index = kept or sidecar.make(path, index_folder, read_index)
    return index, describe(index)


def describe(index: PacketIndex) -> VideoInfo:
    """The packets' numbers as a player would tell them."""
    tick_seconds = float(index.time_base)
    times_N = (index.pts_N - index.pts_N[0]) * tick_seconds
    place_K = np.searchsorted(index.pts_N, index.key_pts_K).clip(max=len(times_N) - 1)
    key_frames = np.unique(place_K[index.pts_N[place_K] == index.key_pts_K])  # an edit list may hide some
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
