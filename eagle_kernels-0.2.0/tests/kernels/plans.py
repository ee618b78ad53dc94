"""Attention plans of documents and segments that are given as lists of numbers."""

import torch

from eagle_kernels.attention_plan import AttentionPlan


def offsets(lengths, device="cpu"):
    return torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)


def plan_of(q_lens, k_lens=None, *, causal=True, device="cpu"):
    k_offsets = None if k_lens is None else offsets(k_lens, device)
    num_tokens_k = sum(q_lens if k_lens is None else k_lens)
    q_offsets = offsets(q_lens, device)
    return AttentionPlan.from_cu_seqlens(
        q_offsets, k_offsets, num_tokens=sum(q_lens), num_tokens_k=num_tokens_k, causal=causal
    )


def plan_of_segments(segments, num_tokens, num_tokens_k, *, causal, device="cpu"):
    columns = torch.tensor(segments, dtype=torch.int32, device=device).view(-1, 4).unbind(1)
    return AttentionPlan.from_segments(*columns, num_tokens=num_tokens, num_tokens_k=num_tokens_k, causal=causal)
