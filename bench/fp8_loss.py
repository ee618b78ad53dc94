"""Does a model learn in FP8 what it learns in bf16? A tiny one, twice from the same start, on the same text.

    python -m bench.fp8_loss --out bench/results/fp8-loss-cpu.json

Task     Tokens of a noisy chain: with 80 % the successor of the token before, by a random table, else any. Its entropy
         is 1.4 nats a token, so the loss stays far from 0 and 2 % of it mean something.
Compared the loss on text that was not trained on, as a mean over the last evaluations: one alone is noisy.
Planted  a scale four times wrong, which a test must see: what a product's codes stand for is four times too large.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.machine import machine
from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.model import fp8
from eagle_model.model.config import EagleConfig, tiny
from eagle_model.model.eagle import Eagle
from eagle_model.model.fp8_config import Fp8Config
from eagle_model.model.fp8_quantize import Codes
from eagle_model.model.loss import sqrt_mass
from eagle_model.train.config import OptimizerConfig
from eagle_model.train.optimizer import Optimizer, learning_rate
from eagle_model.train.precision import Masters

VOCAB_SIZE = 64
LIMIT = 0.02  # of bf16's loss, relative
NUM_STEPS, SEEDS = 200, (0, 1, 2)
RECIPES = ("current", "block", "mxfp8")
PLANTS = ("x", "weight", "gradient")  # what has a wrong scale, one kind a seed
OPTIMIZER = OptimizerConfig(learning_rate=2e-3, betas=(0.9, 0.95), weight_decay=0.01, warmup_ratio=0.05)


def model_config() -> EagleConfig:
    """Two layers whose widths every recipe takes."""
    cfg = tiny(vocab_size=VOCAB_SIZE, image_token_id=VOCAB_SIZE - 1)
    return replace(cfg, text=replace(cfg.text, intermediate_size=256, num_hidden_layers=2))


def rows(seed: int, num_tokens: int) -> Iterator[PackedBatch]:
    """Rows of text without an end; a seed is another chain's walk, the chain is the same."""
    successor = torch.randperm(VOCAB_SIZE, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    while True:
        noise = torch.randint(0, VOCAB_SIZE, (num_tokens,), generator=generator).tolist()
        follows = (torch.rand(num_tokens, generator=generator) < 0.8).tolist()
        ids = [noise[0]]
        for other, goes_on in zip(noise[1:], follows[1:], strict=True):
            ids.append(int(successor[ids[-1]]) if goes_on else other)
        token_ids_T = torch.tensor(ids)
        yield PackedBatch(
            token_ids_T=token_ids_T,
            labels_T=torch.cat([token_ids_T[1:], torch.tensor([IGNORE_INDEX])]),
            positions_T=torch.arange(num_tokens, dtype=torch.int32),
            cu_seqlens=torch.tensor([0, num_tokens], dtype=torch.int32),
            patches_IPK=torch.zeros(0, 16, 147, dtype=torch.bfloat16),
            visual_rows_N=torch.zeros(0, dtype=torch.int64),
            sample_ids=(f"chain-{seed}",),
        )


def train(config: Fp8Config | None, *, seed: int, num_steps: int, num_tokens: int = 121) -> list[float]:
    """Held-out losses, every tenth step. num_tokens: of a row; no multiple of 16, so that rows are padded."""
    torch.manual_seed(seed)
    model = Eagle(model_config())
    model.vision.requires_grad_(False)
    model.connector.requires_grad_(False)
    if config is not None:
        fp8.use_fp8(model, config)
    optimizer = Optimizer(Masters(model, torch.bfloat16), OPTIMIZER)
    held_out, data, losses = next(rows(10_000, 1024)), rows(seed, num_tokens), []
    for step in range(num_steps):
        loss_of(model, next(data)).backward()
        optimizer.clip()
        optimizer.step(learning_rate(OPTIMIZER, step, num_steps))
        if (step + 1) % 10 == 0:
            with torch.no_grad():
                losses.append(loss_of(model, held_out).item())
    return losses


def loss_of(model: Eagle, batch: PackedBatch) -> Tensor:
    return model(batch, sqrt_mass(batch.labels_T, batch.cu_seqlens))


def last(losses: list[float]) -> float:
    return sum(losses[-3:]) / len(losses[-3:])


@contextmanager
def wrong_scale(what: str) -> Iterator[None]:
    """Codes of one kind of tensor stand for four times what they should; what: x, weight or gradient."""
    right = fp8._codes

    def wrong(x: Tensor, *args: object, is_weight: bool = False, is_gradient: bool = False) -> Codes:
        codes = right(x, *args, is_weight=is_weight, is_gradient=is_gradient)  # type: ignore[arg-type]
        kind = "weight" if is_weight else "gradient" if is_gradient else "x"
        return Codes(codes.values, codes.scale / 4) if kind == what else codes

    with mock.patch.object(fp8, "_codes", wrong):
        yield


def ways(seed: int) -> dict[str, tuple[Fp8Config | None, str | None]]:
    """What is run from a seed, by name: (config, what has a wrong scale)."""
    wrong = PLANTS[SEEDS.index(seed)]
    found: dict[str, tuple[Fp8Config | None, str | None]] = {"bf16": (None, None)}
    found |= {recipe: (Fp8Config(recipe=recipe), None) for recipe in RECIPES}
    return {**found, f"current, {wrong} four times wrong": (Fp8Config(), wrong)}


def measure(out: Path) -> None:
    """Each run is kept as it comes; called again with the same file, it goes on."""
    about = machine("torch")
    result: dict[str, Any] = {
        "what": f"held-out loss of a tiny model after {NUM_STEPS} steps; FP8 emulated on a CPU",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": about.pop("commit"),
        "versions": about.pop("versions"),
        "machine": {**about, "threads": torch.get_num_threads()},
        "limit": LIMIT,
        "runs": [],
    }
    if out.is_file():
        result = json.loads(out.read_text())
    runs: list[dict[str, Any]] = result["runs"]
    for seed in SEEDS:
        for name, (config, wrong) in ways(seed).items():
            if any((run["seed"], run["way"]) == (seed, name) for run in runs):
                continue
            with nullcontext() if wrong is None else wrong_scale(wrong):
                loss = last(train(config, seed=seed, num_steps=NUM_STEPS))
            bf16 = next((run["loss"] for run in runs if (run["seed"], run["way"]) == (seed, "bf16")), loss)
            runs.append({"seed": seed, "way": name, "loss": loss, "beside_bf16": loss / bf16 - 1})
            out.write_text(json.dumps(result, indent=1) + "\n")
            print(f"seed {seed}  {name:30} {loss:.4f}  {100 * (loss / bf16 - 1):+.2f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    measure(parser.parse_args().out)


if __name__ == "__main__":
    main()
