"""Split, bias and rotary embedding of a fused projection: 28 query and 4 key heads of width 128, documents of 4096."""

import pytest
import torch

from bench.fused import STEPS, TOKENS, WAYS, measure_op, random
from bench.harness import DEVICE, seconds
from eagle_kernels.qkv_rope import qkv_rope, qkv_rope_ref

pytestmark = [
    pytest.mark.benchmark(timer=seconds),
    pytest.mark.parametrize("way", WAYS),
    pytest.mark.parametrize("step", STEPS),
]

THETA = 1e6
WIDTH = (28 + 2 * 4) * 128


@pytest.mark.parametrize("tokens", TOKENS)
def test_qkv_rope(benchmark, tokens, step, way):
    inputs = random((tokens, WIDTH), (WIDTH,))
    positions = torch.arange(tokens, dtype=torch.int32, device=DEVICE) % 4096
    op, ref = (
        lambda qkv, bias, f=f: f(qkv, bias, positions, THETA, num_heads=28, num_kv_heads=4)
        for f in (qkv_rope, qkv_rope_ref)
    )
    measure_op(benchmark, "qkv_rope", step, way, op, ref, inputs, elements_moved=2 * tokens * WIDTH)
