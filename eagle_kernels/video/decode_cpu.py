"""Reading and decoding video on the CPU with libav: the one file of the library that imports PyAV.

Dims    N shown frames, K key frames, Y rows, X columns.

`read_index` passes once over the packets of a file, decoding only its first frame, and finds when each frame is shown
and where a decoder may start. `decode_at` then fetches frames by their presentation time stamp (pts):

- start at the key frame at or before the wanted one (seek only where that skips something), decode forward;
- take the frame whose pts is exactly the one wanted. After a seek, a frame shown before the key frame that the decoder
  started from may lean on pictures that it never saw (open GOP), so such frames are never taken;
- if that pts does not come out (the demuxer landed too late, as in MPEG-TS; the pictures after the key frame are not
  clean yet, as with intra refresh), start earlier, finally from the beginning of the file;
- after damage nothing is taken until the next key frame, and what then never comes out is reported as missing.

One codec thread: for sparse frames libav's frame threads restart at every seek and cost 1.2 to 1.45 times the CPU.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eagle_kernels.video.info import VideoError

try:
    import av
except ModuleNotFoundError as error:
    raise ImportError('eagle_kernels.video needs PyAV: `pip install "eagle-kernels[video]"`.') from error
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

# Containers only. Left to itself libav also opens playlists (HLS, DASH, concat), which name other files and hosts.
DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,avi,flv,asf,ogg,mxf,ivf,h264,hevc,obu,gif"
STORAGE_ORDER_DEMUXERS = ("avi", "asf")  # these keep one time a packet, in the order of storage, and libav passes it on
DTS_DEMUXERS = ("mpegts", "mpeg")  # these search the file for a dts; asked for a pts they land one key frame too late
SHORTFALL_SECONDS = 0.5  # sound may well go on this much longer than the picture
LARGEST_PIXEL_ASPECT = 16  # a wider pixel is a damaged header, and would ask for any amount of memory
SEEK_PICTURES = 4  # pictures that an ordinary H.264 decoder has read ahead to reorder, and loses in a seek
# Without the last two flags swscale rounds down, repeats chroma samples, and loses 10 dB: tests/video/test_decode.py.
# Bicubic gains nothing there and takes twice the time.
SCALER = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
SPC_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED, ITU-T H.273 MatrixCoefficients 2
UNTAGGED = Colorspace.ITU601  # for streams that name no matrix: what libav's own tools, torchcodec and OpenCV take


class Orientation(NamedTuple):
    """How stored pixels are turned to be shown: first swap rows and columns, then flip."""

    transpose: bool = False
    flip_y: bool = False
    flip_x: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class PacketIndex:
    """What the packets of one video stream say. Times are pts in units of `time_base` seconds."""

    path: Path
    codec: str
    time_base: Fraction
    pts_N: NDArray[np.int64]  # of each shown frame, ascending
    last_duration: int  # ticks that the last frame is shown; 0 if unknown
    key_pts_K: NDArray[np.int64]  # of each packet marked as a key frame, ascending
    key_seek_K: NDArray[np.int64]  # the time that makes the demuxer go there
    scaled_width_px: int  # stored size with square pixels, before turning
    scaled_height_px: int
    orientation: Orientation
    rotation_degrees: int
    damage: str | None


def read_index(path: str | Path) -> PacketIndex:
    """One pass over the packets of the file's video stream; decodes up to its first frame.

    Raises VideoError if there is no such file, it is no video, or not one frame of it decodes.
    """
    path = Path(path)
    with closing(_open(path)) as container:
        stream = _video_stream(container, path)
        first, packets, damage = _read_packets(container, stream, path)
        pts_N, place_N = np.unique(np.array([p.pts for p in packets], np.int64), return_index=True)
        is_shown_N = pts_N >= first.pts  # leading pictures of a stream that was cut are never shown
        pts_N, last = pts_N[is_shown_N], packets[place_N[-1]]
        last_duration = last.duration or _usual_duration(pts_N, stream)
        ends_seconds = float((last.pts + last_duration) * stream.time_base)
        keys_K2 = np.array(sorted((p.pts, p.seek) for p in packets if p.is_key), np.int64).reshape(-1, 2)
        orientation = _orientation(first)
        width_px, height_px = _square_pixels(first.width, first.height, stream.sample_aspect_ratio, path)
        return PacketIndex(
            path=path,
            codec=stream.codec_context.codec.canonical_name,
            time_base=stream.time_base,
            pts_N=pts_N,
            last_duration=last_duration,
            key_pts_K=keys_K2[:, 0],
            key_seek_K=keys_K2[:, 1],
            scaled_width_px=width_px,
            scaled_height_px=height_px,
            orientation=orientation,
            rotation_degrees=_rotation_degrees(orientation),
            damage="; ".join(damage + _shortfall(container, stream, ends_seconds)) or None,
        )


def decode_at(index: PacketIndex, wanted_pts: Iterable[int]) -> Iterator[Tensor | None]:
    """For each wanted pts, in the order given, the frame as (Y, X, 3) uint8 RGB, or None if it cannot be decoded.

    Holds one decoded frame, whatever the number wanted; each tensor given is the caller's own.
    """
    reformatter = VideoReformatter()
    with closing(_Reader(index)) as reader:
        for pts in wanted_pts:
            frame = reader.frame(pts)
            yield None if frame is None else _to_rgb(frame, index, reformatter)


class _Reader:
    """A file open at one place, from which the frames come in the order they are shown."""

    def __init__(self, index: PacketIndex) -> None:
        self._index = index
        self._container: av.container.InputContainer | None = None
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._shown: av.VideoFrame | None = None  # the last frame that came out
        self._newest_key_pts = -math.inf  # of the packets fed since the last seek

    def close(self) -> None:
        if self._container is not None:
            self._container.close()

    def frame(self, pts: int) -> av.VideoFrame | None:
        """The frame whose pts is exactly this one, or None where no way leads to it."""
        if self._shown is not None and self._shown.pts == pts:
            return self._shown
        key = int(np.searchsorted(self._index.key_pts_K, pts, side="right")) - 1
        if self._shown is not None and self._shown.pts < pts and not self._seek_helps(key) and self._forward_to(pts):
            return self._shown
        step = 1
        while key > 0:
            if self._seek(int(self._index.key_seek_K[key])) and self._forward_to(pts):
                return self._shown
            key, step = key - step, step * 2
        self._rewind()
        return self._shown if self._forward_to(pts) else None

    def _seek_helps(self, key: int) -> bool:
        """Whether starting at that key frame skips more than the few pictures that a seek throws away."""
        if self._shown is None:
            return True
        if key < 0 or self._index.key_pts_K[key] <= self._newest_key_pts:
            return False
        here, there = np.searchsorted(self._index.pts_N, (self._shown.pts, self._index.key_pts_K[key]))
        return bool(there - here > SEEK_PICTURES)

    def _forward_to(self, pts: int) -> bool:
        """Decodes until a frame at or after `pts` is shown; True if it is that one."""
        for frame in self._frames:
            self._shown = frame
            if frame.pts >= pts:
                return bool(frame.pts == pts)
        return False

    def _seek(self, timestamp: int) -> bool:
        if self._container is None:
            self._container = _open(self._index.path)
        stream = _video_stream(self._container, self._index.path)
        self._shown = None
        try:
            self._container.seek(timestamp, stream=stream)
        except av.error.FFmpegError:  # a container without an index: the caller starts earlier
            return False
        self._frames = self._clean_frames(trusted_from=None)
        return True

    def _rewind(self) -> None:
        """Opens the file anew: right for every container, also for those that seek badly."""
        self.close()
        self._container = _open(self._index.path)
        self._shown = None
        self._frames = self._clean_frames(trusted_from=-math.inf)

    def _clean_frames(self, trusted_from: float | None) -> Iterator[av.VideoFrame]:
        """Frames in the order they are shown, without those that may lean on pictures the decoder never saw.

        trusted_from: frames shown before this pts are not taken; None: the pts of the first key frame met.
        """
        if self._container is None:
            return
        stream = _video_stream(self._container, self._index.path)
        self._newest_key_pts = -math.inf
        clean: set[int] = set()  # pts fed in good order and not yet out
        broken = False
        demuxed = self._container.demux(stream)
        at_end = False
        while not at_end:
            try:
                packet = next(demuxed)  # one of size 0 comes last
            except av.error.FFmpegError:
                packet = av.Packet()  # nothing more can be read, but what was fed can still come out
            at_end = packet.size == 0
            if not at_end and packet.is_keyframe and packet.pts is not None:
                if trusted_from is None or broken:
                    trusted_from, broken = packet.pts, False
                self._newest_key_pts = max(self._newest_key_pts, packet.pts)
            if trusted_from is None:
                continue
            frames = _drain(stream) if at_end else _decode(packet)
            is_leading = packet.pts is None or packet.pts < trusted_from
            if frames is None:
                broken = broken or not is_leading
            elif not broken and not is_leading:
                clean.add(packet.pts)
            for frame in frames or ():
                if frame.is_corrupt and frame.pts >= trusted_from:
                    broken = True
                    clean.clear()
                elif frame.pts in clean:
                    clean.remove(frame.pts)
                    yield frame


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
            packet = next(demuxed)  # one of size 0 comes last
        except av.error.FFmpegError as error:
            damage.append(f"reading stops after {len(packets)} frames ({error.strerror})")
            packet = av.Packet()
        at_end = packet.size == 0
        if first is None:
            frames = _drain(stream) if at_end else _decode(packet)
            first = next((frame for frame in frames or () if not frame.is_corrupt), None)
        if at_end or packet.is_discard or (codec == "vp8" and not _vp8_is_shown(packet)):
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


def _shortfall(container: av.container.InputContainer, stream: av.VideoStream, ends_seconds: float) -> list[str]:
    """How files are noticed whose end is cut off between two packets, where one number states the whole length
    (Matroska, FLV). Other demuxers know each stream's own length from the packets themselves."""
    if stream.duration is not None or container.duration is None:
        return []
    stated_seconds = container.duration / av.time_base
    if stated_seconds <= ends_seconds + SHORTFALL_SECONDS:
        return []
    return [f"the container states an end at {stated_seconds:.3f} s, its video ends at {ends_seconds:.3f} s"]


def _no_times(path: Path, container_name: str) -> str:
    return (
        f"{path}: its container ({container_name}) does not say when each frame is shown, so none can be found "
        f"by its time. Encode it anew: `ffmpeg -i IN OUT.mp4`."
    )


def _open(path: Path) -> av.container.InputContainer:
    if not path.is_file():
        raise VideoError(f"{path}: there is no such file." if not path.exists() else f"{path}: is not a file.")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes).")
    try:
        return av.open(f"file:{path}", options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"})
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            f"{path}: cannot be opened as a video ({reason}). It is damaged or cut short, or no video container; "
            f"known ones: {DEMUXERS.replace(',', ', ')}."
        ) from error


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The first video stream marked as default, else the first; cover art is none. The others are not read."""
    attached = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & attached]
    if not streams:
        kinds = ", ".join(s.type for s in container.streams) or "none"
        raise VideoError(f"{path}: holds no video (streams: {kinds}).")
    stream = max(streams, key=lambda s: bool(s.disposition & av.stream.Disposition.default))  # ties: the first
    if stream.codec_context is None:
        raise VideoError(f"{path}: its video codec is unknown to this build of libav.")
    for other in container.streams:
        other.discard = av.stream.Discard.default if other is stream else av.stream.Discard.all
    if not stream.codec_context.is_open:
        stream.codec_context.thread_count = 1
        # Damage raises instead of being painted over: a picture that libav made up would pass for the frame asked for.
        stream.codec_context.options = {"err_detect": "explode"}
    return stream


def _decode(packet: av.Packet) -> list[av.VideoFrame] | None:
    """The frames that come out when `packet` goes in; None if it is damaged."""
    if packet.is_corrupt:
        return None
    try:
        return packet.decode()
    except av.error.FFmpegError:
        return None


def _drain(stream: av.VideoStream) -> list[av.VideoFrame]:
    try:
        return stream.codec_context.decode(None)
    except av.error.FFmpegError:  # nothing was fed, or it was drained before
        return []


def _vp8_is_shown(packet: av.Packet) -> bool:
    """VP8 stores pictures that are only referred to in packets of their own; RFC 6386, 9.1: bit 4 is show_frame."""
    return bool(memoryview(packet)[0] & 0x10)


def _usual_duration(pts_N: NDArray[np.int64], stream: av.VideoStream) -> int:
    if len(pts_N) > 1:
        return int(np.median(np.diff(pts_N)))
    return round(1 / (stream.average_rate * stream.time_base)) if stream.average_rate else 0


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


def _to_rgb(frame: av.VideoFrame, index: PacketIndex, reformatter: VideoReformatter) -> Tensor:
    """(Y, X, 3) uint8: full range RGB by the frame's own matrix and range, square pixels, turned as shown."""
    rgb = reformatter.reformat(
        frame,
        width=index.scaled_width_px,
        height=index.scaled_height_px,
        format="rgb24",
        src_colorspace=UNTAGGED if frame.colorspace == SPC_UNSPECIFIED else None,
        dst_color_range=ColorRange.JPEG,
        interpolation=SCALER,
        threads=1,
    )
    rgb_YX3 = torch.from_numpy(rgb.to_ndarray())
    transpose, flip_y, flip_x = index.orientation
    if transpose:
        rgb_YX3 = rgb_YX3.transpose(0, 1)
    flips = [dim for dim, flip in enumerate((flip_y, flip_x)) if flip]
    return rgb_YX3.flip(flips).contiguous() if flips else rgb_YX3.contiguous()
