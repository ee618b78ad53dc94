"""The report: the paper's figure and tables from a results file, as one HTML page or as Markdown.

write_report(Path("report.html"), results)       # nothing on the page is loaded from elsewhere
print("\n".join(markdown(results)))              # the same tables; docs/paper_in_small.md holds them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure

from eagle_model.evaluate.totals import Number
from eagle_model.files import write_text
from examples.paper_in_small.claims import Asked, Results, accuracy, claims

STAGE_NAMES = {"stage2": "stage 2 (32K)", "stage3": "stage 3 (64K)", "stage4": "stage 4 (128K)"}
ARM_NAMES = {"stage2": "stage 2", "no-iap": "without IAP", "no-ads": "without ADS"}
COLUMNS = {  # of Table 6
    "square pages": ("pages", ("square",)),
    "long pages": ("pages", ("long",)),
    "films": ("films", ("signs",)),
    "told films: signs": ("told", ("signs",)),
    "told films: text": ("told", ("told",)),
}


class Table(NamedTuple):
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def percent(number: Number) -> str:
    return f"{100 * number.value:.1f} ({100 * number.low:.1f} to {100 * number.high:.1f})"


def tables(results: Results) -> list[Table]:
    frames, outcomes = results["size"]["asked_frames"], []
    for claim in claims(frames):
        number, seeds, verdict = claim.outcome(results)
        points = f"{100 * number.value:+.1f} ({100 * number.low:+.1f} to {100 * number.high:+.1f})"
        each = ", ".join(f"{100 * value:+.1f}" for value in seeds)
        outcomes.append([claim.says, claim.paper, points, each, verdict])
    figure = [
        [name, *(percent(accuracy(results, Asked(stage, "films", str(n)))) for n in frames)]
        for stage, name in STAGE_NAMES.items()
    ]
    table6 = [
        [name, *(percent(accuracy(results, Asked(arm, held_out), groups)) for held_out, groups in COLUMNS.values())]
        for arm, name in ARM_NAMES.items()
    ]
    many = str(frames[-1])
    both = {"stage4": "stages 2, 3 and 4", "direct": "stage 4's context alone"}
    table7 = [
        [name, percent(accuracy(results, Asked(arm, "films", many))), percent(accuracy(results, Asked(arm, "pages")))]
        for arm, name in both.items()
    ]
    return [
        Table("Claims", ["claim", "paper", "here, points", "each seed", "outcome"], outcomes),
        Table("Figure 1: right answers about held-out films", ["frames", *map(str, frames)], figure),
        Table("Table 6: with and without", ["", *COLUMNS], table6),
        Table("Table 7: stages or not", ["", f"films, {many} frames", "pages"], table7),
    ]


def runs_table(results: Results) -> Table:
    rows = [
        [
            str(seed),
            arm,
            *(f"{run[name]:,}" for name in ("steps", "tokens")),
            f"{run['last_loss']:.3f}",
            f"{run['cpu_seconds']:.0f}",
        ]
        for seed, runs in zip(results["size"]["seeds"], results["runs"], strict=True)
        for arm, run in runs.items()
    ]
    return Table("Runs", ["seed", "arm", "steps", "tokens", "loss of the last steps", "CPU seconds"], rows)


def markdown(results: Results) -> list[str]:
    lines: list[str] = []
    for title, head, rows in tables(results):
        lines += [f"**{title}**", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        lines.append("")
    return lines


def figure_svg(results: Results) -> str:
    """Accuracy by frames, a line a stage, with 95 % intervals."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    frames = results["size"]["asked_frames"]
    for i, (stage, name) in enumerate(STAGE_NAMES.items()):
        numbers = [accuracy(results, Asked(stage, "films", str(n))) for n in frames]
        axes.plot(frames, [100 * n.value for n in numbers], marker="o", color=f"C{i}", label=name)
        axes.fill_between(
            frames, [100 * n.low for n in numbers], [100 * n.high for n in numbers], color=f"C{i}", alpha=0.15
        )
    axes.axhline(25, color="grey", linewidth=0.8, linestyle="--", label="chance")
    axes.set_xscale("log", base=2)
    axes.set_xticks(frames, [str(n) for n in frames])
    axes.set_xlabel("frames of a film")
    axes.set_ylabel("right answers, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    text = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "paper in small"}):  # the same names within it each time
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _html(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"<h2>{escape(table.title)}</h2><table><tr>{head}</tr>{rows}</table>"


def about(results: Results) -> list[str]:
    """What was measured, where and by which code; a study that went on with other code says so."""
    machine: Mapping[str, Any] = results["machine"]
    codes = sorted({run["code"] for runs in results["runs"] for run in runs.values()} | {results["code"]})
    counts = results["size"]["counts"]
    return [
        f"{len(results['answers'])} seeds; held-out: {counts['test_films']} films, {counts['test_told']} with a text, "
        f"{counts['test_pages']} pages; five questions about the signs of each; chance is 25 %. In brackets 95 % "
        "intervals by bootstrap over films, or pages, all seeds together; differences are paired.",
        f"{machine['cpu']}, one thread; torch {machine['versions'].get('torch')}; commit {machine['commit']}",
        f"SHA-256 of the code: {', '.join(codes)}" + ("" if len(codes) == 1 else " (the code changed between runs)"),
    ]


def write_report(path: Path, results: Results) -> None:
    style = "body{font:15px sans-serif;max-width:70em;margin:2em auto}td,th{padding:.3em .7em;text-align:left;"
    style += "border-bottom:1px solid #ddd;vertical-align:top}table{border-collapse:collapse}"
    first, *others = tables(results)
    parts = [f"<p>{escape(line)}</p>" for line in about(results)]
    parts += [_html(first), figure_svg(results), *map(_html, [*others, runs_table(results)])]
    page = f"<!doctype html><meta charset='utf-8'><title>The paper in small</title><style>{style}</style>"
    write_text(path, page + "<h1>The paper in small</h1>" + "\n".join(parts) + "\n")
