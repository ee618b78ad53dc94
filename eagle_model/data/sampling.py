"""How much of a sample's images and videos fits beside its text: Automatic Degradation Sampling (ADS). Numbers only.

    film = np.arange(1200) / 2                                  # frame times of ten minutes at 2 fps
    visual = plan(SamplingConfig(context_tokens=32_768), tile_px=448, tokens_per_tile=256,
                  images=[(640, 480)], videos=[film], text_tokens=lambda times: 500 + 20 * len(times[0]))
    len(visual.timestamps_seconds[0]), visual.grids             # 115 frames; Grid(1, 1)

The text is kept whole. What remains of the context goes first to video frames (one tile each), as many as fit with
every image at one tile, then to tiles: the most tiles an image that still fit.

Source: arXiv:2504.15271, the section on ADS. The public release holds no code for it, so these are our reading:
what a frame's label costs is counted exactly, several videos share the frames as `split_frames` says, and N_min, for
which the paper gives no number, is `min_frames`, or all of a video that has fewer to give.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eagle_model.data.frame_times import EvenTimes, FrameTimes
from eagle_model.data.tiling import Grid, TilingRule, choose_grid

TILE_STEPS = (12, 8, 6, 4, 2, 1)  # the paper's values of t

Times = tuple[tuple[float, ...], ...]  # seconds, one tuple a video


class DoesNotFit(ValueError):
    """The text, one tile an image and the fewest frames of each video are together more than the context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How many frames and tiles a sample may take."""

    context_tokens: int = 32_768  # a sample's, text and tiles; a packed row is as long
    max_tiles: int = 12  # an image, thumbnail not counted
    frames_per_second: float = 2.0  # no video is sampled faster than this
    min_frames: int = 8  # a video
    max_frames: int = 512  # a video
    seek: Literal["exact", "keyframe", "tolerance"] = (
        "exact"  # keyframe: these alone, cheap; tolerance: cheap ones near
    )
    tolerance: float = 0.25  # of the mean distance of a video's frames, 0 to 0.5: how far one may be off its even time
    ads: bool = True  # false, for comparison: all frames and tiles of these limits, and what does not fit is refused
    tiling: TilingRule = "iap"  # closest_ratio, for comparison: the grid of the nearest shape (tiling.choose_grid)
    frames: Literal["rate", "uniform"] = "rate"  # uniform, for comparison: max_frames of each video, however short

    def __post_init__(self) -> None:
        if self.seek not in ("exact", "keyframe", "tolerance"):
            raise ValueError(f"SamplingConfig: seek is {self.seek!r}; needs 'exact', 'keyframe' or 'tolerance'.")
        for name, known in (("tiling", ("iap", "closest_ratio")), ("frames", ("rate", "uniform"))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"SamplingConfig: {name} is {getattr(self, name)!r}; needs {known[0]!r} or {known[1]!r}."
                )
        if not 0 <= self.tolerance <= 0.5:
            raise ValueError(f"SamplingConfig: tolerance is {self.tolerance}; needs a share of the spacing, 0 to 0.5.")
        for name in ("context_tokens", "max_tiles", "min_frames", "max_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"SamplingConfig: {name} is {getattr(self, name)}; needs at least 1.")
        if not 0 < self.frames_per_second < math.inf:
            raise ValueError(f"SamplingConfig: frames_per_second is {self.frames_per_second}; needs a number above 0.")
        if self.min_frames > self.max_frames:
            raise ValueError(
                f"SamplingConfig: min_frames is {self.min_frames} and max_frames {self.max_frames}. "
                "Lower min_frames or raise max_frames."
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class VisualPlan:
    """What is shown of a sample's images and videos, and how many tokens that takes."""

    grids: tuple[Grid, ...]  # one an image
    timestamps_seconds: Times  # the frames to decode, one tile each
    max_tiles: int  # t of the paper: what the grids were chosen with
    num_visual_tokens: int
    num_text_tokens: int  # <img>, </img> and frame labels included
    is_reduced: bool = False  # fewer frames or tiles than the config allows, because more did not fit the context
    most_frames: int = 0  # that the config allows, were there room for them

    @property
    def num_tokens(self) -> int:
        return self.num_visual_tokens + self.num_text_tokens


def plan(
    config: SamplingConfig,
    *,
    tile_px: int,
    tokens_per_tile: int,
    images: Sequence[tuple[int, int]],
    image_tiles: Sequence[int | None] | None = None,
    videos: Sequence[FrameTimes],
    are_documents: Sequence[bool] | None = None,
    choose: Sequence[Callable[[NDArray], NDArray] | None] | None = None,
    text_tokens: Callable[[Sequence[NDArray]], int],
) -> VisualPlan:
    """Frames of each video and tile grid of each image, such that the whole sample fits the context.

    1. Temporal, images at one tile: the largest number of frames n, all videos together, with which the sample fits.
    2. Tiling, n as found: the largest t of 12, 8, 6, 4, 2, 1 (and config.max_tiles; none above it) with which it
       still fits.

    Args:    tile_px, tokens_per_tile: the side of a tile, and what the language model pays for one.
             images: (width_px, height_px) of each.
             image_tiles: the most tiles of each, where an image has a limit of its own; None where not.
             videos: frame times of each clip, seconds, ascending; of a document, the numbers of its pages.
             are_documents: whether each is a document, of which every page counts, whatever frames_per_second is.
             choose: for each video, the frames to take for those sampled, by their times: as many, ascending, none
             twice. None: those.
             text_tokens: the sample's exact number of non-visual tokens, <img>, </img> and frame labels included,
             given the times sampled from each video. Called once if all frames fit, else about log2(n) times.
    With config.ads false all frames and tiles that the limits allow are taken.
    Returns: VisualPlan with num_tokens <= config.context_tokens.
    Raises:  DoesNotFit, with all the numbers, if not even the fewest frames fit.
             ValueError if a video has no frames or its times do not ascend, or an image has a side below 1 px.
    """
    for k, frame_times in enumerate(videos, 1):
        _check_times(k, frame_times)
    documents = are_documents or [False] * len(videos)
    most = [
        min(len(times), config.max_frames) if is_document else max_frames_of(times, config)
        for times, is_document in zip(videos, documents, strict=True)
    ]
    least = [min(config.min_frames, n) for n in most] if config.ads else most

    @cache
    def sample(num_frames: int) -> tuple[tuple[NDArray, ...], int]:
        """The times of num_frames frames, and the tokens of all text beside them."""
        shares = [num_frames] if len(most) == 1 else split_frames(num_frames, most, least)
        times = tuple(evenly(frame_times, n) for frame_times, n in zip(videos, shares))
        if choose is not None:
            times = tuple(take(sampled) if take else sampled for take, sampled in zip(choose, times, strict=True))
        return times, text_tokens(times)

    num_frames = _most_that_fit(
        config,
        tokens_per_tile=tokens_per_tile,
        num_images=len(images),
        least=sum(least),
        most=sum(most),
        text_tokens=lambda n: sample(n)[1],
    )
    times, num_text_tokens = sample(num_frames)

    tile_limits = [limit or config.max_tiles for limit in image_tiles or [None] * len(images)]
    for max_tiles in tile_steps(config):
        grids = tuple(
            choose_grid(width, height, tile_px=tile_px, max_tiles=min(max_tiles, limit), rule=config.tiling)
            for (width, height), limit in zip(images, tile_limits, strict=True)
        )
        num_visual_tokens = tokens_per_tile * (num_frames + sum(grid.num_tiles for grid in grids))
        if num_visual_tokens + num_text_tokens <= config.context_tokens:
            break  # at the latest at 1, which num_frames was found with
    else:  # without ADS alone
        raise DoesNotFit(
            f"the sample needs {num_visual_tokens + num_text_tokens} tokens with all of its tiles and context_tokens "
            f"is {config.context_tokens}, without ADS. To fit it, turn ads on, raise context_tokens or lower max_tiles."
        )
    is_reduced = num_frames < sum(most) or (bool(images) and max_tiles < config.max_tiles)
    return VisualPlan(
        grids=grids,
        timestamps_seconds=tuple(tuple(map(float, sampled.tolist())) for sampled in times),
        max_tiles=max_tiles,
        num_visual_tokens=num_visual_tokens,
        num_text_tokens=num_text_tokens,
        is_reduced=is_reduced,
        most_frames=sum(most),
    )


def tile_steps(config: SamplingConfig) -> list[int]:
    """The values of t that are tried, the largest first."""
    lower = [t for t in TILE_STEPS if t < config.max_tiles] if config.ads else []
    return [config.max_tiles, *lower]


def _most_that_fit(
    config: SamplingConfig,
    *,
    tokens_per_tile: int,
    num_images: int,
    least: int,
    most: int,
    text_tokens: Callable[[int], int],
) -> int:
    """The largest number of frames, from least to most, with which text, images at one tile and frames fit.

    A label's length varies with its time, so the total is no straight line, nor even sure to rise with every frame.
    The search goes down from the largest number that would fit without any text. While the excess is many frames'
    worth, it leaves out half of them at once, else one. So what it returns was counted and fits, `least` is never
    missed, and no larger number fits unless some run of frames costs twice what frames cost on average.
    """

    def total(num_frames: int) -> int:
        return tokens_per_tile * (num_images + num_frames) + text_tokens(num_frames)

    n = min(most, config.context_tokens // tokens_per_tile - num_images)
    while n >= least:
        excess = total(n) - config.context_tokens
        if excess <= 0:
            return n
        tokens_per_frame = (total(n) - total(least)) / (n - least) if n > least else 0
        n -= max(1, int(excess / max(tokens_per_frame, tokens_per_tile) / 2))

    parts = [f"{text_tokens(least)} of text"]
    ways = ["raise context_tokens", "shorten the text"]
    if num_images:
        parts.append(f"{num_images} images x {tokens_per_tile}")
        ways.append("give fewer images")
    if least:
        parts.append(f"{least} frames x {tokens_per_tile} (min_frames={config.min_frames} a video)")
        ways.append("lower min_frames")
    raise DoesNotFit(
        f"the sample needs at least {total(least)} tokens and context_tokens is {config.context_tokens}: "
        f"{' + '.join(parts)}. To fit it, {', '.join(ways[:-1])} or {ways[-1]}."
    )


def _check_times(number: int, frame_times: FrameTimes) -> None:
    if isinstance(frame_times, EvenTimes):
        return
    if frame_times.ndim != 1 or len(frame_times) == 0:
        raise ValueError(
            f"video {number}: its frame times have shape {frame_times.shape}; needs (frames,), at least one."
        )
    if not np.isfinite(frame_times).all():
        raise ValueError(
            f"video {number}: frame times hold {frame_times[~np.isfinite(frame_times)][0]}; needs seconds."
        )
    falls = np.flatnonzero(np.diff(frame_times) < 0)
    if len(falls):
        k = int(falls[0])
        raise ValueError(
            f"video {number}: frame {k + 1} is at {frame_times[k + 1]} s, before frame {k} at {frame_times[k]} s. "
            "Sort its frame times."
        )


def max_frames_of(frame_times: FrameTimes, config: SamplingConfig) -> int:
    """N_max of a clip: min(its frames, floor(frames_per_second * its duration), max_frames), but at least 1.

    With config.frames "uniform" its duration does not count.

    The last frame is shown for as long as the mean of the others, so 300 frames at 30 fps last 10 seconds.
    """
    num_frames = len(frame_times)
    if num_frames == 1:
        return 1
    if config.frames == "uniform":
        return min(num_frames, config.max_frames)
    duration_seconds = float(frame_times[-1] - frame_times[0]) * num_frames / (num_frames - 1)
    # Containers round times, to milliseconds at worst: a hundredth of a frame keeps 9.9995 s at 2 fps at 20 frames.
    at_rate = int(config.frames_per_second * duration_seconds + 0.01)
    return max(1, min(num_frames, at_rate, config.max_frames))


def split_frames(num_frames: int, most: Sequence[int], least: Sequence[int]) -> list[int]:
    """num_frames shared among videos in proportion to `most`, none below its `least`.

    Videos whose share would be below `least` get `least`, the others share the rest; whole frames by largest
    remainder, equal remainders to the earlier video. So a longer video never gets less than a shorter one.
    Needs sum(least) <= num_frames <= sum(most); then no share is above `most`.
    """
    shares = list(least)
    sharing, left = list(range(len(most))), num_frames
    while True:
        total = sum(most[i] for i in sharing)
        enough = [i for i in sharing if most[i] * left >= least[i] * total]
        if enough == sharing:
            break
        left -= sum(least[i] for i in sharing if i not in enough)
        sharing = enough
    for i in sharing:
        shares[i] = most[i] * left // total
    missing = num_frames - sum(shares)
    for i in sorted(sharing, key=lambda i: -(most[i] * left % total))[:missing]:  # stable: the earlier of equals
        shares[i] += 1
    return shares


def sample_times(frame_times: FrameTimes, num_frames: int) -> tuple[float, ...]:
    """num_frames <= len(frame_times) of a clip's frame times, evenly spaced from its first to its last frame.

    Each even time takes the nearest frame, of two equally near (to a microsecond) the earlier. No frame is taken
    twice: where several even times meet one frame, its neighbours follow. Ascending.
    """
    return tuple(map(float, evenly(frame_times, num_frames).tolist()))


def evenly(frame_times: FrameTimes, num_frames: int) -> NDArray:
    """`sample_times` as an array."""
    order = np.arange(num_frames)
    if num_frames == 1:
        return frame_times[order]
    targets = np.linspace(frame_times[0], frame_times[-1], num_frames)
    after = frame_times.searchsorted(targets).clip(1, len(frame_times) - 1)
    before = after - 1
    is_after = frame_times[after] - targets < targets - frame_times[before] - 1e-6
    nearest = np.where(is_after, after, before)
    # Strictly ascending: each at least one past the one before, and far enough from the end for those to come.
    chosen = np.maximum.accumulate(nearest - order) + order
    chosen = np.minimum(chosen, len(frame_times) - num_frames + order)
    return frame_times[chosen]
