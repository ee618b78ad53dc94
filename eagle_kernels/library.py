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

import functools
from collections.abc import Callable
from typing import Any

import torch


class CustomOp(functools.partial):  # calling it is calling the operator: no call of ours lies between
    """An operator that changes none of its arguments. `function` is what it runs, on any device."""

    name: str
    function: Callable[..., Any]
    overload: Any  # the operator itself, as opcheck takes it

    def __new__(cls, name: str, function: Callable[..., Any]) -> CustomOp:
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(name, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(name, "default", function)
        namespace, _, short = name.partition("::")
        overload = getattr(getattr(torch.ops, namespace), short).default
        op = super().__new__(cls, overload)
        op.name, op.function, op.overload = name, function, overload
        return op

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
