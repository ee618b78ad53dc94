"""`custom_op`: a function becomes an operator of torch, which autograd and torch.compile take as one piece.

    @custom_op("eagle::double")
    def _double(x: Tensor) -> Tensor:
        return 2 * x

    _double.register_fake(torch.empty_like)
    _double(torch.ones(3))

It is torch.library.custom_op, built from the lower calls of torch.library: that one imports torch._dynamo when an op is
first called, which takes 0.9 s and is needed by torch.compile alone.

Importing it also gives Triton a folder for compiled kernels where the home directory cannot be written.
"""

from __future__ import annotations

import functools
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton


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


def cache_folder(folder: Path) -> Path:
    """`folder`, made where it is not there; where it cannot be written, one for this user under the temporary folder,
    shared by all processes, or, if somebody else has that name, one for this process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        pass
    else:
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    ours = Path(tempfile.gettempdir(), f"eagle-kernels-triton-{os.getuid()}")
    try:
        ours.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        pass
    else:
        found = ours.lstat()  # compiled code is run: nobody else may have put it there
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return ours
    return Path(tempfile.mkdtemp(prefix="eagle-kernels-triton-"))


if "TRITON_CACHE_DIR" not in os.environ:
    wanted = Path(triton.knobs.cache.dir)
    if (usable := cache_folder(wanted)) != wanted:
        triton.knobs.cache.dir = str(usable)  # sets TRITON_CACHE_DIR too: processes that are started here share it
