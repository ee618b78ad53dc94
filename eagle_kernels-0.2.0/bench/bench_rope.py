"""Rotary embedding of 28 query and 4 key heads of width 128, documents of 4096 tokens."""

import pytest
import torch

from bench.fused import STEPS, TOKENS, WAYS, measure_op, random
from bench.harness import DEVICE, seconds
from eagle_kernels.rope import rope, rope_ref

pytestmark = [
    pytest.mark.benchmark(timer=seconds),
    pytest.mark.parametrize("way", WAYS),
    pytest.mark.parametrize("step", STEPS),
]

THETA = 1e6


@pytest.mark.parametrize("tokens", TOKENS)
def test_rope(benchmark, tokens, step, way):
    inputs = random((tokens, 28, 128), (tokens, 4, 128))
    positions = torch.arange(tokens, dtype=torch.int32, device=DEVICE) % 4096
    op, ref = (lambda q, k, f=f: f(q, k, positions, THETA) for f in (rope, rope_ref))
    measure_op(benchmark, "rope", step, way, op, ref, inputs, elements_moved=2 * tokens * 32 * 128)
