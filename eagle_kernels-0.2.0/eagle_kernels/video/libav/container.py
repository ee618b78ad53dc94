"""Opens files with libav: which containers, which stream of them, and what makes a decoder name damage.

with closing(open_file(path)) as container:
    stream = video_stream(container, path)
    decoder = open_decoder(stream)

libav's own errors end here: `named` makes VideoErrors of them, which say the file.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av

from eagle_kernels.video.info import Samples, VideoError
from eagle_kernels.video.ranged import ByteReader, RangedFile, open_bytes

# Containers only. Left to itself libav also opens playlists (HLS, DASH, concat), which name other files and hosts.
DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,avi,flv,asf,ogg,mxf,ivf,h264,hevc,obu,gif"
# Of a picture: a few bytes of header must not ask for any amount of memory. AV1's headers may state more than is used.
MAX_PIXELS = 1 << 28
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # libav's own pass over the alpha that WebM keeps beside frames


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Makes a VideoError, with the file's name, of what PyAV, libav or numpy raises on a file that it cannot take."""
    try:
        yield
    except VideoError:
        raise
    except (av.error.FFmpegError, ValueError, ArithmeticError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoError(f"{path}: cannot be read as a video ({type(error).__name__}: {reason}).") from error


def check_is_file(path: Path) -> None:
    """Raises VideoError if there is no such file, or it is empty."""
    if not path.is_file():
        raise VideoError(f"{path}: there is no such file." if not path.exists() else f"{path}: is not a file.")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes).")


def open_file(path: Path) -> av.container.InputContainer:
    check_is_file(path)
    return _open(f"file:{path}", path)


def open_head(
    samples: Samples, path: Path, ranged: RangedFile | None, look: Callable[[], None]
) -> tuple[av.container.InputContainer, ByteReader]:
    """The small file of the first samples, in memory, and the file itself, to read the others from."""
    if ranged is None:
        check_is_file(path)
    file = open_bytes(path, ranged, look)
    try:
        sizes_D, offsets_D = (array[: samples.num_head_samples] for array in (samples.size_D, samples.offset_D))
        file.need(offsets_D, sizes_D)
        first = [file.pread(size, offset) for size, offset in zip(sizes_D.tolist(), offsets_D.tolist())]
        return _open(io.BytesIO(samples.head + b"".join(first)), path), file
    except BaseException:
        file.close()
        raise


def _open(source: str | io.BytesIO, path: Path) -> av.container.InputContainer:
    try:
        # Tags are not used, and need not be UTF-8.
        options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file", "max_pixels": str(MAX_PIXELS)}
        return av.open(source, options=options, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            f"{path}: cannot be opened as a video ({reason}). It is damaged or cut short, or no video container; "
            f"known ones: {DEMUXERS.replace(',', ', ')}."
        ) from error


def video_stream(container: av.container.InputContainer, path: Path, number: int | None = None) -> av.VideoStream:
    """The stream of that number in the file; by default the one that players show: libav's best (marked as default,
    then by what its first seconds hold and its bit rate). Cover art is none. The others will not be read.

    Raises VideoError if there is none, or libav does not know its codec.
    """
    attached = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & attached]
    if not streams:
        kinds = ", ".join(s.type for s in container.streams) or "none"
        raise VideoError(f"{path}: holds no video (streams: {kinds}).")
    if number is None:
        best = container.streams.best("video")
        stream = best if best in streams else streams[0]
    else:
        chosen = [s for s in streams if s.index == number]
        if not chosen:
            there = ", ".join(str(s.index) for s in streams)
            raise VideoError(f"{path}: has no video stream {number}; its video streams are {there}.")
        (stream,) = chosen
    if stream.codec_context is None:
        raise VideoError(f"{path}: its video codec is unknown to this build of libav.")
    for other in container.streams:
        other.discard = av.stream.Discard.default if other is stream else av.stream.Discard.all
    return stream


def open_decoder(stream: av.VideoStream) -> av.VideoCodecContext:
    """The stream's own decoder, set to name damage; for transparent WebM the one that knows alpha."""
    decoder, alpha = stream.codec_context, ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name)
    if alpha in av.codecs_available and stream.metadata.get("alpha_mode") == "1":
        decoder = av.CodecContext.create(alpha, "r")
    if not decoder.is_open:
        decoder.thread_count = 1
        # Damage raises instead of being painted over: a picture that libav made up would pass for the frame asked for.
        decoder.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
    return decoder


def is_end(packet: av.Packet) -> bool:
    """PyAV's demuxer ends with an empty packet without times. Empty ones that have times stand for a frame that was
    dropped, as in MP4 and AVI; to a decoder they would be the end."""
    return packet.size == 0 and packet.pts is None and packet.dts is None
