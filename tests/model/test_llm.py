"""Decoder and output head against transformers' Qwen2ForCausalLM with the same random weights, in fp32."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM

from eagle_kernels.attention_plan import AttentionPlan
from eagle_model.model.config import EagleConfig, tiny
from eagle_model.model.eagle import Eagle
from eagle_model.model.weights import released_name
from tests.model.samples import document, mixed_documents, pack, small_model, with_text

BASE = tiny(vocab_size=97, image_token_id=96)
SIZES = {
    "GQA 4:2": BASE,
    "GQA 7:1, head_dim 16": with_text(BASE, hidden_size=112, num_attention_heads=7, num_key_value_heads=1),
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
    names = [name for name in ours.state_dict() if name.startswith(("llm.", "lm_head."))]
    state = {released_name(name).removeprefix("language_model."): ours.state_dict()[name] for name in names}
    theirs.load_state_dict(state, strict=True)
    return theirs.eval()


def text_documents(cfg: EagleConfig) -> list:
    return [document(cfg, num_tokens, 0, 0, seed=num_tokens) for num_tokens in (17, 1, 5, 5, 30)]


@pytest.mark.parametrize("name", SIZES)
def test_logits_equal_qwen2_one_by_one(name):
    cfg = SIZES[name]
    ours = small_model(cfg)
    theirs = theirs_like(ours)
    documents = text_documents(cfg)
    with torch.no_grad():
        logits = ours.lm_head(ours(pack(documents)))
        want = torch.cat([theirs(d.token_ids_T[None]).logits[0] for d in documents])
    assert logits.shape == want.shape
    assert (logits - want).abs().max() < 1e-4


def test_gradients_of_a_packed_row_equal_qwen2_one_by_one():
    ours = small_model(BASE)
    theirs = theirs_like(ours)
    documents = text_documents(BASE)
    row = pack(documents)
    F.cross_entropy(ours.lm_head(ours(row)), row.labels_T, reduction="sum").backward()
    for d in documents:
        F.cross_entropy(theirs(d.token_ids_T[None]).logits[0], d.labels_T, reduction="sum").backward()
    their_grads = {key: p.grad for key, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if name.startswith(("llm.", "lm_head.")):
            want = their_grads[released_name(name).removeprefix("language_model.")]
            error = (parameter.grad - want).abs().max()
            assert error <= 1e-5 * (1 + want.abs().max()), (name, error)


def test_documents_do_not_leak():
    ours = small_model(BASE)
    documents = mixed_documents(BASE)
    row = pack(documents)
    with torch.no_grad():
        before = ours(row)
        row.token_ids_T[:9] = (row.token_ids_T[:9] + 1) % 90  # the first document
        after = ours(row)
    assert torch.equal(before[9:], after[9:])
    assert not torch.equal(before[:9], after[:9])


def test_attention_backend_reaches_the_op():
    """On a CPU the op refuses flash-attn, by name; with a cache, as in generation, the decoder takes "eagle"."""
    model = small_model(replace(BASE, attention_backend="flash_attn"))
    batch = document(BASE, 5, 0, 0, seed=1)
    plan = AttentionPlan.from_cu_seqlens(batch.cu_seqlens, num_tokens=batch.num_tokens)
    embeddings_TD = model.llm.embed_tokens(batch.token_ids_T)
    with pytest.raises(ValueError, match="q's device is cpu; needs a CUDA device for backend='flash_attn'"):
        model.llm(embeddings_TD, batch.positions_T, plan)
    caches = model.llm.new_caches(batch.num_tokens, torch.arange(batch.num_tokens))
    with torch.no_grad():
        cached_TD = model.llm(embeddings_TD, batch.positions_T, plan, caches)
        assert torch.equal(cached_TD, small_model(BASE).llm(embeddings_TD, batch.positions_T, plan))
