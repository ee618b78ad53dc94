"""Where a video cuts from one shot to the next, and shots merged into pieces of a wanted length.

    cuts = find_cuts(open_video(path), frames_per_second=4.0, threshold=0.35)      # [12.25, 31.5]
    pieces = merged(cuts, duration_seconds=95.0, min_seconds=10.0, max_seconds=120.0, max_pieces=64)

A cut is where the histogram of colours changes much, and much more than around it: a pan or a flicker changes every
frame a little. Frames are looked at a few a second, because pieces last 10 s and more; a cut is known to 1 / rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from eagle_kernels.video import Video

_LEVELS = 6  # of each colour: 216 bins
_PIXELS = 64  # looked at along the longer side
_AROUND = 4  # frames before and after that tell what is usual here
_TIMES_USUAL = 2.5  # a cut changes more than so many times as much as the frames around it


def find_cuts(video: Video, *, frames_per_second: float, threshold: float) -> list[float]:
    """Seconds at which a new shot begins, ascending; 0 is none. threshold: of 1, the share of colours that changes.

    Raises: VideoError.
    """
    times = np.arange(0.0, video.info.duration_seconds, 1 / frames_per_second)
    histograms, shown = [], []
    for seconds, histogram in video.pictures(times, lambda picture, _: colours(picture.rgb_YX3())):
        histograms.append(histogram)
        shown.append(seconds)
    changes = [0.0, *(float(np.abs(a - b).sum() / 2) for a, b in pairwise(histograms))]
    return [shown[i] for i in cut_places(changes, threshold)]


def cut_places(changes: Sequence[float], threshold: float) -> list[int]:
    """The frames, by number, whose change from the one before is a cut's."""
    found = []
    for i in range(1, len(changes)):
        around = [*changes[max(1, i - _AROUND) : i], *changes[i + 1 : i + 1 + _AROUND]]
        usual = float(np.median(around)) if around else 0.0
        if changes[i] >= threshold and changes[i] > _TIMES_USUAL * usual:
            found.append(i)
    return found


def colours(rgb_YX3: torch.Tensor) -> np.ndarray:
    """(216,) float32: the shares of a picture's colours."""
    step = max(1, max(rgb_YX3.shape[:2]) // _PIXELS)
    levels = rgb_YX3[::step, ::step].to(torch.int64) * _LEVELS // 256
    bins = (levels[..., 0] * _LEVELS + levels[..., 1]) * _LEVELS + levels[..., 2]
    counts = torch.bincount(bins.flatten(), minlength=_LEVELS**3)
    return (counts / counts.sum()).numpy().astype(np.float32)


def merged(
    cuts: Sequence[float], *, duration_seconds: float, min_seconds: float, max_seconds: float, max_pieces: int
) -> list[tuple[float, float]]:
    """Pieces that tile the video, each `min_seconds` to `max_seconds` long where the video allows, begun at cuts.

    A shot longer than `max_seconds` is divided evenly. Where more than `max_pieces` come out, the wanted length is
    raised until they do not.
    """
    least = max(min_seconds, min(duration_seconds / max_pieces, duration_seconds))
    most = max(max_seconds, 2 * least)
    edges = [0.0]
    for cut in (*(c for c in cuts if c < duration_seconds), duration_seconds):
        is_last = cut == duration_seconds
        if not is_last and (cut - edges[-1] < least or duration_seconds - cut < least):
            continue
        num = int(np.ceil((cut - edges[-1]) / most - 1e-9)) or 1
        start, length = edges[-1], (cut - edges[-1]) / num
        edges += [start + length * (i + 1) for i in range(num - 1)] + [cut]
    return list(pairwise(edges))
