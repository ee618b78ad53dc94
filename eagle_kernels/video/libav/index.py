"""Finds when each frame of a video is shown and where a decoder may start.

    index = read_index("walk.mp4")
    len(index.pts_N), index.key_pts_K         # 120 shown frames; the times of the places to start at

From the tables of an MP4 (containers/mp4.py) or the block headers of a Matroska (containers/matroska.py), whose first
frame is decoded to be sure of them; of all other files by one pass over the packets.

Dims    N shown frames, K key frames, D packets in the order of storage.
"""

from __future__ import annotations

import itertools
import math
import os
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from eagle_kernels.video.bitstream.pictures import vp8_is_shown
from eagle_kernels.video.containers import matroska, mp4
from eagle_kernels.video.info import Orientation, PacketIndex, Tables, VideoError
from eagle_kernels.video.libav.container import check_is_file, is_end, open_file, open_head, video_stream
from eagle_kernels.video.libav.reader import decode, drain, packet_of
from eagle_kernels.video.libav.source import Unit

STORAGE_ORDER_DEMUXERS = ("avi", "asf")  # these keep one time a packet, in the order of storage, and libav passes it on
DTS_DEMUXERS = ("mpegts", "mpeg")  # these search the file for a dts; asked for a pts they land one key frame too late
SHORTFALL_SECONDS = 0.5  # that a video may end before its container: sound may well go on so much longer
LARGEST_PIXEL_ASPECT = 16  # width to height: a wider pixel is a damaged header, and would ask for any amount of memory


def read_index(path: str | Path) -> PacketIndex:
    """The stream's index. Decodes up to the first frame.

    Raises VideoError if there is no such file, it is no video, or not one frame decodes.
    """
    path = Path(path)
    check_is_file(path)
    tables = mp4.read_tables(path) or matroska.read_tables(path)
    if tables is None:
        return index_from_packets(path)
    starts_seconds = int(tables.samples.pts_D[tables.is_shown_D].min()) * tables.time_base
    return _index_from_tables(path, tables) or index_from_packets(path, starts_seconds)


def index_from_packets(path: Path, starts_seconds: Fraction | None = None) -> PacketIndex:
    """The index by one pass over the packets of the file's video stream; errors as in `read_index`.

    starts_seconds: when its first frame is shown, where the container says so: frames from there on count, be they
    damaged, so that the others keep their times.
    """
    with closing(open_file(path)) as container:
        stream = video_stream(container, path)
        first, packets, damage = _read_packets(container, stream, path)
        pts_N, place_N = np.unique(np.array([p.pts for p in packets], np.int64), return_index=True)
        starts_at = first.pts
        if starts_seconds is not None and starts_seconds < first.pts * stream.time_base:
            starts_at = math.ceil(starts_seconds / stream.time_base)
            num_lost = int(((pts_N >= starts_at) & (pts_N < first.pts)).sum())
            damage.append(f"the first frame that decodes has {num_lost} before it")
        is_shown_N = pts_N >= starts_at  # leading pictures of a stream that was cut are never shown
        last = packets[place_N[-1]]
        pts_N, place_N = pts_N[is_shown_N], place_N[is_shown_N]
        last_duration = last.duration or _usual_duration(pts_N, stream)
        ends_seconds = float((last.pts + last_duration) * stream.time_base)
        # Where one number states the whole length (Matroska, FLV); other demuxers know each stream's from its packets.
        states_length = stream.duration is None and container.duration is not None
        stated_seconds = container.duration / av.time_base if states_length else None
        keys = sorted((p.pts, p.seek, i) for i, p in enumerate(packets) if p.is_key)
        keys_K3 = np.array(keys, np.int64).reshape(-1, 3)
        shape = _shape(first, stream, path)
        return PacketIndex(
            path=path,
            codec=stream.codec_context.codec.canonical_name,
            time_base=stream.time_base,
            pts_N=pts_N,
            place_N=place_N.astype(np.int32),
            last_duration=last_duration,
            key_pts_K=keys_K3[:, 0],
            key_seek_K=keys_K3[:, 1],
            key_place_K=keys_K3[:, 2].astype(np.int32),
            **shape._asdict(),
            damage="; ".join(damage + _shortfall(stated_seconds, ends_seconds)) or None,
            samples=None,
        )


def _index_from_tables(path: Path, tables: Tables) -> PacketIndex | None:
    """None if the first sample does not give a frame that agrees with the tables: the packets are to be scanned."""
    samples = tables.samples
    shown_D = np.flatnonzero(tables.is_shown_D)
    place_N = shown_D[np.argsort(samples.pts_D[shown_D], kind="stable")]
    pts_N = samples.pts_D[place_N]
    try:
        container, file = open_head(samples, path)
        with closing(container), file:
            stream = video_stream(container, path)
            content = os.pread(file.fileno(), int(samples.size_D[0]), int(samples.offset_D[0]))
            unit = Unit(int(samples.pts_D[0]), True, content, None)
            frames = (decode(packet_of(unit, content, stream)) or []) + drain(stream)
            if len(frames) != 1 or frames[0].is_corrupt or frames[0].pts != samples.pts_D[0]:
                return None
            shape = _shape(frames[0], stream, path)
            codec, time_base = stream.codec_context.codec.canonical_name, stream.time_base
            last_duration = int(tables.duration_D[place_N[-1]]) or _usual_duration(pts_N, stream)
    except VideoError:
        return None
    if time_base != tables.time_base:
        return None
    ends_seconds = float((int(pts_N[-1]) + last_duration) * time_base)
    key_place_K = np.flatnonzero(samples.is_key_D)
    key_place_K = key_place_K[np.argsort(samples.pts_D[key_place_K], kind="stable")]
    return PacketIndex(
        path=path,
        codec=codec,
        time_base=time_base,
        pts_N=pts_N,
        place_N=place_N.astype(np.int32),
        last_duration=last_duration,
        key_pts_K=samples.pts_D[key_place_K],
        key_seek_K=samples.pts_D[key_place_K],
        key_place_K=key_place_K.astype(np.int32),
        **shape._asdict(),
        damage="; ".join(_shortfall(tables.stated_seconds, ends_seconds)) or None,
        samples=lambda: samples,
    )


class _Packet(NamedTuple):
    """The facts of one packet that holds a shown frame; times in ticks."""

    pts: int
    seek: int
    duration: int  # 0 if unknown
    is_key: bool
    is_corrupt: bool


def _read_packets(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path
) -> tuple[av.VideoFrame, list[_Packet], list[str]]:
    """The first frame that decodes, the packets of shown frames in the order of storage, and what is damaged."""
    first: av.VideoFrame | None = None
    packets: list[_Packet] = []
    damage: list[str] = []
    seeks_by_dts = container.format.name in DTS_DEMUXERS
    codec = stream.codec_context.codec.canonical_name
    demuxed = container.demux(stream)
    at_end = False
    while not at_end:
        try:
            packet = next(demuxed)
        except av.error.FFmpegError as error:
            damage.append(f"reading stops after {len(packets)} frames ({error.strerror})")
            packet = av.Packet()
        at_end = is_end(packet)
        if packet.size == 0 and not at_end:
            continue
        if first is None:
            frames = drain(stream) if at_end else decode(packet)
            first = next((frame for frame in frames or () if not frame.is_corrupt), None)
        if at_end or packet.is_discard or (codec == "vp8" and not vp8_is_shown(memoryview(packet))):
            continue
        if packet.pts is None:
            raise VideoError(_no_times(path, container.format.name))
        seek = packet.pts if packet.dts is None or not seeks_by_dts else packet.dts
        packets.append(_Packet(packet.pts, seek, packet.duration or 0, packet.is_keyframe, packet.is_corrupt))
    if first is None:
        raise VideoError(f"{path}: not one frame can be decoded; it holds {len(packets)} packets of {codec}.")
    in_order = all(a.pts <= b.pts for a, b in itertools.pairwise(packets))
    if container.format.name in STORAGE_ORDER_DEMUXERS and stream.codec_context.reorder_depth and in_order:
        raise VideoError(_no_times(path, container.format.name))
    while packets[-1].is_corrupt:
        packets.pop()
        damage = [f"the file ends inside frame {len(packets)} (in the order of storage)"]
    if num_corrupt := sum(p.is_corrupt for p in packets):
        damage.append(f"{num_corrupt} of {len(packets)} frames are damaged")
    return first, packets, damage


def _no_times(path: Path, container_name: str) -> str:
    return (
        f"{path}: its container ({container_name}) does not say when each frame is shown, so none can be found "
        f"by its time. Encode it anew: `ffmpeg -i IN OUT.mp4`."
    )


def _shortfall(stated_seconds: float | None, ends_seconds: float) -> list[str]:
    """How files are noticed whose end is cut off between two packets."""
    if stated_seconds is None or stated_seconds <= ends_seconds + SHORTFALL_SECONDS:
        return []
    return [f"the container states an end at {stated_seconds:.3f} s, its video ends at {ends_seconds:.3f} s"]


def _usual_duration(pts_N: NDArray[np.int64], stream: av.VideoStream) -> int:
    if len(pts_N) > 1:
        return int(np.median(np.diff(pts_N)))
    return round(1 / (stream.average_rate * stream.time_base)) if stream.average_rate else 0


class _Shape(NamedTuple):
    """Of `PacketIndex`: how the stored pixels are shown."""

    scaled_width_px: int
    scaled_height_px: int
    orientation: Orientation
    rotation_degrees: int


def _shape(first: av.VideoFrame, stream: av.VideoStream, path: Path) -> _Shape:
    width_px, height_px = _square_pixels(first.width, first.height, stream.sample_aspect_ratio, path)
    orientation = _orientation(first)
    return _Shape(width_px, height_px, orientation, _rotation_degrees(orientation))


def _square_pixels(width_px: int, height_px: int, aspect: Fraction | None, path: Path) -> tuple[int, int]:
    """The size with square pixels: rows stay, columns are stretched by the sample aspect ratio."""
    if not aspect:
        return width_px, height_px
    if not 1 / LARGEST_PIXEL_ASPECT <= aspect <= LARGEST_PIXEL_ASPECT:
        raise VideoError(f"{path}: its pixels are {aspect} as wide as high; needs at most {LARGEST_PIXEL_ASPECT} to 1.")
    return max(1, round(width_px * aspect)), height_px


def _orientation(frame: av.VideoFrame) -> Orientation:
    """From the display matrix (ISO/IEC 14496-12, 8.3.2): x' = a x + c y, y' = b x + d y; snapped to quarter turns."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(bytes(matrix), "<i4")[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(transpose=True, flip_y=b < 0, flip_x=c < 0)
    return Orientation(transpose=False, flip_y=d < 0, flip_x=a < 0)


def _rotation_degrees(orientation: Orientation) -> int:
    """Clockwise. Of a mirrored picture: the turn after it was mirrored left to right."""
    if orientation.transpose:
        return 90 if orientation.flip_x else 270
    return 180 if orientation.flip_y else 0
