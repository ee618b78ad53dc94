"""Ranks: which process this one is in a layout, and what the processes tell each other.

    ranks = start(Layout(shard=2, context=4), "cuda")     # every process that torchrun has started calls it
    ...                                                   # parallelize(model, ranks), see parallel.py
    mass = ranks.total(mass)                              # summed over the data ranks
    skipped = ranks.gather(ids)                           # every rank's, in their order, on every rank
    ranks.close()

A process that nothing started has the ranks of one: no process group, `total` gives what it gets, and code above need
not ask. Processes tell each other tensors, and JSON as bytes: nothing is pickled.

Names    rank: 0 to layout.processes - 1. data_rank of num_data: which rows. context_rank of num_context: which tokens
         of a row. Groups are torch.distributed's, None where a process would be alone: all_group; data_group, of
         the same tokens in other rows; context_group, of the same row, and in it ulysses_group, of neighbours, and
         outer_group, of those with the same place among their neighbours. mesh: FSDP's, "shard" over shard *
         context processes, and "replicate" before it where there are replicas.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from eagle_model.fields import ConfigError, few
from eagle_model.train.layout import Layout, check_layout

KINDS = ("all", "data", "context", "ulysses", "outer")
TIMEOUT = timedelta(minutes=30)  # of a collective: the first step's planning may keep a rank that long
POLL_SECONDS = 0.02  # between looks for processes that are to meet


class Ranks:
    """This process in a layout; made by `start`."""

    def __init__(
        self, layout: Layout, device: torch.device, *, rank: int = 0, groups: Mapping[str, Any] | None = None
    ) -> None:
        self.layout, self.device, self.rank = layout, device, rank
        self.num_data, self.num_context = layout.data, layout.context
        self.data_rank, self.context_rank = divmod(rank, layout.context)
        self.owns_group = False  # whether `close` ends the process group
        groups = groups or {}
        self.all_group, self.data_group, self.context_group, self.ulysses_group, self.outer_group = (
            groups.get(kind) for kind in KINDS
        )
        self.mesh: DeviceMesh | None = groups.get("mesh")

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def total(self, value: Tensor, *, over: Literal["data", "all"] = "data") -> Tensor:
        """The sum over all data ranks, of which context ranks hold the same value, or over all ranks; the same on every
        rank."""
        group = self.data_group if over == "data" else self.all_group
        if group is None:
            return value
        summed = value.clone()
        dist.all_reduce(summed, group=group)
        return summed

    def gather(self, value: Any, *, over: Literal["all", "data", "context"] = "all") -> list[Any]:
        """What each rank of these hands in, in the order of ranks; on every one of them. Needs what JSON can say."""
        text = json.dumps(value).encode()
        group = {"all": self.all_group, "data": self.data_group, "context": self.context_group}[over]
        if group is None:
            return [json.loads(text)]
        size = dist.get_world_size(group)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(size)]
        dist.all_gather(lengths, torch.tensor([len(text)]), group=group)
        longest = max(int(length) for length in lengths)
        mine = torch.zeros(longest, dtype=torch.uint8)
        mine[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        found = [torch.zeros(longest, dtype=torch.uint8) for _ in range(size)]
        dist.all_gather(found, mine, group=group)
        return [json.loads(bytes(part[: int(n)].tolist())) for part, n in zip(found, lengths, strict=True)]

    def barrier(self) -> None:
        """Returns when all ranks have called it."""
        if self.all_group is not None:
            dist.all_reduce(torch.zeros(1), group=self.all_group)

    def close(self) -> None:
        """The end of the process group, if `start` made it; every rank calls it, and once."""
        if self.owns_group:
            leave(self.rank, self.layout.processes)
        self.owns_group = False


def start(layout: Layout, device: torch.device | str | None = None, *, rows_per_step: int | None = None) -> Ranks:
    """Joins the processes of a layout; each of them calls it. Returns when all have. Where a process group stands
    already, it is that one.

    device: "cuda" means the GPU that torchrun's LOCAL_RANK says; none: a GPU where there is one, else the CPU.
    rows_per_step: what the data ranks share out, where it is known.
    Raises: ConfigError, with the nearest layout that can work, when there are not as many processes as this one needs,
            or they cannot share out the rows; and where there is no GPU for this one.
    """
    has_group, size = dist.is_available() and dist.is_initialized(), num_processes()
    if not (has_group and layout.processes == 1):  # beside others that stand already, a process may be on its own
        check_layout(layout, num_processes=size, rows_per_step=rows_per_step)
    place = _own_device(device)
    if layout.processes == 1:
        return Ranks(layout, place)
    if not has_group:
        # Tensors on a CPU, JSON among them, go by gloo wherever the model is.
        backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
        store, rank, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
        store = own_store(store, rank, size)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    ranks = start_part(layout, place)
    assert ranks is not None
    ranks.owns_group = not has_group
    return ranks


def own_store(store: dist.Store, rank: int, num_processes: int) -> dist.Store:
    """A part of the store that no processes but those that are alive now know of; each of them calls it.

    torchrun starts processes anew beside the store of those before, whose addresses are in it still and would be waited
    for. Its count of restarts cannot tell them apart: machines count on their own, and one that learns of another's
    restart before its own processes fail does not count it. So the first process gives the part a name, and answers to
    a word that each other has just drawn, until it hears that the answer came: words of the dead stay unanswered for.

    Raises: DistStoreError when they have not met within TIMEOUT.
    """
    mine = secrets.token_hex(8)
    if rank:
        store.set(f"eagle/word/{rank}", mine)
        answer = f"eagle/answer/{rank}/{mine}"
        store.wait([answer], TIMEOUT)
        name = store.get(answer).decode()
        store.set(f"eagle/here/{name}/{rank}", "1")
        return dist.PrefixStore(f"attempt-{name}", store)
    missing, until = set(range(1, num_processes)), time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        for other in sorted(missing):
            if store.check([f"eagle/word/{other}"]):
                store.set(f"eagle/answer/{other}/{store.get(f'eagle/word/{other}').decode()}", mine)
            if store.check([f"eagle/here/{mine}/{other}"]):
                missing.discard(other)
        if missing and time.monotonic() > until:
            raise dist.DistStoreError(f"{few(sorted(missing))} of {num_processes} processes did not come.")
        time.sleep(POLL_SECONDS if missing else 0)
    return dist.PrefixStore(f"attempt-{mine}", store)


def num_processes() -> int:
    """How many there are: of the process group that stands, or that torchrun has started."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", 1))


def start_part(layout: Layout, device: torch.device | str, *, first: int = 0) -> Ranks | None:
    """A layout of some of the processes of the process group that stands, from the `first` one on.

    Every process of that group calls it, in the same order of layouts; those that are not in this one get None.
    """
    device, here = torch.device(device), (dist.get_rank() if dist.is_initialized() else 0) - first
    groups = _groups(layout, first, here, device.type) if layout.processes > 1 else {}
    return Ranks(layout, device, rank=here, groups=groups) if 0 <= here < layout.processes else None


def members(layout: Layout) -> dict[str, list[list[int]]]:
    """The ranks of each group of each kind. Example: members(Layout(shard=2, context=2))["data"] == [[0, 2], [1, 3]]"""
    P, C, U, S = layout.processes, layout.context, layout.ulysses, layout.shard * layout.context
    return {
        "all": [list(range(P))],
        "data": [list(range(token, P, C)) for token in range(C)],
        "context": [list(range(row, row + C)) for row in range(0, P, C)],
        "ulysses": [list(range(inner, inner + U)) for inner in range(0, P, U)],
        "outer": [list(range(row + inner, row + C, U)) for row in range(0, P, C) for inner in range(U)],
        "replicate": [list(range(place, P, S)) for place in range(S)],
        "shard": [list(range(replica, replica + S)) for replica in range(0, P, S)],
    }


def _groups(layout: Layout, first: int, here: int, device_type: str) -> dict[str, Any]:
    """This process's groups by kind, and the mesh. All processes make all groups, in one order."""
    lists = members(layout)
    made: dict[tuple[int, ...], Any] = {tuple(range(dist.get_world_size())): dist.group.WORLD}
    mine: dict[str, Any] = {}
    for kind in KINDS:
        for ranks in lists[kind]:
            key = tuple(first + rank for rank in ranks)
            if len(key) == 1:
                continue
            if key not in made:
                made[key] = dist.new_group(list(key))
            if here in ranks:
                mine[kind] = made[key]
    # Over groups of its own: FSDP's transfers then overlap those of attention.
    names = ("replicate", "shard") if layout.replicate > 1 else ("shard",)
    for kind in names:
        for ranks in lists[kind]:
            group = dist.new_group([first + rank for rank in ranks])
            if here in ranks:
                mine[kind] = group
    if "shard" in mine:
        places = torch.tensor(lists["shard"]) + first
        mesh = places if layout.replicate > 1 else places[0]
        groups = [mine[kind] for kind in names]
        mine["mesh"] = DeviceMesh.from_group(
            groups if len(names) > 1 else groups[0], device_type, mesh=mesh, mesh_dim_names=names
        )
    return mine


def leave(rank: int, num_processes: int) -> None:
    """Ends the process group without a rank that still waits for another's bytes.

    A rank that closes its connections with something unread in them resets them, and gloo then aborts its neighbours.
    So all meet once more beside the connections, in the store, when nobody has anything left to read.
    """
    dist.all_reduce(torch.zeros(1))
    store = dist.distributed_c10d._get_default_store()
    store.set(f"eagle/done/{rank}", "1")
    store.wait([f"eagle/done/{other}" for other in range(num_processes)])
    dist.destroy_process_group()
    store.set(f"eagle/left/{rank}", "1")
    if rank == 0:  # the store may be this process's
        store.wait([f"eagle/left/{other}" for other in range(num_processes)])


def _own_device(device: torch.device | str | None) -> torch.device:
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type != "cuda":
        return place
    local = os.environ.get("LOCAL_RANK")
    index = place.index if place.index is not None or local is None else int(local)
    if index is None:
        return place
    if index >= (count := torch.cuda.device_count()):
        raise ConfigError(
            f"local rank {index} has no GPU: this machine has {count}. Start {count} processes on it (torchrun "
            f"--nproc-per-node {count}), or train with device=cpu."
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
