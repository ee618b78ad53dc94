"""GELU with bias at the vision tower's feed-forward width."""

import pytest

from bench.fused import STEPS, TOKENS, WAYS, measure_op, random
from bench.harness import seconds
from eagle_kernels.gelu_bias import gelu_bias, gelu_bias_ref

pytestmark = [
    pytest.mark.benchmark(timer=seconds),
    pytest.mark.parametrize("way", WAYS),
    pytest.mark.parametrize("step", STEPS),
]

WIDTH = 4304


@pytest.mark.parametrize("tokens", TOKENS)
def test_gelu_bias(benchmark, tokens, step, way):
    inputs = random((tokens, WIDTH), (WIDTH,))
    elements = {"forward": 2, "backward": 3}[step] * tokens * WIDTH
    measure_op(benchmark, "gelu_bias", step, way, gelu_bias, gelu_bias_ref, inputs, elements_moved=elements)
