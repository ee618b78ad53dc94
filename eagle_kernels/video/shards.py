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
H264_IDR, H264_DELIMITER = 5, 9  # nal_unit_type: ITU-T H.264, table 7-1; 1 to 5 are slices
H264_DELIMITER_UNIT = b"\x09\x10"  # primary_pic_type 0: intra slices alone; 7.3.2.4
HEVC_IRAPS, HEVC_LAST_SLICE = range(16, 22), 31  # ITU-T H.265, table 7-1
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


def syntax(codec: str, extradata: bytes | None) -> Syntax | None:
    """None where the codec's headers do not say how packets are laid out."""
    if codec == "vp9":
        return Syntax(codec, 0)
    if nal := nal_format(codec, extradata):
        return Syntax(codec, nal.length_bytes)
    is_annex_b = (extradata or b"").startswith((START_CODE, b"\0" + START_CODE))
    return Syntax(codec, 0) if is_annex_b else None


class Picture(NamedTuple):
    """What is known of a packet from the first bits of its units."""

    num_shown: int  # frames that come out for it
    num_coded: int  # pictures in it, shown or not
    is_start: bool  # nothing behind it (but leading pictures) refers to anything before it


def picture(packet: bytes, syntax: Syntax) -> Picture:
    return _vp9_picture(packet) if syntax.codec == "vp9" else _nal_picture(packet, syntax)


def _nal_picture(packet: bytes, syntax: Syntax) -> Picture:
    """A slice whose first bit behind the NAL unit's header is 1 (first_mb_in_slice is 0, it is the first slice segment)
    begins a picture: a frame, or one field. Source: ITU-T H.264, 7.3.3; ITU-T H.265, 7.3.6.1."""
    num_pictures, is_start = 0, False
    for at in nal_starts(packet, syntax.length_bytes):
        head = packet[at : at + 3]
        if len(head) < 3:
            continue
        if syntax.codec == "h264":
            kind, first = head[0] & 31, head[1] >> 7
            is_slice, starts = kind in (1, 2, H264_IDR), kind == H264_IDR  # 3 and 4: further parts of a slice's data
        else:
            kind, first = head[0] >> 1 & 63, head[2] >> 7
            is_slice, starts = kind <= HEVC_LAST_SLICE, kind in HEVC_IRAPS
        if is_slice and first:
            num_pictures += 1
            is_start = starts if num_pictures == 1 else is_start
    return Picture(num_pictures, num_pictures, is_start)


def _vp9_picture(packet: bytes) -> Picture:
    """Source: VP9 bitstream specification, version 0.6, 6.2 (uncompressed header) and annex B (superframes)."""
    heads = [packet[at : at + 1] for at in _vp9_frame_starts(packet)]
    num_shown = num_coded = 0
    for head in heads:
        if not head or head[0] >> 4 != 0b1000:  # frame_marker 2, profile 0: 8 bits, 4:2:0
            return Picture(0, 0, False)
        shows_existing, is_shown = head[0] & 0b1000, head[0] & 0b0010
        num_coded += not shows_existing
        num_shown += bool(shows_existing or is_shown)
    return Picture(num_shown, num_coded, is_start=not heads[0][0] & 0b1100)  # no show_existing_frame, frame_type 0


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
