"""Rows of the training data that a benchmark has too: the same videos, images or questions.

    benchmark = Benchmark.of(questions, Path("Video-MME"))
    for match in benchmark.matches(sample): print(match.kind, match.question, match.value)

Four signs, each told apart in what is found:
    question   the same words, five or more, or thirteen in a row in common
    name       a video's file of the same name (YouTube's and other ids are names), six characters or more
    file       the same bytes
    look       pictures that look the same: hashes of 64 brightness differences, at most 4 of them different; of a video
               the frames at a quarter, half and three quarters of it, all three
A clip cut out of a benchmark's film under another name is not found, nor is a question in other words.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from eagle_model.data.clips import open_video
from eagle_model.data.images import load_image
from eagle_model.data.sample import DOCUMENT_SUFFIX, DataError, Sample
from eagle_model.evaluate.show import inside
from eagle_model.evaluate.task import Question

MIN_WORDS = 5  # of a question that is compared whole: "What is this?" is everybody's
RUN_WORDS = 13  # in a row, as GPT-3's authors chose them
MIN_NAME_CHARS = 6
MIN_STEP = 6  # of 255 levels: less is what a codec makes of a plain area
MAX_BITS = 4  # of 64 that may differ; JPEG at quality 75 turns 0 to 2
_BAND_BITS = 12  # hashes that differ in at most 4 of 64 bits agree on one of 5 bands
_HASH_BYTES = 1 << 20  # of a file's start, and of its end: enough to know it by, beside its length


class Match(NamedTuple):
    kind: str  # question, name, file or look
    question: str  # the benchmark's
    value: str  # what is the same


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def look(picture: Image.Image) -> int | None:
    """64 bits: where the picture, 9 x 8 small and grey, gets brighter from left to right. None where it is all but
    plain: such pictures all look the same."""
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    if grey.max() - grey.min() < 8:
        return None
    return int("".join("1" if bit else "0" for bit in (grey[:, 1:] > grey[:, :-1] + MIN_STEP).ravel()), 2)


def video_looks(path: Path) -> tuple[int, ...]:
    """Of three frames; () where one is plain. Raises DataError where the file cannot be read."""
    try:
        video = open_video(path)
        times = [video.info.duration_seconds * part for part in (0.25, 0.5, 0.75)]
        looks = [look(Image.fromarray(frame.rgb_YX3.numpy())) for frame in video.frames(times)]
    except (ValueError, OSError) as error:
        raise DataError(f"video {path} cannot be read: {error}") from error
    return tuple(seen for seen in looks if seen is not None) if None not in looks else ()


def file_key(path: Path) -> str:
    """Length and a hash of the first and last megabyte."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_HASH_BYTES))
        file.seek(max(0, size - _HASH_BYTES))
        digest.update(file.read(_HASH_BYTES))
    return f"{size}:{digest.hexdigest()}"


def _bands(seen: int) -> Iterator[tuple[int, int]]:
    for i in range(64 // _BAND_BITS):
        yield i, seen >> (i * _BAND_BITS) & ((1 << _BAND_BITS) - 1)


@dataclass
class Benchmark:
    """What is to be found: words, names, files and looks of a benchmark's questions, with the first that has each."""

    questions: dict[str, str] = field(default_factory=dict)
    runs: dict[tuple[str, ...], str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    images: dict[tuple[int, int], list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    videos: list[tuple[tuple[int, ...], str]] = field(default_factory=list)

    @classmethod
    def of(cls, questions: Iterable[Question], folder: Path) -> Benchmark:
        """Media that are not there are known by their names alone. Raises DataError for names that lead out."""
        found = cls()
        seen: set[str] = set()
        for question in questions:
            found._add_text(question)
            if question.video and question.video not in seen:
                seen.add(question.video)
                path = inside(folder, question.video)
                if len(path.stem) >= MIN_NAME_CHARS:
                    found.names.setdefault(path.stem.lower(), question.id)
                if path.is_file():
                    found.files.setdefault(file_key(path), question.id)
                    if path.suffix.lower() != DOCUMENT_SUFFIX and (looks := video_looks(path)):
                        found.videos.append((looks, question.id))
            for source in question.images:
                found._add_image(question, source, folder)
        return found

    def _add_text(self, question: Question) -> None:
        said = words(question.text.partition("\n")[0])
        if len(said) >= MIN_WORDS:
            self.questions.setdefault(" ".join(said), question.id)
        for i in range(len(said) - RUN_WORDS + 1):
            self.runs.setdefault(tuple(said[i : i + RUN_WORDS]), question.id)

    def _add_image(self, question: Question, source: str | bytes, folder: Path) -> None:
        if isinstance(source, str):
            path = inside(folder, source)
            if not path.is_file():
                return
            self.files.setdefault(file_key(path), question.id)
            picture = Image.fromarray(load_image(path).numpy())
        else:
            picture = Image.open(io.BytesIO(source))
        if (seen := look(picture)) is not None:
            for band in _bands(seen):
                self.images[band].append((seen, question.id))

    def looks(self) -> set[int]:
        """Of all its pictures and frames: what `eagle annotate select` knows it by (`select.benchmark_hashes`)."""
        return {seen for band in self.images.values() for seen, _ in band} | {s for v, _ in self.videos for s in v}

    def matches(self, sample: Sample) -> list[Match]:
        """What a training row shares with the benchmark. Raises DataError where a file of it cannot be read."""
        found = [match for turn in sample.turns if turn.role == "user" for match in self._text(turn.text)]
        for image in sample.images:
            if image.in_memory is None and (same := self.files.get(file_key(image.path))):
                found.append(Match("file", same, str(image.path)))
            elif match := self._image(Image.fromarray(load_image(image.source).numpy()), str(image.path)):
                found.append(match)
        for video in sample.videos:
            found += self._video(video.path)
        return list(dict.fromkeys(found))

    def _text(self, text: str) -> Iterator[Match]:
        for line in text.split("\n"):
            said = words(line)
            if same := self.questions.get(" ".join(said)):
                yield Match("question", same, line.strip())
                return
            for i in range(len(said) - RUN_WORDS + 1):
                run = tuple(said[i : i + RUN_WORDS])
                if same := self.runs.get(run):
                    yield Match("question", same, " ".join(run))
                    return

    def _image(self, picture: Image.Image, name: str) -> Match | None:
        seen = look(picture)
        if seen is None:
            return None
        for band in _bands(seen):
            for other, question in self.images.get(band, ()):
                if (seen ^ other).bit_count() <= MAX_BITS:
                    return Match("look", question, name)
        return None

    def _video(self, path: Path) -> Iterator[Match]:
        if same := self.names.get(path.stem.lower()):
            yield Match("name", same, path.stem)
            if not path.is_file():
                return
        if not path.is_file():
            raise DataError(f"video {path} does not exist; without it its name alone is compared, which nothing has.")
        if same := self.files.get(file_key(path)):
            yield Match("file", same, str(path))
        elif self.videos and path.suffix.lower() != DOCUMENT_SUFFIX and (looks := video_looks(path)):
            for others, question in self.videos:
                if all((a ^ b).bit_count() <= MAX_BITS for a, b in zip(looks, others)):
                    yield Match("look", question, str(path))
                    break
