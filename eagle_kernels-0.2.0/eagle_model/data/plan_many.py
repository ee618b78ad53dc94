"""The plans of many samples at once, as numbers: what `sampling.plan` says of each, without a sample's text or media.

    numbers = plan_many(config, frame_tokens, facts)
    numbers.tokens[7], numbers.tiles[7], numbers.refused

A schedule needs only how long samples are. Images are planned in arrays of a thousand, and so are samples of one video
with evenly spaced frames; the few that show several videos are planned one after the other. `sampling.plan` is the
rule: tests hold this file to it.

Dims    N samples, M images of all of them, B samples of one video that are planned together, F frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eagle_model.data import sampling
from eagle_model.data.clips import Clip
from eagle_model.data.decode_cost import IMAGE_SECONDS_A_PX, TILE_SECONDS, clip_seconds
from eagle_model.data.frame_times import EvenTimes
from eagle_model.data.frame_tokens import FrameTokens
from eagle_model.data.processor import ProcessorConfig
from eagle_model.data.sampling import DoesNotFit, SamplingConfig, max_frames_of, tile_steps
from eagle_model.data.tiling import choose_grids, num_tiles_of

_TOGETHER = 64  # videos: their times stay in the cache


@dataclass(frozen=True, eq=False, kw_only=True)
class Facts:
    """What is known of N samples. Images are listed sample after sample."""

    base_tokens: NDArray[np.int64]  # (N,) FrameTokens.base
    num_images: NDArray[np.int64]  # (N,)
    image_sizes: NDArray[np.int64]  # (M, 2) width and height, pixels
    image_limits: NDArray[np.int64]  # (M,) the most tiles of an image that has a limit of its own; 0: it has none
    clips: Mapping[int, Sequence[Clip]]  # of each sample that shows videos or documents


class Numbers(NamedTuple):
    tokens: NDArray[np.int64]  # (N,)
    tiles: NDArray[np.int64]  # (N,)
    decode_seconds: NDArray[np.float32]  # (N,)
    refused: dict[int, DoesNotFit]  # of samples that do not fit; their numbers are 0


def plan_many(config: ProcessorConfig, frame_tokens: FrameTokens, facts: Facts) -> Numbers:
    """tokens, tiles and decode_seconds of each sample, as `Processor.plan_known` plans it with config.sampling."""
    per_tile, limits = config.tokens_per_tile, config.sampling
    text_N, frames_N = facts.base_tokens.copy(), np.zeros(len(facts.base_tokens), np.int64)
    refused: dict[int, DoesNotFit] = {}
    fits_N = text_N + per_tile * facts.num_images <= limits.context_tokens
    first_image_N = np.append(0, facts.num_images.cumsum())

    def alone(i: int) -> sampling.Times | None:
        """The times of the frames of sample i; None, and why in `refused`, where it does not fit."""
        try:
            return _times_of(config, frame_tokens, facts, i, slice(first_image_N[i], first_image_N[i + 1]))
        except DoesNotFit as error:
            refused[i] = error
            return None

    together: list[int] = []
    frames_of: dict[int, list[int]] = {}  # of each clip of the others
    for i, clips in facts.clips.items():
        if len(clips) == 1 and clips[0].choose is None and isinstance(clips[0].frame_times_seconds, EvenTimes):
            together.append(i)
            continue
        times = alone(i)
        fits_N[i] = times is not None
        if times is not None:
            text_N[i] += sum(frame_tokens.more(np.array(t), clip.duration_seconds) for t, clip in zip(times, clips))
            frames_of[i] = list(map(len, times))
            frames_N[i] = sum(frames_of[i])
    together.sort(key=lambda i: len(facts.clips[i][0].frame_times_seconds))  # of about equal length: little is masked
    for begin in range(0, len(together), _TOGETHER):
        ids = np.array(together[begin : begin + _TOGETHER])
        clips_B = [facts.clips[i][0] for i in ids.tolist()]
        found = _most_frames(limits, frame_tokens, clips_B, text_N[ids], facts.num_images[ids], per_tile)
        frames_N[ids], text_N[ids] = found
        fits_N[ids] = frames_N[ids] > 0

    tiles_N = _image_tiles(config, facts, fits_N, limits.context_tokens - text_N - per_tile * frames_N)
    fits_N &= tiles_N >= 0
    for i in np.flatnonzero(~fits_N).tolist():
        alone(i)  # says why
    pixels_N = _sums(facts.image_sizes[:, 0] * facts.image_sizes[:, 1], facts.num_images)
    seconds_N = IMAGE_SECONDS_A_PX * pixels_N + TILE_SECONDS * tiles_N
    for i, clips in facts.clips.items():
        for clip, num in zip(clips, frames_of.get(i, [int(frames_N[i])])):
            seconds_N[i] += clip_seconds(clip, num)
    tokens_N = text_N + per_tile * (tiles_N + frames_N)
    tiles_N = tiles_N + frames_N
    for array in (tokens_N, tiles_N, seconds_N):
        array[~fits_N] = 0
    return Numbers(tokens_N, tiles_N, seconds_N.astype(np.float32), refused)


def _times_of(
    config: ProcessorConfig, frame_tokens: FrameTokens, facts: Facts, i: int, images: slice
) -> sampling.Times:
    """The times of the frames of sample i, planned by itself. images: where its own are listed."""
    clips = facts.clips.get(i, ())
    base, seconds = int(facts.base_tokens[i]), [clip.duration_seconds for clip in clips]
    return sampling.plan(
        config.sampling,
        tile_px=config.tile_px,
        tokens_per_tile=config.tokens_per_tile,
        images=[(width, height) for width, height in facts.image_sizes[images].tolist()],
        image_tiles=[limit or None for limit in facts.image_limits[images].tolist()],
        videos=[clip.frame_times_seconds for clip in clips],
        are_documents=[s is None for s in seconds],
        choose=[clip.choose for clip in clips],
        text_tokens=lambda times: base + sum(map(frame_tokens.more, times, seconds)),
    ).timestamps_seconds


def _most_frames(
    config: SamplingConfig,
    frame_tokens: FrameTokens,
    clips: Sequence[Clip],
    base_B: NDArray[np.int64],
    num_images_B: NDArray[np.int64],
    per_tile: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The frames that each sample of one video shows, 0 where it does not fit, and the tokens of its text with them.

    The search of sampling._most_that_fit, all samples side by side.
    """
    times = _Times(clips)
    seconds_B = np.array([clip.duration_seconds for clip in clips], np.float64)
    most_B = np.array([max_frames_of(clip.frame_times_seconds, config) for clip in clips])
    least_B = np.minimum(most_B, config.min_frames) if config.ads else most_B

    def text(at: NDArray[np.int64], num: NDArray[np.int64]) -> NDArray[np.int64]:
        return base_B[at] + frame_tokens.more_of_videos(times.evenly(at, num), num, seconds_B[at])

    frames_B, text_B = np.zeros_like(most_B), base_B.copy()
    n_B = np.minimum(most_B, config.context_tokens // per_tile - num_images_B)
    active = np.flatnonzero(n_B >= least_B)
    total_least_B = np.full(len(clips), -1)
    while len(active):
        n = n_B[active]
        text_n = text(active, n)
        total = per_tile * (num_images_B[active] + n) + text_n
        excess = total - config.context_tokens
        fits = excess <= 0
        frames_B[active[fits]], text_B[active[fits]] = n[fits], text_n[fits]
        active, n, total, excess = active[~fits], n[~fits], total[~fits], excess[~fits]
        if not len(active):
            break
        unknown = active[total_least_B[active] < 0]
        if len(unknown):
            least = least_B[unknown]
            total_least_B[unknown] = per_tile * (num_images_B[unknown] + least) + text(unknown, least)
        above = n - least_B[active]
        per_frame = np.where(above > 0, (total - total_least_B[active]) / np.maximum(above, 1), 0)
        n_B[active] = n - np.maximum(1, (excess / np.maximum(per_frame, per_tile) / 2).astype(np.int64))
        active = active[n_B[active] >= least_B[active]]
    return frames_B, text_B


class _Times:
    """Evenly spaced frame times of B clips: `sampling.evenly` of all of them at once."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        every = [clip.frame_times_seconds for clip in clips]
        even = [times for times in every if isinstance(times, EvenTimes)]
        self._num = np.array([times.num for times in even])[:, None]
        self._first = np.array([times.first for times in even])[:, None]
        self._step = np.array([times.step_ticks for times in even])[:, None]
        self._tick = np.array([times.tick_seconds for times in even])[:, None]

    def evenly(self, at: NDArray[np.int64], num_B: NDArray[np.int64]) -> NDArray[np.float64]:
        """(B, F): the times of num_B[b] frames of clip at[b], evenly spread; those after them mean nothing."""
        num, first, step, tick = self._num[at], self._first[at], self._step[at], self._tick[at]
        order_F = np.arange(int(num_B.max()))
        n_B1 = num_B[:, None]

        def seconds(frames: NDArray[np.int64]) -> NDArray[np.float64]:
            return (frames + first) * step * tick

        start, stop = seconds(np.zeros_like(num)), seconds(num - 1)
        targets = order_F * ((stop - start) / np.maximum(n_B1 - 1, 1)) + start  # as np.linspace
        np.copyto(targets, stop, where=(order_F >= n_B1 - 1) & (n_B1 > 1))
        after = np.ceil(targets / np.maximum(step * tick, 1e-300)).astype(np.int64) - first
        after += seconds(after) < targets  # as EvenTimes.searchsorted
        after -= seconds(after - 1) >= targets
        after = after.clip(1, np.maximum(num - 1, 1))
        is_after = seconds(after) - targets < targets - seconds(after - 1) - 1e-6
        nearest = after - ~is_after
        chosen = np.maximum.accumulate(nearest - order_F, axis=1) + order_F
        chosen = np.minimum(chosen, np.minimum(num - n_B1 + order_F, num - 1))
        return seconds(chosen)


def _image_tiles(
    config: ProcessorConfig, facts: Facts, fits_N: NDArray[np.bool_], room_N: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Tiles of all images of each sample, with the largest t for which they fit into its room, tokens; -1 for none."""
    tiles_N = np.where(facts.num_images > 0, -1, 0)
    sample_M = np.repeat(np.arange(len(tiles_N)), facts.num_images)
    left_N = fits_N & (facts.num_images > 0)
    for max_tiles in tile_steps(config.sampling):
        images = np.flatnonzero(left_N[sample_M])
        limit = facts.image_limits[images]
        most = np.minimum(np.where(limit > 0, limit, max_tiles), max_tiles)
        found = np.empty(len(images), np.int64)
        for t in np.unique(most).tolist():
            sizes = facts.image_sizes[images[most == t]]
            found[most == t] = num_tiles_of(choose_grids(sizes, t, tile_px=config.tile_px, rule=config.sampling.tiling))
        sum_N = np.bincount(sample_M[images], weights=found, minlength=len(tiles_N)).astype(np.int64)
        is_done = left_N & (sum_N * config.tokens_per_tile <= room_N)
        tiles_N[is_done] = sum_N[is_done]
        left_N &= ~is_done
    return tiles_N


def _sums(values_M: NDArray[np.int64], num_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sum over the images of each sample."""
    sample_M = np.repeat(np.arange(len(num_N)), num_N)
    return np.bincount(sample_M, weights=values_M.astype(np.float64), minlength=len(num_N)).astype(np.float64)
