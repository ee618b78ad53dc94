"""Faults of context parallelism that others had, planted into the exchanges that training uses: `eagle verify` must
find each of them, or its silence means nothing.

    with FAULTS["no backward through the gather of keys"].plant():
        ...                                      # a step: its gradients are wrong, and nothing says so

A fault replaces a function of eagle_model/model/exchange.py, or of torch.distributed, from outside, for as long as the
block takes. Nothing of the model's code is different from what trains.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

from eagle_model.model import exchange
from eagle_model.train.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Fault:
    plant: Callable[[], AbstractContextManager[Any]]
    stage: str  # where it first shows
    rows: tuple[str, ...] = ("one document",)
    is_of_shards: bool = False  # processes that share no row show it; else those that do


def _own_part_alone() -> AbstractContextManager[Any]:
    """The gather of keys as an operation that autograd does not know: a rank keeps the gradients of its own queries."""
    real = exchange.start_sum

    def start_sum(parts_P: Tensor, group: dist.ProcessGroup, purpose: str) -> Any:
        own = torch.zeros_like(parts_P)
        own[group.rank()] = parts_P[group.rank()]
        return real(own, group, purpose)

    return mock.patch.object(exchange, "start_sum", start_sum)


def _mean_of_keys() -> AbstractContextManager[Any]:
    """A mean over ranks where gradients of keys need their sum."""
    real = exchange.finish_sum
    return mock.patch.object(exchange, "finish_sum", lambda pending: real(pending) / len(pending[0]))


def _mean_of_weights() -> AbstractContextManager[Any]:
    """Gradients of weights averaged over all processes, as FSDP has it by default."""
    name = next(name for name in ("reduce_scatter_single", "reduce_scatter_tensor") if hasattr(dist, name))
    real = getattr(dist, name)  # torch 2.13's name, or the older

    def averaged(*, output: Tensor, group: dist.ProcessGroup, **options: Any) -> Any:
        work = real(output=output, group=group, **options)
        if work is not None:
            work.wait()
        output /= group.size()
        return work

    return mock.patch.object(dist, name, averaged)


def _mass_of_each_rank() -> AbstractContextManager[Any]:
    """Each data rank divides by its own rows' mass."""
    return mock.patch.object(Ranks, "total", lambda self, value: value)


def _changed_visual(change: Callable[[Tensor], Tensor], *, forward: bool) -> AbstractContextManager[Any]:
    """The exchange of visual tokens, or that of their gradients, with something done to what comes."""
    real, calls = exchange.exchange, [0]

    def changed(x: Tensor, group: dist.ProcessGroup, purpose: str, **sizes: Any) -> Any:
        out, work = real(x, group, purpose, **sizes)
        if purpose != "visual tokens":
            return out, work
        calls[0] += 1
        if (calls[0] == 1) == forward:
            work.wait()
            out.copy_(change(out))
        return out, work

    return mock.patch.object(exchange, "exchange", changed)


FAULTS = {
    "no backward through the gather of keys": Fault(_own_part_alone, "gradient of layer 1's input"),
    "gradients of keys averaged": Fault(_mean_of_keys, "gradient of layer 1's input"),
    "gradients of weights averaged": Fault(_mean_of_weights, "gradients of lm_head"),
    "a normaliser of each rank's own": Fault(
        _mass_of_each_rank, "normaliser", ("many documents", "text alone"), is_of_shards=True
    ),
    "visual tokens in another order": Fault(
        lambda: _changed_visual(lambda x: x.flip(0), forward=True), "embeddings", ("an image on every cut",)
    ),
    "no backward through the exchange of visual tokens": Fault(
        lambda: _changed_visual(torch.zeros_like, forward=False),
        "gradient of visual tokens",
        ("an image on every cut",),
    ),
}
