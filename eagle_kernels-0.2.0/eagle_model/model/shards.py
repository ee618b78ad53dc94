"""Parameters that are cut over processes: which rows are here, and how they are filled. The model itself knows nothing.

    own(parameter)                               # this process's rows of it, a plain tensor in the same memory
    rows_of(parameter)                           # (0, 1792) of 3584 rows on the first of two processes
    put(module, "weight", rows)                  # makes these the module's

A cut parameter is torch's DTensor, its first dimension in equal runs of rows: r = ceil(rows / processes), process p
holds p * r up to (p + 1) * r, the last ones what is left, or nothing. parallelize (train/parallel.py) makes them so.
Any other parameter is all here. `own` and `whole` take gradients too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn


def is_cut(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")  # a DTensor, whose module is slow to import: it need not be there to ask


def own(tensor: Tensor) -> Tensor:
    """The rows of a tensor that are here, in the tensor's own memory; of one that is not cut, the tensor itself."""
    return cast(Any, tensor)._local_tensor if is_cut(tensor) else tensor


def group_of(tensor: Tensor) -> Any:
    """The process group over which a tensor is cut; None for one that is not. Replicas are in other groups."""
    return cast(Any, tensor).device_mesh.get_group(-1) if is_cut(tensor) else None


def replicas_of(tensor: Tensor) -> Any:
    """The process group of those that hold the same rows as this one; None where this one alone does."""
    mesh = cast(Any, tensor).device_mesh if is_cut(tensor) else None
    return mesh.get_group(0) if mesh is not None and mesh.ndim == 2 else None


def rows_of(tensor: Tensor) -> tuple[int, int]:
    """The rows that are here: the first, and the one after the last. Of the meta device too."""
    if not is_cut(tensor):
        return 0, len(tensor)
    mesh, num_rows = cast(Any, tensor).device_mesh, len(tensor)
    most = -(-num_rows // mesh.size(mesh.ndim - 1))
    first = min(num_rows, mesh.get_local_rank(mesh.ndim - 1) * most)
    return first, min(num_rows, first + most)


def whole(tensor: Tensor) -> Tensor:
    """All rows. Of a cut tensor every process must ask."""
    return cast(Any, tensor).full_tensor() if is_cut(tensor) else tensor


def put(module: nn.Module, name: str, rows: Tensor) -> None:
    """Gives a module's parameter new numbers, here the rows of `rows_of`, with their dtype and device."""
    old = cast(Any, getattr(module, name))
    new: Tensor = rows
    if is_cut(old):
        from torch.distributed.tensor import DTensor

        new = DTensor.from_local(
            rows, old.device_mesh, old.placements, run_check=False, shape=old.shape, stride=old.stride()
        )
    setattr(module, name, nn.Parameter(new, old.requires_grad))


@torch.no_grad()
def cast_(parameter: Tensor, dtype: torch.dtype) -> None:
    """Makes a parameter one of another dtype, in new memory; it is the same object."""
    if not is_cut(parameter):
        parameter.data = parameter.data.to(dtype)
        return
    # `data` would change the outer tensor alone, and not the rows in it.
    torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad))


@torch.no_grad()
def fill(
    model: nn.Module,
    passes: Sequence[Callable[[nn.Module], bool]],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Draws new numbers for a cut model on "meta", the same from a seed as for one that is not cut.

    Each pass fills one module after the other and says whether it did: whole, on the CPU, in the default dtype. This
    process keeps its rows of it. So no more is ever held whole than one module's own parameters. Parameters that two
    modules share get what the first of them does.
    """
    kept: dict[str, tuple[nn.Module, str, Tensor]] = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    holders: dict[str, nn.Module] = {}
    for draw in passes:
        for module in model.modules():
            cut = {leaf: p for leaf, p in module._parameters.items() if p is not None}
            if not cut:
                continue
            for leaf, parameter in cut.items():
                module._parameters[leaf] = nn.Parameter(torch.empty(parameter.shape))
            filled = draw(module)
            for leaf, parameter in cut.items():
                whole, module._parameters[leaf] = module._parameters[leaf], parameter
                name = names[id(parameter)]
                if filled and holders.setdefault(name, module) is module:
                    assert whole is not None
                    rows = whole.detach()[slice(*rows_of(parameter))]
                    kept[name] = module, leaf, rows.to(device=device, dtype=dtype, copy=True)
    for module, leaf, rows in kept.values():
        put(module, leaf, rows)
