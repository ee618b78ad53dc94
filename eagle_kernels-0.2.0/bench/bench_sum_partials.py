"""The last step of a norm's weight gradient: what 264 programs added up, at the language model's width."""

import pytest
import torch

from bench.harness import DEVICE, measure, seconds
from eagle_kernels.sum_partials import sum_partials, sum_partials_ref

pytestmark = pytest.mark.benchmark(timer=seconds, group="sum_partials")

PROGRAMS, WIDTH = 264, 3584


@pytest.mark.parametrize("way", ("ours", "torch") if DEVICE == "cuda" else ("torch",))  # the kernel has no CPU path
def test_sum_partials(benchmark, way):
    partials = torch.randn(PROGRAMS, WIDTH, device=DEVICE)
    run = {"ours": sum_partials, "torch": sum_partials_ref}[way]
    want = [partials.double().sum(0)]
    measure(benchmark, lambda: [run(partials, torch.float32)], want, dtype=torch.float32, bytes_moved=partials.nbytes)
