"""A video and times -> the normalised tiles of the frames shown then: decoding and tiling as one pipeline.

    tiling = Tiling(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    times, tiles_IPK = decode_tiles("film.mp4", [0.0, 12.5], (2, 1), tiling)

Dims    M times asked for; I tiles in all, M * tiling.num_tiles(grid); P patches a tile, K numbers a patch: tiles.py.
How     On the CPU the thread that decoded a frame tiles it at once, so memory holds the result and a few frames,
        however many are asked for. On a GPU frames come from DALI and are tiled FRAMES_AT_ONCE at a time.
Paths   8-bit 4:2:0 video by BT.601, BT.709 or BT.2020 is tiled from the decoder's own planes: no RGB picture, no copy,
        pixels of any shape (`yuv_to_tiles`); where a player turns or mirrors it, as a phone's portraits, the tiles are
        turned. All other video, and all on a GPU, is made RGB as `decode` gives it (`frames_to_tiles`). The stream
        alone decides (Picture.planes in video/libav/picture.py).
Numbers On smooth pictures both paths agree within their rounding; by planes chroma is interpolated once, not twice, and
        pixels that are not square are not stretched first, so at edges they differ: docs/notes/video.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from itertools import islice
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from eagle_kernels import video as video_files
from eagle_kernels.checks import refuse
from eagle_kernels.frames_to_tiles import frames_to_tiles
from eagle_kernels.tiles import Tiling, check_arguments
from eagle_kernels.video import Frame, Video
from eagle_kernels.video.info import Orientation
from eagle_kernels.video.video import check_options
from eagle_kernels.yuv_to_tiles import tiles_of_planes

if TYPE_CHECKING:
    from eagle_kernels.video.libav.picture import Picture

FRAMES_AT_ONCE = 8  # of one launch on a GPU, and held there beside DALI's own


class DecodedTiles(NamedTuple):
    """What `decode_tiles` gives: tiles, and when the frames were shown that they are of."""

    timestamps_seconds: tuple[float, ...]  # each frame's own time, as `video.Frame` has it
    tiles_IPK: Tensor


def decode_tiles(
    video: str | Path | Video,
    timestamps_seconds: Sequence[float],
    grid: tuple[int, int],
    tiling: Tiling,
    *,
    out: Tensor | None = None,
    device: str | torch.device = "cpu",
    num_workers: int = 1,
    time_limit_seconds: float | None = None,
    stop: Event | None = None,
) -> DecodedTiles:
    """Tiles of the frame shown at each time, in the order asked, frame by frame as `frames_to_tiles` gives them.

        tiling = Tiling(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        times, tiles_IPK = decode_tiles("film.mp4", [0.0, 12.5], (2, 1), tiling)  # (4, 1024, 588)

    Args:    video: a file, or one that is open (`video.open`).
             grid, tiling: (cols, rows) of each frame, and what its tiles are, as for `frames_to_tiles`.
             out: filled and returned instead of a new tensor; contiguous, of the result's shape, dtype and device.
             stop: when another thread sets it, CancelledError is raised before the next packet or batch of frames.
             timestamps_seconds and the rest: as `video.decode`. num_workers threads decode and tile; the bits do not
             depend on their number.
    Returns: the frames' own times, and (I, P, K), or (I, 3, tile_px, tile_px) with layout="tiles".
    Raises:  as `video.decode` and `frames_to_tiles`. A frame that is damaged or missing raises VideoError with its
             time and how many of those asked for came before it; `out` is filled in part then.
    """
    device = torch.device(device)
    check_arguments("decode_tiles", tiling, [grid], num_threads=1)

    def rgb_tiles(frames_LYX3: Tensor) -> Tensor:
        return frames_to_tiles(frames_LYX3, grid, tiling, num_threads=1)  # each worker is a thread already

    shape, dtype = tiling.shape(len(timestamps_seconds) * tiling.num_tiles(grid)), tiling.dtype
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=device)
    if out.shape != shape:
        refuse("decode_tiles", "out's shape", tuple(out.shape), str(shape))
    if out.dtype != dtype:
        refuse("decode_tiles", "out's dtype", out.dtype, str(dtype))
    if out.device.type != device.type:
        refuse("decode_tiles", "out's device", out.device, str(device))
    if not out.is_contiguous():
        refuse("decode_tiles", "out's strides", out.stride(), "those of a contiguous tensor")
    out_MIPK = out.unflatten(0, (len(timestamps_seconds), -1)) if out.shape[0] else out
    check_options(num_workers, time_limit_seconds)
    if not isinstance(video, Video):
        video = video_files.open(video, time_limit_seconds=time_limit_seconds, stop=stop)
    if device.type != "cpu":
        frames = video.frames(
            timestamps_seconds, device=device, num_workers=num_workers, time_limit_seconds=time_limit_seconds
        )
        return DecodedTiles(_tile_in_batches(frames, rgb_tiles, out_MIPK, stop), out)

    orientation = video.index.orientation
    stored_grid = (grid[1], grid[0]) if orientation.transpose else grid

    def tile(picture: Picture, m: int) -> bool:
        planes = picture.planes()
        if planes is None:
            tiles_IPK = rgb_tiles(picture.rgb_YX3()[None])
        else:
            tiles_IPK = tiles_of_planes(
                planes.y_YX[None],
                planes.u_HW[None],
                planes.v_HW[None],
                stored_grid,
                tiling,
                planes.matrix,
                planes.full_range,
                planes.chroma,
                num_threads=1,
            )
            if orientation != Orientation():
                _turn(tiles_IPK, out_MIPK[m], stored_grid, tiling, orientation)
                return True
        # By numpy: torch would start a pool of threads in each worker to copy a megabyte.
        out_MIPK[m].view(torch.uint8).numpy()[...] = tiles_IPK.view(torch.uint8).numpy()
        return True

    decoded = video.pictures(
        timestamps_seconds, tile, num_workers=num_workers, time_limit_seconds=time_limit_seconds, stop=stop
    )
    return DecodedTiles(tuple([time_seconds for time_seconds, _ in decoded]), out)


def _turn(tiles_IPK: Tensor, out_IPK: Tensor, grid: tuple[int, int], tiling: Tiling, orientation: Orientation) -> None:
    """Writes the tiles of a picture of `grid` as those of the picture turned: the grid, the patches of each tile and
    the pixels of each patch change alike, in one copy."""
    (cols, rows), patch_px = grid, tiling.kernel_patch_px
    patches = tiling.tile_px // patch_px
    numbers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tiles_IPK.element_size()]  # numpy has no bfloat16
    tiles, out = tiles_IPK.view(numbers).numpy(), out_IPK.view(numbers).numpy()
    for first, num_rows, num_cols in ((0, rows, cols), (rows * cols, 1, 1)):  # the thumbnail is a grid of its own
        end = first + num_rows * num_cols
        if end > len(tiles):
            return
        # row, col, row and col of a patch, channel, y, x
        turned = tiles[first:end].reshape(num_rows, num_cols, patches, patches, 3, patch_px, patch_px)
        if orientation.transpose:
            turned = turned.transpose(1, 0, 3, 2, 4, 6, 5)
        flips = (0, 2, 5) * orientation.flip_y + (1, 3, 6) * orientation.flip_x
        out[first:end].reshape(turned.shape)[...] = np.flip(turned, flips)


def _tile_in_batches(
    frames: Iterator[Frame], tiles: Callable[[Tensor], Tensor], out_MIPK: Tensor, stop: Event | None
) -> tuple[float, ...]:
    """Fills `out_MIPK`, frame by frame; their times. All on one device."""
    timestamps_seconds: list[float] = []
    while batch := list(islice(frames, FRAMES_AT_ONCE)):
        if stop is not None and stop.is_set():
            raise CancelledError
        first = len(timestamps_seconds)
        timestamps_seconds += [frame.timestamp_seconds for frame in batch]
        batch_IPK = tiles(torch.stack([frame.rgb_YX3 for frame in batch]))
        out_MIPK[first : len(timestamps_seconds)] = batch_IPK.unflatten(0, (len(batch), -1))
    return tuple(timestamps_seconds)
