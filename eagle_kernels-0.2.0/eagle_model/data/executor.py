"""Decoding where the model is: workers read packets, the training process makes tiles of them on its device.

    executor = DaliExecutor(processor.tiling, "cuda")
    patches_IPK = executor.fill(patches_IPK, deferred)      # on the device; `deferred` as reader.Part has it

A worker plans, reads the packets that the plan needs, and decodes neither them nor any pixel: a video that DALI can
decode right (eagle_kernels/video/dali.py says which) goes to the training process as some megabytes of its own packets.
All else, images too, is decoded by the worker. Which way a video goes follows from the file alone.

An executor is anything with `backend` and `fill`; another decoder needs those two.

Dims    I tiles, P patches a tile, K = 3 * patch_px**2.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from eagle_kernels.frames_to_tiles import frames_to_tiles
from eagle_kernels.tiles import Tiling
from eagle_kernels.video import Video
from eagle_kernels.video.dali import Packets, frames_of, read_packets
from eagle_kernels.video.plan import frame_indices

FRAMES_AT_ONCE = 8  # of one launch, and held at full size beside DALI's own

Backend = Literal["cuda", "cpu"]  # DALI's code: cpu decodes VP9 alone, and is there for the tests


class VideoTiles(NamedTuple):
    """Tiles that are still to be made of a video's frames, one of each."""

    tiles: tuple[int, int]  # first and end of them in patches_IPK
    packets: Packets

    def moved(self, by: int) -> VideoTiles:
        return self._replace(tiles=(self.tiles[0] + by, self.tiles[1] + by))


class Executor(Protocol):
    @property
    def backend(self) -> Backend: ...

    def fill(self, patches_IPK: Tensor, deferred: Sequence[VideoTiles], /) -> Tensor:
        """The tiles on the executor's device, those of `deferred` decoded. patches_IPK, on the CPU, may be changed."""


class DaliExecutor:
    """By DALI, on a GPU by NVDEC. Raises RuntimeError with DALI's own words where it does not decode."""

    def __init__(self, tiling: Tiling, device: str | torch.device) -> None:
        self._tiling, self._device = tiling, torch.device(device)
        self.backend: Backend = "cuda" if self._device.type == "cuda" else "cpu"

    def fill(self, patches_IPK: Tensor, deferred: Sequence[VideoTiles], /) -> Tensor:
        patches_IPK = patches_IPK.to(self._device, non_blocking=True)
        device_id = None
        if self.backend == "cuda":
            device_id = torch.cuda.current_device() if self._device.index is None else self._device.index
        for (first, end), packets in deferred:
            frames, at = frames_of(packets, device_id), first
            while batch := list(islice(frames, FRAMES_AT_ONCE)):
                frames_LYX3 = torch.stack([frame.rgb_YX3 for frame in batch])
                patches_IPK[at : at + len(batch)] = frames_to_tiles(frames_LYX3, (1, 1), self._tiling)
                at += len(batch)
            if at != end:
                raise RuntimeError(f"{packets.path}: DALI gave {at - first} frames; {end - first} were asked for.")
        return patches_IPK


def deferred_to(found: list[VideoTiles], backend: Backend, video: Video, times: object, tiles: tuple[int, int]) -> bool:
    """Whether DALI's `backend` can decode these frames right; then their packets are added to `found`."""
    packets = read_packets(video.index, video.info, frame_indices(video.info, times), backend=backend)
    if not isinstance(packets, Packets):
        return False
    found.append(VideoTiles(tiles, packets))
    return True
