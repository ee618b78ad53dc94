"""A batch moves as a whole; only its pixels change their dtype."""

import torch

from eagle_model.batch import PackedBatch


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
