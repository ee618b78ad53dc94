"""From chat messages to what the engine computes with: token ids, and for each tile a digest of what it shows.

    prompts = Prompts(processor)
    prompt = prompts.make(messages, num_new=512)     # reads headers and indexes, no pixel
    prompt.tile_digests[0]                           # of what the tile shows: what is computed of it is kept by that
    prompt.load(0, 32)                               # pixels of the first 32 tiles, when they are needed

What is shown of a video depends on the room beside the text (sampling.py), and would change with every question. So
text counts as a multiple of a reserve, and once something was shown, the same frames and tiles of it are shown again
while they fit: a second question about a film finds the keys of its frames in the cache.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from numpy.typing import NDArray
from torch import Tensor

from eagle_model.data import sampling
from eagle_model.data.chat import seen_media
from eagle_model.data.clips import Clip, open_clip
from eagle_model.data.images import image_size
from eagle_model.data.processor import Processor, SamplePlan
from eagle_model.data.rows import parse_sample
from eagle_model.data.sample import DOCUMENT_SUFFIX, DataError, ImageRef, Media, Sample
from eagle_model.data.sampling import DoesNotFit, SamplingConfig, VisualPlan
from eagle_model.data.templates import SampledVideo, Seen
from eagle_model.data.tiling import Grid
from eagle_model.infer.request import Shown, ShownMedium

RESERVED_TOKENS = (
    1024  # text counts as a multiple of this, or of an eighth of a small context: most questions are shorter
)
MAX_PINS = 4096  # media whose plan is remembered: some 10 KB each, for 512 frames


@dataclass(frozen=True, slots=True)
class Prompt:
    token_ids: list[int]
    visual_positions_N: Tensor  # int64: where visual tokens are, in the order of tiles
    tile_digests: tuple[bytes, ...]
    shown: Shown
    plan: SamplePlan
    processor: Processor

    def load(self, first: int, end: int) -> Tensor:
        """(tiles, P, K): their pixels. Raises DataError when a file cannot be decoded as planned."""
        return self.processor.load_sample(self.plan, tiles=(first, end)).patches_IPK


@dataclass(frozen=True, slots=True)
class _Pin:
    seen: Seen
    is_reduced: bool


class Prompts:
    """Safe to share between threads. Remembers what it showed of each medium."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        self._pins: OrderedDict[bytes, _Pin] = OrderedDict()
        self._lock = threading.Lock()

    def make(
        self,
        messages: Sequence[dict] | Sample,
        *,
        num_new: int,
        context_tokens: int | None = None,
        root: str | Path | None = None,
        tiles: int | None = None,
        frames: int | None = None,
        fps: float | None = None,
    ) -> Prompt:
        """The prompt of a conversation, with room for num_new tokens in the context.

        Args:    messages, root: as for `Processor`; a Sample is as it is.  context_tokens: None is the processor's.
                 tiles, frames, fps: the most tiles an image, frames a video, frames a second; None: the processor's.
        Raises:  DataError when the messages or a file are unusable, or do not fit; ValueError for numbers out of range.
        """
        limits = self.processor.config.sampling
        context = limits.context_tokens if context_tokens is None else context_tokens
        if not 1 <= num_new < context:
            raise DataError(f"max_new_tokens is {num_new}; the model's context is {context}. Needs 1 to {context - 1}.")
        most_tiles = max(limits.max_tiles, context // self.processor.config.tokens_per_tile)
        if tiles is not None and tiles > most_tiles:  # all grids of so many tiles would be looked at
            raise DataError(f"tiles is {tiles}; the context of {context} tokens holds {most_tiles} at most.")
        limits = replace(
            limits,
            context_tokens=context - num_new,
            max_tiles=limits.max_tiles if tiles is None else tiles,
            max_frames=limits.max_frames if frames is None else frames,
            min_frames=limits.min_frames if frames is None else min(max(frames, 1), limits.min_frames),
            frames_per_second=limits.frames_per_second if fps is None else fps,
        )
        sample = messages if isinstance(messages, Sample) else _sample(messages, root)
        if sample.turns[-1].role == "assistant":
            raise DataError("messages: the last turn is the assistant's; needs a turn to answer.")
        try:
            identities = [_identity(medium) for medium in sample.media]
            plan = self._plan(sample, limits, identities)
        except (DataError, DoesNotFit) as error:
            raise DataError(f"{sample.id}: {error}") from error
        tokens = self.processor.tokenize(plan)
        shown = _shown(sample, plan, limits)
        digests = [
            digest
            for identity, seen in zip(identities, plan.seen, strict=True)
            for digest in _tile_digests(identity, seen, self.processor)
        ]
        ids = tokens.token_ids_T.tolist()
        return Prompt(ids, tokens.visual_positions_N, tuple(digests), shown, plan, self.processor)

    def _plan(self, sample: Sample, limits: SamplingConfig, identities: Sequence[bytes]) -> SamplePlan:
        config = self.processor.config
        encoder = self.processor.encoder
        if encoder.is_longer(sample, limits.context_tokens):
            raise DoesNotFit(
                f"its text alone takes more than the context has beside the answer, {limits.context_tokens} tokens. "
                "Shorten the text or ask for a shorter answer."
            )
        wanted = repr((limits.max_tiles, limits.max_frames, limits.frames_per_second)).encode()
        keys = [hashlib.blake2b(identity + wanted, digest_size=16).digest() for identity in identities]
        clips = [open_clip(v, seek=limits.seek, tolerance=limits.tolerance) for v in sample.videos]
        count = partial(encoder.num_text_tokens, sample, [c.duration_seconds for c in clips], generation_prompt=True)
        with self._lock:
            pins = [self._pins.get(key) for key in keys]
        reserve = min(RESERVED_TOKENS, limits.context_tokens // 8)
        num_said = count(
            [clip.frame_times_seconds[:1].tolist() for clip in clips]
        )  # what frames add is not the question's
        reserved = max(-(-num_said // reserve) * reserve - num_said, 0) if sample.media and reserve else 0
        # With what was shown before and the reserve; then without the one, and at last without either.
        attempts = [(pins, 0)] if any(pins) else []
        attempts += [([None] * len(keys), reserved), ([None] * len(keys), 0)]
        for number, (pinned, extra) in enumerate(attempts, 1):
            planner = _Planner(sample, limits, clips, pinned, count, extra)
            try:
                visual = planner.plan(config.tile_px, config.tokens_per_tile)
                break
            except DoesNotFit:
                if number == len(attempts):
                    raise
        seen = planner.seen(visual)
        with self._lock:
            for key, thing in zip(keys, seen, strict=True):
                self._pins[key] = _Pin(thing, visual.is_reduced)
                self._pins.move_to_end(key)
            while len(self._pins) > MAX_PINS:
                self._pins.popitem(last=False)
        return SamplePlan(sample, visual, seen, visual.num_tokens, generation_prompt=True)


class _Planner:
    """A plan of those media that are not pinned; the pinned ones' tokens count as text meanwhile."""

    def __init__(
        self,
        sample: Sample,
        limits: SamplingConfig,
        clips: Sequence[Clip],
        pins: Sequence[_Pin | None],
        count: partial[int],
        extra: int,
    ) -> None:
        self.sample, self.limits, self.clips, self.count, self.extra = sample, limits, clips, count, extra
        of_images = [p for p, medium in zip(pins, sample.media, strict=True) if isinstance(medium, ImageRef)]
        of_videos = [p for p, medium in zip(pins, sample.media, strict=True) if not isinstance(medium, ImageRef)]
        self.grids = [None if pin is None else pin.seen for pin in of_images]
        self.times = [
            pin.seen.timestamps_seconds if pin and isinstance(pin.seen, SampledVideo) else None for pin in of_videos
        ]
        self.was_reduced = any(pin is not None and pin.is_reduced for pin in pins)

    def plan(self, tile_px: int, tokens_per_tile: int) -> VisualPlan:
        images = [image for image, grid in zip(self.sample.images, self.grids, strict=True) if grid is None]
        clips = [clip for clip, times in zip(self.clips, self.times, strict=True) if times is None]
        num_pinned = sum(grid.num_tiles for grid in self.grids if isinstance(grid, Grid))
        num_pinned += sum(len(times) for times in self.times if times is not None)
        pinned_tokens = num_pinned * tokens_per_tile

        def text_tokens(new_times: Sequence[NDArray]) -> int:
            return self.count(_filled(self.times, new_times)) + pinned_tokens + self.extra

        visual = sampling.plan(
            self.limits,
            tile_px=tile_px,
            tokens_per_tile=tokens_per_tile,
            images=[image_size(image.source) for image in images],
            image_tiles=[image.max_tiles for image in images],
            videos=[clip.frame_times_seconds for clip in clips],
            are_documents=[clip.duration_seconds is None for clip in clips],
            choose=[clip.choose for clip in clips],
            text_tokens=text_tokens,
        )
        return replace(
            visual,
            grids=tuple(_filled(self.grids, visual.grids)),
            timestamps_seconds=tuple(_filled(self.times, visual.timestamps_seconds)),
            num_visual_tokens=visual.num_visual_tokens + pinned_tokens,
            num_text_tokens=visual.num_text_tokens - pinned_tokens - self.extra,
            is_reduced=visual.is_reduced or self.was_reduced,
        )

    def seen(self, visual: VisualPlan) -> tuple[Seen, ...]:
        clip_seconds = [clip.duration_seconds for clip in self.clips]
        return seen_media(self.sample, visual.grids, visual.timestamps_seconds, clip_seconds)


def _sample(messages: Sequence[dict], root: str | Path | None) -> Sample:
    folder = Path(".") if root is None else Path(root)
    return parse_sample({"messages": list(messages)}, root=folder, where="messages", allow_outside_root=root is None)


def _filled(known: Sequence, new: Sequence) -> list:
    """`known`, with each None replaced by the next of `new`."""
    rest = iter(new)
    return [next(rest) if one is None else one for one in known]


def _identity(medium: Media) -> bytes:
    """What tells a medium from others: an image's pixels in memory, or a file that has not changed since."""
    if isinstance(medium, ImageRef) and medium.in_memory is not None:
        image = medium.in_memory
        return hashlib.blake2b(repr((image.mode, image.size)).encode() + image.tobytes(), digest_size=16).digest()
    try:
        status = os.stat(medium.path)
    except (OSError, ValueError) as error:
        raise DataError(f"{medium.path} cannot be read: {error}") from error
    file = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    clip = (medium.max_tiles,) if isinstance(medium, ImageRef) else (medium.start_seconds, medium.end_seconds)
    return hashlib.blake2b(repr((file, clip)).encode(), digest_size=16).digest()


def _tile_digests(identity: bytes, seen: Seen, processor: Processor) -> list[bytes]:
    about = identity + repr(processor.tiling).encode()
    if isinstance(seen, Grid):
        parts = [repr((tuple(seen), i)) for i in range(seen.num_tiles)]
    else:
        parts = [repr(seconds) for seconds in seen.timestamps_seconds]
    return [hashlib.blake2b(about + part.encode(), digest_size=16).digest() for part in parts]


def _shown(sample: Sample, plan: SamplePlan, limits: SamplingConfig) -> Shown:
    media = []
    for medium, seen in zip(sample.media, plan.seen, strict=True):
        if isinstance(seen, Grid):
            media.append(ShownMedium(str(medium.path), "image", seen.num_tiles, grid=(seen.cols, seen.rows)))
        else:
            kind: Literal["document", "video"] = "video"
            if medium.path.suffix.lower() == DOCUMENT_SUFFIX:
                kind = "document"
            times = seen.timestamps_seconds
            media.append(ShownMedium(str(medium.path), kind, len(times), timestamps_seconds=times))
    note = ""
    if plan.visual.is_reduced:
        note = (
            f"Fewer frames or tiles are shown than asked for: {plan.num_tiles} tiles, at most {plan.visual.max_tiles} "
            f"an image, fit the {limits.context_tokens} tokens that the context has for a prompt."
        )
    return Shown(tuple(media), plan.num_tiles, plan.num_tokens, plan.visual.is_reduced, note)
