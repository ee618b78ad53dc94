"""Which packets of an interlaced H.264 stream hold the second field of the picture that the packet before began.

    pairs = FieldPairs.of(extradata)          # None where the stream has no field pictures
    [pairs.is_second_field(packet) for packet in packets]         # [False, True, False, True]

Broadcasters and cameras may store each field as a packet of its own. Two fields are one frame if they follow each
other, are of opposite parity and have one frame_num; a packet that holds both, or a whole frame, stands for itself.

Source  ITU-T H.264: 7.3.2.1.1 (sequence parameter sets), 7.3.2.2, 7.3.3 (slice headers), 7.4.1.2.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from eagle_kernels.video.bitstream.bits import Bits, NotUnderstood
from eagle_kernels.video.bitstream.nal import NalFormat, nal_format, nal_starts, parameter_sets, unescaped

SPS, PPS, IDR = 7, 8, 5
SLICES = (1, 2, IDR)
PACKET_BYTES = 2048  # of a packet: the first slice begins there, after headers and messages
HEADER_BYTES = 32  # a slice header has told its field by then
SET_BYTES = 512  # a sequence parameter set has told what is needed here by then, with scaling lists of 12 x 64 numbers
WITH_CHROMA_FORMAT = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # profiles


class _Sequence(NamedTuple):
    has_colour_planes: bool
    num_frame_num_bits: int
    has_fields: bool


class _Field(NamedTuple):
    frame_num: int
    is_bottom: bool


class FieldPairs:
    """Follows the packets of a stream in the order of storage."""

    def __init__(self, nal: NalFormat, sequence: _Sequence) -> None:
        self._nal = nal
        self._sequence = sequence
        self._first: _Field | None = None  # a field whose other half has not come yet

    @staticmethod
    def of(extradata: bytes | None) -> FieldPairs | None:
        """None where the headers exclude field pictures, differ among themselves or are not understood."""
        nal = nal_format("h264", extradata)
        if nal is None:
            return None
        try:
            sequences = {_sequence(unit) for unit in parameter_sets("h264", extradata) if unit[0] & 31 == SPS}
        except NotUnderstood:
            return None
        sequence = sequences.pop() if len(sequences) == 1 else None
        return FieldPairs(nal, sequence) if sequence is not None and sequence.has_fields else None

    def is_second_field(self, packet: bytes) -> bool:
        """packet: its first PACKET_BYTES do."""
        fields = self._fields(packet)
        first, self._first = self._first, None
        field = fields[0] if len(fields) == 1 else None
        if field is None:
            return False
        if first is not None and first.frame_num == field.frame_num and first.is_bottom != field.is_bottom:
            return True
        self._first = field
        return False

    def _fields(self, packet: bytes) -> list[_Field | None]:
        """The different fields of the packet; None among them: a frame, or something that is not understood."""
        found: list[_Field | None] = []
        for at in self._starts(packet):
            if at < len(packet) and packet[at] & 31 in SLICES:
                field = self._field(packet[at + 1 : at + 1 + HEADER_BYTES])
                if field not in found:
                    found.append(field)
        return found

    def _starts(self, packet: bytes) -> Iterator[int]:
        """Where its units begin, the last one cut short or not."""
        length_bytes = self._nal.length_bytes
        if length_bytes == 0:
            yield from nal_starts(packet, 0)
            return
        at = 0
        while at + length_bytes < len(packet):
            num_bytes = int.from_bytes(packet[at : at + length_bytes], "big")
            yield at + length_bytes
            at += length_bytes + num_bytes

    def _field(self, header: bytes) -> _Field | None:
        bits = Bits(unescaped(header))
        try:
            for _ in range(3):  # first_mb_in_slice, slice_type, pic_parameter_set_id
                bits.read_golomb()
            if self._sequence.has_colour_planes:
                bits.read(2)
            frame_num = bits.read(self._sequence.num_frame_num_bits)
            return _Field(frame_num, bool(bits.read(1))) if bits.read(1) else None
        except NotUnderstood:
            return None


def _sequence(unit: bytes) -> _Sequence:
    bits = Bits(unescaped(unit[1 : 1 + SET_BYTES]))
    profile = bits.read(8)
    bits.read(16)  # constraints, level
    bits.read_golomb()
    has_colour_planes = False
    if profile in WITH_CHROMA_FORMAT:
        chroma_format = bits.read_golomb()
        has_colour_planes = chroma_format == 3 and bool(bits.read(1))
        bits.read_golomb()  # bit depths
        bits.read_golomb()
        bits.read(1)
        if bits.read(1):
            for i in range(12 if chroma_format == 3 else 8):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if i < 6 else 64)
    num_frame_num_bits = bits.read_golomb() + 4
    order_type = bits.read_golomb()
    if order_type == 0:
        bits.read_golomb()
    elif order_type == 1:
        bits.read(1)
        bits.read_golomb()  # two offsets
        bits.read_golomb()
        num_offsets = bits.read_golomb()
        if num_offsets > 255:
            raise NotUnderstood("a cycle of more than 255 pictures")
        for _ in range(num_offsets):
            bits.read_golomb()
    bits.read_golomb()  # num_ref_frames
    bits.read(1)
    bits.read_golomb()  # width, height
    bits.read_golomb()
    if num_frame_num_bits > 16:
        raise NotUnderstood("frame numbers of more than 16 bits")
    return _Sequence(has_colour_planes, num_frame_num_bits, not bits.read(1))


def _skip_scaling_list(bits: Bits, length: int) -> None:
    last = 8
    for _ in range(length):
        code = bits.read_golomb()
        last = (last + ((code + 1) // 2 if code % 2 else -(code // 2))) % 256
        if last == 0:
            return
