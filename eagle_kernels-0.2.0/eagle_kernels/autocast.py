"""What the ops do under torch.autocast: as torch's own operations do there.

    with torch.autocast("cuda", torch.bfloat16):
        out_THD = varlen_attention(q_THD, k_TKD, v_TKD, cu_seqlens)  # fp32 inputs are cast to bf16, as for a matmul

as a matmul      varlen_attention, decode_attention, linear_cross_entropy; gelu_bias and qkv_rope, which add the bias of
                 a linear layer: floating inputs are cast to the dtype of autocast (fp64 is left alone).
as layer_norm    rms_norm, add_rms_norm, layer_norm, merge_2x2_layer_norm: computed in fp32, parameters included. The
                 result is fp32 on a GPU and has x's dtype on a CPU.
as an addition   swiglu, rope, scatter_visual, merge_attention, x + residual: the widest dtype of the inputs.
untouched        merge_2x2 and the ops on pixels.

An op asks whether autocast is on where its tensors lie, and then calls itself again on the cast ones, within `off`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def off(x: Tensor) -> Any:
    """A context without autocast for x's device."""
    return torch.autocast(x.device.type, enabled=False)


def as_matmul(x: Tensor) -> Tensor:
    """In the dtype that autocast has for x's device."""
    is_cast = x.is_floating_point() and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(x.device.type)) if is_cast else x


def widest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """In the dtype that torch would promote them to."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


def at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def as_norm(y: Tensor, x: Tensor) -> Tensor:
    """The result y of a norm of x, in the dtype that torch gives it."""
    return y if x.is_cuda else y.to(x.dtype)
