"""What an annotation run is told, as a TOML file (or JSON) says it.

    out = "runs/annotated"
    videos = "films"                       # a folder, or JSON Lines of {"path": ..., "title": ..., "licence": ...}
    [annotator]
    url = "https://api.example.com/v1"
    model = "a-vision-model"
    [budget]
    max_dollars = 50.0

    config = read_config(Path("run.toml"), ["budget.max_requests=1000"])

Paths are relative to the file's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eagle_model.annotate.question_types import PERSONAL, TYPES
from eagle_model.fields import ConfigError, from_json, override, require
from eagle_model.files import read_json
from eagle_model.infer.endpoint import EndpointConfig

MAX_CONFIG_BYTES = 1 << 20  # limit: of a config's file


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """What the run may cost, all of its steps together, and what was spent before this start."""

    max_dollars: float | None = None
    max_requests: int | None = None


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which videos are new, by the features of their clips. Without an encoder all are taken."""

    encoder: str | None = None  # the folder of a CLIP or SigLIP model, as transformers saves it
    reference: str | None = None  # a folder of .npy files: features of what is trained on already, made by this step
    threshold: float | None = None  # the largest cosine to the reference; none: 0.5 of CLIP, and asked for of others
    duplicate_threshold: float = 0.95  # of two clips of the pool: the later one goes
    clip_seconds: float = 10.0
    frames_per_second: float = 1.0  # of the features, which are pooled for each clip
    batch_frames: int = 64  # encoded at once
    still_change: float = (
        0.0  # of 255, the mean change of brightness from frame to frame: below it a video stands still
    )
    screen: bool = False  # ask the annotator for watermarks, unsafe pictures and stills; a request a video
    benchmark_hashes: str | None = None  # a file of hashes of benchmark frames, one a line, in hexadecimal (16 digits)
    benchmark_bits: int = 4  # of 64: hashes that differ in no more are of one picture
    drop: tuple[str, ...] = ("benchmark", "watermark", "unsafe", "still")  # marks whose videos are left out

    def __post_init__(self) -> None:
        for name in ("clip_seconds", "frames_per_second", "batch_frames"):
            require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        require(
            self.reference is None or self.encoder is not None, "encoder", self.encoder, "a folder, for `reference`"
        )


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """Chapters where somebody wrote some, else shots, merged."""

    vitt: str | None = None  # ViTT-annotations.json
    vidchapters: str | None = None  # the processed JSON: {video: {duration, timestamps, sentences}}
    min_seconds: float = 10.0  # of merged shots
    max_seconds: float = 120.0
    max_segments: int = 64  # a video; of more, shots are merged further
    shot_frames_per_second: float = 4.0  # looked at for cuts
    shot_threshold: float = 0.35  # of 1: how much of the colours' histogram changes at a cut

    def __post_init__(self) -> None:
        require(self.min_seconds > 0, "min_seconds", self.min_seconds, "more than 0")
        require(self.max_seconds >= 2 * self.min_seconds, "max_seconds", self.max_seconds, "twice min_seconds or more")
        require(self.max_segments >= 1, "max_segments", self.max_segments, "at least 1")


@dataclass(frozen=True, kw_only=True)
class StoryConfig:
    """Top-down: captions of chapters, then questions about the whole video."""

    min_chapters: int = 2  # human ones, as in the paper: videos with fewer are passed over
    num_questions: int = 5
    frames_per_second: float = 2.0
    max_frames: int = 50


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Bottom-up: questions about clips, which anchors lift to the whole video."""

    num_types: int = 5  # drawn for each clip
    max_clips: int = 8  # a video, at random
    max_seconds: float = 120.0  # of a segment that is longer, so much of its middle
    frames_per_second: float = 2.0
    max_frames: int = 50
    without: tuple[str, ...] = PERSONAL  # types that are never asked for

    def __post_init__(self) -> None:
        unknown = [t for t in self.without if t not in TYPES]
        require(not unknown, "without", unknown, "types of question_types.TYPES")


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """What makes a question bad."""

    min_anchor_words: int = 15
    max_anchor_words: int = 30
    blind_votes: int = 2  # answered right so often without the video, options shuffled: dropped. 0: not asked
    one_frame: bool = True  # answered from a single frame: marked
    repeat_votes: int = 2  # answered so often with the frames: dropped where the answers differ. 0: not asked
    duplicate_share: float = 0.8  # of the pairs of words of two questions about one clip: the later one goes
    max_frames: int = 16  # shown for the repeats


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    name: str = "eagle_video"
    validation_share: float = 0.02  # of the videos
    variants: tuple[str, ...] = ("clip", "time", "context")  # rows of a clip's question: the clip alone, and anchored
    drop_marks: tuple[str, ...] = ()  # "one_frame" leaves out what one frame answers
    multiple_choice_share: float = 0.0  # of the questions that are asked with options
    num_shown: int = 40  # questions on the page
    shown_frames: int = 4  # of each


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig:
    """All settings of a run of `eagle annotate`, as its TOML file has them."""

    out: str  # the run's folder
    videos: str  # a folder of films, or JSON Lines of {"path", and perhaps "title", "description", "licence", ...}
    root: str | None = None  # the folder of the films; none: the folder of `videos`
    seed: int = 0
    part_videos: int = 200  # a part is done and written as one
    max_attempts: int = 3  # at a request whose answer is no JSON or breaks its schema
    batch: bool = False  # requests go as batches, where the endpoint has them: half the price, answers within a day
    prompts: str | None = None  # a folder whose files replace the prompts of the same names
    annotator: EndpointConfig
    reader: EndpointConfig | None = None  # a text-only model that answers blind; none: the annotator
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    select: SelectConfig = field(default_factory=SelectConfig)
    segment: SegmentConfig = field(default_factory=SegmentConfig)
    story: StoryConfig = field(default_factory=StoryConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)
    build: BuildConfig = field(default_factory=BuildConfig)

    def __post_init__(self) -> None:
        require(self.part_videos >= 1, "part_videos", self.part_videos, "at least 1")
        require(self.max_attempts >= 1, "max_attempts", self.max_attempts, "at least 1")

    @property
    def media_root(self) -> Path:
        videos = Path(self.videos)
        return Path(self.root) if self.root else videos if videos.is_dir() else videos.parent


def read_config(path: Path, assignments: Sequence[str] = ()) -> AnnotateConfig:
    """The config in a TOML or JSON file, with "path.to.field=value" applied. Raises ConfigError or ValueError."""
    config = override(from_json(AnnotateConfig, _read(path)), assignments)
    base = path.parent
    config = replace(config, out=str(base / config.out), videos=str(base / config.videos))
    config = replace(config, root=_under(base, config.root), prompts=_under(base, config.prompts))
    select, segment = config.select, config.segment
    select = replace(
        select,
        encoder=_under(base, select.encoder),
        reference=_under(base, select.reference),
        benchmark_hashes=_under(base, select.benchmark_hashes),
    )
    segment = replace(segment, vitt=_under(base, segment.vitt), vidchapters=_under(base, segment.vidchapters))
    return replace(config, select=select, segment=segment)


def _under(base: Path, path: str | None) -> str | None:
    return None if path is None else str(base / path)


def _read(path: Path) -> Any:
    if path.suffix == ".json":
        return read_json(path, max_bytes=MAX_CONFIG_BYTES)
    try:
        import tomllib
    except ModuleNotFoundError:
        raise ConfigError(f"{path}: TOML needs Python 3.11; write the same as JSON, in a file named .json.") from None
    if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is no file of at most {MAX_CONFIG_BYTES} bytes.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from None
