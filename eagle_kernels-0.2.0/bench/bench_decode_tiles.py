"""Sparse frames of a video file as normalised 448 px tiles: CPU seconds, wall time and peak memory, ours and others.

    python -m bench.bench_decode_tiles --make FOLDER FILM.mp4 --out bench/results/decode_tiles-cpu.json
    python -m bench.bench_decode_tiles FILE.mp4 --frames 32 128

Every way makes bf16 tiles of the same frames, evenly spaced, each in a process of its own. The others decode first,
then resize frame by frame with Pillow's bicubic filter into a tensor made beforehand, the least memory that they can
take; "fp32 stack" keeps every tile as fp32, stacks them and casts, as is often written. "torchcodec Resize" resizes as
it decodes, with another filter (bilinear). "ours, decoded first" keeps all frames, then tiles them: what the pipeline
saves.

CPU seconds are the number to trust on a shared machine. Peak memory counts what is in memory above a run of one frame,
the tiles included (1.15 MiB each). `decibel` compares the first tiles with Pillow's of the frames of `video.decode`. A
way that gives frames of other times than asked is marked wrong. torchcodec takes part where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.video.make import set_display_matrix
from torch import Tensor

from bench.bench_decode import PACKAGES, evenly_spaced, in_own_process, made_files
from bench.machine import machine

Times = NDArray[np.float64]
Found = tuple[list[float], Tensor]  # the frames' times; (M, 3, TILE_PX, TILE_PX) bf16, or (M, P, K) patches
TILE_PX, PATCH_PX = 448, 14
HALF = (0.5, 0.5, 0.5)
NUM_COMPARED = 4


def ours(path: Path, times: Times, *, seek: str = "exact", **options: Any) -> Found:
    from eagle_kernels import Tiling, decode_tiles, video

    film = video.open(path)
    chosen = film.choose(times, seek=seek, tolerance=0.25)  # type: ignore[arg-type]
    tiling = Tiling(tile_px=TILE_PX, patch_px=PATCH_PX, mean=HALF, std=HALF)
    found = decode_tiles(film, chosen, (1, 1), tiling, **options)
    return list(found.timestamps_seconds), found.tiles_IPK


def ours_decoded_first(path: Path, times: Times) -> Found:
    from eagle_kernels import Tiling, frames_to_tiles
    from eagle_kernels.video import decode

    frames = list(decode(path, times.tolist()))
    tiling = Tiling(tile_px=TILE_PX, patch_px=PATCH_PX, mean=HALF, std=HALF)
    tiles = torch.empty(tiling.shape(len(frames)), dtype=torch.bfloat16)
    for tile_PK, frame in zip(tiles, frames):
        tile_PK[...] = frames_to_tiles(frame.rgb_YX3[None], (1, 1), tiling, num_threads=1)[0]
    return [frame.timestamp_seconds for frame in frames], tiles


def by_pillow(rgb_YX3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(rgb_YX3).resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC))


def torchcodec(path: Path, times: Times, *, threads: int, resize: bool = False, stack: bool = False) -> Found:
    """threads 0: libav chooses, as many as the machine has cores."""
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    transforms = [Resize((TILE_PX, TILE_PX))] if resize else None
    decoder = VideoDecoder(str(path), num_ffmpeg_threads=threads, transforms=transforms)
    places = (times * decoder.metadata.average_fps).round().astype(int).tolist()
    frames = decoder.get_frames_at(places)

    def tile(rgb_3YX: Tensor) -> Tensor:
        if not resize:
            rgb_3YX = torch.from_numpy(by_pillow(rgb_3YX.permute(1, 2, 0).contiguous().numpy()).copy()).permute(2, 0, 1)
        return (rgb_3YX.float() / 255).sub_(0.5).div_(0.5)

    if stack:
        return frames.pts_seconds.tolist(), torch.stack([tile(frame) for frame in frames.data]).bfloat16()
    tiles = torch.empty(len(places), 3, TILE_PX, TILE_PX, dtype=torch.bfloat16)
    for tile_3YX, rgb_3YX in zip(tiles, frames.data):
        tile_3YX[...] = tile(rgb_3YX)
    return frames.pts_seconds.tolist(), tiles


WAYS: dict[str, Callable[[Path, Times], Found]] = {
    "ours": ours,
    "ours, 2 workers": partial(ours, num_workers=2),
    "ours, tolerance 25 %": partial(ours, seek="tolerance"),
    "ours, decoded first": ours_decoded_first,
    "torchcodec + PIL": partial(torchcodec, threads=0),
    "torchcodec + PIL, 1 thread": partial(torchcodec, threads=1),
    "torchcodec + PIL, fp32 stack": partial(torchcodec, threads=1, stack=True),
    "torchcodec Resize": partial(torchcodec, threads=0, resize=True),
    "torchcodec Resize, 1 thread": partial(torchcodec, threads=1, resize=True),
}
CHOOSES = ("ours, tolerance 25 %",)
UPRIGHT = "made-20s-720p-no-b.mp4"  # beside it is the same as a phone's portrait: each is tiled from planes


def turned(upright: Path) -> Path:
    path = upright.with_stem(f"{upright.stem}-turned")
    path.write_bytes(upright.read_bytes())
    set_display_matrix(path, (0, 1, -1, 0))
    return path


def available(way: str) -> bool:
    return not way.startswith("torchcodec") or importlib.util.find_spec("torchcodec") is not None


def peak_bytes() -> int:
    """Of this process alone: ru_maxrss would begin with what the process that started it had."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def decibel_to_pillow(path: Path, times: list[float], tiles: Tensor) -> float:
    from eagle_kernels.video import decode

    if tiles.shape[1] != 3:  # patches
        side = TILE_PX // PATCH_PX
        blocks = tiles.unflatten(2, (3, PATCH_PX, PATCH_PX)).unflatten(1, (side, side))
        tiles = blocks.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    errors = []
    for frame, tile_3YX in zip(decode(path, times), tiles):
        true_3YX = torch.from_numpy(by_pillow(frame.rgb_YX3.numpy()).copy()).permute(2, 0, 1).double()
        errors.append((((tile_3YX.double() * 0.5 + 0.5) * 255 - true_3YX) ** 2).mean())
    return round(10 * float(np.log10(255**2 / np.mean(errors))), 1)


def measure_here(way: str, path: Path, times: Times) -> dict[str, float | bool]:
    """One way, measured in this process after a first frame, which imports what it imports."""
    torch.set_num_threads(1)  # the least CPU for what is small work
    WAYS[way](path, times[:1])
    base_bytes = peak_bytes()
    cpu, wall = time.process_time(), time.perf_counter()
    seconds, tiles = WAYS[way](path, times)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    above_bytes = peak_bytes() - base_bytes
    off = np.abs(np.array(seconds) - times) if len(seconds) == len(times) else np.array([np.inf])
    shown = [min(t, times[-1]) for t in seconds[:NUM_COMPARED]]  # some tell times in other roundings
    return {
        "cpu_seconds": round(cpu, 3),
        "wall_seconds": round(wall, 3),
        "peak_bytes_above_one_frame": above_bytes,
        "tile_bytes": tiles.numel() * tiles.element_size(),
        "decibel": decibel_to_pillow(path, shown, tiles[:NUM_COMPARED]),
        "worst_off_seconds": round(float(off.max()), 3),
        "is_exact": bool(off.max() < 2e-3),  # some tell times in milliseconds
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--make", type=Path, help="a folder for the files of bench_decode, made where absent")
    parser.add_argument("--frames", type=int, nargs="*", default=[32, 128, 512])
    parser.add_argument("--rounds", type=int, default=1, help="the median CPU time counts")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--only", choices=WAYS, help="this way, in this process, as JSON")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure_here(args.only, args.files[0], evenly_spaced(args.files[0], args.frames[0]))))
        return
    files = list(args.files)
    if args.make:
        files += [*made_files(args.make), turned(args.make / UPRIGHT)]
    report: dict[str, Any] = {"machine": machine(*PACKAGES), "files": {}}
    for path in files:
        print(path.name)
        report["files"][path.name] = {"bytes": path.stat().st_size, "frames": {}}
        for num_frames in args.frames:
            rows = report["files"][path.name]["frames"][num_frames] = {}
            for way in filter(available, args.ways):
                rounds = [in_own_process("bench_decode_tiles", path, num_frames, way) for _ in range(args.rounds)]
                results = sorted(rounds, key=lambda r: r["cpu_seconds"])
                row = rows[way] = results[len(results) // 2]
                note = "" if row["is_exact"] else f"off by up to {row['worst_off_seconds']:.2f} s"
                if note and way not in CHOOSES:
                    note = "WRONG FRAMES: " + note
                print(
                    f"{num_frames:5d}  {way:28s} {row['cpu_seconds']:8.3f} CPU s {row['wall_seconds']:8.3f} s "
                    f"{row['peak_bytes_above_one_frame'] / 2**20:7.0f} MiB {row['decibel']:6.1f} dB  {note}",
                    flush=True,
                )
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
