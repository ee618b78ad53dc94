"""100,000 simulated videos through filter and build: what the pipeline itself costs, without any server or pixel.

    python -m tests.annotate.simulate --out /tmp/simulated --json bench/results/annotate-simulation-cpu.json

Four questions a video, a story's and three of clips, are written as parts of the steps before; a function answers in
the endpoint's place, by a hash. Every answer is journaled as a server's is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
import zlib
from pathlib import Path
from typing import Any

from bench.machine import machine
from eagle_model.annotate.config import AnnotateConfig
from eagle_model.annotate.question_types import TYPES
from eagle_model.annotate.records import QUESTIONS, VIDEOS
from eagle_model.annotate.steps import run_named
from eagle_model.annotate.work import Run, part_name, write_part
from eagle_model.fields import from_json
from eagle_model.files import write_json
from eagle_model.infer.endpoint import EndpointConfig, Reply

QUESTIONS_A_VIDEO = 4
PART_VIDEOS = 1000
ANCHOR = "A person walks along a path past trees and benches while others sit and talk in the sun of the afternoon"


class Simulated:
    """Answers with a letter: without pictures by chance, with them mostly the right one, as its options are known."""

    def __init__(self) -> None:
        self.config = EndpointConfig(url="http://simulated/v1", model="simulated", max_concurrent=2)
        self.num_asked = 0

    def ask(self, messages: Any, *, max_tokens: int, temperature: float, seed: int, json_schema: Any) -> Reply:
        self.num_asked += 1
        parts = messages[0]["content"]
        text = parts[-1]["text"]
        chance = zlib.crc32(f"{text}{seed}".encode())
        letter = "ABCD"[chance % 4]
        if len(parts) > 1 and chance % 100 < 90:
            at = text.find(". right ")
            letter = text[at - 1]
        raw = {"id": f"r{chance}", "choices": [{"index": 0, "message": {"role": "assistant", "content": letter}}]}
        return Reply(
            text=letter, finish_reason="stop", prompt_tokens=200, answer_tokens=1, dollars=0.0001, seconds=0.0,
            num_tries=1, raw=raw,
        )  # fmt: skip


def questions(video: str, number: int) -> list[dict[str, Any]]:
    rows = []
    for k in range(QUESTIONS_A_VIDEO):
        clip = None if k == 0 else float(60 * k)
        rows.append(
            {
                "id": f"{video}#{k}", "video": video, "kind": "story" if clip is None else "clip",
                "type": "story" if clip is None else TYPES[(number + k) % len(TYPES)],
                "question": f"Which thing of number {number % 9973} is seen after event {k}?",
                "answer": f"It is thing {number % 97} of kind {k}.", "short": f"right {number % 97}",
                "wrong": ["wrong one", "wrong two", "wrong three"], "start": clip,
                "end": None if clip is None else clip + 30, "anchor": None if clip is None else ANCHOR,
                "prompt": "clip_questions@simulated", "model": "simulated", "request": f"k{number}",
            }
        )  # fmt: skip
    return rows


def make(folder: Path, num_videos: int) -> None:
    """Parts of select, story and clip, as if those steps had made them."""
    for name in ("select", "story", "clip"):
        (folder / name).mkdir(parents=True)
    for part, start in enumerate(range(0, num_videos, PART_VIDEOS)):
        numbers = range(start, min(num_videos, start + PART_VIDEOS))
        videos = [
            {"id": f"v{i:07}.mp4", "path": f"v{i:07}.mp4", "duration_seconds": 600.0, "licence": "CC0", "marks": []}
            for i in numbers
        ]
        asked = [q for i in numbers for q in questions(f"v{i:07}.mp4", i)]
        tables = {"select": (videos, VIDEOS)}
        tables |= {kind: ([q for q in asked if q["kind"] == kind], QUESTIONS) for kind in ("story", "clip")}
        for name, (rows, columns) in tables.items():
            write_part(folder / name, part, rows, columns)
            write_json(folder / name / f"{part_name(part)}.done.json", {"num_requests": 0, "dollars": 0.0})


def simulate(folder: Path, num_videos: int) -> dict[str, Any]:
    """Makes the parts, runs both steps, and returns what they took."""
    raw = {"out": str(folder / "run"), "videos": str(folder), "part_videos": PART_VIDEOS, "build": {"num_shown": 0}}
    config = from_json(AnnotateConfig, {**raw, "annotator": {"url": "http://simulated/v1", "model": "simulated"}})
    make(folder / "run", num_videos)
    simulated = Simulated()
    run = Run(config, annotator=simulated, reader=simulated)
    begun, cpu = time.monotonic(), time.process_time()
    filtered = run_named(run, "filter")
    between = time.monotonic()
    built = run_named(run, "build")
    ended = time.monotonic()
    kept = sum(1 for _ in (folder / "run/build/train.jsonl").open())
    num_bytes = sum(path.stat().st_size for path in (folder / "run/filter").iterdir())
    return {
        "num_videos": num_videos, "num_questions": filtered.num_rows, "num_asked": simulated.num_asked,
        "num_rows": built.num_rows, "num_training_rows": kept, "filter_seconds": between - begun,
        "build_seconds": ended - between, "cpu_seconds": time.process_time() - cpu, "filter_bytes": num_bytes,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--out", type=Path, required=True, help="a folder, which is made anew")
    parser.add_argument("--json", type=Path, help="a file for what it took, with machine, versions and commit")
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    about = machine("pyarrow", "numpy", "torch")
    took = {"machine": about, **simulate(options.out, options.videos)}
    print(json.dumps(took, indent=1))
    if options.json:
        write_json(options.json, took)


if __name__ == "__main__":
    main()
