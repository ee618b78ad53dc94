"""Decoder and output head against transformers' classes of the same families and random weights, in fp32."""

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from eagle_model.model.config import EagleConfig, tiny
from eagle_model.model.eagle import Eagle
from eagle_model.model.llm import Rotary, document_lengths
from eagle_model.model.rope_scaling import RopeScaling
from eagle_model.model.weights import released, rules
from tests.model.samples import document, mixed_documents, pack, small_model, with_text

BASE = tiny(vocab_size=97, image_token_id=96)
QWEN3 = with_text(BASE, model_type="qwen3", head_dim=16)
LLAMA = with_text(BASE, model_type="llama")
SIZES = {
    "GQA 4:2": BASE,
    "GQA 7:1, head_dim 16": with_text(BASE, hidden_size=112, num_attention_heads=7, num_key_value_heads=1, head_dim=16),
    "no GQA, theta 1e6": with_text(BASE, num_key_value_heads=4, rope_theta=1e6),
    "tied": with_text(BASE, tie_word_embeddings=True),
    "Qwen3, own head_dim": QWEN3,
    "Qwen3, biases, tied": with_text(QWEN3, attention_bias=True, head_dim=40, tie_word_embeddings=True),
    "Llama": LLAMA,
    "Llama, biases": with_text(LLAMA, attention_bias=True, mlp_bias=True, head_dim=24),
}
LENGTH = 8  # tokens that the model was trained on: documents are shorter and longer
SCALINGS = {
    "linear": RopeScaling(rope_type="linear", factor=2.5),
    "dynamic": RopeScaling(rope_type="dynamic", factor=4.0),
    "yarn": RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=4 * LENGTH),
    "llama3": RopeScaling(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=LENGTH,
    ),
}  # fmt: skip
SCALED = {
    f"{kind}, {name}": with_text(base, rope_scaling=scaling, max_position_embeddings=LENGTH)
    for name, base in {"Qwen2": BASE, "Qwen3": QWEN3, "Llama": LLAMA}.items()
    for kind, scaling in SCALINGS.items()
}
CLASSES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


def theirs_like(ours: Eagle) -> PreTrainedModel:
    """transformers' class, by the text_config that we write, with our weights."""
    config_class, model_class = CLASSES[ours.cfg.text.model_type]
    theirs = model_class(config_class(**ours.cfg.text.to_dict(), attn_implementation="eager"))
    theirs.load_state_dict(under_their_names(ours.cfg, ours.state_dict()), strict=True)
    return theirs.eval()


def under_their_names(cfg: EagleConfig, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ours = {name: tensor for name, tensor in tensors.items() if name.startswith(("llm.", "lm_head."))}
    return {key.removeprefix("language_model."): tensor for key, tensor in released(ours, rules(cfg)).items()}


def text_documents(cfg: EagleConfig) -> list:
    return [document(cfg, num_tokens, 0, 0, seed=num_tokens) for num_tokens in (17, 1, 5, 5, 30)]


@pytest.mark.parametrize("name", [*SIZES, *SCALED])
def test_logits_and_gradients_equal_transformers_one_by_one(name):
    cfg = {**SIZES, **SCALED}[name]
    ours = small_model(cfg)
    theirs = theirs_like(ours)
    documents = text_documents(cfg)
    row = pack(documents)
    logits = ours.lm_head(ours.hidden(row))
    F.cross_entropy(logits, row.labels_T, reduction="sum").backward()
    want = [theirs(d.token_ids_T[None]).logits[0] for d in documents]
    for logits_TV, d in zip(want, documents, strict=True):
        F.cross_entropy(logits_TV, d.labels_T, reduction="sum").backward()
    assert (logits - torch.cat(want)).abs().max() < 1e-4
    our_grads = under_their_names(cfg, {name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    their_grads = {key: p.grad for key, p in theirs.named_parameters()}
    assert our_grads.keys() - {"lm_head.weight"} == their_grads.keys() - {"lm_head.weight"}
    for key, grad in their_grads.items():
        error = (our_grads[key] - grad).abs().max()
        assert error <= 1e-5 * (1 + grad.abs().max()), (key, error)


@pytest.mark.parametrize("name", ["dynamic, Qwen2", "yarn, Qwen3"])
def test_scaled_documents_are_computed_alike_wherever_they_are_packed(name):
    ours = small_model(SCALED[name])
    documents = text_documents(ours.cfg)
    with torch.no_grad():
        packed = ours.hidden(pack(documents))
        alone = torch.cat([ours.hidden(d) for d in documents])
        other = ours.hidden(pack(documents[::-1]))
    assert (packed - alone).abs().max() < 1e-5
    assert (packed[:17] - other[-17:]).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["dynamic, Llama", "linear, Qwen3", "Qwen3, own head_dim"])
def test_generation_equals_transformers(name):
    """`dynamic` too: a document is as long as it is so far, and what was turned before stays so."""
    ours = small_model({**SIZES, **SCALED}[name])
    for d in text_documents(ours.cfg)[:2]:
        theirs = theirs_like(ours)  # anew: theirs remembers the longest row that it has seen
        ids = theirs.generate(
            d.token_ids_T[None], max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert ours.generate(d, max_new_tokens=12) == [ids[0, d.num_tokens :].tolist()]


def test_dynamic_asks_for_lengths():
    cfg = SCALED["dynamic, Qwen2"].text
    with pytest.raises(ValueError, match="rope_scaling is dynamic; needs lengths_T, the length of each token's docum"):
        Rotary.of(cfg, torch.arange(3), None)
    assert document_lengths(torch.tensor([0, 2, 2, 5], dtype=torch.int32), 5).tolist() == [2, 2, 3, 3, 3]


def test_documents_do_not_leak():
    ours = small_model(BASE)
    documents = mixed_documents(BASE)
    row = pack(documents)
    with torch.no_grad():
        before = ours.hidden(row)
        row.token_ids_T[:9] = (row.token_ids_T[:9] + 1) % 90  # the first document
        after = ours.hidden(row)
    assert torch.equal(before[9:], after[9:])
    assert not torch.equal(before[:9], after[:9])
