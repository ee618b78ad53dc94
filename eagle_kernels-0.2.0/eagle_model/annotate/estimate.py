"""What a run may take, on paper: requests, tokens, dollars, GPU hours of select, disk.

    print("\\n".join(estimate(config, Collection(num_videos=110_000, mean_seconds=600.0)).lines()))

Counts follow from the config and from assumptions, which are all listed: what is not known before the run (how many
videos have chapters, how long texts are) is an assumption, named below with its reason.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from eagle_model.annotate.config import AnnotateConfig
from eagle_model.annotate.records import list_videos
from eagle_model.annotate.similar import BLOCK_ROWS
from eagle_model.infer.endpoint import EndpointConfig

IMAGE_TOKENS = 260  # of a frame of 512 px: Eagle's 256 and its tags; hosted models take some 170 to 1,100
PROMPT_TOKENS = 220  # of our prompts, with their titles; the longest has 2 KB
CAPTION_TOKENS = 260  # of an answer: one sentence and eight
QUESTION_TOKENS = 110  # of a question with its answer and its three wrong ones
CHOICE_TOKENS = 90  # of a question with options, in the filter's prompt
LETTER_TOKENS = 3  # of its answer
HUMAN_SHARE = 0.5  # of videos with chapters that people wrote: those of ViTT and VidChapters have, others do not
CHAPTERS = 8  # of a video that has some; VidChapters-7M's mean is 8.3
SHOT_PIECE_SECONDS = 30.0  # mean of merged shots, of 10 to 120 s
KEPT_TYPES = 0.7  # of the types drawn: the others get null
BLIND_SHARE = 0.35  # of questions that end with the blind votes
RAW_BYTES = 900  # of a journal's line, beside 4 a token of its answer
ENCODER_FRAMES_PER_SECOND = 1500.0  # of CLIP ViT-L/14 on one H100 with frames at hand; not measured by us
DECODE_FRAMES_PER_SECOND = 60.0  # of one CPU core, at 720p, where frames are 1 s apart: an assumption
SEARCH_FLOPS = 3e14  # a second, of exact search on one H100, in bf16
CORE_FLOPS = 5e10  # the same on one CPU core, in float32: an assumption
FEATURE_WIDTH = 768


@dataclass(frozen=True)
class Collection:
    num_videos: int
    mean_seconds: float
    num_reference_clips: int = 1_000_000

    @property
    def num_clips(self) -> float:
        return self.num_videos * max(1.0, self.mean_seconds / 10)


@dataclass(frozen=True)
class Cost:
    """Of one step."""

    name: str
    num_requests: float
    prompt_tokens: float
    answer_tokens: float
    dollars: float


@dataclass(frozen=True)
class Estimate:
    collection: Collection
    steps: tuple[Cost, ...]
    num_questions: float
    select_gpu_hours: float
    search_gpu_hours: float
    decode_core_hours: float
    search_bytes: float  # memory of the search
    feature_bytes: float
    journal_bytes: float
    rows_bytes: float

    @property
    def dollars(self) -> float:
        return sum(step.dollars for step in self.steps)

    @property
    def num_requests(self) -> float:
        return sum(step.num_requests for step in self.steps)

    def lines(self) -> list[str]:
        """As a table, with the assumptions."""
        c = self.collection
        lines = [
            f"{c.num_videos:,} videos of {c.mean_seconds:,.0f} s, {c.num_clips:,.0f} clips of 10 s",
            f"{'step':8} {'requests':>13} {'M prompt tokens':>16} {'M answer tokens':>16} {'dollars':>12}",
        ]
        for s in (*self.steps, _sum("all", self.steps)):
            tokens = f"{s.prompt_tokens / 1e6:16,.1f} {s.answer_tokens / 1e6:16,.1f}"
            lines.append(f"{s.name:8} {s.num_requests:13,.0f} {tokens} {s.dollars:12,.2f}")
        return [
            *lines,
            f"questions written: {self.num_questions:,.0f}",
            f"select: {self.select_gpu_hours:,.1f} GPU hours of encoding, {self.decode_core_hours:,.0f} core hours of "
            f"decoding; search against {c.num_reference_clips:,} clips: {self.search_gpu_hours:,.2f} GPU hours, "
            f"{self.search_bytes / 2**20:,.0f} MiB of memory",
            f"disk: features {_gb(self.feature_bytes)}, journals {_gb(self.journal_bytes)}, "
            f"rows {_gb(self.rows_bytes)}",
            f"assumed: {HUMAN_SHARE:.0%} of videos with {CHAPTERS} chapters, others in {SHOT_PIECE_SECONDS:.0f} s, "
            f"{IMAGE_TOKENS} tokens a frame, {KEPT_TYPES:.0%} of types answered, {BLIND_SHARE:.0%} of questions "
            f"answered blind (annotate/estimate.py has all)",
        ]


def search_cost(num_clips: int, num_reference: int, width: int) -> str:
    """What the search of select will take, said before it starts."""
    flops = 2 * width * num_clips * (num_reference + num_clips / 2)  # the pool with itself, too
    return (
        f"select: compares {num_clips:,} clips with {num_reference:,} of the reference and with each other: about "
        f"{flops / CORE_FLOPS / 3600:,.2f} core hours, {_search_bytes(width) / 2**20:,.0f} MiB of memory"
    )


def _search_bytes(width: int) -> float:
    return 4.0 * BLOCK_ROWS * (2 * width + BLOCK_ROWS)


def estimate(config: AnnotateConfig, collection: Collection | None = None, *, mean_seconds: float = 600.0) -> Estimate:
    """Of any collection, or of the config's own videos: those that select kept, with their durations, where it was
    run; before that all of them, of `mean_seconds` each."""
    c = collection or _own(config, mean_seconds)
    story, clip, checks = config.story, config.clip, config.filter
    annotator, reader = config.annotator, config.reader or config.annotator
    human = c.num_videos * HUMAN_SHARE
    pieces = HUMAN_SHARE * CHAPTERS + (1 - HUMAN_SHARE) * max(1.0, c.mean_seconds / SHOT_PIECE_SECONDS)
    num_clips = c.num_videos * min(float(clip.max_clips), pieces)
    chapter_frames = min(story.max_frames, story.frames_per_second * c.mean_seconds / CHAPTERS)
    clip_frames = min(clip.max_frames, clip.frames_per_second * min(clip.max_seconds, c.mean_seconds / pieces))
    story_questions, clip_questions = human * story.num_questions, num_clips * clip.num_types * KEPT_TYPES
    questions = story_questions + clip_questions
    seen = questions * (1 - BLIND_SHARE)
    captions = human * CHAPTERS
    steps = [
        _cost("select", c.num_videos if config.select.screen else 0, 4 * IMAGE_TOKENS + PROMPT_TOKENS, 20, annotator),
        _cost("story", captions, chapter_frames * IMAGE_TOKENS + PROMPT_TOKENS, CAPTION_TOKENS, annotator),
        _cost(
            "story",
            human,
            CHAPTERS * CAPTION_TOKENS + PROMPT_TOKENS,
            story.num_questions * QUESTION_TOKENS,
            annotator,
        ),
        _cost("clip", num_clips, clip_frames * IMAGE_TOKENS + PROMPT_TOKENS, CAPTION_TOKENS, annotator),
        _cost(
            "clip",
            num_clips,
            clip_frames * IMAGE_TOKENS + PROMPT_TOKENS,
            clip.num_types * KEPT_TYPES * QUESTION_TOKENS,
            annotator,
        ),
        _cost("filter", questions * checks.blind_votes, CHOICE_TOKENS, LETTER_TOKENS, reader),
        _cost("filter", seen * checks.one_frame, CHOICE_TOKENS + IMAGE_TOKENS, LETTER_TOKENS, annotator),
        _cost(
            "filter",
            seen * checks.repeat_votes,
            CHOICE_TOKENS + checks.max_frames * IMAGE_TOKENS,
            LETTER_TOKENS,
            annotator,
        ),
    ]
    merged = tuple(_sum(name, [s for s in steps if s.name == name]) for name in ("select", "story", "clip", "filter"))
    num_frames = c.num_videos * c.mean_seconds * config.select.frames_per_second
    with_encoder = 1.0 if config.select.encoder or collection else 0.0
    compared = c.num_clips * (c.num_reference_clips + c.num_clips / 2)  # the pool with itself, too
    num_requests, answer_tokens = sum(s.num_requests for s in merged), sum(s.answer_tokens for s in merged)
    return Estimate(
        collection=c,
        steps=merged,
        num_questions=questions,
        select_gpu_hours=with_encoder * num_frames / ENCODER_FRAMES_PER_SECOND / 3600,
        search_gpu_hours=with_encoder * 2 * compared * FEATURE_WIDTH / SEARCH_FLOPS / 3600,
        decode_core_hours=num_frames / DECODE_FRAMES_PER_SECOND / 3600,
        search_bytes=_search_bytes(FEATURE_WIDTH),
        feature_bytes=with_encoder * c.num_clips * FEATURE_WIDTH * 2,
        journal_bytes=num_requests * RAW_BYTES + answer_tokens * 4 * 2,  # a text and the raw answer that holds it
        rows_bytes=(story_questions + 3 * clip_questions) * (1 - BLIND_SHARE) * 900,
    )


def _cost(name: str, number: float, prompt_tokens: float, answer_tokens: float, endpoint: EndpointConfig) -> Cost:
    prompt, answer = number * prompt_tokens, number * answer_tokens
    return Cost(name, number, prompt, answer, endpoint.dollars(prompt, answer))


def _sum(name: str, costs: Sequence[Cost]) -> Cost:
    return Cost(
        name,
        sum(c.num_requests for c in costs),
        sum(c.prompt_tokens for c in costs),
        sum(c.answer_tokens for c in costs),
        sum(c.dollars for c in costs),
    )


def _own(config: AnnotateConfig, mean_seconds: float) -> Collection:
    parts = sorted((Path(config.out) / "select").glob("part-*.parquet"))
    seconds = [s for path in parts for s in pq.read_table(path, columns=["duration_seconds"])[0].to_pylist()]
    if seconds:
        num_videos, mean_seconds = len(seconds), sum(seconds) / len(seconds)
    else:
        num_videos = sum(1 for _ in list_videos(Path(config.videos), root=config.media_root))
    folder = Path(config.select.reference) if config.select.reference else None
    num_bytes = sum(os.stat(path).st_size for path in folder.glob("*.npy")) if folder else 0
    return Collection(num_videos, mean_seconds, num_bytes // (2 * FEATURE_WIDTH))


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.1f} GB"
