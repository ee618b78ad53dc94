"""The sum over programs of what each of them added up: the last step of every gradient that sums over rows. And how
the norms launch the programs, which loop over whole rows.

Dims    P programs, C channels.
Maths   out[c] = sum_P partials[p, c].
Numbers fp32, one rounding on store. The order of the additions depends on P alone: torch's own sum also looks at how
        many multiprocessors the GPU has, so its last bit may differ from one GPU to another.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels.checks import on_device_of

ROWS, COLS = 32, 32  # 128 bytes of a row; at 3584 channels 112 programs
NUM_PARTIALS = 264  # the norms' programs, two a multiprocessor of an H100; fixed, so that every GPU adds in one order
TILE = 4096  # elements of such a program, or one row, if that is wider: enough on their way to keep the memory busy
# Of shared memory, for rows on their way: two tiles while one is summed, where they fit. Every GPU has that much.
BUFFER_BYTES = 96 * 1024
MAX_WIDTH = 65_536  # the programs hold whole rows


def sum_partials_ref(partials_PC: Tensor, dtype: torch.dtype) -> Tensor:
    """What the kernel means, in plain torch."""
    return partials_PC.sum(0).to(dtype)


@triton.jit
def _kernel(partials_ptr, out_ptr, P, C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    acc = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, P, ROWS):
        rows = (start + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        acc += tl.load(partials_ptr + rows * C + cols[None, :], mask=(rows < P) & (cols < C)[None, :], other=0.0)
    tl.store(out_ptr + cols, tl.sum(acc, axis=0).to(out_ptr.dtype.element_ty), mask=cols < C)


def sum_partials(partials_PC: Tensor, dtype: torch.dtype) -> Tensor:
    """(P, C) fp32, contiguous -> (C,) of `dtype`. For the bodies of ops: it has no gradient, and no CPU path."""
    P, C = partials_PC.shape
    out_C = partials_PC.new_empty(C, dtype=dtype)
    if C:
        with on_device_of(partials_PC):
            _kernel[(triton.cdiv(C, COLS),)](partials_PC, out_C, P, C=C, ROWS=ROWS, COLS=COLS)
    return out_C


def whole_rows_launch(C: int, channel_bytes: int) -> tuple[int, int, int, int]:
    """(rows, columns, warps, stages) of a program that holds whole rows; channel_bytes: loaded for a channel of a row.

    16 elements a thread, more only in rows beyond 16384; as many stages as BUFFER_BYTES of shared memory hold.
    """
    cols = triton.next_power_of_2(C)
    rows = max(1, TILE // cols)
    tile_bytes = rows * cols * channel_bytes
    return rows, cols, min(32, rows * cols // 512), 1 + min(2, BUFFER_BYTES // tile_bytes)
