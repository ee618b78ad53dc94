"""What it costs to prepare a data set (`eagle data prepare`), to start a run on it, and to plan its samples.

    OMP_NUM_THREADS=1 python -m bench.bench_data index --rows 10000 1000000 --out bench/results/data-index-cpu.json
    OMP_NUM_THREADS=1 python -m bench.bench_data videos --out bench/results/data-videos-cpu.json
    OMP_NUM_THREADS=1 python -m bench.bench_data plan --out bench/results/data-plan-cpu.json
    OMP_NUM_THREADS=1 python -m bench.bench_data million --out bench/results/data-million-cpu.json

Rows are made from a seed: 200 characters of text, every other one with an image out of NUM_IMAGES, and a byte-level BPE
of 151,651 tokens with Qwen's rules for words. `index` prepares each number of rows twice, with sizes of images unknown
and known, and opens the result in a process of its own; `videos` prepares rows of one short film each, all files their
own; `plan` is one core, by its own clock; `million` prepares 10,000 rows, repeats their parts a hundred times, and
opens the whole twice, in a process of its own each time.

Seconds are of the clock on the wall, workers' start included; where other work shares the machine (`load_before`), CPU
seconds tell more.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bench.machine import machine
from eagle_model.data.clips import Clip
from eagle_model.data.frame_times import EvenTimes
from eagle_model.data.index import open_index
from eagle_model.data.part_table import videos_path
from eagle_model.data.plan_many import Facts, plan_many
from eagle_model.data.prefetch import Prefetch
from eagle_model.data.prepare import PARTS, PLAN, begin, finish, in_pool, part_path, prepare_part
from eagle_model.data.processor import Processor, ProcessorConfig
from eagle_model.data.sample import Sample, Turn, VideoRef
from eagle_model.data.sampling import SamplingConfig
from eagle_model.data.tokenizer import QWEN_WORDS, add_special_tokens
from eagle_model.files import write_json

NUM_IMAGES = 10_000
NUM_CHARS = 200  # of a row, half of them the answer
VOCAB_SIZE = 151_643
PACKAGES = ("torch", "numpy", "tokenizers", "pyarrow", "av")


def words(seed: int = 1) -> list[str]:
    chooser = random.Random(seed)
    syllables = ["ba", "to", "ri", "men", "sta", "ker", "lo", "un", "ist", "ven", "qua", "der", "ing", "pre", "con"]
    return sorted({"".join(chooser.choices(syllables, k=chooser.randint(1, 4))) for _ in range(8000)})


def made_tokenizer(seed: int = 0) -> Tokenizer:
    """As large as Qwen2.5's, without a download: a chain of merges for each word, and merges that never come."""
    chooser, alphabet = random.Random(seed), sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab, merges = {char: i for i, char in enumerate(alphabet)}, []
    names = list(alphabet)

    def add(left: str, right: str) -> None:
        if left + right not in vocab:
            vocab[left + right] = len(vocab)
            names.append(left + right)
            merges.append((left, right))

    for word in words():
        for k in range(len(word)):
            add("Ġ" + word[:k], word[k])
    while len(vocab) < VOCAB_SIZE:
        left = chooser.choice(names)
        if len(left) < 12:
            add(left, chooser.choice("etaoinshrdlcumwfgypbvkĠ"))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    add_special_tokens(tokenizer)
    return tokenizer


def write_rows(folder: Path, num_rows: int) -> Path:
    """A recipe of rows of text, every other one with an image."""
    chooser, known = random.Random(2), words()

    def text() -> str:
        found = " ".join(chooser.choices(known, k=NUM_CHARS // 8))
        return (found + " " + found)[: NUM_CHARS // 2]

    with (folder / "rows.jsonl").open("w") as file:
        for i in range(num_rows):
            says = [{"from": "human", "value": text()}, {"from": "gpt", "value": text()}]
            image = {"image": f"images/{chooser.randrange(NUM_IMAGES)}.png"} if i % 2 else {}
            file.write(json.dumps({"id": f"row {i}", **image, "conversations": says}) + "\n")
    return _recipe(folder)


def _recipe(folder: Path) -> Path:
    (folder / "recipe.json").write_text(json.dumps({"rows": {"root": ".", "annotation": "rows.jsonl"}}))
    return folder / "recipe.json"


def write_images(folder: Path) -> None:
    (folder / "images").mkdir()
    sizes = np.random.default_rng(0).integers(64, 2000, (NUM_IMAGES, 2)).tolist()
    for i, (width, height) in enumerate(sizes):
        Image.new("1", (width, height)).save(folder / f"images/{i}.png", compress_level=1)


def measured_index(folder: Path, num_rows: list[int], num_workers: int) -> list[dict]:
    write_images(folder)
    processor, results = Processor(made_tokenizer(), ProcessorConfig()), []
    processor.save_pretrained(folder / "model")
    for num in num_rows:
        recipe, out = write_rows(folder, num), folder / f"prepared-{num}"
        result: dict = {"rows": num, "workers": num_workers}
        for sizes in ("unknown", "known"):
            (out / PLAN).unlink(missing_ok=True)  # so that all is prepared again, but for the sizes
            used = prepared(recipe, processor, out, num_workers)
            result[f"sizes_{sizes}"] = {
                "seconds": round(used.seconds, 2),
                "rows_a_second": round(num / used.seconds),
                "cpu_us_a_row": round(1e6 * used.cpu_seconds / num, 1),
                "largest_worker_mb": round(used.peak_bytes / 1e6),
            }
        index_bytes = sum(path.stat().st_size for path in (out / PARTS).iterdir())
        result["index_bytes_a_row"] = round(index_bytes / num, 1)
        for start in ("first_start", "later_start"):  # the first plans, and keeps what came out
            command = [sys.executable, "-m", "bench.bench_data", "start", "--folder", str(out)]
            done = subprocess.run(
                [*command, "--model", str(folder / "model")], capture_output=True, text=True, check=True
            )
            result[start] = json.loads(done.stdout.splitlines()[-1])
        results.append(result)
        print(json.dumps(result), flush=True)
        shutil.rmtree(out)
    return results


def measured_million(folder: Path) -> list[dict]:
    write_images(folder)
    processor, out = Processor(made_tokenizer(), ProcessorConfig()), folder / "out"
    processor.save_pretrained(folder / "model")
    plan = begin(write_rows(folder, 10_000), processor, out)
    for k in range(plan.num_parts):
        prepare_part(out, k)
    for k in range(plan.num_parts, 100 * plan.num_parts):
        part, same = part_path(out, k), part_path(out, k % plan.num_parts)
        os.link(same, part)
        os.link(videos_path(same), videos_path(part))
    write_json(out / PLAN, asdict(replace(plan, parts=plan.parts * 100)))
    finish(out)
    command = [
        sys.executable,
        "-m",
        "bench.bench_data",
        "start",
        "--folder",
        str(out),
        "--model",
        str(folder / "model"),
    ]
    results = []
    for start in ("first", "later"):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results.append({"start": start, "rows": 1_000_000, **json.loads(done.stdout.splitlines()[-1])})
        print(json.dumps(results[-1]), flush=True)
    return results


def measured_start(folder: Path, model: Path) -> dict:
    """What it takes to open a prepared folder and plan one sample, in this process."""
    import eagle_model.data.prepared  # noqa: F401  so that its start is not timed

    processor = Processor.from_pretrained(model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, used = time.monotonic(), time.process_time()
    with Prefetch(1) as prefetch:
        index = open_index(folder, processor, prefetch)
    opened, used = time.monotonic() - began, time.process_time() - used
    index.plan(index.num_samples // 2)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {
        "seconds": round(opened, 3),
        "cpu_seconds": round(used, 3),
        "first_plan_seconds": round(time.monotonic() - began - opened, 4),
        "peak_bytes_a_row": round(1024 * more / index.num_samples, 1),
    }


def measured_videos(folder: Path, num_files: int, num_workers: int) -> list[dict]:
    import av

    film = folder / "film.mp4"
    with av.open(str(film), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast", "g": "60"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(30 * 30):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i % 256, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = film.read_bytes()
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(num_files):
            (folder / f"{i}.mp4").write_bytes(data)
            says = [{"from": "human", "value": "<video>\nWhat is it?"}, {"from": "gpt", "value": "A film."}]
            file.write(json.dumps({"video": f"{i}.mp4", "conversations": says}) + "\n")
    processor, results = Processor(made_tokenizer(), ProcessorConfig()), []
    for known in ("unknown", "known"):
        (folder / "out" / PLAN).unlink(missing_ok=True)
        used = prepared(_recipe(folder), processor, folder / "out", num_workers)
        result = {
            "files": num_files,
            "frames_a_file": 900,
            "indexes": known,
            "workers": num_workers,
            "seconds": round(used.seconds, 2),
            "files_a_second": round(num_files / used.seconds),
            "cpu_ms_a_file": round(1e3 * used.cpu_seconds / num_files, 2),
            "files_a_cpu_second": round(num_files / used.cpu_seconds),
        }
        results.append(result)
        print(json.dumps(result), flush=True)
    return results


class Used(NamedTuple):
    seconds: float
    cpu_seconds: float  # of all workers, from their first part on
    peak_bytes: int  # of the largest


def prepared(recipe: Path, processor: Processor, out: Path, num_workers: int) -> Used:
    """`prepare` by its pieces, so that workers can tell what they used."""
    began = time.monotonic()
    plan = begin(recipe, processor, out)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["eagle_model.data.prepare"])
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=in_pool) as pool:
        used = list(pool.map(_measured, [out] * plan.num_parts, range(plan.num_parts)))
    finish(out)
    seconds, peaks = zip(*used, strict=True)
    return Used(time.monotonic() - began, sum(seconds), max(peaks))


def _measured(out: Path, k: int) -> tuple[float, int]:
    began = time.process_time()
    prepare_part(out, k)
    return time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured_plans() -> list[dict]:
    """CPU seconds of one core; texts of 1 image, and of 1 film of 45 to 60 minutes at 131,072 tokens."""
    processor = Processor(made_tokenizer(), ProcessorConfig(sampling=SamplingConfig(context_tokens=131_072)))
    chooser, results = np.random.default_rng(0), []
    sample = Sample("s", (Turn("user", (VideoRef(Path("a.mp4")), "What?")), Turn("assistant", ("A film.",))))
    base = processor.frame_tokens.base(sample, [False])
    films = [
        Clip(EvenTimes(num, 512, 1 / 15_360), num / 30, None, num, 250.0, 1920 * 1080)
        for num in chooser.integers(81_000, 108_000, 2000).tolist()
    ]
    sizes = chooser.integers(50, 4000, (500_000, 2))
    for name, num, facts in (
        ("image", len(sizes), _facts(len(sizes), base, sizes, [])),
        ("film", len(films), _facts(len(films), base, sizes[:0], films)),
    ):
        plan_many(processor.config, processor.frame_tokens, facts)  # fills the tables
        began = time.process_time()
        plan_many(processor.config, processor.frame_tokens, facts)
        results.append(
            {"what": f"numbers of samples of one {name}", "plans_a_second": round(num / (time.process_time() - began))}
        )
    began = time.process_time()
    for film in films[:300]:
        processor.plan_known(sample, images=[], clips=[film], base_tokens=base)
    rate = round(300 / (time.process_time() - began))
    results.append({"what": "the whole plan of a sample of one film", "plans_a_second": rate})
    print(json.dumps(results), flush=True)
    return results


def _facts(num: int, base: int, sizes: np.ndarray, films: list[Clip]) -> Facts:
    return Facts(
        base_tokens=np.full(num, base),
        num_images=np.full(num, int(len(sizes) > 0)),
        image_sizes=sizes,
        image_limits=np.zeros(len(sizes), np.int64),
        clips={i: [film] for i, film in enumerate(films)},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=["index", "videos", "plan", "million", "start"])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--model", type=Path)
    given = parser.parse_args()
    if given.what == "start":
        print(json.dumps(measured_start(given.folder, given.model)))
        return
    about = machine(*PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        if given.what == "index":
            results = measured_index(Path(folder), given.rows, given.workers)
        elif given.what == "million":
            results = measured_million(Path(folder))
        elif given.what == "videos":
            results = measured_videos(Path(folder), given.files, given.workers)
        else:
            results = measured_plans()
    if given.out:
        write_json(given.out, {"machine": about, "results": results})


if __name__ == "__main__":
    main()
