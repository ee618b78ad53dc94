"""Connector against the released nn.Sequential after the released pixel shuffle."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from eagle_kernels.merge_2x2 import merge_2x2
from eagle_model.model.config import EagleConfig, tiny
from eagle_model.model.connector import Connector
from eagle_model.model.weights import released, rules
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


def theirs_like(ours: Connector, cfg: EagleConfig) -> nn.Sequential:
    """The released nn.Sequential, by its own names: `mlp1.0`, ..."""
    width, text_width = cfg.patches_per_token * cfg.vision.hidden_size, cfg.text.hidden_size
    if cfg.mlp_connector_layers == 1:
        theirs = nn.Sequential(nn.Linear(width, text_width))
    else:
        theirs = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, text_width), nn.GELU(), nn.Linear(text_width, text_width)
        )
    parameters = {f"connector.{name}": tensor for name, tensor in ours.named_parameters()}
    theirs.load_state_dict({key.removeprefix("mlp1."): t for key, t in released(parameters, rules(cfg)).items()})
    return theirs


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("merges", [False, True])
def test_equals_sequential(layers, merges):
    cfg = replace(CFG, mlp_connector_layers=layers, use_pixel_shuffle=merges)
    torch.manual_seed(0)
    ours = Connector(cfg)
    randomise(ours)
    theirs = theirs_like(ours, cfg)
    patches = torch.randn(3, cfg.vision.num_patches, cfg.vision.hidden_size)
    out, want = ours(patches), theirs(pixel_shuffle(patches) if merges else patches)
    assert out.shape == (3, cfg.tokens_per_tile, cfg.text.hidden_size)
    # 1e-6 of a unit: the weights here give outputs of several units
    assert (out - want).abs().max() <= 1e-6 * max(1.0, want.abs().max().item())
    assert ours(patches[:0]).shape == (0, cfg.tokens_per_tile, cfg.text.hidden_size)
    dout = torch.randn_like(out)
    out.backward(dout)
    want.backward(dout)
    for parameter, theirs_parameter in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, theirs_parameter.grad, rtol=1e-5, atol=1e-5)
