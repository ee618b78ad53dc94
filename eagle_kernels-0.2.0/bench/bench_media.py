"""What proxies and JPEG at a reduced size save and cost: CPU seconds, bytes, decibels, and the loss of a tiny model.

    python -m bench.bench_media --film bbb.mp4 --work /tmp/media --out bench/results/media-cpu.json

Film    One real film (docs/notes/video.md says where to find it): its proxy by `eagle data proxies`, and frames spread
        over it as training loads them, from the original and from the proxy, in CPU seconds a frame.
Task    A tiny model learns from films of digits (bench_progressive.py) twice, from originals and from proxies, from the
        same weights and in the same order; both are then asked about held-out originals.
JPEG    A picture of nine of the film's frames side by side, 3840 x 2160, decoded and cut into tiles with
        `jpeg_scaling` and without.
Interrupted, the same command goes on with the next of these parts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.bench_progressive import config, evaluate, write_films
from bench.machine import machine
from eagle_kernels import video
from eagle_kernels.decode_tiles import decode_tiles
from eagle_kernels.frames_to_tiles import frames_to_tiles
from eagle_kernels.tiles import Tiling
from eagle_model.data.images import load_image
from eagle_model.data.proxies import Proxies, ProxySettings, make_proxies
from eagle_model.data.sample import VideoRef
from eagle_model.train.trainer import Trainer

FRAMES = (8, 32, 108)  # of a film, spread evenly
GRIDS = ((1, 1), (2, 1), (3, 2), (4, 3))  # of the picture
ROUNDS = 3
SEEDS = (0, 1, 2)


def cpu_seconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The least of some rounds."""
    found = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found)


def psnr_db(a: np.ndarray, b: np.ndarray) -> float | None:
    """None where they are the same."""
    error = float(np.square(a.astype(np.float32) - b).mean())
    return round(10 * float(np.log10(255**2 / error)), 2) if error else None


def rows_of(*films: str) -> str:
    talk = [{"from": "human", "value": "<video>\nWhat is seen?"}, {"from": "gpt", "value": "A film."}]
    return "".join(json.dumps({"video": film, "conversations": talk}) + "\n" for film in films)


def film_part(film: Path, work: Path) -> dict[str, Any]:
    shutil.copy(film, work / "film.mp4")
    (work / "film.jsonl").write_text(rows_of("film.mp4"))
    shutil.rmtree(work / "film-proxies", ignore_errors=True)
    begin = time.process_time()
    total = make_proxies(work / "film.jsonl", work / "film-proxies", ProxySettings())
    making = time.process_time() - begin
    proxy = Proxies.open(work / "film-proxies", base=work).of(VideoRef(work / "film.mp4"))
    assert proxy is not None
    original = video.open(work / "film.mp4")
    tiling = Tiling(mean=(0.5,) * 3, std=(0.5,) * 3)  # type: ignore[arg-type]
    times = np.asarray(proxy.facts.frame_times_seconds)
    loads = []
    for num in FRAMES:
        wanted = times[np.linspace(0, len(times) - 1, num).round().astype(int)].tolist()
        out_IPK = torch.empty(tiling.shape(num), dtype=torch.bfloat16)

        def decode(video: Any, times: Any, *, out: torch.Tensor) -> None:
            decode_tiles(video, times, (1, 1), tiling, out=out)

        of_original = cpu_seconds(lambda w=wanted, o=out_IPK: decode(original, w, out=o))  # type: ignore[misc]
        of_proxy = cpu_seconds(lambda w=wanted, o=out_IPK: proxy.load(w, decode, o))  # type: ignore[misc]
        loads.append(
            {
                "num_frames": num,
                "original_cpu_seconds_a_frame": round(of_original / num, 5),
                "proxy_cpu_seconds_a_frame": round(of_proxy / num, 5),
                "times": round(of_original / of_proxy, 2),
            }
        )
        print(loads[-1], flush=True)
    hours = total.film_seconds / 3600
    return {
        "film_seconds": round(total.film_seconds, 1),
        "original_mb": round(film.stat().st_size / 1e6, 1),
        "num_frames": total.num_frames,
        "psnr_db": round(total.least_psnr_db, 2),
        "proxy_mb": round(total.num_bytes / 1e6, 1),
        "proxy_mb_an_hour": round(total.num_bytes / 1e6 / hours, 1),
        "making_cpu_seconds": round(making, 1),
        "making_cpu_seconds_a_frame": round(making / total.num_frames, 4),
        "loading": loads,
    }


def task_part(work: Path, num_films: int, num_steps: int) -> dict[str, Any]:
    films = work / "films"
    if not (films / "test.jsonl").exists():
        write_films(films, "train", num_films, held_out=False, seed=0)
        write_films(films, "test", 32, held_out=True, seed=1)
    base = config(films, "control", context=1024, rows=2, max_steps=num_steps, seed=0)
    sampling = base.processor.sampling
    settings = ProxySettings(frames_per_second=sampling.frames_per_second, tile_px=base.processor.tile_px)
    total = make_proxies(films / "train.jsonl", work / "task-proxies", settings)
    arms: dict[str, list[dict[str, float]]] = {"originals": [], "proxies": []}
    for seed in SEEDS:
        for arm, found in arms.items():
            run = work / f"{arm}-{seed}"
            shutil.rmtree(run, ignore_errors=True)
            proxies = str(work / "task-proxies") if arm == "proxies" else None
            made = replace(base, seed=seed, data=replace(base.data, seed=seed, proxies=proxies))
            if not Trainer(made, run).train():
                raise SystemExit("stopped; the same command begins this part again")
            losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
            found.append({"seed": seed, "last_train_loss": statistics.mean(losses[-10:]), **evaluate(run, films)})
            print(arm, found[-1], flush=True)
    pairs = list(zip(arms["originals"], arms["proxies"], strict=True))
    differences = [proxy["loss"] - original["loss"] for original, proxy in pairs]
    return {
        "films": num_films,
        "steps": num_steps,
        "psnr_db": round(total.least_psnr_db, 2) if total.num_frames else None,
        "runs": arms,
        "held_out_loss_difference": {
            "mean": statistics.mean(differences),
            "of_each_seed": differences,
            "spread_of_originals_over_seeds": statistics.stdev([original["loss"] for original, _ in pairs]),
        },
    }


def jpeg_part(film: Path, work: Path) -> list[dict[str, Any]]:
    opened = video.open(film)
    times = np.linspace(30, opened.info.duration_seconds - 30, 9).tolist()
    frames = [frame.rgb_YX3.numpy() for frame in opened.frames(times)]
    picture = np.concatenate([np.concatenate(frames[i : i + 3], axis=1) for i in (0, 3, 6)])
    path = work / "picture.jpg"
    Image.fromarray(picture).save(path, quality=90)
    found = []
    for grid in GRIDS:
        tiling = Tiling(mean=(0.5,) * 3, std=(0.5,) * 3, thumbnail=True, dtype=torch.uint8)  # type: ignore[arg-type]
        least_px = (grid[0] * tiling.tile_px, grid[1] * tiling.tile_px)

        def tiles(least_px: tuple[int, int] | None, grid: tuple[int, int] = grid) -> np.ndarray:
            loaded = load_image(path, least_px=least_px)[None]
            return frames_to_tiles(loaded, grid, tiling, num_threads=1).numpy()  # noqa: B023

        found.append(
            {
                "grid": grid,
                "decoded_px": list(load_image(path, least_px=least_px).shape[1::-1]),
                "whole_cpu_seconds": round(cpu_seconds(lambda: tiles(None)), 4),
                "scaled_cpu_seconds": round(cpu_seconds(lambda size=least_px: tiles(size)), 4),  # type: ignore[misc]
                "psnr_db_of_tiles": psnr_db(tiles(None), tiles(least_px)),
            }
        )
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--film", type=Path, required=True, help="a film of some minutes, H.264")
    parser.add_argument("--work", type=Path, required=True, help="a folder for what is made")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--films", type=int, default=120, help="of the task")
    parser.add_argument("--steps", type=int, default=60, help="of the task")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    content: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    content.setdefault("machine", {**machine("torch", "numpy", "av", "simplejpeg", "pillow"), "num_threads": 1})
    parts = {
        "jpeg": lambda: jpeg_part(args.film, args.work),
        "film": lambda: film_part(args.film, args.work),
        "task": lambda: task_part(args.work, args.films, args.steps),
    }
    for name, part in parts.items():
        if name not in content:
            content[name] = part()
            args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
