"""How every op refuses bad input: one sentence that says who, what it got and what it needs."""

from torch import Tensor


def check(ok: bool, op: str, argument: str, got: object, need: str) -> None:
    """Raises ValueError "op: argument is <got>; needs <need>." unless `ok`."""
    if not ok:
        raise ValueError(f"{op}: {argument} is {got}; needs {need}.")


def check_same(op: str, argument: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Raises ValueError unless `tensor` has the dtype and the device of `like`."""
    check(tensor.dtype == like.dtype, op, f"{argument}'s dtype", tensor.dtype, f"{like_name}'s {like.dtype}")
    check(tensor.device == like.device, op, f"{argument}'s device", tensor.device, f"{like_name}'s {like.device}")
