"""Ranks: who is who in a layout, sums and JSON between processes, and the helper that runs them in tests."""

import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch

from eagle_model.fields import ConfigError
from eagle_model.train import ranks
from eagle_model.train.layout import Layout
from eagle_model.train.ranks import members, start, start_part
from tests.ranks import RanksError, run


def test_one_process_needs_no_group():
    ranks = start(Layout(), "cpu")
    value = torch.tensor(3.0)
    assert (ranks.rank, ranks.num_data, ranks.num_context, ranks.is_first) == (0, 1, 1, True)
    assert ranks.total(value) is value
    assert ranks.gather({"a": (1, 2)}) == [{"a": [1, 2]}]
    assert ranks.mesh is ranks.context_group is ranks.all_group is None
    ranks.barrier()
    ranks.close()
    assert not torch.distributed.is_initialized()


def test_more_processes_than_there_are_is_refused():
    with pytest.raises(
        ConfigError,
        match=r"\(shard=2 context=2\) cannot work: it is for 4 processes, 1 x 2 x 2 .*; there are 1. The nearest",
    ):
        start(Layout(shard=2, context=2), "cpu")


def what_a_rank_sees():
    ranks = start(Layout(replicate=1, shard=2, context=2, ulysses=2), "cpu")
    others = [ranks.gather(ranks.rank, over=over) for over in ("all", "data", "context")]
    return [ranks.data_rank, ranks.context_rank, float(ranks.total(torch.tensor(10.0**ranks.rank))), *others]


def test_four_processes_in_rows_and_tokens():
    assert run(what_a_rank_sees, 4) == [
        [0, 0, 101.0, [0, 1, 2, 3], [0, 2], [0, 1]],
        [0, 1, 1010.0, [0, 1, 2, 3], [1, 3], [0, 1]],
        [1, 0, 101.0, [0, 1, 2, 3], [0, 2], [2, 3]],
        [1, 1, 1010.0, [0, 1, 2, 3], [1, 3], [2, 3]],
    ]


def test_who_is_in_whose_groups():
    found = {
        kind: [ranks for ranks in lists if 6 in ranks]
        for kind, lists in members(Layout(replicate=2, shard=2, context=4, ulysses=2)).items()
    }
    assert found == {
        "all": [list(range(16))],
        "data": [[2, 6, 10, 14]],
        "context": [[4, 5, 6, 7]],
        "ulysses": [[6, 7]],
        "outer": [[4, 6]],
        "replicate": [[6, 14]],
        "shard": [list(range(8))],
    }


def parts_of_the_processes():
    rank, seen = torch.distributed.get_rank(), []
    for first, size in ((0, 2), (1, 3), (2, 2), (0, 1)):
        ranks = start_part(Layout(shard=size), "cpu", first=first)
        seen.append(ranks and [ranks.rank, ranks.gather(rank), ranks.mesh and ranks.mesh.mesh.tolist()])
    return seen


def test_layouts_may_take_parts_of_the_processes_one_after_another():
    assert run(parts_of_the_processes, 4) == [
        [[0, [0, 1], [0, 1]], None, None, [0, [0], None]],
        [[1, [0, 1], [0, 1]], [0, [1, 2, 3], [1, 2, 3]], None, None],
        [None, [1, [1, 2, 3], [1, 2, 3]], [0, [2, 3], [2, 3]], None],
        [None, [2, [1, 2, 3], [1, 2, 3]], [1, [2, 3], [2, 3]], None],
    ]


def texts(length):
    return start(Layout(shard=2), "cpu").gather("é" * (length * torch.distributed.get_rank()))


def test_what_is_gathered_may_differ_in_length():
    assert run(texts, 2, 3) == [["", "ééé"]] * 2


def fails(how):
    ranks = start(Layout(shard=2), "cpu")
    if ranks.rank == 1:
        if how == "raises":
            raise LookupError("nothing there")
        if how == "dies":
            os.kill(os.getpid(), 9)
        time.sleep(60)
    ranks.barrier()


@pytest.mark.parametrize(
    ("how", "said"),
    [("raises", "LookupError: nothing there"), ("dies", "rank 1: died of SIGKILL"), ("hangs", "time.sleep|in fails")],
)
def test_a_process_that_fails_is_named(how, said):
    with pytest.raises(RanksError, match=said):
        run(fails, 2, how, timeout=20 if how != "hangs" else 3)


def test_processes_that_are_started_anew_meet_each_other_and_none_of_those_before(monkeypatch):
    """torchrun keeps the store, and its machines count restarts apart."""
    store = torch.distributed.HashStore()

    def meet(size: int) -> list[bytes]:
        with ThreadPoolExecutor(size) as threads:
            parts = list(threads.map(lambda rank: ranks.own_store(store, rank, size), range(size)))
        assert not parts[0].check(["address"])
        parts[0].set("address", secrets.token_hex(4))
        found = [part.get("address") for part in parts]
        assert len(set(found)) == 1
        return found

    first = meet(3)
    monkeypatch.setattr(ranks, "TIMEOUT", timedelta(seconds=0.2))
    for rank in (0, 2):  # an attempt that others did not live to see
        with pytest.raises(torch.distributed.DistStoreError):
            ranks.own_store(store, rank, 3)
    monkeypatch.setattr(ranks, "TIMEOUT", timedelta(seconds=30))
    assert meet(3) != first
