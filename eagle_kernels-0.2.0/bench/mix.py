"""A mix of samples as long-context post-training sees them, seeded, for benches and tests of packing.

    tokens_N, tiles_N, decode_seconds_N = mixed_samples(10_000, context_tokens=32_768)

40 % text, log-normal around 800 tokens; 30 % single images of many sizes, tiles chosen by Image Area Preservation; 30 %
videos of 10 s to an hour at 2 frames a second, cut to the context as ADS does, each frame a tile.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eagle_model.data.tiling import choose_grid

TOKENS_PER_TILE, MAX_TILES, TILE_PX = 256, 12, 448
SHARES = (0.4, 0.3, 0.3)  # text, images, videos
DECODE_SECONDS_A_TILE = (0.008, 0.02)  # of an image, a frame: one core, about


def mixed_samples(
    num_samples: int, context_tokens: int, *, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Tokens, tiles and estimated decode seconds of each sample."""
    rng = np.random.RandomState(seed)
    kind = rng.choice(3, size=num_samples, p=SHARES)
    text = np.clip(rng.lognormal(np.log(800), 1.0, size=num_samples).astype(np.int64), 16, context_tokens)
    sides = np.exp(rng.uniform(np.log(224), np.log(3840), size=(256, 2))).astype(int)  # sizes of pictures there are
    grids = [choose_grid(int(w), int(h), tile_px=TILE_PX, max_tiles=MAX_TILES) for w, h in sides]
    tiles_of_picture = np.array([grid.cols * grid.rows + (grid.cols * grid.rows > 1) for grid in grids])
    frames = (2 * np.exp(rng.uniform(np.log(10), np.log(3600), size=num_samples))).astype(np.int64)
    caption = rng.randint(40, 400, size=num_samples)
    per_frame = TOKENS_PER_TILE + 12  # its time in words
    frames = np.minimum(frames, (context_tokens - caption) // per_frame)
    picture = tiles_of_picture[rng.randint(len(sides), size=num_samples)]
    tiles = np.choose(kind, [np.zeros_like(frames), picture, frames])
    tokens = np.choose(kind, [text, caption + TOKENS_PER_TILE * picture, caption + per_frame * frames])
    seconds = np.choose(kind, [0.0, *(np.float64(s) for s in DECODE_SECONDS_A_TILE)]) * tiles
    return tokens, tiles, seconds.astype(np.float32)
