"""What every op asks of its arguments before a kernel starts; a refusal says who, what it got and what it needs.

check(eps > 0, "rms_norm", "eps", eps, "a number > 0")
# ValueError: rms_norm: eps is -1; needs a number > 0.
"""

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


def check_tensors(op: str, **arguments: object) -> None:
    """Raises ValueError for an argument that is None, an array of another library, a list, a module ..."""
    for name, x in arguments.items():
        if not isinstance(x, Tensor):
            check(False, op, name, kind_of(x), "a torch tensor")


def kind_of(x: object) -> str:
    """For a refusal: "None", "a list", "a numpy.ndarray"."""
    if x is None:
        return "None"
    kind = type(x)
    return f"a {kind.__qualname__}" if kind.__module__ == "builtins" else f"a {kind.__module__}.{kind.__qualname__}"


def check_positive(op: str, argument: str, value: object, *, or_none: bool = False) -> None:
    """Raises ValueError unless `value` is a number above 0, or None where that may be."""
    ok = (or_none and value is None) or (isinstance(value, int | float) and value > 0)
    check(ok, op, argument, value, "None or a number > 0" if or_none else "a number > 0")


def check_count(op: str, argument: str, value: object, *, least: int = 1) -> None:
    """Raises ValueError unless `value` is a whole number, `least` or more."""
    check(isinstance(value, int) and value >= least, op, argument, value, f"a whole number >= {least}")


def check_num_threads(op: str, num_threads: object) -> None:
    ok = isinstance(num_threads, int) and num_threads >= 0
    check(ok, op, "num_threads", num_threads, "at least 0 (0: one for each CPU)")


def check_positions(op: str, positions_T: Tensor, num_tokens: int, like_name: str, like: Tensor) -> None:
    """Raises ValueError unless they are a position for each token on like's device; on a CPU, where looking costs
    nothing, also when one is negative."""
    shape = tuple(positions_T.shape)
    check(len(shape) == 1 and shape[0] == num_tokens, op, "positions' shape", shape, "({},)", num_tokens)
    integer = positions_T.dtype in (torch.int32, torch.int64)
    check(integer, op, "positions' dtype", positions_T.dtype, "int32 or int64")
    check(
        positions_T.device == like.device, op, "positions' device", positions_T.device, f"{like_name}'s {like.device}"
    )
    if positions_T.device.type != "cpu" or not num_tokens:
        return
    is_wrong = (positions_T < 0).any()
    if torch.compiler.is_compiling():
        torch._assert_async(~is_wrong, f"{op}: a position is below 0; positions count from 0 in each document.")
    elif is_wrong:
        check(False, op, "a position", int(positions_T.min()), "0 or more: positions count from 0 in each document")


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
