"""Opens files with libav: which containers, which stream of them, and what makes a decoder name damage.

with closing(open_file(path)) as container:
    stream = video_stream(container, path)
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import av

from eagle_kernels.video.info import Samples, VideoError

# Containers only. Left to itself libav also opens playlists (HLS, DASH, concat), which name other files and hosts.
DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,avi,flv,asf,ogg,mxf,ivf,h264,hevc,obu,gif"


def check_is_file(path: Path) -> None:
    """Raises VideoError if there is no such file, or it is empty."""
    if not path.is_file():
        raise VideoError(f"{path}: there is no such file." if not path.exists() else f"{path}: is not a file.")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes).")


def open_file(path: Path) -> av.container.InputContainer:
    check_is_file(path)
    return _open(f"file:{path}", path)


def open_head(samples: Samples, path: Path) -> tuple[av.container.InputContainer, io.FileIO]:
    """The small file of the first samples, in memory, and the file itself, to read the others from."""
    check_is_file(path)
    file = io.FileIO(path)
    try:
        sizes, offsets = (array[: samples.num_head_samples].tolist() for array in (samples.size_D, samples.offset_D))
        first = [os.pread(file.fileno(), size, offset) for size, offset in zip(sizes, offsets)]
        return _open(io.BytesIO(samples.head + b"".join(first)), path), file
    except BaseException:
        file.close()
        raise


def _open(source: str | io.BytesIO, path: Path) -> av.container.InputContainer:
    try:
        return av.open(source, options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"})
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            f"{path}: cannot be opened as a video ({reason}). It is damaged or cut short, or no video container; "
            f"known ones: {DEMUXERS.replace(',', ', ')}."
        ) from error


def video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The first video stream marked as default, else the first; cover art is none. The others will not be read.

    Raises VideoError if there is none, or libav does not know its codec.
    """
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


def is_end(packet: av.Packet) -> bool:
    """PyAV's demuxer ends with an empty packet without times. Empty ones that have times stand for a frame that was
    dropped, as in MP4 and AVI; to a decoder they would be the end."""
    return packet.size == 0 and packet.pts is None and packet.dts is None
