"""transformers' models with attn_implementation="eagle" against their own eager attention: packed, padded, cached."""

import pytest
import torch
from torch import Tensor
from transformers import BartConfig, BartModel, DataCollatorWithFlattening, DynamicCache, StaticCache
from transformers.masking_utils import create_causal_mask, sliding_window_causal_mask_function

from eagle_kernels.attention_plan import AttentionPlan
from eagle_kernels.integrations.attention import Visible, eagle_attention, eagle_mask
from tests.integrations.models import (
    assert_close,
    assert_same_gradients,
    causal_lm,
    gradients,
    naflex,
    siglip_text,
    token_ids,
)


@pytest.fixture(scope="module")
def theirs():
    return causal_lm("qwen2").eval()


@pytest.fixture(scope="module")
def ours():
    return causal_lm("qwen2", attention="eagle").eval()


PADDINGS = {
    "none": [[1] * 7, [1] * 7],
    "left": [[0, 0, 0, 1, 1, 1, 1], [1] * 7],
    "right": [[1] * 7, [1, 1, 0, 0, 0, 0, 0]],
    "both": [[0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1]],
}


@pytest.mark.parametrize("padding", PADDINGS)
def test_padded_rows_are_as_theirs(ours, theirs, padding: str) -> None:
    mask_BT = torch.tensor(PADDINGS[padding])
    ids_BT, seen = token_ids(2, 7), mask_BT.bool()
    labels_BT = ids_BT.masked_fill(~seen, -100)
    results = [model(input_ids=ids_BT, attention_mask=mask_BT, labels=labels_BT) for model in (ours, theirs)]
    assert_close(results[0].logits[seen], results[1].logits[seen])
    # A padded query's logits count where the next token is one: transformers' labels know no first token.
    if padding in ("none", "right"):
        assert_close(results[0].loss, results[1].loss)
        assert_same_gradients(gradients(ours, results[0].loss), gradients(theirs, results[1].loss))


LENGTHS = [3, 1, 5]


def one_by_one(model, ids_1T: Tensor) -> Tensor:
    return torch.cat([model(input_ids=document).logits for document in ids_1T.split(LENGTHS, dim=1)], dim=1)


@pytest.mark.parametrize("given", ["position_ids", "cu_seq_lens", "both"])
def test_packed_documents_are_as_one_by_one(ours, theirs, given: str) -> None:
    ids_1T = token_ids(1, sum(LENGTHS))
    packed = {}
    if given != "cu_seq_lens":
        packed["position_ids"] = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    if given != "position_ids":
        ends = torch.tensor([0, *LENGTHS]).cumsum(0).int()
        packed |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 5, "max_length_k": 5}
    logits, want = ours(input_ids=ids_1T, use_cache=False, **packed).logits, one_by_one(theirs, ids_1T)
    assert_close(logits, want)
    assert_same_gradients(gradients(ours, logits.square().mean()), gradients(theirs, want.square().mean()))


def test_rows_of_packed_documents(ours, theirs) -> None:
    """Two rows, each of other documents."""
    lengths = [[3, 4], [5, 2]]
    ids_BT = token_ids(2, 7)
    positions_BT = torch.tensor([[i for n in row for i in range(n)] for row in lengths])
    logits_BTV = ours(input_ids=ids_BT, position_ids=positions_BT, use_cache=False).logits
    for row in range(2):
        parts = [theirs(input_ids=part).logits for part in ids_BT[row : row + 1].split(lengths[row], dim=1)]
        assert_close(logits_BTV[row : row + 1], torch.cat(parts, dim=1))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("padding", [0, 2])
def test_a_cache_gives_what_no_cache_gives(ours, kind: str, padding: int) -> None:
    """A prompt, some tokens at once, then one at a time; the first row is padded on the left."""
    ids_BT = token_ids(2, 9)
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, :padding] = 0
    position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        want = ours(input_ids=ids_BT, attention_mask=mask_BT, position_ids=position_BT).logits
        cache = DynamicCache() if kind == "dynamic" else StaticCache(config=ours.config, max_cache_len=12)
        parts, start = [], 0
        for length in (4, 3, 1, 1):
            part = slice(start, start + length)
            out = ours(
                input_ids=ids_BT[:, part],
                attention_mask=mask_BT[:, : start + length],
                position_ids=position_BT[:, part],
                past_key_values=cache,
            )
            parts.append(out.logits)
            start += length
    seen = mask_BT.bool()
    assert_close(torch.cat(parts, dim=1)[seen], want[seen])


def test_gradients_flow_through_a_cache(ours, theirs) -> None:
    """One token after a prefix, as in prefix tuning: `decode_attention`, which has no backward, must not take it."""
    ids_1T = token_ids(1, 6)
    found = []
    for model in (ours, theirs):
        cache = DynamicCache()
        model(input_ids=ids_1T[:, :5], past_key_values=cache)
        found.append(gradients(model, model(input_ids=ids_1T[:, 5:], past_key_values=cache).logits.square().mean()))
    assert_same_gradients(*found)


def test_attention_that_is_not_causal() -> None:
    model = siglip_text().eval()
    mask_BT = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]])
    ids_BT = token_ids(2, 6)
    want = model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
    model.set_attn_implementation("eagle")
    assert_close(model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state, want)  # padding too: it is pooled


def test_an_encoder_with_a_decoder_is_refused() -> None:
    config = BartConfig(
        vocab_size=32, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, attn_implementation="eagle",
    )  # fmt: skip
    model = BartModel(config).eval()
    with pytest.raises(ValueError, match="an encoder with a decoder; needs one tower"):
        model(input_ids=torch.ones(1, 9, dtype=torch.int64), decoder_input_ids=torch.ones(1, 5, dtype=torch.int64))


def test_one_plan_serves_all_layers(ours, monkeypatch) -> None:
    made = []
    for name in ("from_cu_seqlens", "from_segments"):
        build = getattr(AttentionPlan, name)
        monkeypatch.setattr(AttentionPlan, name, lambda *a, build=build, **k: made.append(build(*a, **k)) or made[-1])
    position_ids = torch.tensor([[0, 1, 2, 0, 1]])
    ours(input_ids=token_ids(1, 5), position_ids=position_ids, use_cache=False)
    assert len(made) == 1
    ends = torch.tensor([0, 3, 5], dtype=torch.int32)
    ours(input_ids=token_ids(1, 5), cu_seq_lens_q=ends, cu_seq_lens_k=ends, use_cache=False)
    assert len(made) == 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"attention_mask": torch.tensor([[1, 1, 0, 1, 1]])}, "row 0 of attention_mask .* padding before or after"),
        ({"attention_mask": torch.zeros(1, 1, 5, 5)}, r"attention_mask is a torch.Tensor \(1, 1, 5, 5\)"),
        ({"cu_seq_lens_q": torch.tensor([0, 5], dtype=torch.int32)}, "both or neither"),
        ({"output_attentions": True}, "output_attentions is True"),
        (
            {
                "attention_mask": torch.tensor([[0, 1, 1, 1, 1]]),
                "cu_seq_lens_q": torch.tensor([0, 5], dtype=torch.int32),
                "cu_seq_lens_k": torch.tensor([0, 5], dtype=torch.int32),
            },
            "padding beside cu_seq_lens_q",
        ),
    ],
    ids=["hole", "4-D", "half of cu_seq_lens", "weights", "padding and documents"],
)
def test_inputs_that_are_refused(ours, inputs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours(input_ids=token_ids(1, 5), **inputs)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"dropout": 0.1}, "attention dropout is 0.1"),
        ({"sliding_window": 4}, "sliding_window is 4"),
        ({"softcap": 50.0}, "softcap is given"),
        ({"s_aux": torch.zeros(2)}, "s_aux is given"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_attention_that_is_refused(asked: dict, message: str) -> None:
    q = k = v = torch.zeros(1, 2, 5, 16)
    with pytest.raises(ValueError, match=message):
        eagle_attention(torch.nn.Module(), q, k, v, None, **asked)


def test_documents_beside_a_cache_are_refused() -> None:
    ends = torch.tensor([0, 2], dtype=torch.int32)
    q, k = torch.zeros(1, 2, 2, 16), torch.zeros(1, 2, 5, 16)
    with pytest.raises(ValueError, match="no cache beside packed documents"):
        eagle_attention(torch.nn.Module(), q, k, k, None, cu_seq_lens_q=ends, cu_seq_lens_k=ends)


def test_a_window_within_reach_of_every_key_is_none() -> None:
    q = torch.randn(1, 2, 5, 16)
    args = (torch.nn.Module(), q, q, q, None)
    assert torch.equal(eagle_attention(*args, sliding_window=5)[0], eagle_attention(*args)[0])


def test_masks_that_are_no_documents_are_refused(ours) -> None:
    embeddings = torch.zeros(1, 8, 4)
    both_ways = create_causal_mask(
        config=ours.config, inputs_embeds=embeddings, attention_mask=None, past_key_values=None,
        block_sequence_ids=torch.tensor([[-1, 0, 0, 0, -1, -1, -1, -1]]),
    )  # fmt: skip
    assert isinstance(both_ways, Visible)
    with pytest.raises(ValueError, match="none of causal documents"):
        both_ways.documents()
    window = eagle_mask(1, 8, 8, mask_function=sliding_window_causal_mask_function(3))
    with pytest.raises(ValueError, match="none of causal documents"):
        window.documents()
    with pytest.raises(ValueError, match="with padding or a cache"):
        eagle_mask(1, 2, 8, 6, mask_function=sliding_window_causal_mask_function(3))
    with pytest.raises(ValueError, match="drops old keys"):
        eagle_mask(1, 2, 8, 6, kv_offset=3)


def test_transformers_own_collator_packs(ours, theirs) -> None:
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_tensors="pt")
    documents = [token_ids(length, seed=length).tolist() for length in LENGTHS]
    batch = collate([{"input_ids": ids} for ids in documents])
    assert "cu_seq_lens_q" in batch
    result, whole = ours(**batch, use_cache=False), torch.tensor([[i for ids in documents for i in ids]])
    assert_close(result.logits, one_by_one(theirs, whole))


def test_siglip2_of_any_shape_with_its_pooling_head() -> None:
    """Images of 16, 12 and 4 patches; the head computes on the mask itself."""
    models = [naflex(attention) for attention in ("eagle", "sdpa")]
    mask_BL = (torch.arange(16) < torch.tensor([[16], [12], [4]])).long()
    given = {"pixel_attention_mask": mask_BL, "spatial_shapes": torch.tensor([[4, 4], [3, 4], [2, 2]])}
    pixels = torch.randn(3, 16, 48, generator=torch.Generator().manual_seed(1))
    results = [model(pixel_values=pixels, **given) for model in models]
    assert_close(results[0].last_hidden_state[mask_BL.bool()], results[1].last_hidden_state[mask_BL.bool()])
    assert_close(results[0].pooler_output, results[1].pooler_output)
    losses = [result.pooler_output.square().mean() for result in results]
    assert_same_gradients(*(gradients(model, loss) for model, loss in zip(models, losses, strict=True)))
