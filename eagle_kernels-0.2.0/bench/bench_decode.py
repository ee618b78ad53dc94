"""Sparse frames of a video file: CPU seconds, wall time and peak memory of ours and of others, each in its own process.

    python -m bench.bench_decode --make FOLDER --out bench/results/decode-cpu.json
    python -m bench.bench_decode FILE.mp4 --frames 32 128

Every way decodes the same frames, evenly spaced, to full-size RGB; `keyframe` and `tolerance` choose others, by design,
and say how far off. CPU seconds are the number to trust on a shared machine. A way that gives frames of other times
than asked is marked wrong. torchcodec and decord take part where they are installed.

`--make` makes the files, so that the numbers can be had again anywhere: 10 seconds of moving pictures, copied over and
over. H.264 and VP9: the encoders' defaults but for the speed, H.264 also without B pictures; AV1: a fast preset, a key
frame every 10 seconds. The hour is also put into a Matroska, packet by packet, of which opening alone is measured.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.machine import machine

Times = NDArray[np.float64]
PACKAGES = ("av", "numpy", "torch", "torchcodec", "decord")  # whose versions a result names
ROUNDS_OF_OPENING = 20
REMUXED = {"made-1h-360p.mkv": "made-1h-360p.mp4"}
FPS = 30
UNIT_FRAMES = 10 * FPS
ENCODERS = {
    "h264": ("libx264", {"preset": "veryfast", "crf": "26"}),
    "h264 without B pictures": ("libx264", {"preset": "veryfast", "crf": "26", "bf": "0"}),
    "av1": ("libsvtav1", {"preset": "10", "crf": "35", "g": str(UNIT_FRAMES), "svtav1-params": "lp=1"}),
    "vp9": ("libvpx-vp9", {"deadline": "good", "cpu-used": "5", "crf": "35", "b": "0"}),
}
MADE = {  # codec, width, height, copies of 10 s
    "made-10min-720p.mp4": ("h264", 1280, 720, 60),
    "made-1h-360p.mp4": ("h264", 640, 360, 360),
    "made-20s-720p-no-b.mp4": ("h264 without B pictures", 1280, 720, 2),
    "made-1min-720p-av1.mp4": ("av1", 1280, 720, 6),
    "made-10min-720p-av1.mp4": ("av1", 1280, 720, 60),
    "made-10min-720p-vp9.webm": ("vp9", 1280, 720, 60),
}


def ours(path: Path, times: Times, *, seek: str = "exact", num_workers: int = 1) -> Iterator[float]:
    from eagle_kernels import video

    film = video.open(path)
    for frame in film.frames(film.choose(times, seek=seek, tolerance=0.25), num_workers=num_workers):  # type: ignore[arg-type]
        yield frame.timestamp_seconds


def pyav_seek_each(path: Path, times: Times) -> Iterator[float]:
    """A seek for every frame, then forward to it, with libav's default threads."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        start = stream.start_time or 0
        for time_seconds in times:
            container.seek(start + round(time_seconds / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                frame_seconds = float((frame.pts - start) * stream.time_base)
                if frame_seconds >= time_seconds - 1e-6:
                    frame.to_ndarray(format="rgb24")
                    yield frame_seconds
                    break


def torchcodec(path: Path, times: Times, *, seek_mode: str, threads: int) -> Iterator[float]:
    """threads 0: libav chooses, as many as the machine has cores."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), seek_mode=seek_mode, num_ffmpeg_threads=threads)
    places = (times * decoder.metadata.average_fps).round().astype(int).tolist()
    yield from decoder.get_frames_at(places).pts_seconds.tolist()


def decord(path: Path, times: Times) -> Iterator[float]:
    import decord

    reader = decord.VideoReader(str(path))
    places = (times * reader.get_avg_fps()).round().astype(int)
    reader.get_batch(places).asnumpy()
    yield from reader.get_frame_timestamp(places)[:, 0].tolist()


WAYS: dict[str, Callable[[Path, Times], Iterator[float]]] = {
    "ours": ours,
    "ours, 2 workers": partial(ours, num_workers=2),
    "ours, keyframe": partial(ours, seek="keyframe"),
    "ours, tolerance 25 %": partial(ours, seek="tolerance"),
    "PyAV, seek for each": pyav_seek_each,
    "torchcodec approximate": partial(torchcodec, seek_mode="approximate", threads=0),
    "torchcodec exact": partial(torchcodec, seek_mode="exact", threads=0),
    "torchcodec exact, 1 thread": partial(torchcodec, seek_mode="exact", threads=1),
    "decord": decord,
}
CHOOSES = ("ours, keyframe", "ours, tolerance 25 %")


def available(way: str) -> bool:
    library = way.split()[0].rstrip(",")
    return library not in ("torchcodec", "decord") or importlib.util.find_spec(library) is not None


def measure_here(way: str, path: Path, times: Times) -> dict[str, float | bool]:
    """One way, measured in this process after a first frame, which imports what it imports."""
    list(WAYS[way](path, times[:1]))
    base_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cpu, wall = time.process_time(), time.perf_counter()
    found = np.array(list(WAYS[way](path, times)))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    off = np.abs(found - times) if len(found) == len(times) else np.array([np.inf])
    return {
        "cpu_seconds": round(cpu, 3),
        "wall_seconds": round(wall, 3),
        "peak_bytes_above_one_frame": peak_bytes - base_bytes,
        "worst_off_seconds": round(float(off.max()), 3),
        "is_exact": bool(off.max() < 2e-3),  # some tell times in milliseconds
    }


def spread(path: Path, num_frames: int) -> NDArray[np.int64]:
    """Numbers of evenly spaced frames, the first and the last among them."""
    from eagle_kernels.video import probe

    return np.linspace(0, probe(path).num_frames - 1, num_frames).round().astype(np.int64)


def evenly_spaced(path: Path, num_frames: int) -> Times:
    from eagle_kernels.video import probe

    return probe(path).frame_times_seconds[spread(path, num_frames)]


def in_own_process(
    module: str, path: Path, num_frames: int, way: str, *options: str, may_fail: bool = False
) -> dict[str, Any]:
    """What `python -m bench.<module> PATH --frames N --only WAY` prints last, as JSON; `may_fail`: or why it failed."""
    command = [sys.executable, "-m", f"bench.{module}", str(path), "--frames", str(num_frames), "--only", way, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and may_fail:
        return {"failed": done.stderr.strip().splitlines()[-1][:200]}
    if done.returncode:
        raise RuntimeError(f"{way}, {num_frames} frames of {path}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_opening(path: Path) -> dict[str, float]:
    """Milliseconds, the best round, from the path to the plan of 128 frames: by the packets, by the container's tables
    (MP4) or block headers (Matroska) where these apply, and from the index kept in a folder."""
    from eagle_kernels.video import sidecar
    from eagle_kernels.video.info import PacketIndex, describe
    from eagle_kernels.video.libav.index import index_from_packets, read_index
    from eagle_kernels.video.plan import choose_frames, plan

    with tempfile.TemporaryDirectory() as folder:
        sidecar.make(path, folder, read_index)

        def kept() -> PacketIndex:
            index = sidecar.read(path, folder)
            assert index is not None
            return index

        asked = np.linspace(0, describe(kept()).duration_seconds, 128)
        ways: dict[str, tuple[Callable[[], PacketIndex], int]] = {
            "packets": (lambda: index_from_packets(path), 3),
            "tables": (lambda: read_index(path), ROUNDS_OF_OPENING),
            "sidecar": (kept, ROUNDS_OF_OPENING),
        }
        result = {}
        for name, (read, rounds) in ways.items():
            cpu_milliseconds, wall_milliseconds = [], []
            for _ in range(rounds):
                cpu, wall = time.process_time(), time.perf_counter()
                index = read()
                info = describe(index)
                plan(index, choose_frames(index, info, asked, seek="exact", tolerance=0.0))
                cpu_milliseconds.append(1e3 * (time.process_time() - cpu))
                wall_milliseconds.append(1e3 * (time.perf_counter() - wall))
            result[f"{name}_cpu_milliseconds"] = round(min(cpu_milliseconds), 3)
            result[f"{name}_wall_milliseconds"] = round(min(wall_milliseconds), 3)
        result["tables_apply"] = read_index(path).samples is not None
        return result


def make_video(path: Path, codec: str, width_px: int, height_px: int, num_copies: int) -> None:
    """Coarse noise that slides behind a moving block, UNIT_FRAMES frames of it, then the same packets over and over."""
    import av
    from tests.video.make import ordinary_priority

    encoder, options = ENCODERS[codec]

    rng = np.random.default_rng(0)
    shape = (height_px // 8 + 64, width_px // 8 + 64, 3)
    wall_YX3 = rng.integers(0, 255, shape, dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with tempfile.TemporaryDirectory() as folder:
        unit = Path(folder) / f"unit{path.suffix}"
        with ordinary_priority(), av.open(str(unit), "w") as container:
            stream = container.add_stream(encoder, rate=FPS, options=options)
            stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
            stream.codec_context.thread_count = 1
            for i in range(UNIT_FRAMES):
                at, x = i % 256, 7 * i % (width_px - 80)
                rgb_YX3 = wall_YX3[at : at + height_px, at : at + width_px].copy()
                rgb_YX3[height_px // 3 : height_px // 3 + 80, x : x + 80] = (i % 256, 255 - i % 256, 128)
                frame = av.VideoFrame.from_ndarray(rgb_YX3, format="rgb24")
                frame.pts = i
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        with av.open(str(unit)) as container, av.open(str(path), "w") as whole:
            stream = container.streams.video[0]
            unit_ticks = round(UNIT_FRAMES / FPS / stream.time_base)
            packets = [(bytes(p), p.pts, p.dts, p.duration, p.is_keyframe) for p in container.demux(stream) if p.size]
            if codec == "av1":  # its decoder is named otherwise than the codec, which a template does not allow for
                target = whole.add_mux_stream(codec, rate=FPS, width=width_px, height=height_px)
                target.extradata = stream.codec_context.extradata
            else:
                target = whole.add_stream_from_template(stream)
            for copy in range(num_copies):
                for content, pts, dts, duration, is_keyframe in packets:
                    packet = av.Packet(content)
                    packet.pts, packet.dts = pts + copy * unit_ticks, dts + copy * unit_ticks
                    packet.duration, packet.is_keyframe = duration, is_keyframe
                    packet.time_base, packet.stream = stream.time_base, target
                    whole.mux(packet)


def made_files(folder: Path) -> list[Path]:
    """Those of MADE, made where absent."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, about in MADE.items():
        if not (folder / name).exists():
            make_video(folder / name, *about)
    return [folder / name for name in MADE]


def remux(source: Path, path: Path) -> None:
    """The same packets in the container that the name of `path` asks for."""
    import av

    with av.open(str(source)) as container, av.open(str(path), "w") as whole:
        target = whole.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.size:
                packet.stream = target
                whole.mux(packet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--make", type=Path, help="a folder for the files, made where absent")
    parser.add_argument("--frames", type=int, nargs="*", default=[32, 128], help="none: opening alone is measured")
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
        files += made_files(args.make)
        for name, source in REMUXED.items():
            if not (args.make / name).exists():
                remux(args.make / source, args.make / name)
            files.append(args.make / name)
    report: dict[str, Any] = {"machine": machine(*PACKAGES), "files": {}}
    for path in files:
        about: dict[str, Any] = {"bytes": path.stat().st_size, "opening": measure_opening(path), "frames": {}}
        print(f"{path.name}: {about['opening']}")
        for num_frames in args.frames if path.name not in REMUXED else ():
            rows = about["frames"][num_frames] = {}
            for way in filter(available, args.ways):
                may_fail = not way.startswith("ours")
                rounds = [
                    in_own_process("bench_decode", path, num_frames, way, may_fail=may_fail) for _ in range(args.rounds)
                ]
                results = sorted(rounds, key=lambda r: r.get("cpu_seconds", 0))
                row = rows[way] = results[len(results) // 2]
                if "failed" in row:
                    print(f"{num_frames:5d}  {way:28s} failed: {row['failed']}", flush=True)
                    continue
                note = "" if row["is_exact"] else f"off by up to {row['worst_off_seconds']:.2f} s"
                if note and way not in CHOOSES:
                    note = "WRONG FRAMES: " + note
                print(
                    f"{num_frames:5d}  {way:28s} {row['cpu_seconds']:8.3f} CPU s {row['wall_seconds']:8.3f} s "
                    f"{row['peak_bytes_above_one_frame'] / 2**20:7.0f} MiB  {note}",
                    flush=True,
                )
        report["files"][path.name] = about
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
