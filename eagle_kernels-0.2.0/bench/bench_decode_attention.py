"""One step of generation at the LLM's shape against caches of several lengths: ours, and SDPA one sequence at a time,
once with enable_gqa and once with a group's query heads as the rows of its key head, which is the strongest rival.

`bytes_moved` is the cache, read once. On a CPU all ways have as many threads as torch, and the clock counts CPU seconds
of all of them together: OMP_NUM_THREADS=1 compares work.
"""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F

from bench.harness import DEVICE, measure, seconds
from eagle_kernels.decode_attention import decode_attention, decode_attention_ref

CLOCK = seconds if DEVICE == "cuda" else time.process_time  # of all threads: other programs' time is not ours
pytestmark = pytest.mark.benchmark(timer=CLOCK)

NUM_HEADS, NUM_KV_HEADS, HEAD_WIDTH = 28, 4, 128
PATTERNS = {"one of 128K": [131_072], "16 of 4K": [4096] * 16, "64 of 100 to 8K": list(range(100, 8192, 128))[:64]}
if DEVICE == "cpu":
    PATTERNS = {"one of 8K": [8192], "8 of 512": [512] * 8}
DTYPES = [torch.bfloat16] if DEVICE == "cuda" else [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("way", ["ours", "reference", "sdpa", "sdpa, heads as rows"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_decode_attention(benchmark, pattern, dtype, way):
    lengths = PATTERNS[pattern]
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(len(lengths), NUM_HEADS, HEAD_WIDTH, generator=generator).to(DEVICE, dtype)
    k, v = torch.randn(2, sum(lengths), NUM_KV_HEADS, HEAD_WIDTH, generator=generator).to(DEVICE, dtype)
    k_len = torch.tensor(lengths, dtype=torch.int32)
    k_start = (k_len.cumsum(0) - k_len).int().to(DEVICE)
    k_len = k_len.to(DEVICE)

    def sdpa() -> torch.Tensor:
        outs = []
        for query, keys, values in zip(q, k.split(lengths), v.split(lengths), strict=True):
            rows = (x.transpose(0, 1)[None] for x in (query[None], keys, values))
            outs.append(F.scaled_dot_product_attention(*rows, enable_gqa=True)[0, :, 0])
        return torch.stack(outs)

    def heads_as_rows() -> torch.Tensor:
        group = NUM_HEADS // NUM_KV_HEADS
        outs = []
        for query, keys, values in zip(q, k.split(lengths), v.split(lengths), strict=True):
            rows = (
                x[None]
                for x in (query.unflatten(0, (NUM_KV_HEADS, group)), *(x.transpose(0, 1) for x in (keys, values)))
            )
            outs.append(F.scaled_dot_product_attention(*rows)[0].flatten(0, 1))
        return torch.stack(outs)

    run = {
        "ours": lambda: decode_attention(
            q, k, v, k_start, k_len, max_k_len=max(lengths), num_threads=torch.get_num_threads()
        ),
        "reference": lambda: decode_attention_ref(q, k, v, k_start, k_len)[0],
        "sdpa": sdpa,
        "sdpa, heads as rows": heads_as_rows,
    }[way]
    want = decode_attention_ref(q.float(), k.float(), v.float(), k_start, k_len)[0]
    benchmark.group = f"decode_attention, {pattern}, {dtype}"
    measure(benchmark, lambda: [run()], [want], dtype=dtype, bytes_moved=k.nbytes + v.nbytes)
