"""What is trained: one first stage a seed, and from it four ways to go on.

    run = train(size, sets, folder, "progressive", seed=0, start=base, code="")    # killed, it goes on

    base          cards, films of 8 to 12 frames and pages, a short context: reading is learned here, once a seed
    progressive   the paper's stages 2, 3 and 4: contexts of 32K, 64K and 128K tokens are 512, 1,024 and 2,048
    direct        stage 4's context from the first step on, for as many steps as the three stages have together
    no-ads        stage 2 with a fixed number of frames: the most with which every row fits, the longest text too
    no-iap        stage 2 with the grid of the nearest shape (InternVL's rule)

Every step has as many tokens: rows a step fall while contexts rise. The learning rate is constant and falls in the last
steps of each run; `direct` ends as stage 4 does.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eagle_model.data.processor import Processor, ProcessorConfig
from eagle_model.data.recipe import read_recipe
from eagle_model.data.rows import read_samples
from eagle_model.data.sample import DataError
from eagle_model.data.sampling import SamplingConfig
from eagle_model.data.tokenizer import read_tokenizer
from eagle_model.files import read_json, write_json
from eagle_model.train.config import TrainConfig
from eagle_model.train.progressive import Progressive
from eagle_model.train.recipes import tiny
from eagle_model.train.trainer import Trainer
from examples.paper_in_small.sets import TILE_PX, Counts

STAGES = ("stage2", "stage3", "stage4")
ARMS = ("base", "progressive", "no-ads", "no-iap", "direct")
PAPER_TOKENS = {"stage2": "32K", "stage3": "64K", "stage4": "128K"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How large the study is. What is scaled down from the paper: contexts by 64, and all else."""

    contexts: dict[str, int] = field(
        default_factory=lambda: {"base": 256, "stage2": 512, "stage3": 1024, "stage4": 2048}
    )
    steps: dict[str, int] = field(default_factory=lambda: {"base": 700, "stage2": 200, "stage3": 100, "stage4": 100})
    tokens_per_step: int = 2048
    most_frames: int = 160  # of a film
    asked_frames: tuple[int, ...] = (8, 16, 32, 64, 128)  # of held-out films, for the paper's Figure 1
    counts: Counts = field(default_factory=Counts)
    seeds: tuple[int, ...] = (0, 1, 2)


class Stopped(Exception):
    """A run was told to stop; the same command goes on."""


def sampling(size: Size, stage: str, arm: str, fixed_frames: int) -> SamplingConfig:
    """What a row of a stage may hold. fixed_frames: of each film, without ADS."""
    whole = SamplingConfig(context_tokens=size.contexts[stage], min_frames=1)
    if arm == "no-ads":
        return replace(whole, ads=False, max_frames=fixed_frames)
    return replace(whole, tiling="closest_ratio") if arm == "no-iap" else whole


def processor_config(limits: SamplingConfig) -> ProcessorConfig:
    """As the release trains: frames without their times, and here without a system turn."""
    base = tiny().processor
    return replace(base, sampling=limits, tile_px=TILE_PX, template="training-1", system="")


def stage_of(arm: str) -> str:
    """Whose context it has; of the progressive arm the last."""
    return {"base": "base", "no-ads": "stage2", "no-iap": "stage2"}.get(arm, "stage4")


def config(size: Size, sets: Path, stage: str, arm: str, *, seed: int, start: Path | None) -> TrainConfig:
    """start: the run that it starts from; the first stage has none."""
    base, context = tiny(), size.contexts[stage]
    steps = sum(size.steps[name] for name in STAGES) if arm == "direct" else size.steps[stage]
    fixed_frames = most_fixed_frames(size, sets) if arm == "no-ads" else 1
    last = size.steps["stage4" if arm == "direct" else stage]
    return replace(
        base,
        recipe_name=stage if arm == "progressive" else arm,
        model="tiny" if start is None else str(start),
        tokenizer=str(sets / "tokenizer.json") if start is None else "",
        processor=processor_config(sampling(size, stage, arm, fixed_frames)),
        data=replace(
            base.data, recipe=str(sets / f"{'base' if start is None else 'stages'}.json"), seed=seed, num_workers=1
        ),
        optimizer=replace(
            base.optimizer, schedule="wsd", warmup_ratio=0.05 * last / steps, decay_ratio=0.3 * last / steps
        ),
        max_steps=steps,
        rows_per_step=max(1, size.tokens_per_step // context),
        seed=seed,
        save_every_steps=100,
        keep_last=1,
        log_every_steps=50,
    )


def most_fixed_frames(size: Size, sets: Path) -> int:
    """The most frames of each film with which every row fits stage 2's context without ADS, held-out rows too."""
    kept = sets / "fixed_frames.json"
    if not kept.exists():
        tokenizer = read_tokenizer(sets / "tokenizer.json")
        rows = [
            sample
            for name in ("told", "test-told")
            for s in read_recipe(sets / f"{name}.jsonl")
            for sample in read_samples(s)
        ]
        longest = sorted(rows, key=lambda sample: -sum(len(turn.text) for turn in sample.turns))
        frames = size.most_frames

        def fits(limits: SamplingConfig) -> bool:
            processor = Processor(tokenizer, processor_config(limits))
            try:
                for sample in longest:
                    processor.plan_sample(sample)
            except DataError:
                return False
            return True

        while not fits(sampling(size, "stage2", "no-ads", frames)):
            frames -= 1
        write_json(kept, {"frames": frames})
    return int(read_json(kept)["frames"])


def train(
    size: Size, sets: Path, folder: Path, arm: str, *, seed: int, start: Path | None, code: str
) -> dict[str, Any]:
    """Trains an arm, or goes on with it; returns its steps, tokens and seconds, those of the last process. code: the
    hash that is kept with it. Raises Stopped."""
    kept = folder.with_name(f"{folder.name}.json")
    if kept.exists():
        return read_json(kept)
    begin = time.process_time()
    if arm == "progressive":
        stages = [config(size, sets, stage, arm, seed=seed, start=start) for stage in STAGES]
        done = Progressive(stages, folder).train()
    else:
        done = Trainer(config(size, sets, stage_of(arm), arm, seed=seed, start=start), folder).train()
    if not done:
        raise Stopped
    lines = [json.loads(line) for log in sorted(folder.rglob("metrics.jsonl")) for line in log.read_text().splitlines()]
    result = {
        "code": code,
        "steps": len(lines),
        "tokens": sum(line["num_tokens"] for line in lines),
        "last_loss": sum(line["loss"] for line in lines[-20:]) / len(lines[-20:]),
        "cpu_seconds": round(time.process_time() - begin, 1),
    }
    write_json(kept, result)
    return result
