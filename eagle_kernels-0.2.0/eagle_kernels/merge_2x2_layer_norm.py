"""Merge each 2x2 block of patches into one token, then LayerNorm of its 4C channels: one read, one write.

    tokens_IQE = merge_2x2_layer_norm(patches_IPC, weight_E, bias_E, 1e-5)

Dims    I tiles, P = side**2 patches of a tile, C channels; Q = P / 4 tokens a tile, E = 4C wide.
Maths   layer_norm(merge_2x2(patches), weight, bias).
Grads   As layer_norm's; dpatches is written where merge_2x2 read: the inverse permutation costs nothing.
Numbers As layer_norm: its very kernels, which find a token's channels at two places, one for each line of patches.
        The merged tensor is neither written nor kept for backward, which reads the patches themselves.
Source  The first two steps of Eagle 2.5's connector, arXiv:2504.15271.
"""

import torch
from torch import Tensor

from eagle_kernels import autocast
from eagle_kernels.checks import check_kernel_dtype, is_positive, refuse, refuse_types, refuse_unlike, takes_kernel
from eagle_kernels.layer_norm import launch_bwd, launch_fwd, layer_norm_ref
from eagle_kernels.library import custom_op
from eagle_kernels.merge_2x2 import merge_2x2_ref, side_of


def merge_2x2_layer_norm_ref(patches_IPC: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor:
    """What the kernel means, in plain torch. Any device, any dtype; tests differentiate through it."""
    return layer_norm_ref(merge_2x2_ref(patches_IPC), weight_E, bias_E, eps)


@custom_op("eagle::merge_2x2_layer_norm")
def _fwd(patches_IPC: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(y, mean, rstd)."""
    I, P, C = patches_IPC.shape
    if P == 0:
        stats = [patches_IPC.new_empty(0, dtype=torch.float32) for _ in range(2)]
        return patches_IPC.new_empty(I, 0, 4 * C), stats[0], stats[1]
    patches_IPC = patches_IPC.contiguous()
    y_TE, mean_T, rstd_T = launch_fwd("merge_2x2_layer_norm", patches_IPC, weight_E, bias_E, eps, side_of(P) // 2)
    return y_TE.view(I, P // 4, 4 * C), mean_T, rstd_T


@custom_op("eagle::merge_2x2_layer_norm_bwd")
def _bwd(
    dy_IQE: Tensor,
    patches_IPC: Tensor,
    weight_E: Tensor,
    mean_T: Tensor,
    rstd_T: Tensor,
    need_dpatches: bool,
    need_dweight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dpatches, dweight, dbias); an empty tensor stands for one that is not needed."""
    half, need = side_of(patches_IPC.shape[1]) // 2, (need_dpatches, need_dweight)
    return launch_bwd(dy_IQE.flatten(0, 1), patches_IPC.contiguous(), weight_E, mean_T, rstd_T, half, need)


@_fwd.register_fake
def _(patches_IPC, weight_E, bias_E, eps):  # type: ignore[no-untyped-def]
    I, P, C = patches_IPC.shape
    stats = [patches_IPC.new_empty(I * (P // 4), dtype=torch.float32) for _ in range(2)]
    return patches_IPC.new_empty(I, P // 4, 4 * C), stats[0], stats[1]


@_bwd.register_fake
def _(dy_IQE, patches_IPC, weight_E, mean_T, rstd_T, need_dpatches, need_dweight):  # type: ignore[no-untyped-def]
    shape = weight_E.shape if need_dweight else (0,)
    dpatches_IPC = patches_IPC.new_empty(patches_IPC.shape if need_dpatches else (0,))
    return dpatches_IPC, weight_E.new_empty(shape), weight_E.new_empty(shape)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    patches_IPC, weight_E, _, _ = inputs
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.save_for_backward(patches_IPC, weight_E, output[1], output[2])


def _grad(ctx, dy_IQE, _dmean, _drstd):  # type: ignore[no-untyped-def]
    need_dpatches, need_dweight, need_dbias, _ = ctx.needs_input_grad
    dpatches_IPC, dweight_E, dbias_E = _bwd(dy_IQE, *ctx.saved_tensors, need_dpatches, need_dweight or need_dbias)
    return (
        dpatches_IPC if need_dpatches else None,
        dweight_E if need_dweight else None,
        dbias_E if need_dbias else None,
        None,
    )


_fwd.register_autograd(_grad, setup_context=_setup)


def merge_2x2_layer_norm(patches_IPC: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float) -> Tensor:
    """layer_norm(merge_2x2(patches), weight, bias, eps): each 2x2 block of patches becomes one token, normalised.

        tokens = merge_2x2_layer_norm(torch.randn(3, 1024, 1152), torch.ones(4608), torch.zeros(4608), 1e-5)

    CPU tensors take `merge_2x2_layer_norm_ref`. Patches that are not contiguous are copied first.

    Args:    patches_IPC: (I, P, C), I tiles of P patches, row by row, C channels wide, in a floating dtype; P is the
             square of an even number.  weight_E, bias_E: (4 * C,), of patches' dtype and device.  eps: > 0.
    Returns: (I, P / 4, 4 * C), new. Under torch.autocast it is computed in fp32: the result is fp32 on a GPU and of
             patches' dtype on a CPU, as torch's layer_norm.
    Raises:  ValueError when an argument is not as above, or on a GPU the dtype is fp64 or 4 * C above 65536.
    """
    op = "merge_2x2_layer_norm"
    if not (isinstance(patches_IPC, Tensor) and isinstance(weight_E, Tensor) and isinstance(bias_E, Tensor)):
        refuse_types(op, patches=patches_IPC, weight=weight_E, bias=bias_E)
    if not patches_IPC.is_meta and torch.is_autocast_enabled(patches_IPC.device.type):
        with autocast.off(patches_IPC):
            wide = autocast.at_least_fp32
            tokens_IQE = merge_2x2_layer_norm(wide(patches_IPC), wide(weight_E), wide(bias_E), eps)
            return autocast.as_norm(tokens_IQE, patches_IPC)
    good = patches_IPC.ndim == 3 and patches_IPC.is_floating_point()
    if not good:
        refuse(op, "patches", f"{patches_IPC.dtype} {tuple(patches_IPC.shape)}", "a floating dtype and (I, P, C)")
    _, P, C = patches_IPC.shape
    if not (side_of(P) ** 2 == P and P % 2 == 0):
        refuse(op, "the number of patches a tile", P, "the square of an even side")
    for name, tensor in (("weight", weight_E), ("bias", bias_E)):
        if tensor.shape != (4 * C,):
            refuse(op, f"{name}'s shape", tuple(tensor.shape), f"({4 * C},), 4 x patches' width")
        if tensor.dtype != patches_IPC.dtype or tensor.device != patches_IPC.device:
            refuse_unlike(op, name, tensor, "patches", patches_IPC)
    if not is_positive(eps):
        refuse(op, "eps", eps, "a finite number > 0")
    if not takes_kernel(patches_IPC):
        return merge_2x2_layer_norm_ref(patches_IPC, weight_E, bias_E, eps)
    check_kernel_dtype(op, "patches", patches_IPC)
    return _fwd(patches_IPC, weight_E, bias_E, eps)[0]
