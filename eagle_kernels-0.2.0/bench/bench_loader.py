"""The loader from end to end: start and resume at a million rows, samples a second beside HF datasets and torchcodec.

    python -m bench.bench_loader --out bench/results/loader-cpu.json [--hf FOLDER]

Start and resume: an index of a million text rows is there (`eagle data prepare` makes and opens it: bench_data.py);
what is measured is the rest, to the first batch.

Samples: 24 texts, 24 JPEGs of 1280 x 720 and 6 films of 20 s at 640 x 360, made here. Each way gives normalised bf16
tiles and tokens of the same frames and grids; HF's is what its documentation shows: `datasets` with `Image`, torchcodec
for frames, Pillow's and torch's bicubic resizing, a DataLoader with 2 workers. --hf: a folder where `datasets` and
`torchcodec` are installed for this Python (pip install --target); without it that way is left out. torchcodec's wheels
need CUDA's libraries: where they do not load, frames are read with PyAV from the key frame on, and it is said so. Each
way reads the data twice and is timed in the second pass, in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.machine import machine
from eagle_model.files import write_json

NUM_TEXTS, NUM_IMAGES, NUM_FILMS, NUM_WORKERS = 24, 24, 6, 2
CONTEXT_TOKENS = 16_384
WAYS = ("threads", "processes", "datasets + a DataLoader")


def make_media(folder: Path) -> None:
    import av

    rng = np.random.default_rng(0)
    y, x = np.mgrid[:720, :1280]
    for i in range(NUM_IMAGES):
        smooth = np.stack([x * 0.1 + i, y * 0.2, (x + y) * 0.07], -1) % 256
        picture = (smooth + rng.normal(0, 10, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.jpg", quality=88)
    for i in range(NUM_FILMS):
        with av.open(str(folder / f"{i}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "23", "preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
            base = (smooth[:360, :640] * 0.5).astype(np.uint8)
            for k in range(500):
                frame = av.VideoFrame.from_ndarray(np.roll(base, 3 * k + i, axis=1), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    rows = [{"id": f"t{i}", "text": "word " * 600} for i in range(NUM_TEXTS)]
    rows += [{"id": f"i{i}", "image": f"{i}.jpg"} for i in range(NUM_IMAGES)]
    rows += [{"id": f"v{i}", "video": f"{i}.mp4"} for i in range(NUM_FILMS)]
    with (folder / "rows.jsonl").open("w") as file:
        for row in rows:
            text = row.pop("text", "What is it?")
            turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "A page."}]
            file.write(json.dumps({**row, "conversations": turns}) + "\n")


def processor() -> Any:
    from eagle_model.data.processor import Processor, ProcessorConfig
    from eagle_model.data.sampling import SamplingConfig
    from eagle_model.data.tokenizer import train_tokenizer

    texts = ["What is it? A page. word user assistant system Frame 1 sample at 0.00s: <image 1>"] * 3
    sampling = SamplingConfig(context_tokens=CONTEXT_TOKENS, max_frames=32)
    return Processor(train_tokenizer(texts, 400), ProcessorConfig(sampling=sampling))


def ours(folder: Path, workers: str) -> dict:
    from eagle_model.data.loader import DataConfig, Loader

    config = DataConfig(recipe=str(folder / "rows.jsonl"), workers=workers, num_workers=NUM_WORKERS)  # type: ignore[arg-type]
    with Loader(config, processor(), rows_per_step=4) as loader:
        for _ in range(loader.num_rows):
            next(loader)
        return timed(sum(len(next(loader).sample_ids) for _ in range(loader.num_rows)) for _ in range(1))


def with_datasets(folder: Path) -> dict:
    """Grids and times as our plan has them, so that the work is the same."""
    import datasets
    import torch

    frames_at, decoder = frame_reader()
    from eagle_model.data.index import open_index
    from eagle_model.data.prefetch import Prefetch

    maker = processor()
    with Prefetch(1) as prefetch:
        index = open_index(folder / "rows.jsonl", maker, prefetch)
    plans = [index.plan(i) for i in range(index.num_samples)]
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    table = datasets.Dataset.from_dict(
        {
            "row": list(range(len(rows))),
            "image": [str(folder / row["image"]) if "image" in row else None for row in rows],
            "video": [str(folder / row["video"]) if "video" in row else None for row in rows],
        }
    ).cast_column("image", datasets.Image(mode="RGB"))

    def normalised(pixels_N3YX: torch.Tensor) -> torch.Tensor:
        return ((pixels_N3YX.float() / 255 - 0.5) / 0.5).bfloat16()

    class Samples(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(table)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
            row, plan = table[i], plans[i]
            seen: Any = plan.seen[0] if plan.seen else None
            tokens = maker.tokenize(plan).token_ids_T
            if row["image"] is not None:
                whole = row["image"].resize((seen.cols * 448, seen.rows * 448), Image.Resampling.BICUBIC)
                tiles = torch.from_numpy(np.array(whole)).view(seen.rows, 448, seen.cols, 448, 3).permute(0, 2, 4, 1, 3)
                tiles = tiles.reshape(-1, 3, 448, 448)
                if len(tiles) > 1:
                    small = np.array(row["image"].resize((448, 448), Image.Resampling.BICUBIC))
                    tiles = torch.cat([tiles, torch.from_numpy(small).permute(2, 0, 1)[None]])
                return tokens, normalised(tiles)
            if row["video"] is not None:
                times = list(seen.timestamps_seconds)
                frames = frames_at(row["video"], times)
                resized = torch.nn.functional.interpolate(
                    frames.float(), (448, 448), mode="bicubic", antialias=True, align_corners=False
                )
                return tokens, normalised(resized.clamp(0, 255))
            return tokens, torch.empty(0, 3, 448, 448, dtype=torch.bfloat16)

    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        Samples(), batch_size=None, shuffle=True, num_workers=NUM_WORKERS, persistent_workers=True
    )
    for _ in loader:
        pass
    return timed(sum(1 for _ in loader) for _ in range(1)) | {"decoder": decoder}


def frame_reader() -> tuple[Callable[[str, list[float]], Any], str]:
    """(path, times) -> uint8 (L, 3, Y, X), and by whom."""
    import torch

    try:
        torchcodec = importlib.import_module("torchcodec")
        decoders = importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):
        import av

        def by_av(path: str, times: list[float]) -> torch.Tensor:
            with av.open(path) as container:
                stream = container.streams.video[0]
                found: list[Any] = []
                stream.thread_type = "NONE"
                last = None
                for frame in container.decode(stream):
                    while len(found) < len(times) and frame.time > times[len(found)] + 1e-6:
                        found.append(last or frame)
                    last = frame
                    if len(found) == len(times):
                        break
                found += [last] * (len(times) - len(found))
                pictures = [torch.from_numpy(one.to_ndarray(format="rgb24")) for one in found]
                return torch.stack(pictures).permute(0, 3, 1, 2)

        return by_av, f"PyAV {av.__version__}"

    def by_torchcodec(path: str, times: list[float]) -> torch.Tensor:
        return decoders.VideoDecoder(path).get_frames_played_at(times).data

    return by_torchcodec, f"torchcodec {torchcodec.__version__}"


def timed(counts: Any) -> dict:
    begin, cpu = time.perf_counter(), cpu_seconds()
    num_samples = sum(counts)
    seconds = time.perf_counter() - begin
    return {"num_samples": num_samples, "seconds": round(seconds, 2), "own_cpu_seconds": round(cpu_seconds() - cpu, 2)}


def cpu_seconds() -> float:
    """Of this process, which would train, alone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def start_and_resume(num_rows: int = 1_000_000) -> dict:
    from eagle_model.data import loader as loader_module
    from eagle_model.data.index import Index, open_index
    from eagle_model.data.loader import DataConfig, Loader
    from eagle_model.data.prefetch import Prefetch

    maker = processor()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "rows.jsonl"
        turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A page."}]
        path.write_text(json.dumps({"id": "t", "conversations": turns}) + "\n")
        with Prefetch(1) as prefetch:
            one = open_index(path, maker, prefetch)
        plan = one.plan(0)
        index = Index(
            sources=one.sources,
            source_of=np.zeros(num_rows, np.int32),
            tokens=np.full(num_rows, plan.num_tokens, np.int64),
            tiles=np.zeros(num_rows, np.int64),
            decode_seconds=np.zeros(num_rows, np.float32),
            digests=np.zeros(num_rows, one.digests.dtype),
            plan=lambda i: plan,
            skipped=(),
            num_images=0,
            num_videos=0,
            num_text_only=num_rows,
            unused_fields=(),
        )
        loader_module.open_index = lambda *_, **__: index
        config = DataConfig(recipe=str(path))
        begin = time.process_time()
        with Loader(config, maker, rows_per_step=64) as loader:
            next(loader)
            start_seconds = time.process_time() - begin
            begin = time.process_time()
            num_packed = loader.num_rows
            count_seconds = time.process_time() - begin
            for _ in range(100):
                next(loader)
            state = loader.state_dict() | {"epoch": 3, "block": 40}
        begin = time.process_time()
        with Loader(config, maker, rows_per_step=64) as loader:
            loader.load_state_dict(state)
            next(loader)
            resume_seconds = time.process_time() - begin
    return {
        "num_samples": num_rows,
        "num_rows": num_packed,
        "start_cpu_seconds": round(start_seconds, 2),
        "resume_cpu_seconds": round(resume_seconds, 2),
        "count_rows_of_an_epoch_cpu_seconds": round(count_seconds, 2),
        "state_bytes": len(json.dumps(state)),
    }


def run(way: str, folder: Path, hf: Path | None) -> dict:
    """In a process of its own."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(hf) if hf else None]))
    command = [sys.executable, "-m", "bench.bench_loader", "--way", way, "--media", str(folder)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode:
        return {"way": way, "failed": done.stderr.strip().splitlines()[-1:]}
    return {"way": way, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--hf", type=Path)
    parser.add_argument("--way", choices=[*WAYS, "start"])
    parser.add_argument("--media", type=Path)
    options = parser.parse_args()
    if options.way == "start":
        print(json.dumps(start_and_resume()))
    elif options.way:
        ways = {"threads": lambda f: ours(f, "thread"), "processes": lambda f: ours(f, "process")}
        print(json.dumps((ways.get(options.way) or with_datasets)(options.media)))
    else:
        about = machine("torch", "numpy", "av", "simplejpeg")
        with tempfile.TemporaryDirectory() as name:
            make_media(Path(name))
            results = []
            for way in ("start", *(way for way in WAYS if options.hf or way != WAYS[-1])):
                results.append(run(way, Path(name), options.hf))
                print(results[-1], flush=True)
        if options.out:
            write_json(options.out, {"about": __doc__, "machine": about, "results": results})


if __name__ == "__main__":
    main()
