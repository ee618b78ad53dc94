"""Merge each 2x2 block of patches into one token of four times the width: a gather, one read and one write.

    tokens_IQE = merge_2x2(patches_IPC)  # (3, 1024, 1152) -> (3, 256, 4608)

Dims    I tiles, P = side**2 patches of a tile in row-major order, C channels; Q = P / 4 tokens a tile, 4C wide.
Maths   out[i, (a, b)] = concat(x[2a, 2b], x[2a, 2b + 1], x[2a + 1, 2b], x[2a + 1, 2b + 1]).
Grads   A permutation of elements: its gradient is the inverse permutation.
Source  `pixel_shuffle` (factor 0.5) of Eagle 2.5, arXiv:2504.15271, and InternVL.
"""

import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels.checks import on_device_of, refuse, refuse_types, takes_kernel
from eagle_kernels.library import custom_op

COLS = 1024  # elements a program copies: 8 a thread, one 16-byte load of bf16


def side_of(num_patches: int) -> int:
    """Of a square tile. Not isqrt: torch.compile cannot follow it where the number is not a constant."""
    return round(num_patches**0.5)


def merge_2x2_ref(patches_IPC: Tensor) -> Tensor:
    """What the kernel means, in plain torch. Any device, any dtype; tests differentiate through it."""
    half = side_of(patches_IPC.shape[1]) // 2
    blocks = patches_IPC.unflatten(1, (half, 2, half, 2))  # I, a, dy, b, dx, C
    return blocks.transpose(2, 3).flatten(3).flatten(1, 2)  # I, Q, 4C


@triton.jit
def _kernel(src_ptr, dst_ptr, HALF, PAIR: tl.constexpr, INVERSE: tl.constexpr, COLS: tl.constexpr):  # type: ignore[no-untyped-def]
    # The two patches of a block's upper (dy = 0) or lower (dy = 1) row are neighbours on both sides: one run of
    # PAIR = 2C elements. Runs of the patches are ordered (i, a, dy, b), runs of the tokens (i, a, b, dy).
    run = tl.program_id(0).to(tl.int64)  # int64: I * P * C passes 2**31
    dy, b, ia = run % 2, run // 2 % HALF, run // 2 // HALF
    patches = ((ia * 2 + dy) * HALF + b) * PAIR
    tokens = run * PAIR
    i = tl.program_id(1) * COLS + tl.arange(0, COLS)
    if INVERSE:
        tl.store(dst_ptr + patches + i, tl.load(src_ptr + tokens + i, mask=i < PAIR), mask=i < PAIR)
    else:
        tl.store(dst_ptr + tokens + i, tl.load(src_ptr + patches + i, mask=i < PAIR), mask=i < PAIR)


@custom_op("eagle::merge_2x2")
def _merge(x: Tensor, inverse: bool) -> Tensor:
    """(I, P, C) -> (I, P / 4, 4C), or back."""
    I, P, C = (x.shape[0], x.shape[1] * 4, x.shape[2] // 4) if inverse else x.shape
    out = x.new_empty((I, P, C) if inverse else (I, P // 4, 4 * C))
    if x.numel():
        with on_device_of(x):
            _kernel[(I * P // 2, triton.cdiv(2 * C, COLS))](
                x.contiguous(), out, side_of(P) // 2, PAIR=2 * C, INVERSE=inverse, COLS=COLS
            )
    return out


@_merge.register_fake
def _(x, inverse):  # type: ignore[no-untyped-def]
    I, N, C = x.shape
    return x.new_empty((I, N * 4, C // 4) if inverse else (I, N // 4, C * 4))


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, ctx.inverse = inputs


def _grad(ctx, dout):  # type: ignore[no-untyped-def]
    return _merge(dout, not ctx.inverse), None


_merge.register_autograd(_grad, setup_context=_setup)


def merge_2x2(patches_IPC: Tensor) -> Tensor:
    """Each 2x2 block of a tile's patches becomes one token of four times the width, upper patches first.

        tokens_IQE = merge_2x2(torch.randn(3, 1024, 1152))  # (3, 256, 4608)

    CPU tensors take `merge_2x2_ref`. A tensor that is not contiguous is copied first.

    Args:    patches_IPC: (I, P, C), I tiles of P patches, row by row, C channels wide; any dtype; P is the square of an
             even number.
    Returns: (I, P / 4, 4 * C), new and contiguous.
    Raises:  ValueError when patches are not as above.
    """
    if not isinstance(patches_IPC, Tensor):
        refuse_types("merge_2x2", patches=patches_IPC)
    if patches_IPC.ndim != 3:
        refuse("merge_2x2", "patches' shape", tuple(patches_IPC.shape), "(I, P, C)")
    P = patches_IPC.shape[1]
    square = side_of(P) ** 2 == P and P % 2 == 0
    if not square:
        refuse("merge_2x2", "the number of patches a tile", P, "the square of an even side")
    return _merge(patches_IPC, False) if takes_kernel(patches_IPC) else merge_2x2_ref(patches_IPC)
