"""Sparse frames of a video file: CPU seconds and wall time of ours and of the ways PyAV is usually used.

    python -m bench.bench_decode FILE.mp4 --frames 32 128

Every way decodes the same frames, evenly spaced, to full-size RGB. CPU seconds are the number to trust on a shared
machine. The ways check each other: each must find the frames at the same times.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from eagle_kernels.video import decode, probe

Times = NDArray[np.float64]


def ours(path: Path, times: Times) -> Iterator[float]:
    for frame in decode(path, times.tolist()):
        yield frame.timestamp_seconds


def pyav_seek_each(path: Path, times: Times) -> Iterator[float]:
    """A seek for every frame, then forward to it, with libav's default threads."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        start = stream.start_time or 0
        for time_seconds in times:
            container.seek(start + round(time_seconds / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                frame_seconds = float((frame.pts - start) * stream.time_base)
                if frame_seconds >= time_seconds - 1e-6:
                    frame.to_ndarray(format="rgb24")
                    yield frame_seconds
                    break


def pyav_all(path: Path, times: Times) -> Iterator[float]:
    """The whole file decoded in order, the wanted frames kept."""
    wanted = list(times)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        start = stream.start_time or 0
        for frame in container.decode(stream):
            frame_seconds = float((frame.pts - start) * stream.time_base)
            if wanted and frame_seconds >= wanted[0] - 1e-6:
                frame.to_ndarray(format="rgb24")
                yield frame_seconds
                wanted.pop(0)


def measure(way: Callable[[Path, Times], Iterator[float]], path: Path, times: Times) -> tuple[float, float, Times]:
    """CPU seconds (user and system, all threads), wall seconds, and the times of the frames found."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = np.array(list(way(path, times)))
    return time.process_time() - cpu, time.perf_counter() - wall, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--all", action="store_true", help="also decode the whole file in order (slow)")
    args = parser.parse_args()
    cpu, wall = time.process_time(), time.perf_counter()
    info = probe(args.file)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(f"{info.codec} {info.width_px}x{info.height_px}, {info.num_frames} frames, {info.duration_seconds:.1f} s")
    print(f"{'probe':24s} {cpu:8.3f} CPU s {wall:8.3f} s")
    for num_frames in args.frames:
        places = np.linspace(0, info.num_frames - 1, num_frames).round().astype(int)
        times = info.frame_times_seconds[places]
        for way in (ours, pyav_seek_each, *([pyav_all] if args.all else [])):
            cpu, wall, found = measure(way, args.file, times)
            same = len(found) == len(times) and bool(np.abs(found - times).max() < 1e-6)
            print(f"{way.__name__:18s} {num_frames:5d} {cpu:8.3f} CPU s {wall:8.3f} s {'' if same else 'WRONG FRAMES'}")


if __name__ == "__main__":
    main()
