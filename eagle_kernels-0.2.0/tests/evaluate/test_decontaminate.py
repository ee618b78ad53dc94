"""Rows that a known has too, by each of the four signs, and rows that it has not."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eagle_model.data.sample import ImageRef, Sample, Turn, VideoRef
from eagle_model.evaluate.decontaminate import MAX_BITS, Benchmark, look
from eagle_model.evaluate.task import Question
from eagle_model.evaluate.tasks import TASKS

ASKED = "What does the man in the red coat put on the table?"


def picture(seed: int, size: int = 96) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def row(text: str, *media: ImageRef | VideoRef) -> Sample:
    return Sample("1", (Turn("user", (*media, text)), Turn("assistant", ("Yes.",))))


@pytest.fixture
def known(tmp_path: Path, film: Path) -> Benchmark:
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    shutil.copy(film, folder / "data/dQw4w9WgXcQ.mp4")
    task = TASKS["videomme"]
    asked = [
        Question(id="1", task=task, text=f"{ASKED}\nA. cup\nB. hat", video="data/dQw4w9WgXcQ.mp4"),
        Question(id="2", task=task, text="What is this?", images=(jpeg(picture(1), 90),)),
        Question(id="3", task=task, text="Who?", video="data/not_there_1.mp4"),
    ]
    return Benchmark.of(asked, folder)


def kinds(known: Benchmark, sample: Sample) -> list[tuple[str, str]]:
    return [(match.kind, match.question) for match in known.matches(sample)]


def test_questions_by_their_words(known: Benchmark) -> None:
    assert kinds(known, row("what does the man in the red coat put on the table")) == [("question", "1")]
    assert kinds(known, row("Look.\nWhat does the man in the red coat put on the table?")) == [("question", "1")]
    assert kinds(known, row("What is this?")) == [], "everybody's question"
    assert kinds(known, row("What does the man in the blue coat put on the table?")) == []


def test_thirteen_words_in_a_row(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    found = Benchmark.of([Question(id="1", task=TASKS["videomme"], text=long)], tmp_path)
    assert kinds(found, row("Well: " + long.removesuffix(" fourteen") + " and more")) == [("question", "1")]
    assert kinds(found, row(" ".join(long.split()[:12]))) == []


def test_films_by_name_bytes_and_look(known: Benchmark, film: Path, tmp_path: Path) -> None:
    from tests.video.make import draw, write_video

    for name in ("dQw4w9WgXcQ.mp4", "other.mp4"):
        shutil.copy(film, tmp_path / name)
    assert kinds(known, row("?", VideoRef(tmp_path / "dQw4w9WgXcQ.mp4"))) == [("name", "1"), ("file", "1")]
    assert kinds(known, row("?", VideoRef(tmp_path / "other.mp4"))) == [("file", "1")]
    assert kinds(known, row("?", VideoRef(tmp_path / "not_there_1.webm"))) == [("name", "3")]
    smaller = [np.asarray(Image.fromarray(draw(i)).resize((48, 36))) for i in range(30)]
    write_video(tmp_path / "again.mp4", smaller, fps=10, options={"crf": "30"})
    assert kinds(known, row("?", VideoRef(tmp_path / "again.mp4"))) == [("look", "1")]
    write_video(tmp_path / "else.mp4", [np.asarray(picture(i, 64)) for i in range(30)], fps=10)
    assert kinds(known, row("?", VideoRef(tmp_path / "else.mp4"))) == []


def test_images_by_look_after_being_encoded_again(known: Benchmark, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(picture(1).resize((60, 70)), 75))
    (tmp_path / "b.jpg").write_bytes(jpeg(picture(2), 75))
    Image.new("RGB", (50, 50), "white").save(tmp_path / "c.png")
    assert kinds(known, row("?", ImageRef(tmp_path / "a.jpg"))) == [("look", "2")]
    assert kinds(known, row("?", ImageRef(tmp_path / "b.jpg"))) == []
    assert kinds(known, row("?", ImageRef(tmp_path / "c.png"))) == [] and look(Image.new("L", (9, 9))) is None


def test_looks_of_different_pictures_are_far_apart() -> None:
    looks = [look(picture(seed)) for seed in range(40)]
    apart = [(a ^ b).bit_count() for i, a in enumerate(looks) for b in looks[:i]]
    again = [(a ^ look(Image.open(io.BytesIO(jpeg(picture(i), 75))))).bit_count() for i, a in enumerate(looks)]
    assert min(apart) > 2 * MAX_BITS and max(again) <= MAX_BITS
