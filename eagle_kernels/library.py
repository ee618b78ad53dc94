"""`custom_op`: a function becomes an operator of torch, which autograd and torch.compile take as one piece.

    @custom_op("eagle::double")
    def _double(x: Tensor) -> Tensor:
        return 2 * x

    _double.register_fake(torch.empty_like)
    _double(torch.ones(3))

It is torch.library.custom_op, built from the lower calls of torch.library: that one imports torch._dynamo when an op is
first called, which takes 0.9 s and is needed by torch.compile alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class CustomOp:
    """An operator that changes none of its arguments. `function` is what it runs, on any device."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(name, "default", function)
        namespace, _, short = name.partition("::")
        self.overload = getattr(getattr(torch.ops, namespace), short).default  # what opcheck takes

    def __call__(self, *args: Any) -> Any:
        return self.overload(*args)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` gives results of the right shape and dtype without computing them."""
        torch.library.register_fake(self.name, function)
        return function

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., Any]) -> None:
        """Both as in torch.library.register_autograd."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context)


def custom_op(name: str) -> Callable[[Callable[..., Any]], CustomOp]:
    """Decorator: the function, whose arguments and results are annotated, as the operator `name`, "namespace::op"."""
    return lambda function: CustomOp(name, function)
