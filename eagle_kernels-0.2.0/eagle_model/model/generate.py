"""Greedy generation for a packed row of prompts, with a cache of keys and values.

    new_ids = greedy(eagle.embed, eagle.llm, eagle.lm_head, batch, max_new_tokens=64, stop_token_ids={eos})
    # one list of token ids a document; `Eagle.generate` does the same
    for step in tokens(...the same...):              # token by token: [(document, token id), ...] of each step

Dims     T tokens of this step, S documents, D width.
Cache    Each document owns a run of rows as long as its prompt plus all that it may generate, so that a step writes one
         row a document and moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import torch
from torch import Tensor

from eagle_kernels.attention_plan import AttentionPlan
from eagle_model.batch import PackedBatch
from eagle_model.model.attend import Cache, Decode, Prefill
from eagle_model.model.llm import Decoder, document_lengths
from eagle_model.model.loss import LMHead


def greedy(
    embed: Callable[[PackedBatch], Tensor],
    llm: Decoder,
    lm_head: LMHead,
    batch: PackedBatch,
    *,
    max_new_tokens: int,
    stop_token_ids: Collection[int],
) -> list[list[int]]:
    """The new token ids of each document of `batch`, as `tokens` yields them."""
    new_ids: list[list[int]] = [[] for _ in range(batch.cu_seqlens.numel() - 1)]
    for step in tokens(embed, llm, lm_head, batch, max_new_tokens=max_new_tokens, stop_token_ids=stop_token_ids):
        for document, token_id in step:
            new_ids[document].append(token_id)
    return new_ids


@torch.no_grad()
def tokens(
    embed: Callable[[PackedBatch], Tensor],
    llm: Decoder,
    lm_head: LMHead,
    batch: PackedBatch,
    *,
    max_new_tokens: int,
    stop_token_ids: Collection[int],
) -> Iterator[list[tuple[int, int]]]:
    """The likeliest next token of each document of `batch` that goes on, step by step: (document, token id) of each.

    A document has at most `max_new_tokens`, and ends with its first token of `stop_token_ids`, which is yielded too.

    embed: the prompts' embeddings, (T, D).
    Raises ValueError for max_new_tokens < 1, for a document without tokens, and where `embed` does.
    """
    lengths = batch.cu_seqlens.diff().tolist()
    if max_new_tokens < 1:
        raise ValueError(f"generate: max_new_tokens is {max_new_tokens}; needs at least 1.")
    if min(lengths, default=0) < 1:
        raise ValueError(f"generate: the prompts have {lengths} tokens; each needs at least 1.")
    device = batch.token_ids_T.device
    prompt_starts = batch.cu_seqlens[:-1]
    run_starts = [prompt + i * max_new_tokens for i, prompt in enumerate(prompt_starts.tolist())]
    num_rows = batch.num_tokens + len(lengths) * max_new_tokens

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    # Prefill: the prompts' keys go to the first rows of their runs.
    embeddings_TD = embed(batch)
    cache = Cache.zeros(
        embeddings_TD, num_layers=len(llm.layers), num_rows=num_rows,
        num_heads=llm.cfg.num_key_value_heads, head_dim=llm.cfg.head_dim,
    )  # fmt: skip
    rows_T = torch.repeat_interleave(ints(run_starts), ints(lengths)) + batch.positions_T
    plan = AttentionPlan.from_segments(
        prompt_starts, ints(lengths), ints(run_starts), ints(lengths),
        num_tokens=batch.num_tokens, num_tokens_k=num_rows,
    )  # fmt: skip
    prefill = Prefill(cache=cache, rows_T=rows_T.long(), plan=plan)
    lengths_T = document_lengths(batch.cu_seqlens, batch.num_tokens) if llm.needs_lengths else None
    hidden_TD = llm(embeddings_TD, batch.positions_T, prefill, lengths_T=lengths_T)
    last_SD = hidden_TD[batch.cu_seqlens[1:].long() - 1]

    active = list(range(len(lengths)))  # documents still going on, in the order of last_SD's rows
    for num_new in range(1, max_new_tokens + 1):
        next_ids = lm_head(last_SD).argmax(dim=1).tolist()
        yield list(zip(active, next_ids, strict=True))
        goes_on = [token_id not in stop_token_ids for token_id in next_ids]
        active = [i for i, on in zip(active, goes_on, strict=True) if on]
        if not active or num_new == max_new_tokens:
            return
        # One token a document goes on: its position is the number of tokens before it.
        positions = [lengths[i] + num_new - 1 for i in active]
        attend = Decode(
            cache=cache,
            rows_S=ints([run_starts[i] + position for i, position in zip(active, positions, strict=True)]).long(),
            start_S=ints([run_starts[i] for i in active]),
            length_S=ints(positions) + 1,
            longest=max(positions) + 1,
        )
        ids = [token_id for token_id, on in zip(next_ids, goes_on, strict=True) if on]
        # A document is as long as it is so far: what the cache holds stays as it was turned.
        last_SD = llm(llm.embed_tokens(ints(ids).long()), ints(positions), attend, lengths_T=attend.length_S)
