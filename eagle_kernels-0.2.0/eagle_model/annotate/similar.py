"""Which clips are new: exact search by blocks, in bounded memory, over features of unit length.

    cosines_N = largest_cosines(pool_ND, [reference_MD])         # of each clip of the pool, to its nearest
    again_N = repeats(pool_ND, video_of_N, threshold=0.95)       # clips like an earlier one of another video
    print("\\n".join(calibration(cosines_N)))

Dims    N clips of the pool, M of the reference, D width of the features, B rows of a block. Arrays may lie on disk
        (np.load with mmap_mode): two blocks and their products are in memory, 4 B (2 D + B) bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

BLOCK_ROWS = 4096  # 64 MiB of products: larger is no faster on a CPU
_STEPS = 20  # of the histogram, from -0.0 to 1.0


class Joined:
    """Arrays, one after the other, that are sliced without being joined: (N, D)."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays, self._ends = arrays, np.cumsum([0, *map(len, arrays)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right") - 1
        pieces = [self._arrays[i][max(0, start - self._ends[i]) : stop - self._ends[i]] for i in range(first, last + 1)]
        return np.concatenate(pieces)


def largest_cosines(
    pool_ND: np.ndarray | Joined, references: Sequence[np.ndarray], *, block_rows: int = BLOCK_ROWS
) -> np.ndarray:
    """(N,) float32: each clip's largest cosine to any of the references, -1 where there is none."""
    found = np.full(len(pool_ND), -1.0, np.float32)
    for start in range(0, len(pool_ND), block_rows):
        pool_BD = _block(pool_ND, start, block_rows)
        for reference_MD in references:
            for other in range(0, len(reference_MD), block_rows):
                products_BB = pool_BD @ _block(reference_MD, other, block_rows).T
                most_B = products_BB.amax(1).numpy()
                np.maximum(found[start : start + block_rows], most_B, out=found[start : start + block_rows])
    return found


def repeats(
    pool_ND: np.ndarray | Joined, video_of_N: np.ndarray, *, threshold: float, block_rows: int = BLOCK_ROWS
) -> np.ndarray:
    """(N,) bool: clips whose cosine to an earlier one, that is no repeat itself and of another video, is `threshold`
    or more. A video's own clips resemble each other, and stay."""
    again = np.zeros(len(pool_ND), bool)
    for start in range(0, len(pool_ND), block_rows):
        pool_BD, video_B = _block(pool_ND, start, block_rows), video_of_N[start : start + block_rows]
        for other in range(0, start, block_rows):
            stays = ~again[other : other + block_rows]
            alike = (pool_BD @ _block(pool_ND, other, block_rows)[torch.from_numpy(stays)].T >= threshold).numpy()
            alike &= video_B[:, None] != video_of_N[other : other + block_rows][stays][None]
            again[start : start + block_rows] |= alike.any(1)
        alike = (pool_BD @ pool_BD.T >= threshold).numpy() & (video_B[:, None] != video_B[None])
        for i in np.flatnonzero(np.tril(alike, -1).any(1)):  # few: one after the other, since one gone spares the next
            again[start + i] |= bool((alike[i, :i] & ~again[start : start + i]).any())
    return again


def calibration(cosines_N: np.ndarray, *, threshold: float | None = None) -> list[str]:
    """A histogram of the largest cosines, with the share of clips that a threshold at each step keeps."""
    lines = [f"largest cosine to the reference, {len(cosines_N):,} clips", "  below   kept  clips"]
    counts, edges = np.histogram(cosines_N.clip(0, 1), bins=_STEPS, range=(0.0, 1.0))
    kept, most = np.cumsum(counts) / max(1, len(cosines_N)), max(1, counts.max())
    for count, edge, share in zip(counts, edges[1:], kept):
        here = " <- threshold" if threshold is not None and abs(edge - threshold) < 0.5 / _STEPS else ""
        lines.append(f"  {edge:5.2f}  {share:5.1%}  {'#' * round(30 * count / most)}{here}")
    return lines


def _block(array: np.ndarray | Joined, start: int, num_rows: int) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array[start : start + num_rows], np.float32).copy())
