"""A few rows times a weight on a CPU: the products of a step of generation, which wait for the weight's memory.

    y_TF = few_rows(torch.randn(8, 256), torch.randn(1024, 256))          # as F.linear(x, weight)

Dims    T rows, at most 16; C columns of them, F rows of the weight.
Maths   y = x weight^T + bias.
Numbers fp32 inside, one rounding on store. The bits of a row depend on no other row and on no number of threads: a
        batch says what each of its sequences says alone. A CPU with other vectors adds in another order.
        Memory bound: reads C * F elements, once for 8 rows. Libraries of matrix products are made for more rows: they
        copy the weight into an order of their own first, which costs more than the product.
Source  docs/notes/engine.md, what it gains.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from eagle_kernels import autocast, native
from eagle_kernels.checks import refuse, refuse_types, refuse_unlike, takes_cpu_code
from eagle_kernels.library import custom_op

OP = "few_rows"
MAX_ROWS = 16  # kFewRows of csrc/few_rows.h
DTYPES = (torch.float32, torch.bfloat16)


def few_rows_ref(x_TC: Tensor, weight_FC: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """What the kernel means, in plain torch. Any number of rows, fp64 too."""
    wide = torch.promote_types(x_TC.dtype, torch.float32)
    y_TF = x_TC.to(wide) @ weight_FC.to(wide).T
    return (y_TF if bias_F is None else y_TF + bias_F.to(wide)).to(x_TC.dtype)


@custom_op("eagle::few_rows")
def _fwd(x_TC: Tensor, weight_FC: Tensor, bias_F: Tensor | None, num_threads: int) -> Tensor:
    """num_threads: at most; 0: as many as torch has."""
    y_TF = x_TC.new_empty(x_TC.shape[0], weight_FC.shape[0])
    # Named, so that none is freed before the core has read it.
    tensors = (x_TC.contiguous(), weight_FC, x_TC.new_empty(0) if bias_F is None else bias_F, y_TF)
    native.load().few_rows_cpu(*map(native.view, tensors), num_threads or torch.get_num_threads())
    return y_TF


@_fwd.register_fake
def _(x_TC: Tensor, weight_FC: Tensor, bias_F: Tensor | None, num_threads: int) -> Tensor:
    return x_TC.new_empty(x_TC.shape[0], weight_FC.shape[0])


def takes_few_rows(x: Tensor, weight: Tensor) -> bool:
    """Whether `few_rows` of them is right and worth it: where C++ code is taken at all, for a few rows, by tensors that
    lie as it needs them."""
    return (
        takes_cpu_code(x, weight)
        and x.dim() == 2
        and x.shape[0] <= MAX_ROWS
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
    )


def linear(x: Tensor, weight_FC: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear, by `few_rows` where `takes_few_rows`."""
    if takes_few_rows(x, weight_FC):
        return _fwd(x, weight_FC, bias_F, 0)
    return F.linear(x, weight_FC, bias_F)


def few_rows(x_TC: Tensor, weight_FC: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """x weight^T + bias of up to 16 rows on a CPU, by as many threads as torch has.

        y_TF = few_rows(torch.randn(8, 256), torch.randn(1024, 256), torch.zeros(1024))

    Not differentiable: it serves generation; `torch.nn.functional.linear` trains.

    Args:    x_TC: (T, C), T from 0 to 16; bf16 or fp32, on a CPU.  weight_FC: (F, C), contiguous.  bias_F: (F,),
             contiguous, or None. All of x's dtype.
    Returns: (T, F), new, of x's dtype. Under torch.autocast all are cast to its dtype, as in torch's linear.
    Raises:  ValueError when an argument is not as above or needs a gradient.
    """
    if not (isinstance(x_TC, Tensor) and isinstance(weight_FC, Tensor)):
        refuse_types(OP, x=x_TC, weight=weight_FC)
    if not (bias_F is None or isinstance(bias_F, Tensor)):
        refuse_types(OP, bias=bias_F)
    if not x_TC.is_meta and torch.is_autocast_enabled(x_TC.device.type):
        with autocast.off(x_TC):
            bias_F = None if bias_F is None else autocast.as_matmul(bias_F)
            return few_rows(autocast.as_matmul(x_TC), autocast.as_matmul(weight_FC), bias_F)
    if x_TC.device.type not in ("cpu", "meta"):
        refuse(OP, "x's device", x_TC.device, "a CPU: elsewhere torch's linear does it")
    if x_TC.dtype not in DTYPES:
        refuse(OP, "x's dtype", x_TC.dtype, f"one of {', '.join(map(str, DTYPES))}")
    if x_TC.dim() != 2 or x_TC.shape[0] > MAX_ROWS:
        refuse(OP, "x's shape", tuple(x_TC.shape), f"(T, C) with T up to {MAX_ROWS}; torch's linear takes more")
    if weight_FC.dim() != 2 or weight_FC.shape[1] != x_TC.shape[1]:
        refuse(OP, "weight's shape", tuple(weight_FC.shape), f"(F, {x_TC.shape[1]}), x's width")
    if bias_F is not None and tuple(bias_F.shape) != (weight_FC.shape[0],):
        refuse(OP, "bias's shape", tuple(bias_F.shape), f"({weight_FC.shape[0]},), a number for each row of weight")
    for name, tensor in (("x", x_TC), ("weight", weight_FC), ("bias", bias_F)):
        if tensor is None:
            continue
        if torch.is_grad_enabled() and tensor.requires_grad:
            refuse(OP, f"{name}'s requires_grad", True, "False, or torch.no_grad(): there is no backward")
        if tensor.dtype != x_TC.dtype or tensor.device != x_TC.device:
            refuse_unlike(OP, name, tensor, "x", x_TC)
        if name != "x" and not tensor.is_contiguous():
            refuse(OP, f"{name}'s strides", tensor.stride(), "contiguous rows")
    return _fwd(x_TC, weight_FC, bias_F, 0)
