"""Takes out of H.264 and HEVC packets what holds no picture and is malformed: broken SEI messages and parameter sets.

    junk = Junk("h264", extradata, is_valid=lambda sets: True)
    junk.without(packet)                      # the packet without them; itself where there are none

Some cameras write them beside good pictures, and a decoder that is told to name damage refuses such packets whole. What
holds a picture is never touched.

Source  ITU-T H.264: 7.3.2.3.1 (SEI messages), table 7-1; ITU-T H.265: table 7-1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from eagle_kernels.video.bitstream.nal import START_CODE, nal_format, nal_starts, parameter_sets, unescaped

H264_SETS, H264_SEI, H264_PICTURES = (7, 8, 13, 15), (6,), (1, 2, 3, 4, 5, 20)
HEVC_SETS, HEVC_SEI, HEVC_PICTURES = (32, 33, 34), (39, 40), range(32)
# User data (by which libav knows x264's old builds), recovery points (where decoding may start), alpha channels.
KEPT_MESSAGES = (5, 6, 165)
MAX_VERDICTS = 256  # parameter sets whose check is remembered: bounds the memory


class Junk:
    def __init__(self, codec: str, extradata: bytes | None, is_valid: Callable[[bytes], bool]) -> None:
        """is_valid: whether a decoder takes these headers, units with start codes before each."""
        self._nal = nal_format(codec, extradata)
        self._is_h264 = codec == "h264"
        self.headers = b""  # the stream's own, with start codes, without those that are malformed
        for unit in parameter_sets(codec, extradata):
            longer = self.headers + START_CODE + unit
            self.headers = longer if is_valid(longer) else self.headers
        self._is_valid = is_valid
        self._verdicts: dict[bytes, bool] = {}

    def without(self, packet: bytes) -> bytes:
        if self._nal is None:
            return packet
        length_bytes = self._nal.length_bytes
        kept = [unit for unit in _units(packet, length_bytes) if self._is_kept(unit)]
        heads = [len(unit).to_bytes(length_bytes, "big") if length_bytes else START_CODE for unit in kept]
        clean = b"".join(head + unit for head, unit in zip(heads, kept))
        # What holds no beginning of a picture, or one that is cut short, is damage and not junk.
        return clean if any(map(self._begins_picture, kept)) and not self._is_cut_short(packet) else packet

    def _begins_picture(self, unit: bytes) -> bool:
        pictures, at = (H264_PICTURES, 1) if self._is_h264 else (HEVC_PICTURES, 2)
        return len(unit) > at and self._kind(unit) in pictures and unit[at] >> 7 == 1  # of the first slice

    def _is_cut_short(self, packet: bytes) -> bool:
        """Whether the last unit is a picture, and longer than what is left of the packet."""
        length_bytes, at, num_bytes = (self._nal.length_bytes if self._nal else 0), 0, 0
        if length_bytes == 0:
            return False
        while at + length_bytes < len(packet):
            num_bytes = int.from_bytes(packet[at : at + length_bytes], "big")
            last, at = at + length_bytes, at + length_bytes + num_bytes
        return at > len(packet) and self._kind(packet[last:]) in (H264_PICTURES if self._is_h264 else HEVC_PICTURES)

    def _kind(self, unit: bytes) -> int:
        return unit[0] & 31 if self._is_h264 else unit[0] >> 1 & 63

    def _is_kept(self, unit: bytes) -> bool:
        kind = self._kind(unit)
        if kind in (H264_SEI if self._is_h264 else HEVC_SEI):
            return _is_sound(unescaped(unit[1 if self._is_h264 else 2 :]))
        if kind in (H264_SETS if self._is_h264 else HEVC_SETS):
            unit = unit.rstrip(b"\0") or unit
            if unit not in self._verdicts:
                if len(self._verdicts) >= MAX_VERDICTS:
                    self._verdicts.clear()
                self._verdicts[unit] = self._is_valid(self.headers + START_CODE + unit)
            return self._verdicts[unit]
        return True  # a picture; or what decoders pass over, though it may be a picture whose first byte is damaged


def _units(packet: bytes, length_bytes: int) -> Iterator[bytes]:
    """The units that are whole; of empty ones and what their lengths do not fit into the packet, none."""
    if length_bytes == 0:
        starts = nal_starts(packet, 0)
        for at, end in zip(starts, [*(at - len(START_CODE) for at in starts[1:]), len(packet)]):
            if at < end:
                yield packet[at:end]
        return
    at = 0
    while at + length_bytes < len(packet):
        num_bytes = int.from_bytes(packet[at : at + length_bytes], "big")
        at += length_bytes
        if 0 < num_bytes <= len(packet) - at:
            yield packet[at : at + num_bytes]
        at += num_bytes


def _is_sound(message: bytes) -> bool:
    """Whether all payloads of an SEI unit end where they should, and are of those kept."""
    at = 0
    while len(message) - at > 1:  # the last byte is no payload's
        numbers = []
        for _ in range(2):  # payload type, payload size
            number = 0
            while at < len(message) and message[at] == 255:
                number, at = number + 255, at + 1
            if at == len(message):
                return False
            numbers.append(number + message[at])
            at += 1
        at += numbers[1]
        if numbers[0] not in KEPT_MESSAGES or at >= len(message):
            return False
    return at > 0
