"""LayerNorm at the width of the vision tower and of the connector."""

import pytest

from bench.fused import STEPS, TOKENS, WAYS_AND_LIGER, liger, measure_op, random
from bench.harness import seconds
from eagle_kernels.layer_norm import layer_norm, layer_norm_ref

pytestmark = [
    pytest.mark.benchmark(timer=seconds),
    pytest.mark.parametrize("way", WAYS_AND_LIGER),
    pytest.mark.parametrize("step", STEPS),
]

EPS = 1e-6


@pytest.mark.parametrize("width", [1152, 4608])
@pytest.mark.parametrize("tokens", TOKENS)
def test_layer_norm(benchmark, tokens, width, step, way):
    inputs = random((tokens, width), (width,), (width,))
    elements = {"forward": 2, "backward": 3}[step] * tokens * width
    op, ref = (lambda x, w, b, f=f: f(x, w, b, EPS) for f in (layer_norm, layer_norm_ref))
    rivals = {"liger": lambda x, w, b: liger("liger_layer_norm")(x, w, b, EPS)}
    measure_op(benchmark, "layer_norm", step, way, op, ref, inputs, elements_moved=elements, rivals=rivals)
