"""Takes out of H.264 and HEVC packets what holds no picture and is malformed: broken SEI messages and parameter sets.

    junk = Junk("h264", extradata, is_valid=lambda sets: True)
    junk.without(packet)                      # the packet without them; itself where there are none

Some cameras write them beside good pictures, and a decoder that is told to name damage refuses such packets whole. What
holds a picture is never touched.

Source  ITU-T H.264: 7.3.2.3.1 (SEI messages), table 7-1; ITU-T H.265: table 7-1.
"""

from __future__ import annotations

from collections.abc import Callable

from eagle_kernels.video.bitstream.nal import START_CODE, nal_format, nal_starts, parameter_sets, unescaped

H264_SETS, H264_SEI, H264_PICTURES, H264_ENDS = (7, 8, 13, 15), (6,), (1, 2, 3, 4, 5, 20), (10, 11)
HEVC_SETS, HEVC_SEI, HEVC_PICTURES, HEVC_ENDS = (32, 33, 34), (39, 40), range(32), (36, 37)
# User data (by which libav knows x264's old builds), recovery points (where decoding may start), alpha channels.
KEPT_MESSAGES = (5, 6, 165)
MAX_VERDICTS = 256  # parameter sets whose check is remembered: bounds the memory


class Junk:
    def __init__(self, codec: str, extradata: bytes | None, is_valid: Callable[[bytes], bool]) -> None:
        """is_valid: whether a decoder takes these headers, units with start codes before each."""
        self._nal = nal_format(codec, extradata)
        self._is_h264 = codec == "h264"
        self._known = b"".join(START_CODE + unit for unit in parameter_sets(codec, extradata))
        self._is_valid = is_valid
        self._verdicts: dict[bytes, bool] = {}

    def without(self, packet: bytes) -> bytes:
        if self._nal is None:
            return packet
        length_bytes = self._nal.length_bytes
        starts = nal_starts(packet, length_bytes)
        ends = [at - (length_bytes or len(START_CODE)) for at in starts[1:]] + [len(packet)]
        units = [packet[at:end] for at, end in zip(starts, ends) if at < end]
        kept = [unit for unit in units if self._is_kept(unit)]
        if len(kept) == len(units):
            return packet
        heads = [len(u).to_bytes(length_bytes, "big") if length_bytes else START_CODE for u in kept]
        return b"".join(head + unit for head, unit in zip(heads, kept))

    def _is_kept(self, unit: bytes) -> bool:
        kind = unit[0] & 31 if self._is_h264 else unit[0] >> 1 & 63
        if kind in (H264_SEI if self._is_h264 else HEVC_SEI):
            return _is_sound(unescaped(unit[1 if self._is_h264 else 2 :]))
        if kind in (H264_SETS if self._is_h264 else HEVC_SETS):
            unit = unit.rstrip(b"\0") or unit
            if unit not in self._verdicts:
                if len(self._verdicts) >= MAX_VERDICTS:
                    self._verdicts.clear()
                self._verdicts[unit] = self._is_valid(self._known + START_CODE + unit)
            return self._verdicts[unit]
        if self._is_h264:
            return kind in H264_PICTURES or kind in H264_ENDS
        return kind in HEVC_PICTURES or kind in HEVC_ENDS


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
