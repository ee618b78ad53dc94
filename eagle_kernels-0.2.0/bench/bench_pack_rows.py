"""Packing beside what others do: rows, fill, balance over ranks and micro-batches, seconds for a million lengths.

    python -m bench.bench_pack_rows --out bench/results/pack_rows-cpu.json

Rivals, each as its authors describe it, in plain Python:

- first-fit decreasing: longest first, each into the first row that has room.
- greedy concatenation: samples as they come; a row ends where the next does not fit.
- the public release of Eagle 2.5: longest first, in 32 parts one after the other, each sample into the emptiest of
  ceil(tokens / capacity) + 20 rows, or into a new one where it does not fit there. (It packs once for all epochs.)

Rows of the first and the last are shuffled before they are handed out, as training needs them.

Balance is of 8 ranks: the most of a rank over the mean one, less 1, in a round of a row each, and in a step of 64 rows.
"""

from __future__ import annotations

import argparse
import heapq
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.harness import measure
from bench.machine import machine
from bench.mix import mixed_samples
from eagle_kernels.pack_rows import pack_rows, pack_rows_ref
from eagle_model.data.schedule import Schedule, training_cost
from eagle_model.files import write_json

CONTEXTS = (32_768, 65_536, 131_072)
NUM_RANKS, ROWS_PER_STEP = 8, 64
Rows = list[list[int]]


@pytest.mark.benchmark(timer=time.process_time)
def test_pack_rows(benchmark):
    tokens, _, _ = mixed_samples(5000, CONTEXTS[0])
    lengths_N = torch.from_numpy(-np.sort(-tokens))
    want = (pack_rows_ref(lengths_N, CONTEXTS[0]),)
    measure(benchmark, lambda: (pack_rows(lengths_N, CONTEXTS[0]),), want, dtype=torch.int32, tolerance=0)


def first_fit_decreasing(tokens: np.ndarray, capacity: int) -> Rows:
    """The first row with room, found in a tree of the most room below each node."""
    num_leaves = 1 << len(tokens).bit_length()
    tree = [capacity] * (2 * num_leaves)
    rows: Rows = []
    for i in np.argsort(-tokens, kind="stable").tolist():
        node = 1
        while node < num_leaves:
            node = 2 * node + (tree[2 * node] < tokens[i])
        row = node - num_leaves
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        tree[node] -= int(tokens[i])
        while node := node // 2:
            tree[node] = max(tree[2 * node], tree[2 * node + 1])
    return shuffled(rows)


def shuffled(rows: Rows) -> Rows:
    return [rows[k] for k in np.random.RandomState(0).permutation(len(rows))]


def greedy(tokens: np.ndarray, capacity: int) -> Rows:
    rows: Rows = [[]]
    used = 0
    for i in np.random.RandomState(0).permutation(len(tokens)).tolist():
        if used + tokens[i] > capacity:
            rows.append([])
            used = 0
        rows[-1].append(i)
        used += int(tokens[i])
    return rows


def released(tokens: np.ndarray, capacity: int) -> Rows:
    heap = [(0, k) for k in range(-(-int(tokens.sum()) // capacity) + 20)]
    rows: Rows = [[] for _ in heap]
    for i in np.argsort(-tokens, kind="stable").tolist():  # its 32 parts, in their order, are the whole
        used, row = heap[0]
        if used + tokens[i] <= capacity:
            rows[row].append(i)
            heapq.heapreplace(heap, (used + int(tokens[i]), row))
        else:
            heapq.heappush(heap, (int(tokens[i]), len(rows)))
            rows.append([i])
    return shuffled([row for row in rows if row])


def excess(sums: np.ndarray) -> dict[str, float]:
    """Of the busiest rank over the mean one."""
    rounds = sums[: len(sums) // ROWS_PER_STEP * ROWS_PER_STEP].reshape(-1, ROWS_PER_STEP // NUM_RANKS, NUM_RANKS)
    steps = rounds.sum(1)
    means = np.maximum(rounds.mean(2), 1e-9), np.maximum(steps.mean(1), 1e-9)
    return {
        "round": round(float((rounds.max(2) / means[0]).mean() - 1), 4),
        "step": round(float((steps.max(1) / means[1]).mean() - 1), 4),
    }


def compare(num_samples: int, capacity: int) -> list[dict]:
    tokens, tiles, seconds = mixed_samples(num_samples, capacity)

    def ours() -> Rows:
        schedule = Schedule(
            tokens, capacity, seed=0, tiles_N=tiles, decode_seconds_N=seconds, rows_per_step=ROWS_PER_STEP
        )
        rows = schedule.rows(0)
        schedule.close()
        return rows

    ways = {
        "ours": ours,
        "first-fit decreasing": lambda: first_fit_decreasing(tokens, capacity),
        "release": lambda: released(tokens, capacity),
        "greedy": lambda: greedy(tokens, capacity),
    }
    counts = {"tokens": tokens, "tiles": tiles, "decode": seconds, "training cost": training_cost(tokens, tiles)}
    found = []
    for name, way in ways.items():
        begin = time.process_time()
        rows = way()
        taken = time.process_time() - begin
        assert sorted(i for row in rows for i in row) == list(range(num_samples))
        sums = {what: np.array([of[row].sum() for row in rows]) for what, of in counts.items()}
        found.append(
            {
                "way": name,
                "capacity": capacity,
                "num_samples": num_samples,
                "num_rows": len(rows),
                "fill": round(float(tokens.sum() / (len(rows) * capacity)), 4),
                "fullest_less_emptiest": round(float(np.ptp(sums["tokens"]) / capacity), 4),
                "cpu_seconds": round(taken, 2),
                "excess": {what: excess(of) for what, of in sums.items()},
            }
        )
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--samples", type=int, default=100_000)
    options = parser.parse_args()
    about = machine("numpy", "torch")
    results = [found for capacity in CONTEXTS for found in compare(options.samples, capacity)]
    tokens, tiles, _ = mixed_samples(1_000_000, CONTEXTS[0])
    begin = time.process_time()
    num_rows = Schedule(tokens, CONTEXTS[0], seed=0, tiles_N=tiles, rows_per_step=ROWS_PER_STEP).num_rows(0)
    million = {"num_rows": num_rows, "cpu_seconds": round(time.process_time() - begin, 2)}
    print(million)
    if options.out:
        write_json(options.out, {"about": __doc__, "machine": about, "results": results, "a_million": million})


if __name__ == "__main__":
    main()
