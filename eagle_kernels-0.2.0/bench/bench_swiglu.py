"""SwiGLU at the language model's feed-forward width."""

import pytest

from bench.fused import STEPS, TOKENS, WAYS_AND_LIGER, liger, measure_op, random
from bench.harness import seconds
from eagle_kernels.swiglu import swiglu, swiglu_ref

pytestmark = [
    pytest.mark.benchmark(timer=seconds),
    pytest.mark.parametrize("way", WAYS_AND_LIGER),
    pytest.mark.parametrize("step", STEPS),
]

WIDTH = 18_944


@pytest.mark.parametrize("tokens", TOKENS)
def test_swiglu(benchmark, tokens, step, way):
    inputs = random((tokens, WIDTH), (tokens, WIDTH))
    elements = {"forward": 3, "backward": 5}[step] * tokens * WIDTH
    rivals = {"liger": lambda gate, up: liger("liger_swiglu")(gate, up)}
    measure_op(benchmark, "swiglu", step, way, swiglu, swiglu_ref, inputs, elements_moved=elements, rivals=rivals)
