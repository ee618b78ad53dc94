"""Ways to attend: a cache that is filled step by step gives what one packed row gives, and a new way needs no layer."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from eagle_kernels.attention_plan import AttentionPlan
from eagle_model.model import attend
from eagle_model.model.attend import Cache, Decode, Packed, Prefill
from eagle_model.model.config import tiny
from tests.model.samples import IMAGE_TOKEN_ID, VOCAB_SIZE, document, mixed_documents, pack, small_model

CFG = tiny(vocab_size=VOCAB_SIZE, image_token_id=IMAGE_TOKEN_ID)
H, K, W = 4, 2, 16


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_a_cache_filled_in_steps_equals_a_packed_row():
    """Documents of 5 and 3 tokens: the first 4 and 2 as prompts, then one token each. Layer 1 of 2; layer 0 stays."""
    torch.manual_seed(0)
    q, k, v = torch.randn(8, H, W), torch.randn(8, K, W), torch.randn(8, K, W)
    want = Packed(plan=AttentionPlan.from_cu_seqlens(ints(0, 5, 8), num_tokens=8), causal=True)(1, q, k, v)

    cache = Cache.zeros(
        q, num_layers=2, num_rows=10, num_heads=K, head_dim=W
    )  # runs of 6 and 4 rows, one too many each
    prompt, last = torch.tensor([0, 1, 2, 3, 5, 6]), torch.tensor([4, 7])
    plan = AttentionPlan.from_segments(ints(0, 4), ints(4, 2), ints(0, 6), ints(4, 2), num_tokens=6, num_tokens_k=10)
    prefill = Prefill(cache=cache, rows_T=torch.tensor([0, 1, 2, 3, 6, 7]), plan=plan)
    torch.testing.assert_close(prefill(1, q[prompt], k[prompt], v[prompt]), want[prompt])
    decode = Decode(cache=cache, rows_S=torch.tensor([4, 8]), start_S=ints(0, 6), length_S=ints(5, 3), longest=5)
    torch.testing.assert_close(decode(1, q[last], k[last], v[last]), want[last])
    assert (cache.keys_NLKW[0] == 0).all()
    assert torch.equal(cache.keys_NLKW[1, :5], k[:5])
    assert torch.equal(cache.values_NLKW[1, 6:9], v[5:])
    assert (cache.values_NLKW[1, [5, 9]] == 0).all()


@pytest.mark.parametrize("width", [16, 12])  # the kernels' and the references'
@pytest.mark.parametrize("piece_rows", [4096, 16, 8])
def test_pages_filled_in_chunks_equal_a_packed_row(piece_rows, width, monkeypatch):
    """A document of 45 tokens in chunks of 20, 24 and 1, and one of 3 beside it, in blocks of 16 rows that lie apart;
    earlier keys come in one piece or in several."""
    monkeypatch.setattr(attend, "PIECE_ROWS", piece_rows)
    torch.manual_seed(0)
    q, k, v = torch.randn(48, H, width), torch.randn(48, K, width), torch.randn(48, K, width)
    want = Packed(plan=AttentionPlan.from_cu_seqlens(ints(0, 45, 48), num_tokens=48), causal=True)(1, q, k, v)
    cache = Cache.zeros(q, num_layers=2, num_rows=80, num_heads=K, head_dim=width)
    cache.keys_NLKW.fill_(torch.nan)  # what was never written is never seen
    rows = torch.tensor([48, 0, 64])[torch.arange(45) // 16] + torch.arange(45) % 16
    chunks = [attend.Chunk.of(0, 20, rows[:20]), attend.Chunk.of(20, 3, torch.arange(16, 19))]
    both = torch.cat([torch.arange(20), torch.arange(45, 48)])
    nothing = {"start_SB": ints().view(0, 1), "length_S": ints(), "longest": 0, "block_tokens": 16}
    first = attend.Paged(cache=cache, rows_T=torch.cat([rows[:20], torch.arange(16, 19)]), chunks=chunks, **nothing)
    torch.testing.assert_close(first(1, q[both], k[both], v[both]), want[both])
    second = attend.Paged(cache=cache, rows_T=rows[20:44], chunks=[attend.Chunk.of(0, 24, rows[:44])], **nothing)
    torch.testing.assert_close(second(1, q[20:44], k[20:44], v[20:44]), want[20:44])
    third = attend.Paged(
        cache=cache, rows_T=rows[44:], start_SB=ints(48, 0, 64)[None], length_S=ints(45), longest=45, block_tokens=16
    )
    torch.testing.assert_close(third(1, q[44:45], k[44:45], v[44:45]), want[44:45])


@pytest.mark.parametrize("causal", [True, False])
def test_packed_sees_its_own_document_alone(causal):
    torch.manual_seed(0)
    q, k, v = torch.randn(5, H, W), torch.randn(5, K, W), torch.randn(5, K, W)
    attend = Packed(plan=AttentionPlan.from_cu_seqlens(ints(0, 3, 5), num_tokens=5), causal=causal)
    out = attend(0, q, k, v)
    k[4] += 1
    v[4] += 1
    changed = [not torch.equal(a, b) for a, b in zip(out, attend(0, q, k, v), strict=True)]
    assert changed == [False, False, False, not causal, True]


def test_the_backend_reaches_the_op():
    """On a CPU the op refuses flash-attn, by name; generation takes our kernels, the ones that read a cache."""
    model = small_model(replace(CFG, attention_backend="flash_attn"))
    batch = document(CFG, 5, 0, 0, seed=1)
    message = "q's device is cpu; needs a CUDA device for backend='flash_attn'"
    with pytest.raises(ValueError, match=message):
        model.hidden(batch)
    with pytest.raises(ValueError, match=message):
        model.encode_tiles(document(CFG, 0, 1, 0, seed=1).patches_IPK)
    plan = AttentionPlan.from_cu_seqlens(batch.cu_seqlens, num_tokens=batch.num_tokens)
    with torch.no_grad():
        embeddings_TD = model.llm.embed_tokens(batch.token_ids_T)
        cache = Cache.zeros(embeddings_TD, num_layers=3, num_rows=5, num_heads=2, head_dim=32)
        prefill = Prefill(cache=cache, rows_T=torch.arange(5), plan=plan)
        cached_TD = model.llm(embeddings_TD, batch.positions_T, prefill)
        assert torch.equal(cached_TD, small_model(CFG).hidden(batch))


@dataclass(frozen=True)
class Recorded:
    """A way to attend that this library does not have: it looks at what passes by."""

    inner: Packed
    seen: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def __call__(self, layer: int, q_THW: Tensor, k_TKW: Tensor, v_TKW: Tensor) -> Tensor:
        self.seen.append((layer, tuple(q_THW.shape), tuple(k_TKW.shape)))
        return self.inner(layer, q_THW, k_TKW, v_TKW)


def test_layers_take_any_way_to_attend():
    model = small_model(CFG)
    row = pack(mixed_documents(CFG))
    plan = AttentionPlan.from_cu_seqlens(row.cu_seqlens, num_tokens=row.num_tokens)
    attend = Recorded(Packed(plan=plan, causal=True))
    with torch.no_grad():
        assert torch.equal(model.llm(model.embed(row), row.positions_T, attend), model.hidden(row))
    assert attend.seen == [(i, (row.num_tokens, 4, 32), (row.num_tokens, 2, 32)) for i in range(3)]
