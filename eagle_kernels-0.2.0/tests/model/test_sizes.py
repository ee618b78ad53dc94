"""Sizes: the released model's own numbers, and counts by torch's modules."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from eagle_model.model.config import PRESETS, eagle2_5_8b, tiny
from eagle_model.model.eagle import build
from eagle_model.model.sizes import Sizes
from tests.model.samples import document, with_text

QWEN2_5_7B = with_text(eagle2_5_8b(), vocab_size=152_064)  # before Eagle's tokens are added


def test_eagle2_5_8b():
    """With Qwen2.5's own vocabulary, as its numbers are published."""
    sizes = Sizes.of(QWEN2_5_7B)
    assert (sizes.vision, sizes.connector) == (413_327_088, 29_376_512)
    assert sizes.decoder + sizes.lm_head == 7_615_616_512
    assert sizes.lm_head == 544_997_376
    assert sizes.decoder - sizes.lm_head == 6_525_621_760
    assert round(sizes.total / 1e9, 2) == 8.06
    assert round(sizes.tile_flops / 1e12, 3) == 0.844
    assert round(sizes.tile_attention_flops / 1e12, 3) == 0.130
    assert round(sizes.token_flops / 1e9, 2) == 14.14
    assert round(sizes.causal_attention_flops(32_768) / 1e12, 1) == 215.5
    assert sizes.kv_bytes == 57_344
    assert sizes.kv_bytes * 131_072 == 7 * 2**30
    assert Sizes.of(eagle2_5_8b()).decoder + Sizes.of(eagle2_5_8b()).lm_head == 7_612_820_992


def test_lines_of_eagle2_5_8b():
    assert Sizes.of(eagle2_5_8b()).lines() == [
        "vision         413,327,088 parameters   27 layers, 1152 wide, 16 heads of 72",
        "connector       29,376,512 parameters   4608 -> 3584",
        "decoder      7,069,221,376 parameters   qwen2, 28 layers, 3584 wide, 28 heads of 128, 4 of keys",
        "lm_head        543,599,616 parameters   151674 tokens",
        "total        8,055,524,592 parameters   16.11 GB in bf16",
        "a tile    0.844 TFLOP, 0.130 of attention, 0.015 of the connector   448 px, 1024 patches, 256 tokens",
        "a token   14.14 GFLOP, and 215.5 TFLOP of attention in 32768 tokens",
        "a cache   57344 bytes a token in bf16, 7.00 GiB in 131072 tokens",
    ]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_one_signature_and_the_parameters_of_their_model(name):
    cfg = PRESETS[name](vocab_size=151_674, image_token_id=5, tile_px=56, patch_px=14)
    assert (cfg.text.vocab_size, cfg.image_token_id, cfg.tokens_per_tile) == (151_674, 5, 4)
    model, sizes = build(cfg), Sizes.of(cfg)

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert (sizes.vision, sizes.connector, sizes.decoder) == tuple(
        count(module) for module in (model.vision, model.connector, model.llm)
    )
    assert sizes.lm_head == (0 if cfg.text.tie_word_embeddings else count(model.lm_head))
    assert sizes.total == cfg.num_parameters
    assert "the embeddings" in sizes.lines()[3] or not cfg.text.tie_word_embeddings


def linear(counter: FlopCounterMode) -> int:
    return sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op) and "bmm" not in str(op))


@pytest.mark.parametrize("select_layer", [-1, -2, 1])
def test_flops_are_torchs_count(select_layer):
    """Of linear layers, but for biases and norms, which are no products of matrices: some percent in narrow layers."""
    cfg = replace(with_text(tiny(), model_type="qwen3", head_dim=16), select_layer=select_layer)
    model, sizes, batch = build(cfg, "cpu"), Sizes.of(cfg), document(cfg, 5, 2, 3, seed=0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.vision(batch.patches_IPK)
    assert 0.95 * 2 * sizes.tile_flops < linear(counter) <= 2 * sizes.tile_flops
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.connector(torch.zeros(2, cfg.vision.num_patches, cfg.vision.hidden_size))
    assert 0.97 * 2 * sizes.tile_connector_flops < linear(counter) <= 2 * sizes.tile_connector_flops
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.lm_head(model.hidden(document(cfg, 300, 0, 0, seed=0)))
    assert 0.99 * 300 * sizes.token_flops < linear(counter) <= 300 * sizes.token_flops
