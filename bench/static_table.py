"""What the compiler makes of every Triton kernel, with no GPU: registers, spills, shared memory, MMA and vector loads.

    python -m bench.static_table --out bench/results/static      writes static_table.json and static_table.md

Each case is one kernel at one configuration that a GPU would launch, compiled to PTX and cubin for sm_80, sm_90 and
sm_100, and where shared memory decides for sm_86, sm_89 and sm_120. tests/kernels/test_static_table.py runs this in a
process of its own (Triton's interpreter must be off) and asserts.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from bench import sass_clocks, sass_registers

CAPABILITIES = (80, 90, 100)
SMALL = (86, 89, 120)  # GPUs that people own: for them the kernels that keep most in shared memory
SHARED_KIB_OF_SM = {80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}
CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kernel and one launch of it. `signature` gives each run-time argument's Triton type ("*bf16", "i32", "fp32");
    `constants` each constexpr argument's value. Pointers and the names in `aligned` are taken as divisible by 16."""

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    aligned: tuple[str, ...] = ()
    num_warps: int = 4
    num_stages: int = 2
    max_registers: int | None = None  # a thread, where the launch limits them
    capabilities: tuple[int, ...] = CAPABILITIES  # where it is launched like this
    # What the test holds the compiled kernel to:
    tensor_cores: bool = False  # its products run on them
    vectorised: bool = False  # its global loads are 16 bytes wide or more, but for 10 % of the bytes
    stack_budget_bytes: Mapping[int, int] = field(default_factory=dict)  # what a thread may spill, by chip; else 0


def compile_case(case: Case, capability: int) -> dict[str, Any]:
    """One row of the table. Raises triton's own error when the kernel does not compile."""
    names = case.kernel.arg_names
    signature = {n: "constexpr" if n in case.constants else case.signature[n] for n in names}
    constants = {(names.index(n),): value for n, value in case.constants.items()}
    aligned = [i for i, n in enumerate(names) if signature[n].startswith("*") or n in case.aligned]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = (GluonASTSource if case.kernel.is_gluon() else ASTSource)(case.kernel, signature, constants, attributes)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": case.num_warps, "num_stages": case.num_stages, "maxnreg": case.max_registers},
    )
    ptx: str = compiled.asm["ptx"]
    wgmma = Counter(re.findall(r"wgmma\.mma_async\.sync\.aligned\.m(\d+)n(\d+)k(\d+)", ptx))
    load_bytes = _load_bytes(ptx)
    usage = resource_usage(compiled.asm["cubin"])
    num_threads = int(re.findall(r"\.reqntid\s+(\d+)", ptx)[0])  # with the warps that a Gluon kernel adds
    return {
        "name": case.name,
        "sm": capability,
        "num_warps": num_threads // 32,
        "num_stages": case.num_stages,
        "shared_bytes": compiled.metadata.shared,
        "scratch_bytes": compiled.metadata.global_scratch_size,  # of global memory, from an allocator of Triton's
        **usage,
        "resident_blocks": resident_blocks(capability, num_threads, usage["registers"], compiled.metadata.shared),
        "loop_instructions": _loop_instructions(compiled.asm["cubin"]) if case.tensor_cores else 0,
        "wgmma": {"m{}n{}k{}".format(*shape): num for shape, num in sorted(wgmma.items())},
        # Multiply-adds that the code holds, a warp group each: loops count once.
        "wgmma_macs": sum(int(m) * int(n) * int(k) * num for (m, n, k), num in wgmma.items()),
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
        "tcgen05_mma": len(re.findall(r"tcgen05\.mma", ptx)),
        "setmaxnreg": len(re.findall(r"setmaxnreg", ptx)),
        "loads": len(load_bytes),
        "loads_below_4_bytes": sum(n < 4 for n in load_bytes),
        "wide_load_share": sum(n for n in load_bytes if n >= 16) / max(sum(load_bytes), 1),
        "tensor_cores": case.tensor_cores,
        "vectorised": case.vectorised,
        "stack_budget_bytes": case.stack_budget_bytes.get(capability, 0),
        # Registers of a wgmma that the machine code touches before it is waited for: what some ptxas do wrong.
        "touched_under_way": sass_registers.hazards(compiled.asm["cubin"]) if wgmma else (),
        "constants": {k: v for k, v in case.constants.items() if isinstance(v, int | float | str | bool)},
        **(_replayed(case, compiled, num_threads // 32, usage["registers"]) if wgmma else {}),
    }


def _replayed(case: Case, compiled: Any, num_warps: int, registers: int) -> dict[str, Any]:
    """Clocks of a turn of the loop of products by sass_clocks, and the queries and keys (of a matmul, rows and columns)
    that a turn pairs."""
    constants = case.constants
    block = [constants.get("BLOCK_M", 128), constants.get("BLOCK_N", 128)]  # Gluon's own side has 128 rows
    ring = None
    if "STAGES" in constants:  # of Gluon's kernels
        moved = constants.get("BLOCK_N") or constants["BLOCK_M"]
        ring = sass_clocks.Ring(stages=constants["STAGES"], fill_bytes=2 * moved * constants["D"] * 2)
    blocks = resident_blocks(90, 32 * num_warps, registers, compiled.metadata.shared)
    clocks = sass_clocks.loop_clocks(
        compiled.asm["cubin"], num_warps=num_warps, resident_blocks=min(blocks, 2), ring=ring
    )
    return {"block": block, **{key: round(clocks[key]) for key in ("clocks", "product_clocks")}}


def _load_bytes(ptx: str) -> list[int]:
    """Bytes a thread loads from global memory, instruction by instruction."""
    loads = re.findall(r"\bld\.global\S*?(?:\.v(\d+))?\.[bfsu](\d+)\b", ptx)
    copies = re.findall(r"\bcp\.async\.c[ag]\.shared\.global.*?\], (0x[0-9a-f]+|\d+)", ptx)
    return [int(vector or 1) * int(bits) // 8 for vector, bits in loads] + [int(size, 0) for size in copies]


def _cuobjdump(option: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout


def resident_blocks(sm: int, num_threads: int, registers: int, shared_bytes: int) -> int:
    """Thread blocks that a multiprocessor holds at once: 64K registers, given out by 8 a thread; its shared memory, of
    which a block takes 1 KB more than it asks for; 64 warps. CUDA C++ Programming Guide, compute capabilities."""
    by_registers = 65_536 // (-(-registers // 8) * 8 * num_threads)
    by_shared = 1024 * SHARED_KIB_OF_SM[sm] // (shared_bytes + 1024)
    return min(by_registers, by_shared, 2048 // num_threads)


def _loop_instructions(cubin: bytes) -> int:
    """Machine instructions of the smallest loop that holds most of the tensor core ones: one pair of blocks."""
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", _cuobjdump("-sass", cubin))
    code = [(int(address, 16), text) for address, text in lines]
    loops = []
    for address, text in code:
        jump = re.search(r"\bBRA\b.*?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) < address:
            body = [text for at, text in code if int(jump[1], 16) <= at <= address]
            if any("SETMAXREG" in text for text in body):  # the loop in which Gluon's warps wait for their part
                continue
            num_products = sum("MMA" in text for text in body)  # HMMA, HGMMA, UTCHMMA
            loops.append((-num_products, len(body)))
    return min(loops, default=(0, 0))[1]


def resource_usage(cubin: bytes) -> dict[str, int]:
    text = _cuobjdump("-res-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage printed no registers:\n{text}")
    return {"registers": int(found[1]), "stack_bytes": int(found[2])}


@cache
def all_cases() -> tuple[Case, ...]:
    """Every kernel that the library launches, at the shapes of Eagle 2.5."""
    from bench import static_cases

    cases = tuple(static_cases.cases())
    launched = Counter((case.name, sm) for case in cases for sm in case.capabilities)
    twice = [f"{name} on sm_{sm}" for (name, sm), num in launched.items() if num > 1]
    if twice:
        raise ValueError(f"bench.static_cases names {twice} more than once; each case needs a name of its own.")
    return cases


def _compile_numbered(job: tuple[int, int]) -> dict[str, Any]:
    index, capability = job  # numbers, since a kernel does not travel between processes
    return compile_case(all_cases()[index], capability)


def _markdown(rows: list[dict[str, Any]]) -> str:
    """The kernels that multiply on tensor cores, the columns that decide their launches."""
    lines = [
        f"Triton {triton.__version__}; written by `python -m bench.static_table`. Block: query rows x key rows. Loop:",
        "machine instructions a warp of one pair of blocks. Resident: blocks a multiprocessor, by registers and shared",
        "memory.",
        "",
        "| kernel | sm | block | warps | registers | spill, bytes | shared, KB | resident | MMA | loop |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if not row["tensor_cores"]:
            continue
        mma = ", ".join(f"{num} {shape}" for shape, num in row["wgmma"].items()) or row["mma"] or row["tcgen05_mma"]
        block = "{BLOCK_M}x{BLOCK_N}".format(**{"BLOCK_M": 128, "BLOCK_N": 128} | row["constants"])  # 128: Gluon's
        lines.append(
            f"| {row['name']} | {row['sm']} | {block} | {row['num_warps']} | {row['registers']} | {row['stack_bytes']} "
            f"| {row['shared_bytes'] / 1024:.0f} | {row['resident_blocks']} | {mma} | {row['loop_instructions']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that takes static_table.json")
    parser.add_argument("--only", default="", help="only cases whose name holds this")
    parser.add_argument("--processes", type=int, default=2, help="compile so many at once")
    args = parser.parse_args()
    jobs = [(i, sm) for i, case in enumerate(all_cases()) if args.only in case.name for sm in case.capabilities]
    with ProcessPoolExecutor(args.processes) as pool:
        rows = list(pool.map(_compile_numbered, jobs))
    args.out.mkdir(parents=True, exist_ok=True)
    table = {"triton": triton.__version__, "rows": rows}
    (args.out / "static_table.json").write_text(json.dumps(table, indent=1) + "\n")
    (args.out / "static_table.md").write_text(_markdown(rows))


if __name__ == "__main__":
    main()
