"""The index of a prepared data set (`eagle data prepare`): planned at any context without touching media.

    index = open_prepared(Path("prepared"), processor)      # index.open_index takes a recipe as well
    index.tokens.sum(), index.plan(7).visual.grids

Opening reads the parts' numbers, some tens of bytes a row, and plans all samples at once (plan_many.py); what came out
is kept beside them for the next start with the same limits. A sample's row is read when its plan is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eagle_kernels.video import VideoError
from eagle_kernels.video.ranged import Unreachable
from eagle_model.data.annotations import json_line
from eagle_model.data.clips import Clip, VideoFacts, clip_of, document_clip, open_video
from eagle_model.data.content import DIGEST_BYTES, content_digest
from eagle_model.data.frame_times import EvenTimes, FrameTimes
from eagle_model.data.index import PREPARED_VIDEOS, Index, Skipped
from eagle_model.data.part_table import ROW_SCHEMA, videos_path
from eagle_model.data.plan_many import Facts, plan_many
from eagle_model.data.prepare import DONE, PLAN, Preparation, need_unchanged, part_path, rows_path, token_settings
from eagle_model.data.processor import Processor, SamplePlan
from eagle_model.data.recipe import Source, read_recipe
from eagle_model.data.remote import RemoteConfig, RemoteFile, pinned
from eagle_model.data.rows import parse_sample
from eagle_model.data.sample import DataError, Sample, VideoRef
from eagle_model.data.sampling import DoesNotFit
from eagle_model.fields import to_json
from eagle_model.files import read_json, write_whole

_AT_ONCE = 1 << 16  # rows whose clips are made and planned together
_OPEN_VIDEOS = 1024  # facts of videos that stay unpacked


def open_prepared(
    folder: Path,
    processor: Processor,
    *,
    skip_bad: bool = False,
    allow_outside_root: bool = False,
    remote: RemoteConfig | None = None,
) -> Index:
    """Raises DataError where it is not finished, annotation files have changed, or the processor counts otherwise; and
    for the first bad sample, unless skip_bad."""
    if not (folder / DONE).is_file():
        raise DataError(f"{folder} is not prepared to its end. Run eagle data prepare again: it goes on.")
    plan, done = Preparation(**read_json(folder / PLAN)), read_json(folder / DONE)
    for name, value in token_settings(processor).items():
        if plan.tokens[name] != value:
            raise DataError(
                f"{folder} was prepared for another {name}: {str(plan.tokens[name])[:60]!r}, and the processor's is "
                f"{str(value)[:60]!r}. Run eagle data prepare with this processor."
            )
    if plan.options["allow_outside_root"] and not allow_outside_root:
        raise DataError(f"{folder} was prepared with media outside the root. Set data.allow_outside_root=true.")
    if plan.options["remote"] is not None and remote is None:
        raise DataError(f"{folder} was prepared with media that lie elsewhere. Set data.remote.")
    for described in plan.sources:
        need_unchanged(described)
    rows = _Rows(folder, plan, processor, remote)
    sources = _sources(plan, rows)
    numbers = _numbers(folder, rows, sources, processor)
    skipped = _skipped(rows, numbers.refused)
    if skipped and not skip_bad:
        raise DataError(skipped[0][1])
    good = np.flatnonzero(numbers.tokens > 0)
    if not len(good):
        first = f"; {len(skipped)} were skipped, the first: {skipped[0][1]}" if skipped else "."
        raise DataError(f"{folder}: no sample to train on{first}")
    images, videos = rows.num_images[good], rows.num_videos[good]
    return Index(
        sources=sources,
        source_of=rows.source[good],
        tokens=numbers.tokens[good],
        tiles=numbers.tiles[good],
        decode_seconds=numbers.decode_seconds[good],
        digests=rows.digest[good],
        plan=lambda i: rows.plan(int(good[i]), sources),
        skipped=tuple(skipped),
        num_images=int(images.sum()),
        num_videos=int(videos.sum()),
        num_text_only=int(((images == 0) & (videos == 0)).sum()),
        unused_fields=tuple((name, num) for name, num in done["unused_fields"]),
    )


class _Numbers(NamedTuple):
    tokens: NDArray[np.int64]  # 0: bad, or refused
    tiles: NDArray[np.int64]
    decode_seconds: NDArray[np.float32]
    refused: dict[int, str]


class _Rows:
    """All rows of the parts as arrays, and the reader of one."""

    def __init__(self, folder: Path, plan: Preparation, processor: Processor, remote: RemoteConfig | None) -> None:
        self._remote = remote
        self._folder, self._plan, self._processor = folder, plan, processor
        tables = [pq.read_table(part_path(folder, k)) for k in range(plan.num_parts)]
        num_rows = [table.num_rows for table in tables]
        table = pa.concat_tables(tables) if tables else ROW_SCHEMA.empty_table()
        part_of = np.repeat(np.arange(len(tables), dtype=np.int32), num_rows)
        parts = np.array(plan.parts, np.int64).reshape(-1, 5)
        self.source = parts[part_of, 0].astype(np.int32)
        self.file = parts[part_of, 1].astype(np.int32)
        self.line, self.offset, self.num_bytes = (_array(table, name) for name in ("line", "offset", "bytes"))
        self.base_tokens = _array(table, "base_tokens").astype(np.int64)
        self.needs_text = _array(table, "needs_text").astype(bool)
        self.digest = _digests(table["digest"])
        self.num_images, widths = _lists(table, "image_width")
        self.image_sizes = np.stack([widths, _lists(table, "image_height")[1]], 1).astype(np.int64)
        self.image_limits = _lists(table, "image_limit")[1].astype(np.int64)
        self.num_videos, videos = _lists(table, "video")
        self.starts, self.ends = _lists(table, "start_seconds")[1], _lists(table, "end_seconds")[1]
        self.first_image = np.append(0, self.num_images.cumsum())
        self.first_video = np.append(0, self.num_videos.cumsum())
        tables_of_videos = [pq.read_table(videos_path(part_path(folder, k))) for k in range(plan.num_parts)]
        first = np.append(0, np.cumsum([t.num_rows for t in tables_of_videos])).astype(np.int64)
        self._videos = pa.concat_tables(tables_of_videos).combine_chunks() if tables_of_videos else None
        self.video = videos.astype(np.int64) + first[np.repeat(part_of, self.num_videos)]
        self._tags = table["tags"] if table["tags"].null_count < len(table) else None
        bad = table["bad"].is_valid().to_numpy()
        self.bad = {
            int(i): (table["bad_id"][int(i)].as_py(), table["bad"][int(i)].as_py()) for i in np.flatnonzero(bad)
        }
        self._facts = lru_cache(maxsize=_OPEN_VIDEOS)(self._read_facts)

    def __len__(self) -> int:
        return len(self.line)

    @property
    def num_parts(self) -> int:
        return self._plan.num_parts

    def name(self, i: int) -> str:
        """ "file:line" of row i."""
        files = self._plan.sources[self.source[i]]["annotation"]
        return f"{files[self.file[i]]['path']}:{self.line[i]}"

    def sample(self, i: int) -> Sample:
        """Reads row i. Raises DataError where it is not what was prepared."""
        described = self._plan.sources[self.source[i]]
        path = rows_path(self._folder, described, int(self.source[i]), int(self.file[i]))
        try:
            with path.open("rb") as file:
                file.seek(int(self.offset[i]))
                line = file.read(int(self.num_bytes[i]))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}.") from error
        row = json_line(self.name(i), line, is_first=self.offset[i] == 0)
        if isinstance(row, DataError):
            raise row
        allow = self._plan.options["allow_outside_root"]
        sample = parse_sample(
            row, root=Path(described["root"]), where=self.name(i), allow_outside_root=allow, remote=self._remote
        )
        if content_digest(sample) != self.digest[i].tobytes():
            raise DataError(f"{self.name(i)}: the row has changed since it was prepared. Run eagle data prepare again.")
        tags = None if self._tags is None else self._tags[i].as_py()
        return sample if tags is None else pinned(sample, tags)

    def plan(self, i: int, sources: tuple[Source, ...]) -> SamplePlan:
        """The plan of row i, by what is known of its media. Raises DataError where it has none."""
        sample, source = self.sample(i), sources[self.source[i]]
        images = slice(self.first_image[i], self.first_image[i + 1])
        try:
            planned = self._processor.plan_known(
                sample,
                images=[(width, height) for width, height in self.image_sizes[images].tolist()],
                clips=self.clips(i),
                limits=source.limited(self._processor.config.sampling),
                base_tokens=int(self.base_tokens[i]),
            )
        except (DataError, DoesNotFit) as error:
            raise DataError(f"sample {sample.id}: {error}") from error
        return replace(planned, dataset=source.name)

    def facts(self, rows: NDArray[np.int64], clips: list[list[Clip]]) -> Facts:
        """Of some rows, in ascending order. clips: of each."""
        is_own = np.zeros(len(self), bool)
        is_own[rows] = True
        images = np.repeat(is_own, self.num_images)
        return Facts(
            base_tokens=self.base_tokens[rows],
            num_images=self.num_images[rows],
            image_sizes=self.image_sizes[images],
            image_limits=self.image_limits[images],
            clips={k: shown for k, shown in enumerate(clips) if shown},
        )

    def clips(self, i: int) -> list[Clip]:
        """Of the videos of row i. Raises DataError where one is damaged, or the clip does not lie in it."""
        return [self._clip(k) for k in range(self.first_video[i], self.first_video[i + 1])]

    def _clip(self, k: int) -> Clip:
        number = int(self.video[k])
        path, remote, facts = self._facts(number)
        if isinstance(facts, int):
            return document_clip(facts)
        start, end = (None if np.isnan(s) else float(s) for s in (self.starts[k], self.ends[k]))
        limits = self._processor.config.sampling
        limit = self._plan.options["video_time_limit_seconds"]
        choose = partial(_choose, path, remote, self._folder / PREPARED_VIDEOS, limit)
        ref = VideoRef(path, start, end)
        return clip_of(ref, facts, seek=limits.seek, tolerance=limits.tolerance, choose=choose)

    def _read_facts(self, number: int) -> tuple[Path, RemoteFile | None, VideoFacts | int]:
        assert self._videos is not None
        row: dict[str, Any] = {name: self._videos[name][number].as_py() for name in self._videos.column_names}
        path, remote = Path(row["path"]), None
        if row["url"] is not None and self._remote is not None:
            remote = self._remote.file(row["url"], row["tag"])
            path = remote.path
        if row["is_document"]:
            return path, remote, row["num_frames"]
        times: FrameTimes = EvenTimes(row["num_frames"], row["step_ticks"], row["tick_seconds"])
        if row["steps"]:
            steps = np.frombuffer(row["steps"], "<i8")
            times = np.append(0, steps.cumsum()) * row["tick_seconds"]
        return (
            path,
            remote,
            VideoFacts(
                frame_times_seconds=times,
                key_frames=np.frombuffer(row["key_steps"], "<i4").astype(np.int64).cumsum(),
                duration_seconds=row["duration_seconds"],
                frames_per_second=row["frames_per_second"],
                width_px=row["width_px"],
                height_px=row["height_px"],
                damage=row["damage"],
            ),
        )


def _choose(
    path: Path,
    remote: RemoteFile | None,
    folder: Path,
    time_limit: float | None,
    times: NDArray,
    **options: Any,
) -> NDArray:
    """`Video.choose` by the index that was kept; the video itself is not read."""
    try:
        return open_video(path, folder, time_limit, remote=remote).choose(times, **options)
    except (VideoError, OSError, Unreachable) as error:
        raise DataError(f"video {path} cannot be read: {error}") from error


def _sources(plan: Preparation, rows: _Rows) -> tuple[Source, ...]:
    """The recipe's sources as it says now: how often each is shown may have changed, what is in it may not."""
    sources = tuple(read_recipe(plan.recipe))
    now = [(s.name, os.path.abspath(s.root), [os.path.abspath(path) for path in s.annotation]) for s in sources]
    then = [(s["name"], s["root"], [file["path"] for file in s["annotation"]]) for s in plan.sources]
    if now != then:
        raise DataError(f"{plan.recipe} has other sources than were prepared. Run eagle data prepare again.")
    return sources


def _numbers(folder: Path, rows: _Rows, sources: tuple[Source, ...], processor: Processor) -> _Numbers:
    """Of all rows: what an earlier start kept, or plans made now, and kept."""
    limits = [to_json(source.limited(processor.config.sampling)) for source in sources]
    said = json.dumps([to_json(processor.config), limits, read_json(folder / DONE)])
    digest = hashlib.sha256(said.encode())
    for array in (rows.base_tokens, rows.digest, rows.image_sizes, rows.video):
        digest.update(np.ascontiguousarray(array).tobytes())
    for k in range(rows.num_parts):  # a film that was replaced has the same row and another length
        digest.update(videos_path(part_path(folder, k)).read_bytes())
    kept = folder / "plans" / f"{digest.hexdigest()[:24]}.parquet"
    if kept.is_file():
        table = pq.read_table(kept)
        refused = {int(i): str(why) for i, why in json.loads(table.schema.metadata[b"refused"]).items()}
        tokens, tiles, seconds = (_array(table, name) for name in ("tokens", "tiles", "decode_seconds"))
        return _Numbers(tokens, tiles, seconds, refused)
    numbers = _Numbers(
        np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64), np.zeros(len(rows), np.float32), {}
    )
    for begin in range(0, len(rows), _AT_ONCE):
        _plan_rows(rows, begin, min(begin + _AT_ONCE, len(rows)), sources, processor, numbers)
    table = pa.table({name: getattr(numbers, name) for name in ("tokens", "tiles", "decode_seconds")})
    table = table.replace_schema_metadata({"refused": json.dumps(numbers.refused)})
    try:
        kept.parent.mkdir(exist_ok=True)
        write_whole(kept, lambda beside: pq.write_table(table, beside, compression="zstd"))
    except OSError as error:  # a folder that may not be written costs time at each start, and nothing else
        warnings.warn(f"{kept} cannot be written ({error.strerror}); the next start plans again.", stacklevel=2)
    return numbers


def _plan_rows(
    rows: _Rows, begin: int, end: int, sources: tuple[Source, ...], processor: Processor, numbers: _Numbers
) -> None:
    """Plans rows begin to end, into `numbers`."""
    clips: dict[int, list[Clip]] = {}
    is_left_out = np.zeros(end - begin, bool)
    for i in np.flatnonzero(rows.num_videos[begin:end]).tolist():
        if begin + i in rows.bad:
            continue
        try:
            clips[i] = rows.clips(begin + i)
            if rows.needs_text[begin + i]:
                plan = rows.plan(begin + i, sources)
                row = (plan.num_tokens, plan.num_tiles, plan.decode_seconds)
                for array, value in zip(numbers[:3], row):
                    array[begin + i] = value  # type: ignore[index]
                is_left_out[i] = True
                del clips[i]
        except DataError as error:
            clips.pop(i, None)
            is_left_out[i] = True
            numbers.refused[begin + i] = str(error)
    is_left_out[[i - begin for i in rows.bad if begin <= i < end]] = True
    limits = [source.limited(processor.config.sampling) for source in sources]
    for limit in dict.fromkeys(limits):  # sources of the same limits together
        alike = np.isin(rows.source[begin:end], [k for k, own_limit in enumerate(limits) if own_limit == limit])
        own = np.flatnonzero(alike & ~is_left_out)
        config = replace(processor.config, sampling=limit)
        found = plan_many(
            config, processor.frame_tokens, rows.facts(begin + own, [clips.get(i, []) for i in own.tolist()])
        )
        for array, values in zip(numbers[:3], found[:3]):
            array[begin + own] = values  # type: ignore[index]
        numbers.refused.update({begin + int(own[k]): str(error) for k, error in found.refused.items()})


def _skipped(rows: _Rows, refused: dict[int, str]) -> list[Skipped]:
    """(id, reason) of rows that are bad and of samples that have no plan, in their order."""
    entries = dict(rows.bad)
    for i, why in refused.items():
        sample = rows.sample(i)
        reason = why if why.startswith("sample ") else f"sample {sample.id}: {why}"
        entries[i] = (sample.id, reason if sample.where == sample.id else f"{sample.where}: {reason}")
    return [entries[i] for i in sorted(entries)]


# ---- columns


def _array(table: pa.Table, name: str) -> NDArray:
    """A column as numbers, 0 where it has none."""
    return table[name].fill_null(0 if not pa.types.is_boolean(table[name].type) else False).to_numpy()


def _lists(table: pa.Table, name: str) -> tuple[NDArray[np.int64], NDArray]:
    """How many entries each row's list has, and all entries one after the other."""
    column = table[name].combine_chunks()
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths, column.flatten().to_numpy(zero_copy_only=False)


def _digests(column: pa.ChunkedArray) -> NDArray[np.void]:
    filled = column.fill_null(b"\0" * DIGEST_BYTES)
    whole = b"".join(
        chunk.buffers()[1][chunk.offset * DIGEST_BYTES :][: len(chunk) * DIGEST_BYTES].to_pybytes()
        for chunk in filled.chunks
    )
    return np.frombuffer(whole, f"V{DIGEST_BYTES}")
