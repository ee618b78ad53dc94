"""Products of a step of generation on a CPU: a few rows with a weight of the model's own sizes; beside torch's linear.

`bytes_moved` is the weight, read once. On a CPU the clock counts CPU seconds of all threads: OMP_NUM_THREADS=1 compares
work. The op is of CPUs alone, so that a machine with a GPU has the same.
"""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F

from bench.harness import measure
from eagle_kernels.few_rows import DTYPES, few_rows, few_rows_ref

pytestmark = pytest.mark.benchmark(timer=time.process_time)

SHAPES = {"768 to 4096": (768, 4096), "3584 to 37888": (3584, 37_888)}  # of the bench's 90M, and of the 8B


@pytest.mark.parametrize("way", ["ours", "torch"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 8, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_few_rows(benchmark, rehearsed, shape, rows, dtype, way):
    C, num_outs = SHAPES[shape]
    num_outs = num_outs // 16 if rehearsed else num_outs
    generator = torch.Generator().manual_seed(0)
    x_TC, weight_FC = (torch.randn(n, C, generator=generator).to(dtype) for n in (rows, num_outs))
    run = {"ours": few_rows, "torch": F.linear}[way]
    benchmark.group = f"few_rows, {rows} rows, {shape}, {dtype}"
    want = few_rows_ref(x_TC.float(), weight_FC.float())
    measure(benchmark, lambda: [run(x_TC, weight_FC)], [want], dtype=dtype, bytes_moved=weight_FC.nbytes)
