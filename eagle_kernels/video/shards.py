"""What is fed to a decoder that numbers the pictures of a whole file: streams of the packets that a plan needs, and the
numbers that the wanted frames have there. Bytes and numbers only: no file is read here.

Such a decoder gives picture n, counted in the order of times. So every picture of a stream must count exactly once,
whatever the decoder makes of it; a stream of which that is not known is refused.

- Groups start at pictures behind which nothing refers back: IDR of H.264 (its open recovery points are not such: what
  is shown behind them is right, but the decoder's own count of frames is not), IRAP of HEVC, key frames of VP9. A group
  of another start is planned again from the last such one.
- Leading pictures, stored behind their group's first and shown before it, are left out: some refer to what was cut
  away. Nothing shown later refers to them (ITU-T H.265, 8.3.2, on IRAP pictures; an IDR of H.264 has none).
- Where one group of H.264 ends and the next begins, there is an access unit delimiter: two IDR pictures in a row that
  bear one idr_pic_id would be one picture. HEVC has one group a stream: the order counts of a CRA picture go on from
  whatever came before, and may name a picture twice (libav then drops one).
- Times are rewritten: pictures of one group after another, one step apart. So edit lists, late starts, clocks that run
  over and uneven times are gone before the decoder sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from eagle_kernels.video.plan import Group, nal_format, nal_starts

START_CODE = b"\0\0\1"
VP9_HEADER_BYTES = 16  # as far as the size
H264_IDR, H264_DELIMITER = 5, 9  # nal_unit_type: ITU-T H.264, table 7-1; 1 to 5 are slices
H264_DELIMITER_UNIT = b"\x09\x10"  # primary_pic_type 0: intra slices alone; 7.3.2.4
HEVC_IRAPS, HEVC_LAST_SLICE = range(16, 22), 31  # ITU-T H.265, table 7-1
SEQUENCE_HEADERS = {"h264": 7, "hevc": 33}
ONE_GROUP_A_STREAM = ("hevc",)


class Packet(NamedTuple):
    """As it is stored; its time in ticks of the file."""

    content: bytes
    pts: int


class Fed(NamedTuple):
    """Times in pictures from the start of the stream."""

    content: bytes
    pts: int
    dts: int
    starts_group: bool


class Stream(NamedTuple):
    packets: list[Fed]
    number_of: dict[int, int]  # of each wanted frame, named by its time in the file: the picture's number here
    reorders: int  # at most so many pictures wait in a decoder for one shown before them


def refusal(path: Path, reason: str) -> NotImplementedError:
    return NotImplementedError(
        f'{path}: {reason}, which decoding on a GPU does not do right. Use device="cpu" and move the frames.'
    )


def split(groups: Sequence[Group], num_shards: int) -> list[list[Group]]:
    """At most `num_shards` lists of whole groups, of about as many packets each; none is empty. The longest groups are
    dealt first, each to the shard that has the fewest packets so far; inside a shard they keep their order."""
    dealt: list[list[int]] = [[] for _ in range(min(num_shards, len(groups)))]
    loads = [0] * len(dealt)
    lengths = [group.end_place - group.first_place for group in groups]
    for i in sorted(range(len(groups)), key=lambda i: -lengths[i]):
        shard = loads.index(min(loads))
        dealt[shard].append(i)
        loads[shard] += lengths[i]
    return [[groups[i] for i in sorted(shard)] for shard in dealt]


class Syntax(NamedTuple):
    """How to read a stream's packets."""

    codec: str  # "h264", "hevc" or "vp9"
    length_bytes: int  # before every NAL unit; 0: start codes, or no NAL units at all
    headers: bytes = b""  # of H.264 and HEVC: with the sequence parameter sets
    size_px: tuple[int, int] = (0, 0)  # of VP9


def syntax(codec: str, headers: bytes | None, size_px: tuple[int, int]) -> Syntax | None:
    """None where the codec's headers do not say how packets are laid out."""
    if codec == "vp9":
        return Syntax(codec, 0, size_px=size_px)
    headers = headers or b""
    if nal := nal_format(codec, headers):
        return Syntax(codec, nal.length_bytes, headers)
    return Syntax(codec, 0, headers) if headers.startswith((START_CODE, b"\0" + START_CODE)) else None


class Picture(NamedTuple):
    """What is known of a packet from the first bits of its units."""

    num_shown: int  # frames that come out for it
    num_coded: int  # pictures in it, shown or not
    is_start: bool  # nothing behind it (but leading pictures) refers to anything before it
    changes_size: bool = False  # or may: it brings headers that differ from the stream's


def picture(packet: bytes, syntax: Syntax) -> Picture:
    return _vp9_picture(packet, syntax) if syntax.codec == "vp9" else _nal_picture(packet, syntax)


def _nal_picture(packet: bytes, syntax: Syntax) -> Picture:
    """A slice whose first bit behind the NAL unit's header is 1 (first_mb_in_slice is 0, it is the first slice segment)
    begins a picture: a frame, or one field. Source: ITU-T H.264, 7.3.3; ITU-T H.265, 7.3.6.1."""
    num_pictures, is_start, changes = 0, False, False
    starts_at = nal_starts(packet, syntax.length_bytes)
    for at, next_at in zip(starts_at, [*starts_at[1:], None]):
        head = packet[at : at + 3]
        if len(head) < 3:
            continue
        if syntax.codec == "h264":
            kind, first = head[0] & 31, head[1] >> 7
            is_slice, starts = kind in (1, 2, H264_IDR), kind == H264_IDR  # 3 and 4: further parts of a slice's data
        else:
            kind, first = head[0] >> 1 & 63, head[2] >> 7
            is_slice, starts = kind <= HEVC_LAST_SLICE, kind in HEVC_IRAPS
        if kind == SEQUENCE_HEADERS[syntax.codec]:
            end = None if next_at is None else next_at - (syntax.length_bytes or len(START_CODE))
            changes = changes or packet[at:end].rstrip(b"\0") not in syntax.headers
        if is_slice and first:
            num_pictures += 1
            is_start = starts if num_pictures == 1 else is_start
    return Picture(num_pictures, num_pictures, is_start, changes)


def _vp9_picture(packet: bytes, syntax: Syntax) -> Picture:
    """Source: VP9 bitstream specification, version 0.6, 6.2 (uncompressed header) and annex B (superframes)."""
    num_shown = num_coded = 0
    is_start, changes = False, False
    for i, at in enumerate(_vp9_frame_starts(packet)):
        bits = _Bits(packet[at : at + VP9_HEADER_BYTES])
        if bits.take(4) != 0b1000:  # frame_marker 2, profile 0: 8 bits, 4:2:0
            return Picture(0, 0, False)
        if bits.take(1):  # show_existing_frame
            num_shown += 1
            continue
        is_inter, is_shown, is_resilient = bits.take(1), bits.take(1), bits.take(1)
        num_coded += 1
        num_shown += is_shown
        is_start = is_start or (i == 0 and not is_inter)
        size_px = _vp9_size(bits, is_inter=is_inter, is_shown=is_shown, is_resilient=is_resilient)
        changes = changes or size_px not in (None, syntax.size_px)
    return Picture(num_shown, num_coded, is_start, changes)


class _Bits:
    def __init__(self, content: bytes) -> None:
        self._value, self._left = int.from_bytes(content, "big"), 8 * len(content)

    def take(self, num_bits: int) -> int:
        """The next ones; zeros behind the end."""
        self._left -= num_bits
        return (self._value >> self._left if self._left >= 0 else self._value << -self._left) & ((1 << num_bits) - 1)


def _vp9_size(bits: _Bits, *, is_inter: int, is_shown: int, is_resilient: int) -> tuple[int, int] | None:
    """(width, height) where the header states it; None: the size of a picture referred to."""
    is_intra_only = is_inter and not is_shown and bits.take(1)
    if is_inter and not is_resilient:
        bits.take(2)  # reset_frame_context
    if not is_inter:
        bits.take(24 + 3 + 1)  # frame_sync_code, color_space, color_range
    elif is_intra_only:
        bits.take(24 + 8)  # frame_sync_code, refresh_frame_flags
    else:
        bits.take(8 + 3 * 4)  # refresh_frame_flags; index and sign of each reference
        if any(bits.take(1) for _ in range(3)):  # found_ref
            return None
    return bits.take(16) + 1, bits.take(16) + 1


def _vp9_frame_starts(packet: bytes) -> list[int]:
    if packet and packet[-1] & 0b11100000 == 0b11000000:
        num_frames, size_bytes = (packet[-1] & 7) + 1, (packet[-1] >> 3 & 3) + 1
        index = packet[-2 - num_frames * size_bytes :]
        if len(index) == 2 + num_frames * size_bytes and index[0] == packet[-1]:
            sizes = [
                int.from_bytes(index[1 + i : 1 + i + size_bytes], "little")
                for i in range(0, num_frames * size_bytes, size_bytes)
            ]
            return [sum(sizes[:i]) for i in range(num_frames)]
    return [0]


def lay_out(
    groups: Sequence[tuple[Sequence[Packet], Sequence[int]]], syntax: Syntax, *, counts_coded: bool
) -> Stream | str:
    """One stream of these groups: the packets of each and the times of the frames wanted of it. A str says why none can
    be made.

    counts_coded: the decoder counts pictures that are decoded, and not those that are shown. In H.264 and HEVC these
    are the same; VP9 has pictures that are never shown, and packets that show a picture again.
    """
    fed: list[Fed] = []
    number_of: dict[int, int] = {}
    reorders = 0
    for stored, wanted in groups:
        if not stored or not picture(stored[0].content, syntax).is_start:
            return "not all of its frames can be reached from a picture that starts afresh"
        packets = [packet for packet in stored if packet.pts >= stored[0].pts]
        rank = {pts: i for i, pts in enumerate(sorted(packet.pts for packet in packets))}
        if len(rank) < len(packets) or not rank.keys() >= set(wanted):
            return "the times of its packets are not what its index says"
        base = len(fed)
        for i, packet in enumerate(packets):
            held = picture(packet.content, syntax)
            if held.num_shown != 1 or (counts_coded and held.num_coded != 1):
                return f"it has a packet of {held.num_coded} pictures, {held.num_shown} of them shown"
            if held.changes_size:
                return "its size or its codec's headers change on the way"
            content = packet.content if i else _delimited(packet.content, syntax)
            fed.append(Fed(content, base + rank[packet.pts], base + i, i == 0))
            reorders = max(reorders, i - rank[packet.pts])
        number_of |= {pts: base + rank[pts] for pts in wanted}
    return Stream([packet._replace(pts=packet.pts + reorders) for packet in fed], number_of, reorders)


def _delimited(packet: bytes, syntax: Syntax) -> bytes:
    """Source: ITU-T H.264, 7.4.1.2.3 and 7.4.1.2.4, what tells pictures apart."""
    if syntax.codec != "h264" or packet[nal_starts(packet, syntax.length_bytes)[0]] & 31 == H264_DELIMITER:
        return packet
    length = len(H264_DELIMITER_UNIT).to_bytes(syntax.length_bytes, "big") if syntax.length_bytes else START_CODE
    return length + H264_DELIMITER_UNIT + packet
