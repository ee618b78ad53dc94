"""Two partial outputs of the LLM's attention merged, beside the same in torch."""

import time

import pytest
import torch

from bench.fused import DTYPE, TOKENS, WAYS
from bench.harness import DEVICE, measure, seconds
from eagle_kernels.merge_attention import merge_attention, merge_attention_ref

CLOCK = seconds if DEVICE == "cuda" else time.process_time  # of all threads: other programs' time is not ours
pytestmark = [pytest.mark.benchmark(timer=CLOCK), pytest.mark.parametrize("way", WAYS)]

NUM_HEADS, HEAD_WIDTH = 28, 128


@pytest.mark.parametrize("tokens", TOKENS)
def test_merge_attention(benchmark, tokens, way):
    generator = torch.Generator().manual_seed(0)
    outs = torch.randn(2, tokens, NUM_HEADS, HEAD_WIDTH, generator=generator).to(DEVICE, DTYPE)
    lses = torch.randn(2, NUM_HEADS, tokens, generator=generator).to(DEVICE)
    inputs = (outs[0], lses[0], outs[1], lses[1])
    benchmark.group = f"merge_attention, {tokens} tokens"
    torch.compiler.reset()
    run = {
        "ours": lambda *x: merge_attention(*x, num_threads=torch.get_num_threads()),
        "torch": merge_attention_ref,
        "torch.compile": torch.compile(merge_attention_ref),
    }
    want = merge_attention_ref(*(x.float() for x in inputs))
    bytes_moved = 3 * (outs[0].nbytes + lses[0].nbytes)
    measure(benchmark, lambda: run[way](*inputs), want, dtype=DTYPE, bytes_moved=bytes_moved)
