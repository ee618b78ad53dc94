"""The performance page: every figure from a file in bench/results, with its machine, versions and commit.

A file of a bench that is known here gets its own table; one of pytest-benchmark's gets its medians; any other is
linked. So a new result is on the page at the next build.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent.parent / "bench" / "results"
Result = dict[str, Any]


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def si(number: float) -> str:
    """Three digits that count."""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def source(name: str, result: Result) -> str:
    """Where a figure comes from: file, machine, versions, commit."""
    said = [f"[{name}](../../bench/results/{name})"]
    machine = result.get("machine_info") or result.get("machine") or {}
    if isinstance(machine, str):
        said.append(machine)
        machine = {}
    cpu = machine.get("cpu")
    if isinstance(cpu, dict):
        said.append(f"{cpu.get('brand_raw', 'CPU')}, {cpu.get('count')} cores")
    elif cpu:
        said.append(f"{cpu}, {machine['num_cores']} cores" if "num_cores" in machine else str(cpu))
    if gpu := machine.get("gpu") or result.get("gpu"):
        said.append(str(gpu))
    if "load_before" in machine:
        said.append(f"load before {machine['load_before']}")
    versions = dict(machine.get("versions") or result.get("versions") or {})
    versions |= {k: machine[k] for k in ("torch", "triton") if k in machine}
    versions |= {k: result[k] for k in ("torch", "triton") if isinstance(result.get(k), str)}
    said.append("Python " + str(machine.get("python") or machine.get("python_version") or result.get("python")))
    said += [f"{k} {v}" for k, v in versions.items()]
    commit = (result.get("commit_info") or {}).get("id") or machine.get("commit") or result.get("commit")
    said.append(f"commit {str(commit)[:8]}" if commit else "commit not recorded")
    return "*From " + ", ".join(part for part in said if "None" not in part) + ".*"


def benchmarks(result: Result) -> str:
    """Of pytest-benchmark: a row a case, a column a way, medians in milliseconds."""
    ways: list[str] = []
    groups: dict[str, dict[str, float]] = {}
    for bench in result["benchmarks"]:
        way = str((bench["params"] or {}).get("way", "ours"))
        if way not in ways:
            ways.append(way)
        groups.setdefault(bench["group"] or bench["name"], {})[way] = bench["stats"]["median"]
    rows = [[group, *(si(1e3 * medians[w]) if w in medians else "" for w in ways)] for group, medians in groups.items()]
    return "Milliseconds, medians.\n\n" + table(["case", *ways], rows)


def decoding(result: Result) -> str:
    rows = []
    for file, figures in result["files"].items():
        for num, ways in figures.get("frames", figures).items():
            rows += [
                [file, num, way, si(f["cpu_seconds"]), si(f["wall_seconds"]), "yes" if f["is_exact"] else "no"]
                for way, f in ways.items()
                if "wall_seconds" in f and "is_exact" in f
            ]
    return table(["file", "frames", "by", "CPU seconds", "seconds", "the frames that were asked for"], rows)


def step(result: Result) -> str:
    rows = [
        [size, way, si(f["tokens_per_cpu_second"]), si(f["peak_bytes"] / 2**20), f"{f['cpu_seconds']:.1f}"]
        for size, figures in result["figures"].items()
        for way, f in figures["ways"].items()
    ]
    return table(["parameters", "by", "tokens a CPU second", "peak MiB", "CPU seconds"], rows)


def generation(result: Result) -> str:
    rows = []
    for size, batches in result.items():
        if not isinstance(batches, dict):
            continue
        for batch, ways in batches.items():
            for way, f in ways.items() if isinstance(ways, dict) else ():
                if isinstance(f, dict):
                    rate = [si(f[f"{k}_tokens_per_second"]) for k in ("prefill", "decode")]
                    rows.append([size, batch, way, *rate, si(f["peak_bytes"] / 2**20)])
    said = table(["parameters", "", "by", "prompt tokens a second", "new tokens a second", "peak MiB"], rows)
    if again := result.get("second question about a film"):
        said += (
            f"\n\nA second question about a film of {again['tiles']} tiles: {again['first_seconds']:.2f} s to the "
            f"first token, then {again['second_seconds']:.2f} s, because {again['cached_tokens']:,} of "
            f"{again['prompt_tokens']:,} tokens were known."
        )
    return said


def packing(result: Result) -> str:
    rows = [
        [f["way"], f"{f['capacity']:,}", f"{f['num_rows']:,}", f"{f['fill']:.4f}", si(f["cpu_seconds"])]
        for f in result["results"]
        if "fill" in f and "cpu_seconds" in f
    ]
    return table(["by", "row", "rows", "full to", "CPU seconds"], rows)


def placement(result: Result) -> str:
    rows = [
        [p["packs"], p["num_ranks"]]
        + [
            f"{p[k]['mean']:.3f} ({p[k]['max']:.2f})"
            for k in ("imbalance", "imbalance, zigzag", "imbalance, contiguous")
        ]
        for p in result["placement"]
    ]
    return (
        "Attention's work of the busiest rank over the mean one: mean over packs, and the worst. Counted, not "
        "timed.\n\n" + table(["packs", "ranks", "ours", "zigzag", "contiguous"], rows)
    )


def memory(result: Result) -> str:
    rows = [
        [
            name,
            f"{r['tokens']:,}",
            r["tiles"],
            *(si(r["bytes"][k] / 2**30) for k in ("weights", "states", "peak", "host")),
        ]
        for name, r in result["rows"].items()
    ]
    return (
        "**Predicted**: torch's MemTracker over a step on tensors without numbers; no GPU has measured it. GiB.\n\n"
        + table(["way", "tokens", "tiles", "weights", "state", "peak", "in the host's memory"], rows)
    )


def predicted_attention(result: Result) -> str:
    rows = [
        [
            p["pattern"],
            p["direction"],
            f"{p['milliseconds_fast']:.2f} to {p['milliseconds_slow']:.2f}",
            f"{p['tflops_slow']:.0f} to {p['tflops_fast']:.0f}",
        ]
        for p in result["predictions"]
    ]
    return f"**Predicted** for {result['chip']}: replayed from the compiled code, never run on one.\n\n" + table(
        ["attention", "direction", "milliseconds", "TFLOP/s"], rows
    )


def demo(result: Result) -> str:
    scores = ", ".join(f"{name} {share:.1%}" for name, share in result["scores"].items())
    return f"{result['steps']} steps in {result['seconds']:.0f} s, then on films it has not seen: {scores}."


def fp8(result: Result) -> str:
    seeds = sorted({r["seed"] for r in result["runs"]})
    ways = list(dict.fromkeys(r["way"] for r in result["runs"]))
    loss = {(r["way"], r["seed"]): r for r in result["runs"]}
    rows = [
        [
            way,
            *(
                f"{loss[way, s]['loss']:.4f} ({100 * loss[way, s]['beside_bf16']:+.2f} %)" if (way, s) in loss else ""
                for s in seeds
            ),
        ]
        for way in ways
    ]
    return "Held-out loss after 200 steps, by emulation.\n\n" + table(["", *(f"seed {s}" for s in seeds)], rows)


def progressive(result: Result) -> str:
    right = result["figures"]["right"]
    rows = [[way, *(f"{share:.1%}" for share in right[way])] for way in ("progressive", "control")]
    seeds = [f"seed {k}" for k in range(len(right["control"]))]
    return "Right answers about long films, stages against the last context alone.\n\n" + table(["", *seeds], rows)


def evaluation(result: Result) -> str:
    return "Questions a CPU minute: " + ", ".join(f"{w} {si(m)}" for w, m in result["median"].items()) + "."


def serving(result: Result) -> str:
    ours = [f"{who} {result[f'{who}_cpu_ms_per_token']:.2f}" for who in ("engine", "server")]
    return f"CPU milliseconds a token, {result['streams']} streams: {', '.join(ours)}."


def scaling(result: Result) -> str:
    rows = [[n, si(p["tokens_a_cpu_second"])] for n, p in result["processes"].items()]
    return table(["processes", "tokens a CPU second"], rows)


def reading(result: Result) -> str:
    rows = [
        [f"{case}, {way}", si(f["cpu_seconds"])]
        for case, ways in result["figures"].items()
        for way, f in ways.items()
        if "cpu_seconds" in f
    ]
    said = f"A model of {result['weights_bytes'] / 1e9:.2f} GB.\n\n"
    return said + table(["", "CPU seconds"], rows)


def stall(result: Result) -> str:
    rows = [
        [way, *(f"{f[k]:.2f}" for k in ("waited", "until_complete"))] for way, f in result["median_seconds"].items()
    ]
    said = f"A checkpoint of {result['checkpoint_bytes'] / 1e9:.2f} GB; seconds, medians.\n\n"
    return said + table(["a save", "training waited", "until it was complete"], rows)


def records(result: Result) -> str:
    """A list of flat records, as the data benches write: all their numbers."""
    rows = result["results"]
    names = list(dict.fromkeys(key for row in rows for key in row))
    return table(names, [[si(v) if isinstance(v := row.get(k, ""), float) else v for k in names] for row in rows])


def scaled_jpeg(result: Result) -> str:
    rows = [
        [
            " x ".join(map(str, j["grid"])),
            si(j["whole_cpu_seconds"]),
            si(j["scaled_cpu_seconds"]),
            j["psnr_db_of_tiles"],
        ]
        for j in result["jpeg"]
    ]
    film = result["film"]
    return (
        table(["grid", "whole, CPU seconds", "scaled", "dB between the tiles"], rows)
        + f"\n\nA proxy of a film of {film['film_seconds']:.0f} s takes {film['proxy_mb']} MB for "
        f"{film['original_mb']}, at {film['psnr_db']:.1f} dB."
    )


# Title, files and how they are shown; files of one title follow each other.
SECTIONS: list[tuple[str, str, Callable[[Result], str]]] = [
    ("The demo", "demo-cpu.json", demo),
    ("Decoding video", "decode-cpu.json", decoding),
    ("Decoding video", "decode-no-b-cpu.json", decoding),
    ("Decoding to tiles", "decode_tiles-cpu.json", decoding),
    ("Decoding to tiles", "decode_tiles-turned-cpu.json", decoding),
    ("DALI's CPU code, fed the planned packets", "decode-dali-cpu.json", decoding),
    ("Resizing and tiling", "cpu-frames_to_tiles.json", benchmarks),
    ("Tiling from the decoder's planes", "cpu-yuv_to_tiles.json", benchmarks),
    ("JPEGs and proxies", "media-cpu.json", scaled_jpeg),
    ("Preparing and planning", "data-plan-cpu.json", records),
    ("Preparing and planning", "data-million-cpu.json", records),
    ("The loader", "loader-cpu.json", records),
    ("Packing", "pack_rows-cpu.json", packing),
    ("A training step", "step-cpu.json", step),
    ("The loss", "cpu-linear_cross_entropy.json", benchmarks),
    ("Memory of the 8B's step", "memory-8b.json", memory),
    ("Attention on an H100", "static/attention_h100_predicted.json", predicted_attention),
    ("Context parallelism: balance", "parallel-cpu.json", placement),
    ("Two processes beside one", "scaling-cpu.json", scaling),
    ("Checkpoints", "checkpoint-cpu.json", reading),
    ("Checkpoints", "checkpoint-stall-cpu.json", stall),
    ("FP8", "fp8-loss-cpu.json", fp8),
    ("Stages", "progressive-cpu.json", progressive),
    ("Generation", "generate-5m-cpu.json", generation),
    ("Attention over a cache", "cpu-decode_attention.json", benchmarks),
    ("Serving", "serve-cpu.json", serving),
    ("Evaluation", "evaluate-cpu.json", evaluation),
    ("Fused ops on a CPU, where they are plain torch", "cpu-fused.json", benchmarks),
]
TABLES = {  # bench results that have a page of their own, as Markdown
    "static/static_table": "what the compiler makes of every kernel",
    "static/faults_sm90": "faults planted into kernels, and what notices them",
    "static/attention_h100_predicted": "how attention's time on an H100 is predicted",
}


def performance_page(results: Path = RESULTS) -> str:
    """All results there are. A file of SECTIONS that is not there is left out: results come and go with benches."""
    parts = [
        "# Performance",
        "Made from the files in `bench/results` when this site was built: each figure with its machine, the versions "
        "and the commit it was measured at. **No GPU has measured anything here yet**; what is computed without one "
        "says *predicted*. The machines are small and were shared, so compare the columns of a table, not tables. "
        "`make gpu` writes a GPU's own files.",
    ]
    known = {name for _, name, _ in SECTIONS} | {f"{name}.json" for name in TABLES}
    found = sorted(str(path.relative_to(results)) for path in results.rglob("*.json"))
    sections: list[tuple[str, str, Callable[[Result], str]]] = [s for s in SECTIONS if s[1] in found]
    for name in found:
        if name not in known:
            is_bench = "benchmarks" in json.loads((results / name).read_text())
            sections.append((f"`{name}`", name, benchmarks if is_bench else lambda result: "See the file."))
    last = ""
    for title, name, show in sections:
        result = json.loads((results / name).read_text(encoding="utf-8"))
        if title != last:
            parts.append(f"## {title}")
        last = title
        parts += [show(result), source(name, result)]
    parts.append("## Tables of their own")
    parts.append("\n".join(f"- [{about}](files/{Path(name).name}.md)" for name, about in TABLES.items()))
    listed = "\n".join(f"files/{Path(name).name}" for name in TABLES)
    parts.append(f"```{{toctree}}\n:hidden:\n\n{listed}\n```")
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    tables = {
        f"files/{Path(name).name}.md": f"# {about[0].upper()}{about[1:]}\n\n{(RESULTS / f'{name}.md').read_text()}"
        for name, about in TABLES.items()
    }
    return {"performance.md": performance_page(), **tables}
