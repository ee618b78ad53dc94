"""Greedy generation with a cache: the same tokens as without one, packed or alone."""

from dataclasses import replace

import pytest
import torch

from eagle_model.batch import PackedBatch
from eagle_model.model.config import tiny
from eagle_model.model.eagle import Eagle
from tests.model.samples import IMAGE_TOKEN_ID, VOCAB_SIZE, document, mixed_documents, pack, small_model

CFG = tiny(vocab_size=VOCAB_SIZE, image_token_id=IMAGE_TOKEN_ID)
NUM_NEW = 12


def without_cache(model: Eagle, prompt: PackedBatch) -> list[int]:
    """The whole document again for every token."""
    new_ids: list[int] = []
    for _ in range(NUM_NEW):
        with torch.no_grad():
            new_ids.append(int(model.lm_head(model.hidden(prompt)[-1:]).argmax()))
        num_tokens = prompt.num_tokens + 1
        prompt = replace(
            prompt,
            token_ids_T=torch.cat([prompt.token_ids_T, torch.tensor(new_ids[-1:])]),
            labels_T=torch.cat([prompt.labels_T, torch.tensor([-100])]),
            positions_T=torch.arange(num_tokens, dtype=torch.int32),
            cu_seqlens=torch.tensor([0, num_tokens], dtype=torch.int32),
        )
    return new_ids


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_packed_with_cache_equals_alone_without(seed):
    model = small_model(CFG, seed=seed)
    prompts = mixed_documents(CFG)
    packed = model.generate(pack(prompts), max_new_tokens=NUM_NEW)
    assert packed == [without_cache(model, prompt) for prompt in prompts]
    assert packed == [model.generate(prompt, max_new_tokens=NUM_NEW)[0] for prompt in prompts]
    assert len({token_id for ids in packed for token_id in ids}) > 5  # not one token again and again


def test_each_document_stops_by_itself():
    model = small_model(CFG)
    prompts = pack(mixed_documents(CFG))
    free = model.generate(prompts, max_new_tokens=NUM_NEW)
    stop_token_ids = {free[1][3], free[3][6]}
    stopped = model.generate(prompts, max_new_tokens=NUM_NEW, stop_token_ids=stop_token_ids)
    for ids, all_ids in zip(stopped, free, strict=True):
        ends = [i + 1 for i, token_id in enumerate(all_ids) if token_id in stop_token_ids]
        assert ids == all_ids[: ends[0] if ends else NUM_NEW]
    assert len({len(ids) for ids in stopped}) > 1


def test_one_new_token_needs_no_second_step():
    model = small_model(CFG)
    prompts = pack(mixed_documents(CFG))
    one = model.generate(prompts, max_new_tokens=1)
    assert one == [ids[:1] for ids in model.generate(prompts, max_new_tokens=3)]


def test_errors():
    model = small_model(CFG)
    prompt = document(CFG, 5, 0, 0, seed=0)
    with pytest.raises(ValueError, match="max_new_tokens is 0; needs at least 1"):
        model.generate(prompt, max_new_tokens=0)
    with pytest.raises(ValueError, match=r"the prompts have \[5, 0\] tokens; each needs at least 1"):
        model.generate(pack([prompt, document(CFG, 0, 0, 0, seed=1)]), max_new_tokens=2)
    with pytest.raises(ValueError, match="has 1 rows for visual tokens, but its 0 tiles give 0"):
        model.generate(replace(prompt, visual_rows_N=torch.tensor([0])), max_new_tokens=2)


@pytest.mark.gpu
def test_kernels_generate_the_references_tokens():
    model = small_model(CFG)
    row = pack(mixed_documents(CFG))
    want = model.generate(row, max_new_tokens=NUM_NEW)
    assert model.cuda().generate(row.to("cuda"), max_new_tokens=NUM_NEW) == want
