"""What `make gpu` does with the minutes of a GPU: first things first, each result kept as it comes, stopped in time.

    python -m bench.session --minutes 12 --out bench/results

Stages, in order: doctor; a first test of every kernel, then the next of each; the model's real shapes; benches by
importance. A stage that is out of its share of the minutes leaves the rest for the next call: called again, with the
same code on the same machine, it goes on where it stopped, after a kill too.

Writes  <machine>-<commit>.jsonl  every result as it comes (records.py);  <machine>.json, .md, .png  the benches, as
        report.py makes them;  <machine>-session.md  the summary: stages, what was missing, goals, calibration.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.records import OUT_OF_TIME, append_record, read_records, results
from bench.report import markdown, read_rows, write_report
from eagle_model.model import fp8_te

ROOT = Path(__file__).resolve().parent.parent
PREDICTIONS = "static/attention_h100_predicted.json"  # of sass_clocks.py, under the folder of results


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    paths: tuple[str, ...] = ()  # what pytest runs; without any, `eagle doctor`
    options: tuple[str, ...] = ()
    share: float  # of the session's minutes, at most
    spread: bool = False  # over processes, where pytest-xdist is there: the host compiles more kernels at a time


GOAL_PATTERNS = "(vision and 64) or (document and 32K) or (packed and 32K)"
STAGES = (
    Stage(name="doctor", share=0.05),
    Stage(
        name="correctness",
        paths=("tests/kernels", "tests/model", "tests/train", "tests/infer"),
        options=("-m", "gpu and not real_shapes", "--in-turn"),
        share=0.35,
        spread=True,
    ),
    Stage(name="real shapes", paths=("tests/kernels", "tests/model"), options=("-m", "gpu and real_shapes"), share=0.2),
    Stage(name="attention", paths=("bench/bench_attention.py",), options=("-k", GOAL_PATTERNS), share=0.4),
    Stage(name="training step", paths=("bench/bench_step.py",), share=0.3),
    Stage(name="linear cross-entropy", paths=("bench/bench_linear_cross_entropy.py",), share=0.3),
    Stage(
        name="norms and activations",
        paths=tuple(f"bench/bench_{op}.py" for op in ("rms_norm", "layer_norm", "swiglu", "gelu_bias", "rope")),
        share=0.3,
    ),
    Stage(name="tiles", paths=("bench/bench_frames_to_tiles.py", "bench/bench_yuv_to_tiles.py"), share=0.2),
    Stage(name="decode attention", paths=("bench/bench_decode_attention.py",), share=0.2),
    Stage(name="video", paths=("tests/video",), options=("-m", "gpu"), share=0.3),
    Stage(name="every other bench", paths=("bench",), share=1.0),
)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Ours is to be `times` as fast as `rival`, or as the best of all others, in every group whose name begins so."""

    group: str
    rival: str
    times: float


OURS = ("ours", "ours uniform", "ours, number known")  # what callers get, by what they know
BEST = "the best of the others"
# Fair aims by what peers publish for an H100: docs/notes/attention.md and linear_cross_entropy.md.
GOALS = (
    Goal(group="attention forward, vision", rival="flash-attn 2", times=1.3),
    Goal(group="attention forward, vision", rival="flash-attn 4", times=1.0),
    Goal(group="attention forward, one document", rival="flash-attn 2", times=1.2),
    Goal(group="attention forward, one document", rival="sdpa cudnn", times=0.85),
    Goal(group="attention forward, packed", rival="flex", times=1.5),
    Goal(group="attention backward, vision", rival="flash-attn 2", times=1.2),
    Goal(group="attention backward, one document", rival="flash-attn 2", times=1.1),
    Goal(group="attention backward, packed", rival="flex", times=1.8),
    Goal(group="attention deterministic backward", rival=BEST, times=1.0),
    Goal(group="linear_cross_entropy", rival="three matmuls", times=0.9),
    Goal(group="training step, 32K", rival="transformers, flash-attn 2, Liger", times=1.35),
)


class Session:
    """One call: `seconds` in all. `count_each`: rehearsal, every test counts as so many seconds whatever it took."""

    def __init__(self, out: Path, name: str, *, seconds: float, count_each: float | None = None) -> None:
        self.out, self.name = out, name
        self._seconds, self._count_each = seconds, count_each
        self._start = time.monotonic()
        self.records_path = out / f"{name}-{_commit()}.jsonl"
        self._num_before = self._num_results()

    def _num_results(self) -> int:
        return sum("outcome" in record for record in read_records(self.records_path))

    def seconds_left(self) -> float:
        if self._count_each is None:
            return self._seconds - (time.monotonic() - self._start)
        return self._seconds - self._count_each * (self._num_results() - self._num_before)

    def run(self, stages: tuple[Stage, ...] = STAGES) -> int:
        """Runs the stages and writes the summary after each. Returns how many tests failed or crashed."""
        for stage in stages:
            if self.seconds_left() <= 0:
                break
            if not stage.paths:
                self._run_doctor()
            elif not self._is_finished(stage):
                self._run_tests(stage)
            self.write_summary()
        return sum(record["outcome"] in ("failed", "crashed") for record in self._results().values())

    def _results(self) -> dict[str, dict[str, Any]]:
        return results(read_records(self.records_path))

    def _run_doctor(self) -> None:
        missing = [package for package in ("typer", "rich") if not _imports(package)]
        for package in missing:
            self._append({"missing": package, "test": "eagle doctor"})
        if not missing:
            done = subprocess.run([sys.executable, "-m", "eagle_model.cli", "doctor"], cwd=ROOT, text=True,
                                  capture_output=True, timeout=max(30.0, self.seconds_left()))  # fmt: skip
            self._append({"doctor": done.stdout + done.stderr})
            print(done.stdout, done.stderr)

    def _append(self, record: dict[str, Any]) -> None:
        append_record(self.records_path, record)

    def _is_finished(self, stage: Stage) -> bool:
        """An earlier call ran all of it, but for files whose packages are missing to this day. Collecting alone takes
        half a minute."""
        ends = [record for record in read_records(self.records_path) if record.get("finished") == stage.name]
        return any(not any(map(_imports, record["without"])) for record in ends)

    def _run_tests(self, stage: Stage) -> None:
        """In a process of its own; again in a new one while a lost GPU context ends it and something got done."""
        stage_end = self.seconds_left() - stage.share * self._seconds
        while (left := self.seconds_left() - max(0.0, stage_end)) > 0:
            num_before, num_records = len(self._results()), len(read_records(self.records_path))
            command = [sys.executable, "-m", "pytest", *stage.paths, *stage.options, "-q", "-p", "bench.records"]
            command += ["--records", str(self.records_path), "--seconds-left", str(left)]
            command += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
            if self._count_each is not None:
                command += ["--count-each", str(self._count_each)]
            elif stage.spread and _imports("xdist"):
                command += ["--numprocesses", "8"]
            limit = None if self._count_each is not None else left + 60  # one test may be under way: it has a minute
            try:
                done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=limit)
            except subprocess.TimeoutExpired:
                return
            print(f"== {stage.name}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
            new = read_records(self.records_path)[num_records:]
            stopped_early = done.returncode not in (0, 1, 5) or "CUDA context is lost" in done.stdout
            if not stopped_early and OUT_OF_TIME not in done.stdout:
                without = {record["missing"] for record in new if "::" not in record.get("test", "::")}
                self._append({"finished": stage.name, "without": sorted(without)})
            if not stopped_early or OUT_OF_TIME in done.stdout or len(self._results()) == num_before:
                return

    # -- what comes of it

    def write_summary(self) -> Path:
        records = read_records(self.records_path)
        found = results(records)
        report = as_benchmark_file(records)
        if report["benchmarks"]:
            path = self.out / f"{self.name}.json"
            path.write_text(json.dumps(report, indent=1) + "\n")
            if _imports("matplotlib") and any(row.unit for row in read_rows(report)):
                write_report(path, self.out)
            else:
                path.with_suffix(".md").write_text(markdown(report))
        lines = [f"# A session on {self.name}", "", *_where(report), "", "| part | passed | failed | skipped |"]
        lines += ["|---|---:|---:|---:|"]
        for part, counts in _parts(found).items():
            lines.append(
                f"| {part} | {counts['passed']} | {counts['failed'] + counts['crashed']} | {counts['skipped']} |"
            )
        lines += _missing(records) + _failures(found) + _goals(report) + _calibration(report, self.out / PREDICTIONS)
        path = self.out / f"{self.name}-session.md"
        path.write_text("\n".join(lines) + "\n")
        return path


def as_benchmark_file(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The records as a result file of pytest-benchmark: each bench once, where and when of the newest run."""
    runs = [record for record in records if "machine_info" in record]
    where = {key: runs[-1][key] for key in ("machine_info", "commit_info", "datetime")} if runs else {}
    return {**where, "benchmarks": [r["bench"] for r in results(records).values() if r.get("bench")]}


def _where(report: dict[str, Any]) -> list[str]:
    machine = report.get("machine_info", {})
    facts = [str(machine[key]) for key in ("gpu", "nvidia_smi") if key in machine]
    facts += [f"{key} {machine[key]}" for key in ("torch", "triton", "cuda") if machine.get(key)]
    commit = report.get("commit_info", {})
    return ["; ".join([*facts, f"commit {commit.get('id')}", f"{report.get('datetime', '')[:16]}"]) + "."]


def _parts(found: dict[str, dict[str, Any]]) -> dict[str, Counter[str]]:
    """How the tests of each file ended."""
    parts: dict[str, Counter[str]] = {}
    for test, record in found.items():
        parts.setdefault(test.partition("::")[0], Counter())[record["outcome"]] += 1
    return parts


def _missing(records: list[dict[str, Any]]) -> list[str]:
    """A row for each package that is not there, with all that it cost."""
    cost: dict[str, set[str]] = {}
    for record in records:
        if "missing" in record:
            cost.setdefault(record["missing"], set()).add(record["test"])
    if not cost:
        return []
    rows = [f"| {package} | {', '.join(sorted(parts))} |" for package, parts in sorted(cost.items())]
    how = [f"- transformer_engine: {fp8_te.INSTALL}."] if "transformer_engine" in cost else []
    return ["", "| not installed | not run for it |", "|---|---|", *rows, *([""] if how else []), *how]


def _failures(found: dict[str, dict[str, Any]]) -> list[str]:
    wrong = [record for record in found.values() if record["outcome"] in ("failed", "crashed")]
    lines = [f"- `{record['test']}`: {record['outcome']}: {record['reason'][:200]}" for record in wrong]
    return ["", "Failed:", *lines] if lines else []


def _goals(report: dict[str, Any]) -> list[str]:
    medians: dict[str, dict[str, float]] = {}
    for row in read_rows(report):
        medians.setdefault(row.group, {})[row.way] = row.median_seconds
    rows = []
    for goal in GOALS:
        for group, ways in sorted(medians.items()):
            rival = goal.rival
            if rival == BEST:
                others = (way for way in ways if not way.startswith("ours"))
                rival = min(others, key=lambda way: ways[way], default=BEST)
            if group.startswith(goal.group) and rival in ways and "ours" in ways:
                got = ways[rival] / min(ways[way] for way in OURS if way in ways)
                verdict = "met" if got >= goal.times else "missed"
                rows.append(f"| {group} | {rival} | {goal.times:.2f} | {got:.2f} | {verdict} |")
    head = ["", "| goal | beside | times as fast | measured | |", "|---|---|---:|---:|---|"]
    return [*head, *rows] if rows else []


def _calibration(report: dict[str, Any], predictions: Path) -> list[str]:
    """Predicted beside measured, milliseconds of ours."""
    if not predictions.is_file():
        return []
    medians = {row.group: row.median_seconds for row in read_rows(report) if row.way == "ours"}
    rows = []
    for p in json.loads(predictions.read_text())["predictions"]:
        group = f"attention {p['direction']}, {p['pattern']}"
        if group in medians:
            fast, slow = p["milliseconds_fast"], p["milliseconds_slow"]
            rows.append(f"| {group} | {fast:.2f} to {slow:.2f} | {medians[group] * 1e3:.2f} |")
    return ["", "| bench | predicted ms | measured ms |", "|---|---|---:|", *rows] if rows else []


def _imports(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short=8", "HEAD"], cwd=ROOT, text=True, capture_output=True)
    return done.stdout.strip() or "unknown"


def machine_name() -> str:
    """The GPU's name in small letters, or "cpu"."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, default=12.0, help="at most; what is not reached waits for a next call"
    )
    parser.add_argument("--out", type=Path, default=Path("bench/results"))
    parser.add_argument("--only", nargs="+", choices=[stage.name for stage in STAGES], help="these stages alone")
    parser.add_argument("--count-each", type=float, help="rehearsal: every test counts as so many seconds")
    args = parser.parse_args()
    session = Session(args.out.resolve(), machine_name(), seconds=60 * args.minutes, count_each=args.count_each)
    num_wrong = session.run(tuple(stage for stage in STAGES if args.only is None or stage.name in args.only))
    print((session.out / f"{session.name}-session.md").read_text())
    sys.exit(1 if num_wrong else 0)


if __name__ == "__main__":
    main()
