"""Needles: facts drawn into frames of a real film, at any depth of any length, and questions that need them.

    task, film = TASK, Path("film.mp4")
    for question in needles(film, lengths=(64, 256), depths=5, frame_px=448, seed=0): ...
    heat_map(Path("needles.png"), rows)            # accuracy, depth by length

Nothing is downloaded: any film serves, looped where it is shorter. Four kinds: `one` code to be read, `many` codes at
places all over the film, the `order` in which three colours come, and the `count` of marked frames. `depth` is where
the (first) needle is, 0 the beginning and 1 the end. The same arguments make the same questions, to the pixel.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eagle_model.data.clips import open_video
from eagle_model.evaluate.task import Question, Task, letter

KINDS = ("one", "many", "order", "count")
LENGTHS = (64, 128, 256, 512, 1024, 2048, 4096)  # frames
NUM_MANY = 3  # codes of `many`
_NAMES = ("harbour", "windmill", "orchard", "lighthouse", "bakery", "station")
_COLOURS = {"red": (200, 30, 30), "green": (20, 140, 60), "blue": (30, 60, 200)}
_FRAMES_KEPT = 2  # lengths of film that stay decoded

TASK = Task(
    name="needle",
    title="Needles in a film",
    source="made of any film on the fly",
    revision="of this code",
    seen="this file",
    files={},
    columns={},
    id="",
    score="needle",
    groups=("kind", "length", "depth"),
    max_new_tokens=32,
    max_frames=max(LENGTHS),
)


def needles(
    film: Path,
    *,
    lengths: Sequence[int] = LENGTHS,
    depths: int = 5,
    kinds: Sequence[str] = KINDS,
    repeats: int = 1,
    frame_px: int = 448,
    seed: int = 0,
) -> Iterator[Question]:
    """Questions of each kind, length and depth.

    Args:    lengths: frames that are shown.  depths: so many places, evenly from the first frame to the last.
             repeats: questions of each cell.  frame_px: longer side of the frames that are made.
    Raises:  ValueError for a kind or a length there is none of; DataError where the film cannot be read.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"needles: the kind {unknown[0]!r} is unknown; needs one of {', '.join(KINDS)}.")
    if min(lengths, default=0) < 8 or depths < 1:
        raise ValueError(f"needles: lengths are {tuple(lengths)}, depths {depths}; needs at least 8 frames, 1 depth.")
    for length in lengths:
        for kind in kinds:
            for i in range(depths):
                for repeat in range(repeats):
                    depth = i / (depths - 1) if depths > 1 else 0.5
                    yield _question(film, kind, length, depth, frame_px, repeat, seed)


def _question(film: Path, kind: str, length: int, depth: float, frame_px: int, repeat: int, seed: int) -> Question:
    name = f"{kind}/{length}/{depth:.2f}/{repeat}"
    rng = random.Random(f"{seed}/{name}")
    first = round(depth * (length - 1))
    others = rng.sample([i for i in range(length) if i != first], NUM_MANY - 1)
    places = [first, *others]
    options: tuple[str, ...] = ()
    drawn: dict[int, tuple[str, tuple[int, int, int]]]
    answer: Any
    if kind == "one":
        names, codes = [rng.choice(_NAMES)], [str(rng.randrange(1000, 10_000))]
        drawn = {first: (f"The code of the {names[0]} is {codes[0]}", (0, 0, 0))}
        text, answer = f"What is the code of the {names[0]}? Answer with the number alone.", codes
    elif kind == "many":
        names, codes = rng.sample(_NAMES, NUM_MANY), [str(n) for n in rng.sample(range(1000, 10_000), NUM_MANY)]
        drawn = {at: (f"The code of the {n} is {c}", (0, 0, 0)) for at, n, c in zip(places, names, codes)}
        text, answer = f"What are the codes of {', '.join(names)}? Answer with the numbers alone.", codes
    elif kind == "order":
        colours = rng.sample(sorted(_COLOURS), NUM_MANY)
        drawn = {at: (colour, _COLOURS[colour]) for at, colour in zip(sorted(places), colours)}
        turns = [colours[k:] + colours[:k] for k in range(NUM_MANY)]
        rng.shuffle(turns)
        options = tuple(", ".join(turn) for turn in turns)
        listed = "\n".join(f"{letter(i)}. {option}" for i, option in enumerate(options))
        text = (
            f"In which order do the coloured signs come?\n{listed}\nAnswer with the letter of the right option alone."
        )
        answer = letter(turns.index(colours))
    else:
        number = rng.randrange(1, NUM_MANY + 1)
        drawn = dict.fromkeys(places[:number], ("STAR", (180, 120, 0)))
        text, answer = "In how many frames is there a sign with the word STAR? Answer with the number alone.", number
    return Question(
        id=name,
        task=TASK,
        text=text,
        options=options,
        answer=answer,
        video="",
        made=partial(_parts, film, length, frame_px, drawn),
        fields={"kind": kind, "length": length, "depth": round(depth, 2)},
    )


def _parts(
    film: Path, length: int, frame_px: int, drawn: Mapping[int, tuple[str, tuple[int, int, int]]]
) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    for i, (t, frame) in enumerate(_film(film, length, frame_px)):
        content.append({"type": "text", "text": f"Frame {i + 1} at {t:.2f} s: "})
        picture = _sign(frame, *drawn[i]) if i in drawn else frame
        content.append({"type": "image", "image": picture, "detail": "low"})
    return content


@lru_cache(maxsize=_FRAMES_KEPT)
def _film(film: Path, length: int, frame_px: int) -> tuple[tuple[float, Image.Image], ...]:
    """So many frames, two a second of the film, from its start and again where it ends."""
    video = open_video(film)
    step = max(1, round(len(video.info.frame_times_seconds) / max(1.0, video.info.duration_seconds) / 2))
    times = video.info.frame_times_seconds[::step][:length]
    found = []
    for frame in video.frames(times):
        picture = Image.fromarray(frame.rgb_YX3.numpy())
        picture.thumbnail((frame_px, frame_px))
        found.append(picture)
    return tuple((i / 2, found[i % len(found)]) for i in range(length))


def _sign(frame: Image.Image, text: str, colour: tuple[int, int, int]) -> Image.Image:
    """The frame with a white sign across its middle, the text on it as large as fits."""
    signed = frame.copy()
    draw = ImageDraw.Draw(signed)
    width, height = signed.size
    size = 40
    while size > 6 and draw.textlength(text, font=ImageFont.load_default(size=size)) > 0.9 * width:
        size -= 2
    box = (0, height // 2 - size, width, height // 2 + size)
    draw.rectangle(box, fill=(255, 255, 255), outline=colour, width=2)
    draw.text((width / 2, height / 2), text, fill=colour, font=ImageFont.load_default(size=size), anchor="mm")
    return signed


def share_found(said: str, answer: object) -> float:
    """Of the codes those that are said; of a count whether it is the first number that is said."""
    numbers = re.findall(r"\d+", said)
    if isinstance(answer, list):
        return sum(code in numbers for code in answer) / len(answer)
    return float(numbers[:1] == [str(answer)])


def heat_map(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a picture: for each kind the accuracy by length and depth. Needs matplotlib, the extra `train`."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cells: dict[tuple[str, int, float], list[float]] = defaultdict(list)
    for row in rows:
        key = (row["fields"]["kind"], row["fields"]["length"], row["fields"]["depth"])
        cells[key].append(row["numbers"]["accuracy"])
    kinds, lengths, depths = (
        sorted({k for k, _, _ in cells}),
        sorted({n for _, n, _ in cells}),
        sorted({d for *_, d in cells}),
    )
    figure, axes = plt.subplots(1, len(kinds), figsize=(1.5 + 3.2 * len(kinds), 3.4), squeeze=False)
    for axis, kind in zip(axes[0], kinds):
        values = np.array([[np.mean(cells.get((kind, n, d), [np.nan])) for n in lengths] for d in depths])
        image = axis.imshow(values, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axis.set_xticks(range(len(lengths)), [str(n) for n in lengths], rotation=60)
        axis.set_yticks(range(len(depths)), [f"{d:.0%}" for d in depths])
        axis.set_title(kind)
        axis.set_xlabel("frames")
    axes[0][0].set_ylabel("depth")
    figure.colorbar(image, ax=axes[0].tolist(), label="accuracy")
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)
