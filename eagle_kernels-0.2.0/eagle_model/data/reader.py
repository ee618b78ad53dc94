"""Reading planned samples of a row: their tokens, and the pixels of the tiles that this rank wants.

    part = read_part(processor, [Wanted(0, plan, (0, plan.num_tiles))], ReadOptions(), stop=stop)
    part.samples[0].tokens, part.patches_IPK, part.failed       # failed: {place: DataError}

It runs where the loader's threads are, or in a worker process (workers.py).

Dims    I tiles, P patches a tile, K = 3 * patch_px**2.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from eagle_model.data.chat import TokenizedSample
from eagle_model.data.executor import Backend, VideoTiles, deferred_to
from eagle_model.data.processor import PIXELS_DTYPE, Processor, SamplePlan
from eagle_model.data.proxies import Proxies
from eagle_model.data.sample import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """As Processor.load_sample has them; none but proxies changes a bit of what can be read."""

    num_decode_workers: int = 1
    index_folder: str | None = None
    video_time_limit_seconds: float | None = None
    proxies: Proxies | None = None
    packets_for: Backend | None = None  # whose packets are read where this code of DALI can decode them


class Wanted(NamedTuple):
    """One sample of a row."""

    place: int  # in the row
    plan: SamplePlan
    tiles: tuple[int, int]  # first and end of those whose pixels are wanted
    jpeg_seed: int | None = None  # of augmentation; None: none


class Read(NamedTuple):
    place: int
    tokens: TokenizedSample
    tiles: tuple[int, int]  # first and end of its own in the part's patches_IPK


class Part(NamedTuple):
    samples: list[Read]  # that could be read, in the order asked for
    patches_IPK: Tensor  # theirs, one after the other
    failed: dict[int, DataError]  # by place
    deferred: Sequence[VideoTiles] = ()  # of patches_IPK, what is still to be decoded


def read_part(
    processor: Processor,
    wanted: Sequence[Wanted],
    options: ReadOptions,
    *,
    stop: threading.Event,
    first_failure_ends: bool = False,
    begin: Callable[[int], None] = lambda place: None,
    empty: Callable[[tuple[int, ...]], Tensor] = lambda shape: torch.empty(shape, dtype=PIXELS_DTYPE),
) -> Part:
    """Tokens and pixels of planned samples.

    stop: ends it with CancelledError.  first_failure_ends: reads nothing after a sample that fails.
    begin: called with each sample's place before it is read.  empty: makes the tensor of all pixels.
    """
    patches_IPK = empty(processor.tiling.shape(sum(end - first for _, _, (first, end), _ in wanted)))
    samples: list[Read] = []
    deferred: list[VideoTiles] = []
    failed: dict[int, DataError] = {}
    filled = 0
    for place, plan, tiles, jpeg_seed in wanted:
        begin(place)
        own: list[VideoTiles] = []
        defer = None if options.packets_for is None else partial(deferred_to, own, options.packets_for)
        try:
            tokens, own_IPK = processor.load_sample(
                plan,
                tiles=tiles,
                num_decode_workers=options.num_decode_workers,
                index_folder=options.index_folder,
                video_time_limit_seconds=options.video_time_limit_seconds,
                stop=stop,
                proxies=options.proxies,
                jpeg_seed=jpeg_seed,
                defer=defer,
            )
        except DataError as error:
            failed[place] = error
            if first_failure_ends:
                break
            continue
        end = filled + len(own_IPK)
        patches_IPK[filled:end] = own_IPK
        samples.append(Read(place, tokens, (filled, end)))
        deferred += [video.moved(filled) for video in own]
        filled = end
    return Part(samples, patches_IPK[:filled], failed, deferred)


def joined(parts: Sequence[Part], *, key: Callable[[int], tuple[bool, int]]) -> Part:
    """One part of several, its samples in the order of key(place)."""
    read = sorted(((one, part) for part in parts for one in part.samples), key=lambda pair: key(pair[0].place))
    samples: list[Read] = []
    deferred: list[VideoTiles] = []
    filled = 0
    for one, part in read:
        first, end = one.tiles
        deferred += [video.moved(filled - first) for video in part.deferred if first <= video.tiles[0] < end]
        samples.append(one._replace(tiles=(filled, filled + end - first)))
        filled += end - first
    patches_IPK = torch.cat([part.patches_IPK[slice(*one.tiles)] for one, part in read])
    return Part(samples, patches_IPK, {}, deferred)
