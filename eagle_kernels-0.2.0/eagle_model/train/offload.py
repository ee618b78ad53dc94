"""Inputs of layers in host memory: of what a layer keeps for backward, nothing stays on the GPU.

    run_layer = Offload(copies_of(device))                               # one for a whole run
    loss = model(batch, mass, run_layer=run_layer)
    loss.backward()

Each layer keeps its input alone (as `recompute.recomputed`) and backward runs it again first. The input goes to pinned
host memory on a side stream while the layer computes; backward asks for it one layer ahead. So at most two inputs are
on the GPU at a time: in forward the one that leaves and the one that is made, in backward the one in use and the next.

Cost     2 T D bytes a layer (bf16), each way, over PCIe, and as much host memory: at 128K tokens of the 8B 0.94 GB a
         layer, 26 GB in all. It hides behind a layer's arithmetic where that takes longer than the copy.
Source   The paper's "CPU offloading of hidden states" (arXiv:2504.15271), which its release does not call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Wait = Callable[[], None]


class Copies(Protocol):
    """Copies between device and host that may take place later, in any order. Each call returns at once: the copy, and
    what must be called before the copy is read or its source is dropped."""

    def to_host(self, x: Tensor) -> tuple[Tensor, Wait]: ...

    def to_device(self, x: Tensor) -> tuple[Tensor, Wait]: ...


class SideStream:
    """Copies beside the computation. Waiting holds up the device's current stream, never the host."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def to_host(self, x: Tensor) -> tuple[Tensor, Wait]:
        return self._copy(torch.empty_like(x, device="cpu", pin_memory=True), x)

    def to_device(self, x: Tensor) -> tuple[Tensor, Wait]:
        return self._copy(torch.empty_like(x, device=self._device), x)

    def _copy(self, target: Tensor, source: Tensor) -> tuple[Tensor, Wait]:
        # The source is being computed, or the target's memory was somebody's, on the current stream.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            done = self._stream.record_event()
        return target, lambda: torch.cuda.current_stream(self._device).wait_event(done)


class AtOnce:
    """Copies within the host's memory, where the device is a CPU: nothing is saved, and the numbers are the same."""

    def to_host(self, x: Tensor) -> tuple[Tensor, Wait]:
        return x.clone(), _done

    to_device = to_host


def _done() -> None:
    pass


def copies_of(device: torch.device) -> Copies:
    return SideStream(device) if device.type == "cuda" else AtOnce()


class _Stored:
    """A layer's input in host memory, and which one was stored before it: backward wants that one next."""

    def __init__(self, host: Tensor, before: _Stored | None) -> None:
        self.host = host
        self.before = _weak(before)


def _weak(stored: _Stored | None) -> Callable[[], _Stored | None]:
    """Autograd alone decides how long an input is needed."""
    return _nothing if stored is None else weakref.ref(stored)


def _nothing() -> None:
    return None


class Offload:
    """A `RunLayer`. Any number of forwards may come before their backwards, and a graph may be used more than once."""

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._newest: Callable[[], _Stored | None] = _nothing
        self._leaving: tuple[Tensor, Wait] | None = None  # the input whose copy to the host may not be done
        self._arriving: tuple[_Stored, Tensor, Wait] | None = None  # what was asked for ahead

    def __call__(self, layer: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        if not (x.requires_grad or any(p.requires_grad for p in layer.parameters())):
            return layer(x, *rest)  # a frozen tower: backward never comes
        # What the layer itself keeps goes through the inner hooks of `checkpoint`; these see x alone. Torch's own, in
        # FP8 too: Transformer Engine's keeps x where no hook sees it.
        with torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack):
            return checkpoint(layer, x, *rest, use_reentrant=False)

    def _pack(self, x: Tensor) -> _Stored:
        self._let_go()
        x = x.detach()
        host, wait = self._copies.to_host(x)
        self._leaving = x, wait
        stored = _Stored(host, self._newest())
        self._newest = _weak(stored)
        return stored

    def _let_go(self) -> None:
        if self._leaving is not None:
            self._leaving[1]()
            self._leaving = None

    def _unpack(self, stored: _Stored) -> Tensor:
        self._let_go()
        arriving, self._arriving = self._arriving, None
        if arriving is not None and arriving[0] is stored:
            _, x, wait = arriving
        else:
            if arriving is not None:  # another graph's: its copy must end before its memory is anybody's
                arriving[2]()
            x, wait = self._copies.to_device(stored.host)
        wait()
        del arriving
        if (before := stored.before()) is not None:
            self._arriving = before, *self._copies.to_device(before.host)
        return x
