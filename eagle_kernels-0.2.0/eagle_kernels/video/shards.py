"""What is fed to a decoder that numbers the pictures of a whole file: streams of the packets that a plan needs, and the
numbers that the wanted frames have there. Bytes and numbers only: no file is read here.

    for shard in split(plan(index, frames_M, join=False), num_shards=7):
        stream = lay_out([(packets_of(group), times_of(group)) for group in shard], syntax, counts_coded=True)
        stream.number_of[pts]                 # the picture's number in the file made of stream.packets

Such a decoder gives picture n, counted in the order of times. So every picture of a stream must count exactly once,
whatever the decoder makes of it; a stream of which that is not known is refused.

- Groups start at pictures after which nothing refers back: IDR of H.264 (its open recovery points are not such: what
  is shown after them is right, but the decoder's own count of frames is not), IRAP of HEVC, key frames of VP9. A group
  of another start is planned again from the last such one.
- Leading pictures, stored after their group's first and shown before it, are left out: some refer to what was cut
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

from eagle_kernels.video.bitstream.nal import START_CODE, nal_starts
from eagle_kernels.video.bitstream.pictures import Syntax, picture
from eagle_kernels.video.plan import Group

H264_DELIMITER = 9  # nal_unit_type: ITU-T H.264, table 7-1
H264_DELIMITER_UNIT = b"\x09\x10"  # primary_pic_type 0: intra slices alone; 7.3.2.4
ONE_GROUP_A_STREAM = ("hevc",)


class Packet(NamedTuple):
    """As it is stored; its time in ticks of the file."""

    content: bytes
    pts: int


class NumberedPacket(NamedTuple):
    """Times in pictures from the start of the stream."""

    content: bytes
    pts: int
    dts: int
    starts_group: bool


class Stream(NamedTuple):
    packets: list[NumberedPacket]
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


def lay_out(
    groups: Sequence[tuple[Sequence[Packet], Sequence[int]]], syntax: Syntax, *, counts_coded: bool
) -> Stream | str:
    """One stream of these groups: the packets of each and the times of the frames wanted of it. A str says why none can
    be made.

    counts_coded: the decoder counts pictures that are decoded, and not those that are shown. In H.264 and HEVC these
    are the same; VP9 has pictures that are never shown, and packets that show a picture again.
    """
    numbered: list[NumberedPacket] = []
    number_of: dict[int, int] = {}
    reorders = 0
    for stored, wanted in groups:
        if not stored or not picture(stored[0].content, syntax).is_start:
            return "not all of its frames can be reached from a picture that starts afresh"
        packets = [packet for packet in stored if packet.pts >= stored[0].pts]
        rank = {pts: i for i, pts in enumerate(sorted(packet.pts for packet in packets))}
        if len(rank) < len(packets) or not rank.keys() >= set(wanted):
            return "the times of its packets are not what its index says"
        base = len(numbered)
        for i, packet in enumerate(packets):
            held = picture(packet.content, syntax)
            if held.num_shown != 1 or (counts_coded and held.num_coded != 1):
                return f"it has a packet of {held.num_coded} pictures, {held.num_shown} of them shown"
            if held.changes_size:
                return "its size or its codec's headers change on the way"
            content = packet.content if i else _delimited(packet.content, syntax)
            numbered.append(NumberedPacket(content, base + rank[packet.pts], base + i, i == 0))
            reorders = max(reorders, i - rank[packet.pts])
        number_of |= {pts: base + rank[pts] for pts in wanted}
    return Stream([packet._replace(pts=packet.pts + reorders) for packet in numbered], number_of, reorders)


def _delimited(packet: bytes, syntax: Syntax) -> bytes:
    """Source: ITU-T H.264, 7.4.1.2.3 and 7.4.1.2.4, what tells pictures apart."""
    if syntax.codec != "h264" or packet[nal_starts(packet, syntax.length_bytes)[0]] & 31 == H264_DELIMITER:
        return packet
    length = len(H264_DELIMITER_UNIT).to_bytes(syntax.length_bytes, "big") if syntax.length_bytes else START_CODE
    return length + H264_DELIMITER_UNIT + packet
