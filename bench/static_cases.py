"""The launches that `static_table` compiles: each op's kernels at the shapes of Eagle 2.5, one function an op."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import torch

from bench.static_table import Case
from eagle_kernels import attention


def cases() -> list[Case]:
    return [*attention_cases(), *fused_cases()]


# dk and dv fill the registers of a thread block: nothing spills on sm_90 at the model's own shapes, a little elsewhere.
ATTENTION_STACK_BYTES = {
    ("dkdv", "vision"): {80: 128, 100: 320},
    ("dkdv", "llm"): {80: 256, 100: 512},
    ("dkdv", "widest"): {80: 128, 90: 128, 100: 128},
}


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
            stack_budget_bytes=ATTENTION_STACK_BYTES.get((step, name), {}),
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


def fused_cases() -> list[Case]:
    """The memory-bound ops in bf16 at Eagle's widths; both directions, every gradient asked for."""
    # import_module: `eagle_kernels.rms_norm` as an attribute is the function of that name.
    names = (
        "gelu_bias",
        "layer_norm",
        "linear_cross_entropy",
        "merge_2x2",
        "rms_norm",
        "rope",
        "scatter_visual",
        "swiglu",
    )
    gelu_bias, layer_norm, linear_cross_entropy, merge_2x2, rms_norm, rope, scatter_visual, swiglu = (
        import_module(f"eagle_kernels.{name}") for name in names
    )
    cases = []
    for width in (3584,):
        tile = dict(zip(("ROWS", "COLS"), rms_norm._tile(width), strict=True))
        for prefix, add in (("rms_norm", False), ("add_rms_norm", True)):
            cases += [
                _fused(f"{prefix}_fwd_{width}", rms_norm._fwd_kernel, C=width, ADD=add, **tile),
                _fused(f"{prefix}_dh_{width}", rms_norm._dh_kernel, C=width, ADD=add, **tile),
            ]
        cases.append(_fused(f"rms_norm_dweight_{width}", rms_norm._dweight_kernel, C=width, **tile))
    for width in (1152, 4608):
        tile = dict(zip(("ROWS", "COLS"), layer_norm._tile(width), strict=True))
        for step in ("fwd", "dx", "dweight"):
            kernel = getattr(layer_norm, f"_{step}_kernel")
            cases.append(_fused(f"layer_norm_{step}_{width}", kernel, C=width, **tile))
    tile = dict(zip(("ROWS", "COLS"), swiglu._tile(18944), strict=True))
    needs = {"NEED_DGATE": True, "NEED_DUP": True}
    cases += [
        _fused("swiglu_fwd_18944", swiglu._fwd_kernel, WIDTH=18944, **tile),
        _fused("swiglu_bwd_18944", swiglu._bwd_kernel, WIDTH=18944, **needs, **tile),
    ]
    tile = dict(zip(("ROWS", "COLS"), gelu_bias._tile(4304), strict=True))
    needs = {"NEED_DX": True, "NEED_DBIAS": True}
    cases += [
        _fused("gelu_bias_fwd_4304", gelu_bias._fwd_kernel, WIDTH=4304, **tile),
        _fused("gelu_bias_bwd_4304", gelu_bias._bwd_kernel, WIDTH=4304, **needs, **tile),
    ]
    copies = {"COLS": merge_2x2.COLS}
    cases += [
        _fused("merge_2x2_1152", merge_2x2._kernel, PAIR=2 * 1152, INVERSE=False, **copies),
        _fused("merge_2x2_inverse_1152", merge_2x2._kernel, PAIR=2 * 1152, INVERSE=True, **copies),
    ]
    copies = {"C": 3584, "COLS": scatter_visual.COLS}
    needs = {"NEED_DEMBEDDINGS": True, "NEED_DVISUAL": True}
    cases += [
        _fused("scatter_visual_put_3584", scatter_visual._put_kernel, **copies),
        _fused("scatter_visual_take_3584", scatter_visual._take_kernel, **needs, **copies),
    ]
    half = 128 // 2
    tile = {"HALF": half, "ROWS": rope.TILE // half, "COLS": half}
    for inverse in (False, True):
        # sin and cos beyond 105615 radians take libdevice's slow path: a table in memory, an array on the stack.
        case = _fused(f"rope_{'inverse_' if inverse else ''}128", rope._kernel, INVERSE=inverse, **tile)
        cases.append(replace(case, vectorised=False, stack_budget_bytes=dict.fromkeys((80, 90, 100), 32)))
    kernel, constants = linear_cross_entropy._softmax_grad_kernel, {"V": 152_064, "BLOCK": linear_cross_entropy.BLOCK}
    for need_grad in (False, True):
        name = f"linear_cross_entropy_{'grad' if need_grad else 'loss'}_152064"
        cases.append(_fused(name, kernel, num_warps=8, NEED_GRAD=need_grad, **constants))
    return cases


def _fused(name: str, kernel: Any, *, num_warps: int = 4, **constants: int | bool) -> Case:
    fp32 = {"rstd_ptr", "mean_ptr", "partials_ptr", "frequencies_ptr", "scales_ptr", "losses_ptr"}
    integers = {"positions_ptr": "*i32", "rows_ptr": "*i64", "labels_ptr": "*i64", "eps": "fp32"}
    signature = {}
    for arg in kernel.arg_names:
        if arg.endswith("_ptr"):
            signature[arg] = integers.get(arg, "*fp32" if arg in fp32 else "*bf16")
        else:
            signature[arg] = integers.get(arg, "i32")
    return Case(
        name=name,
        kernel=kernel,
        signature=signature,
        constants=constants,
        aligned=tuple(arg for arg in kernel.arg_names if "stride" in arg and arg != "position_stride"),
        num_warps=num_warps,
        vectorised=True,
    )
