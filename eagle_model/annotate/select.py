"""Step 1, select: which videos bring something new.

    run_select(Run(config))          # probes every video, compares their clips, writes the parts that later steps read

A video is cut into clips of 10 s. With an encoder, its frames at 1 a second are encoded and pooled for each clip, and a
clip is new where its largest cosine to all of the reference (what is trained on already) is below the threshold. A
video stays when one of its clips is new and no repeat of another video's. Marks tell what else was found: frames of a
benchmark (by hashes that are passed in), pictures that stand still, and what the annotator says of watermarks.

Dims    F frames, N clips, D width of the features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from eagle_kernels.video import VideoError
from eagle_model.annotate import prompts
from eagle_model.annotate.ask import Ask, Unanswered
from eagle_model.annotate.config import SelectConfig
from eagle_model.annotate.encoder import CLIP_THRESHOLD, Encoder
from eagle_model.annotate.estimate import search_cost
from eagle_model.annotate.journal import Journal
from eagle_model.annotate.records import VIDEOS, list_videos
from eagle_model.annotate.similar import Joined, calibration, largest_cosines, repeats
from eagle_model.annotate.work import Run, Totals, part_name, write_part
from eagle_model.data.clips import open_video
from eagle_model.data.sample import DataError
from eagle_model.fields import to_json
from eagle_model.files import read_json, sha256, write_json, write_whole
from eagle_model.infer.endpoint import RequestRefused

FEATURES = "features"  # folder of .npy files: give it as `select.reference` to the next run
PREFIX = "select"
_SMALL = (9, 8)  # columns and rows of the picture that is hashed
_MIN_STEP, _PLAIN = 6, 8  # of 255 levels: less is what a codec makes of a plain area
_QUARTERS = (0.25, 0.5, 0.75)  # of a video: the frames that decontamination hashes
_SCREEN_FRAMES = 4
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)  # of each byte
_NOT_OF_LOOKING = {"threshold", "reference", "drop", "duplicate_threshold", "screen", "benchmark_hashes"}
_DECODERS = 2  # videos decoded side by side


@dataclass
class Looked:
    """What was seen of one video."""

    about: dict[str, Any]
    features_ND: np.ndarray | None
    problem: str | None = None


def run_select(run: Run) -> Totals:
    """Every process of a run does all of it: comparing needs all clips. Parts that did not change are not redone."""
    config, folder = run.config, run.folder / "select"
    (folder / FEATURES).mkdir(parents=True, exist_ok=True)
    encoder = Encoder(config.select.encoder) if config.select.encoder else None
    threshold = _threshold(config.select, encoder)
    videos = list(list_videos(Path(config.videos), root=config.media_root))
    if not videos:
        raise DataError(f"{config.videos} holds no video.")
    size = config.part_videos
    parts = [videos[i : i + size] for i in range(0, len(videos), size)]
    looked: list[list[Looked]] = []
    for number, part in enumerate(parts):
        looked.append(_look_at(run, number, part, encoder))
        run.say(f"select: looked at part {number + 1} of {len(parts)}")
    reasons = _compare(run, looked, threshold)
    totals = Totals()
    for number in range(len(parts)):
        _write(run, number, looked[number], reasons, totals)
    for stale in [p for p in folder.glob("part-*") if int(p.name[5:10]) >= len(parts)]:
        stale.unlink()
    return totals


def _threshold(config: SelectConfig, encoder: Encoder | None) -> float | None:
    """None: to be set by the user, who is shown the histogram first."""
    if config.threshold is not None:
        return config.threshold
    return CLIP_THRESHOLD if encoder is None or encoder.is_clip else None


# ---- looking


def _look_at(run: Run, number: int, videos: list[dict[str, Any]], encoder: Encoder | None) -> list[Looked]:
    """A part's videos, from disk where they were looked at before."""
    config = run.config.select
    seen = {name: value for name, value in to_json(config).items() if name not in _NOT_OF_LOOKING}
    stats = [_stat(run.config.media_root / v["path"]) for v in videos]
    model = [_stat(path) for path in sorted(Path(config.encoder).glob("*"))] if config.encoder else []
    hashes = sha256(Path(config.benchmark_hashes)) if config.benchmark_hashes else ""
    made_from = hashlib.sha256(json.dumps([videos, stats, seen, model, hashes]).encode()).hexdigest()
    base = run.folder / "select" / FEATURES / part_name(number)
    note, array = base.with_suffix(".json"), base.with_suffix(".npy")
    if not note.is_file() or read_json(note)["made_from"] != made_from:
        known = read_hashes(Path(config.benchmark_hashes)) if config.benchmark_hashes else None
        with ThreadPoolExecutor(_DECODERS) as pool:
            looked = list(pool.map(lambda v: _look(run, v, encoder, known), videos))
        features = [one.features_ND for one in looked if one.features_ND is not None]
        if features:
            write_whole(array, lambda path: _save(path, np.concatenate(features)))
        else:
            array.unlink(missing_ok=True)
        about = [{"about": o.about, "problem": o.problem} for o in looked]
        write_json(note, {"made_from": made_from, "videos": about})
    saved, looked, at = read_json(note)["videos"], [], 0
    features_ND = np.load(array, mmap_mode="r") if array.is_file() and encoder is not None else None
    for one in saved:
        num_clips = one["about"].get("num_clips", 0)
        own = None if features_ND is None else features_ND[at : at + num_clips]
        at += num_clips
        looked.append(Looked(one["about"], own, one["problem"]))
    return looked


def _stat(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def _look(run: Run, video: dict[str, Any], encoder: Encoder | None, known: np.ndarray | None) -> Looked:
    config = run.config.select
    try:
        opened = open_video(run.config.media_root / video["path"])
        info = opened.info
        num_clips = max(1, round(info.duration_seconds / config.clip_seconds))
        about = {
            **video,
            "duration_seconds": info.duration_seconds,
            "width_px": info.width_px,
            "height_px": info.height_px,
            "num_clips": num_clips,
            "marks": [],
        }
        if encoder is None and known is None and not config.still_change:
            return Looked(about, None)
        step = 1 / config.frames_per_second
        times = np.arange(step / 2, max(step, info.duration_seconds), step).clip(max=info.duration_seconds)
        chosen = np.unique(opened.choose(times, seek="tolerance"))
        smalls, features = [], []
        for start in range(0, len(chosen), config.batch_frames):
            frames = [f.rgb_YX3 for f in opened.frames(chosen[start : start + config.batch_frames])]
            smalls += [small(frame) for frame in frames]
            if encoder is not None:
                features.append(encoder(torch.stack(frames)))
        looks = []
        if known is not None:
            frames = [f.rgb_YX3 for f in opened.frames([q * info.duration_seconds for q in _QUARTERS])]
            looks = [picture_hash(s) for s in (*smalls, *map(small, frames))]
    except (VideoError, OSError) as error:
        return Looked(dict(video), None, f"cannot be read: {error}")
    if known is not None and is_known([h for h in looks if h is not None], known, config.benchmark_bits):
        about["marks"].append("benchmark")
    changes = [float(np.abs(a - b).mean()) for a, b in pairwise(smalls)]
    if config.still_change and max(changes, default=0.0) < config.still_change:
        about["marks"].append("still")
    if encoder is None:
        return Looked(about, None)
    clip_of_F = np.minimum((chosen / config.clip_seconds).astype(int), num_clips - 1)
    return Looked(about, pooled(np.concatenate(features), clip_of_F, num_clips))


def pooled(features_FD: np.ndarray, clip_of_F: np.ndarray, num_clips: int) -> np.ndarray:
    """(N, D) float16 of length 1: the mean of each clip's frames; of a clip without one, that of the frame before."""
    means: list[np.ndarray] = []
    for clip in range(num_clips):
        own = features_FD[clip_of_F == clip]
        mean = own.mean(0) if len(own) else means[-1] if means else features_FD[0]
        means.append(mean / max(1e-6, float(np.linalg.norm(mean))))
    return np.stack(means).astype(np.float16)


def small(rgb_YX3: torch.Tensor) -> np.ndarray:
    """(8, 9) int16: the picture's brightness, small."""
    grey = Image.fromarray(rgb_YX3.numpy()).convert("L").resize(_SMALL, Image.Resampling.BOX)
    return np.asarray(grey, np.int16)


def picture_hash(small_YX: np.ndarray) -> int | None:
    """64 bits: where the small picture gets brighter from left to right; None where it is all but plain, since such
    pictures are all alike. The evaluation's decontamination hashes pictures the same way."""
    if small_YX.max() - small_YX.min() < _PLAIN:
        return None
    bits = (small_YX[:, 1:] > small_YX[:, :-1] + _MIN_STEP).flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def read_hashes(path: Path) -> np.ndarray:
    """(K,) uint64 of a file with one hash a line, in hexadecimal; the evaluation writes such a file of a benchmark."""
    try:
        return np.array([int(line, 16) for line in path.read_text().split()], np.uint64)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: {error}; needs one hash a line, 16 hexadecimal digits.") from None


def is_known(hashes: Sequence[int], known_K: np.ndarray, max_bits: int) -> bool:
    """Whether two or more of a video's frames (or its only one) are pictures of the benchmark: one alike is chance."""
    if not hashes or not len(known_K):
        return False
    alike = 0
    for one in hashes:
        bytes_K8 = (known_K ^ np.uint64(one)).view(np.uint8).reshape(-1, 8)
        alike += int(_BITS[bytes_K8].sum(1).min()) <= max_bits
    return alike >= min(2, len(hashes))


# ---- comparing


def _compare(run: Run, parts: list[list[Looked]], threshold: float | None) -> dict[str, tuple[str | None, list[float]]]:
    """For each video's id: why it is left out, or None, and the starts of its new clips."""
    config, flat = run.config.select, [one for part in parts for one in part if one.problem is None]
    reasons: dict[str, tuple[str | None, list[float]]] = {}
    with_features = [one for one in flat if one.features_ND is not None]
    is_new, again = np.ones(0, bool), np.zeros(0, bool)
    if with_features:
        pool_ND = Joined([one.features_ND for one in with_features])  # type: ignore[misc]
        width = with_features[0].features_ND.shape[1]  # type: ignore[union-attr]
        video_of_N = np.repeat(np.arange(len(with_features)), [one.about["num_clips"] for one in with_features])
        is_new = np.ones(len(pool_ND), bool)
        if config.reference:
            references = read_reference(Path(config.reference), width)
            run.say(search_cost(len(pool_ND), sum(map(len, references)), width))
            cosines = largest_cosines(pool_ND, references)
            run.say("\n".join(calibration(cosines, threshold=threshold)))
            if threshold is None:
                raise DataError(
                    "0.5 is on the scale of CLIP's features, and this encoder is another. Choose by the histogram "
                    "above: --set select.threshold=..."
                )
            is_new = cosines < threshold
        again = repeats(pool_ND, video_of_N, threshold=config.duplicate_threshold)
    at = 0
    for one in flat:
        num_clips = one.about["num_clips"]
        starts = [i * config.clip_seconds for i in range(num_clips)]
        reason = next((mark for mark in one.about["marks"] if mark in config.drop), None)
        if one.features_ND is not None:
            new, dup = is_new[at : at + num_clips], again[at : at + num_clips]
            at += num_clips
            starts = [s for s, n, d in zip(starts, new, dup) if n and not d]
            if not starts:
                reason = reason or ("duplicate" if new.any() else "known")
        reasons[one.about["id"]] = reason, starts
    return reasons


def read_reference(folder: Path, width: int) -> list[np.ndarray]:
    """The features of a folder, on disk. Raises DataError for none, or of another width."""
    arrays = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("*.npy"))]
    if not arrays:
        raise DataError(f"{folder} holds no .npy file of features; the step select writes some to select/{FEATURES}.")
    wrong = [a.shape for a in arrays if a.ndim != 2 or a.shape[1] != width]
    if wrong:
        raise DataError(f"{folder}: features of shape {wrong[0]}; this encoder's are {width} wide.")
    return arrays


# ---- writing


def _write(run: Run, number: int, looked: list[Looked], reasons: dict[str, Any], totals: Totals) -> None:
    folder, config = run.folder / PREFIX, run.config
    note = folder / f"{part_name(number)}.done.json"
    with Journal(folder / f"{part_name(number)}.jsonl") as journal:
        note.unlink(missing_ok=True)  # what is spent is counted by it
        rows, failures = [], []
        ask = run.ask(journal)
        stays = [one.about for one in looked if reasons.get(one.about["id"], (one.problem,))[0] is None]
        with ThreadPoolExecutor(config.annotator.max_concurrent) as pool:
            seen = pool.map(lambda about: _screened(run, about, ask), stays if config.select.screen else ())
            screened = {about["id"]: marks for about, marks in zip(stays, seen)}
        for one in looked:
            reason, starts = reasons.get(one.about["id"], (one.problem, []))
            marks = [*one.about.get("marks", ()), *screened.get(one.about["id"], ())]
            if reason is None:
                reason = next((mark for mark in marks if mark in config.select.drop), None)
            if reason is not None:
                failures.append({"item": one.about["id"], "problem": reason})
                continue
            rows.append({**one.about, "marks": marks, "new_clips": starts})
        path = write_part(folder, number, rows, VIDEOS)
        about = {"num_rows": len(rows), "num_requests": len(journal), "dollars": journal.dollars, "failures": failures}
        write_json(note, {**about, "sha256": sha256(path)})
    totals.num_parts, totals.num_rows = totals.num_parts + 1, totals.num_rows + len(rows)
    totals.num_requests, totals.dollars = totals.num_requests + len(journal), totals.dollars + journal.dollars
    totals.failures += failures


def _screened(run: Run, video: dict[str, Any], ask: Ask) -> list[str]:
    prompt = prompts.load("screen", run.config.prompts)
    part = {"type": "video", "video": video["path"], "frames_per_second": 1.0, "max_frames": _SCREEN_FRAMES}
    try:
        answer = ask(
            prompt, [part, {"type": "text", "text": prompt.fill()}], prompts.schema_of("screen"), item=video["id"]
        )
    except (DataError, Unanswered, RequestRefused):
        return ["unscreened"]
    return [mark for mark in ("watermark", "unsafe", "still") if answer.value[mark]]
