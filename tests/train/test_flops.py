"""The meter's FLOPs are those that torch counts in linear layers, and those of pairs of tokens counted one by one."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eagle_kernels.linear_cross_entropy import linear_cross_entropy_ref
from eagle_model.batch import IGNORE_INDEX
from eagle_model.model import loss
from eagle_model.model.config import eagle2_5_8b, tiny
from eagle_model.model.eagle import build
from eagle_model.model.lora import LoraConfig, add_lora
from eagle_model.model.recompute import recomputed
from eagle_model.model.sizes import Sizes
from eagle_model.train.flops import FlopMeter, Flops
from tests.model.samples import document, pack, small_model, with_text

CFG = tiny(vocab_size=97, image_token_id=96)
FROZEN = {
    "all trained": (),
    "vision frozen": ("vision",),
    "the language model alone": ("vision", "connector"),
    "the connector alone": ("vision", "llm", "lm_head"),
    "the last layer alone": ("vision", "connector", "llm.embed_tokens", "llm.layers.0", "llm.layers.1", "lm_head"),
    "without embeddings": ("llm.embed_tokens", "lm_head"),
}
LORA = {
    "lora": LoraConfig(rank=4, targets=("q_proj", "v_proj", "down_proj"), modules_to_save=()),
    "lora everywhere": LoraConfig(rank=2, dropout=0.1, modules_to_save=("mlp1",)),
}


def model_of(case: str):
    cfg = CFG
    if case == "qwen3":
        cfg = with_text(CFG, model_type="qwen3", head_dim=16)
    elif case == "an earlier layer":
        cfg = replace(CFG, select_layer=-2)
    elif case == "tied":
        cfg = with_text(CFG, tie_word_embeddings=True)
    model = small_model(cfg)
    if case in LORA:
        add_lora(model, LORA[case])
    for name in FROZEN.get(case, ()):
        model.get_submodule(name).requires_grad_(False)
    for module in model.vision.unused:
        module.requires_grad_(False)
    return model


def random_pack(cfg, generator):
    def number(high: int) -> int:
        return int(torch.randint(0, high, (), generator=generator))

    num_documents = 1 + number(4)
    batch = pack([document(cfg, 1 + number(20), number(3), number(30), seed=number(99)) for _ in range(num_documents)])
    kept_T = torch.rand(batch.num_tokens, generator=generator) < 0.3
    return replace(batch, labels_T=torch.where(kept_T, batch.labels_T, IGNORE_INDEX))


def attention_flops(model, batch, *, num_backward: dict[str, int], again: bool) -> int:
    """By a look at every pair of rows. num_backward: layers of each tower that gradients reach."""
    document_T = torch.repeat_interleave(batch.cu_seqlens.diff().long())
    see_TT = (document_T[:, None] == document_T) & (torch.ones(batch.num_tokens, batch.num_tokens).tril() > 0)
    tile_R = torch.arange(len(batch.patches_IPK)).repeat_interleave(model.vision.num_patches)
    text, vision = model.cfg.text, model.cfg.vision
    total = 0
    for tower, see, width, num_layers in (
        ("vision", tile_R[:, None] == tile_R, vision.hidden_size, model.vision.num_layers_run),
        ("text", see_TT, text.num_attention_heads * text.head_dim, text.num_hidden_layers),
    ):
        num_products = 2 * num_layers + num_backward[tower] * (5 + 2 * again)  # 5: the scores once more, four gradients
        total += 2 * int(see.sum()) * width * num_products
    return total


@pytest.mark.parametrize(
    ("case", "again", "num_packs"),
    [
        *((case, False, 4) for case in (*FROZEN, *LORA, "qwen3", "an earlier layer", "tied")),
        *((case, True, 2) for case in ("all trained", "vision frozen", *LORA)),
    ],
)
def test_a_step_s_flops(case, again, num_packs, monkeypatch):
    """Of 52 random packs. FlopCounterMode sees no attention on a CPU, and not into the loss, here plain torch's."""

    def plain(hidden_TD, weight_VD, labels_T, token_weights_T, **_):
        kept_T = labels_T != IGNORE_INDEX
        out = linear_cross_entropy_ref(hidden_TD[kept_T], weight_VD, labels_T[kept_T], token_weights_T[kept_T])
        return out, None

    monkeypatch.setattr(loss, "linear_cross_entropy", plain)
    generator = torch.Generator().manual_seed(0)
    model = model_of(case)
    meter = FlopMeter(model, activations="block" if again else "none")
    for _ in range(num_packs):
        batch = random_pack(model.cfg, generator)
        has_tiles = len(batch.patches_IPK) > 0
        with FlopCounterMode(display=False) as counter:
            out = model(
                batch, loss.sqrt_mass(batch.labels_T, batch.cu_seqlens), run_layer=recomputed if again else None
            )
            if out.requires_grad:
                out.backward()
        flops = meter.step([batch])
        num_backward = {
            "vision": model.vision.num_layers_run * any(p.requires_grad for p in model.vision.parameters()),
            "text": {"the connector alone": 3 * has_tiles, "the last layer alone": 1}.get(case, 3),
        }
        want = counter.get_total_flops() + attention_flops(model, batch, num_backward=num_backward, again=again)
        assert flops.model + flops.recomputed == pytest.approx(want, rel=0.005)


def test_rows_add_up():
    meter = FlopMeter(model_of("all trained"))
    generator = torch.Generator().manual_seed(1)
    rows = [random_pack(CFG, generator) for _ in range(3)]
    assert meter.step(rows) == meter.step(rows[:1]) + meter.step(rows[1:])
    assert meter.step([]) == Flops()
    assert meter.step(rows).model == meter.step(rows).forward + meter.step(rows).backward


def test_the_forward_is_that_of_sizes():
    """Which count biases and norms too, and the head for every token."""
    model = build(eagle2_5_8b())
    sizes, meter = Sizes.of(model.cfg), FlopMeter(model)
    one_tile = meter.row(num_tiles=1, document_lengths=[], num_labelled=0).forward
    assert one_tile == pytest.approx(
        sizes.tile_flops + sizes.tile_attention_flops + sizes.tile_connector_flops, rel=1e-3
    )
    row = meter.row(num_tiles=0, document_lengths=[32_768], num_labelled=32_768)
    assert row.forward == pytest.approx(32_768 * sizes.token_flops + sizes.causal_attention_flops(32_768), rel=1e-3)
    assert row.backward == 2 * row.forward
    apart = meter.row(num_tiles=0, document_lengths=[1024] * 32, num_labelled=32_768)
    assert row.forward - apart.forward == sizes.causal_attention_flops(32_768) - 32 * sizes.causal_attention_flops(1024)


def test_what_is_kept_is_not_computed_again():
    model, row = model_of("all trained"), {"num_tiles": 2, "document_lengths": [40, 7], "num_labelled": 9}
    none, block, selective, offload = (
        FlopMeter(model, activations=kept).row(**row) for kept in ("none", "block", "selective", "offload")
    )
    assert none.model == block.model == selective.model
    assert none.recomputed < selective.recomputed < block.recomputed == offload.recomputed
    attention = 2 * 2 * (2 * 16 * 16 * 64 * 2 + (40 * 41 // 2 + 7 * 8 // 2) * 128 * 3)  # two products
    assert block.recomputed - selective.recomputed == attention
    assert none.recomputed == attention // 2  # of which one is done again in any case
