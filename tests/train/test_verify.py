"""eagle verify: many processes equal one, and what is wrong is named: its stage, its tower, its rank."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from eagle_model.model import exchange
from eagle_model.train import verify
from eagle_model.train.faults import FAULTS, Fault
from eagle_model.train.layout import Layout
from eagle_model.train.verify import ROWS, Case, cases, faults
from tests.ranks import run


def outcomes_of(which: list[list[Any]]) -> list[list[Any]]:
    """In a process that others may be forked from: stage, ranks and text of each case."""
    found = verify.prove(Case(Layout(**kinds), *rest) for kinds, *rest in which)
    return [[o.stage, list(o.ranks), str(o)] for o in found]


def test_eight_processes_are_one() -> None:
    """Eight that share a row, then two rows that four share each; every way of keeping activations."""
    which = [
        [{"context": 8}, ("a document across every boundary",), "block"],
        [{"context": 8}, ("ranks without an image",), "attention"],
        [{"context": 4, "shard": 2}, ("text alone", "an image on every cut"), "all", 1],
    ]
    (found,) = run(outcomes_of, 1, which)
    assert [stage for stage, _, _ in found] == [None] * len(which), found


def planted(name: str) -> list[Any]:
    """One of rank 1's own: it forgets what others have for it."""
    real = exchange.finish_sum

    def forgetful(pending: tuple[Tensor, Any]) -> Tensor:
        summed = real(pending)
        return torch.zeros_like(summed) if dist.get_rank() == 1 else summed

    def plant() -> AbstractContextManager[Any]:
        return mock.patch.object(exchange, "finish_sum", forgetful)

    harmless = Fault(nullcontext, "loss")
    FAULTS["rank 1"] = Fault(plant, "gradient of layer 1's input")
    FAULTS["none"] = harmless
    (outcome,) = verify.prove([Case(Layout(context=2), ("one document",), fault=name)])
    return [outcome.stage, list(outcome.ranks), str(outcome), outcome.is_right]


def test_the_rank_that_is_wrong_is_named() -> None:
    ((stage, ranks, says, is_right),) = run(planted, 1, "rank 1")
    assert (stage, ranks, is_right) == ("gradient of layer 1's input", [1], True)
    assert says.startswith("gradient of layer 1's input (the language model, backward) on rank 1, an error of ")


def of_weights(change: str) -> list[Any]:
    """A fault in rank 1's gradients of weights alone; the row is of text alone, so that vision has none."""
    name = next(name for name in ("reduce_scatter_single", "reduce_scatter_tensor") if hasattr(dist, name))
    real = getattr(dist, name)

    def wrong(*, output: Tensor, **options: Any) -> Any:
        work = real(output=output, **options)
        if work is not None:
            work.wait()
        if dist.get_rank() == 1:
            output.copy_(torch.full_like(output, math.nan) if change == "nan" else output + 1)
        return work

    FAULTS["weights"] = Fault(lambda: mock.patch.object(dist, name, wrong), "gradients of lm_head")
    (outcome,) = verify.prove([Case(Layout(context=2), ("text alone",), fault="weights")])
    return [outcome.stage, list(outcome.ranks), {stage: repr(error) for stage, error in outcome.errors.items()}]


@pytest.mark.parametrize("change", ["nan", "more"])
def test_gradients_that_are_no_numbers_or_should_not_be_there_are_wrong(change: str) -> None:
    ((stage, ranks, errors),) = run(of_weights, 1, change)
    assert (stage, ranks) == ("gradients of lm_head", [1])
    assert errors["gradients of vision"] == ("nan" if change == "nan" else "1.0")


def test_a_fault_that_is_not_found_is_no_success() -> None:
    ((stage, _, says, is_right),) = run(planted, 1, "none")
    assert (stage, says, is_right) == (None, "equal", False)


def test_the_cases_are_all_there() -> None:
    """Every degree of context with every number of shards, every row, kept and computed again; each fault once."""
    found = cases(64)
    for context in (1, 2, 4, 8, 16):
        for shard in (1, 2, 4):
            its = [case for case in found if case.layout == Layout(context=context, shard=shard)]
            assert bool(its) == (context * shard > 1)
            if its and context <= 8:
                for keep in ("all", "block"):
                    assert {name for case in its if case.keep == keep for name in case.rows} == set(ROWS)
                assert any(case.chunk_tiles for case in its)
    methods = {(case.layout.ulysses, case.layout.method) for case in found if case.layout.context == 16}
    assert methods == {(ulysses, method) for ulysses in (1, 2, 4) for method in ("gather", "ring")}
    assert any(case.layout.vocab_parallel for case in found) and any(case.layout.replicate > 1 for case in found)
    assert all(case.layout.processes <= 32 for case in cases(32))
    assert len({case.layout for case in cases(8, short=True)}) == len(cases(8, short=True))
    assert [case.fault for case in faults(8)] == list(FAULTS)
    assert all(case.layout.processes == 8 and len(case.rows) == case.layout.data for case in faults(8))


def test_one_process_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="verify: 1 process; needs at least 2"):
        verify.verify(1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(ValueError, match="verify: 1 process; needs at least 2"):
        verify.verify(8)
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(ValueError, match="no layout here has 6 processes; start 2, 4, 8, 16 or 32"):
        verify.verify(8)


def dies() -> str:
    def work(rank: int) -> None:
        if rank == 1:
            raise KeyError("lost")
        dist.init_process_group("gloo", init_method="file:///nowhere/store", rank=rank, world_size=2)

    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        try:
            verify._fork(2, work, Path(folder))
        except RuntimeError as error:
            return str(error)
    return "nothing happened"


def test_a_process_that_fails_says_why() -> None:
    (said,) = run(dies, 1)
    assert "of 2 ended with 1" in said
    assert "Error" in said


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, "-m", "eagle_model.cli", "verify", *arguments],
        capture_output=True, text=True, env=environment | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_with_all_processes() -> None:
    done = command()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All equal, all planted faults found." in done.stdout
    assert "shard=2 context=16" in done.stdout and "context=16 ulysses=4 ring" in done.stdout


@pytest.mark.slow
def test_under_torchrun() -> None:
    """Its processes are taken, and the first alone speaks."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "4", "--no-python"]
    done = subprocess.run(
        [*torchrun, sys.executable, "-m", "eagle_model.cli", "verify", "--short"],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("All equal, all planted faults found.") == 1


def comes_and_goes(times: int) -> int:
    """So many process groups in a row, each of 4 processes, which have told each other something."""
    import tempfile
    from datetime import timedelta
    from pathlib import Path

    from eagle_model.train.ranks import leave, start

    def work(rank: int) -> None:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=4, timeout=timedelta(seconds=60))
        ranks = start(Layout(context=2, shard=2), "cpu")
        assert ranks.gather(rank) == [0, 1, 2, 3]
        assert float(ranks.total(torch.ones(()))) == 2
        leave(rank, 4)

    for _ in range(times):
        with tempfile.TemporaryDirectory() as folder:
            verify._fork(4, work, Path(folder))
    return times


@pytest.mark.slow
def test_a_hundred_clean_teardowns_in_a_row() -> None:
    assert run(comes_and_goes, 1, 100, timeout=600) == [100]
