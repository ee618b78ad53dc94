"""Visual tokens of tiles: loaded ahead in threads, encoded once, and kept by what they show.

    encoded = Encoded(capacity_tiles=512, num_threads=2)
    loader = encoded.loader(prompt, root=b"")
    loader.num_ready(first_tile, end_tile)         # how many can be had at once; starts to load what is not there
    loader.tokens(model, first_tile, end_tile)     # (tiles, Q, D): those that nobody kept, the vision tower sees now

Dims     I tiles, P patches a tile, K numbers a patch, Q tokens a tile, D width of the language model.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from eagle_model.infer.prompts import Prompt
from eagle_model.model.eagle import Eagle

PIECE_TILES = 16  # decoded at once: 20 MB of pixels; two pieces of a request are in memory


class Encoded:
    """Visual tokens by tile, those used longest ago forgotten first."""

    def __init__(self, *, capacity_tiles: int, num_threads: int = 2) -> None:
        self._capacity = capacity_tiles
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="tiles")
        self.num_encoded = 0  # tiles that the vision tower saw

    def loader(self, prompt: Prompt, *, root: bytes) -> Loader:
        """root: what visual tokens depend on beside the pixels, as an adapter."""
        return Loader(self, prompt, [root + digest for digest in prompt.tile_digests])

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def get(self, key: bytes) -> Tensor | None:
        if (found := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
        return found

    def put(self, key: bytes, tokens_QD: Tensor) -> None:
        self.num_encoded += 1
        self._kept[key] = tokens_QD
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)

    def has(self, key: bytes) -> bool:
        return key in self._kept

    def submit(self, prompt: Prompt, first: int, end: int) -> Future[Tensor]:
        return self._pool.submit(prompt.load, first, end)


class Loader:
    """The tiles of one request."""

    def __init__(self, encoded: Encoded, prompt: Prompt, keys: list[bytes]) -> None:
        self._encoded, self._prompt, self._keys = encoded, prompt, keys
        self._pieces: dict[int, Future[Tensor]] = {}

    def num_ready(self, first: int, end: int) -> int:
        """How many tiles from `first` on, up to `end`, are kept or their pixels loaded; the next are on their way."""
        for number in [number for number in self._pieces if number < first // PIECE_TILES]:
            self._pieces.pop(number).cancel()
        for tile in range(first, end):
            if self._encoded.has(self._keys[tile]):
                continue
            piece = self._piece(tile // PIECE_TILES)
            if not piece.done():
                return tile - first
        return end - first

    def wait(self, tile: int) -> None:
        """Until a tile's pixels are loaded, or failed to."""
        self._piece(tile // PIECE_TILES).exception()

    def error(self, first: int, end: int) -> Exception | None:
        """Why pixels of tiles that are not kept could not be loaded; waits for them. None: they are there."""
        for tile in range(first, end):
            if not self._encoded.has(self._keys[tile]):
                error = self._piece(tile // PIECE_TILES).exception()
                if isinstance(error, Exception):
                    return error
        return None

    def tokens(self, model: Eagle, first: int, end: int) -> Tensor:
        """(tiles, Q, D). Waits where pixels are not there. Raises DataError where a file cannot be decoded."""
        kept = {tile: self._encoded.get(self._keys[tile]) for tile in range(first, end)}
        found = {tile: tokens_QD for tile, tokens_QD in kept.items() if tokens_QD is not None}
        if missing := [tile for tile in kept if tile not in found]:
            weight = next(model.vision.parameters())
            patches = [self._piece(tile // PIECE_TILES).result()[tile % PIECE_TILES] for tile in missing]
            patches_IPK = torch.stack(patches).to(weight.device, weight.dtype)
            encoded_IQD = model.encode_tiles(patches_IPK).unflatten(0, (len(missing), -1))
            for tile, tokens_QD in zip(missing, encoded_IQD, strict=True):
                found[tile] = tokens_QD.clone()  # a view would keep all of them in memory
                self._encoded.put(self._keys[tile], found[tile])
        return torch.stack([found[tile] for tile in range(first, end)])

    def close(self) -> None:
        for piece in self._pieces.values():
            piece.cancel()
        self._pieces.clear()

    def _piece(self, number: int) -> Future[Tensor]:
        for ahead in (number, number + 1):
            first, end = ahead * PIECE_TILES, min((ahead + 1) * PIECE_TILES, len(self._keys))
            is_needed = ahead == number or not all(map(self._encoded.has, self._keys[first:end]))
            if first < end and ahead not in self._pieces and is_needed:
                self._pieces[ahead] = self._encoded.submit(self._prompt, first, end)
        return self._pieces[number]
