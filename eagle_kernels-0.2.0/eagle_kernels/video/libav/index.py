"""Finds when each frame of a video is shown and where a decoder may start.

    index = read_index("walk.mp4")
    len(index.pts_N), index.key_pts_K         # 120 shown frames; the times of the places to start at

From the tables of an MP4 (containers/mp4.py) or the block headers of a Matroska (containers/matroska.py), whose first
frame is decoded to be sure of them; of all other files by one pass over the packets (scan.py).

Dims    N shown frames, K key frames, D packets in the order of storage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import numpy as np

from eagle_kernels.video import clock
from eagle_kernels.video.bitstream import h264_fields
from eagle_kernels.video.bitstream.h264_fields import FieldPairs
from eagle_kernels.video.budget import Budget
from eagle_kernels.video.containers import matroska, mp4
from eagle_kernels.video.info import PacketIndex, Samples, Tables, VideoError
from eagle_kernels.video.libav.container import check_is_file, named, open_decoder, open_head, video_stream
from eagle_kernels.video.libav.picture import shape_of
from eagle_kernels.video.libav.reader import come_in_another_order, decode, drain, packet_of
from eagle_kernels.video.libav.scan import index_from_packets, shortfall, tells_keys, usual_duration
from eagle_kernels.video.libav.source import Unit
from eagle_kernels.video.ranged import ByteReader, RangedFile, open_binary


def read_index(
    path: str | Path,
    stream_number: int | None = None,
    budget: Budget | None = None,
    ranged: RangedFile | None = None,
) -> PacketIndex:
    """The index of that stream, or of the one that players show. Decodes up to the first frame.

    ranged: the file, where it lies elsewhere. All of it is fetched, unless it is an MP4 whose tables say everything.
    Raises VideoError if there is no such file, it is no video, or not one frame decodes.
    """
    path = Path(path)
    budget = budget or Budget(path, None)
    if ranged is not None:
        index = _index_in_parts(path, stream_number, budget, ranged)
        if index is None:
            ranged.fetch(budget.look)
            index = replace(read_index(path, stream_number, budget), ranged=ranged)
        return index
    with named(path):
        check_is_file(path)
        if reason := mp4.refusal(path, budget.check):
            raise VideoError(f"{path}: {reason}")
        tables = (mp4.read_tables(path) or matroska.read_tables(path, budget.check)) if stream_number is None else None
        starts_seconds = None
        if tables is not None:
            index = _index_from_tables(path, tables, budget, None)
            if index is not None:
                return index
            starts_seconds = int(tables.samples.pts_D[tables.is_shown_D].min()) * tables.time_base
        return index_from_packets(path, starts_seconds, stream_number=stream_number, budget=budget)


def _index_in_parts(path: Path, stream_number: int | None, budget: Budget, ranged: RangedFile) -> PacketIndex | None:
    """The index of an MP4 by its tables, of which no more is fetched; None where that does not do."""
    opened = partial(open_binary, ranged, budget.look)
    with named(path):
        if reason := mp4.refusal(path, budget.check, opened):
            raise VideoError(f"{path}: {reason}")
        tables = mp4.read_tables(path, opened) if stream_number is None else None
        return None if tables is None else _index_from_tables(path, tables, budget, ranged)


def _index_from_tables(path: Path, tables: Tables, budget: Budget, ranged: RangedFile | None) -> PacketIndex | None:
    """None if the first sample does not give a frame that agrees with the tables: the packets are to be scanned."""
    samples = tables.samples
    shown_D = np.flatnonzero(tables.is_shown_D)
    place_N = shown_D[np.argsort(samples.pts_D[shown_D], kind="stable")]
    pts_N = samples.pts_D[place_N]
    try:
        container, file = open_head(samples, path, ranged, budget.look)
        with closing(container), closing(file):
            stream = video_stream(container, path)
            content = file.pread(int(samples.size_D[0]), int(samples.offset_D[0]))
            unit = Unit(int(samples.pts_D[0]), True, content, None)
            codec, time_base, decoder = (
                stream.codec_context.codec.canonical_name,
                stream.time_base,
                open_decoder(stream),
            )
            frames = (decode(packet_of(unit, content, stream), decoder) or []) + drain(decoder)
            if len(frames) != 1 or frames[0].is_corrupt or frames[0].pts != samples.pts_D[0]:
                return None
            if codec == "h264" and _holds_lone_fields(stream.codec_context.extradata, samples, file, budget, ranged):
                return None
            reorders = codec in clock.REORDERING_CODECS
            if len(clock.runs(samples.pts_D, samples.is_key_D, tables.is_shown_D, None, reorders=reorders)) > 1:
                return None
            if decoder.reorder_depth > 0 and _holds_times_of_decoding(samples, stream, file, budget):
                return None
            shape, is_told = shape_of(frames[0], stream, path), tells_keys(stream, frames[0])
            last_duration = int(tables.duration_D[place_N[-1]]) or usual_duration(pts_N, stream, time_base)
    except VideoError:
        return None
    if time_base != tables.time_base:
        return None
    ends_seconds = float((int(pts_N[-1]) + last_duration) * time_base)
    key_place_K = np.flatnonzero(samples.is_key_D)
    key_place_K = key_place_K[np.argsort(samples.pts_D[key_place_K], kind="stable")]
    return PacketIndex(
        path=path,
        stream=tables.stream,
        codec=codec,
        time_base=time_base,
        pts_N=pts_N,
        place_N=place_N.astype(np.int32),
        last_duration=last_duration,
        key_pts_K=samples.pts_D[key_place_K],
        key_seek_K=samples.pts_D[key_place_K],
        key_place_K=key_place_K.astype(np.int32),
        key_position_K=samples.offset_D[key_place_K],
        **shape._asdict(),
        damage="; ".join(shortfall(path, tables.stated_seconds, ends_seconds, budget)) or None,
        decoder_tells_keys=is_told,
        samples=lambda: samples,
        clock=None,
        ranged=ranged,
    )


def _holds_times_of_decoding(samples: Samples, stream: av.VideoStream, file: ByteReader, budget: Budget) -> bool:
    """Whether the tables lack the times of showing, and give those of storage in their place."""
    if not bool((np.diff(samples.pts_D) > 0).all()):
        return False

    def packets() -> Iterator[av.Packet]:
        for i, (size, offset) in enumerate(zip(samples.size_D.tolist(), samples.offset_D.tolist())):
            budget.look()
            content = file.pread(size, offset)
            yield packet_of(Unit(i, bool(samples.is_key_D[i]), content, None), content, stream)

    decoder = open_decoder(stream)
    decoder.flush_buffers()  # the first frame was taken from it
    return come_in_another_order(packets(), decoder)


def _holds_lone_fields(
    extradata: bytes | None, samples: Samples, file: ByteReader, budget: Budget, ranged: RangedFile | None
) -> bool:
    """Whether two samples are one picture; of a file that lies elsewhere, whether they may be: to know takes a look at
    each of them."""
    pairs = FieldPairs.of(extradata)
    if pairs is None or ranged is not None:
        return pairs is not None
    for size, offset in zip(samples.size_D.tolist(), samples.offset_D.tolist()):
        budget.look()
        if pairs.is_second_field(file.pread(min(size, h264_fields.PACKET_BYTES), offset)):
            return True
    return False
