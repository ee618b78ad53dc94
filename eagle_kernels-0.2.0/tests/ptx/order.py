"""Who has seen what: finds shared memory used by two parties with nothing that orders them, whatever the schedule was.

Each party (a warp, the copies a warp has under way, the products it has under way, the TMA loads that one mbarrier
counts) has a clock. A barrier hands what its arrivers have seen to those it lets go; a wait for copies, products or an
mbarrier adds what those did. Every cell of shared memory remembers its last writer and its readers, with their clocks
then. An access is in order when the party has seen all of those it conflicts with (vector clocks: Lamport 1978; one
writer a cell: FastTrack, Flanagan and Freund 2009).

Two views are kept. `seen` is what loads and stores may rely on. `proxy` is what asynchronous work (wgmma, TMA) may rely
on: what ordinary stores wrote enters it at a fence.proxy.async.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BARRIERS = 192  # mbarriers a cluster's blocks may make in a run


class RaceError(RuntimeError):
    """Two accesses to the same shared memory, at least one a write, that nothing puts in order."""


class Order:
    """Clocks of `num_warps` warps and the shared memory of a cluster, `num_bytes` in all, in cells of `cell` bytes: no
    access is smaller, so that neighbours in one cell are not taken for the same."""

    def __init__(self, num_warps: int, num_bytes: int, cell: int) -> None:
        self.cell = cell
        self.num_warps = w = num_warps
        self.copies, self.products, self.stores, self.loads = w, 2 * w, 3 * w, 4 * w  # first party of each kind
        self.flying = 4 * w + MAX_BARRIERS  # work that has not landed; nobody has seen it
        self.num_parties = self.flying + 1
        self.seen = np.zeros((w, self.num_parties), np.int32)
        self.proxy = np.zeros((w, self.num_parties), np.int32)
        np.fill_diagonal(self.seen[:, :w], 1)
        cells = -(-num_bytes // cell)
        self.writer = np.full(cells, 0, np.int16)
        self.written = np.zeros(cells, np.int32)  # the writer's clock; 0: nobody
        self.read_at = np.zeros((4 * w, cells), np.int32)
        self.have_read = np.zeros(4 * w, bool)  # parties that have read anything
        self.readers = np.zeros(0, np.int64)  # their numbers

    def party(self, index: int) -> str:
        w = self.num_warps
        if index == self.flying:
            return "asynchronous work that has not landed"
        if index >= 4 * w:
            return f"TMA loads of mbarrier {index - 4 * w}"
        kind = ("", "cp.async of ", "wgmma of ", "TMA store of ")[index // w]
        return f"{kind}warp {index % w}"

    def release(self, warp: int) -> NDArray[np.int32]:
        """What the warp has seen and done until now, for others; returns (2, parties): seen, proxy."""
        given = np.stack((self.seen[warp], self.proxy[warp]))
        self.seen[warp, warp] += 1
        return given

    def acquire(self, warp: int, given: NDArray[np.int32]) -> None:
        np.maximum(self.seen[warp], given[0], out=self.seen[warp])
        np.maximum(self.proxy[warp], given[1], out=self.proxy[warp])

    def fence(self, first: int, last: int) -> None:
        """fence.proxy.async of warps first to last - 1."""
        self.proxy[first:last] = self.seen[first:last]
        warps = np.arange(first, last)
        self.seen[warps, warps] += 1  # what they store from now on is not covered

    def learn(self, warp: int, party: int, clock: int) -> None:
        """The warp has waited for asynchronous work of a party up to a clock."""
        self.seen[warp, party] = max(self.seen[warp, party], clock)
        # What ran through the asynchronous proxy needs no fence to be used there. Nor does cp.async: PTX does not say
        # so,
        # but both Triton and CUTLASS feed wgmma from cp.async with a wait and a barrier alone.
        if party >= self.copies:
            self.proxy[warp, party] = max(self.proxy[warp, party], clock)

    def read(self, warps: NDArray[np.int64], cells: NDArray[np.int64], what: str) -> None:
        """Ordinary loads: cells[i] by warps[i]."""
        writer = self.writer[cells]
        ok = self.seen[warps, writer] >= self.written[cells]
        if not ok.all():
            self._fail(ok, warps, cells, writer, f"{what} reads", "wrote")
        self.read_at[warps, cells] = self.seen[warps, warps]
        self._note_readers(warps)

    def _note_readers(self, parties: Any) -> None:
        if not self.have_read[parties].all():
            self.have_read[parties] = True
            self.readers = np.flatnonzero(self.have_read)

    def write(self, warps: NDArray[np.int64], cells: NDArray[np.int64], what: str) -> None:
        """Ordinary stores."""
        self._check_write(self.seen, warps, cells, what)
        self.writer[cells] = warps
        self.written[cells] = self.seen[warps, warps]

    def _check_write(
        self, known: NDArray[np.int32], warps: NDArray[np.int64], cells: NDArray[np.int64], what: str
    ) -> None:
        writer = self.writer[cells]
        ok = known[warps, writer] >= self.written[cells]
        if not ok.all():
            self._fail(ok, warps, cells, writer, f"{what} writes", "wrote")
        if not len(self.readers):
            return
        rows = self.readers
        late = self.read_at[rows[:, None], cells] > self.seen[warps[None, :], rows[:, None]]
        if late.any():
            late &= rows[:, None] != warps
        if late.any():
            reader = rows[np.argmax(late, axis=0)]
            self._fail(~late.any(axis=0), warps, cells, reader, f"{what} writes", "reads or has read")

    def start_copy(
        self, warps: NDArray[np.int64], cells: NDArray[np.int64], clocks: NDArray[np.int32], what: str
    ) -> None:
        """cp.async into cells, seen by nobody before its wait gives `clocks`."""
        self._check_write(self.seen, warps, cells, what)
        self.writer[cells] = self.copies + warps
        self.written[cells] = clocks

    def product_reads(self, first: int, cells: NDArray[np.int64], clocks: NDArray[np.int32], what: str) -> None:
        """A wgmma of warps first to first + 3 reads cells until their wait gives `clocks`."""
        writer, written = self.writer[cells], self.written[cells]
        for i in range(4):
            ok = self.proxy[first + i, writer] >= written
            if not ok.all():
                warps = np.full(len(cells), first + i)
                self._fail(ok, warps, cells, writer, f"{what} reads", "wrote", proxy=True)
            self.read_at[self.products + first + i, cells] = clocks[i]
        self._note_readers(slice(self.products + first, self.products + first + 4))

    def store_reads(self, warp: int, cells: NDArray[np.int64], clock: int, what: str) -> None:
        """A TMA store reads cells until its wait gives `clock`."""
        writer = self.writer[cells]
        ok = self.proxy[warp, writer] >= self.written[cells]
        if not ok.all():
            self._fail(ok, np.full(len(cells), warp), cells, writer, f"{what} reads", "wrote", proxy=True)
        self.read_at[self.stores + warp, cells] = clock
        self._note_readers(slice(self.stores + warp, self.stores + warp + 1))

    def start_load(self, warp: int, cells: NDArray[np.int64], what: str) -> None:
        """A TMA load is under way into cells."""
        self._check_write(self.proxy, np.full(len(cells), warp), cells, what)
        self.writer[cells] = self.flying
        self.written[cells] = 1

    def finish_load(self, barrier: int, cells: NDArray[np.int64], clock: int) -> None:
        self.writer[cells] = self.loads + barrier
        self.written[cells] = clock

    def uses_barrier(self, warp: int, cells: NDArray[np.int64], what: str, *, proxy: bool = False) -> None:
        """The warp must have seen the mbarrier in these cells made; for TMA, through the asynchronous proxy."""
        known = self.proxy if proxy else self.seen
        writer = self.writer[cells]
        ok = known[warp, writer] >= self.written[cells]
        if not ok.all():
            warps = np.full(len(cells), warp)
            self._fail(ok, warps, cells, writer, f"{what} uses the mbarrier in", "made", proxy=proxy)

    def _fail(
        self,
        ok: Any,
        warps: NDArray[np.int64],
        cells: NDArray[np.int64],
        parties: NDArray[Any],
        does: str,
        did: str,
        *,
        proxy: bool = False,
    ) -> None:
        i = int(np.argmin(ok))
        other = self.party(int(parties[i]))
        needs = "a wait, an arrival or a barrier between them"
        if proxy and self.seen[warps[i], parties[i]] >= self.written[cells[i]]:
            needs = "fence.proxy.async between them: ordinary stores are not seen by asynchronous work without it"
        place = int(cells[i]) * self.cell
        raise RaceError(f"warp {int(warps[i])}: {does} shared memory at byte {place} that {other} {did}; needs {needs}")
