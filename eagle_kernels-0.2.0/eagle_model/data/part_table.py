"""A part of a prepared data set: what planning needs of each row and of each medium, gathered and written.

    table = PartTable(processor, out, key="rows.jsonl:0")
    table.add(1, 0, 312, sample)                  # line 1, at byte 0, 312 bytes long
    table.write(Path("parts/00000.parquet"))      # {"rows": 1, "skipped": 0, "images": 1, ...}

Images are known by their size, and videos by their times; neither is opened again while its file stays the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eagle_kernels.video import VideoError
from eagle_kernels.video.ranged import Unreachable
from eagle_model.data.clips import open_video
from eagle_model.data.content import DIGEST_BYTES, content_digest
from eagle_model.data.documents import num_pages
from eagle_model.data.frame_times import EvenTimes, frame_times
from eagle_model.data.images import image_size
from eagle_model.data.index import PREPARED_VIDEOS, skip_entry
from eagle_model.data.processor import Processor
from eagle_model.data.remote import fetched, tags
from eagle_model.data.sample import DOCUMENT_SUFFIX, DataError, Sample, VideoRef
from eagle_model.files import write_whole

ROW_SCHEMA = pa.schema(
    {
        "line": pa.int32(),
        "offset": pa.int64(),  # of the row in the file of lines, bytes
        "bytes": pa.int32(),
        "digest": pa.binary(DIGEST_BYTES),
        "base_tokens": pa.int32(),  # FrameTokens.base
        "needs_text": pa.bool_(),  # its frames cannot be counted by tables
        "image_width": pa.list_(pa.int32()),
        "image_height": pa.list_(pa.int32()),
        "image_limit": pa.list_(pa.int32()),  # the most tiles, 0: no limit of its own
        "video": pa.list_(pa.int32()),  # lines of the table of videos
        "start_seconds": pa.list_(pa.float64()),  # nan: the file's
        "end_seconds": pa.list_(pa.float64()),
        "tags": pa.list_(pa.string()),  # of each medium, what names its content; null where none lies elsewhere
        "bad": pa.string(),  # why it cannot be planned, with file and line; null: it can
        "bad_id": pa.string(),
    }
)
VIDEO_SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "url": pa.string(),  # of one that lies elsewhere
        "tag": pa.string(),
        "width_px": pa.int32(),
        "height_px": pa.int32(),
        "num_frames": pa.int32(),  # pages of a document
        "is_document": pa.bool_(),
        "tick_seconds": pa.float64(),
        "step_ticks": pa.int64(),  # between frames; 0: `steps` holds them
        "steps": pa.binary(),  # little-endian int64, num_frames - 1 of them
        "key_steps": pa.binary(),  # numbers of key frames, each less the one before; little-endian int32
        "duration_seconds": pa.float64(),
        "frames_per_second": pa.float64(),
        "damage": pa.string(),
    }
)
IMAGE_DTYPE = np.dtype([("path", "<u8"), ("bytes", "<i8"), ("mtime_ns", "<i8"), ("width", "<i4"), ("height", "<i4")])
_COUNTED_TOGETHER = 256  # rows
_REMEMBERED = 1 << 16  # images of a part whose sizes are at hand


class PartTable:
    """Gathers rows; holds one part in memory."""

    def __init__(
        self, processor: Processor, out: Path, *, key: str, video_time_limit_seconds: float | None = None
    ) -> None:
        """key: what the part is of, whatever its number: by it what was known of its images is found again."""
        self._processor = processor
        self._tokens = processor.frame_tokens
        self._out = out
        self._time_limit = video_time_limit_seconds
        self._images = ImageSizes(out / "images" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy")
        self._rows: dict[str, list[Any]] = {name: [] for name in ROW_SCHEMA.names}
        self._videos: dict[str, list[Any]] = {name: [] for name in VIDEO_SCHEMA.names}
        self._video_number: dict[Path, int | DataError] = {}
        self._waiting: list[tuple[int, Sample, list[str]]] = []  # row, and texts of it that are to be counted
        self._counts = Counter[str]()
        self._unused = Counter[str]()

    def add_bad(self, line: int, offset: int, num_bytes: int, name: str, why: str) -> None:
        self._add(line=line, offset=offset, bytes=num_bytes, bad=why, bad_id=name)
        self._counts["skipped"] += 1

    def add(self, line: int, offset: int, num_bytes: int, sample: Sample) -> None:
        """One sample; one whose media cannot be opened, or whose text cannot be counted, is listed as bad."""
        try:
            sizes = [self._images.size(fetched(image)) for image in sample.images]
            videos = [self._video(video) for video in sample.videos]
            are_documents = [video.path.suffix.lower() == DOCUMENT_SUFFIX for video in sample.videos]
            needs_text = bool(videos) and (not self._tokens.is_exact or self._tokens.depends_on_pictures(sample))
            seen = self._tokens.seen_at_least(sample, are_documents)
            pins = tags(sample) if any(medium.remote for medium in sample.media) else None
            known, texts = self._processor.encoder.uncounted(sample, seen)
        except (DataError, MemoryError, RecursionError) as error:
            why = f"sample {sample.id}: {error or type(error).__name__}"
            self.add_bad(
                line, offset, num_bytes, sample.id, why if sample.where == sample.id else f"{sample.where}: {why}"
            )
            return
        self._add(
            line=line,
            offset=offset,
            bytes=num_bytes,
            digest=content_digest(sample),
            tags=pins,
            base_tokens=known,
            needs_text=needs_text,
            image_width=[width for width, _ in sizes],
            image_height=[height for _, height in sizes],
            image_limit=[image.max_tiles or 0 for image in sample.images],
            video=videos,
            start_seconds=[_or_nan(video.start_seconds) for video in sample.videos],
            end_seconds=[_or_nan(video.end_seconds) for video in sample.videos],
        )
        self._waiting.append((len(self._rows["line"]) - 1, sample, texts))
        if len(self._waiting) == _COUNTED_TOGETHER:
            self._count()

    def write(self, path: Path) -> dict[str, int]:
        """Writes the part, whole, the table of its rows last; returns how many rows there are, and are skipped."""
        self._count()
        counts = {name: self._counts[name] for name in ("skipped", "images", "videos", "text_only")}
        counts["rows"] = len(self._rows["line"])
        said = json.dumps({**counts, "unused_fields": dict(self._unused)})
        videos = pa.table(self._videos, VIDEO_SCHEMA)
        rows = pa.table(self._rows, ROW_SCHEMA.with_metadata({"eagle": said}))
        self._images.write()
        write_whole(videos_path(path), lambda beside: pq.write_table(videos, beside, compression="zstd"))
        write_whole(path, lambda beside: pq.write_table(rows, beside, compression="zstd"))
        return counts

    def _count(self) -> None:
        """Counts the texts of the rows that wait for it."""
        nums = iter(self._processor.encoder.nums_of_tokens([text for *_, texts in self._waiting for text in texts]))
        for k, sample, texts in self._waiting:
            for num in [next(nums) for _ in texts]:
                if isinstance(num, DataError):
                    self._be_bad(k, sample, num)
                    break
                self._rows["base_tokens"][k] += num
            else:
                self._counts["images"] += len(sample.images)
                self._counts["videos"] += len(sample.videos)
                self._counts["text_only"] += not sample.media
                self._unused.update(sample.unused_fields)
        self._waiting.clear()

    def _be_bad(self, k: int, sample: Sample, error: DataError) -> None:
        for name, column in self._rows.items():
            if name not in ("line", "offset", "bytes"):
                column[k] = None
        self._rows["bad_id"][k], self._rows["bad"][k] = skip_entry(
            sample.id, sample.where, f"sample {sample.id}: {error}"
        )
        self._counts["skipped"] += 1

    def _add(self, **fields: object) -> None:
        for name, column in self._rows.items():
            column.append(fields.get(name))

    def _video(self, video: VideoRef) -> int:
        found = self._video_number.get(video.path)
        if found is None:
            try:
                facts = self._facts(video)
            except DataError as error:
                found = error
            else:
                found = len(self._videos["path"])
                for name, column in self._videos.items():
                    column.append(facts.get(name))
            self._video_number[video.path] = found
        if isinstance(found, DataError):
            raise found
        return found

    def _facts(self, video: VideoRef) -> dict[str, object]:
        if video.path.suffix.lower() == DOCUMENT_SUFFIX:
            return {"path": str(video.path), "num_frames": num_pages(fetched(video)), "is_document": True}
        if video.remote is None and not os.path.isfile(video.path):
            raise DataError(f"video {video.path} does not exist or is not a file.")
        try:
            opened = open_video(video.path, self._out / PREPARED_VIDEOS, self._time_limit, remote=video.remote)
        except (VideoError, OSError, Unreachable) as error:
            raise DataError(f"video {video.path} cannot be read: {error}") from error
        info, ticks_N = opened.info, opened.index.pts_N - opened.index.pts_N[0]
        tick_seconds = float(opened.index.time_base)
        is_even = isinstance(frame_times(ticks_N, tick_seconds), EvenTimes)
        return {
            "path": str(video.path),
            "url": video.remote.url if video.remote is not None else None,
            "tag": video.remote.identity().tag if video.remote is not None else None,
            "width_px": info.width_px,
            "height_px": info.height_px,
            "num_frames": info.num_frames,
            "is_document": False,
            "tick_seconds": tick_seconds,
            "step_ticks": int(ticks_N[1]) if is_even and len(ticks_N) > 1 else 0,
            "steps": b"" if is_even else np.diff(ticks_N).astype("<i8").tobytes(),
            "key_steps": np.diff(info.key_frames, prepend=0).astype("<i4").tobytes(),
            "duration_seconds": info.duration_seconds,
            "frames_per_second": info.frames_per_second,
            "damage": info.damage,
        }


class ImageSizes:
    """Sizes of the images of a part, kept in a file for the next time: sorted by a hash of their paths."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: NDArray = np.empty(0, IMAGE_DTYPE)
        if path.is_file():
            found = np.load(path)  # no pickle: numpy reads none unless told to
            self._known = found if found.dtype == IMAGE_DTYPE else self._known
        self._sizes: dict[Path, tuple[int, int] | DataError] = {}
        self._rows: list[tuple[int, int, int, int, int]] = []

    def size(self, path: Path) -> tuple[int, int]:
        """As `image_size`, which raises the same for an image that cannot be opened."""
        found = self._sizes.get(path)
        if found is None:
            try:
                found = self._read(path)
            except DataError as error:
                found = error
            if len(self._sizes) < _REMEMBERED:
                self._sizes[path] = found
        if isinstance(found, DataError):
            raise found
        return found

    def write(self) -> None:
        """Keeps the sizes that were asked for."""
        rows = np.sort(np.array(self._rows, IMAGE_DTYPE), order="path")

        def save(beside: Path) -> None:
            with beside.open("wb") as file:
                np.save(file, rows)

        if len(rows):
            self._path.parent.mkdir(exist_ok=True)
            write_whole(self._path, save)

    def _read(self, path: Path) -> tuple[int, int]:
        name = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
        key = int.from_bytes(name, "little")
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return image_size(path)  # says what is wrong
        at = int(np.searchsorted(self._known["path"], np.uint64(key)))
        if at < len(self._known):
            row = self._known[at].tolist()
            if row[:3] == (key, status.st_size, status.st_mtime_ns):
                self._rows.append(row)
                return row[3], row[4]
        width, height = image_size(path)
        self._rows.append((key, status.st_size, status.st_mtime_ns, width, height))
        return width, height


def videos_path(part: Path) -> Path:
    return part.with_suffix(".videos.parquet")


def _or_nan(seconds: float | None) -> float:
    return float("nan") if seconds is None else seconds
