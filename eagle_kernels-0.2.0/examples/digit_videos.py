"""A small video question-answering set from real handwritten digits, as real H.264 files.

Two kinds of clip, each 0.5 s a hop at 8 frames a second:
  movement  one digit hops over a grid; along one axis it advances steadily, along the other it jumps at random.
            "Which way does the digit move?"  left | right | up | down
            The set of places it visits is a random permutation on both axes, so that it says nothing about the
            answer: only the order of the frames does. With frames shuffled nobody can beat 1 in 4.
  needle    another digit every hop. "Which digit is in frame k?"  0 ... 9; a training clip asks it of every frame in
            random order, turn by turn; a held-out clip of one frame.

The digits are scikit-learn's copy of the UCI set (8 x 8 pixels, 1,797 images); held-out clips use digit images that no
training clip shows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

FRAMES_PER_SECOND = 8
FRAMES_PER_HOP = 4  # half a second: Eagle's 2 frames a second see each hop once
SIZE_PX = 56
WAYS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
ASK_MOVEMENT = "Which way does the digit move?"

Clip = tuple[NDArray[np.uint8], list[tuple[str, str]]]  # frames (L, Y, X, 3), turns of question and answer


def enlarge(digit_88: NDArray[np.float64], size_px: int) -> NDArray[np.uint8]:
    """One 8 x 8 digit of 0..16 grey levels as a (size_px, size_px) picture of 0..255."""
    small = Image.fromarray((digit_88 * (255 / 16)).astype(np.uint8))
    return np.asarray(small.resize((size_px, size_px), Image.Resampling.BICUBIC))


def place(picture: NDArray[np.uint8], left_px: int, top_px: int) -> NDArray[np.uint8]:
    """The picture on a dark frame: (Y, X, 3)."""
    frame = np.full((SIZE_PX, SIZE_PX), 16, np.uint8)
    height_px, width_px = picture.shape
    window = frame[top_px : top_px + height_px, left_px : left_px + width_px]
    np.maximum(window, picture, out=window)
    return frame[:, :, None].repeat(3, axis=2)


def movement_clip(rng: np.random.Generator, pictures: NDArray[np.float64], labels: NDArray[np.int64]) -> Clip:
    way = list(WAYS)[rng.integers(4)]
    num_hops = int(rng.integers(4, 7))
    digit = enlarge(pictures[rng.integers(len(pictures))], 24)
    places_px = np.linspace(0, SIZE_PX - len(digit), num_hops).round().astype(int)
    advance, jump = places_px, rng.permutation(places_px)
    dx, dy = WAYS[way]
    along = advance if dx + dy > 0 else advance[::-1]
    path = list(zip(along, jump, strict=True)) if dx else list(zip(jump, along, strict=True))
    return np.stack([place(digit, x, y) for x, y in path]), [(ASK_MOVEMENT, way)]


def needle_clip(rng: np.random.Generator, pictures: NDArray[np.float64], labels: NDArray[np.int64]) -> Clip:
    chosen = rng.integers(len(pictures), size=rng.integers(1, 4))
    corners = rng.integers(0, SIZE_PX - 44 + 1, (len(chosen), 2))
    hops = np.stack([place(enlarge(pictures[i], 44), x, y) for i, (x, y) in zip(chosen, corners, strict=True)])
    order = rng.permutation(len(chosen))
    return hops, [(f"Which digit is in frame {k + 1}?", str(labels[chosen[k]])) for k in order]


KINDS: dict[str, Callable[..., Clip]] = {"movement": movement_clip, "needle": needle_clip}
TRAIN_SHARE = {"movement": 1 / 3, "needle": 2 / 3}  # reading digits takes more examples than seeing where one goes


def write_h264(path: Path, frames_LYX3: NDArray[np.uint8]) -> None:
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "crf": "18", "threads": "1"}
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.height, stream.width = frames_LYX3.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame_YX3 in frames_LYX3:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_YX3, format="rgb24")))
        container.mux(stream.encode())


def write_split(folder: Path, split: str, kind: str, num_clips: int, held_out: bool, seed: int) -> Iterator[Path]:
    """Writes `num_clips` clips and their JSONL rows in Eagle's format; yields each file's path."""
    digits = load_digits()
    chosen = np.arange(len(digits.images)) % 5 == 0  # every fifth image is held out
    chosen = chosen if held_out else ~chosen
    rng = np.random.default_rng(seed)
    with open(folder / f"{split}.jsonl", "a") as rows:
        for i in range(num_clips):
            hops_HYX3, turns = KINDS[kind](rng, digits.images[chosen], digits.target[chosen])
            path = folder / "clips" / f"{split}-{kind}-{i:05d}.mp4"
            write_h264(path, hops_HYX3.repeat(FRAMES_PER_HOP, axis=0))
            talk = []
            for question, answer in turns[:1] if held_out else turns:
                talk += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            talk[0]["value"] = "<video>\n" + talk[0]["value"]
            row = {"id": path.stem, "video": str(path.relative_to(folder)), "conversations": talk}
            rows.write(json.dumps(row) + "\n")
            yield path


def build(folder: Path, *, num_train: int, num_test: int) -> Iterator[Path]:
    """The whole set: train.jsonl, test.jsonl, clips/ and recipe.json. Nothing is left half made: an interrupted
    build starts again."""
    making = folder.with_name(folder.name + ".making")
    shutil.rmtree(making, ignore_errors=True)
    (making / "clips").mkdir(parents=True)
    for seed, kind in enumerate(KINDS):
        yield from write_split(making, "train", kind, round(num_train * TRAIN_SHARE[kind]), held_out=False, seed=seed)
        yield from write_split(making, "test", kind, num_test // 2, held_out=True, seed=100 + seed)
    recipe = {"digits": {"root": ".", "annotation": "train.jsonl", "repeat_time": 1}}
    (making / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
    making.rename(folder)
