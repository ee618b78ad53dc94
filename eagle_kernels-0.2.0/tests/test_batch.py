"""A batch moves as a whole; only its pixels change their dtype."""

import pytest
import torch

from eagle_model.batch import PackedBatch, tile_range


def test_to_casts_pixels_alone():
    batch = PackedBatch(
        token_ids_T=torch.arange(5),
        labels_T=torch.arange(5),
        positions_T=torch.arange(5, dtype=torch.int32),
        cu_seqlens=torch.tensor([0, 5], dtype=torch.int32),
        patches_IPK=torch.rand(1, 4, 12),
        visual_rows_N=torch.tensor([2]),
        sample_ids=("a",),
    )
    assert batch.num_tokens == 5
    moved = batch.to("cpu", dtype=torch.bfloat16)
    assert torch.equal(moved.patches_IPK, batch.patches_IPK.bfloat16())
    assert batch.to("cpu").patches_IPK.dtype == torch.float32
    for name in ("token_ids_T", "labels_T", "positions_T", "cu_seqlens", "visual_rows_N"):
        assert getattr(moved, name).dtype == getattr(batch, name).dtype
        assert torch.equal(getattr(moved, name), getattr(batch, name))
    assert moved.sample_ids == ("a",)


@pytest.mark.parametrize(("num_tiles", "num_ranks"), [(0, 3), (2, 4), (5, 2), (16, 4), (17, 16)])
def test_tiles_are_shared_out_evenly(num_tiles: int, num_ranks: int) -> None:
    ranges = [tile_range(num_tiles, rank, num_ranks) for rank in range(num_ranks)]
    assert [i for first, end in ranges for i in range(first, end)] == list(range(num_tiles))
    sizes = [end - first for first, end in ranges]
    assert max(sizes) - min(sizes) <= 1


def test_tile_range_refuses_what_cannot_be() -> None:
    for num_tiles, rank, num_ranks in ((3, 2, 2), (3, -1, 2), (-1, 0, 2)):
        with pytest.raises(ValueError, match=f"got {num_tiles} tiles and rank {rank} of {num_ranks}"):
            tile_range(num_tiles, rank, num_ranks)
