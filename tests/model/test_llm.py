"""Decoder and output head against transformers' Qwen2ForCausalLM with the same random weights, in fp32."""

import pytest
import torch
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM

from eagle_model.model.config import EagleConfig, tiny
from eagle_model.model.eagle import Eagle
from eagle_model.model.weights import released, rules
from tests.model.samples import document, mixed_documents, pack, small_model, with_text

BASE = tiny(vocab_size=97, image_token_id=96)
SIZES = {
    "GQA 4:2": BASE,
    "GQA 7:1, head_dim 16": with_text(BASE, hidden_size=112, num_attention_heads=7, num_key_value_heads=1, head_dim=16),
    "no GQA, theta 1e6": with_text(BASE, num_key_value_heads=4, rope_theta=1e6),
    "tied": with_text(BASE, tie_word_embeddings=True),
}


def theirs_like(ours: Eagle) -> Qwen2ForCausalLM:
    text = ours.cfg.text
    theirs = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=text.vocab_size,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_hidden_layers,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            rms_norm_eps=text.rms_norm_eps,
            rope_parameters={"rope_theta": text.rope_theta, "rope_type": "default"},
            tie_word_embeddings=text.tie_word_embeddings,
            attn_implementation="eager",
        )
    )
    theirs.load_state_dict(under_their_names(ours.cfg, ours.state_dict()), strict=True)
    return theirs.eval()


def under_their_names(cfg: EagleConfig, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ours = {name: tensor for name, tensor in tensors.items() if name.startswith(("llm.", "lm_head."))}
    return {key.removeprefix("language_model."): tensor for key, tensor in released(ours, rules(cfg)).items()}


def text_documents(cfg: EagleConfig) -> list:
    return [document(cfg, num_tokens, 0, 0, seed=num_tokens) for num_tokens in (17, 1, 5, 5, 30)]


@pytest.mark.parametrize("name", SIZES)
def test_logits_equal_qwen2_one_by_one(name):
    cfg = SIZES[name]
    ours = small_model(cfg)
    theirs = theirs_like(ours)
    documents = text_documents(cfg)
    with torch.no_grad():
        logits = ours.lm_head(ours.hidden(pack(documents)))
        want = torch.cat([theirs(d.token_ids_T[None]).logits[0] for d in documents])
    assert logits.shape == want.shape
    assert (logits - want).abs().max() < 1e-4


def test_gradients_of_a_packed_row_equal_qwen2_one_by_one():
    ours = small_model(BASE)
    theirs = theirs_like(ours)
    documents = text_documents(BASE)
    row = pack(documents)
    F.cross_entropy(ours.lm_head(ours.hidden(row)), row.labels_T, reduction="sum").backward()
    for d in documents:
        F.cross_entropy(theirs(d.token_ids_T[None]).logits[0], d.labels_T, reduction="sum").backward()
    our_grads = under_their_names(BASE, {name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    their_grads = {key: p.grad for key, p in theirs.named_parameters()}
    assert our_grads.keys() == their_grads.keys()
    for name, want in their_grads.items():
        error = (our_grads[name] - want).abs().max()
        assert error <= 1e-5 * (1 + want.abs().max()), (name, error)


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
