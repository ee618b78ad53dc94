"""The connector's first two steps in one: 2x2 blocks of the vision tower's patches, normalised at 4608 channels."""

import pytest

from bench.fused import STEPS, TOKENS, WAYS, measure_op, random
from bench.harness import seconds
from eagle_kernels.merge_2x2_layer_norm import merge_2x2_layer_norm, merge_2x2_layer_norm_ref

pytestmark = [
    pytest.mark.benchmark(timer=seconds),
    pytest.mark.parametrize("way", WAYS),
    pytest.mark.parametrize("step", STEPS),
]

WIDTH = 1152
EPS = 1e-5


@pytest.mark.parametrize("tiles", [max(1, tokens // 1024) for tokens in TOKENS])
def test_merge_2x2_layer_norm(benchmark, tiles, step, way):
    inputs = random((tiles, 1024, WIDTH), (4 * WIDTH,), (4 * WIDTH,))
    elements = {"forward": 2, "backward": 3}[step] * tiles * 1024 * WIDTH
    op, ref = (lambda x, w, b, f=f: f(x, w, b, EPS) for f in (merge_2x2_layer_norm, merge_2x2_layer_norm_ref))
    measure_op(benchmark, "merge_2x2_layer_norm", step, way, op, ref, inputs, elements_moved=elements)
