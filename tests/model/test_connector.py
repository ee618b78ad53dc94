"""Connector against the released nn.Sequential after the released pixel shuffle."""

import torch
from torch import nn

from eagle_kernels.merge_2x2 import merge_2x2
from eagle_model.model.config import tiny
from eagle_model.model.connector import Connector
from tests.model.samples import randomise

CFG = tiny(vocab_size=9, image_token_id=8)


def pixel_shuffle(patches_IPC: torch.Tensor) -> torch.Tensor:
    """The released arrangement, step by step: two views and two transpositions."""
    num_tiles, num_patches, width = patches_IPC.shape
    side = int(num_patches**0.5)
    x = patches_IPC.view(num_tiles, side, side // 2, 2 * width).permute(0, 2, 1, 3).contiguous()
    x = x.view(num_tiles, side // 2, side // 2, 4 * width).permute(0, 2, 1, 3)
    return x.flatten(1, 2)


def test_pixel_shuffle_golden():
    grid = torch.arange(16.0).view(1, 16, 1)
    want = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert merge_2x2(grid)[0].tolist() == want
    assert pixel_shuffle(grid)[0].tolist() == want


def test_equals_sequential():
    torch.manual_seed(0)
    ours = Connector(CFG)
    randomise(ours)
    width = 4 * CFG.vision.hidden_size
    theirs = nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, CFG.text.hidden_size), nn.GELU(),
        nn.Linear(CFG.text.hidden_size, CFG.text.hidden_size),
    )  # fmt: skip
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    patches = torch.randn(3, CFG.vision.num_patches, CFG.vision.hidden_size)
    with torch.no_grad():
        out, want = ours(patches), theirs(pixel_shuffle(patches))
    assert out.shape == (3, CFG.tokens_per_tile, CFG.text.hidden_size)
    # 1e-6 of a unit: the weights here give outputs of several units
    assert (out - want).abs().max() <= 1e-6 * max(1.0, want.abs().max().item())
    assert ours(patches[:0]).shape == (0, CFG.tokens_per_tile, CFG.text.hidden_size)
