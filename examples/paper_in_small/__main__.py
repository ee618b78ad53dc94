"""The claims of Eagle 2.5's paper, repeated in small: makes the sets, trains every arm, asks, and writes the results
and a report.

    python -m examples.paper_in_small --work /tmp/paper --out bench/results/paper-in-small-cpu.json
    python -m examples.paper_in_small --out bench/results/paper-in-small-cpu.json --report report.html    # of a file

Three seeds; about an hour of one core. Interrupted or killed, the same command goes on: every run is resumed from its
newest checkpoint, and what was answered is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.machine import ROOT, machine
from eagle_model.data.sampling import SamplingConfig
from eagle_model.files import read_json, write_json
from examples.paper_in_small.arms import ARMS, STAGES, Size, Stopped, most_fixed_frames, sampling, train
from examples.paper_in_small.ask import Answerer, ask, load, read_set
from examples.paper_in_small.claims import GROUPS, Asked, all_asked, packed
from examples.paper_in_small.report import markdown, write_report
from examples.paper_in_small.sets import COLOURS, write_sets

CODE = ("eagle_kernels", "eagle_model", "csrc", "examples/paper_in_small", "examples/digit_videos.py")


def hash_of_code() -> str:
    """SHA-256 of all source files, by name and content."""
    found = hashlib.sha256()
    for place in CODE:
        path = ROOT / place
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.suffix in {".py", ".cpp", ".h", ".cu"}]
        for file in sorted(files):
            found.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return found.hexdigest()


def run_of(seed_folder: Path, model: str) -> Path:
    return seed_folder / "progressive" / model if model in STAGES else seed_folder / model


def limits_of(size: Size, sets: Path, asked: Asked) -> SamplingConfig:
    """What a model is shown: as much as its training allowed, or so many frames a film whatever their tokens."""
    if asked.view != "own":
        num_frames = int(asked.view)
        return SamplingConfig(context_tokens=64 * num_frames + 1024, min_frames=1, max_frames=num_frames)
    stage = asked.model if asked.model in STAGES else "stage4" if asked.model == "direct" else "stage2"
    return sampling(size, stage, asked.model, most_fixed_frames(size, sets) if asked.model == "no-ads" else 1)


def answer(size: Size, sets: Path, seed_folder: Path) -> dict[str, Any]:
    """What all models of a seed answer, kept film set by film set."""
    kept = {
        asked: seed_folder / "answers" / f"{asked.key.replace('/', '-')}.json" for asked in all_asked(size.asked_frames)
    }
    together: dict[tuple[str, SamplingConfig], list[Asked]] = defaultdict(list)
    for asked, path in kept.items():
        if not path.exists():
            together[asked.held_out, limits_of(size, sets, asked)].append(asked)
    answerers: dict[str, Answerer] = {}
    (seed_folder / "answers").mkdir(exist_ok=True)
    for (held_out, limits), wanted in together.items():
        for asked in wanted:
            if asked.model not in answerers:
                answerers[asked.model] = load(run_of(seed_folder, asked.model))
        models = {asked.model: answerers[asked.model] for asked in wanted}
        found = ask(models, read_set(sets / f"test-{held_out}.jsonl"), limits)
        for asked in wanted:
            groups = {
                group: packed(bits, 1 if group == "told" else len(COLOURS))
                for group, bits in found[asked.model].items()
            }
            assert set(groups) <= set(GROUPS[held_out]), groups.keys()
            write_json(kept[asked], groups)
            right = {group: f"{bits.count('1') / len(bits):.1%}" for group, bits in found[asked.model].items()}
            print(f"{seed_folder.name} {asked.key}: {right}", flush=True)
    return {asked.key: read_json(path) for asked, path in kept.items()}


def study(size: Size, work: Path, out: Path, report: Path) -> None:
    """The whole study; `out` and `report` are written anew after every seed. Raises Stopped."""
    about, code, sets = machine("torch", "numpy", "av", "scikit-learn"), hash_of_code(), work / "sets"
    of_size = json.loads(json.dumps(asdict(size)))
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "study.json").exists():
        write_json(work / "study.json", {"size": of_size, "machine": {**about, "num_threads": torch.get_num_threads()}})
    if read_json(work / "study.json")["size"] != of_size:
        raise SystemExit(f"{work} holds a study of another size: give another folder, or the size that it began with.")
    write_sets(sets, size.counts, most_frames=size.most_frames)
    runs, answers = [], []
    for seed in size.seeds:
        folder, trained = work / f"seed-{seed}", {}
        folder.mkdir(exist_ok=True)
        for arm in ARMS:
            start = None if arm == "base" else folder / "base"
            trained[arm] = train(size, sets, folder / arm, arm, seed=seed, start=start, code=code)
        runs.append(trained)
        answers.append(answer(size, sets, folder))
        its = {**read_json(work / "study.json"), "code": code, "runs": runs, "answers": answers}
        its["size"]["seeds"] = list(size.seeds[: len(answers)])
        write_json(out, its)
        write_report(report, its)
    show(read_json(out), report)


def show(results: dict[str, Any], report: Path) -> None:
    write_report(report, results)
    print("\n".join(markdown(results)))
    print(f"Report: {report}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="the folder of films and runs; without it, a report of --out is made")
    parser.add_argument("--out", type=Path, required=True, help="the results, JSON")
    parser.add_argument("--report", type=Path, help="the page; by default report.html in --work, or beside --out")
    args = parser.parse_args()
    report = args.report or (args.work / "report.html" if args.work else args.out.with_suffix(".html"))
    if args.work is None:
        show(read_json(args.out), report)
        return
    try:
        study(Size(), args.work, args.out, report)
    except Stopped:
        raise SystemExit("stopped; the same command goes on") from None


if __name__ == "__main__":
    main()
