"""Proxies: for each video a small file of the frames that training samples, in the size of a tile.

    make_proxies("recipe.json", "proxies", ProxySettings(frames_per_second=2.0), num_workers=8)
    proxies = Proxies.open("proxies")
    proxy = proxies.of(VideoRef(Path("data/films/walk.mp4")))
    proxy.facts.frame_times_seconds                         # of the frames it holds: their own times in the film

Decoding is most of what a sample of video costs, and each epoch and stage reads the same films. A proxy is decoded for
less, and needs no original: with proxies a clip's frames are sampled from those that its proxy holds. Where a plan was
made without, and asks for another frame, the original is read.

Files   proxies.json: the settings. For each video DD/DIGEST.json, a record, and DD/DIGEST.mp4; the digest is of the
        video's path as seen from the recipe's folder, or of its URL, so data and proxies may move together. A record is
        written last: a video that has one is done. failed.jsonl: what could not be made, and why.
Loss    H.264 with colour at full size, as large as `min_psnr_db` asks for: the frames as training sees them, of at most
        MEASURED_FRAMES spread over the video, against those of the original.

Dims    N frames of a proxy; I tiles, P patches a tile, K numbers a patch.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eagle_kernels.decode_tiles import decode_tiles
from eagle_kernels.tiles import Tiling
from eagle_kernels.video import Video, VideoError
from eagle_kernels.video.ranged import Unreachable
from eagle_model.data.clips import VideoFacts, open_video
from eagle_model.data.recipe import read_recipe
from eagle_model.data.remote import RemoteConfig
from eagle_model.data.rows import read_samples
from eagle_model.data.sample import DOCUMENT_SUFFIX, DataError, VideoRef
from eagle_model.data.sampling import SamplingConfig, max_frames_of, sample_times
from eagle_model.fields import require
from eagle_model.files import append, read_json, write_json

SETTINGS, FAILED = "proxies.json", "failed.jsonl"
VERSION = 1  # of the files; another one is not read
FRAMES_AT_ONCE = 64  # decoded before they are coded: 39 MB
MEASURED_FRAMES = 64  # kept to be compared: 39 MB
FIRST_CRF = 16  # measured: a film passes 40 dB with it (docs/notes/video.md)
DB_A_CRF = 0.55  # that one step of x264's crf changes; measured there
MAX_TRIES = 4  # of a video, each by a lower crf
MAX_RECORD_BYTES = 1 << 26  # of a record; an hour at 2 fps has 100 KB
KEPT_RECORDS = 256  # that a process keeps in memory


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxySettings:
    """What proxies are like."""

    frames_per_second: float = 2.0  # of frames that are kept, as sampling takes them: never more than the video has
    tile_px: int = 448  # their width and height; a run's must be the same
    min_psnr_db: float = 40.0  # of RGB from 0 to 255, over a video
    group_frames: int = 8  # every so many frames there is one that decoding can start at

    def __post_init__(self) -> None:
        rate = self.frames_per_second
        require(0 < rate < math.inf, "frames_per_second", rate, "a number above 0")
        require(self.tile_px >= 16, "tile_px", self.tile_px, "16 or more")
        require(0 < self.min_psnr_db <= 48, "min_psnr_db", self.min_psnr_db, "at most 48: what 8 bits a colour leave")
        require(self.group_frames >= 1, "group_frames", self.group_frames, "1 or more")

    @property
    def tiling(self) -> Tiling:
        whole = {"tile_px": self.tile_px, "patch_px": self.tile_px}
        return Tiling(mean=(0.5,) * 3, std=(0.5,) * 3, dtype=torch.uint8, layout="tiles", **whole)  # type: ignore[arg-type]


class Proxy(NamedTuple):
    """The proxy of one video."""

    path: Path
    facts: VideoFacts  # of the original, but for its frames: those that the proxy holds
    original_rate: float  # frames a second of the original

    def clip_seconds(self, video: VideoRef) -> float:
        """How long a clip lasts by the original's frames, as `open_clip` counts: by their number at its mean rate."""
        rate, end = self.original_rate, self.facts.duration_seconds
        start = video.start_seconds or 0.0
        end = end if video.end_seconds is None else min(end, video.end_seconds)
        first, last = (math.ceil(seconds * rate - 1e-6) for seconds in (start, end))  # rounding of either
        return max(1, last - first) / rate

    def lacks(self, timestamps_seconds: Sequence[float]) -> list[bool]:
        """Whether it has no frame of that very time, of each."""
        return (~self._found(timestamps_seconds)[1]).tolist()

    def _found(self, timestamps_seconds: Sequence[float]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        times, asked = np.asarray(self.facts.frame_times_seconds), np.asarray(timestamps_seconds)
        at = times.searchsorted(asked).clip(max=len(times) - 1)
        return at, times[at] == asked

    def load(self, timestamps_seconds: Sequence[float], decode: Callable[..., object], out_IPK: Tensor) -> list[bool]:
        """Fills `out_IPK` with the tiles of the frames of these times where it has them; whether it does not, of each.

        decode: `decode_tiles`, told all but the video, the times and `out`.
        """
        at, has = self._found(timestamps_seconds)
        film = open_video(self.path)
        own = film.info.frame_times_seconds
        num_recorded = len(self.facts.frame_times_seconds)
        if len(own) != num_recorded:
            raise DataError(f"proxy {self.path} has {len(own)} frames, its record {num_recorded}. Make it again.")
        decode_some(film, own[at].tolist(), has.tolist(), decode, out_IPK)
        return (~has).tolist()


def decode_some(
    film: Video, times: Sequence[float], wanted: Sequence[bool], decode: Callable[..., object], out_IPK: Tensor
) -> None:
    """Fills those tiles of `out_IPK`, one a frame, that are wanted."""
    if all(wanted):
        decode(film, times, out=out_IPK)
    elif any(wanted):
        places = [i for i, is_wanted in enumerate(wanted) if is_wanted]
        some_IPK = torch.empty((len(places), *out_IPK.shape[1:]), dtype=out_IPK.dtype)
        decode(film, [times[i] for i in places], out=some_IPK)
        out_IPK[torch.tensor(places)] = some_IPK


@dataclass(frozen=True, slots=True)
class Proxies:
    """A folder of proxies, to be read."""

    folder: Path
    base: Path  # the recipe's folder, which paths are seen from
    settings: ProxySettings

    @staticmethod
    def open(folder: str | Path, *, base: str | Path | None = None, tile_px: int | None = None) -> Proxies:
        """base: the recipe's folder; None: where it was, as seen from the proxies. tile_px: of the run.

        Raises DataError where the folder holds no proxies, or not of that size.
        """
        folder = Path(folder)
        found = _read_settings(folder)
        if found is None:
            raise DataError(f"{folder} holds no proxies: {SETTINGS} is missing. eagle data proxies makes them.")
        if tile_px not in (None, found.tile_px):
            raise DataError(f"{folder}: proxies of {found.tile_px} px, the run's tiles have {tile_px}. Make others.")
        if base is None:
            base = folder / str(read_json(folder / SETTINGS)["base"])
        return Proxies(folder, Path(os.path.abspath(base)), found)

    def of(self, video: VideoRef) -> Proxy | None:
        """None where there is none. Raises DataError where it was made of another file, or is damaged."""
        place = _place(self.folder, key_of(video, self.base))
        record = _read_record(place)
        if record is None:
            return None
        proxy, num_bytes = record
        if video.remote is None and os.path.exists(video.path) and os.path.getsize(video.path) != num_bytes:
            raise DataError(
                f"video {video.path} has {os.path.getsize(video.path)} bytes, its proxy {proxy.path} is of one of "
                f"{num_bytes}. Delete {place} and make the proxies again."
            )
        return proxy

    def num_lacking(self, videos: Sequence[tuple[VideoRef, Sequence[float]]]) -> int:
        """How many of these frames are read from originals."""
        num = 0
        for video, times in videos:
            if video.path.suffix.lower() != DOCUMENT_SUFFIX:
                proxy = self.of(video)
                num += len(times) if proxy is None else sum(proxy.lacks(times))
        return num


def key_of(video: VideoRef, base: Path) -> str:
    """What a proxy is found by."""
    return video.remote.url if video.remote is not None else Path(os.path.relpath(video.path, base)).as_posix()


def _place(folder: Path, key: str) -> Path:
    digest = hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()[:32]
    return folder / digest[:2] / f"{digest}.json"


@lru_cache(maxsize=KEPT_RECORDS)
def _record_of(place: Path, changed_ns: int) -> tuple[Proxy, int]:
    try:
        found = read_json(place, max_bytes=MAX_RECORD_BYTES)
        times = np.array(found["frame_times_seconds"], np.float64)
        facts = VideoFacts(
            frame_times_seconds=times,
            key_frames=np.arange(0, len(times), int(found["group_frames"])),
            duration_seconds=float(found["duration_seconds"]),
            frames_per_second=float(found["frames_per_second"]),
            width_px=int(found["tile_px"]),
            height_px=int(found["tile_px"]),
            damage=None,
        )
        proxy = Proxy(place.with_suffix(".mp4"), facts, float(found["original_frames_per_second"]))
        return proxy, int(found["original_bytes"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place}: no record of a proxy ({error}). Delete it and make the proxies again.") from error


def _read_record(place: Path) -> tuple[Proxy, int] | None:
    try:
        changed_ns = os.stat(place).st_mtime_ns
    except OSError:
        return None
    return _record_of(place, changed_ns)


def _read_settings(folder: Path) -> ProxySettings | None:
    if not (folder / SETTINGS).is_file():
        return None
    found = read_json(folder / SETTINGS)
    try:
        if found.pop("version") != VERSION or not isinstance(found.pop("base"), str):
            raise ValueError(f"another version than {VERSION}")
        return ProxySettings(**found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / SETTINGS}: {error}. Make the proxies again, in another folder.") from error


# ---- making them


class Made(NamedTuple):
    """What became of one video."""

    key: str
    num_frames: int
    num_bytes: int
    psnr_db: float
    film_seconds: float
    error: str | None = None


@dataclass(kw_only=True, slots=True)
class Total:
    """What `make_proxies` did."""

    num_done: int = 0  # videos, those of before included
    num_before: int = 0  # that were there
    num_failed: int = 0
    num_frames: int = 0  # of those made now
    num_bytes: int = 0
    film_seconds: float = 0.0
    least_psnr_db: float = math.inf


def make_proxies(
    recipe: str | Path,
    folder: str | Path,
    settings: ProxySettings,
    *,
    num_workers: int = 1,
    allow_outside_root: bool = False,
    remote: RemoteConfig | None = None,
    video_time_limit_seconds: float | None = None,
    progress: Callable[[int, int], None] = lambda num_done, num_all: None,
) -> Total:
    """A proxy of each video of a recipe, in `folder`. Called again it makes those that are missing.

    num_workers: processes; each makes one video at a time. progress: told how many of how many are done.
    A video that cannot be read is listed in failed.jsonl and tried again the next time; training reads the original.
    Raises DataError for a bad recipe or row, and where the folder has proxies of other settings.
    """
    folder, base = Path(folder), Path(os.path.abspath(Path(recipe).parent))
    folder.mkdir(parents=True, exist_ok=True)
    before = _read_settings(folder)
    if before not in (None, settings):
        raise DataError(f"{folder} has proxies of other settings: {before}. Give those, or another folder.")
    seen = Path(os.path.relpath(base, folder)).as_posix()
    write_json(folder / SETTINGS, {"version": VERSION, "base": seen, **asdict(settings)})
    videos = list(_videos(recipe, base, allow_outside_root=allow_outside_root, remote=remote).items())
    total = Total()
    (folder / FAILED).unlink(missing_ok=True)
    with open(folder / FAILED, "ab", buffering=0) as failed:
        missing = []
        for key, video in videos:
            if _read_record(_place(folder, key)) is None:
                missing.append((video, key))
        total.num_done = total.num_before = len(videos) - len(missing)
        progress(total.num_done, len(videos))
        work = [(video, key, folder, settings, video_time_limit_seconds) for video, key in missing]
        for made in _made(work, num_workers):
            if made.error is not None:
                total.num_failed += 1
                append(failed, json.dumps({"video": made.key, "why": made.error}, ensure_ascii=False) + "\n")
            else:
                total.num_done += 1
                total.num_frames += made.num_frames
                total.num_bytes += made.num_bytes
                total.film_seconds += made.film_seconds
                total.least_psnr_db = min(total.least_psnr_db, made.psnr_db)
            progress(total.num_done + total.num_failed, len(videos))
    if total.num_failed == 0:
        (folder / FAILED).unlink()
    return total


_Work = tuple[VideoRef, str, Path, ProxySettings, float | None]


def _videos(
    recipe: str | Path, base: Path, *, allow_outside_root: bool, remote: RemoteConfig | None
) -> dict[str, VideoRef]:
    """Each video of the recipe once, by its key."""
    found: dict[str, VideoRef] = {}
    for source in read_recipe(recipe):
        for sample in read_samples(source, allow_outside_root=allow_outside_root, remote=remote):
            for video in sample.videos:
                if video.path.suffix.lower() != DOCUMENT_SUFFIX:
                    found.setdefault(key_of(video, base), replace(video, start_seconds=None, end_seconds=None))
    return found


def _made(work: list[_Work], num_workers: int) -> Iterator[Made]:
    """In the order in which they are done."""
    if num_workers == 1:
        yield from (_make_or_say(*one) for one in work)
        return
    # Started anew, not forked: a fork would hang in torch where this process used its threads.
    start = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=start, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        left = iter(work)
        begun: set[Future[Made]] = {pool.submit(_make_or_say, *one) for one in islice(left, 2 * num_workers)}
        while begun:
            done, begun = wait(begun, return_when=FIRST_COMPLETED)
            begun |= {pool.submit(_make_or_say, *one) for one in islice(left, len(done))}
            yield from (future.result() for future in done)


def _make_or_say(
    video: VideoRef, key: str, folder: Path, settings: ProxySettings, time_limit_seconds: float | None
) -> Made:
    try:
        return make_proxy(video, key, folder, settings, time_limit_seconds=time_limit_seconds)
    except (DataError, VideoError, Unreachable, OSError, MemoryError) as error:
        return Made(key, 0, 0, 0.0, 0.0, str(error) or type(error).__name__)


def make_proxy(
    video: VideoRef, key: str, folder: Path, settings: ProxySettings, *, time_limit_seconds: float | None = None
) -> Made:
    """Raises DataError where the original is damaged or the loss cannot be kept; VideoError where it cannot be read."""
    if video.remote is None and not os.path.isfile(video.path):
        raise DataError(f"video {video.path} does not exist or is not a file.")
    film = open_video(video.path, None, time_limit_seconds, None, video.remote)
    if film.info.damage is not None:
        raise DataError(f"video {video.path} is damaged: {film.info.damage}")
    times = film.info.frame_times_seconds
    at_rate = SamplingConfig(frames_per_second=settings.frames_per_second, min_frames=1, max_frames=len(times))
    wanted = sample_times(times, max_frames_of(times, at_rate))
    place = _place(folder, key)
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_suffix(f".{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        crf = FIRST_CRF
        for _ in range(MAX_TRIES):
            num_bytes, psnr_db = _write(film, wanted, beside, settings, crf, time_limit_seconds)
            if psnr_db >= settings.min_psnr_db or crf == 0:
                break
            crf = max(0, crf - max(1, math.ceil((settings.min_psnr_db - psnr_db) / DB_A_CRF)))
        if psnr_db < settings.min_psnr_db:
            raise DataError(
                f"video {video.path}: a proxy of {settings.min_psnr_db:g} dB cannot be made: {psnr_db:.1f} dB."
            )
        os.replace(beside, place.with_suffix(".mp4"))
    finally:
        beside.unlink(missing_ok=True)
    original_bytes = os.path.getsize(video.path) if video.remote is None else video.remote.identity().num_bytes
    record = {
        "video": key,
        "original_bytes": original_bytes,
        "duration_seconds": film.info.duration_seconds,
        "original_frames_per_second": film.info.frames_per_second or 1.0,
        "frames_per_second": settings.frames_per_second,
        "tile_px": settings.tile_px,
        "group_frames": settings.group_frames,
        "crf": crf,
        "psnr_db": round(psnr_db, 2),
        "bytes": num_bytes,
        "frame_times_seconds": list(wanted),
    }
    write_json(place, record)
    return Made(key, len(wanted), num_bytes, psnr_db, film.info.duration_seconds)


def _write(
    film: Video, times: tuple[float, ...], path: Path, settings: ProxySettings, crf: int, limit: float | None
) -> tuple[int, float]:
    """How many bytes the proxy has, and its PSNR in dB."""
    from eagle_kernels.video.libav.writer import write_frames  # here: the package imports without PyAV

    measured = np.unique(np.linspace(0, len(times) - 1, min(len(times), MEASURED_FRAMES)).round().astype(np.int64))
    is_measured = np.zeros(len(times), np.bool_)
    is_measured[measured] = True
    kept: list[NDArray[np.uint8]] = []

    def frames() -> Iterator[NDArray[np.uint8]]:
        for first in range(0, len(times), FRAMES_AT_ONCE):
            some = times[first : first + FRAMES_AT_ONCE]
            tiles_I3YX = decode_tiles(film, some, (1, 1), settings.tiling, time_limit_seconds=limit).tiles_IPK.numpy()
            for i, tile_3YX in enumerate(tiles_I3YX, first):
                if is_measured[i]:
                    kept.append(tile_3YX.copy())
                yield tile_3YX.transpose(1, 2, 0)

    num_bytes = write_frames(path, frames(), crf=crf, group_frames=settings.group_frames)
    proxy = open_video(path)
    own = proxy.info.frame_times_seconds[measured].tolist()
    squares = 0.0
    for first in range(0, len(measured), FRAMES_AT_ONCE):
        some = own[first : first + FRAMES_AT_ONCE]
        for tile_3YX, original_3YX in zip(decode_tiles(proxy, some, (1, 1), settings.tiling).tiles_IPK, kept[first:]):
            squares += float(np.square(tile_3YX.numpy().astype(np.float32) - original_3YX).mean())
    return num_bytes, 10 * math.log10(255**2 / max(squares / len(measured), 1e-9))
