"""The card of a built data set: what it holds and what was left out, by the numbers that the paper gives of its own.

statistics = Statistics()
for question in questions: statistics.count(question, most_shown=40, seed=0)
write_card(Path("build/card.md"), config, num_rows, num_videos, statistics)
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from eagle_model.annotate.config import AnnotateConfig
from eagle_model.annotate.question_types import stable_random
from eagle_model.files import write_text

DURATIONS = (30, 60, 180, 600, 1200, 1800, 3600, 7200, 12_000)  # edges, seconds; the paper's longest is about 12,000
LENGTHS = (5, 10, 20, 40, 80, 160)  # edges, words


@dataclass
class Statistics:
    """Counts over questions as they pass; memory does not grow with them."""

    num_questions: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    marks: Counter[str] = field(default_factory=Counter)
    types: Counter[str] = field(default_factory=Counter)
    variants: Counter[str] = field(default_factory=Counter)
    durations: Counter[int] = field(default_factory=Counter)
    question_words: Counter[int] = field(default_factory=Counter)
    answer_words: Counter[int] = field(default_factory=Counter)
    clip_seconds: Counter[int] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)  # videos
    sources: Counter[str] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0  # of all videos
    _shown: list[tuple[float, str, dict[str, Any]]] = field(default_factory=list)

    def count(self, question: dict[str, Any], *, most_shown: int, seed: int) -> None:
        """Of one question, kept or not; a random `most_shown` of all are remembered."""
        self.num_questions += 1
        self.reasons[question["reason"] or "kept"] += 1
        self.marks.update(question["marks"])
        entry = (-stable_random(seed, "shown", question["id"]).random(), question["id"], question)
        if len(self._shown) < most_shown:
            heapq.heappush(self._shown, entry)
        elif most_shown and entry > self._shown[0]:
            heapq.heapreplace(self._shown, entry)
        if question["reason"] is None:
            self.types[question["type"]] += 1
            self.prompts[question["prompt"]] += 1
            self.models[question["model"]] += 1
            self.question_words[_bin(len(question["question"].split()), LENGTHS)] += 1
            self.answer_words[_bin(len(question["answer"].split()), LENGTHS)] += 1
            if question["start"] is not None:
                self.clip_seconds[_bin(question["end"] - question["start"], DURATIONS)] += 1

    def count_video(self, question: dict[str, Any]) -> None:
        """Of a video that gives rows, by one of its questions."""
        self.durations[_bin(question["duration_seconds"], DURATIONS)] += 1
        self.seconds += question["duration_seconds"]
        self.licences[question["licence"] or "not stated"] += 1
        self.sources[question["source"] or "not stated"] += 1

    @property
    def shown(self) -> list[dict[str, Any]]:
        """The remembered questions, by name."""
        return [question for _, _, question in sorted(self._shown, key=lambda entry: entry[1])]


def _bin(value: float, edges: Sequence[int]) -> int:
    return next((i for i, edge in enumerate(edges) if value < edge), len(edges))


def write_card(
    path: Path,
    config: AnnotateConfig,
    num_rows: Mapping[str, int],
    num_videos: Mapping[str, int],
    statistics: Statistics,
) -> None:
    s = statistics
    kept = s.reasons["kept"]
    splits = [[n, f"{num_videos.get(n, 0):,}", f"{num_rows.get(n, 0):,}"] for n in ("train", "validation")]
    parts = [
        f"# {config.build.name}",
        "Questions about videos, written and checked by models, in the way that the paper of Eagle 2.5 describes for "
        "Eagle-Video-110K. Made by `eagle annotate`; each row names its prompt, its model and the raw answer it is of.",
        _table("Splits", ("split", "videos", "rows"), splits),
        f"{s.seconds / 3600:,.1f} hours of video. {kept:,} of {s.num_questions:,} questions were kept.",
        _counts("Kept and dropped, by reason", s.reasons),
        _counts("Marks", s.marks),
        _counts("Variants of rows", s.variants),
        _histogram("Durations of videos", s.durations, DURATIONS, "s"),
        _histogram("Durations of clips", s.clip_seconds, DURATIONS, "s"),
        _histogram("Length of questions", s.question_words, LENGTHS, "words"),
        _histogram("Length of answers", s.answer_words, LENGTHS, "words"),
        _counts("Types of questions", s.types),
        _counts("Licences of the videos", s.licences),
        _counts("Sources of the videos", s.sources),
        _counts("Models", s.models),
        _counts("Prompts", s.prompts),
        "The videos stay under their own licences; the terms of the models that wrote the answers hold for the rows. "
        "Questions about who a person is were "
        + ("not asked." if "human_identity" in config.clip.without else "asked."),
    ]
    write_text(path, "\n\n".join(filter(None, parts)) + "\n")


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        "| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in (head, ["---"] * len(head), *rows)
    ]
    return f"## {title}\n\n" + "\n".join(lines)


def _counts(title: str, counts: Counter[str]) -> str:
    rows = [[name, f"{count:,}"] for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    return _table(title, ("what", "number"), rows) if rows else ""


def _histogram(title: str, counts: Counter[int], edges: Sequence[int], unit: str) -> str:
    names = [f"below {edges[0]:,} {unit}"]
    names += [f"{a:,} to {b:,} {unit}" for a, b in pairwise(edges)] + [f"{edges[-1]:,} {unit} or more"]
    rows = [[name, f"{counts[i]:,}"] for i, name in enumerate(names) if counts[i]]
    return _table(title, (unit, "number"), rows) if rows else ""
