"""The packets of a video, from any seek point on, and the stream whose decoder takes them.

    source = Source(index)
    for unit in source.read({pts}, budget, key=3):    # from the fourth key frame as far as the packet of that time
        ...

Where the index knows the packets' places (MP4, Matroska) they are read there, and libav's demuxer is not used; of other
containers it finds them. `PacketReader` gives the packets of planned groups to executors that decode elsewhere.
"""

from __future__ import annotations

import io
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

from eagle_kernels.video.bitstream.pictures import Syntax, syntax
from eagle_kernels.video.budget import Budget
from eagle_kernels.video.info import NO_TIME, PacketClock, PacketIndex, Samples
from eagle_kernels.video.libav.container import is_end, open_decoder, open_file, open_head, video_stream
from eagle_kernels.video.plan import Group
from eagle_kernels.video.ranged import ByteReader
from eagle_kernels.video.shards import NumberedPacket, Packet

Content = bytes | memoryview

WINDOW_PACKETS = 512  # read at once: to learn which are needed; what their end may be referred to by is kept
WINDOW_BYTES = 1 << 24  # read at once: memory a worker
FEW_PACKETS = 16  # read at once where nobody knows how many will be needed
STEP_MILLISECONDS = 40  # between the frames of files made for others; no rate is read from it
FIELD_PROGRESSIVE = 1  # AV_FIELD_PROGRESSIVE; 0 is unknown


class Unit(NamedTuple):
    """One packet, as it was read."""

    pts: int | None
    is_key: bool
    content: Content  # b"": the end
    packet: av.Packet | None  # where libav's demuxer made it


class Source:
    """A file open at one place. Opens it on first use."""

    def __init__(self, index: PacketIndex, look: Callable[[], None] = lambda: None) -> None:
        """look: called while bytes of a file that lies elsewhere are waited for; what it raises passes."""
        self.index, self._look = index, look
        self.stream: av.VideoStream = None  # None until it is open
        self.decoder: av.VideoCodecContext = None
        self._container: av.container.InputContainer | None = None
        self._samples: Samples | None = None
        self._file: ByteReader | None = None  # where there are samples: read at their places, without a demuxer
        self._units: Iterator[Unit] = iter(())
        self._next_place = 0  # where the index has a clock: the packet that comes next

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        if self._file is not None:
            self._file.close()
        self._container = self.stream = self.decoder = self._file = None

    def open(self) -> None:
        """A container that a decoder can be set up from; the packets come from it, or from the samples' places."""
        path = self.index.path
        if self.index.samples is None:
            if self.index.ranged is not None:
                self.index.ranged.fetch(self._look)
            self._container = open_file(path)
            self.stream = video_stream(self._container, path, self.index.stream)
        else:
            self._samples = self.index.samples()
            self._container, self._file = open_head(self._samples, path, self.index.ranged, self._look)
            self.stream = video_stream(self._container, path)
        self.decoder = open_decoder(self.stream)

    def rewind(self) -> None:
        """To the beginning. Opens the file anew: right for every container, also for those that seek badly."""
        self.close()
        self.open()
        self._units, self._next_place = self._from(0), 0

    def seek(self, key: int, budget: Budget) -> bool:
        """To the key frame of that number; False where the container has no index, and the caller starts earlier."""
        if self.stream is None:
            self.open()
        place = int(self.index.key_place_K[key])
        if self.index.clock is not None:
            if self._next_place == 0 or self._next_place > place:
                self.rewind()
            while self._next_place < place:
                if budget.stop.is_set() or time.monotonic() > budget.deadline:
                    budget.check()
                if not next(self._units).content:  # the file became shorter
                    return False
        elif self._samples is not None:
            self._units = self._from(place)
        else:
            try:
                self.stream.container.seek(int(self.index.key_seek_K[key]), stream=self.stream)
            except av.error.FFmpegError:
                return False
            self._units = self._from(place)
        if self.decoder.is_open:
            self.decoder.flush_buffers()
        return True

    def _from(self, place: int) -> Iterator[Unit]:
        if self.index.clock is not None:
            return self._counted(self.index.clock)
        if self._samples is None or self._file is None:
            return self._demuxed()
        return self._read_at_places(place, self._samples, self._file)

    def _demuxed(self) -> Iterator[Unit]:
        demuxed = self.stream.container.demux(self.stream)
        while True:
            try:
                packet = next(demuxed)
            except av.error.FFmpegError:
                packet = av.Packet()  # nothing more can be read, but what was fed can still come out
            at_end = is_end(packet)
            if packet.size or at_end:
                yield Unit(packet.pts, packet.is_keyframe, memoryview(packet) if packet.size else b"", packet)
            if at_end:
                return

    def _counted(self, clock: PacketClock) -> Iterator[Unit]:
        """All packets from the beginning on, with the clock's own times; those of one picture joined."""
        units = self._demuxed()
        for place, num_stored in enumerate(clock.num_stored_D.tolist()):
            parts = list(itertools.islice(units, num_stored))
            if len(parts) < num_stored or not parts[-1].content:
                break
            packet = parts[0].packet
            if packet is None or num_stored > 1:
                packet = av.Packet(b"".join(bytes(part.content) for part in parts))
            pts, is_key = int(clock.pts_D[place]), bool(clock.is_key_D[place])
            packet.pts = None if pts == NO_TIME else pts
            packet.dts = None
            packet.is_corrupt, packet.is_keyframe = bool(clock.is_damaged_D[place]), is_key
            packet.stream, packet.time_base = self.stream, self.index.time_base
            self._next_place = place + 1
            yield Unit(packet.pts, is_key, memoryview(packet), packet)
        yield Unit(None, False, b"", None)

    @staticmethod
    def _read_at_places(first_place: int, samples: Samples, file: ByteReader) -> Iterator[Unit]:
        for place in range(first_place, len(samples.pts_D)):
            size = int(samples.size_D[place])
            content = file.pread(size, int(samples.offset_D[place]))
            if len(content) < size:  # the file became shorter
                break
            yield Unit(int(samples.pts_D[place]), bool(samples.is_key_D[place]), content, None)
        yield Unit(None, False, b"", None)

    def read(self, wanted: set[int] | None, budget: Budget, *, key: int | None = None) -> list[Unit]:
        """The next packets: as far as those of the wanted times, at most WINDOW_PACKETS and about WINDOW_BYTES; without
        wanted times FEW_PACKETS. An empty one stands for the end of the file, and comes last.

        key: go to the key frame of that number first, or to the beginning for those up to 0; [] where no way leads.
        """
        if key is not None and key <= 0:
            self.rewind()
        elif key is not None and not self.seek(key, budget):
            return []
        left: set[int | None] | None = None if wanted is None else {*wanted}
        most_packets = FEW_PACKETS if left is None else WINDOW_PACKETS
        window: list[Unit] = []
        num_bytes = 0
        for unit in self._units:
            if budget.stop.is_set() or time.monotonic() > budget.deadline:
                budget.check()
            window.append(unit)
            num_bytes += len(unit.content)
            if left is not None:
                left.discard(unit.pts)
            if left is not None and not left:
                break
            if not unit.content or len(window) == most_packets or num_bytes > WINDOW_BYTES:
                break
        return [] if key is not None and key > 0 and self._is_elsewhere(window) else window

    def _is_elsewhere(self, window: list[Unit]) -> bool:
        """Whether the first key packet after a seek is none of the index, by its time and place: where the container's
        own index is damaged, demuxers count from the wrong packet."""
        index = self.index
        if index.clock is not None or self._samples is not None:
            return False
        first = next((unit for unit in window if unit.is_key and unit.packet is not None), None)
        if first is None or first.packet is None or first.pts is None:
            return False
        number = int(np.searchsorted(index.key_pts_K, first.pts))
        is_known = number < len(index.key_pts_K) and int(index.key_pts_K[number]) == first.pts
        return not is_known or int(index.key_position_K[number]) not in (-1, first.packet.pos)

    def read_group(self, group: Group, budget: Budget) -> list[Unit]:
        """All that the group's first to last packet span, in the order of storage; [] if no way leads to the first."""
        first_pts = self.index.key_pts_K[group.key] if group.key >= 0 else None
        for rewinds in (False, True) if group.key > 0 else (True,):
            if rewinds:
                self.rewind()
            elif not self.seek(group.key, budget):
                continue
            found: list[Unit] = []
            num_left = group.end_place - group.first_place
            for unit in self._units:
                is_first = first_pts is None or (unit.is_key and unit.pts == first_pts)
                is_before = unit.pts is None or (first_pts is not None and unit.pts <= first_pts)
                if not unit.content or not (found or is_first or is_before):
                    break
                if found or is_first:
                    found.append(unit)
                    # What an edit list hides has no place in the index, unless that counts for itself.
                    num_left -= unit.packet is None or self.index.clock is not None or not unit.packet.is_discard
                    if num_left == 0:
                        return found
        return []


class StreamFormat(NamedTuple):
    """How a video stream is stored; for executors that must know beforehand what they cannot do."""

    pixel_format: str  # libav's name: "yuv420p", "yuv420p10le", ...; "" if unknown
    matrix: int  # ITU-T H.273 MatrixCoefficients: 1 is BT.709, 2 unspecified, 5 and 6 BT.601
    is_full_range: bool
    is_interlaced: bool  # its pictures are, or may be, single fields
    width_px: int  # as stored
    height_px: int
    syntax: Syntax | None  # None: the codec's headers do not say how packets are laid out


class PacketReader:
    """The packets of planned groups as they are stored, and small files made of packets: for executors that decode
    elsewhere. Nothing is decoded here."""

    def __init__(self, index: PacketIndex) -> None:
        """Opens the file. Raises VideoError as `read_index` does."""
        self.index = index
        self._source = Source(index)
        self._source.open()
        coder = self._source.stream.codec_context
        self.format = StreamFormat(
            pixel_format=coder.pix_fmt or "",
            matrix=int(coder.colorspace),
            is_full_range=int(coder.color_range) == av.video.reformatter.ColorRange.JPEG,
            is_interlaced=int(coder.field_order) > FIELD_PROGRESSIVE,
            width_px=coder.width,
            height_px=coder.height,
            syntax=syntax(index.codec, coder.extradata, (coder.width, coder.height)),
        )

    def close(self) -> None:
        self._source.close()

    def packets(self, group: Group) -> list[Packet]:
        """[] if no way leads to the first of them, or one of them has no time."""
        stored = [(unit.content, unit.pts) for unit in self._source.read_group(group, Budget(self.index.path, None))]
        found = [Packet(bytes(content), pts) for content, pts in stored if pts is not None]
        return found if len(found) == len(stored) else []

    def matroska(self, packets: Sequence[NumberedPacket]) -> bytes:
        """A file of these packets, each shown for STEP_MILLISECONDS."""
        content = io.BytesIO()
        with av.open(content, "w", format="matroska") as container:
            stream = container.add_stream_from_template(self._source.stream)
            for numbered in packets:
                packet = av.Packet(numbered.content)
                packet.pts, packet.dts = numbered.pts * STEP_MILLISECONDS, numbered.dts * STEP_MILLISECONDS
                packet.duration, packet.time_base = STEP_MILLISECONDS, Fraction(1, 1000)
                packet.is_keyframe, packet.stream = numbered.starts_group, stream
                container.mux(packet)
        return content.getvalue()
