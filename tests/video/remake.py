"""Makes files that lie, out of honest ones: packets copied with other times, key flags or bytes. No encoder runs.

remux(good, path, lambda packets: [p._replace(is_key=True) for p in packets])
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from eagle_kernels.video import VideoError, decode
from eagle_kernels.video import open as open_video
from tests.video.make import av, read


class Stored(NamedTuple):
    content: bytes
    pts: int | None
    dts: int | None
    duration: int
    is_key: bool


def packets_of(path: Path) -> list[Stored]:
    with av.open(str(path)) as container:
        return [
            Stored(bytes(p), p.pts, p.dts, p.duration or 0, p.is_keyframe)
            for p in container.demux(container.streams.video[0])
            if p.size
        ]


def remux(
    source: Path,
    path: Path,
    change: Callable[[list[Stored]], Iterable[Stored]] = lambda packets: packets,
    *,
    muxer: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """The first video stream of `source`, with its packets changed; times stay in ticks of its time base."""
    with av.open(str(source)) as whole, av.open(str(path), "w", format=muxer, options=options or {}) as container:
        template = whole.streams.video[0]
        stream = container.add_stream_from_template(template)
        stream.time_base = template.time_base
        for stored in change(packets_of(source)):
            packet = av.Packet(stored.content)
            packet.pts, packet.dts, packet.duration = stored.pts, stored.dts, stored.duration
            packet.time_base, packet.is_keyframe, packet.stream = template.time_base, stored.is_key, stream
            container.mux(packet)
    return path


def all_keys(packets: Sequence[Stored]) -> list[Stored]:
    return [packet._replace(is_key=True) for packet in packets]


def numbers_asked_singly(path: Path) -> list[int | None]:
    """The number in each frame of a file, each asked for by itself; None where it is refused."""
    video = open_video(path)
    found: list[int | None] = []
    for time_seconds in video.info.frame_times_seconds.tolist():
        try:
            (frame,) = decode(video, [time_seconds])
        except VideoError:
            found.append(None)
        else:
            found.append(read(frame.rgb_YX3.numpy()))
    return found


def numbers_in_order(path: Path, step: int = 1) -> list[int]:
    """The numbers of every `step`-th frame, in the order of their times or, for a negative step, backward."""
    video = open_video(path)
    return [read(f.rgb_YX3.numpy()) for f in decode(video, video.info.frame_times_seconds[::step])]


def check_exact(path: Path, wanted: Sequence[int]) -> None:
    """All frames are there, once, on one rising clock, whatever the order of asking."""
    times = open_video(path).info.frame_times_seconds.tolist()
    assert times == sorted(set(times))
    assert numbers_in_order(path) == list(wanted)
    assert numbers_in_order(path, -1) == list(wanted)[::-1]
    assert numbers_asked_singly(path) == list(wanted)
