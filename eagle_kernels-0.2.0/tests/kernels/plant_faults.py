"""Plants faults in the machine code of the library's kernels (tests/ptx/faults.py) and reports how many a run notices.

    python -m tests.kernels.plant_faults --out bench/results/static      writes faults_sm90.json and faults_sm90.md
    python -m tests.kernels.plant_faults --only gluon_fwd --kind wait    prints alone

Each fault is run under SCHEDULES, until one raises or gives other bits than the sound kernel. A removal that none
notices is either covered by its neighbours, as two barriers in a row cover each other, or dispensable. So such
removals are put together in one kernel, one more at a time, and one that is noticed there counts as noticed. The others
are dispensable: without all of them at once the kernel passes the check of order under every schedule. They are no
faults and are counted apart. What nothing notices is listed.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TRITON_INTERPRET", "1")  # before any kernel is decorated

import pytest
import torch
import triton

from eagle_kernels import attention_sm90
from eagle_kernels.attention import _varlen_attention
from eagle_kernels.attention_plan import AttentionPlan
from tests.kernels import hopper
from tests.kernels.plans import plan_of
from tests.numerics import randn
from tests.ptx.barriers import BarrierError
from tests.ptx.faults import Fault, faults, planted
from tests.ptx.launch import launch
from tests.ptx.machine import Deadlock, Schedule
from tests.ptx.memory import AccessError
from tests.ptx.order import RaceError
from tests.ptx.products import ProductError
from tests.ptx.translate import Program

SCHEDULES: list[dict[str, Any]] = [
    {"order": "random", "landing": "random", "seed": 1},
    {"order": "together", "landing": "late"},
    {"order": "unfair", "landing": "random", "seed": 1},
    {"order": "unfair", "landing": "late", "seed": 2},
    {"order": "random", "landing": "early", "seed": 2},
    {"order": "random", "landing": "late", "seed": 3},
    # With seed 2 all six orders of three warp groups, of which each is as far ahead of the others as waits allow: what
    # one wait alone holds back is not held back without it.
    *({"order": "unfair", "landing": "late", "seed": seed} for seed in (0, 4, 5, 6, 7)),
]
NOTICES = (AccessError, BarrierError, Deadlock, ProductError, RaceError)
KINDS = ("wait", "barrier", "arrive", "fence", "bytes", "slot", "count")
REMOVALS = ("wait", "barrier", "arrive", "fence")
DISPENSABLE = "dispensable"


@dataclass
class Sound:
    """A kernel's launches as they were handed to the machine, and what each leaves in memory."""

    name: str
    program: Program
    launches: list[tuple[hopper.Job, np.ndarray]]
    executed: set[int]  # segments

    def faults(self, kinds: Collection[str] = KINDS) -> list[Fault]:
        """Of these kinds, in code that these launches run."""
        ran = [s for s in self.program.segments if s.index in self.executed]
        lines = {at for segment in ran for at in range(segment.first, segment.last)}
        return [fault for fault in faults(self.program) if fault.at in lines and fault.kind in kinds]


def attention(patch: pytest.MonkeyPatch, gluon: bool, D: int) -> None:
    patch.setattr(attention_sm90, "_is_sm90", lambda x: gluon)
    patch.setattr(attention_sm90, "_num_multiprocessors", lambda device: 1)
    # Gluon: one program takes all items, five of up to five blocks, so that its rings and barriers go round within an
    # item and between them. Forward's producer waits at each of its places for every slot, the last one too, only in
    # longer ones.
    uniform = [AttentionPlan.uniform(num, length, device="cpu") for num, length in ((1, 520), (1, 641), (2, 520))]
    for number, plan in enumerate(uniform if gluon else [plan_of([400])]):
        T = plan.num_tokens
        q, k, v = (randn(T, 1, D, dtype=torch.bfloat16, seed=seed) for seed in range(3))
        out, _ = _varlen_attention(q, k, v, plan, True, D**-0.5)
        if number == 0:
            out.backward(randn(T, 1, D, dtype=torch.bfloat16, seed=3).detach())


def linear_cross_entropy(patch: pytest.MonkeyPatch) -> None:
    module = import_module("eagle_kernels.linear_cross_entropy")
    hidden, weight = (randn(rows, 400, dtype=torch.bfloat16, seed=rows).detach() for rows in (40, 300))
    module._fwd(hidden, weight, torch.arange(40), None, -100, True, True, True, 128)


def layer_norm(patch: pytest.MonkeyPatch) -> None:
    module = import_module("eagle_kernels.layer_norm")
    patch.setattr(module, "NUM_PARTIALS", 2)
    x, weight, bias = (randn(*shape, dtype=torch.bfloat16) for shape in ((9, 1152), (1152,), (1152,)))
    module._fwd(x, weight, bias, 1e-6)[0].backward(randn(9, 1152, dtype=torch.bfloat16, seed=1).detach())


SOURCES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], tuple[str, ...]]] = {
    "gluon_128": (lambda patch: attention(patch, True, 128), ("fwd_kernel", "dq_kernel", "dkdv_kernel")),
    "gluon_72": (lambda patch: attention(patch, True, 72), ("fwd_kernel", "dq_kernel", "dkdv_kernel")),
    "triton_128": (lambda patch: attention(patch, False, 128), ("_fwd_kernel", "_dq_kernel", "_dkdv_kernel")),
    "linear_cross_entropy": (linear_cross_entropy, ("_matmul_kernel",)),
    "layer_norm": (layer_norm, ("_bwd_kernel",)),
}


def sound_launches(source: str) -> list[Sound]:
    make, kernels = SOURCES[source]
    found: list[Sound] = []
    with pytest.MonkeyPatch.context() as patch, hopper.machine(Schedule(order="together")) as launches:
        make(patch)
        for launched in launches:
            job = launched.job
            if launched.kernel not in kernels:
                continue
            sound = next((sound for sound in found if sound.program is job.program), None)
            if sound is None:
                name = f"{source} {launched.kernel.strip('_').removesuffix('_kernel')}"
                same = sum(sound.name.startswith(name) for sound in found)
                sound = Sound(f"{name} {same}" if same else name, job.program, [], set())
                found.append(sound)
            job.blocks = job.blocks[:2]  # the longest
            after = run(job, job.program, Schedule(order="together"), sound.executed)
            sound.launches.append((job, after))
    return found


def run(job: hopper.Job, program: Program, schedule: Schedule, executed: set[int] | None = None) -> np.ndarray:
    memory = job.fresh_memory()
    schedule.max_steps = 200_000
    launch(
        program,
        memory,
        job.arguments,
        grid=job.grid,
        num_threads=job.num_threads,
        shared_bytes=job.shared_bytes,
        cluster=job.cluster,
        schedule=schedule,
        blocks=job.blocks,
        executed=executed,
    )
    return memory.bytes


def notice(sound: Sound, *faults: Fault) -> str | None:
    """What the first schedule and launch say that notice the faults, all planted at once."""
    broken = planted(sound.program, *faults)
    for job, intact in sound.launches:
        for options in SCHEDULES:
            try:
                after = run(job, broken, Schedule(**options))
            except NOTICES as error:
                return type(error).__name__
            if not np.array_equal(after, intact):
                return "other bits"
    return None


def examine(sound: Sound, chosen: Iterable[Fault]) -> list[dict[str, Any]]:
    """A row for each of these faults: kernel, kind, fault and notice: who noticed it, DISPENSABLE or None."""
    found = {fault: notice(sound, fault) for fault in chosen}
    found |= tell_apart(sound, [fault for fault, who in found.items() if who is None and fault.kind in REMOVALS])
    return [{"kernel": sound.name, "kind": x.kind, "fault": str(x), "notice": who} for x, who in found.items()]


def tell_apart(sound: Sound, missed: Sequence[Fault]) -> dict[Fault, str]:
    """Of removals that none notices alone: DISPENSABLE, or who notices it with the dispensable ones."""
    told: dict[Fault, str] = {}
    todo = [missed] if missed else []
    while todo:  # all at once, then by halves: few are covered
        part = todo.pop()
        who = notice(sound, *(fault for fault, verdict in told.items() if verdict == DISPENSABLE), *part)
        if who is None:
            told |= dict.fromkeys(part, DISPENSABLE)
        elif len(part) == 1:
            told[part[0]] = f"{who}, with others"
        else:
            todo += [part[len(part) // 2 :], part[: len(part) // 2]]
    return told


def share_noticed(results: list[dict[str, Any]]) -> float:
    """Of the faults that are not dispensable."""
    real = [r for r in results if r["notice"] != DISPENSABLE]
    return sum(r["notice"] is not None for r in real) / max(1, len(real))


def report(results: list[dict[str, Any]]) -> str:
    kernels = sorted({r["kernel"] for r in results})
    lines = [
        "Faults planted in the PTX of sm_90a kernels, one at a time, and noticed by tests/ptx: noticed / planted. Not",
        "counted is what is dispensable: without all of it at once the kernel still passes the check of",
        "order under every schedule. Written by `python -m tests.kernels.plant_faults`; what the kinds are:",
        "tests/ptx/faults.py.",
        "",
        f"| kernel | {' | '.join(KINDS)} | all | dispensable |",
        "|---|" + "---|" * (len(KINDS) + 2),
    ]
    for kernel in [*kernels, "all"]:
        cells = []
        for kind in (*KINDS, None):
            mine = [r for r in results if kernel in (r["kernel"], "all") and kind in (r["kind"], None)]
            real = [r for r in mine if r["notice"] != DISPENSABLE]
            noticed = sum(r["notice"] is not None for r in real)
            cells.append(f"{noticed} / {len(real)}" if real else "")
        cells.append(str(len(mine) - len(real)))
        lines.append(f"| {kernel} | {' | '.join(cells)} |")
    by_whom = Counter(r["notice"] for r in results if r["notice"] not in (None, DISPENSABLE))
    lines += [
        "",
        "Noticed by: " + "; ".join(f"{who} {num}" for who, num in by_whom.most_common()) + ".",
        "",
        "Not noticed:",
        "",
    ]
    lines += [f"- {r['kernel']}: {r['fault']}" for r in results if r["notice"] is None]
    lines += ["", "Dispensable:", ""]
    lines += [f"- {r['kernel']}: {r['fault']}" for r in results if r["notice"] == DISPENSABLE]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder that takes the results")
    parser.add_argument("--only", default="", help="only kernels whose name holds this")
    parser.add_argument("--kind", default="", help="only faults of this kind")
    args = parser.parse_args()
    results = []
    for source in SOURCES:
        if args.only and not (args.only.startswith(source) or source.startswith(args.only.split()[0])):
            continue
        for sound in sound_launches(source):
            if args.only not in sound.name:
                continue
            start = time.time()
            mine = examine(sound, sound.faults([kind for kind in KINDS if args.kind in kind]))
            num = sum(r["notice"] == DISPENSABLE for r in mine)
            share = f"{share_noticed(mine):.1%} of {len(mine) - num}, {num} dispensable"
            print(f"{sound.name}: {share}, {time.time() - start:.0f} s", flush=True)
            for r in mine:
                if r["notice"] is None:
                    print("   not noticed:", r["fault"], flush=True)
            results += mine
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        table = {"triton": triton.__version__, "rows": results}
        (args.out / "faults_sm90.json").write_text(json.dumps(table, indent=1) + "\n")
        (args.out / "faults_sm90.md").write_text(report(results))


if __name__ == "__main__":
    main()
