"""VisionEncoder against transformers' SiglipVisionModel with the same random weights, in fp32."""

from dataclasses import replace

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from eagle_model.model.config import EagleConfig, tiny
from eagle_model.model.vision import VisionEncoder, resize_position_table
from eagle_model.model.weights import released, rules
from tests.model.samples import randomise, with_vision

BASE = tiny(vocab_size=9, image_token_id=8, tile_px=56, patch_px=14)
SIZES = {
    "tiny": BASE,
    "head_dim 72": with_vision(BASE, hidden_size=144, num_attention_heads=2, num_hidden_layers=3),
    "patch 7": tiny(vocab_size=9, image_token_id=8),
    "patch 16": tiny(vocab_size=9, image_token_id=8, tile_px=64, patch_px=16),
    "15 x 15 patches": with_vision(replace(BASE, use_pixel_shuffle=False), tile_px=30, patch_px=2),
}


def encoder(cfg: EagleConfig) -> VisionEncoder:
    torch.manual_seed(1)
    ours = VisionEncoder(cfg)
    randomise(ours, std=0.05)  # activations of a few units, as in a trained encoder: 1e-5 is 20 ulp of them
    return ours


def theirs_like(ours: VisionEncoder) -> SiglipVisionModel:
    """transformers 5 drops one `vision_model.` of transformers 4's names; the rest is equal."""
    cfg = ours.cfg
    theirs = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=cfg.hidden_size,
            intermediate_size=cfg.intermediate_size,
            num_hidden_layers=cfg.num_hidden_layers,
            num_attention_heads=cfg.num_attention_heads,
            image_size=cfg.tile_px,
            patch_size=cfg.patch_px,
            vision_use_head=False,
            attn_implementation="eager",
        )
    )
    theirs.load_state_dict(under_their_names(ours, ours.state_dict()), strict=True)
    return theirs.eval()


def under_their_names(ours: VisionEncoder, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = rules(replace(BASE, vision=ours.cfg, use_pixel_shuffle=False))
    theirs = released({f"vision.{name}": tensor for name, tensor in tensors.items()}, names)
    return {key.removeprefix("vision_model.vision_model."): tensor for key, tensor in theirs.items()}


def tiles_and_patches(cfg: EagleConfig, num_tiles: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(I, 3, tile, tile) and the same pixels cut into row-major patches whose values are ordered (channel, y, x)."""
    size, side = cfg.vision.tile_px, cfg.vision.tile_px // cfg.vision.patch_px
    tiles = torch.rand(num_tiles, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1  # as pixels are
    patches = tiles.unflatten(3, (side, -1)).unflatten(2, (side, -1))  # I, channel, row, y, column, x
    return tiles, patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("select_layer", [-1, -2, 1, 0])
def test_equals_siglip(name, select_layer):
    cfg = replace(SIZES[name], select_layer=select_layer)
    ours = encoder(cfg)
    tiles, patches = tiles_and_patches(cfg, 3)
    with torch.no_grad():
        result = theirs_like(ours)(tiles, output_hidden_states=True)
        out = ours(patches)
    want = result.last_hidden_state if select_layer == -1 else result.hidden_states[select_layer]
    assert out.shape == (3, cfg.vision.num_patches, cfg.vision.hidden_size)
    assert (out - want).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["tiny", "head_dim 72"])
def test_gradients_equal_siglip(name):
    cfg = SIZES[name]
    ours = encoder(cfg)
    theirs = theirs_like(ours)
    tiles, patches = tiles_and_patches(cfg, 2)
    dout = torch.randn(2, cfg.vision.num_patches, cfg.vision.hidden_size, generator=torch.Generator().manual_seed(3))
    ours(patches).backward(dout)
    theirs(tiles).last_hidden_state.backward(dout)
    their_grads = {key: p.grad for key, p in theirs.named_parameters()}
    our_grads = under_their_names(ours, {name: p.grad for name, p in ours.named_parameters()})
    assert our_grads.keys() == their_grads.keys()
    for key, want in their_grads.items():
        error = (our_grads[key] - want).abs().max()
        assert error <= 1e-5 * (1 + want.abs().max()), (key, error)  # a key bias has no gradient but rounding


def test_tiles_do_not_see_each_other():
    ours = encoder(BASE)
    _, patches = tiles_and_patches(BASE, 3)
    changed = patches.clone()
    changed[1] += 1
    with torch.no_grad():
        before, after, alone = ours(patches), ours(changed), ours(patches[2:])
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])
    assert (before[2:] - alone).abs().max() < 1e-6


def test_no_tiles():
    ours = encoder(BASE)
    out = ours(torch.zeros(0, BASE.vision.num_patches, BASE.vision.num_patch_values))
    assert out.shape == (0, BASE.vision.num_patches, BASE.vision.hidden_size)


def test_pixels_take_the_parameters_dtype():
    ours = encoder(BASE)
    _, patches = tiles_and_patches(BASE, 1)
    half = patches.bfloat16()
    with torch.no_grad():
        assert torch.equal(ours(half), ours(half.float()))
        assert ours.bfloat16()(patches).dtype == torch.bfloat16


def test_a_resized_position_table_is_torchs_bicubic():
    """27 x 27 -> 32 x 32, as SigLIP2 at 384 px becomes Eagle's at 448; without antialiasing."""
    table = torch.randn(729, 6, generator=torch.Generator().manual_seed(4))
    want = torch.nn.functional.interpolate(table.T.reshape(1, 6, 27, 27), size=(32, 32), mode="bicubic")
    resized = resize_position_table(table, 1024)
    torch.testing.assert_close(resized, want.reshape(6, 1024).T, rtol=0, atol=1e-6)
    assert resized.is_contiguous()
    assert resize_position_table(table, 729) is table
    constant = torch.full((729, 2), 0.3, dtype=torch.bfloat16)
    assert torch.equal(resize_position_table(constant, 1024), torch.full((1024, 2), 0.3, dtype=torch.bfloat16))
    for rows, num_patches in ((729, 1000), (730, 1024), (0, 4)):
        with pytest.raises(ValueError, match=r"positions make no square; needs 729 = 27 x 27"):
            resize_position_table(torch.zeros(rows, 2), num_patches)


@pytest.mark.parametrize("shape", [(1, 9, 588), (1, 16, 147)])
def test_refuses_other_patches(shape):
    with pytest.raises(ValueError, match=r"needs \(tiles, 16, 588\): tiles of 56 px in patches of 14 px"):
        encoder(BASE)(torch.zeros(shape))


def test_attention_backend_reaches_the_op():
    """On a CPU the op refuses flash-attn, by name: nothing else is taken in its place."""
    ours = VisionEncoder(replace(BASE, attention_backend="flash_attn"))
    with pytest.raises(ValueError, match="q's device is cpu; needs a CUDA device for backend='flash_attn'"):
        ours(torch.zeros(1, BASE.vision.num_patches, BASE.vision.num_patch_values))


def test_layers_that_are_not_run_are_not_trained():
    """They stay in the file; without a gradient AdamW would only let them decay."""
    cfg = replace(tiny(vocab_size=97, image_token_id=96), select_layer=-2)
    encoder = VisionEncoder(cfg)
    names = {name for name, module in encoder.named_modules() if module in encoder.unused}
    assert names == {"layers.1", "post_layernorm"}
    assert not VisionEncoder(replace(cfg, select_layer=-1)).unused
