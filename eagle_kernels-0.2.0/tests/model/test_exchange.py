"""What ranks send each other: what comes where, what is counted, and gradients that travel back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from eagle_model.model import exchange
from eagle_model.model.exchange import VisualExchange, counted, heads_for_tokens, tokens_for_heads
from tests.ranks import run


def world() -> Any:
    return dist.group.WORLD


def everything() -> dict[str, Any]:
    rank, size = dist.get_rank(), dist.get_world_size()
    found: dict[str, Any] = {}
    with counted() as sent:
        gathered, work = exchange.gather(torch.full((2, 3), float(rank)), world(), "gather")
        work.wait()
        found["gather"] = gathered[:, 0, 0].tolist()

        # rank r sends r + 1 rows to each other rank and keeps none
        rows = [0 if other == rank else rank + 1 for other in range(size)]
        comes = [0 if other == rank else other + 1 for other in range(size)]
        out, work = exchange.exchange(
            torch.full((sum(rows), 2), 10.0 * rank), world(), "rows", send=rows, receive=comes
        )
        work.wait()
        found["rows"] = out[:, 0].tolist()

        # 1 + 1/256 + 1/256: bf16 would lose each of the small ones
        mine = torch.tensor([1.0, 2**-8, 2**-8, 0.0][rank]).bfloat16().expand(size, 1)
        found["sum"] = exchange.finish_sum(exchange.start_sum(mine, world(), "sum")).tolist()

        after, before = (rank + 1) % size, (rank - 1) % size
        got, works = exchange.send_and_receive(torch.tensor([float(rank)]), after, before, world(), "ring")
        for one in works:
            one.wait()
        found["ring"] = got.tolist()
    found["sent"] = dict(sent)
    return found


def test_what_comes_and_what_is_counted():
    results = run(everything, 4)
    for rank, found in enumerate(results):
        assert found["gather"] == [0, 1, 2, 3]
        assert found["rows"] == [10.0 * other for other in range(4) if other != rank for _ in range(other + 1)]
        assert found["sum"] == [1 + 2**-7]
        assert found["ring"] == [(rank - 1) % 4]
        assert found["sent"] == {"gather": 3 * 24, "rows": 3 * (rank + 1) * 8, "sum": 3 * 2, "ring": 4}


def heads() -> list[bool]:
    """Both ways are inverse, and a gradient goes the other way."""
    rank, size = dist.get_rank(), dist.get_world_size()
    x = torch.arange(3 * 4 * 2.0).view(3, 4, 2).add(100 * rank).requires_grad_()
    mine = heads_for_tokens(x, world())
    whole = [torch.arange(3 * 4 * 2.0).view(3, 4, 2).add(100 * other) for other in range(size)]
    want = torch.cat([part[:, 4 // size * rank : 4 // size * (rank + 1)] for part in whole])
    back = tokens_for_heads(mine, world())
    (back * x.detach()).sum().backward()
    return [torch.equal(mine, want), torch.equal(back, x), torch.equal(x.grad, x.detach())]  # type: ignore[arg-type]


def test_heads_for_tokens_and_back():
    assert run(heads, 2) == [[True, True, True]] * 2


def visual() -> list[Any]:
    """Rank 0 has tokens 0 to 3 and rows of 1, 2 and 4; rank 1 has no more than token 4, rank 2 none."""
    rank = dist.get_rank()
    owners, sources = [2, 0, 0, 1, 0], [0, 0, 0, 0, 1]
    sent = [owner for owner, source in zip(owners, sources, strict=True) if source == rank]
    received = [source for owner, source in zip(owners, sources, strict=True) if owner == rank]
    way = VisualExchange(
        group=world(),
        order_N=torch.tensor(sent, dtype=torch.int64).argsort(stable=True),
        send=tuple(sent.count(other) for other in range(3)),
        receive=tuple(received.count(other) for other in range(3)),
    )
    tokens = torch.arange(5.0)[[n for n in range(5) if sources[n] == rank]].unsqueeze(1).requires_grad_()
    came = way(tokens)
    (came * (1 + rank)).sum().backward()
    return [came.flatten().tolist(), tokens.grad.flatten().tolist()]  # type: ignore[union-attr]


def test_visual_tokens_travel_to_their_rows_and_gradients_back():
    assert run(visual, 3) == [[[1, 2, 4], [3, 1, 1, 2]], [[3], [1]], [[0], []]]


def test_counting_ends():
    with counted() as sent:
        exchange._count("a", 1)
        with counted() as inner:
            exchange._count("a", 2)
    exchange._count("a", 4)
    assert (sent, inner) == ({"a": 3}, {"a": 2})
