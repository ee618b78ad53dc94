"""Layout: how many processes train one model, and what each kind of them shares out. Numbers only; no torch.

    layout = Layout(shard=8, context=2)          # 16 processes: 8 rows at a time, each row's tokens on 2 of them
    check_layout(layout, num_processes=16, rows_per_step=8, num_heads=28, num_kv_heads=4)

Order    Process (r * shard + s) * context + c is the c-th context rank of data rank r * shard + s. So those that share
         a row are neighbours, on one node where they fit, and the replicas are far apart.
Numbers  What a step computes does not depend on the layout: `rows_per_step` is of all processes together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from eagle_model.fields import ConfigError, require


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Processes by what they share out; their number is the product of replicate, shard and context."""

    replicate: int = 1  # whole copies of the model's states, each over shard * context processes; for many nodes (HSDP)
    shard: int = 1  # rows of a step; weights, gradients and moments are cut over shard * context processes
    context: int = 1  # tokens of a row, and its tiles
    ulysses: int = 1  # of the context processes, so many share out heads in place of keys; 2 or 4, it divides context
    method: Literal["gather", "ring"] = "gather"  # how keys of other context processes come: at once, or one by one
    vocab_parallel: bool = False  # the output head stays cut, and supervised tokens travel: model/vocab_parallel.py

    def __post_init__(self) -> None:
        for name in ("replicate", "shard", "context", "ulysses"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")
        require(
            self.context % self.ulysses == 0,
            "ulysses",
            self.ulysses,
            f"a divisor of context, {self.context}, as it is a part of it",
        )

    @property
    def data(self) -> int:
        """How many rows are computed at a time."""
        return self.replicate * self.shard

    @property
    def processes(self) -> int:
        return self.data * self.context

    def __str__(self) -> str:
        sizes = {"replicate": self.replicate, "shard": self.shard, "context": self.context, "ulysses": self.ulysses}
        return " ".join(f"{name}={size}" for name, size in sizes.items() if size != 1) or "one process"


def check_layout(
    layout: Layout,
    *,
    num_processes: int,
    rows_per_step: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
) -> None:
    """Raises ConfigError for a layout that cannot work, with the nearest that can. Nothing need be loaded for it.

    num_heads, num_kv_heads: of the language model's attention; they matter for `ulysses` alone. None: not known yet.
    """
    facts = num_processes, rows_per_step, num_heads, num_kv_heads
    if not (wrong := _wrong(layout, *facts)):
        return
    fitting = [other for other in _all_of(num_processes, layout) if not _wrong(other, *facts)]
    raise ConfigError(f"layout ({layout}) cannot work: {wrong}. {_advice(layout, fitting, num_processes)}")


def _wrong(
    layout: Layout, num_processes: int, rows_per_step: int | None, num_heads: int | None, num_kv_heads: int | None
) -> str:
    """What does not fit, or nothing."""
    if layout.processes != num_processes:
        product = f"{layout.replicate} x {layout.shard} x {layout.context} (replicate x shard x context)"
        return f"it is for {layout.processes} processes, {product}; there are {num_processes}"
    if rows_per_step is not None and rows_per_step % layout.data:
        return (
            f"rows_per_step is {rows_per_step}; its rows are shared out over {layout.data} data ranks (replicate x "
            f"shard), which needs a multiple of that"
        )
    for name, heads in (("query heads", num_heads), ("key/value heads", num_kv_heads)):
        if heads is not None and heads % layout.ulysses:
            return f"ulysses is {layout.ulysses}; the model's {heads} {name} must be a multiple of it"
    return ""


def _all_of(num_processes: int, near: Layout) -> Iterator[Layout]:
    """Every layout of so many processes."""
    divisors = [n for n in range(1, num_processes + 1) if num_processes % n == 0]
    for context in divisors:
        for shard in divisors:
            if num_processes % (context * shard) == 0:
                replicate = num_processes // (context * shard)
                for ulysses in (n for n in divisors if context % n == 0):
                    yield replace(near, replicate=replicate, shard=shard, context=context, ulysses=ulysses)


def _advice(layout: Layout, fitting: list[Layout], num_processes: int) -> str:
    def distance(other: Layout) -> float:
        """Powers of two by which the sizes differ: a row's memory is the context's, so it moves last."""
        weights = {"context": 4.0, "ulysses": 2.0, "replicate": 1.5, "shard": 1.0}
        return sum(w * abs(math.log2(getattr(other, name) / getattr(layout, name))) for name, w in weights.items())

    starts = f"or start {layout.processes} processes (torchrun --nproc-per-node {layout.processes})"
    if not fitting:
        return f"No layout of {num_processes} processes can. Change rows_per_step, {starts}."
    nearest = min(fitting, key=distance)
    changed = [
        f"layout.{name}={getattr(nearest, name)}"
        for name in ("replicate", "shard", "context", "ulysses")
        if getattr(nearest, name) != getattr(layout, name)
    ]
    also = f", {starts}" if layout.processes != num_processes else ""
    return f"The nearest that can: --set {' --set '.join(changed)}{also}."
