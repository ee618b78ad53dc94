"""Scaling over processes on CPUs: tokens a CPU second of two gloo processes, beside one with the same rows a step.

    python -m bench.bench_scaling --out bench/results/scaling-cpu.json

A model of 90 million parameters trains in bf16, NUM_ROWS rows of 8,192 tokens a step, forward, backward and update. The
CPU time of all processes counts, from the end of the first step: that of a shared machine says more than the clock.
Layouts take turns, `--rounds` times; the ratio is of medians. What two processes pay for: weights gathered and
gradients summed over loopback sockets, and, where they share a row, keys, values and visual tokens too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from bench.machine import machine
from eagle_model.batch import IGNORE_INDEX, PackedBatch, tile_range
from eagle_model.data.loader import DataConfig
from eagle_model.model.config import EagleConfig, TextConfig, VisionConfig, tiny
from eagle_model.train.config import OptimizerConfig
from eagle_model.train.context_parallel import share
from eagle_model.train.layout import Layout
from eagle_model.train.optimizer import Optimizer
from eagle_model.train.precision import DTYPES, Masters
from eagle_model.train.ranks import Ranks, start
from eagle_model.train.recipes import debug
from eagle_model.train.start import placed
from eagle_model.train.trainer import accumulate_gradients
from tests.ranks import run

LAYOUTS = {"1 process": {}, "2 data ranks": {"shard": 2}, "2 context ranks": {"context": 2}}
NUM_ROWS = 2  # a step
NUM_DOCUMENTS, TILES_A_DOCUMENT = 4, 16  # of a row


def model_config(is_small: bool) -> EagleConfig:
    """90 million parameters; is_small: a tiny model, to see that this runs."""
    if is_small:
        return tiny()
    return EagleConfig(
        vision=VisionConfig(
            tile_px=112,
            patch_px=14,
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=3,
        ),
        text=TextConfig(
            vocab_size=28_000,
            hidden_size=640,
            intermediate_size=1728,
            num_hidden_layers=12,
            num_attention_heads=10,
            num_key_value_heads=2,
        ),
        image_token_id=7,
    )


def row_of(cfg: EagleConfig, num_tokens: int, seed: int) -> PackedBatch:
    """A packed row of equal documents: pictures, then text, half of which is supervised."""
    generator = torch.Generator().manual_seed(seed)
    length, num_visual = num_tokens // NUM_DOCUMENTS, TILES_A_DOCUMENT * cfg.tokens_per_tile
    token_ids_T = torch.randint(8, cfg.text.vocab_size, (num_tokens,), generator=generator)
    places_T = torch.arange(num_tokens) % length
    token_ids_T[places_T < num_visual] = cfg.image_token_id
    labels_T = token_ids_T.roll(-1).masked_fill(places_T < (length + num_visual) // 2, IGNORE_INDEX)
    labels_T[places_T == length - 1] = IGNORE_INDEX
    num_tiles, side = NUM_DOCUMENTS * TILES_A_DOCUMENT, cfg.vision.tile_px // cfg.vision.patch_px
    return PackedBatch(
        token_ids_T=token_ids_T,
        labels_T=labels_T,
        positions_T=places_T.int(),
        cu_seqlens=torch.arange(0, num_tokens + 1, length, dtype=torch.int32),
        patches_IPK=torch.randn(num_tiles, side * side, 3 * cfg.vision.patch_px**2, generator=generator),
        visual_rows_N=torch.nonzero(places_T < num_visual).flatten(),
        sample_ids=tuple(f"{seed}-{k}" for k in range(NUM_DOCUMENTS)),
        num_labelled=int((labels_T != IGNORE_INDEX).sum()),
    )


def own_part(row: PackedBatch, ranks: Ranks) -> PackedBatch:
    """The row with the tiles of this context rank alone, as the loader gives it."""
    if ranks.num_context == 1:
        return row
    first, end = tile_range(len(row.patches_IPK), ranks.context_rank, ranks.num_context)
    return replace(row, patches_IPK=row.patches_IPK[first:end], tiles=(first, end))


def measured(layout: dict[str, int], num_tokens: int, num_steps: int, is_small: bool) -> list[float]:
    """In one process of a layout: its CPU seconds of `num_steps` steps, and the loss of the last."""
    ranks = start(Layout(**layout), "cpu", rows_per_step=NUM_ROWS)
    base = debug()
    config = replace(base, data=DataConfig(recipe="none"), rows_per_step=NUM_ROWS, layout=Layout(**layout))
    config, dtype = replace(config, dtype="bfloat16"), DTYPES["bfloat16"]
    cfg = model_config(is_small)
    torch.manual_seed(0)
    model = placed(cfg, None, config, ranks).train()
    optimizer = Optimizer(Masters(model, dtype), OptimizerConfig())
    rows = [row_of(cfg, num_tokens, seed) for seed in range(NUM_ROWS)][ranks.data_rank :: ranks.num_data]
    begin, loss = 0.0, 0.0
    for step in range(1 + num_steps):
        if step == 1:
            ranks.barrier()
            begin = time.process_time()
        parts = [own_part(row, ranks) for row in rows]
        shares = ((part.to("cpu", dtype=dtype), share(part, model, ranks)) for part in parts)
        total, mass = accumulate_gradients(model, shares)
        total, mass = ranks.total(total, over="all"), ranks.total(mass)
        optimizer.clip(mass)
        optimizer.step(1e-4)
        loss = float(total / mass)
    return [time.process_time() - begin, loss]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="of a measurement, after the first")
    parser.add_argument("--small", action="store_true", help="a tiny model and 512 tokens, to see that this runs")
    given = parser.parse_args()
    from bench import bench_scaling  # by its name, which the processes import

    num_tokens = 512 if given.small else 8192
    about = machine("torch")
    found: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    losses: dict[str, float] = {}
    for _ in range(given.rounds):
        for name, layout in LAYOUTS.items():
            num = Layout(**layout).processes
            told = run(bench_scaling.measured, num, layout, num_tokens, given.steps, given.small, timeout=3600.0)
            found[name].append(NUM_ROWS * num_tokens * given.steps / sum(seconds for seconds, _ in told))
            losses[name] = told[0][1]
            print(f"{name}: {found[name][-1]:,.1f} tokens a CPU second, loss {losses[name]:.5f}", flush=True)
    one = statistics.median(found["1 process"])
    results = {
        name: {
            "tokens_per_cpu_second": rates,
            "beside_one_process": statistics.median(rates) / one,
            "loss": losses[name],
        }
        for name, rates in found.items()
    }
    for name, result in results.items():
        print(f"{name}: {result['beside_one_process']:.3f} of one process")
    if given.out:
        record = {"machine": about, "num_tokens": num_tokens, "rows_per_step": NUM_ROWS, "results": results}
        given.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
