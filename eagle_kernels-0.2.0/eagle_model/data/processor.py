"""Samples and chat messages -> a plan, numbers alone; then the tokens and pixels that the plan asks for.

    processor = Processor.from_pretrained("runs/first")        # or a checkpoint's folder, or a released model's
    plan = processor.plan_sample(sample)              # which frames, which tiles, how many tokens: no pixel was read
    tokens, patches_IPK = processor.load_sample(plan)

    batch = processor([{"role": "user", "content": [{"type": "image", "image": "page.png"}, ...]}])

Each frame of a video becomes one tile in the thread that decodes it, and is not kept.

Dims    T tokens, I tiles, P = (tile_px / patch_px)**2 patches a tile, K = 3 * patch_px**2.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from tokenizers import Tokenizer
from torch import Tensor

from eagle_kernels.decode_tiles import decode_tiles
from eagle_kernels.frames_to_tiles import frames_to_tiles
from eagle_kernels.tiles import Tiling
from eagle_kernels.video import Video, VideoError
from eagle_kernels.video.ranged import Unreachable
from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.checkpoints import read_newest, verify_listed
from eagle_model.data import sampling
from eagle_model.data.augment import as_jpeg, jpeg_quality
from eagle_model.data.chat import ChatEncoder, TokenizedSample, seen_media
from eagle_model.data.clips import Clip, open_clip, open_video
from eagle_model.data.decode_cost import decode_seconds
from eagle_model.data.documents import load_pages
from eagle_model.data.frame_tokens import FrameTokens
from eagle_model.data.images import image_size, load_image
from eagle_model.data.packing import pack_row
from eagle_model.data.processor_files import (
    IMAGES,
    KEPT_FILES,
    PROCESSOR,
    Kept,
    read_kept,
    released_config,
    write_files,
)
from eagle_model.data.proxies import Proxies, decode_some
from eagle_model.data.remote import fetched
from eagle_model.data.rows import parse_sample
from eagle_model.data.sample import DOCUMENT_SUFFIX, DataError, ImageRef, Media, Sample, VideoRef
from eagle_model.data.sampling import DoesNotFit, SamplingConfig, VisualPlan
from eagle_model.data.templates import DEFAULT_TEMPLATE, TEMPLATES, Seen, TemplateName
from eagle_model.data.tiling import Grid
from eagle_model.data.tokenizer import TOKENIZER_FILE, read_released_tokenizer, read_tokenizer
from eagle_model.fields import ConfigError, from_json, to_json
from eagle_model.files import read_json, write_json, write_text

CONFIG_FILE = "eagle_processor.json"
_WHAT_WAS_UNSAID = {
    "template": "processor-1",
    "auto_thinking_prompt": False,
    "use_pixel_shuffle": True,
    "jpeg_scaling": False,
}  # before files said it
_WHAT_SAMPLING_LEFT_UNSAID = {"ads": True, "tiling": "iap", "frames": "rate"}
PIXELS_DTYPE = torch.bfloat16  # the 256 values of (x / 255 - 0.5) / 0.5 stay apart in bf16


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessorConfig:
    """What the model gets to see of a sample. A checkpoint keeps it, as eagle_processor.json."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    tile_px: int = 448  # width and height of a tile, the model's own
    patch_px: int = 14  # width and height of a patch, the model's own
    use_pixel_shuffle: bool = (
        True  # whether 2 x 2 patches become one token, as the model has it; else each patch is one
    )
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # taken from the red, green and blue of pixels, 0 to 1
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)  # what they are divided by then
    template: TemplateName = DEFAULT_TEMPLATE  # the prompt's layout (docs/templates.md)
    system: str | None = None  # the system turn of conversations that have none: the template's own; "" for no turn
    jpeg_scaling: bool = (
        False  # decode a JPEG at 1/2, 1/4 or 1/8 where its tiles need no more: faster, not the same pixels
    )
    auto_thinking_prompt: bool = False  # questions and answers without thoughts say so, as Qwen3 is trained

    def __post_init__(self) -> None:
        if self.patch_px < 1 or self.tile_px < 1 or self.tile_px % self._token_px:
            need = f"2 * patch_px = {self._token_px}, as a visual token is a block of 2 x 2 patches"
            if not self.use_pixel_shuffle:
                need = f"patch_px = {self._token_px}, as a visual token is a patch"
            raise ValueError(f"ProcessorConfig: tile_px is {self.tile_px}; needs a multiple of {need}.")
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
    def system_text(self) -> str:
        return TEMPLATES[self.template].system if self.system is None else self.system

    @property
    def _token_px(self) -> int:
        """Width and height of what becomes one token."""
        return 2 * self.patch_px if self.use_pixel_shuffle else self.patch_px

    @property
    def tokens_per_tile(self) -> int:
        return (self.tile_px // self._token_px) ** 2

    @property
    def tiling(self) -> Tiling:
        """How images and frames become tiles; a grid of one tile, as every frame's, has no thumbnail."""
        return Tiling(
            tile_px=self.tile_px,
            patch_px=self.patch_px,
            mean=self.mean,
            std=self.std,
            thumbnail=True,
            dtype=PIXELS_DTYPE,
        )


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """All decisions about one sample; no pixel was read."""

    sample: Sample
    visual: VisualPlan
    seen: tuple[Seen, ...]  # of each of sample.media: an image's grid, or a video's times and the rate its text names
    num_tokens: int
    generation_prompt: bool = False
    dataset: str = ""  # the recipe's source that it is of
    decode_seconds: float = 0.0  # an estimate of what a CPU core needs for its pixels

    @property
    def num_tiles(self) -> int:
        return sum(_num_tiles(seen) for seen in self.seen)


def _too_large(sample: Sample, error: BaseException) -> DataError:
    what = "nested too deep" if isinstance(error, RecursionError) else "too large for the memory there is"
    return DataError(f"sample {sample.id}: it, or a file of it, is {what}. Leave it out, or make it smaller.")


def _fetched(image: ImageRef, stop: threading.Event | None) -> Path | Image:
    """What `load_image` reads. Raises DataError where it lies elsewhere and cannot be had."""
    return image.source if image.remote is None else fetched(image, stop)


def _num_tiles(seen: Seen) -> int:
    return seen.num_tiles if isinstance(seen, Grid) else len(seen.timestamps_seconds)


class LoadedSample(NamedTuple):
    tokens: TokenizedSample
    patches_IPK: (
        Tensor  # of the tiles asked for, in the order shown: an image's with its thumbnail, a video's one a frame
    )


class Processor:
    """Everything between a sample and its tensors. Not changed by use; safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, config: ProcessorConfig, *, kept: Kept | None = None) -> None:
        """kept: fields of Hugging Face's files that `save_pretrained` writes again (processor_files.read_kept)."""
        self.tokenizer = tokenizer
        self.config = config
        self.kept = kept or {}
        self.encoder = ChatEncoder(
            tokenizer,
            template=config.template,
            system=config.system,
            auto_thinking_prompt=config.auto_thinking_prompt,
        )
        self.tiling = config.tiling
        self.frame_tokens = FrameTokens(self.encoder)

    def plan_sample(
        self,
        sample: Sample,
        *,
        limits: SamplingConfig | None = None,
        generation_prompt: bool = False,
        index_folder: str | Path | None = None,
        video_time_limit_seconds: float | None = None,
        stop: threading.Event | None = None,
        proxies: Proxies | None = None,
    ) -> SamplePlan:
        """Which frames and tiles of the sample will be seen, and its exact number of tokens.

        Reads image headers and video indexes, no pixels. limits: instead of config.sampling, of a source of its own.
        index_folder: keeps the indexes of videos, as `video.open` does; it changes no number.
        video_time_limit_seconds: for reading the index of one video.
        stop: set by another thread, it ends that with CancelledError.
        proxies: frames are sampled from those that a video's proxy holds, where it has one.
        Raises DataError, naming the sample, when a file is missing or broken or the sample cannot fit the context.
        """
        limits = limits or self.config.sampling
        try:
            if self.encoder.is_longer(sample, limits.context_tokens):
                raise DoesNotFit(
                    f"its text alone takes more than context_tokens, which is {limits.context_tokens}. Shorten the "
                    "text or raise context_tokens."
                )
            images = [image_size(_fetched(shown, stop)) for shown in sample.images]
            clip_of = partial(
                open_clip,
                seek=limits.seek,
                tolerance=limits.tolerance,
                index_folder=index_folder,
                time_limit_seconds=video_time_limit_seconds,
                stop=stop,
                proxies=proxies,
            )
            clips = [clip_of(shown) for shown in sample.videos]
            return self.plan_known(
                sample, images=images, clips=clips, limits=limits, generation_prompt=generation_prompt
            )
        except (DataError, DoesNotFit) as error:
            raise DataError(f"sample {sample.id}: {error}") from error
        except (MemoryError, RecursionError) as error:
            raise _too_large(sample, error) from error

    def plan_known(
        self,
        sample: Sample,
        *,
        images: Sequence[tuple[int, int]],
        clips: Sequence[Clip],
        limits: SamplingConfig | None = None,
        generation_prompt: bool = False,
        base_tokens: int | None = None,
    ) -> SamplePlan:
        """`plan_sample` where what is in the media is known: (width_px, height_px) of each image, and each clip.

        base_tokens: what `frame_tokens.base` counts, where that is known too.
        Raises DoesNotFit where the sample does not fit the context.
        """
        clip_seconds = [clip.duration_seconds for clip in clips]
        visual = sampling.plan(
            limits or self.config.sampling,
            tile_px=self.config.tile_px,
            tokens_per_tile=self.config.tokens_per_tile,
            images=images,
            image_tiles=[shown.max_tiles for shown in sample.images],
            videos=[clip.frame_times_seconds for clip in clips],
            are_documents=[clip.duration_seconds is None for clip in clips],
            choose=[clip.choose for clip in clips],
            text_tokens=self.frame_tokens.counter(
                sample, clip_seconds, generation_prompt=generation_prompt, base_tokens=base_tokens
            ),
        )
        seconds = decode_seconds(
            images,
            num_image_tiles=sum(grid.num_tiles for grid in visual.grids),
            clips=clips,
            num_frames=[len(times) for times in visual.timestamps_seconds],
        )
        seen = seen_media(sample, visual.grids, visual.timestamps_seconds, clip_seconds)
        return SamplePlan(sample, visual, seen, visual.num_tokens, generation_prompt, decode_seconds=seconds)

    def tokenize(self, plan: SamplePlan) -> TokenizedSample:
        """The planned sample's tokens. Raises DataError when they are not as many as the plan says."""
        tokens = self.encoder.encode(
            plan.sample,
            seen=plan.seen,
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
        tiles: tuple[int, int] | None = None,
        num_decode_workers: int = 1,
        index_folder: str | Path | None = None,
        video_time_limit_seconds: float | None = None,
        stop: threading.Event | None = None,
        proxies: Proxies | None = None,
        jpeg_seed: int | None = None,
        defer: Callable[[Video, Sequence[float], tuple[int, int]], bool] | None = None,
    ) -> LoadedSample:
        """Tokens and pixels of a planned sample.

        tiles: first and end of those whose pixels are wanted, as (0, 4) for the first four; none: all. The others'
        frames and images are not decoded, but for an image that has tiles on both sides.
        num_decode_workers: threads that decode one video; index_folder: where planning kept the indexes of videos.
        Neither changes a bit. video_time_limit_seconds: for each video; DataError where it takes longer.
        stop: set by another thread, it ends the work early with CancelledError: at the next image, or the next packet
        of a video.
        proxies: frames are read from these where they are in them, the others from the original.
        jpeg_seed: images are shown as JPEGs, of a quality for each that follows from it (augment.py).
        defer: asked for each video, with its frames' times and the tiles that are theirs: whether these are left empty,
        to be filled by somebody else (executor.py).
        Raises DataError, naming the sample, when a file cannot be decoded as planned; ValueError for tiles that the
        plan does not have.
        """
        begin, end = tiles or (0, plan.num_tiles)
        if not 0 <= begin <= end <= plan.num_tiles:
            raise ValueError(
                f"load_sample: tiles are {tiles}; sample {plan.sample.id} has {plan.num_tiles}. Needs a first and an "
                "end among them."
            )
        tokens = self.tokenize(plan)
        patches_IPK = torch.empty(self.tiling.shape(end - begin), dtype=PIXELS_DTYPE)
        after = 0  # tiles of the sample until here
        for shown, seen in zip(plan.sample.media, plan.seen, strict=True):
            if stop is not None and stop.is_set():
                raise CancelledError
            before, after = after, after + _num_tiles(seen)
            first, last = max(begin, before), min(end, after)  # of this medium, the tiles that are wanted
            if first >= last:
                continue
            out_IPK, wanted = patches_IPK[first - begin : last - begin], slice(first - before, last - before)
            try:
                if isinstance(seen, Grid):
                    assert isinstance(shown, ImageRef)  # as seen_media pairs them
                    needs = (seen.cols * self.config.tile_px, seen.rows * self.config.tile_px)
                    least_px = needs if self.config.jpeg_scaling else None
                    image_YX3 = load_image(_fetched(shown, stop), least_px=least_px)
                    if jpeg_seed is not None:
                        image_YX3 = as_jpeg(image_YX3, jpeg_quality(jpeg_seed, shown.number))
                    # One thread: the loader's workers are threads already.
                    out_IPK[:] = frames_to_tiles(image_YX3[None], seen, self.tiling, num_threads=1)[wanted]
                elif shown.path.suffix.lower() == DOCUMENT_SUFFIX:
                    fetched(shown, stop)
                    numbers = seen.timestamps_seconds[wanted]
                    self._load_pages(shown, numbers, out_IPK, video_time_limit_seconds, stop)
                else:
                    assert isinstance(shown, VideoRef)
                    decode = partial(
                        decode_tiles,
                        grid=(1, 1),
                        tiling=self.tiling,
                        num_workers=num_decode_workers,
                        time_limit_seconds=video_time_limit_seconds,
                        stop=stop,
                    )
                    times = seen.timestamps_seconds[wanted]
                    proxy = None if proxies is None else proxies.of(shown)
                    is_left = [True] * len(times) if proxy is None else proxy.load(times, decode, out_IPK)
                    if any(is_left):
                        film = open_video(shown.path, index_folder, video_time_limit_seconds, stop, shown.remote)
                        if all(is_left) and defer is not None and defer(film, times, (first - begin, last - begin)):
                            continue
                        decode_some(film, times, is_left, decode, out_IPK)
            except DataError as error:
                raise DataError(f"sample {plan.sample.id}: {error}") from error
            except (VideoError, OSError, Unreachable) as error:
                raise DataError(f"sample {plan.sample.id}: video {shown.path} cannot be decoded: {error}") from error
            except (MemoryError, RecursionError) as error:
                raise _too_large(plan.sample, error) from error
        return LoadedSample(tokens, patches_IPK)

    def _load_pages(
        self,
        document: Media,
        numbers: Sequence[float],
        out_IPK: Tensor,
        time_limit_seconds: float | None,
        stop: threading.Event | None,
    ) -> None:
        """Renders planned pages of a document, a tile each."""
        pages = [round(number) for number in numbers]
        loaded = load_pages(document.path, pages, time_limit_seconds=time_limit_seconds)
        for page_YX3, tile_1PK in zip(loaded, out_IPK.split(1), strict=True):
            if stop is not None and stop.is_set():
                raise CancelledError
            tile_1PK.copy_(frames_to_tiles(page_YX3[None], (1, 1), self.tiling, num_threads=1))

    def __call__(
        self,
        messages: Sequence[dict],
        *,
        images: Sequence[str | Path | Image] | None = None,
        videos: Sequence[str | Path] | None = None,
        tools: Sequence[dict] | None = None,
        root: str | Path | None = None,
    ) -> PackedBatch:
        """Chat messages -> a batch of one document that ends where the assistant's answer begins; nothing supervised.

        messages: [{"role": "user", "content": [{"type": "video", "video": "clip.mp4"}, {"type": "text", ...}]}, ...].
        An image may be a PIL.Image in place of a path.
        images, videos: files that the messages do not name themselves: parts {"type": "image"} without one show the
        next, or the tags of a text say where they come: `<image-2>` the second, `<image>` the next.
        tools: functions that the assistant may call, each as JSON schema, as for transformers' apply_chat_template.
        root: media must lie inside this folder: give one when the messages come from someone else. None trusts
        them: paths are relative to the working folder and may lead anywhere.

        The answer is not counted: ADS may fill sampling.context_tokens to the last. For room lower it by the answer's
        length. Raises DataError when the messages or a file are unusable, or do not fit.
        """
        row: dict[str, object] = {"messages": list(messages)}
        for name, files in (("images", images), ("videos", videos)):
            if files:
                row[name] = [str(file) if isinstance(file, Path) else file for file in files]
        if tools:
            row["tools"] = list(tools)
        trusted = root is None
        sample = parse_sample(
            row,
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
        """Reads what `save_pretrained` wrote, from a checkpoint's folder or the newest checkpoint of a run's; or what a
        released model, or a Hugging Face processor's folder, has instead.

        Files that a checkpoint's manifest lists are checked against it. Raises FileNotFoundError for no folder,
        ValueError for missing or damaged files, and for fields that are unknown, missing or of a wrong type.
        """
        return read_newest(Path(folder), cls._read)

    @classmethod
    def _read(cls, folder: Path) -> Processor:
        is_ours = (folder / CONFIG_FILE).is_file()
        verify_listed(folder, [name for name in KEPT_FILES if (folder / name).is_file()])
        kept = read_kept(folder)
        if not is_ours and ((folder / "config.json").is_file() or IMAGES in kept or PROCESSOR in kept):
            values = released_config(folder, kept)
            try:
                return cls(read_released_tokenizer(folder), from_json(ProcessorConfig, values), kept=kept)
            except ConfigError as error:
                raise ValueError(f"{folder / 'config.json'} or {IMAGES}: {error}") from error
        for name in (TOKENIZER_FILE, CONFIG_FILE):
            if not (folder / name).is_file():
                raise ValueError(
                    f"{folder} has no {name}; needs a folder that Processor.save_pretrained wrote, as a run's is."
                )
        verify_listed(folder, [TOKENIZER_FILE, CONFIG_FILE])
        values = read_json(folder / CONFIG_FILE)
        if isinstance(values, dict):
            values = _WHAT_WAS_UNSAID | values
            if isinstance(limits := values.get("sampling"), dict):
                values["sampling"] = {**_WHAT_SAMPLING_LEFT_UNSAID, **limits}
        try:
            config = from_json(ProcessorConfig, values)
        except ValueError as error:
            raise ValueError(f"{folder / CONFIG_FILE}: {error}") from error
        if missing := _first_missing(to_json(config), values):
            raise ValueError(f"{folder / CONFIG_FILE} lacks the field {missing}; needs all that save_pretrained wrote.")
        return cls(read_tokenizer(folder / TOKENIZER_FILE), config, kept=kept)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes tokenizer.json and eagle_processor.json, which are all that `from_pretrained` needs, into `folder`,
        which is made if need be; and beside them what other tools read (processor_files.py)."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / TOKENIZER_FILE, self.tokenizer.to_str(pretty=True))
        write_json(folder / CONFIG_FILE, to_json(self.config))
        write_files(folder, self.tokenizer, self.config, self.kept)


def _first_missing(whole: dict[str, Any], given: dict[str, Any]) -> str | None:
    """The path of a field of `whole` that `given` lacks: a saved config says all, since defaults may change."""
    for name, value in whole.items():
        if name not in given:
            return name
        if isinstance(value, dict) and (inner := _first_missing(value, given[name])):
            return f"{name}.{inner}"
    return None
