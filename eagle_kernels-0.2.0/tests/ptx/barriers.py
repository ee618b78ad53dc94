"""Barriers in shared memory (mbarrier), barriers by number (bar, barrier), and the barrier of a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Clock = NDArray[np.int32]


class BarrierError(RuntimeError):
    """A barrier used in a way that the hardware forbids: too many arrivals, counts that differ, none made here."""


@dataclass
class MBarrier:
    """Phase by phase: complete when `expected` arrivals have come and all bytes that were announced have landed."""

    index: int
    expected: int
    pending: int
    bytes_due: int = 0
    phase: int = 0
    landed: int = 0  # TMA loads in all, the clock of this barrier's party
    given: Clock | None = None  # what the arrivers of the current phase have seen
    done: Clock | None = None  # what a wait for the last phase learns
    done_landed: int = 0

    def arrive(self, count: int, given: Clock | None) -> None:
        if count > self.pending:
            raise BarrierError(
                f"mbarrier {self.index}: {count} arrivals in phase {self.phase}, "
                f"which waits for {self.pending} of {self.expected}"
            )
        self.pending -= count
        if given is not None:
            self.given = given if self.given is None else np.maximum(self.given, given)

    def settle(self) -> bool:
        """Ends the phase if everything has come; whether it did."""
        if self.pending or self.bytes_due:
            return False
        self.phase += 1
        self.pending = self.expected
        self.done = self.given
        self.done_landed = self.landed
        return True

    def is_complete(self, parity: int) -> bool:
        """Whether the phase of that parity is over; of the first phase's forerunner it is."""
        return (self.phase & 1) != (parity & 1)


@dataclass
class NamedBarrier:
    """bar.sync and bar.arrive of one number in one block."""

    count: int  # threads
    arrived: int = 0
    waiting: list[int] = field(default_factory=list)  # warps
    given: Clock | None = None

    def join(self, given: Clock | None) -> None:
        self.arrived += 32
        if given is not None:
            self.given = given if self.given is None else np.maximum(self.given, given)

    def is_full(self) -> bool:
        if self.arrived > self.count:
            raise BarrierError(f"a barrier of {self.count} threads had {self.arrived} arrivals")
        return self.arrived == self.count


def whole_number(value: Any) -> int:
    """A value that all lanes must share."""
    array = np.asarray(value)
    first = array.flat[0]
    if array.size > 1 and not (array == first).all():
        raise BarrierError(f"lanes of one warp give different values, {first} and others, where the hardware takes one")
    return int(first)
