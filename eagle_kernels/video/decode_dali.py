"""Decoding on the GPU (NVDEC) through NVIDIA DALI: the one file of the library that imports `nvidia.dali`.

Dims    M frames asked for, L frames of one call to DALI, Y rows, X columns.

DALI takes the file from memory and the numbers of the frames, and gives them in that order; they stay on the device and
reach torch by DLPack. It says little about what it cannot do right, so that is settled beforehand, from the container
and the codec, and refused with an error that names the CPU: there is no fallback.

- Hopper's NVDEC has no AV1 and neither 10-bit nor 4:2:2 nor 4:4:4 H.264 (NVIDIA's NVDEC application note, 13.0); of all
  codecs 8-bit 4:2:0 is taken here.
- DALI converts every stream by BT.601. One tagged otherwise (BT.709: most HD video) would come out in other colours.
- It neither turns pictures nor makes pixels square, conceals damage, and chooses a video stream by a rule of its own.
- It numbers the pictures that an edit list cuts away and those that VP8 keeps to refer to, and so gives wrong frames.

Never run on a GPU yet: the tests run the same calls on VP9 with DALI's CPU code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eagle_kernels.video.info import Frame, Orientation, PacketIndex, VideoInfo

if TYPE_CHECKING:
    from eagle_kernels.video.decode_cpu import StreamFormat

CODECS = {"cuda": ("h264", "hevc", "vp9"), "cpu": ("vp9",)}  # DALI's CPU code has no H.264 and no HEVC; for the tests
PIXEL_FORMATS = ("yuv420p", "yuvj420p")
BT601_MATRICES = (2, 5, 6)  # ITU-T H.273: unspecified, which all of this package takes for BT.601; 625 and 525 lines
CALL_BYTES = 2**30  # DALI holds all frames of one call at once, at full size


def decode(index: PacketIndex, info: VideoInfo, frames_M: NDArray[np.int64], device: torch.device) -> Iterator[Frame]:
    """The frames with these numbers (0 is the first one shown), in that order, on `device`.

    The file is read into memory whole; at most CALL_BYTES of frames, or a single one, are on the device besides those
    that the caller keeps. Colours may differ by a few steps from the CPU's: DALI interpolates chroma in its own way.

    Raises at once, and never a VideoError, as nothing is wrong with the file and no policy for bad samples may swallow
    it: ValueError for a device that is no CUDA device; ImportError without DALI; NotImplementedError for what DALI
    cannot decode right (see above); later RuntimeError, with DALI's own words.
    """
    if device.type != "cuda":
        raise ValueError(f"video.decode: device is {device}; needs 'cpu', or a CUDA device.")
    _dali()
    from eagle_kernels.video.decode_cpu import stream_format  # here: the package imports without PyAV

    if reason := why_not(index, info, stream_format(index.path), "cuda"):
        raise NotImplementedError(
            f'{index.path}: {reason}, which decoding on a GPU does not do right. Use device="cpu" and move the frames.'
        )
    device_id = torch.cuda.current_device() if device.index is None else device.index
    return _frames(index, info, frames_M, device_id)


def why_not(index: PacketIndex, info: VideoInfo, form: StreamFormat, backend: str) -> str | None:
    """What about the file DALI's `backend` ("cuda" or "cpu") cannot decode right; None if nothing."""
    if info.codec not in CODECS[backend]:
        return f"its codec is {info.codec} and not one of {', '.join(CODECS[backend])}"
    if form.pixel_format not in PIXEL_FORMATS:
        return f"its pixels are {form.pixel_format} and not 8-bit 4:2:0"
    if form.matrix not in BT601_MATRICES:
        return f"its colours are those of matrix {form.matrix} (ITU-T H.273; 1 is BT.709) and not BT.601"
    if index.orientation != Orientation():
        return f"it is to be turned ({info.rotation_degrees} degrees) or mirrored"
    if (form.width_px, form.height_px) != (info.width_px, info.height_px):
        shown = f"{info.width_px}x{info.height_px}"
        return f"its pixels are not square ({form.width_px}x{form.height_px} are shown as {shown})"
    if int(index.place_N.max()) + 1 != info.num_frames:  # DALI gives each a number
        return f"it holds pictures that are not shown ({info.num_frames} of {int(index.place_N.max()) + 1} are)"
    if form.num_video_streams != 1:
        return f"it holds {form.num_video_streams} video streams"
    if info.damage is not None:
        return f"it is damaged ({info.damage})"
    return None


def _dali() -> Any:
    try:
        import nvidia.dali as dali
    except ModuleNotFoundError as error:
        raise ImportError(
            'video.decode: decoding on a GPU needs NVIDIA DALI, which is not installed: `pip install "eagle-kernels'
            '[dali]"`. device="cpu" needs none.'
        ) from error
    return dali


def _frames(index: PacketIndex, info: VideoInfo, frames_M: NDArray[np.int64], device_id: int | None) -> Iterator[Frame]:
    """`device_id`: None for DALI's CPU code."""
    pipeline = _pipeline(device_id)
    encoded = np.fromfile(index.path, np.uint8)
    at_once = max(1, CALL_BYTES // (info.width_px * info.height_px * 3))
    for start in range(0, len(frames_M), at_once):
        numbers_L = frames_M[start : start + at_once]
        rgb_LYX3 = _call(pipeline, encoded, numbers_L, index)
        needed = (len(numbers_L), info.height_px, info.width_px, 3)
        if tuple(rgb_LYX3.shape) != needed:
            raise RuntimeError(f"{index.path}: DALI gave frames of shape {tuple(rgb_LYX3.shape)}; needs {needed}.")
        for i, rgb_YX3 in zip(numbers_L.tolist(), rgb_LYX3):
            yield Frame(float(info.frame_times_seconds[i]), rgb_YX3.clone())  # the rest is DALI's, and used again


def _pipeline(device_id: int | None) -> Any:
    dali = _dali()
    pipeline = dali.Pipeline(
        batch_size=1, num_threads=1, device_id=device_id, prefetch_queue_depth=1, exec_dynamic=True
    )
    with pipeline:
        encoded = dali.fn.external_source(name="encoded", dtype=dali.types.UINT8, ndim=1)
        numbers = dali.fn.external_source(name="numbers", dtype=dali.types.INT32, ndim=1)
        backend = "cpu" if device_id is None else "mixed"
        pipeline.set_outputs(dali.fn.decoders.video(encoded, frames=numbers, device=backend))
    pipeline.build()
    return pipeline


def _call(pipeline: Any, encoded: NDArray[np.uint8], numbers_L: NDArray[np.int64], index: PacketIndex) -> Tensor:
    """(L, Y, X, 3) uint8, in DALI's memory: valid until the next call."""
    pipeline.feed_input("encoded", [encoded])
    pipeline.feed_input("numbers", [numbers_L.astype(np.int32)])
    try:
        (frames,) = pipeline.run()
    except RuntimeError as error:
        raise RuntimeError(
            f'{index.path}: DALI does not decode frames {numbers_L.tolist()}. device="cpu" may. DALI says: {error}'
        ) from error
    return torch.from_dlpack(frames[0])
