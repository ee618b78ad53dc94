"""From a result file of the benches to what a reader wants: a Markdown table and a roofline plot.

    python -m bench.report RESULTS.json --out FOLDER

writes FOLDER/RESULTS.md and FOLDER/RESULTS.png. The ceilings are those of the same run: a large copy for what is bound
by memory, a large matmul for what is bound by arithmetic.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = "ours"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One bench. rate and ceiling are bytes or FLOPs a second, as `unit` says; None where the bench counts neither."""

    group: str
    way: str
    median_seconds: float
    p20_seconds: float
    p80_seconds: float
    unit: str  # "TB/s", "TFLOP/s" or ""
    rate: float | None
    percent_of_ceiling: float | None
    peak_bytes: int | None  # the most memory taken beside the inputs, results included; None on a CPU

    @property
    def work(self) -> float:
        """Bytes moved, or FLOPs."""
        return (self.rate or 0.0) * self.median_seconds

    @property
    def ceiling(self) -> float:
        return 100 * (self.rate or 0.0) / (self.percent_of_ceiling or 100.0)


def read_rows(results: dict[str, Any]) -> list[Row]:
    """The rows of a pytest-benchmark result file; the rates are those that `bench.harness.measure` added."""
    rows = []
    for bench in results["benchmarks"]:
        info, params = bench["extra_info"], bench["params"] or {}
        times = sorted(bench["stats"]["data"])
        unit, rate, percent = "", None, None
        if "tflops" in info:
            unit, rate, percent = "TFLOP/s", info["tflops"] * 1e12, info["percent_of_matmul"]
        elif "terabytes_per_second" in info:
            unit, rate, percent = "TB/s", info["terabytes_per_second"] * 1e12, info["percent_of_copy"]
        rows.append(
            Row(
                group=bench["group"] or bench["name"],
                way=str(params.get("way", OURS)),
                median_seconds=bench["stats"]["median"],
                p20_seconds=times[len(times) // 5],
                p80_seconds=times[len(times) * 4 // 5],
                unit=unit,
                rate=rate,
                percent_of_ceiling=percent,
                peak_bytes=info.get("peak_bytes"),
            )
        )
    return rows


def markdown(results: dict[str, Any]) -> str:
    """Where it was measured, then a line a bench, the ways of one group together."""
    machine, commit = results["machine_info"], results["commit_info"]
    cpu = machine.get("cpu", {}).get("brand_raw", machine["machine"])
    where = machine.get("gpu") or f"CPU only, {cpu}, {machine['torch_threads']} torch threads"
    dirty = ", with changes not committed" if commit.get("dirty") else ""
    lines = [
        f"# Benches: {where}",
        "",
        f"torch {machine['torch']}, triton {machine['triton']}, Python {machine['python_version']}; "
        f"{results['datetime'][:10]}, commit {commit.get('id') or 'unknown'}{dirty}.",
        "Median of the rounds, p20 and p80. The ceiling is a large copy (TB/s) or matmul (TFLOP/s) of the same run.",
        "Times ours: how many times as long as ours it takes. Peak memory: beside the inputs, results included.",
    ]
    if "gpu" not in machine:
        lines += [
            "",
            "On a CPU most ops are their torch reference: where ours and torch differ, no kernel does. Small shapes",
            "fit the cache and may pass 100 % of a copy. This shows that the suite runs, not how fast a kernel is.",
        ]
    lines += [
        "",
        "| bench | way | median | p20 to p80 | rate | of the ceiling | times ours | peak memory |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    rows = read_rows(results)
    ours = {row.group: row.median_seconds for row in rows if row.way == OURS}
    for row in sorted(rows, key=lambda row: (row.group, row.way != OURS, row.way)):
        rate = f"{row.rate / 1e12:.3g} {row.unit}" if row.rate is not None else ""
        percent = f"{row.percent_of_ceiling:.0f} %" if row.percent_of_ceiling is not None else ""
        times = f"{row.median_seconds / ours[row.group]:.2f}" if row.group in ours else ""
        peak = f"{row.peak_bytes / 1e9:.3g} GB" if row.peak_bytes is not None else ""
        spread = f"{_time(row.p20_seconds)} to {_time(row.p80_seconds)}"
        cells = [row.group, row.way, _time(row.median_seconds), spread, rate, percent, times, peak]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def draw_roofline(rows: Sequence[Row], title: str, path: Path) -> None:
    """A PNG: the rate of each bench over its work, under the ceiling; one panel for bandwidth, one for arithmetic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [(unit, [row for row in rows if row.unit == unit]) for unit in ("TB/s", "TFLOP/s")]
    panels = [(unit, part) for unit, part in panels if part]
    if not panels:
        raise ValueError(f"{title}: no bench counts bytes or FLOPs, so there is no roofline to draw.")
    figure, axes = plt.subplots(1, len(panels), figsize=(7 * len(panels), 5), squeeze=False, layout="constrained")
    ways = sorted({row.way for row in rows}, key=lambda way: (way != OURS, way))
    for axis, (unit, part) in zip(axes[0], panels, strict=True):
        for way in ways:
            points = [(row.work, (row.rate or 0.0) / 1e12) for row in part if row.way == way]
            if points:
                axis.scatter(*zip(*points, strict=True), label=way, s=40 if way == OURS else 20, alpha=0.8)
        for ceiling in sorted({float(f"{row.ceiling / 1e12:.3g}") for row in part}):  # one a dtype
            axis.axhline(ceiling, color="black", linewidth=1)
            axis.annotate(f"{ceiling:.3g} {unit}", (0.01, ceiling), xycoords=("axes fraction", "data"), va="bottom")
        axis.set(xscale="log", yscale="log", xlabel="bytes moved" if unit == "TB/s" else "FLOP", ylabel=unit)
        axis.set_title("bound by memory" if unit == "TB/s" else "bound by arithmetic")
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write_report(source: Path, out: Path) -> tuple[Path, Path]:
    """The Markdown and the PNG of a result file, named after it."""
    results = json.loads(source.read_text())
    table, plot = out / f"{source.stem}.md", out / f"{source.stem}.png"
    out.mkdir(parents=True, exist_ok=True)
    table.write_text(markdown(results))
    machine = results["machine_info"]
    draw_roofline(read_rows(results), machine.get("gpu", "CPU only"), plot)
    return table, plot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what pytest --benchmark-json wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder that takes the table and the plot")
    args = parser.parse_args()
    for path in write_report(args.results, args.out):
        print(path)


if __name__ == "__main__":
    main()
