"""Visual tokens into the text embeddings: three rows of four are visual."""

import pytest
import torch

from bench.fused import STEPS, TOKENS, WAYS, measure_op, random
from bench.harness import DEVICE, seconds
from eagle_kernels.scatter_visual import scatter_visual, scatter_visual_ref

pytestmark = [
    pytest.mark.benchmark(timer=seconds),
    pytest.mark.parametrize("way", WAYS),
    pytest.mark.parametrize("step", STEPS),
]

WIDTH = 3584


@pytest.mark.parametrize("tokens", TOKENS)
def test_scatter_visual(benchmark, tokens, step, way):
    rows = torch.arange(tokens * 3 // 4, device=DEVICE) + tokens // 8
    inputs = random((tokens, WIDTH), (len(rows), WIDTH))
    # Forward: every row of the result is read once and written once. Backward: dout goes to one of two, the rest is 0.
    elements = 2 * tokens * WIDTH if step == "forward" else (2 * tokens + len(rows)) * WIDTH
    op, ref = (lambda e, v, f=f: f(e, v, rows) for f in (scatter_visual, scatter_visual_ref))
    measure_op(benchmark, "scatter_visual", step, way, op, ref, inputs, elements_moved=elements)
