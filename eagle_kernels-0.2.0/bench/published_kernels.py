"""Kernels whose speed on an H100 others have published, for sass_clocks.py to be held against.

    python -m bench.published_kernels           replay, published figure, and their ratio

The forward attention of Triton's tutorial 06, its main loop in our words: by pointers as in 2024, by tensor descriptors
as in 2025; fp16, no mask. The tutorial tunes itself, so that the best of its launches counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench import sass_clocks
from bench.static_table import resident_blocks, resource_usage


@triton.jit
def by_pointers(  # type: ignore[no-untyped-def]
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    scale_log2,
    stride,
    length,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cols, keys = tl.arange(0, D), tl.arange(0, BLOCK_N)
    q = tl.load(q_ptr + rows[:, None] * stride + cols[None, :])
    k_ptrs = k_ptr + keys[None, :] * stride + cols[:, None]
    v_ptrs = v_ptr + keys[:, None] * stride + cols[None, :]
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.full([BLOCK_M], 1.0, tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    for _ in range(0, length, BLOCK_N):
        s = tl.dot(q, tl.load(k_ptrs))
        new_top = tl.maximum(top, tl.max(s, 1) * scale_log2)
        p = tl.math.exp2(s * scale_log2 - new_top[:, None])
        shrink = tl.math.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(tl.float16), tl.load(v_ptrs), acc * shrink[:, None])
        top = new_top
        k_ptrs += BLOCK_N * stride
        v_ptrs += BLOCK_N * stride
    tl.store(out_ptr + rows[:, None] * stride + cols[None, :], (acc / total[:, None]).to(tl.float16))


@triton.jit
def by_descriptors(  # type: ignore[no-untyped-def]
    q_desc,
    k_desc,
    v_desc,
    out_ptr,
    scale_log2,
    stride,
    length,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    first = tl.program_id(0) * BLOCK_M
    q = q_desc.load([first, 0])
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.full([BLOCK_M], 1.0, tl.float32)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    for key in range(0, length, BLOCK_N):
        s = tl.dot(q, k_desc.load([key, 0]).T)
        new_top = tl.maximum(top, tl.max(s, 1) * scale_log2)
        p = tl.math.exp2(s * scale_log2 - new_top[:, None])
        shrink = tl.math.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(tl.float16), v_desc.load([key, 0]), acc * shrink[:, None])
        top = new_top
    rows, cols = first + tl.arange(0, BLOCK_M), tl.arange(0, D)
    tl.store(out_ptr + rows[:, None] * stride + cols[None, :], (acc / total[:, None]).to(tl.float16))


@dataclass(frozen=True, kw_only=True)
class Published:
    name: str
    kernel: Any
    head_width: int
    launches: tuple[tuple[int, int, int, int], ...]  # queries, keys, warps, stages: what the tutorial tries
    tflops: float
    source: str


POINTERS = tuple((m, n, 4, stages) for m in (64, 128) for n in (32, 64) for stages in (3, 4))
DESCRIPTORS = ((64, 64, 4, 3), (128, 64, 4, 3), (128, 64, 4, 4), (128, 128, 8, 2), (128, 128, 8, 3))
PUBLISHED = (
    Published(
        name="tutorial 06 by pointers, 64 wide",
        kernel=by_pointers,
        head_width=64,
        launches=POINTERS,
        tflops=403,
        source="flash-attention, assets/flash3_fp16_fwd.png, 16K, full, 2024",
    ),
    Published(
        name="tutorial 06 by pointers, 128 wide",
        kernel=by_pointers,
        head_width=128,
        launches=POINTERS,
        tflops=477,
        source="pytorch/benchmark#2391, 16K, full, 2024",
    ),
    Published(
        name="tutorial 06 by descriptors, 128 wide",
        kernel=by_descriptors,
        head_width=128,
        launches=DESCRIPTORS,
        tflops=487,
        source="facebookexperimental/triton#205, 16K, full, 2025",
    ),
)


def replayed_tflops(published: Published, launch: tuple[int, int, int, int]) -> float:
    """Of one launch, without CALIBRATION."""
    block_m, block_n, num_warps, num_stages = launch
    D, kernel = published.head_width, published.kernel
    names = kernel.arg_names
    signature = dict.fromkeys(names, "*fp16") | {"scale_log2": "fp32", "stride": "i32", "length": "i32"}
    ring = None
    if kernel is by_descriptors:
        for name, rows in (("q_desc", block_m), ("k_desc", block_n), ("v_desc", block_n)):
            signature[name] = f"tensordesc<fp16[{rows}, {D}]>"
        ring = sass_clocks.Ring(stages=num_stages, fill_bytes=2 * block_n * D * 2)
    constants = {"D": D, "BLOCK_M": block_m, "BLOCK_N": block_n}
    signature |= dict.fromkeys(constants, "constexpr")
    divisible = [n for n in names if signature[n].startswith("*") or n in ("stride", "length")]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(n),): value for n, value in constants.items()},
        {(names.index(n),): [["tt.divisibility", 16]] for n in divisible},
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps, "num_stages": num_stages}
    )
    cubin = compiled.asm["cubin"]
    registers = resource_usage(cubin)["registers"]
    blocks = resident_blocks(90, 32 * num_warps, registers, compiled.metadata.shared)
    if not blocks:
        return 0.0
    clocks = sass_clocks.loop_clocks(cubin, num_warps=num_warps, resident_blocks=min(blocks, 3), ring=ring)["clocks"]
    chip = sass_clocks.CHIP
    return 4 * block_m * block_n * D / clocks * chip.num_sms * chip.clock_hz / 1e12


def main() -> None:
    print("| kernel | launch | replayed | published | published / replayed | source |\n|---|---|---|---|---|---|")
    for published in PUBLISHED:
        best, launch = max((replayed_tflops(published, launch), launch) for launch in published.launches)
        ratio = published.tflops / best
        print(f"| {published.name} | {launch} | {best:.0f} | {published.tflops} | {ratio:.2f} | {published.source} |")


if __name__ == "__main__":
    main()
