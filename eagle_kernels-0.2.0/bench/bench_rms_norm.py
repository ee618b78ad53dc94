"""RMSNorm at the language model's width, alone and with the residual addition."""

import pytest

from bench.fused import STEPS, TOKENS, WAYS_AND_LIGER, liger, measure_op, random
from bench.harness import DEVICE, rival, seconds
from eagle_kernels.rms_norm import add_rms_norm, add_rms_norm_ref, rms_norm, rms_norm_ref

pytestmark = [
    pytest.mark.benchmark(timer=seconds),
    pytest.mark.parametrize("way", (*WAYS_AND_LIGER, "quack") if DEVICE == "cuda" else WAYS_AND_LIGER),
    pytest.mark.parametrize("step", STEPS),
]

WIDTH = 3584
EPS = 1e-6


@pytest.mark.parametrize("tokens", TOKENS)
def test_rms_norm(benchmark, tokens, step, way):
    inputs = random((tokens, WIDTH), (WIDTH,))
    elements = {"forward": 2, "backward": 3}[step] * tokens * WIDTH
    op, ref = (lambda x, w, f=f: f(x, w, EPS) for f in (rms_norm, rms_norm_ref))
    rivals = {
        "liger": lambda x, w: liger("liger_rms_norm")(x, w, EPS, in_place=False),
        "quack": lambda x, w: rival("quack.rmsnorm", "quack-kernels").rmsnorm(x, w, eps=EPS),
    }
    measure_op(benchmark, "rms_norm", step, way, op, ref, inputs, elements_moved=elements, rivals=rivals)


@pytest.mark.parametrize("tokens", TOKENS)
def test_add_rms_norm(benchmark, tokens, step, way):
    inputs = random((tokens, WIDTH), (tokens, WIDTH), (WIDTH,))
    elements = 4 * tokens * WIDTH
    op, ref = (lambda x, r, w, f=f: f(x, r, w, EPS) for f in (add_rms_norm, add_rms_norm_ref))
    rivals = {
        "liger": lambda x, r, w: liger("liger_fused_add_rms_norm")(x, r, w, EPS, in_place=False),
        "quack": lambda x, r, w: rival("quack.rmsnorm", "quack-kernels").rmsnorm(
            x, w, residual=r, eps=EPS, prenorm=True
        ),
    }
    measure_op(benchmark, "add_rms_norm", step, way, op, ref, inputs, elements_moved=elements, rivals=rivals)
