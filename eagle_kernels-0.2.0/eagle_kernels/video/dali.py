"""Decoding on the GPU (NVDEC) through NVIDIA DALI: the one file of the library that imports `nvidia.dali`.

    for frame in eagle_kernels.video.decode("walk.mp4", [0.0, 1.0], device="cuda"):
        frame.rgb_YX3.is_cuda                 # True

Dims    M frames asked for, L frames of one call to DALI, Y rows, X columns.

The packets that the plan needs, and no others, are laid out anew in memory (shards.py), as several small files: shards
of whole groups of pictures, which DALI decodes side by side as the samples of one batch. It gives the frames by their
numbers there; they stay on the device and reach torch by DLPack. Then they are corrected: DALI converts every stream by
BT.601, and neither makes pixels square nor turns pictures.

What it cannot do right is settled before, from the container and the codec, and refused with an error that names the
CPU: there is no fallback.

- Hopper's NVDEC has no AV1 and neither 10-bit nor 4:2:2 nor 4:4:4 H.264 (NVIDIA's NVDEC application note, 13.0); of all
  codecs 8-bit 4:2:0 is taken here.
- DALI's GPU code (2.4) gives each picture, as it is decoded, the oldest packet's time that no other has got yet, and
  puts BUFFERED pictures into order. So a packet must be one picture: no fields, nothing of VP9's that is not shown or
  shown again.
- Its conversion to RGB writes pairs of columns, beyond the picture where they are odd; and takes the range from where
  H.264 and HEVC state it, and not from the container. What it makes of VP9's is not known.
- It conceals damage.

Never run on a GPU yet: the tests run the same calls on VP9 with DALI's CPU code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from eagle_kernels.video.bitstream.pictures import picture
from eagle_kernels.video.colour import MATRICES, to_rgb_33
from eagle_kernels.video.info import Frame, Orientation, PacketIndex, VideoInfo
from eagle_kernels.video.plan import Group, plan
from eagle_kernels.video.shards import ONE_GROUP_A_STREAM, Stream, lay_out, refusal, split

if TYPE_CHECKING:
    from eagle_kernels.video.libav.source import PacketReader, StreamFormat

CODECS = {"cuda": ("h264", "hevc", "vp9"), "cpu": ("vp9",)}  # DALI's CPU code has no H.264 and no HEVC; for the tests
FULL_RANGE_FORMAT = "yuvj420p"  # libav's name where the codec's own headers say so
PIXEL_FORMATS = ("yuv420p", FULL_RANGE_FORMAT)
NUM_SHARDS = 7  # NVDEC engines of an H100 or H200; a decoder works on one, so a video must be several streams
BUFFERED = 8  # pictures that DALI's GPU code holds to put them into the order of their times
STREAM_BYTES = 2**31 - 2**24  # DALI counts what is left of a file in memory in 31 bits; less what Matroska adds
CALL_BYTES = 2**30  # DALI holds all frames of one call at once, at full size


def decode(index: PacketIndex, info: VideoInfo, frames_M: NDArray[np.int64], device: torch.device) -> Iterator[Frame]:
    """The frames with these numbers (0 is the first one shown), in that order, on `device`.

    Of the file the needed packets are read, those of one call at a time; at most CALL_BYTES of frames, or a single one,
    are on the device besides those that the caller keeps and DALI's own BUFFERED ones of each shard. Colours may differ
    by a few steps from the CPU's: DALI interpolates chroma in its own way and clips before they are corrected.

    Raises at once, and never a VideoError for what it cannot do, as nothing is wrong with the file then and no policy
    for bad samples may swallow it: ValueError for a device that is no CUDA device; ImportError without DALI;
    NotImplementedError for what DALI cannot decode right (see above; for VP9's unusual packets and times that are not
    the index's on reaching them); later RuntimeError, with DALI's own words.
    """
    if device.type != "cuda":
        raise ValueError(f"video.decode: device is {device}; needs 'cpu', or a CUDA device.")
    _dali()
    from eagle_kernels.video.libav.source import PacketReader  # here: the package imports without PyAV

    with closing(PacketReader(index)) as reader:
        if reason := why_not(info, reader.format, "cuda"):
            raise refusal(index.path, reason)
        index = with_true_starts_only(reader, frames_M)
    device_id = torch.cuda.current_device() if device.index is None else device.index
    return _frames(index, info, frames_M, device_id)


def why_not(info: VideoInfo, form: StreamFormat, backend: str) -> str | None:
    """What about the file DALI's `backend` ("cuda" or "cpu") cannot decode right; None if nothing."""
    if info.codec not in CODECS[backend]:
        return f"its codec is {info.codec} and not one of {', '.join(CODECS[backend])}"
    if form.pixel_format not in PIXEL_FORMATS:
        return f"its pixels are {form.pixel_format} and not 8-bit 4:2:0"
    if form.matrix not in MATRICES:
        known = ", ".join(map(str, MATRICES))
        return f"its colours are those of matrix {form.matrix} and not one of {known} (ITU-T H.273)"
    if form.syntax is None:
        return "its codec's headers are unusual"
    if info.damage is not None:
        return f"it is damaged ({info.damage})"
    if backend == "cpu":
        return None
    if form.is_full_range and form.pixel_format != FULL_RANGE_FORMAT:
        return "its colours are of full range, which no header of H.264 or HEVC says"
    if form.is_interlaced:
        return "it is interlaced"
    if form.width_px % 2 or form.height_px % 2:
        return f"its size is odd ({form.width_px}x{form.height_px})"
    return None


def with_true_starts_only(reader: PacketReader, frames_M: NDArray[np.int64]) -> PacketIndex:
    """The reader's index with no key frames but those that start afresh, the last one before each of these frames.
    Reads key frames of H.264: some that are marked as such are no IDR.

    Raises NotImplementedError where a frame has none.
    """
    index, syntax = reader.index, reader.format.syntax
    if index.codec != "h264" or syntax is None:
        return index

    @cache
    def is_start(key: int) -> bool:
        """-1: the beginning of the file."""
        place = int(index.key_place_K[key]) if key >= 0 else 0
        packets = reader.packets(Group(key, place, place + 1, ()))
        return bool(packets) and picture(packets[0].content, syntax).is_start

    used: set[int] = set()
    for key in np.unique(np.searchsorted(index.key_pts_K, index.pts_N[frames_M], side="right") - 1).tolist():
        while key >= 0 and not is_start(key):
            key -= 1
        if not is_start(key):
            raise refusal(index.path, "some of its frames have no IDR picture before them")
        used.add(key)
    keys = sorted(used - {-1})
    return replace(
        index,
        key_pts_K=index.key_pts_K[keys],
        key_seek_K=index.key_seek_K[keys],
        key_place_K=index.key_place_K[keys],
    )


def frames_a_call(
    index: PacketIndex, frames_M: NDArray[np.int64], frame_bytes: int, num_shards: int
) -> Iterator[NDArray[np.int64]]:
    """The frames in the order asked, as many at a time as one call may hold; one asked for twice is held once."""
    key_M = np.searchsorted(index.key_pts_K, index.pts_N[frames_M], side="right")
    most_frames = max(1, CALL_BYTES // frame_bytes)
    most_groups = num_shards if index.codec in ONE_GROUP_A_STREAM else len(frames_M)
    first = 0
    frames: set[int] = set()
    groups: set[int] = set()
    for i, (frame, group) in enumerate(zip(frames_M.tolist(), key_M.tolist())):
        is_full = len(frames) == most_frames and frame not in frames
        if is_full or (len(groups) == most_groups and group not in groups):
            yield frames_M[first:i]
            first, frames, groups = i, set(), set()
        frames.add(frame)
        groups.add(group)
    if first < len(frames_M):
        yield frames_M[first:]


def streams(reader: PacketReader, frames: NDArray[np.int64], *, num_shards: int, backend: str) -> list[Stream]:
    """The shards that give these frames (ascending, each once); their `number_of` names frames by their pts.

    Raises NotImplementedError where the numbers of their pictures would not be known.
    """
    index, laid_out = reader.index, []
    assert reader.format.syntax is not None
    for shard in split(plan(index, frames, join=False), num_shards):
        groups = [(reader.packets(group), index.pts_N[list(group.frames)].tolist()) for group in shard]
        stream = lay_out(groups, reader.format.syntax, counts_coded=backend == "cuda")
        if isinstance(stream, str):
            raise refusal(index.path, stream)
        if backend == "cuda" and stream.reorders >= BUFFERED:
            raise refusal(index.path, f"{stream.reorders} of its pictures wait for one that is shown before them")
        num_bytes = sum(len(packet.content) for packet in stream.packets)
        if num_bytes > STREAM_BYTES:
            raise refusal(index.path, f"{num_bytes} bytes of it must be decoded at one go")
        laid_out.append(stream)
    return laid_out


def _dali() -> Any:
    try:
        import nvidia.dali as dali
    except ModuleNotFoundError as error:
        raise ImportError(
            'video.decode: decoding on a GPU needs NVIDIA DALI, which is not installed: `pip install "eagle-kernels'
            '[dali]"`. device="cpu" needs none.'
        ) from error
    return dali


class Call(NamedTuple):
    """What DALI is fed at one go."""

    files: list[bytes]  # the shards
    number_of: list[dict[int, int]]  # of each: the frames it gives, named by their pts, and their numbers in the file
    wanted: list[tuple[int, float]]  # the frames asked for, in that order: pts and own time


class Packets(NamedTuple):
    """All that is needed of a file to decode some frames of it: bytes and numbers, which another process may send."""

    path: Path  # for messages
    calls: Sequence[Call]
    height_px: int  # as stored
    width_px: int
    matrix: int
    scaled_width_px: int
    orientation: Orientation

    @property
    def num_bytes(self) -> int:
        return sum(len(file) for call in self.calls for file in call.files)


def read_packets(
    index: PacketIndex, info: VideoInfo, frames_M: NDArray[np.int64], *, backend: str, num_shards: int = NUM_SHARDS
) -> Packets | str:
    """What `frames_of` needs to decode the frames with these numbers; or why DALI cannot do it right. Decodes nothing.

    backend: "cuda", or "cpu" for the tests.
    """
    from eagle_kernels.video.libav.source import PacketReader

    try:
        with closing(PacketReader(index)) as reader:
            if reason := why_not(info, reader.format, backend):
                return reason
            index = with_true_starts_only(reader, frames_M)
        with closing(PacketReader(index)) as reader:
            calls = list(_calls(reader, info, frames_M, num_shards, backend))
            return _packets(index, reader.format, calls)
    except NotImplementedError as error:
        return str(error)


def frames_of(packets: Packets, device_id: int | None) -> Iterator[Frame]:
    """The frames, in the order asked for; device_id as for `_frames`. Raises RuntimeError, with DALI's words."""
    return _decoded(packets, packets.calls, device_id, max((len(call.files) for call in packets.calls), default=1))


def _frames(
    index: PacketIndex,
    info: VideoInfo,
    frames_M: NDArray[np.int64],
    device_id: int | None,
    *,
    num_shards: int = NUM_SHARDS,
) -> Iterator[Frame]:
    """`device_id`: None for DALI's CPU code."""
    from eagle_kernels.video.libav.source import PacketReader

    with closing(PacketReader(index)) as reader:
        calls = _calls(reader, info, frames_M, num_shards, "cpu" if device_id is None else "cuda")
        yield from _decoded(_packets(index, reader.format, ()), calls, device_id, num_shards)


def _packets(index: PacketIndex, form: StreamFormat, calls: Sequence[Call]) -> Packets:
    return Packets(
        index.path, calls, form.height_px, form.width_px, form.matrix, index.scaled_width_px, index.orientation
    )


def _calls(
    reader: PacketReader, info: VideoInfo, frames_M: NDArray[np.int64], num_shards: int, backend: str
) -> Iterator[Call]:
    index, form = reader.index, reader.format
    for numbers_L in frames_a_call(index, frames_M, form.width_px * form.height_px * 3, num_shards):
        shards = streams(reader, np.unique(numbers_L), num_shards=num_shards, backend=backend)
        yield Call(
            [reader.matroska(s.packets) for s in shards],
            [dict(s.number_of) for s in shards],
            [(int(index.pts_N[i]), float(info.frame_times_seconds[i])) for i in numbers_L.tolist()],
        )


def _decoded(packets: Packets, calls: Iterable[Call], device_id: int | None, num_shards: int) -> Iterator[Frame]:
    from eagle_kernels.video.libav.picture import turned

    pipeline = _pipeline(device_id, num_shards)
    matrix_33 = from_bt601(packets.matrix)
    for call in calls:
        rgb_of = _call(pipeline, call, packets)
        read: list[torch.cuda.Event] = []
        try:
            for pts, timestamp_seconds in call.wanted:
                rgb_YX3 = corrected(rgb_of[pts], matrix_33, packets.scaled_width_px)
                if device_id is not None:
                    read.append(torch.cuda.current_stream(device_id).record_event())
                yield Frame(timestamp_seconds, turned(rgb_YX3, packets.orientation))
        finally:
            for event in read:  # DALI takes its memory back, and knows nothing of what torch still has to do
                event.synchronize()
        del rgb_of


def _pipeline(device_id: int | None, num_shards: int) -> Any:
    dali = _dali()
    pipeline = dali.Pipeline(
        batch_size=num_shards, num_threads=num_shards, device_id=device_id, prefetch_queue_depth=1, exec_dynamic=True
    )
    with pipeline:
        encoded = dali.fn.external_source(name="encoded", dtype=dali.types.UINT8, ndim=1)
        numbers = dali.fn.external_source(name="numbers", dtype=dali.types.INT32, ndim=1)
        backend = "cpu" if device_id is None else "mixed"
        # pad_mode: by default DALI shows black where it has no such picture.
        pipeline.set_outputs(dali.fn.decoders.video(encoded, frames=numbers, device=backend, pad_mode="none"))
    pipeline.build()
    return pipeline


def _call(pipeline: Any, call: Call, packets: Packets) -> dict[int, Tensor]:
    """By their pts, (Y, X, 3) uint8, in DALI's memory: valid until the next call."""
    pipeline.feed_input("encoded", [np.frombuffer(file, np.uint8) for file in call.files])
    pipeline.feed_input("numbers", [np.array(list(numbers.values()), np.int32) for numbers in call.number_of])
    try:
        (frames,) = pipeline.run()
    except RuntimeError as error:
        raise RuntimeError(
            f"{packets.path}: DALI does not decode {sum(map(len, call.number_of))} frames of it. "
            f'device="cpu" may. DALI says: {error}'
        ) from error
    rgb_of: dict[int, Tensor] = {}
    for i, number_of in enumerate(call.number_of):
        rgb_LYX3 = torch.from_dlpack(frames[i])
        needed = (len(number_of), packets.height_px, packets.width_px, 3)
        if tuple(rgb_LYX3.shape) != needed:
            raise RuntimeError(f"{packets.path}: DALI gave frames of shape {tuple(rgb_LYX3.shape)}; needs {needed}.")
        rgb_of |= zip(number_of, rgb_LYX3)
    return rgb_of


def from_bt601(matrix: int) -> list[list[float]] | None:
    """3 x 3: from the RGB that BT.601's matrix makes of a stream to the RGB of its own; None where they are one.

    Both are linear in the same Y', Cb, Cr.
    """
    if MATRICES[matrix] == "bt601":
        return None
    return (to_rgb_33(MATRICES[matrix]) @ np.linalg.inv(to_rgb_33("bt601"))).tolist()


def corrected(rgb_YX3: Tensor, matrix_33: list[list[float]] | None, width_px: int) -> Tensor:
    """(Y, `width_px`, 3) uint8, in memory of its own: colours and width as they should be, in fp32, rounded once.

    A colour that BT.601 put out of range was clipped before, and stays off by what was lost.
    """
    if matrix_33 is None and width_px == rgb_YX3.shape[1]:
        return rgb_YX3.clone()
    planes_3YX = rgb_YX3.permute(2, 0, 1).float()
    if matrix_33 is not None:  # one by one: a product of matrices might be made in TF32
        planes_3YX = torch.stack([sum(k * plane for k, plane in zip(row, planes_3YX)) for row in matrix_33])
    if width_px != rgb_YX3.shape[1]:
        size = (rgb_YX3.shape[0], width_px)
        planes_3YX = interpolate(planes_3YX[None], size, mode="bilinear", antialias=True)[0]
    return planes_3YX.round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
