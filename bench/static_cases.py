"""The launches that `static_table` compiles: each op's kernels at the shapes of Eagle 2.5, one function an op."""

from __future__ import annotations

import torch

from bench.static_table import Case
from eagle_kernels import attention


def cases() -> list[Case]:
    return attention_cases()


# dk and dv fill the registers. On sm_90 nothing spills at the model's own shapes; these are sm_80 and sm_100.
ATTENTION_STACK_BYTES = {("dkdv", "vision"): 272, ("dkdv", "llm"): 208, ("dkdv", "widest"): 64}


def attention_cases() -> list[Case]:
    """The vision tower (72 wide, full), the language model (128 wide, causal, 7 query heads a key head), the widest."""
    shapes = [  # name, D, query heads, key heads, causal
        ("vision", 72, 16, 16, False),
        ("llm", 128, 28, 4, True),
        ("widest", 256, 8, 4, True),
    ]
    return [case for shape in shapes for case in _attention_cases(*shape)]


def _attention_cases(name: str, D: int, H: int, K: int, causal: bool) -> list[Case]:
    main, tail = attention.pieces(D)
    launches = attention.launches(D, torch.bfloat16)
    shared = {
        "G": H // K, "D": D, "MAIN": main, "TAIL": tail, "UNIT": 8, "CAUSAL": causal, "TILE": attention.TILE,
    }  # fmt: skip
    kernels = [
        ("fwd", attention._fwd_kernel, launches.fwd, {"H": H}),
        ("dq", attention._dq_kernel, launches.dq, {"H": H}),
        ("dkdv", attention._dkdv_kernel, launches.dkdv, {"K": K}),
    ]
    cases = [
        Case(
            name=f"attention_{step}_{name}",
            kernel=kernel,
            signature=_attention_signature(kernel.arg_names),
            constants={**shared, **heads, "BLOCK_M": launch.block_m, "BLOCK_N": launch.block_n},
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
            tensor_cores=True,
            vectorised=True,
            stack_budget_bytes=ATTENTION_STACK_BYTES.get((step, name), 0),
        )
        for step, kernel, launch, heads in kernels
    ]
    delta = Case(
        name=f"attention_delta_{name}",
        kernel=attention._delta_kernel,
        signature=_attention_signature(attention._delta_kernel.arg_names),
        constants={"H": H, "D": D, "WIDTH": 1 << (D - 1).bit_length(), "UNIT": 8, "BLOCK": attention.DELTA_BLOCK},
        vectorised=True,
    )
    return [*cases, delta]


def _attention_signature(names: list[str]) -> dict[str, str]:
    fp32 = {"lse_ptr", "dlse_ptr", "delta_ptr"}
    int32 = {"segments_ptr", "tiles_ptr"}
    signature = {}
    for name in names:
        if name.endswith("_ptr"):
            signature[name] = "*fp32" if name in fp32 else "*i32" if name in int32 else "*bf16"
        else:
            signature[name] = "fp32" if name.startswith("scale") else "i32"
    return signature
