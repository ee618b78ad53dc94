"""What ranks that share a packed row send each other, in one place, with the bytes that each rank sends counted.

    with counted() as sent:
        loss = model(batch, mass, context=context)
        loss.backward()
    sent["gather keys"]                          # bytes that left this rank, by what they were for

A sum over ranks is an exchange, each part to its owner as it is, and a sum there in fp32 (fp64 of fp64), in the ranks'
order: half a reduce-scatter's bytes in fp32, and the same bits again whichever ring or tree a library would choose.

Dims     P ranks of a group, L tokens of a rank, H heads, W head width, N visual tokens of a rank, D width.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

_counters: list[Counter[str]] = []


class Work(Protocol):
    def wait(self) -> object: ...


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Bytes that this process sends to other ranks meanwhile, by purpose. What stays on a rank is not counted."""
    counter: Counter[str] = Counter()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)


def _count(purpose: str, num_bytes: int) -> None:
    for counter in _counters:
        counter[purpose] += num_bytes


def gather(x: Tensor, group: dist.ProcessGroup, purpose: str) -> tuple[Tensor, Work]:
    """Starts to gather x of all ranks: (P, *x.shape), to be read after `wait`. All ranks have one shape."""
    num_ranks = group.size()
    out = x.new_empty(num_ranks, *x.shape)
    work = gather_into(out.flatten(0, 1), x.contiguous(), group)
    _count(purpose, (num_ranks - 1) * x.nbytes)
    return out, work


def gather_into(out: Tensor, x: Tensor, group: dist.ProcessGroup) -> Work:
    """Starts to gather all ranks' x, one after another, into `out`; it is not counted."""
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # torch 2.13's name; the older
    work: Work = all_gather(out, x, group=group, async_op=True)
    return work


def exchange(
    x: Tensor, group: dist.ProcessGroup, purpose: str, *, send: Sequence[int] = (), receive: Sequence[int] = ()
) -> tuple[Tensor, Work]:
    """Starts to send rows of x to the ranks, the first send[0] to rank 0 and so on; what comes in, in the ranks' order,
    is to be read after `wait`. send, receive: numbers of rows, a rank each; () shares x out evenly."""
    out = x.new_empty(sum(receive) if receive else len(x), *x.shape[1:])
    work = dist.all_to_all_single(
        out, x.contiguous(), list(receive) or None, list(send) or None, group=group, async_op=True
    )
    kept = send[group.rank()] if send else len(x) // group.size()
    _count(purpose, (len(x) - kept) * (x.nbytes // max(1, len(x))))
    return out, work


def start_sum(parts_P: Tensor, group: dist.ProcessGroup, purpose: str) -> tuple[Tensor, Work]:
    """Starts to send parts_P[i] to rank i; `finish_sum` adds up what comes in."""
    return exchange(parts_P, group, purpose)


def finish_sum(pending: tuple[Tensor, Work]) -> Tensor:
    """The sum over all ranks of what they had for this one."""
    parts_P, work = pending
    work.wait()
    wide = torch.promote_types(parts_P.dtype, torch.float32)
    return parts_P.sum(0, dtype=wide).to(parts_P.dtype)


def send_and_receive(
    x: Tensor, to: int, of: int, group: dist.ProcessGroup, purpose: str
) -> tuple[Tensor, Sequence[Work]]:
    """Starts to send x to one rank of the group and to receive as much from another."""
    out, x = torch.empty_like(x), x.contiguous()
    peers = [dist.get_global_rank(group, rank) for rank in (to, of)]
    works = dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, x, peers[0], group), dist.P2POp(dist.irecv, out, peers[1], group)]
    )
    _count(purpose, x.nbytes)
    return out, works


class _HeadsForTokens(torch.autograd.Function):
    """(L, H, W) of this rank's tokens and all heads -> (P * L, H / P, W): a part of the heads, all ranks' tokens."""

    @staticmethod
    def forward(ctx: Any, x_LHW: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _to_heads(x_LHW, group)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None]:
        return _to_tokens(dout, ctx.group), None


class _TokensForHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _to_tokens(x, group)

    @staticmethod
    def backward(ctx: Any, dout_LHW: Tensor) -> tuple[Tensor, None]:
        return _to_heads(dout_LHW, ctx.group), None


def _to_heads(x_LHW: Tensor, group: dist.ProcessGroup) -> Tensor:
    out, work = exchange(x_LHW.unflatten(1, (group.size(), -1)).transpose(0, 1), group, "heads")
    work.wait()
    return out.flatten(0, 1)


def _to_tokens(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    out, work = exchange(x.unflatten(0, (group.size(), -1)), group, "heads")
    work.wait()
    return out.transpose(0, 1).flatten(1, 2)


def heads_for_tokens(x_LHW: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(L, H, W) -> (P * L, H / P, W), the ranks' tokens one after another (Ulysses). Differentiable."""
    out: Tensor = _HeadsForTokens.apply(x_LHW, group)
    return out


def tokens_for_heads(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(P * L, H / P, W) -> (L, H, W): the way back. Differentiable."""
    out: Tensor = _TokensForHeads.apply(x, group)
    return out


@dataclass(frozen=True, kw_only=True, slots=True)
class VisualExchange:
    """Visual tokens travel from the ranks that encoded their tiles to those whose rows they take."""

    group: dist.ProcessGroup
    order_N: Tensor  # int64: of this rank's visual tokens, in the order in which they leave
    send: tuple[int, ...]  # how many go to each rank
    receive: tuple[int, ...]  # how many come from each

    def __call__(self, visual_ND: Tensor) -> Tensor:
        """(N, D) of this rank's tiles -> (M, D) for this rank's rows, ascending. Differentiable."""
        out: Tensor = _Travel.apply(visual_ND, self)
        return out


class _Travel(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, visual_ND: Tensor, way: VisualExchange) -> Tensor:
        ctx.way = way
        out, work = exchange(visual_ND[way.order_N], way.group, "visual tokens", send=way.send, receive=way.receive)
        work.wait()
        return out

    @staticmethod
    def backward(ctx: Any, dout_MD: Tensor) -> tuple[Tensor, None]:
        way = ctx.way
        sent_ND, work = exchange(dout_MD, way.group, "visual tokens", send=way.receive, receive=way.send)
        work.wait()
        dvisual_ND = torch.empty_like(sent_ND)
        dvisual_ND[way.order_N] = sent_ND
        return dvisual_ND, None
