"""The launches that `static_table` compiles: each op's kernels at the shapes of Eagle 2.5, one function an op."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import torch
import triton

from bench.static_table import CAPABILITIES, SMALL, Case
from eagle_kernels import attention_gluon, attention_gluon_bwd, attention_sm90, attention_triton
from eagle_kernels.attention_plan import TILE
from eagle_kernels.attention_triton import DELTA_BLOCK

# Where Triton 3.6 takes more of the stack than the budgets below, which are 3.7's; all else keeps to them.
TRITON_36_STACK_BYTES = {
    "attention_dkdv_llm": {90: 96},
    "linear_cross_entropy_matmul_logits": {80: 80},
    "linear_cross_entropy_matmul_dweight": {80: 184, 90: 88},
}


def cases() -> list[Case]:
    all_cases = [*attention_cases(), *attention_sm90_cases(), *fused_cases()]
    if not triton.__version__.startswith("3.6."):
        return all_cases
    more = TRITON_36_STACK_BYTES
    return [replace(c, stack_budget_bytes={**c.stack_budget_bytes, **more.get(c.name, {})}) for c in all_cases]


# dk and dv fill the registers of a thread block: nothing spills on sm_90 at the model's own shapes, a little elsewhere.
ATTENTION_STACK_BYTES = {
    ("dkdv", "vision"): {80: 32, 120: 64},  # 80: by Triton 3.6; by 3.7 nothing
    ("dkdv", "vision_by_tables"): {80: 128, 90: 16, 100: 320},
    ("dq", "llm"): {86: 16, 120: 48},
    ("dkdv", "llm"): {80: 256, 86: 192, 90: 24, 100: 512, 120: 256},  # 90: three stages are worth more than what spills
    ("dkdv", "widest"): {80: 128, 90: 128, 100: 128},
    ("dkdv", "two_pieces_72"): {80: 128, 90: 64, 100: 320},
    ("fwd", "two_pieces_192"): {80: 96},
    ("dq", "two_pieces_192"): {80: 32},
    ("dkdv", "two_pieces_192"): {80: 96, 90: 96},
}


def attention_cases() -> list[Case]:
    """The vision tower (72 wide, full) by a uniform plan and by the tables; the language model (128 wide, causal, 7
    query heads a key head); the widest; two pieces, small and large, by the tables and causal."""
    shapes = [  # name, D, query heads, key heads, causal, uniform
        ("vision", 72, 16, 16, False, True),
        ("vision_by_tables", 72, 16, 16, False, False),
        ("llm", 128, 28, 4, True, False),
        ("widest", 256, 8, 4, True, False),
        ("two_pieces_72", 72, 16, 16, True, False),
        ("two_pieces_192", 192, 8, 4, True, False),
    ]
    cases = [case for shape in shapes for sm in CAPABILITIES for case in _attention_cases(*shape, sm)]
    for sm in SMALL:
        kept = [shape for shape in shapes if shape[0] == "widest" or (sm != 89 and shape[0] in ("vision", "llm"))]
        # sm_89's code is sm_86's, but for what ptxas makes of it.
        cases += [case for shape in kept for case in _attention_cases(*shape, sm) if "delta" not in case.name]
    return cases


def _attention_cases(name: str, D: int, H: int, K: int, causal: bool, uniform: bool, sm: int) -> list[Case]:
    main, tail = attention_triton.pieces(D)
    launches = attention_triton.launches(D, torch.bfloat16, sm=sm, whole=uniform, causal=causal)
    shared = {
        "G": H // K, "D": D, "MAIN": main, "TAIL": tail, "UNIT": 8, "CAUSAL": causal, "UNIFORM": uniform,
        "WHOLE": uniform, "TILE": TILE,
    }  # fmt: skip
    kernels = [
        ("fwd", attention_triton._fwd_kernel, launches.fwd, {"H": H}),
        ("dq", attention_triton._dq_kernel, launches.dq, {"H": H}),
        ("dkdv", attention_triton._dkdv_kernel, launches.dkdv, {"K": K}),
    ]
    cases = [
        Case(
            name=f"attention_{step}_{name}",
            kernel=kernel,
            signature=_attention_signature(kernel.arg_names),
            constants={**shared, **heads, "BLOCK_M": launch.block_m, "BLOCK_N": launch.block_n},
            aligned=("length",) if uniform else (),
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
            max_registers=launch.max_registers,
            capabilities=(sm,),
            tensor_cores=True,
            stack_budget_bytes=ATTENTION_STACK_BYTES.get((step, name), {}),
        )
        for step, kernel, launch, heads in kernels
    ]
    delta = Case(
        name=f"attention_delta_{name}",
        kernel=attention_triton._delta_kernel,
        signature=_attention_signature(attention_triton._delta_kernel.arg_names),
        constants={"H": H, "D": D, "WIDTH": 1 << (D - 1).bit_length(), "UNIT": 8, "BLOCK": DELTA_BLOCK},
        capabilities=(sm,),
        vectorised=True,
    )
    return cases if D == 72 and not uniform else [*cases, delta]  # the same kernel as the vision tower's


def attention_sm90_cases() -> list[Case]:
    """The Gluon kernels: the model's own shapes as in attention_cases, and the third width that they take."""
    shapes = [
        ("vision", 72, 16, 16, False, True),
        ("vision_by_tables", 72, 16, 16, False, False),
        ("llm", 128, 28, 4, True, False),
        ("64", 64, 16, 16, True, False),
    ]
    return [case for shape in shapes for case in _attention_sm90_cases(*shape)]


def _attention_sm90_cases(name: str, D: int, H: int, K: int, causal: bool, uniform: bool) -> list[Case]:
    main, tail = attention_triton.pieces(D)
    fwd, dq, dkdv = attention_sm90.rings(D)
    rows = attention_sm90.GROUP_ROWS
    shared = {"G": H // K, "D": D, "MAIN": main, "TAIL": tail, "CAUSAL": causal, "UNIFORM": uniform}
    kernels = [  # step, kernel, ring, rows of a block of queries and of one of keys, constants
        ("fwd", attention_gluon.fwd_kernel, fwd, rows, fwd.block, {"H": H, "BLOCK_N": fwd.block}),
        ("dq", attention_gluon_bwd.dq_kernel, dq, rows, dq.block, {"H": H, "BLOCK_N": dq.block}),
        ("dkdv", attention_gluon_bwd.dkdv_kernel, dkdv, dkdv.block, rows, {"K": K, "BLOCK_M": dkdv.block}),
    ]
    cases = []
    for step, kernel, ring, q_rows, k_rows, constants in kernels:
        signature = _attention_signature(kernel.arg_names)
        absent = {}
        for argument in (x for x in kernel.arg_names if x.endswith("_desc")):
            num_rows, width = k_rows if argument[0] in "kv" else q_rows, tail if "tail" in argument else main
            if width:
                layout = attention_sm90.layout(num_rows, width)
                signature[argument] = f"tensordesc<bf16[1, 1, {num_rows}, 1, {width}],{layout!r}>"
            else:
                absent[argument] = None
        cases.append(
            Case(
                name=f"attention_sm90_{step}_{name}",
                kernel=kernel,
                signature=signature,
                constants={**shared, **constants, **absent, "STAGES": ring.stages},
                num_warps=attention_sm90.OPTIONS["num_warps"],
                max_registers=attention_sm90.OPTIONS["maxnreg"],
                capabilities=(90,),
                tensor_cores=True,
            )
        )
    return cases


def _attention_signature(names: list[str]) -> dict[str, str]:
    fp32 = {"lse_ptr", "lse_log2_ptr", "dlse_ptr", "delta_ptr"}
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
        "linear_cross_entropy_triton",
        "merge_2x2",
        "qkv_rope",
        "rms_norm",
        "rope",
        "sum_partials",
        "swiglu",
    )
    gelu_bias, layer_norm, linear_cross_entropy, merge_2x2, qkv_rope, rms_norm, rope, sum_partials, swiglu = (
        import_module(f"eagle_kernels.{name}") for name in names
    )
    cases = []
    for width in (3584,):
        tile = dict(zip(("ROWS", "COLS"), rms_norm._tile(width), strict=True))
        for prefix, add in (("rms_norm", False), ("add_rms_norm", True)):
            cases.append(_fused(f"{prefix}_fwd_{width}", rms_norm._fwd_kernel, C=width, ADD=add, **tile))
            launch = _rows_launch(sum_partials.whole_rows_launch(width, (3 if add else 2) * 2))
            needs = {"NEED_DH": True, "NEED_DWEIGHT": True}
            cases.append(_fused(f"{prefix}_bwd_{width}", rms_norm._bwd_kernel, C=width, ADD=add, **needs, **launch))
    for prefix, width, merge in (("", 1152, False), ("", 4608, False), ("merge_2x2_", 4608, True)):
        name = f"{prefix}layer_norm"
        tile = dict(zip(("ROWS", "COLS"), layer_norm._tile(width), strict=True))
        cases.append(_fused(f"{name}_fwd_{width}", layer_norm._fwd_kernel, C=width, MERGE=merge, **tile))
        launch = _rows_launch(sum_partials.whole_rows_launch(width, 2 * 2))
        needs = {"NEED_DX": True, "NEED_DWEIGHT": True}
        cases.append(_fused(f"{name}_bwd_{width}", layer_norm._bwd_kernel, C=width, MERGE=merge, **needs, **launch))
    cases.append(
        _fused("sum_partials_3584", sum_partials._kernel, C=3584, ROWS=sum_partials.ROWS, COLS=sum_partials.COLS)
    )
    tile = dict(zip(("ROWS", "COLS"), swiglu._tile(18944), strict=True))
    needs = {"NEED_DGATE": True, "NEED_DUP": True}
    cases += [
        _fused("swiglu_fwd_18944", swiglu._fwd_kernel, WIDTH=18944, **tile),
        _fused("swiglu_bwd_18944", swiglu._bwd_kernel, WIDTH=18944, GRAD_STRIDE=18944, **needs, **tile),
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
    half = 128 // 2
    plain = {"PER_TOKEN": False, "SCALE": 1.0}
    tile = {"HALF": half, "ROWS": rope.TILE // half, "COLS": half, **plain}
    for inverse in (False, True):
        # sin and cos beyond 105615 radians take libdevice's slow path: a table in memory, an array on the stack.
        case = _fused(f"rope_{'inverse_' if inverse else ''}128", rope._kernel, INVERSE=inverse, **tile)
        cases.append(replace(case, vectorised=False, stack_budget_bytes=dict.fromkeys((80, 90, 100), 32)))
    tile = dict(zip(("ROWS", "COLS"), qkv_rope._tile(128), strict=True))
    tile |= {"H": 28, "K": 4, "HALF": half, "HEADS": qkv_rope.HEADS, **plain}
    needs = {"NEED_DQKV": True, "NEED_DBIAS": True}
    for case in (
        _fused("qkv_rope_fwd_128", qkv_rope._fwd_kernel, HAS_BIAS=True, **tile),
        _fused("qkv_rope_bwd_128", qkv_rope._bwd_kernel, **needs, **tile),
    ):
        cases.append(replace(case, vectorised=False, stack_budget_bytes=dict.fromkeys((80, 90, 100), 48)))
    kernel, constants = linear_cross_entropy._softmax_kernel, {"V": 152_064, "BLOCK": linear_cross_entropy.BLOCK}
    for step, read, grad in (("loss", True, False), ("loss_and_grad", True, True), ("grad", False, True)):
        name = f"linear_cross_entropy_{step}_152064"
        case = _fused(name, kernel, num_warps=8, READ=read, GRAD=grad, **constants)
        # One loop alone: the row's label and count weigh as much in the code as its 16-byte loads.
        cases.append(replace(case, vectorised=read and grad))
    for chips in (CAPABILITIES, (86, 120)):
        cases += linear_cross_entropy_matmul_cases(linear_cross_entropy, chips)
    return cases


# A 128 x 256 fp32 tile is half of a thread's registers; what spills lies outside the loop of wgmma.
LINEAR_CROSS_ENTROPY_STACK_BYTES: dict[str, dict[int, int]] = {
    "logits": {80: 64},
    "dhidden": {80: 208, 120: 32},
    "dweight": {80: 176, 90: 80, 100: 432, 120: 48},
}


def linear_cross_entropy_matmul_cases(module: Any, chips: tuple[int, ...]) -> list[Case]:
    """The three matmuls of a chunk in bf16, each with its own operand transposed; the strides of 1 are constants. The
    chips are launched alike."""
    launch = module.matmul_launch(torch.bfloat16, chips[0])
    shared = {"BLOCK_M": launch.block_m, "BLOCK_N": launch.block_n, "BLOCK_K": launch.block_k}
    matmuls = [
        ("logits", {"a_k_stride": 1, "b_k_stride": 1, "COUNT_K": False, "ADD": False, "GROUP": 32}),
        ("dhidden", {"a_k_stride": 1, "b_n_stride": 1, "COUNT_K": False, "ADD": False, "GROUP": 8}),
        ("dweight", {"a_m_stride": 1, "b_n_stride": 1, "COUNT_K": True, "ADD": True, "GROUP": 8}),
    ]
    kernel = module._matmul_kernel
    cases = []
    for step, constants in matmuls:
        signature = {arg: "*bf16" if arg.endswith("_ptr") else "i32" for arg in kernel.arg_names}
        signature |= {"num_labelled_ptr": "*i64"} | ({"out_ptr": "*fp32"} if step == "dweight" else {})
        case = Case(
            name=f"linear_cross_entropy_matmul_{step}",
            kernel=kernel,
            signature=signature,
            constants={**shared, **constants},
            aligned=("start", "M", "N", "K", *(arg for arg in kernel.arg_names if "stride" in arg)),
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
            capabilities=chips,
            tensor_cores=True,
            vectorised=True,
            stack_budget_bytes=LINEAR_CROSS_ENTROPY_STACK_BYTES[step],
        )
        cases.append(case)
    return cases


def _rows_launch(launch: tuple[int, int, int, int]) -> dict[str, int]:
    return dict(zip(("ROWS", "COLS", "num_warps", "STAGES"), launch, strict=True))


def _fused(name: str, kernel: Any, *, num_warps: int = 4, **constants: float) -> Case:
    fp32 = {
        "rstd_ptr",
        "mean_ptr",
        "partials_ptr",
        "frequencies_ptr",
        "scales_ptr",
        "top_ptr",
        "total_ptr",
        "picked_ptr",
    }
    integers = {
        "positions_ptr": "*i32",
        "labels_ptr": "*i64",
        "best_ptr": "*i64",
        "num_labelled_ptr": "*i64",
        "eps": "fp32",
    }
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
