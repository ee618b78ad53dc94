"""The tile tables of a packed batch: csrc/attention_plan beside the same in torch operations."""

import time

import pytest
import torch

from bench.bench_attention import long_tailed
from bench.harness import DEVICE, measure, seconds
from eagle_kernels.attention_plan import _tiles, _tiles_ref

CLOCK = seconds if DEVICE == "cuda" else time.process_time  # other programs' time is not ours
pytestmark = pytest.mark.benchmark(timer=CLOCK)
PATTERNS = {
    "packed 32K": long_tailed(32_768, 4096),
    "packed 128K": long_tailed(131_072, 4096),
    "100,000 documents": torch.randint(20, (100_000,), generator=torch.Generator().manual_seed(0)).tolist(),
}
WAYS = {"ours": _tiles, "torch": _tiles_ref}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_attention_plan(benchmark, pattern, way):
    benchmark.group = f"attention plan, {pattern}"
    length = torch.tensor(PATTERNS[pattern])
    num_tokens, start = int(length.sum()), length.cumsum(0) - length
    segments = torch.stack((start, length, start, length), dim=1).int().to(DEVICE)
    arguments = (segments, num_tokens, num_tokens, True, True)
    run = WAYS[way]
    measure(benchmark, lambda: run(*arguments), _tiles_ref(*arguments), dtype=torch.int32, tolerance=0)
