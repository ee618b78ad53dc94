"""What the compiler makes of every Triton kernel, with no GPU: registers, spills, shared memory, MMA and vector loads.

    python -m bench.static_table --out bench/results/static

Each case is one kernel at one configuration that a GPU would launch, compiled to PTX and cubin for sm_80, sm_90 and
sm_100. tests/kernels/test_static.py runs this in a process of its own (Triton's interpreter must be off) and asserts.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CAPABILITIES = (80, 90, 100)
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


def compile_case(case: Case, capability: int) -> dict[str, Any]:
    """One row of the table. Raises triton's own error when the kernel does not compile."""
    names = case.kernel.arg_names
    signature = {n: "constexpr" if n in case.constants else case.signature[n] for n in names}
    constants = {(names.index(n),): value for n, value in case.constants.items()}
    aligned = [i for i, n in enumerate(names) if signature[n].startswith("*") or n in case.aligned]
    source = ASTSource(
        fn=case.kernel,
        signature=signature,
        constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": case.num_warps, "num_stages": case.num_stages},
    )
    ptx: str = compiled.asm["ptx"]
    return {
        "name": case.name,
        "sm": capability,
        "num_warps": case.num_warps,
        "num_stages": case.num_stages,
        "shared_bytes": compiled.metadata.shared,
        **_resource_usage(compiled.asm["cubin"]),
        "wgmma": dict(_count(re.findall(r"wgmma\.mma_async\.sync\.aligned\.(m\d+n\d+k\d+)", ptx))),
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
        "tcgen05_mma": len(re.findall(r"tcgen05\.mma", ptx)),
        "setmaxnreg": len(re.findall(r"setmaxnreg", ptx)),
        "loads_16_bytes": len(re.findall(r"ld\.global\S*\.v4\.b32|ld\.global\S*\.v2\.b64|cp\.async\S*, 0x10|\.v8\.b16", ptx)),
        "loads": len(re.findall(r"\bld\.global", ptx)),
        "constants": {k: v for k, v in case.constants.items() if isinstance(v, int | float | str | bool)},
    }


def _count(items: list[str]) -> list[tuple[str, int]]:
    return [(item, items.count(item)) for item in sorted(set(items))]


def _resource_usage(cubin: bytes) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump -res-usage printed no registers:\n{text}")
    return {"registers": int(found[1]), "spill_bytes": int(found[2])}


def all_cases() -> list[Case]:
    """Every kernel that the library launches, at the shapes of Eagle 2.5."""
    from bench import static_cases

    return static_cases.cases()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that takes static_table.json")
    parser.add_argument("--only", default="", help="only cases whose name holds this")
    args = parser.parse_args()
    rows = [
        compile_case(case, capability) for case in all_cases() if args.only in case.name for capability in CAPABILITIES
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    table = {"triton": triton.__version__, "rows": rows}
    (args.out / "static_table.json").write_text(json.dumps(table, indent=1, default=asdict) + "\n")


if __name__ == "__main__":
    main()
