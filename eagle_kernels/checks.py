"""What every op asks of its tensors before a kernel starts; a refusal says who, what it got and what it needs."""

import torch
from torch import Tensor

KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check(ok: bool, op: str, argument: str, got: object, need: str, *sizes: int) -> None:
    """Raises ValueError "op: argument is <got>; needs <need>." unless `ok`.

    `need` has a {} for each of `sizes`: dimensions that differ from batch to batch, which an f-string at the call would
    make constants of the graph under torch.compile, so that each batch would compile anew.
    """
    if not ok:
        raise ValueError(f"{op}: {argument} is {got}; needs {need.format(*sizes) if sizes else need}.")


def check_same(op: str, argument: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Raises ValueError unless `tensor` has the dtype and the device of `like`."""
    check(tensor.dtype == like.dtype, op, f"{argument}'s dtype", tensor.dtype, f"{like_name}'s {like.dtype}")
    check(tensor.device == like.device, op, f"{argument}'s device", tensor.device, f"{like_name}'s {like.device}")


def check_kernel_dtype(op: str, argument: str, tensor: Tensor) -> None:
    """Raises ValueError for a dtype that the kernels, fp32 inside, would take and silently lose digits of."""
    good = tensor.dtype in KERNEL_DTYPES
    check(good, op, f"{argument}'s dtype", tensor.dtype, f"one of {', '.join(map(str, KERNEL_DTYPES))} on a GPU")


def inner_contiguous(x: Tensor) -> Tensor:
    """x itself where its last dim is contiguous (rows may lie apart), else a contiguous copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def as_rows(x: Tensor) -> Tensor:
    """(..., C) as (T, C), without a copy where that can be; reshape(-1, C) would not know T where C is 0."""
    return x.flatten(0, -2) if x.ndim > 1 else x.unsqueeze(0)


def on_device_of(tensor: Tensor) -> torch.cuda.device_of:
    """Makes a CUDA tensor's device the current one, on which Triton launches; does nothing for a CPU tensor."""
    return torch.cuda.device_of(tensor)
