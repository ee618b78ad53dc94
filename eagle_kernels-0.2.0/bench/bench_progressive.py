"""Stages 1 to 4 in small against the last context alone: who answers better about long videos, after as many steps?

    python -m bench.bench_progressive --work /tmp/progressive --out bench/results/progressive-cpu.json

A model of under a million parameters learns from scratch in which colour the scene behind a digit is lit last: each
film of 60 to 160 frames has two lights, of an eighth of it each.
Both arms take as many steps and as many tokens a step: the stages have contexts of 256 to 4,096 tokens and 16 rows to 1
a step, as the paper's batch sizes fall while contexts rise; the control has one row of 4,096 tokens in every step. So
the stages see more films early, with fewer frames of each (ADS), and the control fewer films, each whole. The learning
rate is constant and falls in the last steps, of both. Three seeds of weights and data order. What is compared: right
answers, and the loss, on held-out films at the last context; the difference of the arms' means in units of its standard
error.
Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.datasets import load_digits

from bench.machine import machine
from eagle_model.data.packing import pack_row
from eagle_model.data.processor import Processor
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import read_samples
from eagle_model.model.eagle import Eagle
from eagle_model.model.loss import sqrt_mass
from eagle_model.train.config import TrainConfig
from eagle_model.train.progressive import Progressive
from eagle_model.train.recipes import tiny
from eagle_model.train.trainer import Trainer
from examples.digit_videos import FRAMES_PER_SECOND, SIZE_PX, enlarge, place, write_h264

Schedule = Literal["linear", "constant", "wsd"]
STAGES = {  # name: context, rows a step, share of all steps
    "stage1": (256, 16, 0.05),
    "stage1_5": (512, 8, 0.35),
    "stage2": (1024, 4, 0.25),
    "stage3": (2048, 2, 0.2),
    "stage4": (4096, 1, 0.15),
}
SCHEDULES: dict[str, Schedule] = {"stage4": "linear", "control": "wsd"}  # falling over the last steps of both
FRAMES = (60, 160)  # of a film
QUESTION = "In which colour is the scene lit last?"
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0)}
LIGHT = 160  # of 255
SEEDS = (0, 1, 2)


def write_films(folder: Path, split: str, num_films: int, *, held_out: bool, seed: int) -> None:
    """A digit that hops at random, behind it two lights, and rows that ask for the colour of the second."""
    digits = load_digits()
    chosen = (np.arange(len(digits.images)) % 5 == 0) == held_out
    rng, rows = np.random.default_rng(seed), []
    (folder / split).mkdir(parents=True, exist_ok=True)
    for i in range(num_films):
        colours, num_frames = rng.permutation(list(COLOURS))[:2].tolist(), int(rng.integers(*FRAMES))
        digit = enlarge(digits.images[chosen][rng.integers(chosen.sum())], 32)
        path = rng.integers(SIZE_PX - len(digit) + 1, size=(num_frames, 2))
        frames_LYX3 = np.stack([place(digit, x, y) for x, y in path])
        length = num_frames // 8
        first = int(rng.integers(num_frames - 2 * length + 1))
        second = int(rng.integers(first + length, num_frames - length + 1))
        for colour, start in zip(colours, (first, second), strict=True):
            lit = frames_LYX3[start : start + length]
            np.maximum(lit, LIGHT * np.array(COLOURS[colour], np.uint8), out=lit)
        film = f"{split}/{i:04d}.mp4"
        write_h264(folder / film, frames_LYX3)
        talk = [{"from": "human", "value": f"<video>\n{QUESTION}"}, {"from": "gpt", "value": colours[1]}]
        rows.append({"id": f"{split}-{i:04d}", "video": film, "conversations": talk})
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(films: Path, name: str, *, context: int, rows: int, max_steps: int, seed: int) -> TrainConfig:
    base = tiny()
    sampling = replace(
        base.processor.sampling, context_tokens=context, min_frames=1, frames_per_second=float(FRAMES_PER_SECOND)
    )
    return replace(
        base,
        recipe_name=name,
        processor=replace(base.processor, sampling=sampling, template="training-1", system=""),
        data=replace(base.data, recipe=str(films / "train.jsonl"), seed=seed, num_workers=1),
        optimizer=replace(base.optimizer, schedule=SCHEDULES.get(name, "constant"), decay_ratio=STAGES["stage4"][2]),
        max_steps=max_steps,
        rows_per_step=rows,
        seed=seed,
        save_every_steps=max_steps,
        keep_last=1,
        train_vision=name != "stage1",
        train_llm=name != "stage1",
    )


def train(films: Path, folder: Path, arm: str, *, num_steps: int, seed: int) -> Path:
    """Trains one arm; returns the folder of its last run."""
    context, rows, _ = STAGES["stage4"]
    if arm == "control":
        alone = config(films, "control", context=context, rows=rows, max_steps=num_steps, seed=seed)
        if not Trainer(alone, folder).train():
            raise SystemExit("stopped; the same command goes on")
        return folder
    stages = [
        config(films, name, context=context, rows=rows, max_steps=round(share * num_steps), seed=seed)
        for name, (context, rows, share) in STAGES.items()
    ]
    assert sum(stage.max_steps or 0 for stage in stages) == num_steps, "the shares make other steps"
    if not Progressive(stages, folder).train():
        raise SystemExit("stopped; the same command goes on")
    return folder / "stage4"


@torch.no_grad()
def evaluate(run: Path, films: Path) -> dict[str, float]:
    """The share of right answers, and the loss of the right ones, on the held-out films."""
    model, processor = Eagle.from_pretrained(run, dtype=torch.float32).eval(), Processor.from_pretrained(run)
    (source,) = read_recipe(films / "test.jsonl")
    right, loss, mass, num_films = 0, 0.0, 0.0, 0
    for sample in read_samples(source):
        question = replace(sample, turns=sample.turns[:-1])
        tokens, patches = processor.load_sample(processor.plan_sample(question, generation_prompt=True))
        stop = processor.encoder.stop_token_ids
        (ids,) = model.generate(pack_row([tokens], patches), max_new_tokens=8, stop_token_ids=stop)
        answer = processor.tokenizer.decode(list(processor.encoder.spoken_ids(ids)))
        right += answer.strip() == sample.turns[-1].text
        tokens, patches = processor.load_sample(processor.plan_sample(sample))
        row = pack_row([tokens], patches)
        loss += float(model(row, torch.ones(())))
        mass += float(sqrt_mass(row.labels_T, row.cu_seqlens))
        num_films += 1
    return {"right": right / num_films, "loss": loss / mass}


def totals(folder: Path) -> dict[str, int]:
    """Steps and tokens of all runs under a folder."""
    lines = [json.loads(line) for log in folder.rglob("metrics.jsonl") for line in log.read_text().splitlines()]
    return {"steps": len(lines), "tokens": sum(line["num_tokens"] for line in lines)}


def compared(results: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Of each figure: the arms' means, their difference, its standard error, and whether it is more than two of them.

    The seeds of the arms are independent samples: the squares of the standard errors of both means add up.
    """
    figures = {}
    for name, sign in (("right", 1), ("loss", -1)):
        staged, control = ([result[name] for result in results[arm]] for arm in ("progressive", "control"))
        error = math.sqrt(sum(statistics.variance(values) / len(values) for values in (staged, control)))
        better = sign * (statistics.mean(staged) - statistics.mean(control))
        figures[name] = {
            "progressive": staged,
            "control": control,
            "progressive_is_better_by": better,
            "standard_error": error,
            "by_more_than_two_standard_errors": better > 2 * error,
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="the folder of films and runs")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--steps", type=int, default=120, help="of each arm")
    parser.add_argument("--films", type=int, default=300, help="to train on")
    parser.add_argument("--held-out", type=int, default=64, help="films to ask about")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    args = parser.parse_args()
    about = machine("torch", "numpy", "av", "scikit-learn")
    content: dict[str, Any] = {"machine": {**about, "num_threads": torch.get_num_threads()}}
    films = args.work / "films"
    if not (films / "test.jsonl").exists():
        write_films(films, "train", args.films, held_out=False, seed=0)
        write_films(films, "test", args.held_out, held_out=True, seed=1)
    results: dict[str, list[dict[str, float]]] = {"progressive": [], "control": []}
    for seed in range(args.seeds):
        for arm, found in results.items():
            folder, kept = args.work / f"{arm}-{seed}", args.work / f"{arm}-{seed}.json"
            if not kept.exists():
                begin = time.process_time()
                run = train(films, folder, arm, num_steps=args.steps, seed=seed)
                cpu_seconds = round(time.process_time() - begin, 1)
                result = {"seed": seed, **evaluate(run, films), **totals(folder), "train_cpu_seconds": cpu_seconds}
                kept.write_text(json.dumps(result))
            found.append(json.loads(kept.read_text()))
            print(f"{arm} {found[-1]}", flush=True)
    figures = compared(results) if args.seeds > 1 else {}
    content |= {"figures": figures, "runs": results, "stages": STAGES, "frames": FRAMES}
    content |= {"films": args.films, "held_out": args.held_out, "chance": 1 / len(COLOURS)}
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
