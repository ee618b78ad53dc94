"""The index of a video by one pass over the packets that libav's demuxer gives: for all that tables do not tell.

    index = index_from_packets(path)

The container's own times are used where they name each frame by itself. Where they repeat, restart or are missing,
where a picture's fields are packets of their own, or packets are called damaged that are not, the index holds a clock
of its own (`PacketClock`), and the file is read from its start, packet by packet.

Memory  42 bytes a packet, and a packet takes some bytes of the file; libav's own tables come on top.
Dims    D packets in the order of storage, N shown frames.
"""

from __future__ import annotations

import contextlib
import math
from array import array
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from numpy.typing import NDArray

from eagle_kernels.video import clock
from eagle_kernels.video.bitstream.h264_fields import PACKET_BYTES, FieldPairs
from eagle_kernels.video.bitstream.pictures import Syntax, is_no_start, is_shown, picture
from eagle_kernels.video.budget import Budget
from eagle_kernels.video.clock import Stored
from eagle_kernels.video.containers import ends, mpegts
from eagle_kernels.video.info import NO_TIME, PacketClock, PacketIndex, VideoError
from eagle_kernels.video.libav.container import is_end, named, open_decoder, open_file, video_stream
from eagle_kernels.video.libav.picture import shape_of
from eagle_kernels.video.libav.reader import come_in_another_order, decode, drain, junk_of, without_junk

STORAGE_ORDER_DEMUXERS = ("avi", "asf")  # these keep one time a packet, in the order of storage, and libav passes it on
DTS_DEMUXERS = ("mpegts", "mpeg")  # these search the file for a dts; asked for a pts they land one key frame too late
KNOWS_DTS = (
    *DTS_DEMUXERS,
    "flv",
    "mov,mp4,m4a,3gp,3g2,mj2",
)  # the file holds times of decoding; elsewhere libav guesses
SHORTFALL_SECONDS = 0.5  # that a video may end before its container: sound may well go on so much longer
# Decoders that begin anywhere and paint what they do not know gray; others refuse, or hold such frames back.
PAINTS_GRAY = ("mpeg4", "h263", "flv1", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "rv10", "rv20")
REFUSES_TO_START = (
    "h264",
    "hevc",
    "vp8",
    "vp9",
    "av1",
)  # at a packet that is no key frame, or holds back what it gives


def index_from_packets(
    path: Path,
    starts_seconds: Fraction | None = None,
    *,
    stream_number: int | None = None,
    budget: Budget | None = None,
) -> PacketIndex:
    """The index by one pass over the packets of the file's video stream; errors as in `read_index`.

    starts_seconds: when its first frame is shown, where the container says so: frames from there on count, be they
    damaged, so that the others keep their times.
    """
    budget = budget or Budget(path, None)
    with closing(open_file(path)) as container, named(path):
        stream = video_stream(container, path, stream_number)
        scan = _read_packets(container, stream, path, budget)
        timed = _timed(scan, stream, path, budget)
        pts_N, place_N = np.unique(timed.pts_D[timed.pts_D != NO_TIME], return_index=True)
        place_N = np.flatnonzero(timed.pts_D != NO_TIME)[place_N]
        damage = timed.damage
        first_pts = int(timed.pts_D[timed.first])
        starts_at = first_pts
        if starts_seconds is not None and starts_seconds < first_pts * timed.time_base:
            starts_at = math.ceil(starts_seconds / timed.time_base)
            num_lost = int(((pts_N >= starts_at) & (pts_N < first_pts)).sum())
            damage = [*damage, f"the first frame that decodes has {num_lost} before it"]
        is_shown_N = pts_N >= starts_at  # leading pictures of a stream that was cut are never shown
        pts_N, place_N = pts_N[is_shown_N], place_N[is_shown_N]
        last_duration = int(timed.duration_D[place_N[-1]]) or usual_duration(pts_N, stream, timed.time_base)
        ends_seconds = float((int(pts_N[-1]) + last_duration) * timed.time_base)
        # Where one number states the whole length (Matroska, FLV); other demuxers know each stream's from its packets.
        states_length = stream.duration is None and container.duration is not None
        stated_seconds = container.duration / av.time_base if states_length else None
        is_key_D = timed.is_key_D & (timed.pts_D != NO_TIME)
        if is_key_D.all() and not _is_sure_of_keys(stream, scan.first):
            is_key_D = np.arange(len(is_key_D)) == 0
        keys = np.flatnonzero(is_key_D)
        keys = keys[np.argsort(timed.pts_D[keys], kind="stable")]
        return PacketIndex(
            path=path,
            stream=stream.index,
            codec=stream.codec_context.codec.canonical_name,
            time_base=timed.time_base,
            pts_N=pts_N,
            place_N=place_N.astype(np.int32),
            last_duration=last_duration,
            key_pts_K=timed.pts_D[keys],
            key_seek_K=timed.seek_D[keys],
            key_place_K=keys.astype(np.int32),
            key_position_K=timed.position_D[keys],
            **shape_of(scan.first, stream, path)._asdict(),
            damage="; ".join(damage + shortfall(path, stated_seconds, ends_seconds, budget)) or None,
            decoder_tells_keys=tells_keys(stream, scan.first),
            samples=None,
            clock=timed.clock,
        )


def tells_keys(stream: av.VideoStream, first: av.VideoFrame) -> bool:
    """Whether the decoder marks frames that it can start at. H.264's starts at recovery points too, and holds back what
    is not clean by itself."""
    return stream.codec_context.codec.canonical_name != "h264" and bool(first.key_frame)


def _is_sure_of_keys(stream: av.VideoStream, first: av.VideoFrame) -> bool:
    """Whether every packet can be a place to start: pictures lean on none in this codec, or the decoder will tell."""
    codec = stream.codec_context.codec
    return codec.intra_only or codec.canonical_name in REFUSES_TO_START or tells_keys(stream, first)


def usual_duration(pts_N: NDArray[np.int64], stream: av.VideoStream, time_base: Fraction) -> int:
    if len(pts_N) > 1:
        return int(np.median(np.diff(pts_N)))
    return round(1 / (stream.average_rate * time_base)) if stream.average_rate else 0


def shortfall(path: Path, stated_seconds: float | None, ends_seconds: float, budget: Budget) -> list[str]:
    """How files are noticed whose end is cut off between two packets: no track of theirs comes to the end stated."""
    if stated_seconds is None or stated_seconds <= ends_seconds + SHORTFALL_SECONDS:
        return []
    if _last_end_seconds(path, budget) >= stated_seconds - SHORTFALL_SECONDS:  # sound or a subtitle that lasts longer
        return []
    return [f"the container states an end at {stated_seconds:.3f} s, its video ends at {ends_seconds:.3f} s"]


def _last_end_seconds(path: Path, budget: Budget) -> float:
    last = 0.0
    with closing(open_file(path)) as container:
        try:
            for packet in container.demux():
                budget.look()
                if packet.pts is not None and packet.time_base is not None:
                    last = max(last, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        except av.error.FFmpegError:
            pass
    return last


class _Scan(NamedTuple):
    stored: Stored  # all packets, each field by itself
    first: av.VideoFrame  # the first frame that decodes; its pts is the number of its packet
    stops: str | None  # what libav said where reading stopped before the end


def _read_packets(container: av.container.InputContainer, stream: av.VideoStream, path: Path, budget: Budget) -> _Scan:
    codec, decoder = stream.codec_context.codec.canonical_name, open_decoder(stream)
    pairs = FieldPairs.of(stream.codec_context.extradata) if codec == "h264" else None
    numbers = [array("q") for _ in range(4)]  # pts, dts, duration, position
    flags = [bytearray() for _ in range(4)]  # is key, is corrupt, is shown, is a second field
    first, junk, stops = None, None, None
    demuxed = container.demux(stream)
    at_end = False
    while not at_end:
        budget.look()
        try:
            packet = next(demuxed)
        except av.error.FFmpegError as error:
            stops = error.strerror
            packet = av.Packet()
        at_end = is_end(packet)
        if packet.size == 0 and not at_end:
            continue
        if not at_end:
            content = memoryview(packet)
            is_seen = not packet.is_discard and is_shown(codec, content)
            is_key = packet.is_keyframe and not is_no_start(codec, content)
            times = (packet.pts, packet.dts, packet.duration or 0, -1 if packet.pos is None else packet.pos)
            for column, number in zip(numbers, times):
                column.append(NO_TIME if number is None else number)
            is_second = pairs is not None and pairs.is_second_field(bytes(content[:PACKET_BYTES]))
            for row, flag in zip(flags, (is_key, packet.is_corrupt, is_seen, is_second)):
                row.append(flag)
            packet.pts = len(numbers[0]) - 1
        if first is None:
            frames = drain(decoder) if at_end else decode(packet, decoder)
            if frames is None and (junk := junk or junk_of(stream)):
                frames = decode(without_junk(packet, junk), decoder)
            first = next((frame for frame in frames or () if _is_first(frame, codec)), None)
    if stream.container.format.name == "mpegts" and numbers[0] and codec in clock.REORDERING_CODECS:
        # What stands behind the last picture comes as a packet of its own.
        flags[2][-1] = flags[2][-1] and picture(bytes(content), Syntax(codec, 0)).num_coded > 0
    if first is None:
        raise VideoError(f"{path}: not one frame can be decoded; it holds {len(numbers[0])} packets of {codec}.")
    pts_D, dts_D, duration_D, position_D = (np.frombuffer(column, np.int64) for column in numbers)
    is_key_D, is_corrupt_D, is_shown_D, is_second_D = (np.frombuffer(row, np.bool_) for row in flags)
    stored = Stored(pts_D, dts_D, duration_D, position_D, is_key_D, is_corrupt_D, is_shown_D, is_second_D)
    return _Scan(stored, first, stops)


def _is_first(frame: av.VideoFrame, codec: str) -> bool:
    return not frame.is_corrupt and (frame.key_frame or codec not in PAINTS_GRAY)


class _Timed(NamedTuple):
    """The packets, one a picture, with times that name each frame."""

    time_base: Fraction
    pts_D: NDArray[np.int64]
    seek_D: NDArray[np.int64]  # the time that makes the demuxer go there
    duration_D: NDArray[np.int64]
    position_D: NDArray[np.int64]
    is_key_D: NDArray[np.bool_]
    first: int  # the place of the first frame that decodes
    damage: list[str]
    clock: PacketClock | None


def _timed(scan: _Scan, stream: av.VideoStream, path: Path, budget: Budget) -> _Timed:
    name, time_base, finer = stream.container.format.name, stream.time_base, 1
    stored = scan.stored
    is_joined = bool(stored.is_second_field_D.any())
    num_stored_D = np.diff(np.append(np.flatnonzero(~stored.is_second_field_D), len(stored.pts_D))).astype(np.int32)
    first = int(np.count_nonzero(~stored.is_second_field_D[: scan.first.pts + 1])) - 1
    stored = stored.joined() if is_joined else stored
    damaged_D, needs_clock = stored.is_corrupt_D, is_joined
    if name == "mpegts" and damaged_D.any():
        joints = mpegts.find_joints(path, stream.id, budget.check)
        damaged_D = joints.damaged(damaged_D, stored.position_D)
        needs_clock = needs_clock or bool((damaged_D != stored.is_corrupt_D).any())
    last_D, damage = _without_a_cut_end(damaged_D)
    if name == "mpegts" and not damage and mpegts.is_cut_inside(path, stream.id):
        damage = ["the file ends inside a packet of the video"]
    if name in ends.CONTAINERS and not damage and (lost := ends.lost(path, stored.position_D, budget.check)):
        damage = [lost]
    if scan.stops is not None:
        damage.insert(0, f"reading stops after {len(stored.pts_D)} frames ({scan.stops})")
    is_shown_D = stored.is_shown_D & last_D
    depth, codec = stream.codec_context.reorder_depth, stream.codec_context.codec.canonical_name
    reorders = depth > 0 or codec in clock.REORDERING_CODECS  # how far, libav learns only while it decodes
    pts_D = stored.pts_D
    has_times = not (pts_D[is_shown_D] == NO_TIME).any()
    if name == "mpegts" and not has_times:
        times_D = _times_of_units(stored, num_stored_D, path, stream, budget)
        if times_D is not None:
            stored = stored._replace(pts_D=times_D, dts_D=np.full(len(times_D), NO_TIME))
            pts_D, has_times, needs_clock = times_D, True, True
    if name in STORAGE_ORDER_DEMUXERS:
        is_stored_order = not has_times or (depth > 0 and bool((np.diff(pts_D) >= 0).all()))
    else:
        may_be = has_times and depth > 0 and bool((np.diff(pts_D) > 0).all())
        is_stored_order = may_be and _holds_times_of_decoding(path, stream.index, budget)
    if is_stored_order:
        pts_D, missing = _in_display_order(stored, damaged_D, stream, path, budget)
        damage, needs_clock = damage + missing, True
    elif not has_times:
        raise VideoError(_no_times(path, name))
    else:
        dts_D = stored.dts_D if name in KNOWS_DTS else None
        starts = clock.runs(pts_D, stored.is_key_D, stored.is_shown_D, dts_D, reorders=reorders)
        if len(starts) > 1:
            pts_D, needs_clock = clock.one_after_another(stored, starts), True
        shown = pts_D[is_shown_D]
        if len(np.unique(shown)) < len(shown):
            needs_clock = True
            pts_D, finer, missing = _spread(pts_D, is_shown_D, damaged_D, path, stream, budget)
            damage = damage + missing
    pts_D = np.where(is_shown_D, pts_D, NO_TIME)
    kept = np.ones(len(pts_D), np.bool_)
    if not needs_clock:  # the demuxer counts as the index does
        kept = is_shown_D
        first = int(np.count_nonzero(is_shown_D[:first]))
    seeks_by_dts = name in DTS_DEMUXERS
    seek_D = np.where((stored.dts_D != NO_TIME) & seeks_by_dts, stored.dts_D, stored.pts_D)
    packets_clock = None
    if needs_clock:
        packets_clock = PacketClock(
            pts_D=pts_D, num_stored_D=num_stored_D, is_key_D=stored.is_key_D, is_damaged_D=damaged_D
        )
    return _Timed(
        time_base / finer,
        pts_D[kept],
        seek_D[kept],
        stored.duration_D[kept] * finer,
        stored.position_D[kept],
        stored.is_key_D[kept],
        first,
        damage,
        packets_clock,
    )


def _times_of_units(
    stored: Stored, num_stored_D: NDArray[np.int32], path: Path, stream: av.VideoStream, budget: Budget
) -> NDArray[np.int64] | None:
    """(D,) the times of the PES packets, where there is one for each picture, or for each field."""
    times_U = mpegts.unit_times(path, stream.id, budget.check)
    if times_U is None or len(stored.pts_D) == 0 or stored.pts_D[0] == NO_TIME:
        return None
    if len(times_U) == num_stored_D.sum() > len(num_stored_D):
        times_U = times_U[np.cumsum(num_stored_D) - num_stored_D]
    if len(times_U) != np.count_nonzero(stored.is_shown_D):
        return None
    times_D = np.full(len(stored.pts_D), NO_TIME)
    times_D[stored.is_shown_D] = stored.pts_D[0] + times_U
    return times_D


def _without_a_cut_end(is_damaged_D: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], list[str]]:
    """(which packets are no part of a damaged end, what is damaged)."""
    good = np.flatnonzero(~is_damaged_D)
    num_kept = int(good[-1]) + 1 if len(good) else 0
    damage = (
        [f"the file ends inside frame {num_kept} (in the order of storage)"] if num_kept < len(is_damaged_D) else []
    )
    if num_corrupt := int(is_damaged_D[:num_kept].sum()):
        damage.append(f"{num_corrupt} of {num_kept} frames are damaged")
    return np.arange(len(is_damaged_D)) < num_kept, damage


def _holds_times_of_decoding(path: Path, stream_number: int, budget: Budget) -> bool:
    """Whether the container, whose times rise, has those of storage in the place of those of showing."""
    with closing(open_file(path)) as container:
        stream = video_stream(container, path, stream_number)

        def packets() -> Iterator[av.Packet]:
            with contextlib.suppress(av.error.FFmpegError):
                for packet in container.demux(stream):
                    budget.look()
                    if packet.size:
                        yield packet

        return come_in_another_order(packets(), open_decoder(stream))


def _in_display_order(
    stored: Stored, damaged_D: NDArray[np.bool_], stream: av.VideoStream, path: Path, budget: Budget
) -> tuple[NDArray[np.int64], list[str]]:
    """Times of storage, given to the frames in the order in which they are shown; only decoding all tells that."""
    order_N = _decoded_order(damaged_D, path, stream.index, budget)
    is_told = stream.container.format.name in STORAGE_ORDER_DEMUXERS
    times_D = np.where((stored.dts_D != NO_TIME) & is_told, stored.dts_D, stored.pts_D)
    if len(order_N) == 0 or (times_D == NO_TIME).any() or bool((np.diff(np.sort(times_D[order_N])) <= 0).any()):
        raise VideoError(_no_times(path, stream.container.format.name))
    pts_D = np.full(len(stored.pts_D), NO_TIME)
    pts_D[order_N] = np.sort(times_D[order_N])
    return pts_D, []


def _spread(
    pts_D: NDArray[np.int64],
    is_shown_D: NDArray[np.bool_],
    damaged_D: NDArray[np.bool_],
    path: Path,
    stream: av.VideoStream,
    budget: Budget,
) -> tuple[NDArray[np.int64], int, list[str]]:
    """Equal times made to rise in the order in which their frames are shown: (times, how much finer ticks, damage)."""
    order_N = _decoded_order(damaged_D, path, stream.index, budget)
    order_N = order_N[is_shown_D[order_N]]
    found = clock.spread(pts_D[order_N]) if len(order_N) else None
    if found is None:
        raise VideoError(_no_times(path, stream.container.format.name))
    times_N, finer = found
    spread_D = np.full(len(pts_D), NO_TIME)
    spread_D[order_N] = times_N
    num_missing = int(is_shown_D.sum()) - len(order_N)
    return spread_D, finer, [f"{num_missing} of {int(is_shown_D.sum())} packets give no frame"] if num_missing else []


def _decoded_order(damaged_D: NDArray[np.bool_], path: Path, stream_number: int, budget: Budget) -> NDArray[np.int64]:
    """(N,) the packets of all frames in the order in which a decoder gives them."""
    order = array("q")
    with closing(open_file(path)) as container:
        stream = video_stream(container, path, stream_number)
        pairs = FieldPairs.of(stream.codec_context.extradata) if stream.codec_context.codec.name == "h264" else None
        decoder, junk, place = open_decoder(stream), None, -1
        demuxed = container.demux(stream)
        while True:
            budget.look()
            try:
                packet = next(demuxed)
            except av.error.FFmpegError:
                break
            if is_end(packet):
                break
            if packet.size == 0:
                continue
            place += pairs is None or not pairs.is_second_field(bytes(memoryview(packet)[:PACKET_BYTES]))
            packet.pts, packet.is_corrupt = place, bool(damaged_D[place])
            frames = decode(packet, decoder)
            if frames is None and (junk := junk or junk_of(stream)):
                frames = decode(without_junk(packet, junk), decoder)
            order.extend(frame.pts for frame in frames or () if frame.pts is not None)
        order.extend(frame.pts for frame in drain(decoder) if frame.pts is not None)
    order_N = np.frombuffer(order, np.int64)
    _, firsts = np.unique(order_N, return_index=True)
    return order_N[np.sort(firsts)]


def _no_times(path: Path, container_name: str) -> str:
    return (
        f"{path}: its container ({container_name}) does not say when each frame is shown, so none can be found "
        f"by its time. Encode it anew: `ffmpeg -i IN OUT.mp4`."
    )
