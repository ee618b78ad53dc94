"""Which frames of an AV1 stream the wanted ones lean on, from the first bytes of every frame. Numbers and bytes only.

    references = References()                 # at a key frame
    references.needed(packets, [False, False, True], is_last=True)      # [packets[0], b"", packets[2]]

A frame refers to pictures by eight slots, and says in its header which slots it reads and which it fills. So the slots
are followed forward, to learn what each frame refers to, and then the references backward from the frames wanted. What
is not met on the way may stay out of the decoder: a slot holds all that a frame takes from another one (pixels, motion
vectors, probabilities, segmentation, film grain), and nothing else passes from frame to frame.

Source  AV1 Bitstream & Decoding Process Specification: OBUs 5.3, sequence header 5.5, frame header 5.9, slots 7.20 and
        7.21.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eagle_kernels.video.bitstream.bits import Bits, NotUnderstood

Content = bytes | memoryview

NUM_SLOTS = 8
NUM_REFS = 7
ALL_SLOTS = (1 << NUM_SLOTS) - 1
SEQUENCE_HEADER, TEMPORAL_DELIMITER, FRAME_HEADER, TILE_GROUP, METADATA, FRAME, REDUNDANT_HEADER, PADDING = (
    *range(1, 8),
    15,
)
KEY, INTER, INTRA_ONLY, SWITCH = range(4)  # frame_type
CHOSEN_BY_FRAME = 2  # SELECT_SCREEN_CONTENT_TOOLS, SELECT_INTEGER_MV
SEQUENCE_HEADER_BYTES = 64  # as far as it is read here: at most 40 bytes
HEADER_BYTES = 32  # a frame header has told its references by then: at most 25 bytes of those understood here
MAX_SIZE_BYTES = 8  # of a size, 4.10.5
EARLIER = -1  # a slot that holds a frame of an earlier call
EMPTY = -2


class SequenceHeader(NamedTuple):
    """What of a sequence header is needed to read frame headers."""

    num_frame_id_bits: int  # 0: frames have no numbers
    num_delta_id_bits: int
    num_order_hint_bits: int  # 0: there are none
    screen_content_tools: int  # 0, 1, or CHOSEN_BY_FRAME
    integer_motion: int


class FrameHeader(NamedTuple):
    """What of a frame header tells its place among the others."""

    is_key: bool
    is_shown: bool
    shown_slot: int | None  # the frame is only the order to show this slot
    filled_slots: int  # bit i: slot i holds this frame from now on
    read_slots: tuple[int, ...]


def sequence_header(payload: Content) -> SequenceHeader:
    """Raises NotUnderstood for still pictures, several layers, and decoder model information."""
    bits = Bits(payload[:SEQUENCE_HEADER_BYTES])
    bits.read(3)  # profile
    if bits.read(2):
        raise NotUnderstood("a still picture")
    if bits.read(1):
        bits.read(64)  # clock
        if bits.read(1):
            bits.read_golomb()
        if bits.read(1):
            raise NotUnderstood("decoder model information")
    has_display_delay = bits.read(1)
    if bits.read(5) or bits.read(12):
        raise NotUnderstood("layers")
    if bits.read(5) > 7:  # level
        bits.read(1)  # tier
    if has_display_delay and bits.read(1):
        bits.read(4)
    num_width_bits, num_height_bits = bits.read(4) + 1, bits.read(4) + 1
    bits.read(num_width_bits + num_height_bits)
    num_delta_id_bits = num_frame_id_bits = 0
    if bits.read(1):
        num_delta_id_bits = bits.read(4) + 2
        num_frame_id_bits = bits.read(3) + 1 + num_delta_id_bits
    bits.read(7)  # tools that change nothing here
    has_order_hints = bits.read(1)
    if has_order_hints:
        bits.read(2)
    screen_content_tools = CHOSEN_BY_FRAME if bits.read(1) else bits.read(1)
    integer_motion = CHOSEN_BY_FRAME
    if screen_content_tools and not bits.read(1):
        integer_motion = bits.read(1)
    num_order_hint_bits = bits.read(3) + 1 if has_order_hints else 0
    return SequenceHeader(
        num_frame_id_bits, num_delta_id_bits, num_order_hint_bits, screen_content_tools, integer_motion
    )


def frame_header(payload: Content, sequence: SequenceHeader) -> FrameHeader:
    """Raises NotUnderstood where the references are not written out: short signalling, and error resilience with order
    hints, by which a decoder may replace pictures."""
    bits = Bits(payload[:HEADER_BYTES])
    if bits.read(1):
        slot = bits.read(3)
        return FrameHeader(is_key=False, is_shown=True, shown_slot=slot, filled_slots=0, read_slots=(slot,))
    kind, is_shown = bits.read(2), bool(bits.read(1))
    if not is_shown:
        bits.read(1)  # whether it may be shown later
    is_refresh = kind == SWITCH or (kind == KEY and is_shown)
    is_resilient = is_refresh or bool(bits.read(1))
    bits.read(1)  # how probabilities adapt
    screen_content_tools = sequence.screen_content_tools
    if screen_content_tools == CHOSEN_BY_FRAME:
        screen_content_tools = bits.read(1)
    if screen_content_tools and sequence.integer_motion == CHOSEN_BY_FRAME:
        bits.read(1)
    bits.read(sequence.num_frame_id_bits)
    if kind != SWITCH:
        bits.read(1)  # whether the size is another one
    bits.read(sequence.num_order_hint_bits)
    is_intra = kind in (KEY, INTRA_ONLY)
    if not is_intra and not is_resilient:
        bits.read(3)  # which of the references gives the probabilities
    filled_slots = ALL_SLOTS if is_refresh else bits.read(NUM_SLOTS)
    if is_intra:
        return FrameHeader(kind == KEY, is_shown, None, filled_slots, ())
    if sequence.num_order_hint_bits:
        if is_resilient:
            raise NotUnderstood("error resilience with order hints")
        if bits.read(1):
            raise NotUnderstood("short signalling of references")
    read_slots = set()
    for _ in range(NUM_REFS):
        read_slots.add(bits.read(3))
        bits.read(sequence.num_delta_id_bits)
    return FrameHeader(False, is_shown, None, filled_slots, tuple(sorted(read_slots)))


def _obus(packet: Content) -> list[tuple[int, int, int, int]]:
    """(kind, first byte, first byte of the payload, end) of each OBU."""
    obus = []
    at = 0
    while at < len(packet):
        head, first = packet[at], at
        if head & 0x84:
            raise NotUnderstood("an OBU of a layer, or none")
        at += 1
        num_bytes = len(packet) - at
        if head & 2:
            num_bytes = 0
            for i in range(MAX_SIZE_BYTES):
                if at >= len(packet):
                    raise NotUnderstood("an OBU that is cut short")
                byte = packet[at]
                at += 1
                num_bytes |= (byte & 127) << 7 * i
                if byte < 128:
                    break
        if at + num_bytes > len(packet):
            raise NotUnderstood("an OBU that is cut short")
        obus.append((head >> 3 & 15, first, at, at + num_bytes))
        at += num_bytes
    return obus


class References:
    """The slots of a decoder, from a key frame on."""

    def __init__(self) -> None:
        self._sequence: SequenceHeader | None = None
        self._slots = [(EMPTY, False)] * NUM_SLOTS  # (frame, whether it is a key frame)

    def needed(self, packets: Sequence[Content], is_wanted: Sequence[bool], *, is_last: bool) -> list[Content]:
        """What of each packet (one shown frame, and hidden ones) the decoder needs for the wanted shown frames; b"":
        nothing. The packets follow those of the call before. is_last: no frame is wanted after them; else what the
        slots hold at the end is needed.

        Raises NotUnderstood; then these packets and all that follow are to be decoded whole.
        """
        leans_on: list[set[int]] = []  # of each frame of these packets
        frames: set[int] = set()  # that are needed
        parts: list[list[tuple[int, int, int]]] = []  # of each packet: (frame or -1, first byte, end)
        has_sequence: list[bool] = []
        self._slots = [(min(frame, EARLIER), is_key) for frame, is_key in self._slots]
        for packet, wanted in zip(packets, is_wanted, strict=True):
            parts.append([])
            has_sequence.append(False)
            num_shown = 0
            frame = -1  # that tiles belong to
            for kind, first, payload, end in _obus(packet):
                if kind in (FRAME, FRAME_HEADER):
                    frame = len(leans_on)
                    header, refs = self._follow(packet[payload:end], frame)
                    leans_on.append(refs)
                    num_shown += header.is_shown
                    if header.is_shown and wanted:
                        frames.add(frame)
                elif kind in (TILE_GROUP, REDUNDANT_HEADER):
                    if frame < 0:
                        raise NotUnderstood("tiles without a frame")
                elif kind == SEQUENCE_HEADER:
                    self._sequence = sequence_header(packet[payload:end])
                    has_sequence[-1] = True
                elif kind not in (TEMPORAL_DELIMITER, METADATA, PADDING):
                    raise NotUnderstood(f"an OBU of kind {kind}")
                is_of_frame = kind in (FRAME, FRAME_HEADER, TILE_GROUP, REDUNDANT_HEADER)
                parts[-1].append((frame if is_of_frame else -1, first, end))
            if num_shown != 1:
                raise NotUnderstood(f"a packet that shows {num_shown} frames")
        if not is_last:
            frames.update(frame for frame, _ in self._slots if frame >= 0)
        for frame in range(len(leans_on) - 1, -1, -1):
            if frame in frames:
                frames |= leans_on[frame]
        return [
            _joined(packet, of_packet, frames, keep_rest)
            for packet, of_packet, keep_rest in zip(packets, parts, has_sequence, strict=True)
        ]

    def _follow(self, payload: Content, frame: int) -> tuple[FrameHeader, set[int]]:
        """The header, and the frames of this call that it leans on; fills the slots."""
        if self._sequence is None:
            raise NotUnderstood("a frame before any sequence header")
        header = frame_header(payload, self._sequence)
        read = [self._slots[slot] for slot in header.read_slots]
        if any(other == EMPTY for other, _ in read):
            raise NotUnderstood("a reference to an empty slot")
        filled_slots, is_key = header.filled_slots, header.is_key
        if header.shown_slot is not None and read[0][1]:  # showing a key frame makes it fill every slot, 7.21
            filled_slots, is_key = ALL_SLOTS, True
        for slot in range(NUM_SLOTS):
            if filled_slots >> slot & 1:
                self._slots[slot] = (frame, is_key)
        return header, {other for other, _ in read if other >= 0}


def _joined(packet: Content, parts: list[tuple[int, int, int]], frames: set[int], keep_rest: bool) -> Content:
    """The packet without the OBUs of frames that are not needed. keep_rest: also where no frame is left."""
    kept = [(first, end) for frame, first, end in parts if frame < 0 or frame in frames]
    if len(kept) == len(parts):
        return packet
    if not keep_rest and not any(frame in frames for frame, _, _ in parts):
        return b""
    return b"".join(packet[first:end] for first, end in kept)
