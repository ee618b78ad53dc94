"""Which frames the times mean, and which packets to decode for them. Numbers only: no file is read here.

    frames_M = choose_frames(index, info, [0.5, 1.0], seek="exact", tolerance=0.0)      # [12, 25] at 25 a second
    plan(index, frames_M)                     # [Group(key=0, first_place=0, end_place=13, frames=(12,)), ...]

Dims    N shown frames, K key frames, M times asked for.

Times become frames by one of three rules (`seek`), frames become groups: a seek point, the packets to feed from there,
the frames to keep of what comes out. A group is fed as far as its last frame needs, then the decoder is drained. Which
packets on the way may be left out is told by the packets themselves (bitstream/).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eagle_kernels.video.info import PacketIndex, VideoError, VideoInfo

TOLERANCE_SECONDS = 1e-6  # a time this little before a frame's own means that frame: times pass through decimal text
JOIN_PICTURES = 4  # pictures that a seek must skip more of: restarting a decoder costs about as much
SEEKS = ("exact", "keyframe", "tolerance")
MAX_TOLERANCE = 0.5  # of the spacing: beyond it neighbours could change places


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

    The spacing is the mean distance of the times asked for. The frame on show at the time itself is always in reach,
    and none is beyond the middle between it and those of the other times: times of different frames keep different
    frames, in the same order.
    """
    distinct = np.unique(asked_M)
    reach_seconds = tolerance * (distinct[-1] - distinct[0]) / (len(distinct) - 1) if len(distinct) > 1 else 0.0
    times_N = info.frame_times_seconds
    # 1e-9: of the bounds too, rounding must not shut out a frame that lies on them
    first_M = np.minimum(np.searchsorted(times_N, asked_M - reach_seconds - 1e-9), exact_M)
    end_M = np.maximum(np.searchsorted(times_N, asked_M + reach_seconds + 1e-9, side="right"), exact_M + 1)
    exact, at_M = np.unique(exact_M, return_inverse=True)
    middle = (exact[:-1] + exact[1:]) // 2 + 1  # where the reach of the next one begins
    first_M = np.maximum(first_M, np.concatenate([[0], middle])[at_M])
    end_M = np.minimum(end_M, np.concatenate([middle, [len(times_N)]])[at_M])
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
        raise ValueError(f"video.choose: seek is {seek!r}; needs one of {', '.join(map(repr, SEEKS))}.")
    if not (isinstance(tolerance, int | float) and 0 <= tolerance <= MAX_TOLERANCE):
        raise ValueError(
            f"video.choose: tolerance is {tolerance!r}; needs a share of the spacing, 0 to {MAX_TOLERANCE}."
        )
    exact_M = frame_indices(info, timestamps_seconds)
    asked_M = np.asarray(timestamps_seconds, np.float64).reshape(-1)
    if seek == "exact" or len(exact_M) == 0:
        return exact_M
    if seek == "keyframe":
        return nearest_key_frames(info, asked_M, exact_M)
    return cheapest_frames(index, info, asked_M, exact_M, tolerance)


def plan(index: PacketIndex, frames_M: NDArray[np.int64], *, join: bool = True) -> list[Group]:
    """The groups that give `frames_M` in that order.

    A new group begins where the next frame lies before the last one, or after another seek point. With `join` it does
    not if the packets between would be so few (JOIN_PICTURES) that going on is cheaper; without, every group of
    pictures stands alone, as workers side by side want it. Ascending frames decode no packet twice, except those from
    a seek point to its leading pictures, which are stored after it and shown before it.
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
