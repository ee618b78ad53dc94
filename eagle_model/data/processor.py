"""Processor: samples and chat messages -> tokens and pixels, first the numbers (a plan), then what the plan asks for.

Dims    T tokens, I tiles, P patches a tile, K = 3 * patch_px**2.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from torch import Tensor

from eagle_kernels.video import VideoError, probe
from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.data import sampling
from eagle_model.data.chat import DEFAULT_SYSTEM, ChatEncoder, SampledVideo
from eagle_model.data.media import DataError, Sample, VideoRef, parse_sample
from eagle_model.data.pixels import image_size, load_patches
from eagle_model.data.sampling import DoesNotFit, SamplingConfig, VisualPlan
from eagle_model.data.tokens import TokenizedSample, pack_row, read_tokenizer, text_token_counter, tokenize
from eagle_model.fields import from_json, to_json
from eagle_model.files import write_json

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "eagle_processor.json"
CLIP_END_SLACK_SECONDS = 1.0  # annotations round a video's end up; a clip that ends later still has wrong times


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessorConfig:
    """What the model gets to see of a sample. A checkpoint keeps it, as eagle_processor.json."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    tile_px: int = 448
    patch_px: int = 14
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    system: str = DEFAULT_SYSTEM  # the system turn of conversations that have none; "" for none

    def __post_init__(self) -> None:
        if self.patch_px < 1 or self.tile_px < 1 or self.tile_px % (2 * self.patch_px):
            raise ValueError(
                f"ProcessorConfig: tile_px is {self.tile_px}; needs a multiple of 2 * patch_px = {2 * self.patch_px}, "
                f"as a visual token is a block of 2 x 2 patches."
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
                raise ValueError(f"ProcessorConfig: {name} is {values}; needs three numbers, std above 0.")
        if self.tokens_per_tile > self.sampling.context_tokens:
            raise ValueError(
                f"ProcessorConfig: sampling.context_tokens is {self.sampling.context_tokens}; one tile of "
                f"{self.tile_px} px takes {self.tokens_per_tile}. Raise context_tokens or lower tile_px."
            )

    @property
    def tokens_per_tile(self) -> int:
        return (self.tile_px // (2 * self.patch_px)) ** 2


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """All decisions about one sample; no pixel was read."""

    sample: Sample
    visual: VisualPlan
    videos: tuple[SampledVideo, ...]  # the sampled times, and the rate that the text names
    num_tokens: int
    generation_prompt: bool = False

    @property
    def num_tiles(self) -> int:
        return sum(grid.num_tiles for grid in self.visual.grids) + sum(len(v.timestamps_seconds) for v in self.videos)


class LoadedSample(NamedTuple):
    tokens: TokenizedSample
    patches_IPK: Tensor


class Processor:
    """Everything between a sample and its tensors. Not changed by use; safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, config: ProcessorConfig) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.encoder = ChatEncoder(tokenizer, system=config.system)

    def plan_sample(
        self,
        sample: Sample,
        *,
        max_tiles: int | None = None,
        generation_prompt: bool = False,
        index_folder: str | Path | None = None,
    ) -> SamplePlan:
        """Which frames and tiles of the sample will be seen, and its exact number of tokens.

        Reads image headers and video indexes, no pixels. max_tiles lowers the config's, for a source that says so.
        index_folder: keeps the indexes of videos, as `video.probe` does; it changes no number.
        Raises DataError, naming the sample, when a file is missing or broken or the sample cannot fit the context.
        """
        limits = self.config.sampling
        if max_tiles is not None:
            limits = replace(limits, max_tiles=min(limits.max_tiles, max_tiles))
        try:
            images = [image_size(image.path) for image in sample.images]
            clips = [_clip(video, index_folder, limits.seek) for video in sample.videos]
            visual = sampling.plan(
                limits,
                tile_px=self.config.tile_px,
                tokens_per_tile=self.config.tokens_per_tile,
                images=images,
                videos=[clip.frame_times_seconds for clip in clips],
                text_tokens=text_token_counter(
                    self.encoder,
                    sample,
                    lambda video, num_frames: num_frames / clips[video].duration_seconds,
                    generation_prompt=generation_prompt,
                ),
            )
        except (DataError, DoesNotFit) as error:
            raise DataError(f"sample {sample.id}: {error}") from error
        videos = tuple(
            SampledVideo(times, len(times) / clip.duration_seconds)
            for times, clip in zip(visual.timestamps_seconds, clips, strict=True)
        )
        return SamplePlan(sample, visual, videos, visual.num_tokens, generation_prompt)

    def tokenize(self, plan: SamplePlan) -> TokenizedSample:
        """The planned sample's tokens. Raises DataError when they are not as many as the plan says."""
        tokens = tokenize(
            self.encoder,
            plan.sample,
            videos=plan.videos,
            tiles_per_image=[grid.num_tiles for grid in plan.visual.grids],
            tokens_per_tile=self.config.tokens_per_tile,
            generation_prompt=plan.generation_prompt,
        )
        if tokens.token_ids_T.numel() != plan.num_tokens:
            raise DataError(
                f"sample {plan.sample.id}: {tokens.token_ids_T.numel()} tokens, but {plan.num_tokens} were planned."
            )
        return tokens

    def load_sample(
        self,
        plan: SamplePlan,
        *,
        num_decode_workers: int = 1,
        index_folder: str | Path | None = None,
        stop: threading.Event | None = None,
    ) -> LoadedSample:
        """Tokens and pixels of a planned sample.

        num_decode_workers: threads that decode one video; index_folder: where planning kept the indexes of videos.
        Neither changes a bit.
        stop: set by another thread, it ends the work early with CancelledError.
        Raises DataError, naming the sample, when a file cannot be decoded as planned.
        """
        tokens = self.tokenize(plan)
        try:
            patches_IPK = load_patches(
                plan.sample,
                plan.visual,
                tile_px=self.config.tile_px,
                patch_px=self.config.patch_px,
                mean=self.config.mean,
                std=self.config.std,
                num_decode_workers=num_decode_workers,
                index_folder=index_folder,
                stop=stop,
            )
        except DataError as error:
            raise DataError(f"sample {plan.sample.id}: {error}") from error
        return LoadedSample(tokens, patches_IPK)

    def __call__(self, messages: Sequence[dict], *, root: str | Path | None = None) -> PackedBatch:
        """Chat messages -> a batch of one document that ends where the assistant's answer begins; nothing supervised.

        messages: [{"role": "user", "content": [{"type": "video", "video": "clip.mp4"}, {"type": "text", ...}]}, ...].
        root: media must lie inside this folder: give one when the messages come from someone else. None trusts
        them: paths are relative to the working folder and may lead anywhere.

        The answer is not counted: ADS may fill sampling.context_tokens to the last. For room lower it by the answer's
        length. Raises DataError when the messages or a file are unusable, or do not fit.
        """
        trusted = root is None
        sample = parse_sample(
            {"messages": list(messages)},
            root=Path(".") if root is None else Path(root),
            where="messages",
            allow_outside_root=trusted,
        )
        if sample.turns[-1].role == "assistant":
            raise DataError("messages: the last turn is the assistant's; needs a turn to answer.")
        tokens, patches_IPK = self.load_sample(self.plan_sample(sample, generation_prompt=True))
        unsupervised = replace(tokens, labels_T=tokens.labels_T.new_full(tokens.labels_T.shape, IGNORE_INDEX))
        return pack_row([unsupervised], patches_IPK)

    # -- files

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Processor:
        """Reads what `save_pretrained` wrote. Raises ValueError for missing or damaged files, and for fields that are
        unknown, missing or of a wrong type."""
        folder = Path(folder)
        for name in (TOKENIZER_FILE, CONFIG_FILE):
            if not (folder / name).is_file():
                raise ValueError(
                    f"{folder} has no {name}; needs a folder that Processor.save_pretrained wrote, as a run's is."
                )
        try:
            values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            config = from_json(ProcessorConfig, values)
        except json.JSONDecodeError as error:
            raise ValueError(f"{folder / CONFIG_FILE} is not JSON: {error}") from error
        except ValueError as error:
            raise ValueError(f"{folder / CONFIG_FILE}: {error}") from error
        if missing := _first_missing(to_json(config), values):
            raise ValueError(f"{folder / CONFIG_FILE} lacks the field {missing}; needs all that save_pretrained wrote.")
        return cls(read_tokenizer(folder / TOKENIZER_FILE), config)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes tokenizer.json and eagle_processor.json into `folder`, which is made if need be."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / TOKENIZER_FILE))
        write_json(folder / CONFIG_FILE, to_json(self.config))


def _first_missing(whole: dict[str, Any], given: dict[str, Any]) -> str | None:
    """The path of a field of `whole` that `given` lacks: a saved config says all, since defaults may change."""
    for name, value in whole.items():
        if name not in given:
            return name
        if isinstance(value, dict) and (inner := _first_missing(value, given[name])):
            return f"{name}.{inner}"
    return None


class _Clip(NamedTuple):
    frame_times_seconds: np.ndarray  # to sample from, counted from the file's first shown frame
    duration_seconds: float


def _clip(video: VideoRef, index_folder: str | Path | None, seek: str) -> _Clip:
    """The frames shown in [start, end), or the one on show at `start` where none begins in it; of these the key frames,
    if seek is "keyframe" and the clip has any.

    The last frame counts as long as the mean of the others, so n frames at a constant rate r last n / r. A single frame
    lasts as long as the file's frames do on average; a file that holds one frame and no duration, a second.
    """
    if not os.path.isfile(video.path):  # pathlib's raises for a name that is too long
        raise DataError(f"video {video.path} does not exist or is not a file.")
    try:
        info = probe(video.path, index_folder=index_folder)
    except (VideoError, OSError) as error:
        raise DataError(f"video {video.path} cannot be read: {error}") from error
    if info.damage is not None:
        raise DataError(f"video {video.path} is damaged: {info.damage} Repair or remux it, or leave the sample out.")
    start, end = video.start_seconds or 0.0, video.end_seconds
    latest = max(start, 0.0 if end is None else end - CLIP_END_SLACK_SECONDS)
    if latest > 0 and latest >= info.duration_seconds:
        raise DataError(
            f"the clip is {start:g} s to {'the end' if end is None else f'{end:g} s'}, but video {video.path} lasts "
            f"{info.duration_seconds:.3f} s. Correct the clip's times."
        )
    times = info.frame_times_seconds
    first = int(np.searchsorted(times, start, side="left"))
    last = len(times) if end is None else int(np.searchsorted(times, end, side="left"))
    if first >= last:
        first = int(np.searchsorted(times, start, side="right")) - 1
        last = first + 1
    times = times[first:last]
    if len(times) == 1:
        return _Clip(times, 1 / info.frames_per_second if info.frames_per_second > 0 else 1.0)
    duration_seconds = float(times[-1] - times[0]) * len(times) / (len(times) - 1)
    keys = info.key_frames[(info.key_frames >= first) & (info.key_frames < last)]
    return _Clip(info.frame_times_seconds[keys] if seek == "keyframe" and len(keys) else times, duration_seconds)
