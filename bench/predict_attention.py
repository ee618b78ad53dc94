"""How long attention should take on an H100, from the compiler's table alone: a prediction, not a measurement.

    python -m bench.static_table --out bench/results/static
    python -m bench.predict_attention --table bench/results/static

A pair of blocks costs a multiprocessor, in clocks,

    tensor  multiply-adds of the compiled code / 2048          (columns of padding count)
    issue   machine instructions a warp * warps / 4            (four schedulers, one instruction a clock)
    cache   bytes that the pair loads / (L2 rate / SMs / clock)

Fast: the three overlap wholly, the largest counts. Slow: tensor and issue do not overlap. Clocks times pairs, spread
evenly over the multiprocessors, is the time. Left out: starts and ends of blocks, uneven ends, the delta kernel, main
memory, power limits. The chip's numbers are NVIDIA's data sheet's (H100 SXM: 132 SMs, 1.83 GHz, 989 TFLOP/s in bf16),
and 5.5 TB/s assumed of L2.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench.bench_attention import GPU_PATTERNS, VISION, Pattern

NUM_SMS = 132
CLOCK_HZ = 1.83e9
MACS_A_CLOCK = 2048
L2_BYTES_A_SECOND = 5.5e12
STEPS = {"forward": ("fwd",), "backward": ("dq", "dkdv")}


def num_block_pairs(pattern: Pattern, block_m: int, block_n: int) -> int:
    """Pairs of blocks of one query head that the kernels visit: those with a pair of tokens that the mask leaves."""
    total = 0
    for length in pattern.lengths:
        for first in range(0, length, block_m):
            seen = min(length, first + block_m) if pattern.shape.causal else length
            total += -(-seen // block_n)
    return total


def clocks_of_pair(row: dict[str, Any], width: int) -> dict[str, float]:
    """Of one pair of blocks, by what bounds it. A forward or dq pair loads a block of k and v, a dkdv pair one of q and
    dout, both bf16."""
    loaded_rows = row["constants"]["BLOCK_M" if "dkdv" in row["name"] else "BLOCK_N"]
    return {
        "tensor": row["wgmma_macs"] * (row["num_warps"] // 4) / MACS_A_CLOCK,
        "issue": row["loop_instructions"] * row["num_warps"] / 4,
        "cache": 2 * loaded_rows * width * 2 / (L2_BYTES_A_SECOND / NUM_SMS / CLOCK_HZ),
    }


def predict(rows: dict[str, dict[str, Any]], pattern: Pattern, direction: str) -> dict[str, Any]:
    """Milliseconds and TFLOP/s, fast and slow; FLOPs as bench_attention counts them."""
    shape = pattern.shape
    seconds = {"fast": 0.0, "slow": 0.0}
    for step in STEPS[direction]:
        row = rows[f"attention_{step}_{'vision' if shape == VISION else 'llm'}"]
        clocks = clocks_of_pair(row, shape.head_width)
        pairs = num_block_pairs(pattern, row["constants"]["BLOCK_M"], row["constants"]["BLOCK_N"]) * shape.num_heads
        seconds["fast"] += pairs * max(clocks.values()) / NUM_SMS / CLOCK_HZ
        seconds["slow"] += pairs * max(clocks["tensor"] + clocks["issue"], clocks["cache"]) / NUM_SMS / CLOCK_HZ
    flops = (4 if direction == "forward" else 10) * pattern.num_pairs * shape.num_heads * shape.head_width
    return {
        "pattern": pattern.name,
        "direction": direction,
        **{f"milliseconds_{end}": 1e3 * time for end, time in seconds.items()},
        **{f"tflops_{end}": flops / time / 1e12 for end, time in seconds.items()},
    }


def markdown(triton_version: str, predictions: list[dict[str, Any]]) -> str:
    lines = [
        f"Predicted for an H100 SXM, not measured, from the code of Triton {triton_version}:",
        "`python -m bench.predict_attention`, whose head says how.",
        "",
        "| pattern | direction | ms | TFLOP/s |",
        "|---|---|---|---|",
    ]
    for p in predictions:
        time = f"{p['milliseconds_fast']:.2f} to {p['milliseconds_slow']:.2f}"
        rate = f"{p['tflops_slow']:.0f} to {p['tflops_fast']:.0f}"
        lines.append(f"| {p['pattern']} | {p['direction']} | {time} | {rate} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="folder of static_table.json; takes the results")
    folder = parser.parse_args().table
    table = json.loads((folder / "static_table.json").read_text())
    rows = {row["name"]: row for row in table["rows"] if row["sm"] == 90}
    predictions = [predict(rows, pattern, direction) for direction in STEPS for pattern in GPU_PATTERNS]
    result = {"chip": "H100 SXM", "measured": False, "triton": table["triton"], "predictions": predictions}
    (folder / "attention_h100_predicted.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "attention_h100_predicted.md").write_text(markdown(table["triton"], predictions))


if __name__ == "__main__":
    main()
