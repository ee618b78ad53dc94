"""Reading and decoding video on the CPU with libav: the one file of the library that imports PyAV.

Dims    N shown frames, K key frames, D packets in the order of storage, Y rows, X columns.

`read_index` finds when each frame is shown and where a decoder may start: from the tables of an MP4 (mp4.py) or the
block headers of a Matroska (matroska.py), whose first frame it decodes, or else in one pass over the packets.
`decode_groups` then fetches the frames of planned groups (plan.py) by their presentation time stamp (pts):

- start at the group's key frame, feed until its last frame's packet went in, then drain the decoder;
- leave out what the wanted frames do not need, where the file was found to keep its word on that: H.264 pictures that
  nothing refers to, HEVC pictures by their temporal layers (plan.py), AV1 frames that no chain of references leads to
  (av1.py);
- take the frame whose pts is exactly the one wanted. After a seek, a frame shown before the key frame that the decoder
  started from may lean on pictures that it never saw (open GOP), so such frames are never taken;
- if that pts does not come out (the demuxer landed too late, as in MPEG-TS; the pictures after the key frame are not
  clean yet, as with intra refresh), start earlier, finally from the beginning of the file;
- after damage nothing is taken until the next key frame, and what then never comes out is reported as missing.

One codec thread a worker: for sparse frames libav's frame threads restart at every seek and cost 1.2 to 1.45 times the
CPU. Workers take whole groups.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eagle_kernels.video import av1, matroska, mp4
from eagle_kernels.video.info import Orientation, PacketIndex, Samples, Tables, VideoError
from eagle_kernels.video.plan import Group, NalFormat, nal_format, needed, plan
from eagle_kernels.video.shards import Fed, Packet, Syntax, syntax

try:
    import av
except ModuleNotFoundError as error:
    raise ImportError('eagle_kernels.video needs PyAV: `pip install "eagle-kernels[video]"`.') from error
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

# Containers only. Left to itself libav also opens playlists (HLS, DASH, concat), which name other files and hosts.
DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,avi,flv,asf,ogg,mxf,ivf,h264,hevc,obu,gif"
STORAGE_ORDER_DEMUXERS = ("avi", "asf")  # these keep one time a packet, in the order of storage, and libav passes it on
DTS_DEMUXERS = ("mpegts", "mpeg")  # these search the file for a dts; asked for a pts they land one key frame too late
SHORTFALL_SECONDS = 0.5  # sound may well go on this much longer than the picture
LARGEST_PIXEL_ASPECT = 16  # a wider pixel is a damaged header, and would ask for any amount of memory
SEEK_PICTURES = 4  # pictures that an ordinary H.264 decoder has read ahead to reorder, and loses in a seek
# Without the last two flags swscale rounds down, repeats chroma samples, and loses 10 dB: tests/video/test_decode.py.
# Bicubic gains nothing there and takes twice the time.
SCALER = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
# By way of planes swscale has vector code for this, and takes 0.6 of the time for the same bytes; not for odd heights.
PLANES_FIRST = ("yuv420p", "yuvj420p", "yuv420p10le")
FRAMES_AHEAD = 2  # finished frames that a worker may hold of one group where they are large, and
GROUPS_AHEAD = 2  # groups in work or waiting for each worker: what bounds the memory
SAME_BREAKS = 3  # starts that all end at one packet: it is damaged, and no earlier start leads past it
WORTH_A_CHECK = 8  # times the packets of the check must be asked for; below that all are decoded
GROUPS_TRIED = 16  # each a quarter longer than the last, until one leaves out enough
WINDOW_PACKETS = 512  # that are read ahead to learn which are needed; what their end may be referred to by is kept
WINDOW_BYTES = 1 << 24
DROPS_CHECKED = 8  # packets that must have been left out without a change in the frame behind them
MAX_VERDICTS = 4096  # files whose check is remembered
POLL_SECONDS = 0.1
STEP_MILLISECONDS = 40  # between the frames of files made for others; no rate is read from it
FIELD_PROGRESSIVE = 1  # AV_FIELD_PROGRESSIVE; 0 is unknown
SPC_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED, ITU-T H.273 MatrixCoefficients 2
UNTAGGED = Colorspace.ITU601  # for streams that name no matrix: what libav's own tools, torchcodec and OpenCV take
MATRICES = {1: "bt709", SPC_UNSPECIFIED: "bt601", 5: "bt601", 6: "bt601", 9: "bt2020"}  # by H.273's number
# Whose chroma libav takes to lie on every other column of luma's samples; of all others, as swscale does, between them.
# PyAV does not pass on what a stream itself may say of it.
LEFT_CHROMA = ("h264", "hevc", "mpeg2video", "mpeg4")

T = TypeVar("T")


def read_index(path: str | Path) -> PacketIndex:
    """The stream's index: from the tables of an MP4 (mp4.py) or the block headers of a Matroska (matroska.py) where
    they apply, else from one pass over its packets.

    Decodes up to the first frame. Raises VideoError if there is no such file, it is no video, or not one frame decodes.
    """
    path = Path(path)
    _check_is_file(path)
    tables = mp4.read_tables(path) or matroska.read_tables(path)
    if tables is None:
        return index_from_packets(path)
    starts_seconds = int(tables.pts_D[tables.is_shown_D].min()) * tables.time_base
    return _index_from_tables(path, tables) or index_from_packets(path, starts_seconds)


def index_from_packets(path: Path, starts_seconds: Fraction | None = None) -> PacketIndex:
    """The index by one pass over the packets of the file's video stream; errors as in `read_index`.

    starts_seconds: when its first frame is shown, where the container says so: frames from there on count, be they
    damaged, so that the others keep their times.
    """
    with closing(_open(path)) as container:
        stream = _video_stream(container, path)
        first, packets, damage = _read_packets(container, stream, path)
        pts_N, place_N = np.unique(np.array([p.pts for p in packets], np.int64), return_index=True)
        starts_at = first.pts
        if starts_seconds is not None and starts_seconds < first.pts * stream.time_base:
            starts_at = math.ceil(starts_seconds / stream.time_base)
            num_lost = int(((pts_N >= starts_at) & (pts_N < first.pts)).sum())
            damage.append(f"the first frame that decodes has {num_lost} before it")
        is_shown_N = pts_N >= starts_at  # leading pictures of a stream that was cut are never shown
        last = packets[place_N[-1]]
        pts_N, place_N = pts_N[is_shown_N], place_N[is_shown_N]
        last_duration = last.duration or _usual_duration(pts_N, stream)
        ends_seconds = float((last.pts + last_duration) * stream.time_base)
        # Where one number states the whole length (Matroska, FLV); other demuxers know each stream's from its packets.
        states_length = stream.duration is None and container.duration is not None
        stated_seconds = container.duration / av.time_base if states_length else None
        keys = sorted((p.pts, p.seek, i) for i, p in enumerate(packets) if p.is_key)
        keys_K3 = np.array(keys, np.int64).reshape(-1, 3)
        width_px, height_px = _square_pixels(first.width, first.height, stream.sample_aspect_ratio, path)
        orientation = _orientation(first)
        return PacketIndex(
            path=path,
            codec=stream.codec_context.codec.canonical_name,
            time_base=stream.time_base,
            pts_N=pts_N,
            place_N=place_N.astype(np.int32),
            last_duration=last_duration,
            key_pts_K=keys_K3[:, 0],
            key_seek_K=keys_K3[:, 1],
            key_place_K=keys_K3[:, 2].astype(np.int32),
            scaled_width_px=width_px,
            scaled_height_px=height_px,
            orientation=orientation,
            rotation_degrees=_rotation_degrees(orientation),
            damage="; ".join(damage + _shortfall(stated_seconds, ends_seconds)) or None,
            samples=None,
        )


def _index_from_tables(path: Path, tables: Tables) -> PacketIndex | None:
    """None if the first sample does not give a frame that agrees with the tables: the packets are to be scanned."""
    samples = Samples(
        pts_D=tables.pts_D,
        is_key_D=tables.is_key_D,
        offset_D=tables.offset_D,
        size_D=tables.size_D,
        head=tables.head,
        num_head_samples=tables.num_head_samples,
    )
    try:
        with open(path, "rb") as file, closing(_open_head(samples, file.fileno(), path)) as container:
            stream = _video_stream(container, path)
            content = os.pread(file.fileno(), int(samples.size_D[0]), int(samples.offset_D[0]))
            unit = _Unit(int(samples.pts_D[0]), True, content, None)
            frames = (_decode(_packet(unit, content, stream)) or []) + _drain(stream)
            if len(frames) != 1 or frames[0].is_corrupt or frames[0].pts != samples.pts_D[0]:
                return None
            (first,) = frames
            width_px, height_px = _square_pixels(first.width, first.height, stream.sample_aspect_ratio, path)
            codec, time_base = stream.codec_context.codec.canonical_name, stream.time_base
            shown_D = np.flatnonzero(tables.is_shown_D)
            order_N = np.argsort(tables.pts_D[shown_D], kind="stable")
            place_N = shown_D[order_N]
            pts_N = tables.pts_D[place_N]
            last_duration = int(tables.duration_D[place_N[-1]]) or _usual_duration(pts_N, stream)
    except VideoError:
        return None
    if time_base != tables.time_base:
        return None
    ends_seconds = float((int(pts_N[-1]) + last_duration) * time_base)
    key_place_K = np.flatnonzero(tables.is_key_D)
    key_place_K = key_place_K[np.argsort(tables.pts_D[key_place_K], kind="stable")]
    orientation = _orientation(first)
    return PacketIndex(
        path=path,
        codec=codec,
        time_base=time_base,
        pts_N=pts_N,
        place_N=place_N.astype(np.int32),
        last_duration=last_duration,
        key_pts_K=tables.pts_D[key_place_K],
        key_seek_K=tables.pts_D[key_place_K],
        key_place_K=key_place_K.astype(np.int32),
        scaled_width_px=width_px,
        scaled_height_px=height_px,
        orientation=orientation,
        rotation_degrees=_rotation_degrees(orientation),
        damage="; ".join(_shortfall(tables.stated_seconds, ends_seconds)) or None,
        samples=lambda: samples,
    )


class Budget:
    """When to stop: the caller has gone, or the time it gave is used up. One for all workers of a call.

    Only the time counts in which the caller waits for a frame.
    """

    def __init__(self, path: Path, limit_seconds: float | None, stop: threading.Event | None = None) -> None:
        self._path = path
        self._stop = stop
        self._limit_seconds = limit_seconds
        self._left_seconds = math.inf if limit_seconds is None else limit_seconds
        self._deadline = math.inf
        self.gone = threading.Event()

    def start(self) -> None:
        self._deadline = time.monotonic() + self._left_seconds

    def pause(self) -> None:
        self._left_seconds = self._deadline - time.monotonic()
        self._deadline = math.inf

    def check(self) -> None:
        """Raises VideoError when the time is up, CancelledError when `stop` is set, _Gone when the caller has gone."""
        if self.gone.is_set():
            raise _Gone
        if self._stop is not None and self._stop.is_set():
            raise CancelledError
        if time.monotonic() > self._deadline:
            raise VideoError(
                f"{self._path}: decoding took more than time_limit_seconds = {self._limit_seconds:g} s. "
                f"Allow more, or leave the file out."
            )


class _Gone(Exception):
    """Ends a worker whose frames are not wanted any more."""


class Picture:
    """One decoded frame, in the thread that decoded it: valid until the function that it was given to returns."""

    def __init__(self, frame: av.VideoFrame, index: PacketIndex, scaler: _Scaler) -> None:
        self._frame = frame
        self._index = index
        self._scaler = scaler

    def rgb_YX3(self) -> Tensor:
        """As `Frame.rgb_YX3`; the caller's own."""
        return _to_rgb(self._frame, self._index, self._scaler)

    def planes(self) -> Planes | None:
        """The samples where the decoder left them; None unless they are 8-bit 4:2:0, by a matrix of MATRICES, upright.

        That depends on the stream alone. Pixels need not be square.
        """
        frame = self._frame
        name, matrix = frame.format.name, MATRICES.get(frame.colorspace)
        if name not in ("yuv420p", "yuvj420p", "nv12") or matrix is None or self._index.orientation != Orientation():
            return None
        if any(plane.line_size < 0 for plane in frame.planes):  # rows from the bottom up: uncompressed video alone
            return None
        y_YX, *chroma = (_samples(plane) for plane in frame.planes)
        height, width = (frame.height + 1) // 2, (frame.width + 1) // 2
        u_HW, v_HW = (chroma[0][:, ::2], chroma[0][:, 1::2]) if name == "nv12" else chroma
        return Planes(
            y_YX=y_YX[:, : frame.width],
            u_HW=u_HW[:height, :width],
            v_HW=v_HW[:height, :width],
            matrix=matrix,
            full_range=name == "yuvj420p" or frame.color_range == ColorRange.JPEG,
            chroma="left" if self._index.codec in LEFT_CHROMA else "center",
        )


class Planes(NamedTuple):
    """One picture as it was coded: 8-bit Y'CbCr, 4:2:0, rows apart; the words are those of `yuv_to_tiles`."""

    y_YX: Tensor
    u_HW: Tensor  # H, W = Y / 2, X / 2, rounded up
    v_HW: Tensor
    matrix: str
    full_range: bool
    chroma: str


def _samples(plane: av.video.plane.VideoPlane) -> Tensor:
    """(rows, line size) uint8 in libav's own memory: what lies behind the picture's width is no picture."""
    return torch.from_numpy(np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size))


Take = Callable[[Picture, int], T]  # what a caller makes of its m-th frame, in the worker's thread; never None


def decode_groups(
    index: PacketIndex,
    groups: Sequence[Group],
    take: Take[T],
    *,
    num_workers: int,
    frames_ahead: int,
    budget: Budget,
) -> Generator[T | None, None, None]:
    """For each frame of each group, in their order, what `take` makes of it, or None if it cannot be decoded.

    One worker: nothing is decoded before it is taken. Several: they call `take` side by side, and run ahead of the
    caller by a bounded number of groups, of each of which `frames_ahead` frames are made before they are taken; 0: all,
    which keeps the workers busy where many frames of a group are wanted. The pixels are the same.
    """
    drop = _drops_are_safe(index, groups, budget)
    if num_workers == 1:
        yield from _in_turn(index, groups, take, drop, budget)
    else:
        yield from _side_by_side(index, groups, take, drop, budget, num_workers, frames_ahead)


def _in_turn(
    index: PacketIndex, groups: Sequence[Group], take: Take[T], drop: bool, budget: Budget
) -> Iterator[T | None]:
    scaler = _Scaler()
    number = itertools.count()
    with closing(_Reader(index, budget)) as reader:
        for group in groups:
            for frame, m in zip(reader.frames(group, drop=drop), number):
                yield None if frame is None else take(Picture(frame, index, scaler), m)


def _side_by_side(
    index: PacketIndex,
    groups: Sequence[Group],
    take: Take[T],
    drop: bool,
    budget: Budget,
    num_workers: int,
    frames_ahead: int,
) -> Iterator[T | None]:
    """Each group is a task with a queue of its own; the queues are emptied in the groups' order. Tasks are begun
    in that order too, so the one that is waited for is always at work."""
    readers: queue.SimpleQueue[_Reader] = queue.SimpleQueue()  # of workers that are idle
    every_reader = [_Reader(index, budget) for _ in range(num_workers)]
    for reader in every_reader:
        readers.put(reader)

    def work(group: Group, first: int, done: queue.Queue[T | BaseException | None]) -> None:
        reader, scaler = readers.get(), _Scaler()
        try:
            for m, frame in enumerate(reader.frames(group, drop=drop), first):
                put(done, None if frame is None else take(Picture(frame, index, scaler), m))
        except _Gone:
            pass
        except BaseException as error:  # handed to the caller, whatever it is
            with contextlib.suppress(_Gone):
                put(done, error)
        finally:
            readers.put(reader)

    def put(done: queue.Queue[T | BaseException | None], result: T | BaseException | None) -> None:
        while True:
            if budget.gone.is_set():
                raise _Gone
            try:
                return done.put(result, timeout=POLL_SECONDS)
            except queue.Full:
                continue

    waiting = iter(groups)
    num_begun = 0  # frames of the groups begun
    begun: deque[tuple[Group, queue.Queue[T | BaseException | None]]] = deque()
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="eagle-video")
    try:
        while True:
            for group in itertools.islice(waiting, num_workers * GROUPS_AHEAD - len(begun)):
                done: queue.Queue[T | BaseException | None] = queue.Queue(frames_ahead)
                pool.submit(work, group, num_begun, done)
                begun.append((group, done))
                num_begun += len(group.frames)
            if not begun:
                return
            group, done = begun.popleft()
            for _ in group.frames:
                result = _get(done, budget)
                if isinstance(result, BaseException):
                    raise result
                yield result
    finally:
        budget.gone.set()
        pool.shutdown(wait=True)
        for reader in every_reader:
            reader.close()


def _get(done: queue.Queue[T | BaseException | None], budget: Budget) -> T | BaseException | None:
    while True:
        try:
            return done.get(timeout=POLL_SECONDS)
        except queue.Empty:
            budget.check()


_verdicts: dict[tuple[str, int, int], bool] = {}  # of (path, bytes, time changed): whether dropping was found safe


def _drops_are_safe(index: PacketIndex, groups: Sequence[Group], budget: Budget) -> bool:
    """Decodes one frame from all the packets before it and from those alone that it needs; True if it is the same to
    the byte. Remembered while the process runs. False, if nothing is known of the file yet and the check would be too
    large a part of the work."""
    if index.codec not in ("h264", "hevc", "av1"):
        return False
    status = index.path.stat()
    file = (str(index.path.resolve()), status.st_size, status.st_mtime_ns)
    if file not in _verdicts:
        groups = plan(index, np.unique([i for group in groups for i in group.frames]), join=False)
        num_packets = sum(g.end_place - g.first_place for g in groups)
        alone = [Group(g.key, g.first_place, int(index.place_N[i]) + 1, (i,)) for g in groups for i in g.frames]
        lengths = [(g.end_place - g.first_place, g) for g in alone]
        cheapest_first: list[tuple[int, Group]] = []
        for length, group in sorted(lengths):
            is_longer = length > (1.25 * cheapest_first[-1][0] if cheapest_first else DROPS_CHECKED)
            if is_longer and WORTH_A_CHECK * length <= num_packets:
                cheapest_first.append((length, group))
        if not cheapest_first:
            return False
        if len(_verdicts) >= MAX_VERDICTS:
            _verdicts.clear()
        _verdicts[file] = _check_drops(index, [g for _, g in cheapest_first[:GROUPS_TRIED]], budget)
    return _verdicts[file]


def _check_drops(index: PacketIndex, groups: Sequence[Group], budget: Budget) -> bool:
    """By the first of the groups, of one frame each, that leaves out DROPS_CHECKED packets; False if none does."""
    scaler = _Scaler()
    with closing(_Reader(index, budget)) as reader:
        group = next((g for g in groups if reader.num_needless(g) >= DROPS_CHECKED), None)
        if group is None:
            return False
        (without,) = reader.frames(group, drop=True)
        (whole,) = reader.frames(group, drop=False)
        if without is None or whole is None or reader.num_missed:
            return False
        return torch.equal(_to_rgb(without, index, scaler), _to_rgb(whole, index, scaler))


class _Reader:
    """A file open at one place, from which the frames come in the order they are shown."""

    def __init__(self, index: PacketIndex, budget: Budget) -> None:
        self._index = index
        self._budget = budget
        self._samples: Samples | None = None
        self._file: io.FileIO | None = None  # where there are samples: read at their places, without a demuxer
        self._place = 0  # of the sample to read first
        self._container: av.container.InputContainer | None = None
        self._nal: NalFormat | None = None
        self._frames: Iterator[av.VideoFrame] = iter(())
        self._shown: av.VideoFrame | None = None  # the last frame that came out
        self._newest_key_pts = -math.inf  # of the packets fed since the last seek
        self._broke_at: int | None = None  # pts of the first packet since the last seek that the decoder refused
        self.num_missed = 0  # frames that the plan did not lead to

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        if self._file is not None:
            self._file.close()
        self._container = self._file = None

    def frames(self, group: Group, *, drop: bool) -> Iterator[av.VideoFrame | None]:
        """One for each of the group's frames, None where no way leads to it. drop: leave out what they do not need."""
        wanted = [int(self._index.pts_N[i]) for i in group.frames]
        self._start(group.key, wanted, drop=drop)
        by_plan = True
        for pts in wanted:
            if self._shown is not None and self._shown.pts == pts:
                yield self._shown
                continue
            by_plan = by_plan and self._forward_to(pts)
            self.num_missed += not by_plan
            yield self._shown if by_plan else self._alone(pts) or self.frame(pts)

    def num_needless(self, group: Group) -> int:
        """How many packets `drop` would leave out on the way to the group's last frame, whole or in part. Decodes
        nothing."""
        last = int(self._index.pts_N[group.frames[-1]])
        self._start(group.key, [last], drop=True)
        if self._container is None:
            return 0
        num = 0
        for unit, content in self._needed_units(_video_stream(self._container, self._index.path), {last}, drop=True):
            num += content is not unit.content
            if unit.pts == last:
                break
        return num

    def _alone(self, pts: int) -> av.VideoFrame | None:
        """That frame, with nothing fed behind it that could be damaged."""
        self._start(int(np.searchsorted(self._index.key_pts_K, pts, side="right")) - 1, [pts], drop=False)
        return self._shown if self._forward_to(pts) else None

    def _start(self, key: int, wanted: list[int], *, drop: bool) -> None:
        """Makes ready to decode from that key frame until the packets of all wanted pts were fed."""
        if key <= 0:
            self._rewind()
            self._frames = self._clean_frames(trusted_from=-math.inf, wanted=set(wanted), drop=drop)
        elif self._seek(int(self._index.key_seek_K[key])):
            self._frames = self._clean_frames(trusted_from=None, wanted=set(wanted), drop=drop)
        else:
            self._frames = iter(())

    def frame(self, pts: int) -> av.VideoFrame | None:
        """The frame whose pts is exactly this one, or None where no way leads to it."""
        if self._shown is not None and self._shown.pts == pts:
            return self._shown
        key = int(np.searchsorted(self._index.key_pts_K, pts, side="right")) - 1
        if self._shown is not None and self._shown.pts < pts and not self._seek_helps(key) and self._forward_to(pts):
            return self._shown
        step = 1
        breaks: list[int | None] = []
        while key > 0:
            self._broke_at = None
            if self._seek(int(self._index.key_seek_K[key])) and self._forward_to(pts):
                return self._shown
            breaks.append(self._broke_at)
            if len(breaks) >= SAME_BREAKS and breaks[-1] is not None and len(set(breaks[-SAME_BREAKS:])) == 1:
                return None
            key, step = key - step, step * 2
        self._rewind()
        return self._shown if self._forward_to(pts) else None

    def _seek_helps(self, key: int) -> bool:
        """Whether starting at that key frame skips more than the few pictures that a seek throws away."""
        if self._shown is None:
            return True
        if key < 0 or self._index.key_pts_K[key] <= self._newest_key_pts:
            return False
        here, there = np.searchsorted(self._index.pts_N, (self._shown.pts, self._index.key_pts_K[key]))
        return bool(there - here > SEEK_PICTURES)

    def _forward_to(self, pts: int) -> bool:
        """Decodes until a frame at or after `pts` is shown; True if it is that one."""
        for frame in self._frames:
            self._shown = frame
            if frame.pts >= pts:
                return bool(frame.pts == pts)
        return False

    def stream(self) -> av.VideoStream:
        if self._container is None:
            self._container = self._open()
        return _video_stream(self._container, self._index.path)

    def units(self, group: Group) -> list[_Unit]:
        """All that the group's first to last packet span, in the order of storage; [] if no way leads to the first."""
        first_pts = self._index.key_pts_K[group.key] if group.key >= 0 else None
        for rewinds in (False, True) if group.key > 0 else (True,):
            if rewinds:
                self._rewind()
            elif not self._seek(int(self._index.key_seek_K[group.key])):
                continue
            found: list[_Unit] = []
            num_left = group.end_place - group.first_place
            for unit in self._units(self.stream()):
                is_first = first_pts is None or (unit.is_key and unit.pts == first_pts)
                is_before = unit.pts is None or (first_pts is not None and unit.pts <= first_pts)
                if not unit.content or not (found or is_first or is_before):
                    break
                if found or is_first:
                    found.append(unit)
                    # What an edit list hides has no place in the index that libav's demuxer gave.
                    num_left -= unit.packet is None or not unit.packet.is_discard
                    if num_left == 0:
                        return found
        return []

    def _open(self) -> av.container.InputContainer:
        """A container that a decoder can be set up from; the packets come from it, or from the samples' places."""
        path = self._index.path
        if self._index.samples is None:
            container = _open(path)
        else:
            _check_is_file(path)
            self._samples = self._index.samples()
            self._file = io.FileIO(path)  # open as long as the reader
            container = _open_head(self._samples, self._file.fileno(), path)
        stream = _video_stream(container, path)
        self._nal = nal_format(self._index.codec, stream.codec_context.extradata)
        return container

    def _seek(self, timestamp: int) -> bool:
        if self._container is None:
            self._container = self._open()
        stream = _video_stream(self._container, self._index.path)
        self._shown = None
        if self._samples is None:
            try:
                self._container.seek(timestamp, stream=stream)
            except av.error.FFmpegError:  # a container without an index: the caller starts earlier
                return False
        else:
            stream.codec_context.flush_buffers()
            self._place = int(self._index.key_place_K[np.searchsorted(self._index.key_seek_K, timestamp)])
        self._frames = self._clean_frames(trusted_from=None)
        return True

    def _rewind(self) -> None:
        """Opens the file anew: right for every container, also for those that seek badly."""
        self.close()
        self._container = self._open()
        self._shown = None
        self._place = 0
        self._frames = self._clean_frames(trusted_from=-math.inf)

    def _units(self, stream: av.VideoStream) -> Iterator[_Unit]:
        """From the place that the last seek went to; an empty one comes last."""
        if self._samples is None or self._file is None:
            demuxed = stream.container.demux(stream)
            while True:
                try:
                    packet = next(demuxed)
                except av.error.FFmpegError:
                    packet = av.Packet()  # nothing more can be read, but what was fed can still come out
                at_end = _is_end(packet)
                if packet.size or at_end:
                    yield _Unit(packet.pts, packet.is_keyframe, memoryview(packet) if packet.size else b"", packet)
                if at_end:
                    return
        for place in range(self._place, len(self._samples.pts_D)):
            size = int(self._samples.size_D[place])
            content = os.pread(self._file.fileno(), size, int(self._samples.offset_D[place]))
            if len(content) < size:  # the file became shorter
                break
            yield _Unit(int(self._samples.pts_D[place]), bool(self._samples.is_key_D[place]), content, None)
        yield _Unit(None, False, b"", None)

    def _needed_units(
        self, stream: av.VideoStream, wanted: set[int] | None, *, drop: bool
    ) -> Iterator[tuple[_Unit, av1.Content]]:
        """Each packet, with what of it is to be fed: with `drop`, what the decoder needs for the wanted pts. That takes
        reading ahead, to the last of them or by WINDOW_PACKETS."""
        units = self._units(stream)
        references = av1.References()
        left = set(wanted or ())
        while drop and left:
            window, num_bytes, is_wanted = [], 0, []
            for unit in units:
                self._budget.check()
                window.append(unit)
                is_wanted.append(unit.pts in left)
                left.discard(unit.pts)
                num_bytes += len(unit.content)
                if not left or not unit.content or len(window) == WINDOW_PACKETS or num_bytes > WINDOW_BYTES:
                    break
            packets = [unit.content for unit in window]
            if self._index.codec == "av1":
                try:
                    packets = references.needed(packets, is_wanted, is_last=not left)
                except av1.NotUnderstood:
                    drop = False
            elif self._nal is not None:
                keep = needed(packets, is_wanted, self._nal, is_last=not left)
                packets = [packet if kept else b"" for packet, kept in zip(packets, keep, strict=True)]
            yield from zip(window, packets, strict=True)
            if not window[-1].content:
                return
        for unit in units:
            yield unit, unit.content

    def _clean_frames(
        self, trusted_from: float | None, wanted: set[int] | None = None, *, drop: bool = False
    ) -> Iterator[av.VideoFrame]:
        """Frames in the order they are shown, without those that may lean on pictures the decoder never saw.

        trusted_from: frames shown before this pts are not taken; None: the pts of the first key frame met.
        wanted:       end when packets of all these pts were fed, or can no longer come; None: at the end of the file.
        drop:         feed only what the wanted frames need, by what the packets say of themselves.
        """
        if self._container is None:
            return
        stream = _video_stream(self._container, self._index.path)
        self._newest_key_pts = -math.inf
        self._broke_at = None
        last_wanted = max(wanted) if wanted else math.inf
        num_keys_behind = 0
        clean: set[int] = set()  # pts fed in good order and not yet out
        broken = False
        for unit, content in self._needed_units(stream, wanted, drop=drop):
            self._budget.check()
            at_end = not unit.content
            if not at_end and unit.is_key and unit.pts is not None:
                if trusted_from is None or broken:
                    trusted_from, broken = unit.pts, False
                self._newest_key_pts = max(self._newest_key_pts, unit.pts)
                num_keys_behind += unit.pts > last_wanted
            if trusted_from is None and not at_end:
                continue
            if not at_end and not content:
                continue
            # VP8's encoders give a picture that is not shown the time of the next one that is.
            if wanted is not None and (self._index.codec != "vp8" or at_end or _vp8_is_shown(content)):
                wanted.discard(unit.pts)
            frames = _drain(stream) if at_end else _decode(_packet(unit, content, stream))
            is_leading = trusted_from is None or unit.pts is None or unit.pts < trusted_from
            if frames is None and not is_leading and self._broke_at is None:
                self._broke_at = unit.pts
            if frames is None:
                broken = broken or not is_leading
            elif not broken and not is_leading and unit.pts is not None:
                clean.add(unit.pts)
            if wanted is not None and not at_end and (not wanted or num_keys_behind > 1):
                frames, at_end = (frames or []) + _drain(stream), True
            for frame in frames or ():
                if trusted_from is not None and frame.is_corrupt and frame.pts >= trusted_from:
                    broken = True
                    clean.clear()
                elif frame.pts in clean:
                    clean.remove(frame.pts)
                    yield frame
            if at_end:
                return


class StreamFormat(NamedTuple):
    """How a video stream is stored; for executors that must know beforehand what they cannot do."""

    pixel_format: str  # libav's name: "yuv420p", "yuv420p10le", ...; "" if unknown
    matrix: int  # ITU-T H.273 MatrixCoefficients: 1 is BT.709, 2 unspecified, 5 and 6 BT.601
    is_full_range: bool
    is_interlaced: bool  # its pictures are, or may be, single fields
    width_px: int  # as stored
    height_px: int
    syntax: Syntax | None  # None: the codec's headers do not say how packets are laid out


class PacketReader:
    """The packets of planned groups as they are stored, and small files made of packets: for executors that decode
    elsewhere. Nothing is decoded here."""

    def __init__(self, index: PacketIndex) -> None:
        """Opens the file. Raises VideoError as `read_index` does."""
        self.index = index
        self._reader = _Reader(index, Budget(index.path, None))
        coder = self._reader.stream().codec_context
        self.format = StreamFormat(
            pixel_format=coder.pix_fmt or "",
            matrix=int(coder.colorspace),
            is_full_range=int(coder.color_range) == ColorRange.JPEG,
            is_interlaced=int(coder.field_order) > FIELD_PROGRESSIVE,
            width_px=coder.width,
            height_px=coder.height,
            syntax=syntax(index.codec, coder.extradata, (coder.width, coder.height)),
        )

    def close(self) -> None:
        self._reader.close()

    def packets(self, group: Group) -> list[Packet]:
        """[] if no way leads to the first of them, or one of them has no time."""
        stored = [(unit.content, unit.pts) for unit in self._reader.units(group)]
        found = [Packet(bytes(content), pts) for content, pts in stored if pts is not None]
        return found if len(found) == len(stored) else []

    def matroska(self, packets: Sequence[Fed]) -> bytes:
        """A file of these packets, each shown for STEP_MILLISECONDS."""
        content = io.BytesIO()
        with av.open(content, "w", format="matroska") as container:
            stream = container.add_stream_from_template(self._reader.stream())
            for fed in packets:
                packet = av.Packet(fed.content)
                packet.pts, packet.dts = fed.pts * STEP_MILLISECONDS, fed.dts * STEP_MILLISECONDS
                packet.duration, packet.time_base = STEP_MILLISECONDS, Fraction(1, 1000)
                packet.is_keyframe, packet.stream = fed.starts_group, stream
                container.mux(packet)
        return content.getvalue()


class _Unit(NamedTuple):
    """One packet, as it was read."""

    pts: int | None
    is_key: bool
    content: av1.Content  # b"": the end
    packet: av.Packet | None  # where libav's demuxer made it


class _Packet(NamedTuple):
    """The facts of one packet that holds a shown frame; times in ticks."""

    pts: int
    seek: int
    duration: int  # 0 if unknown
    is_key: bool
    is_corrupt: bool


def _read_packets(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path
) -> tuple[av.VideoFrame, list[_Packet], list[str]]:
    """The first frame that decodes, the packets of shown frames in the order of storage, and what is damaged."""
    first: av.VideoFrame | None = None
    packets: list[_Packet] = []
    damage: list[str] = []
    seeks_by_dts = container.format.name in DTS_DEMUXERS
    codec = stream.codec_context.codec.canonical_name
    demuxed = container.demux(stream)
    at_end = False
    while not at_end:
        try:
            packet = next(demuxed)
        except av.error.FFmpegError as error:
            damage.append(f"reading stops after {len(packets)} frames ({error.strerror})")
            packet = av.Packet()
        at_end = _is_end(packet)
        if packet.size == 0 and not at_end:
            continue
        if first is None:
            frames = _drain(stream) if at_end else _decode(packet)
            first = next((frame for frame in frames or () if not frame.is_corrupt), None)
        if at_end or packet.is_discard or (codec == "vp8" and not _vp8_is_shown(memoryview(packet))):
            continue
        if packet.pts is None:
            raise VideoError(_no_times(path, container.format.name))
        seek = packet.pts if packet.dts is None or not seeks_by_dts else packet.dts
        packets.append(_Packet(packet.pts, seek, packet.duration or 0, packet.is_keyframe, packet.is_corrupt))
    if first is None:
        raise VideoError(f"{path}: not one frame can be decoded; it holds {len(packets)} packets of {codec}.")
    in_order = all(a.pts <= b.pts for a, b in itertools.pairwise(packets))
    if container.format.name in STORAGE_ORDER_DEMUXERS and stream.codec_context.reorder_depth and in_order:
        raise VideoError(_no_times(path, container.format.name))
    while packets[-1].is_corrupt:
        packets.pop()
        damage = [f"the file ends inside frame {len(packets)} (in the order of storage)"]
    if num_corrupt := sum(p.is_corrupt for p in packets):
        damage.append(f"{num_corrupt} of {len(packets)} frames are damaged")
    return first, packets, damage


def _is_end(packet: av.Packet) -> bool:
    """PyAV's demuxer ends with an empty packet without times. Empty ones that have times stand for a frame that was
    dropped, as in MP4 and AVI; to a decoder they would be the end."""
    return packet.size == 0 and packet.pts is None and packet.dts is None


def _shortfall(stated_seconds: float | None, ends_seconds: float) -> list[str]:
    """How files are noticed whose end is cut off between two packets."""
    if stated_seconds is None or stated_seconds <= ends_seconds + SHORTFALL_SECONDS:
        return []
    return [f"the container states an end at {stated_seconds:.3f} s, its video ends at {ends_seconds:.3f} s"]


def _no_times(path: Path, container_name: str) -> str:
    return (
        f"{path}: its container ({container_name}) does not say when each frame is shown, so none can be found "
        f"by its time. Encode it anew: `ffmpeg -i IN OUT.mp4`."
    )


def _check_is_file(path: Path) -> None:
    if not path.is_file():
        raise VideoError(f"{path}: there is no such file." if not path.exists() else f"{path}: is not a file.")
    if path.stat().st_size == 0:
        raise VideoError(f"{path}: the file is empty (0 bytes).")


def _open(path: Path) -> av.container.InputContainer:
    _check_is_file(path)
    return _open_av(f"file:{path}", path)


def _open_head(samples: Samples, fd: int, path: Path) -> av.container.InputContainer:
    """The small file of the first samples, in memory."""
    where = zip(
        samples.size_D[: samples.num_head_samples].tolist(), samples.offset_D[: samples.num_head_samples].tolist()
    )
    return _open_av(io.BytesIO(samples.head + b"".join(os.pread(fd, *at) for at in where)), path)


def _packet(unit: _Unit, content: av1.Content, stream: av.VideoStream) -> av.Packet:
    """What is fed of a packet, for the decoder."""
    if unit.packet is not None and content is unit.content:
        return unit.packet
    packet = av.Packet(content)
    packet.pts = unit.pts
    packet.time_base = stream.time_base
    packet.is_keyframe = unit.is_key
    packet.is_corrupt = unit.packet is not None and unit.packet.is_corrupt
    packet.stream = stream
    return packet


def _open_av(source: str | io.BytesIO, path: Path) -> av.container.InputContainer:
    try:
        return av.open(source, options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"})
    except (av.error.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VideoError(
            f"{path}: cannot be opened as a video ({reason}). It is damaged or cut short, or no video container; "
            f"known ones: {DEMUXERS.replace(',', ', ')}."
        ) from error


def _video_stream(container: av.container.InputContainer, path: Path) -> av.VideoStream:
    """The first video stream marked as default, else the first; cover art is none. The others are not read."""
    attached = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & attached]
    if not streams:
        kinds = ", ".join(s.type for s in container.streams) or "none"
        raise VideoError(f"{path}: holds no video (streams: {kinds}).")
    stream = max(streams, key=lambda s: bool(s.disposition & av.stream.Disposition.default))  # ties: the first
    if stream.codec_context is None:
        raise VideoError(f"{path}: its video codec is unknown to this build of libav.")
    for other in container.streams:
        other.discard = av.stream.Discard.default if other is stream else av.stream.Discard.all
    if not stream.codec_context.is_open:
        stream.codec_context.thread_count = 1
        # Damage raises instead of being painted over: a picture that libav made up would pass for the frame asked for.
        stream.codec_context.options = {"err_detect": "explode"}
    return stream


def _decode(packet: av.Packet) -> list[av.VideoFrame] | None:
    """The frames that come out when `packet` goes in; None if it is damaged."""
    if packet.is_corrupt:
        return None
    try:
        return packet.decode()
    except av.error.FFmpegError:
        return None


def _drain(stream: av.VideoStream) -> list[av.VideoFrame]:
    try:
        return stream.codec_context.decode(None)
    except av.error.FFmpegError:  # nothing was fed, or it was drained before
        return []


def _vp8_is_shown(content: av1.Content) -> bool:
    """VP8 stores pictures that are only referred to in packets of their own; RFC 6386, 9.1: bit 4 is show_frame."""
    return bool(content[0] & 0x10)


def _usual_duration(pts_N: NDArray[np.int64], stream: av.VideoStream) -> int:
    if len(pts_N) > 1:
        return int(np.median(np.diff(pts_N)))
    return round(1 / (stream.average_rate * stream.time_base)) if stream.average_rate else 0


def _square_pixels(width_px: int, height_px: int, aspect: Fraction | None, path: Path) -> tuple[int, int]:
    """The size with square pixels: rows stay, columns are stretched by the sample aspect ratio."""
    if not aspect:
        return width_px, height_px
    if not 1 / LARGEST_PIXEL_ASPECT <= aspect <= LARGEST_PIXEL_ASPECT:
        raise VideoError(f"{path}: its pixels are {aspect} as wide as high; needs at most {LARGEST_PIXEL_ASPECT} to 1.")
    return max(1, round(width_px * aspect)), height_px


def _orientation(frame: av.VideoFrame) -> Orientation:
    """From the display matrix (ISO/IEC 14496-12, 8.3.2): x' = a x + c y, y' = b x + d y; snapped to quarter turns."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation()
    a, b, _, c, d = np.frombuffer(bytes(matrix), "<i4")[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(transpose=True, flip_y=b < 0, flip_x=c < 0)
    return Orientation(transpose=False, flip_y=d < 0, flip_x=a < 0)


def _rotation_degrees(orientation: Orientation) -> int:
    """Clockwise. Of a mirrored picture: the turn after it was mirrored left to right."""
    if orientation.transpose:
        return 90 if orientation.flip_x else 270
    return 180 if orientation.flip_y else 0


class _Scaler:
    """swscale, set up for the frames of one stream."""

    def __init__(self) -> None:
        self._to_planes, self._to_pixels = VideoReformatter(), VideoReformatter()

    def rgb(self, frame: av.VideoFrame, width_px: int, height_px: int) -> av.VideoFrame:
        is_common = frame.format.name in PLANES_FIRST and frame.height % 2 == 0
        scaled = self._to_planes.reformat(
            frame,
            width=width_px,
            height=height_px,
            format="gbrp" if is_common else "rgb24",
            src_colorspace=UNTAGGED if frame.colorspace == SPC_UNSPECIFIED else None,
            dst_color_range=ColorRange.JPEG,
            interpolation=SCALER,
            threads=1,
        )
        return self._to_pixels.reformat(scaled, format="rgb24", threads=1) if is_common else scaled


def _to_rgb(frame: av.VideoFrame, index: PacketIndex, scaler: _Scaler) -> Tensor:
    """(Y, X, 3) uint8: full range RGB by the frame's own matrix and range, square pixels, turned as shown."""
    rgb = scaler.rgb(frame, index.scaled_width_px, index.scaled_height_px)
    (plane,) = rgb.planes
    rows = torch.frombuffer(plane, dtype=torch.uint8)[: rgb.height * plane.line_size].view(rgb.height, plane.line_size)
    rgb_YX3 = rows[:, : 3 * rgb.width].unflatten(1, (rgb.width, 3))
    if rgb is frame:  # it was RGB; else the memory is nobody else's, and without padding it becomes the tensor's
        rgb_YX3 = rgb_YX3.clone()
    return turned(rgb_YX3, index.orientation)


def turned(rgb_YX3: Tensor, orientation: Orientation) -> Tensor:
    """(X, Y, 3) or (Y, X, 3), contiguous: stored pixels as they are shown; `rgb_YX3` itself where that is no change."""
    transpose, flip_y, flip_x = orientation
    if transpose:
        rgb_YX3 = rgb_YX3.transpose(0, 1)
    flips = [dim for dim, flip in enumerate((flip_y, flip_x)) if flip]
    return rgb_YX3.flip(flips).contiguous() if flips else rgb_YX3.contiguous()
