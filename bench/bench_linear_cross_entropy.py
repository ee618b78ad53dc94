"""Linear cross-entropy, forward and backward together: every token supervised, and one of ten."""

from functools import partial

import pytest
import torch

from bench.fused import DTYPE, WAYS_AND_LIGER, liger, random
from bench.harness import DEVICE, measure, seconds
from eagle_kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_ref

pytestmark = pytest.mark.benchmark(timer=seconds)
T, C, V = (4096, 3584, 152_064) if DEVICE == "cuda" else (64, 64, 1000)
ALL_WAYS = (*WAYS_AND_LIGER, "cce_exact") if DEVICE == "cuda" else WAYS_AND_LIGER


@pytest.mark.parametrize("way", ALL_WAYS)
@pytest.mark.parametrize("supervised_percent", [100, 10])
def test_loss_and_gradients(benchmark, supervised_percent, way):
    """FLOPs count the three matmuls over supervised tokens only."""
    benchmark.group = f"linear_cross_entropy, {T} x {C} x {V}, {supervised_percent} % supervised"
    fn = linear_cross_entropy if way == "ours" else linear_cross_entropy_ref
    if way == "torch.compile":
        fn = torch.compile(fn)
    elif way == "liger":
        fn = liger("liger_fused_linear_cross_entropy")
    elif way == "cce_exact":
        why = "cut-cross-entropy is not installed: pip install 'eagle-kernels[rivals]'"
        fn = partial(pytest.importorskip("cut_cross_entropy", reason=why).linear_cross_entropy, impl="cce_exact")
    inputs = random((T, C), (V, C))
    with torch.no_grad():
        inputs[1] *= C**-0.5  # logits of deviation 1: at 60, bf16 logits are whole units off and no gradient is right
    labels = torch.randint(0, V, (T,), generator=torch.Generator().manual_seed(1))
    labels[T * supervised_percent // 100 :] = -100
    labels = labels.to(DEVICE)

    def run() -> list[torch.Tensor]:
        loss = fn(*inputs, labels)
        return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    wide = [x.detach().float().requires_grad_() for x in inputs]
    want = linear_cross_entropy_ref(*wide, labels)
    grads = torch.autograd.grad(want, wide)
    flops = 6 * C * V * (T * supervised_percent // 100)
    measure(benchmark, run, [want.detach(), *grads], dtype=DTYPE, flops=flops)
