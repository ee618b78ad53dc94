"""Which packets to decode for the frames of the times asked for. Numbers only: no file is read here.

Dims    N shown frames, K key frames, M times asked for.

Times become frames by one of three rules (`seek`), frames become groups: a seek point, the packets to feed from there,
the frames to keep of what comes out. A group is fed as far as its last frame needs, then the decoder is drained. Which
packets on the way are needed is for H.264 and HEVC told by `needed`, for AV1 by av1.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eagle_kernels.video.info import PacketIndex, VideoError, VideoInfo

TOLERANCE_SECONDS = 1e-6  # a time this little before a frame's own means that frame: times pass through decimal text
JOIN_PICTURES = 4  # a seek that skips no more than this many pictures is not worth restarting a decoder for
SEEKS = ("exact", "keyframe", "tolerance")
MAX_TOLERANCE = 0.5  # of the spacing: from there on neighbours could change places
TOP_LAYER = 6  # HEVC, TemporalId
H264_PARAMETER_SETS = (7, 8, 13, 15)  # nal_unit_type
HEVC_PARAMETER_SETS = (32, 33, 34)
HEVC_ACCESS = {2: "TSA", 3: "TSA", 4: "STSA", 5: "STSA"}


class Group(NamedTuple):
    """Packets `first_place` <= place < `end_place` are fed, and of what comes out `frames` are kept."""

    key: int  # number of the key frame to start at; -1: the beginning of the file
    first_place: int
    end_place: int
    frames: tuple[int, ...]  # ascending; one asked for twice stands here twice


def frame_indices(info: VideoInfo, timestamps_seconds: object) -> NDArray[np.int64]:
    """(M,) the number of the frame shown at each time, counted from 0 as in `info.frame_times_seconds`.

    Raises VideoError if a time lies outside [0, duration_seconds].
    """
    times_N = info.frame_times_seconds
    asked_M = np.asarray(timestamps_seconds, np.float64).reshape(-1)
    inside_M = (asked_M >= -TOLERANCE_SECONDS) & (asked_M <= info.duration_seconds + TOLERANCE_SECONDS)
    if not inside_M.all():  # NaN too
        asked = float(asked_M[~inside_M][0])
        raise VideoError(
            f"{info.path}: asked for the frame at {asked:.6f} s; it lasts from 0 to {info.duration_seconds:.6f} s."
        )
    at_M = np.searchsorted(times_N, asked_M, side="right") - 1
    next_M = np.minimum(at_M + 1, len(times_N) - 1)
    # Not where the time is a frame's own: even frames less than a microsecond apart are told apart then.
    is_own_M = (at_M >= 0) & (times_N[at_M] == asked_M)
    return np.where(~is_own_M & (times_N[next_M] - asked_M <= TOLERANCE_SECONDS), next_M, at_M)


def nearest_key_frames(info: VideoInfo, asked_M: NDArray[np.float64], exact_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """(M,) the shown key frame nearest to each time, a tie takes the earlier; `exact_M` where the file has none."""
    keys = info.key_frames
    if len(keys) == 0:
        return exact_M
    times = info.frame_times_seconds[keys]
    right_M = np.searchsorted(times, asked_M).clip(0, len(keys) - 1)
    left_M = np.maximum(right_M - 1, 0)
    is_left_M = np.abs(asked_M - times[left_M]) <= np.abs(times[right_M] - asked_M)
    return keys[np.where(is_left_M, left_M, right_M)]


def cheapest_frames(
    index: PacketIndex, info: VideoInfo, asked_M: NDArray[np.float64], exact_M: NDArray[np.int64], tolerance: float
) -> NDArray[np.int64]:
    """(M,) for each time, in the order asked, the frame within `tolerance` of the spacing that needs the fewest packets
    more than the frame before it did; a tie takes the nearest to the time, then the earlier.

    The spacing is the mean distance of the times asked for. The frame on show at the time itself is always in reach.
    """
    distinct = np.unique(asked_M)
    reach_seconds = tolerance * (distinct[-1] - distinct[0]) / (len(distinct) - 1) if len(distinct) > 1 else 0.0
    times_N = info.frame_times_seconds
    # 1e-9: of the bounds too, rounding must not shut out a frame that lies on them
    first_M = np.minimum(np.searchsorted(times_N, asked_M - reach_seconds - 1e-9), exact_M)
    end_M = np.maximum(np.searchsorted(times_N, asked_M + reach_seconds + 1e-9, side="right"), exact_M + 1)
    chosen, decoded_from, decoded_to = [], -1, -1  # what the frame before left decoded
    for asked, first, end in zip(asked_M.tolist(), first_M.tolist(), end_M.tolist()):
        key = np.searchsorted(index.key_pts_K, index.pts_N[first:end], side="right") - 1
        start, place = _start_places(index, key), index.place_N[first:end]
        goes_on = (start == decoded_from) & (place >= decoded_to)
        cost = place + 1 - np.where(goes_on, decoded_to, start)
        best = np.lexsort((np.abs(times_N[first:end] - asked), cost))[0]
        chosen.append(first + int(best))
        decoded_from, decoded_to = int(start[best]), int(place[best]) + 1
    return np.array(chosen, np.int64)


def choose_frames(
    index: PacketIndex, info: VideoInfo, timestamps_seconds: object, *, seek: str, tolerance: float
) -> NDArray[np.int64]:
    """(M,) the number of the frame to give for each time, by the rule `seek`.

    Raises VideoError if a time lies outside the file; ValueError if `seek` or `tolerance` is none of those known.
    """
    if seek not in SEEKS:
        raise ValueError(f"video.decode: seek is {seek!r}; needs one of {', '.join(map(repr, SEEKS))}.")
    if not 0 <= tolerance <= MAX_TOLERANCE:
        raise ValueError(f"video.decode: tolerance is {tolerance}; needs a share of the spacing, 0 to {MAX_TOLERANCE}.")
    exact_M = frame_indices(info, timestamps_seconds)
    asked_M = np.asarray(timestamps_seconds, np.float64).reshape(-1)
    if seek == "exact" or len(exact_M) == 0:
        return exact_M
    if seek == "keyframe":
        return nearest_key_frames(info, asked_M, exact_M)
    return cheapest_frames(index, info, asked_M, exact_M, tolerance)


def plan(index: PacketIndex, frames_M: NDArray[np.int64], *, join: bool = True) -> list[Group]:
    """The groups that give `frames_M` in that order.

    A new group begins where the next frame lies before the last one, or behind another seek point. With `join` it does
    not if the packets between would be so few (JOIN_PICTURES) that going on is cheaper; without, every group of
    pictures stands alone, as workers side by side want it. Ascending frames decode no packet twice, except those from
    a seek point to its leading pictures, which are stored behind it and shown before it.
    """
    if len(frames_M) == 0:
        return []
    key_M = np.searchsorted(index.key_pts_K, index.pts_N[frames_M], side="right") - 1
    start_M = _start_places(index, key_M)
    groups: list[Group] = []
    frames: list[int] = []  # of the last group
    key_at = first_place = end_place = last_key = 0
    for frame, key, start, place in zip(
        frames_M.tolist(), key_M.tolist(), start_M.tolist(), index.place_N[frames_M].tolist()
    ):
        near = key == last_key or (join and start - end_place <= JOIN_PICTURES)
        if frames and not (near and frame >= frames[-1]):
            groups.append(Group(key_at, first_place, end_place, tuple(frames)))
            frames = []
        if not frames:
            key_at, first_place, end_place = key, start, 0
        frames.append(frame)
        end_place, last_key = max(end_place, place + 1), key
    return [*groups, Group(key_at, first_place, end_place, tuple(frames))]


def _start_places(index: PacketIndex, key_M: NDArray[np.int64]) -> NDArray[np.int64]:
    """(M,) the place that decoding starts at."""
    if len(index.key_place_K) == 0:
        return np.zeros(len(key_M), np.int64)
    return np.where(key_M >= 0, index.key_place_K[np.maximum(key_M, 0)], 0).astype(np.int64)


class NalFormat(NamedTuple):
    """How a stream's packets hold its pictures, from the decoder configuration record."""

    codec: str  # "h264" or "hevc"
    length_bytes: int  # before every NAL unit; 0: start codes (ITU-T H.264, annex B)
    top_layer: int  # the highest temporal layer there may be; H.264: 0


def nal_format(codec: str, extradata: bytes | None) -> NalFormat | None:
    """None where it is not known how the packets hold pictures.

    Source: ISO/IEC 14496-15, 5.3.3.1 (avcC) and 8.3.3.1 (hvcC).
    """
    record = extradata or b""
    top_layer = TOP_LAYER if codec == "hevc" else 0
    if codec in ("h264", "hevc") and (record[:3] == b"\0\0\1" or record[:4] == b"\0\0\0\1"):
        return NalFormat(codec, 0, top_layer)
    if codec == "h264" and len(record) >= 7 and record[0] == 1:
        return NalFormat(codec, (record[4] & 3) + 1, top_layer)
    if codec == "hevc" and len(record) >= 23 and record[0] == 1:
        num_layers = record[21] >> 3 & 7  # 0: unknown
        return NalFormat(codec, (record[21] & 3) + 1, num_layers - 1 if num_layers else top_layer)
    return None


def needed(
    packets: Sequence[bytes | memoryview], is_wanted: Sequence[bool], nal: NalFormat, *, is_last: bool
) -> list[bool]:
    """Whether the decoder needs each packet (one picture) for the wanted ones. is_last: none behind these is wanted.

    H.264: not needed is a picture that none refers to. HEVC: pictures refer to lower temporal layers, and in their own
    to those not marked as sub-layer non-reference; and none of a layer, or higher, refers back across a picture that
    gives access to it (TSA; STSA: none of that very layer). What the wanted ones may refer to by that, is needed; and a
    packet that is cut short, or holds what later ones share.

    Source: ITU-T H.264, 7.4.1; ITU-T H.265, 7.4.2.2 and 8.3.2.
    """
    # Each layer counts twice: first its reference pictures, then the others, to which only higher layers refer.
    rank_behind = -1 if is_last else 2 * nal.top_layer  # the highest that pictures behind may refer to
    are_needed = []
    for packet, wanted in zip(reversed(packets), reversed(is_wanted), strict=True):
        picture = _picture(bytes(packet), nal)
        if picture is None:
            are_needed.append(True)
            rank_behind = 2 * nal.top_layer if wanted else rank_behind
            continue
        layer, is_reference, access = picture
        are_needed.append(wanted or 2 * layer + (not is_reference) <= rank_behind)
        if wanted:
            rank_behind = max(rank_behind, 2 * layer)
        if access == "TSA" or (access == "STSA" and rank_behind == 2 * layer):
            rank_behind = min(rank_behind, 2 * layer - 1)
    return are_needed[::-1]


def _picture(packet: bytes, nal: NalFormat) -> tuple[int, bool, str] | None:
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


def nal_starts(packet: bytes, length_bytes: int) -> list[int]:
    """Where every NAL unit begins, behind its length or start code; the packet's end, last, where the lengths do not
    add up."""
    starts = []
    if length_bytes == 0:
        at = packet.find(b"\0\0\1")
        while at >= 0:
            starts.append(at + 3)
            at = packet.find(b"\0\0\1", at + 3)
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
