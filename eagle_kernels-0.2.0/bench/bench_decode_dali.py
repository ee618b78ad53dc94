"""Sparse frames through NVIDIA DALI: fed the whole file, as it is meant to be used, or the planned packets in shards.

    python -m bench.bench_decode_dali --out bench/results/decode-dali-cpu.json
    python -m bench.bench_decode_dali --device mixed --out bench/results/NAME-decode-dali.json      # on a GPU
    python -m bench.bench_decode_dali --tiny                                                        # does it run?

10 minutes of 720p, made here (10 seconds of moving pictures, copied over and over): VP9 for DALI's CPU code, which has
no other codec of note, H.264 for NVDEC. Each way runs in a process of its own, after a first frame; ours includes the
index and the plan. On the CPU, CPU seconds are the number to trust; on a GPU, wall seconds. A way whose frames are not
those of the CPU executor is marked wrong. Without DALI it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.bench_decode import PACKAGES, in_own_process, make_video, spread
from bench.machine import machine

WHOLE = "DALI, whole file"
FEEDING = "feeding alone"
CODECS = {"cpu": ("vp9", "webm"), "mixed": ("h264", "mp4")}
SHARDS = {"cpu": (1, 2), "mixed": (1, 2, 3, 4, 5, 6, 7)}
SIZES = {False: (1280, 720, 60, [32]), True: (128, 96, 2, [4])}  # tiny or not: width, height, copies of 10 s, frames
SAME = 2.0  # mean difference in luma, in steps of 255, which chroma siting leaves alone; next frames differ by more
LUMA = torch.tensor([0.299, 0.587, 0.114])


def ways(device: str) -> list[str]:
    return [WHOLE, *(f"plan + DALI, {n} shards" for n in SHARDS[device])]


def decode(way: str, path: Path, places: NDArray[np.int64], device: str) -> list[Tensor]:
    """The frames of these numbers, (Y, X, 3) uint8 each."""
    from eagle_kernels import video
    from eagle_kernels.video import dali

    device_id = None if device == "cpu" else torch.cuda.current_device()
    if way != WHOLE:
        film = video.open(path)
        num_shards = int(way.split()[-2])
        return [f.rgb_YX3 for f in dali._frames(film.index, film.info, places, device_id, num_shards=num_shards)]
    pipeline = dali._pipeline(device_id, 1)
    pipeline.feed_input("encoded", [np.fromfile(path, np.uint8)])
    pipeline.feed_input("numbers", [places.astype(np.int32)])
    (frames,) = pipeline.run()
    return [rgb_YX3.clone() for rgb_YX3 in torch.from_dlpack(frames[0])]


def measure_here(way: str, path: Path, places: NDArray[np.int64], device: str) -> dict[str, float | bool]:
    from eagle_kernels.video import decode as decode_on_cpu
    from eagle_kernels.video import probe

    decode(way, path, places[:1], device)
    cpu, wall = time.process_time(), time.perf_counter()
    found = decode(way, path, places, device)
    if device == "mixed":
        torch.cuda.synchronize()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    true = decode_on_cpu(path, probe(path).frame_times_seconds[places])
    off = [float(((a.cpu().float() - b.rgb_YX3) @ LUMA).abs().mean()) for a, b in zip(found, true, strict=True)]
    return {
        "cpu_seconds": round(cpu, 3),
        "wall_seconds": round(wall, 3),
        "worst_luma_difference": round(max(off), 3),
        "is_exact": max(off) < SAME,
    }


def measure_feeding(path: Path, places: NDArray[np.int64]) -> dict[str, Any]:
    """What comes before DALI, in 7 shards: index, plan, packets, new files. Nothing is decoded but the first frame."""
    from eagle_kernels import video
    from eagle_kernels.video import dali
    from eagle_kernels.video.libav.source import PacketReader

    cpu = time.process_time()
    with closing(PacketReader(video.open(path).index)) as reader:
        starts = dali.with_true_starts_only(reader, places)
    with closing(PacketReader(starts)) as reader:
        shards = dali.streams(reader, places, num_shards=dali.NUM_SHARDS, backend="cuda")
        num_bytes = sum(len(reader.matroska(shard.packets)) for shard in shards)
    return {
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "share_of_bytes": round(num_bytes / path.stat().st_size, 3),
        "packets_a_shard": [len(shard.packets) for shard in shards],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="another one than the made one")
    parser.add_argument("--device", choices=CODECS, default="cpu", help="DALI's name; mixed: NVDEC")
    parser.add_argument("--frames", type=int, nargs="*", help="32, or 4 with --tiny")
    parser.add_argument("--rounds", type=int, default=1, help="the median counts")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--note", help="kept in the report: what else the machine did, say")
    parser.add_argument("--only", help="this way, in this process, as JSON")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        print("DALI is not installed: nothing is measured.")
        return
    from nvidia import dali

    width_px, height_px, num_copies, frames = SIZES[args.tiny]
    if args.only == FEEDING:
        print(json.dumps(measure_feeding(args.file, spread(args.file, args.frames[0]))))
        return
    if args.only:
        print(json.dumps(measure_here(args.only, args.file, spread(args.file, args.frames[0]), args.device)))
        return
    with tempfile.TemporaryDirectory() as folder:
        codec, ending = CODECS[args.device]
        path = args.file or Path(folder) / f"made-{10 * num_copies}s-{height_px}p.{ending}"
        if args.file is None:
            make_video(path, codec, width_px, height_px, num_copies)
        key = "wall_seconds" if args.device == "mixed" else "cpu_seconds"
        report: dict[str, Any] = {"machine": machine(*PACKAGES), "device": args.device, "file": path.name, "frames": {}}
        report["machine"]["versions"]["dali"] = dali.__version__
        if args.device == "mixed":
            report["machine"]["gpu"] = torch.cuda.get_device_name()
        if args.note:
            report["note"] = args.note
        for num_frames in args.frames or frames:
            rows = report["frames"][num_frames] = {}
            feeding = in_own_process("bench_decode_dali", path, num_frames, FEEDING, "--device", args.device)
            print(f"{num_frames:5d}  {FEEDING:24s} {feeding['cpu_seconds']:8.3f} CPU s  {feeding}")
            for way in ways(args.device):
                rounds = [
                    in_own_process("bench_decode_dali", path, num_frames, way, "--device", args.device)
                    for _ in range(args.rounds)
                ]
                row = rows[way] = sorted(rounds, key=lambda r: r[key])[len(rounds) // 2]
                row["times_less"] = round(rows[WHOLE][key] / row[key], 2)
                print(
                    f"{num_frames:5d}  {way:24s} {row['cpu_seconds']:8.3f} CPU s {row['wall_seconds']:8.3f} s "
                    f"{row['times_less']:6.2f} times less{'' if row['is_exact'] else '  WRONG FRAMES'}",
                    flush=True,
                )
            rows[FEEDING] = feeding
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
