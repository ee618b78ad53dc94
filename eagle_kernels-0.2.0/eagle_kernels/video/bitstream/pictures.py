"""What pictures a packet of H.264, HEVC or VP9 holds, and which packets the wanted frames need.

    needed(packets, [False, False, True], form, is_last=True)  # [True, False, True]: nothing refers to the second
    picture(packet, syntax)                   # Picture(num_shown=1, num_coded=1, is_start=True, changes_size=False)

Source  ITU-T H.264, 7.3.3, 7.4.1 and table 7-1; ITU-T H.265, 7.3.6.1, 7.4.2.2, 8.3.2 and table 7-1; VP9 bitstream
        specification, version 0.6, 6.2 (uncompressed header) and annex B (superframes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from eagle_kernels.video.bitstream.bits import Bits, NotUnderstood
from eagle_kernels.video.bitstream.nal import START_CODE, NalFormat, nal_format, nal_starts

# NAL unit types
H264_IDR = 5  # 1 to 5 are slices
H264_PARAMETER_SETS = (7, 8, 13, 15)
HEVC_PARAMETER_SETS = (32, 33, 34)
HEVC_ACCESS = {2: "TSA", 3: "TSA", 4: "STSA", 5: "STSA"}
HEVC_IRAPS, HEVC_LAST_SLICE = range(16, 22), 31
SEQUENCE_HEADERS = {"h264": 7, "hevc": 33}
VP9_HEADER_BYTES = 16  # as far as the size
VOP = b"\0\0\1\xb6"  # MPEG-4: begins a picture
MPEG4_HEADER_BYTES = 1024  # headers and user data that may stand before the picture


def needed(
    packets: Sequence[bytes | memoryview], is_wanted: Sequence[bool], nal: NalFormat, *, is_last: bool
) -> list[bool]:
    """Whether the decoder needs each packet (one picture) for the wanted ones. is_last: none after these is wanted.

    H.264: not needed is a picture that none refers to. HEVC: pictures refer to lower temporal layers, and in their own
    to those not marked as sub-layer non-reference; and none of a layer, or higher, refers back across a picture that
    gives access to it (TSA; STSA: none of that very layer). What the wanted ones may refer to by that, is needed; and a
    packet that is cut short, or holds what later ones share.
    """
    # Each layer counts twice: first its reference pictures, then the others, to which only higher layers refer.
    later_rank = -1 if is_last else 2 * nal.top_layer  # the highest that later pictures may refer to
    are_needed = []
    for packet, wanted in zip(reversed(packets), reversed(is_wanted), strict=True):
        layer_of = _layer(bytes(packet), nal)
        if layer_of is None:
            are_needed.append(True)
            later_rank = 2 * nal.top_layer if wanted else later_rank
            continue
        layer, is_reference, access = layer_of
        are_needed.append(wanted or 2 * layer + (not is_reference) <= later_rank)
        if wanted:
            later_rank = max(later_rank, 2 * layer)
        if access == "TSA" or (access == "STSA" and later_rank == 2 * layer):
            later_rank = min(later_rank, 2 * layer - 1)
    return are_needed[::-1]


def _layer(packet: bytes, nal: NalFormat) -> tuple[int, bool, str] | None:
    """(temporal layer, whether a picture of that layer may refer to it, what access it gives: "", "TSA" or "STSA");
    None if the packet does not say so plainly, or holds parameter sets."""
    found = set()
    for at in nal_starts(packet, nal.length_bytes):
        head = packet[at : at + 2]
        if len(head) < 2:
            return None
        if nal.codec == "h264":
            kind = head[0] & 31
            if kind in H264_PARAMETER_SETS:
                return None
            if 1 <= kind <= 5:
                found.add((0, bool(head[0] >> 5 & 3), ""))
        else:
            kind = head[0] >> 1 & 63
            if kind in HEVC_PARAMETER_SETS or head[1] & 7 == 0:  # a layer that there is not
                return None
            if kind < 32:
                found.add(((head[1] & 7) - 1, kind >= 16 or kind % 2 == 1, HEVC_ACCESS.get(kind, "")))
    return found.pop() if len(found) == 1 else None


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
    is_start: bool  # nothing after it (but leading pictures) refers to anything before it
    changes_size: bool = False  # or may: it brings headers that differ from the stream's


def picture(packet: bytes, syntax: Syntax) -> Picture:
    """Of VP9's packets that are cut short or of another profile: none."""
    if syntax.codec != "vp9":
        return _nal_picture(packet, syntax)
    try:
        return _vp9_picture(packet, syntax)
    except NotUnderstood:
        return Picture(0, 0, False)


def _nal_picture(packet: bytes, syntax: Syntax) -> Picture:
    """A slice whose first bit after the NAL unit's header is 1 (first_mb_in_slice is 0, it is the first slice segment)
    begins a picture: a frame, or one field."""
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
    num_shown = num_coded = 0
    is_start, changes = False, False
    for i, at in enumerate(_vp9_frame_starts(packet)):
        bits = Bits(packet[at : at + VP9_HEADER_BYTES])
        if bits.read(4) != 0b1000:  # frame_marker 2, profile 0: 8 bits, 4:2:0
            raise NotUnderstood("no frame of VP9's profile 0")
        if bits.read(1):  # show_existing_frame
            num_shown += 1
            continue
        is_inter, is_shown, is_resilient = bits.read(1), bits.read(1), bits.read(1)
        num_coded += 1
        num_shown += is_shown
        is_start = is_start or (i == 0 and not is_inter)
        size_px = _vp9_size(bits, is_inter=is_inter, is_shown=is_shown, is_resilient=is_resilient)
        changes = changes or size_px not in (None, syntax.size_px)
    return Picture(num_shown, num_coded, is_start, changes)


def _vp9_size(bits: Bits, *, is_inter: int, is_shown: int, is_resilient: int) -> tuple[int, int] | None:
    """(width, height) where the header states it; None: the size of a picture referred to."""
    is_intra_only = is_inter and not is_shown and bits.read(1)
    if is_inter and not is_resilient:
        bits.read(2)  # reset_frame_context
    if not is_inter:
        bits.read(24 + 3 + 1)  # frame_sync_code, color_space, color_range
    elif is_intra_only:
        bits.read(24 + 8)  # frame_sync_code, refresh_frame_flags
    else:
        bits.read(8 + 3 * 4)  # refresh_frame_flags; index and sign of each reference
        if any(bits.read(1) for _ in range(3)):  # found_ref
            return None
    return bits.read(16) + 1, bits.read(16) + 1


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


HIDE_PICTURES = ("vp8", "vp9")  # codecs that store pictures nobody is shown in packets of their own


def is_shown(codec: str, packet: bytes | memoryview) -> bool:
    """VP8's encoders, and some of VP9's, store pictures that are only referred to in packets of their own. RFC 6386,
    9.1: bit 4 is show_frame; VP9, 6.2: it follows the marker, the profile, show_existing_frame and frame_type."""
    if codec == "vp8":
        return bool(packet[0] & 0x10)
    if codec != "vp9" or packet[-1] & 0b11100000 == 0b11000000:  # a superframe shows its last one
        return True
    bits = Bits(bytes(packet[:2]))
    try:
        bits.read(2)
        if bits.read(1) + 2 * bits.read(1) == 3:  # the profile
            bits.read(1)
        return bool(bits.read(1)) or bits.read(2) & 1 == 1
    except NotUnderstood:
        return True


def is_no_start(codec: str, packet: bytes | memoryview) -> bool:
    """Whether the picture's own first bits deny that a decoder can start at it, whatever the container says. Of codecs
    whose decoders would paint gray there; False for all others. MPEG-4: ISO/IEC 14496-2, 6.2.5 (vop_coding_type);
    Sorenson Spark: SWF specification 10, H.263 video packets; Microsoft's MPEG-4: the first two bits."""
    if codec == "mpeg4":
        head = bytes(packet[:MPEG4_HEADER_BYTES])
        at = head.find(VOP)
        return 0 <= at < len(head) - len(VOP) and head[at + len(VOP)] >> 6 != 0
    if codec == "flv1":
        bits = Bits(bytes(packet[:16]))
        try:
            bits.read(17 + 5 + 8)  # start code, version, temporal reference
            bits.read({0: 16, 1: 32}.get(bits.read(3), 0))  # width and height, where they are written out
            return bits.read(2) != 0
        except NotUnderstood:
            return False
    if codec in ("msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2"):
        return len(packet) > 0 and packet[0] >> (7 if codec == "wmv2" else 6) != 0
    return False
