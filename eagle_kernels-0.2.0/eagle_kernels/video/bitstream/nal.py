"""NAL units of H.264 and HEVC: how a stream's packets hold them.

    form = nal_format("h264", extradata)      # NalFormat("h264", 4, 0): four bytes of length before each unit
    for at in nal_starts(packet, form.length_bytes):
        unit_type = packet[at] & 31

Source  ITU-T H.264, annex B; ISO/IEC 14496-15, 5.3.3.1 (avcC) and 8.3.3.1 (hvcC).
"""

from __future__ import annotations

from typing import NamedTuple

START_CODE = b"\0\0\1"
TOP_LAYER = 6  # HEVC, TemporalId


class NalFormat(NamedTuple):
    """How a stream's packets hold its pictures, from the decoder configuration record."""

    codec: str  # "h264" or "hevc"
    length_bytes: int  # before every NAL unit; 0: start codes
    top_layer: int  # the highest temporal layer there may be; H.264: 0


def nal_format(codec: str, extradata: bytes | None) -> NalFormat | None:
    """None where it is not known how the packets hold pictures."""
    record = extradata or b""
    top_layer = TOP_LAYER if codec == "hevc" else 0
    if codec in ("h264", "hevc") and (record.startswith((START_CODE, b"\0" + START_CODE))):
        return NalFormat(codec, 0, top_layer)
    if codec == "h264" and len(record) >= 7 and record[0] == 1:
        return NalFormat(codec, (record[4] & 3) + 1, top_layer)
    if codec == "hevc" and len(record) >= 23 and record[0] == 1:
        num_layers = record[21] >> 3 & 7  # 0: unknown
        return NalFormat(codec, (record[21] & 3) + 1, num_layers - 1 if num_layers else top_layer)
    return None


def nal_starts(packet: bytes, length_bytes: int) -> list[int]:
    """Where every NAL unit begins, after its length or start code; the packet's end, last, where the lengths do not
    add up."""
    starts = []
    if length_bytes == 0:
        at = packet.find(START_CODE)
        while at >= 0:
            starts.append(at + 3)
            at = packet.find(START_CODE, at + 3)
        return starts
    at = 0
    while at < len(packet):
        num_bytes = int.from_bytes(packet[at : at + length_bytes], "big")
        at += length_bytes
        if num_bytes == 0 or at + num_bytes > len(packet):
            return [*starts, len(packet)]
        starts.append(at)
        at += num_bytes
    return starts


def parameter_sets(codec: str, extradata: bytes | None) -> list[bytes]:
    """The units of the decoder configuration record, or of headers with start codes; [] where it is cut short."""
    record = extradata or b""
    if record.startswith((START_CODE, b"\0" + START_CODE)):
        starts = nal_starts(record, 0)
        ends = [at - len(START_CODE) for at in starts[1:]]
        return [record[at:end].rstrip(b"\0") for at, end in zip(starts, [*ends, len(record)]) if at < len(record)]
    units: list[bytes] = []
    at = 5 if codec == "h264" else 23
    num_arrays = 2 if codec == "h264" else record[22] if len(record) > 22 else 0
    for i in range(num_arrays):
        if codec == "h264":
            num_units, at = int.from_bytes(record[at : at + 1], "big") & (31 if i == 0 else 255), at + 1
        else:
            num_units, at = int.from_bytes(record[at + 1 : at + 3], "big"), at + 3
        for _ in range(num_units):
            num_bytes = int.from_bytes(record[at : at + 2], "big")
            if num_bytes == 0 or at + 2 + num_bytes > len(record):
                return []
            units.append(record[at + 2 : at + 2 + num_bytes])
            at += 2 + num_bytes
    return units


def unescaped(unit: bytes | memoryview) -> bytes:
    """Without the bytes that keep start codes out of a unit (emulation_prevention_three_byte)."""
    content = bytes(unit)
    return content.replace(b"\0\0\3", b"\0\0") if b"\0\0\3" in content else content
