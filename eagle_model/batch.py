"""PackedBatch: the one place where data and model meet. One row of documents, end to end, without padding.

    batch = processor(messages).to("cuda")                         # of one document
    loss = model(batch, sqrt_mass(batch.labels_T, batch.cu_seqlens))

Where several ranks share a row, each has all of its numbers and the pixels of its own tiles: `tile_range`.

Dims    T tokens of the row, S documents, I tiles, P patches a tile, K = 3 * patch_px**2, N visual tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

IGNORE_INDEX = -100  # a position that no label supervises


def tile_range(num_tiles: int, rank: int, num_ranks: int) -> tuple[int, int]:
    """First and end of the tiles that a rank encodes where `num_ranks` share a row: neighbours, numbers within 1.

        tile_range(5, 0, 2), tile_range(5, 1, 2)  # (0, 3), (3, 5)

    Raises ValueError unless 0 <= rank < num_ranks and num_tiles >= 0.
    """
    if not (0 <= rank < num_ranks and num_tiles >= 0):
        raise ValueError(
            f"tile_range: got {num_tiles} tiles and rank {rank} of {num_ranks}; needs tiles >= 0 and a rank from 0 to "
            f"{num_ranks - 1}."
        )
    each, rest = divmod(num_tiles, num_ranks)
    first = rank * each + min(rank, rest)
    return first, first + each + (rank < rest)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedBatch:
    """One packed row of documents, without padding: all that the model takes."""

    token_ids_T: Tensor  # int64
    labels_T: Tensor  # int64: the token that follows in the same document where supervised, else IGNORE_INDEX
    positions_T: Tensor  # int32, from 0 in each document
    cu_seqlens: Tensor  # int32 (S + 1): document s is rows cu_seqlens[s] to cu_seqlens[s + 1]
    patches_IPK: Tensor  # normalised pixels, patch-major (frames_to_tiles); I may be 0
    visual_rows_N: Tensor  # int64: the rows that visual tokens take, in tile order
    sample_ids: tuple[str, ...]  # one a document, for messages and metrics
    num_labelled: int | None = None  # of labels_T, where it is known without asking a GPU
    datasets: tuple[str, ...] = ()  # one a document: the recipe's source that it is of; () where nobody says
    num_reduced: int = 0  # documents that show fewer frames or tiles than they might, for want of context
    num_not_in_proxies: int = 0  # frames that were read from an original, though the run has proxies
    tiles: tuple[int, int] | None = None  # first and end of the row's tiles that patches_IPK holds; None: all of them

    @property
    def num_tokens(self) -> int:
        return self.token_ids_T.numel()

    def to(self, device: torch.device | str, *, dtype: torch.dtype | None = None) -> PackedBatch:
        """The same batch on `device`; pixels also cast to `dtype` where one is given."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in moved.items()}
        if dtype is not None:
            moved["patches_IPK"] = moved["patches_IPK"].to(dtype)
        return PackedBatch(**moved)
