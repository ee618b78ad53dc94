"""How every op's bench measures: gate, cold cache, the GPU's own clock, median with p20 and p80, percent of a ceiling.

A bench is a test function that takes pytest-benchmark's fixture:

    pytestmark = pytest.mark.benchmark(timer=seconds)

    def test_forward(benchmark, ...):
        measure(benchmark, run, want, flops=..., dtype=...)

`pytest bench --benchmark-disable` runs each once, as a test; without the option they are timed and tabulated.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 50 if DEVICE == "cuda" else 5
SECONDS_A_BENCH = 5  # 128K tokens of attention take a second or more: 5 rounds then, not 50
WARM_UP_ROUNDS = 5 if DEVICE == "cuda" else 1
# More than any L2: each round finds a cold cache. And so much for a GPU to write (0.3 ms at 3 TB/s) that Python has
# queued a run's kernels behind it before the first can start: what the host takes to launch them is not measured.
FLUSH_BYTES = 2**30


def rival(module: str, package: str) -> Any:
    """A rival's module. Where it does not load (it is not there, or built for another torch), this bench alone is
    skipped and a session's summary names the package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        pytest.skip(f"could not import '{package}' (docs/notes/fused_ops.md has the installation): {error}")


class Moment:
    """A place in the GPU's queue. The difference of two is the seconds that the GPU took from one to the other."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record()

    def __sub__(self, earlier: Moment) -> float:
        self._event.synchronize()
        return earlier._event.elapsed_time(self._event) / 1e3


def seconds() -> float | Moment:
    """The clock of every bench: wall time on a CPU, a place in the queue on a GPU."""
    return Moment() if DEVICE == "cuda" else time.perf_counter()


def measure(
    benchmark: Any,
    run: Callable[[], Sequence[Tensor]],
    want: Sequence[Tensor],
    *,
    dtype: torch.dtype,
    flops: float = 0,
    bytes_moved: float = 0,
    tolerance: float = 0.02,
    prepare: Callable[[], object] = lambda: None,
) -> None:
    """Times `run`, and first refuses it unless its results are `want`'s, to `tolerance` of their largest value.

    prepare: called before each `run` and not timed: puts back what the last one overwrote, or tells other processes.
    Adds to the result: p20, p80, and TFLOP/s (percent of a large matmul here) or TB/s (percent of a large copy here);
    on a GPU peak_bytes, the most memory that a run takes beside its inputs, results included.
    """
    prepare()
    results = run()  # compiles, if it must
    for i, (got, true) in enumerate(zip(results, want, strict=True)):
        error = (got.double() - true.double()).abs().max().item()
        allowed = tolerance * true.double().abs().max().item()
        if not error <= allowed:
            raise AssertionError(f"result {i} is off by {error:.3g}, allowed {allowed:.3g}: not worth measuring.")
    prepare()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        allocated_bytes = torch.cuda.memory_allocated()
    start = seconds()
    run()
    rounds = min(ROUNDS, max(5, int(SECONDS_A_BENCH / (seconds() - start))))
    if DEVICE == "cuda":
        benchmark.extra_info["peak_bytes"] = torch.cuda.max_memory_allocated() - allocated_bytes
    flush = torch.empty(FLUSH_BYTES if DEVICE == "cuda" else 0, dtype=torch.uint8, device=DEVICE)

    def set_up() -> None:
        prepare()
        flush.zero_()

    benchmark.pedantic(run, setup=set_up, rounds=rounds, warmup_rounds=min(WARM_UP_ROUNDS, rounds))
    if benchmark.stats is None:  # --benchmark-disable
        return
    times = sorted(benchmark.stats.stats.data)
    median = times[len(times) // 2]
    info = {"p20_seconds": times[len(times) // 5], "p80_seconds": times[len(times) * 4 // 5]}
    if flops:
        info |= {"tflops": flops / median / 1e12, "percent_of_matmul": 100 * flops / median / matmul_flops(dtype)}
    if bytes_moved:
        info |= {"terabytes_per_second": bytes_moved / median / 1e12}
        info |= {"percent_of_copy": 100 * bytes_moved / median / copy_bytes_per_second()}
    benchmark.extra_info.update(info)


@cache
def matmul_flops(dtype: torch.dtype) -> float:
    """FLOP/s of a large matmul of random values on this device: the ceiling of what is bound by arithmetic."""
    size = 8192 if DEVICE == "cuda" else 1024
    a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _median_seconds(lambda: a @ b)


@cache
def copy_bytes_per_second() -> float:
    """Bytes read and written in a second by a large copy: the ceiling of what is bound by memory."""
    source = torch.ones(2**30 if DEVICE == "cuda" else 2**26, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / _median_seconds(lambda: target.copy_(source))


def _median_seconds(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(10):  # each long enough that its launch does not count
        start = seconds()
        run()
        times.append(seconds() - start)
    return sorted(times)[len(times) // 2]
