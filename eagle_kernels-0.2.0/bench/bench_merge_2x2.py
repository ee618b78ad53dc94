"""The 2x2 merge at the vision tower's width, tiles of 1024 patches."""

import pytest

from bench.fused import STEPS, TOKENS, WAYS, measure_op, random
from bench.harness import seconds
from eagle_kernels.merge_2x2 import merge_2x2, merge_2x2_ref

pytestmark = [
    pytest.mark.benchmark(timer=seconds),
    pytest.mark.parametrize("way", WAYS),
    pytest.mark.parametrize("step", STEPS),
]

WIDTH = 1152


@pytest.mark.parametrize("tiles", [max(1, tokens // 1024) for tokens in TOKENS])
def test_merge_2x2(benchmark, tiles, step, way):
    inputs = random((tiles, 1024, WIDTH))
    elements = 2 * tiles * 1024 * WIDTH
    measure_op(benchmark, "merge_2x2", step, way, merge_2x2, merge_2x2_ref, inputs, elements_moved=elements)
