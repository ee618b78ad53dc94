"""Feeds a decoder with the packets of planned groups and takes the wanted frames by their presentation time (pts).

    with closing(Reader(index, budget)) as reader:
        for group in plan(index, frames_M):
            for frame in reader.frames(group, drop=False):        # None where no way leads to it
                ...

- Start at the group's key frame, feed until its last frame's packet went in, then drain the decoder.
- With `drop`, leave out what the wanted frames do not need (bitstream/).
- Take the frame whose pts is exactly the one wanted. After a seek, a frame shown before the key frame that the decoder
  started from may lean on pictures that it never saw (open GOP), so such frames are never taken.
- If that pts does not come out (the demuxer landed too late, as in MPEG-TS; the pictures after the key frame are not
  clean yet, as with intra refresh), start earlier, finally from the beginning of the file.
- The first frame taken after a seek must be a key frame to the decoder too: containers lie, and some decoders begin
  anywhere, on gray.
- A packet that is refused is tried without what in it is no picture and malformed (bitstream/junk.py).
- After damage nothing is taken until the next key frame, and what then never comes out is missing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from itertools import islice

import av
import numpy as np

from eagle_kernels.video.bitstream.av1 import References
from eagle_kernels.video.bitstream.bits import NotUnderstood
from eagle_kernels.video.bitstream.junk import Junk
from eagle_kernels.video.bitstream.nal import nal_format
from eagle_kernels.video.bitstream.pictures import HIDE_PICTURES, is_shown, needed
from eagle_kernels.video.budget import Budget
from eagle_kernels.video.info import PacketIndex
from eagle_kernels.video.libav.source import Content, Source, Unit
from eagle_kernels.video.plan import Group

PACKETS_OF_ORDER = 32  # encoders put at most 16 pictures between two that lean on no later one
SAME_BREAKS = 3  # starts that all end at one packet: it is damaged, and no earlier start leads past it


def packet_of(unit: Unit, content: Content, stream: av.VideoStream) -> av.Packet:
    """What of a packet is fed, for the decoder."""
    if unit.packet is not None and content is unit.content:
        return unit.packet
    packet = av.Packet(content)
    packet.pts = unit.pts
    packet.time_base = stream.time_base
    packet.is_keyframe = unit.is_key
    packet.is_corrupt = unit.packet is not None and unit.packet.is_corrupt
    packet.stream = stream
    return packet


def decode(packet: av.Packet, decoder: av.VideoCodecContext) -> list[av.VideoFrame] | None:
    """The frames that come out when `packet` goes in; None if it is damaged."""
    if packet.is_corrupt:
        return None
    try:
        return decoder.decode(packet)
    except av.error.FFmpegError:
        return None


def drain(decoder: av.VideoCodecContext) -> list[av.VideoFrame]:
    try:
        return decoder.decode(None)
    except av.error.FFmpegError:  # nothing was fed, or it was drained before
        return []


def come_in_another_order(packets: Iterable[av.Packet], decoder: av.VideoCodecContext) -> bool:
    """Whether the frames of packets, whose times rise, come out in another order: they are times of decoding then."""
    last = None
    for packet in islice(packets, PACKETS_OF_ORDER):
        for frame in decode(packet, decoder) or ():
            if last is not None and frame.pts is not None and frame.pts < last:
                return True
            last = frame.pts
    return False


def junk_of(stream: av.VideoStream) -> Junk | None:
    """What may be left out of the stream's packets where the decoder refuses one. None: nothing."""
    codec, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata
    if nal_format(codec, extradata) is None:
        return None

    def is_valid(parameter_sets: bytes) -> bool:
        decoder = av.CodecContext.create(codec, "r")
        # The zeros: libav reads past the end of what is cut short, and PyAV leaves there what was there.
        decoder.extradata, decoder.options = parameter_sets + bytes(64), {"err_detect": "explode"}
        try:
            decoder.open()
        except (av.error.FFmpegError, ValueError):
            return False
        return True

    junk = Junk(codec, extradata, is_valid)
    set_headers(stream, junk)
    return junk


def set_headers(stream: av.VideoStream, junk: Junk) -> None:
    """Gives a decoder that is not open yet, maybe as it refused its own headers, those of them that are sound."""
    codec, decoder = stream.codec_context.codec.canonical_name, stream.codec_context
    starts_with_code = nal_format(codec, decoder.extradata) == nal_format(codec, junk.headers) is not None
    if starts_with_code and not decoder.is_open:
        decoder.extradata = junk.headers


def without_junk(packet: av.Packet, junk: Junk) -> av.Packet:
    content = bytes(packet)
    clean = junk.without(content)
    if clean == content:
        return packet
    unit = Unit(packet.pts, packet.is_keyframe, content, packet)
    return packet_of(unit, clean, packet.stream)


class Reader:
    """A decoder and its source of packets, from which the frames come in the order they are shown."""

    def __init__(self, index: PacketIndex, budget: Budget) -> None:
        self._index = index
        self._budget = budget
        self._source = Source(index, budget.look)
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._shown: av.VideoFrame | None = None  # the last frame that came out
        self._broke_at: int | None = None  # pts of the first packet since the last seek that the decoder refused
        self._junk: Junk | None = None  # once the decoder refused a packet that holds such
        self._no_junk: Junk | None = None  # before
        self.num_missed = 0  # frames that the plan did not lead to

    def close(self) -> None:
        self._source.close()

    def frames(self, group: Group, *, drop: bool) -> Iterator[av.VideoFrame | None]:
        """One for each of the group's frames, None where no way leads to it. drop: leave out what they do not need."""
        wanted = [int(self._index.pts_N[i]) for i in group.frames]
        self._start(group.key, set(wanted), drop=drop)
        by_plan = True
        for i, pts in enumerate(wanted):
            if self._shown is not None and self._shown.pts == pts:
                yield self._shown
                continue
            had_junk = self._junk is not None
            by_plan = by_plan and self._forward_to(pts)
            if not by_plan and self._junk is not None and not had_junk:
                by_plan = self._start(group.key, set(wanted[i:]), drop=drop) and self._forward_to(pts)
            self.num_missed += not by_plan
            yield self._shown if by_plan else self._only(pts) or self._from_earlier(pts)

    def num_needless(self, group: Group) -> int:
        """How many packets `drop` would leave out on the way to the group's last frame, whole or in part. Decodes
        nothing."""
        last = int(self._index.pts_N[group.frames[-1]])
        first = self._source.read({last}, self._budget, key=group.key)
        num = 0
        for unit, content in self._needed_units(first, {last}, drop=True):
            num += content is not unit.content
            if unit.pts == last or not unit.content:
                break
        return num

    # -- where to start

    def _key_before(self, pts: int) -> int:
        return int(np.searchsorted(self._index.key_pts_K, pts, side="right")) - 1

    def _start(self, key: int, wanted: set[int] | None, *, drop: bool = False) -> bool:
        """Makes ready to decode from there until the packets of all wanted pts were fed, or without end. False where no
        way leads there."""
        self._shown = None
        first = self._source.read(wanted, self._budget, key=key)
        self._frames = self._clean_frames(first, -math.inf if key <= 0 else None, wanted, drop=drop)
        return bool(first)

    def _only(self, pts: int) -> av.VideoFrame | None:
        """That frame, with nothing fed after it that could be damaged."""
        found = self._start(self._key_before(pts), {pts}) and self._forward_to(pts)
        return self._shown if found else None

    def _from_earlier(self, pts: int) -> av.VideoFrame | None:
        """That frame from ever earlier key frames, at last from the beginning; None where no way leads to it."""
        key, step = self._key_before(pts), 1
        breaks: list[int | None] = []
        while key > 0:
            self._broke_at = None
            if self._start(key, None) and self._forward_to(pts):
                return self._shown
            breaks.append(self._broke_at)
            if len(breaks) >= SAME_BREAKS and breaks[-1] is not None and len(set(breaks[-SAME_BREAKS:])) == 1:
                return None
            key, step = key - step, step * 2
        return self._shown if self._start(0, None) and self._forward_to(pts) else None

    def _forward_to(self, pts: int) -> bool:
        """Decodes until a frame at or after `pts` is shown; True if it is that one."""
        for frame in self._frames:
            self._shown = frame
            if frame.pts >= pts:
                return bool(frame.pts == pts)
        return False

    def _look_for_junk(self, refused: Content) -> None:
        """From now on leaves it out, if it may be why the decoder refused that packet."""
        self._no_junk = self._no_junk or junk_of(self._source.stream)
        if self._no_junk is not None and self._no_junk.without(bytes(refused)) != refused:
            self._junk = self._no_junk

    # -- what is fed, and what of it is taken

    def _needed_units(
        self, window: list[Unit], wanted: set[int] | None, *, drop: bool
    ) -> Iterator[tuple[Unit, Content]]:
        """Each packet of the window and of those that follow, with what of it is to be fed: with `drop`, what the
        decoder needs for the wanted pts. These may become fewer meanwhile."""
        references = References() if drop and self._index.codec == "av1" else None
        nal = nal_format(self._index.codec, self._source.stream.codec_context.extradata) if drop and window else None
        while window:
            contents = [unit.content for unit in window]
            if drop and wanted is not None:
                left, is_wanted = set(wanted), []
                for unit in window:
                    is_wanted.append(unit.pts in left)
                    left.discard(unit.pts)
                if references is not None:
                    try:
                        contents = references.needed(contents, is_wanted, is_last=not left)
                    except NotUnderstood:
                        drop = False
                elif nal is not None:
                    keep = needed(contents, is_wanted, nal, is_last=not left)
                    contents = [content if kept else b"" for content, kept in zip(contents, keep, strict=True)]
            yield from zip(window, contents, strict=True)
            if not window[-1].content:
                return
            window = self._source.read(wanted, self._budget)

    def _clean_frames(
        self, window: list[Unit], trusted_from: float | None, wanted: set[int] | None, *, drop: bool
    ) -> Iterator[av.VideoFrame]:
        """Frames in the order they are shown, without those that may lean on pictures the decoder never saw.

        window:       the first packets, already read.
        trusted_from: frames shown before this pts are not taken; None: the pts of the first key frame met.
        wanted:       end when packets of all these pts were fed, or can no longer come; None: at the end of the file.
        drop:         feed only what the wanted frames need, by what the packets say of themselves.
        """
        stream, decoder, budget = self._source.stream, self._source.decoder, self._budget
        trust = _Trust(trusted_from, must_tell_keys=self._index.decoder_tells_keys)
        self._broke_at = None
        if self._junk is not None:
            set_headers(stream, self._junk)
        last_wanted = max(wanted) if wanted else math.inf
        num_later_keys = 0
        for unit, content in self._needed_units(window, wanted, drop=drop):
            if budget.stop.is_set() or time.monotonic() > budget.deadline:
                budget.check()
            at_end = not unit.content
            if not at_end and unit.is_key and unit.pts is not None:
                trust.meet_key(unit.pts)
                num_later_keys += unit.pts > last_wanted
            if not at_end and (trust.since is None or not content):
                continue
            # A picture that is not shown may have the time of the next one that is.
            codec = self._index.codec
            if wanted is not None and (at_end or codec not in HIDE_PICTURES or is_shown(codec, content)):
                wanted.discard(unit.pts)
            if self._junk is not None and not at_end:
                content = self._junk.without(bytes(content))
            frames = drain(decoder) if at_end else decode(packet_of(unit, content, stream), decoder)
            if frames is None and self._junk is None:
                self._look_for_junk(content)
            if not trust.feed(unit.pts, is_refused=frames is None) and self._broke_at is None:
                self._broke_at = unit.pts
            if wanted is not None and not at_end and (not wanted or num_later_keys > 1):
                frames, at_end = (frames or []) + drain(decoder), True
            for frame in frames or ():
                if trust.takes(frame):
                    yield frame
            if at_end:
                return


class _Trust:
    """Which of the frames that come out of a decoder show what they should."""

    def __init__(self, since: float | None, *, must_tell_keys: bool) -> None:
        """must_tell_keys: the first frame after a seek must be one that the decoder itself calls a key frame."""
        self.since = since  # frames before this pts may lean on pictures the decoder never saw; None: no key frame yet
        self._must_tell_keys = must_tell_keys
        self._is_start_sure = since is not None or not must_tell_keys
        self._broken = False
        self._clean: set[int] = set()  # pts fed in good order and not yet out

    def meet_key(self, pts: int) -> None:
        if self.since is None or self._broken:
            self.since, self._broken, self._is_start_sure = pts, False, not self._must_tell_keys

    def feed(self, pts: int | None, *, is_refused: bool) -> bool:
        """False if the decoder refused a packet that frames were to come of."""
        if self.since is None or (pts is not None and pts < self.since):
            return True
        if is_refused:
            self._broken = True
        elif not self._broken and pts is not None:
            self._clean.add(pts)
        return not is_refused

    def takes(self, frame: av.VideoFrame) -> bool:
        if self.since is not None and frame.is_corrupt and frame.pts is not None and frame.pts >= self.since:
            self._broken = True
            self._clean.clear()
        elif frame.pts in self._clean:
            self._clean.remove(frame.pts)
            self._is_start_sure = self._is_start_sure or bool(frame.key_frame)
            return self._is_start_sure
        return False
