"""Attention on Hopper GPUs (sm_90): who takes a call, and the launches of the Gluon kernels.

    why_triton(q_THD, k_TKD, v_TKD)  # None: Gluon takes it; else the reason why the Triton kernels do

Numbers, tables of tiles and determinism are those of attention_triton.py; its launches have the same arguments.

TMA copies blocks of rows by descriptors, which are made here on the host: no kernel, no scratch and no wait. One
descriptor serves documents of any length, packed anywhere: its first three dimensions all step through rows, as in
Triton's tools/ragged_tma.py. The first steps by 2**34 elements minus one row: 2**30 of its steps are a multiple of
2**64 bytes minus 2**30 rows. The coordinates (2**30, start + length, 2**30 - length + row) are then row `start + row`
in 64-bit arithmetic, and the third passes its bound of 2**30 at the document's end: rows from there on come as zeros,
whoever's rows they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from eagle_kernels.attention_plan import TILE
from eagle_kernels.attention_triton import LOG2_E, pieces
from eagle_kernels.checks import on_device_of

TESTED = ("3.6", "3.7")  # Triton's: Gluon may change with each
WIDTHS = (64, 72, 128)
MAX_ROWS = 1 << 30  # of a ragged descriptor
NO_BOUND = 0x7FFF0000  # of a ragged descriptor's outer dimensions: no coordinate reaches it


def is_tested() -> bool:
    """Whether Gluon, as this Triton has it, is what the tests ran."""
    return triton.__version__.rpartition(".")[0] in TESTED


class Rule(NamedTuple):
    """Sends a call to the Triton kernels."""

    what: str
    holds: Callable[[Tensor], bool]  # for one of the call's tensors


RULES = (
    Rule("the tensors lie on no GPU of sm_90", lambda x: not _is_sm90(x)),
    Rule(
        f"Triton is {triton.__version__}; Gluon is tested with {' and '.join(TESTED)}",
        lambda _: not is_tested(),
    ),
    Rule("the dtype is neither bfloat16 nor float16", lambda x: x.dtype not in (torch.bfloat16, torch.float16)),
    Rule(f"the head width is none of {', '.join(map(str, WIDTHS))}", lambda x: x.shape[2] not in WIDTHS),
    Rule("a tensor is empty", lambda x: x.numel() == 0),
    Rule("a tensor has more than 2**30 rows", lambda x: x.shape[0] > MAX_ROWS),
    Rule("a tensor does not start at a multiple of 16 bytes", lambda x: x.data_ptr() % 16 != 0),
    Rule(
        "a stride is not a multiple of 8 elements, or is 0",
        lambda x: x.stride(2) != 1 or any(step % 8 or not step for step in x.stride()[:2]),
    ),
)


def why_triton(*tensors: Tensor) -> str | None:
    """The first rule that holds for any of q, k and v, in backward dout too; None where the Gluon kernels take it."""
    return next((rule.what for rule in RULES if any(rule.holds(x) for x in tensors)), None)


def table() -> list[tuple[str, str]]:
    """Who takes what, the first line that holds: (what, "Triton" or "Gluon")."""
    return [*((rule.what, "Triton") for rule in RULES), ("all else", "Gluon")]


def _is_sm90(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.get_device_capability(x.device) == (9, 0)


class Ring(NamedTuple):
    """A kernel's ring of blocks in shared memory (227 KB a block of threads): rows of a block, number of slots."""

    block: int
    stages: int


class Rings(NamedTuple):
    fwd: Ring  # of keys and values
    dq: Ring  # of keys and values
    dkdv: Ring  # of queries and their dout


def rings(head_width: int) -> Rings:
    if head_width > 80:
        return Rings(fwd=Ring(128, 3), dq=Ring(128, 2), dkdv=Ring(64, 4))
    return Rings(fwd=Ring(128, 4), dq=Ring(128, 3), dkdv=Ring(64, 4))


GROUP_ROWS = 64  # rows of a consumer group, two of which share a tile: ROWS of attention_gluon.py
MAX_REGISTERS = 168  # a thread, of 12 warps: all of a multiprocessor's; consumers then take 240, producers 24
OPTIONS = {"num_warps": 4, "maxnreg": MAX_REGISTERS}  # 4: of the first consumer group, to which the kernels add theirs


@cache
def layout(num_rows: int, width: int) -> Any:
    """Of such a block in shared memory: TMA swizzles it as wgmma reads it."""
    from triton.experimental.gluon import language as gl

    return gl.NVMMASharedLayout.get_default_for([1, 1, num_rows, 1, width], gl.bfloat16)


def descriptors(x_THD: Tensor, num_rows: int) -> tuple[Any, Any]:
    """For blocks of num_rows rows of one head, in both pieces of the head width; None where there is no second."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    _, num_heads, width = x_THD.shape
    step, head_step, _ = x_THD.stride()
    shape = [NO_BOUND, NO_BOUND, MAX_ROWS, num_heads, width]
    strides = [2**34 - step, step, step, head_step, 1]
    main, tail = (
        TensorDescriptor(x_THD, shape, strides, [1, 1, num_rows, 1, piece], layout(num_rows, piece)) if piece else None
        for piece in pieces(width)
    )
    return main, tail


def _num_items(num_rows: int, length: int, tiles: Tensor) -> int:
    """Tiles of `length` rows' sequences; with length 0, of the table."""
    return num_rows // length * triton.cdiv(length, TILE) if length else tiles.shape[0]


def _num_programs(num_items: int, length: int, like: Tensor) -> int:
    """Uniform plans: one a multiprocessor, each with its share of the items, whose loads begin while the last item
    ends. By the tables: one an item, longest first, so that the GPU hands the next to whoever is done."""
    return min(num_items, _num_multiprocessors(like.device)) if length else num_items


def _num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch_fwd(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    out_THD: Tensor,
    lse_HT: Tensor,
    segments_S4: Tensor,
    q_tiles_N2: Tensor,
    *,
    causal: bool,
    softmax_scale: float,
    length: int = 0,
) -> None:
    """As attention_triton.launch_fwd."""
    from eagle_kernels.attention_gluon import fwd_kernel

    T, H, D = q_THD.shape
    main, tail = pieces(D)
    ring = rings(D).fwd
    if num_items := _num_items(T, length, q_tiles_N2) * H:
        with on_device_of(q_THD):
            fwd_kernel[(_num_programs(num_items, length, q_THD),)](
                *descriptors(q_THD, GROUP_ROWS), *descriptors(k_TKD, ring.block), *descriptors(v_TKD, ring.block),
                out_THD, lse_HT, segments_S4, q_tiles_N2, T, length, num_items, softmax_scale * LOG2_E,
                H=H, G=H // k_TKD.shape[1], D=D, MAIN=main, TAIL=tail, CAUSAL=causal, UNIFORM=length > 0,
                BLOCK_N=ring.block, STAGES=ring.stages, **OPTIONS,
            )  # fmt: skip


def launch_bwd(
    dout_THD: Tensor,
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    lse_log2_HT: Tensor,
    delta_HT: Tensor,
    dq_THD: Tensor,
    dk_TKD: Tensor,
    dv_TKD: Tensor,
    segments_S4: Tensor,
    q_tiles_N2: Tensor,
    k_tiles_M4: Tensor,
    *,
    causal: bool,
    softmax_scale: float,
    length: int = 0,
) -> None:
    """As attention_triton.launch_bwd."""
    from eagle_kernels.attention_gluon_bwd import dkdv_kernel, dq_kernel

    T, H, D = q_THD.shape
    num_rows_k, K, _ = k_TKD.shape
    main, tail = pieces(D)
    _, dq, dkdv = rings(D)
    sizes = {"G": H // K, "D": D, "MAIN": main, "TAIL": tail, "CAUSAL": causal, "UNIFORM": length > 0, **OPTIONS}
    scales = (softmax_scale, softmax_scale * LOG2_E)
    if num_items := _num_items(T, length, q_tiles_N2) * H:
        with on_device_of(q_THD):
            dq_kernel[(_num_programs(num_items, length, q_THD),)](
                *descriptors(q_THD, GROUP_ROWS), *descriptors(k_TKD, dq.block), *descriptors(v_TKD, dq.block),
                *descriptors(dout_THD, GROUP_ROWS), lse_log2_HT, delta_HT, dq_THD, segments_S4, q_tiles_N2,
                T, length, num_items, *scales, H=H, BLOCK_N=dq.block, STAGES=dq.stages, **sizes,
            )  # fmt: skip
    if num_items := _num_items(num_rows_k, length, k_tiles_M4) * K:
        with on_device_of(q_THD):
            dkdv_kernel[(_num_programs(num_items, length, q_THD),)](
                *descriptors(q_THD, dkdv.block), *descriptors(k_TKD, GROUP_ROWS), *descriptors(v_TKD, GROUP_ROWS),
                *descriptors(dout_THD, dkdv.block), lse_log2_HT, delta_HT, dk_TKD, dv_TKD, segments_S4, k_tiles_M4,
                T, num_rows_k, length, num_items, *scales, K=K, BLOCK_M=dkdv.block, STAGES=dkdv.stages, **sizes,
            )  # fmt: skip
