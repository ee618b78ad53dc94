"""Runs one cluster of thread blocks (most often one block): warps with their own program counters under a schedule.

A step runs one segment for a run of neighbouring warps that stand at the same place. Lanes that part at a branch go on
one side after the other and meet again where both sides must pass. What is asynchronous (cp.async, wgmma, TMA) lands
between its issue and the wait for it, as the schedule says.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import lanes as lane_ops
from .barriers import BarrierError, MBarrier, NamedBarrier, whole_number
from .flow import EXIT, Segment
from .global_memory import GlobalAccess
from .memory import AccessError, Memory, TensorMap
from .order import MAX_BARRIERS, Order
from .products import Products
from .shared import RANK_SHIFT, SharedMemory
from .tensor_copies import TensorCopies
from .translate import FILE_TYPES, TYPES, Program, namespace

Array = NDArray[Any]
NEVER = EXIT - 1  # no segment


class Deadlock(RuntimeError):
    """No warp can go on and nothing is under way."""


class Trap(RuntimeError):
    """The kernel ran into trap, or into a failed assertion."""


@dataclass
class Schedule:
    """Who goes when, and when asynchronous work takes place.

    order      "together": warps that stand at one place step at once, the rearmost first; "random": any warp, alone or
               with its neighbours, for a random while; "unfair": always the warp group that is first in an order drawn
               once, as long as it can go on
    landing    "early": at once; "late": when it is waited for, or nothing else can go on; "random": in between
    races      check for every access to shared memory that something orders it (order.py)
    """

    seed: int = 0
    order: Literal["together", "random", "unfair"] = "random"
    landing: Literal["early", "late", "random"] = "random"
    races: bool = True
    max_steps: int = 10_000_000
    random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def lands_now(self) -> bool:
        return self.landing == "early" or (self.landing == "random" and self.random.random() < 0.25)


@dataclass
class Frame:
    """Lanes of a warp that go one way until they come to `meets`."""

    meets: int
    pc: int
    mask: Array


class Machine:
    """A cluster that runs `program`. `num_threads` in each of `num_blocks` blocks."""

    def __init__(
        self,
        program: Program,
        memory: Memory,
        maps: dict[int, TensorMap],
        params: bytes,
        *,
        num_threads: int,
        shared_bytes: int,
        num_blocks: int = 1,
        grid: tuple[int, int, int] = (1, 1, 1),
        block_shape: tuple[int, int, int] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.program, self.memory, self.maps, self.params = program, memory, maps, params
        self.schedule = schedule or Schedule()
        self.num_blocks = num_blocks
        self.warps_per_block = -(-num_threads // 32)
        self.num_threads = num_threads
        self.num_warps = num_blocks * self.warps_per_block
        self.block_of = np.arange(self.num_warps) // self.warps_per_block
        self.warp_rows = np.broadcast_to(np.arange(self.num_warps)[:, None], (self.num_warps, 32))
        self.shared = SharedMemory(self, num_blocks, program.shared_bytes + shared_bytes)
        self.order = Order(self.num_warps, len(self.shared.bytes), program.cell_bytes) if self.schedule.races else None
        self.grid, self.block_shape = grid, block_shape or (num_threads, 1, 1)
        self.files: dict[str, Array] = {}
        for cls, kinds in FILE_TYPES.items():
            count = program.kernel.num_registers.get(cls, 0)
            first = np.full(
                (count, self.num_warps, 32),
                1 if cls == "pred" else -1,
                TYPES[kinds[0]] if cls == "pred" else f"i{int(cls) // 8}",
            )
            for kind in kinds:
                self.files[kind] = first.view(TYPES[kind])
        self.products = Products(self)
        self.global_access = GlobalAccess(self)
        self.tensor_copies = TensorCopies(self)
        self.flying_copies: list[Any] = []
        self.mbarriers: dict[int, MBarrier] = {}
        self.num_mbarriers = 0
        self.named: dict[tuple[int, int], NamedBarrier] = {}
        self.cluster_arrived: set[int] = set()
        self.cluster_phase = 0
        self.cluster_given: Array | None = None
        self.cluster_done: Array | None = None
        self.cluster_seen = [0] * self.num_warps
        self.pc = [0] * self.num_warps
        self.favour = list(range(-(-self.num_warps // 4)))  # warp groups, the first one favoured
        self.executed: set[int] = set()  # segments
        self.blocked: list[str] = [""] * self.num_warps
        self.waits: list[Any] = [None] * self.num_warps
        self.let_go = [False] * self.num_warps
        self.mask = np.ones((self.num_warps, 32), bool)
        self.is_full = [True] * self.num_warps
        threads = np.arange(self.warps_per_block * 32).reshape(-1, 32)
        if num_threads % 32:
            self.mask &= np.tile(threads < num_threads, (num_blocks, 1))
            self.is_full = [bool(row.all()) for row in self.mask]
        self.frames = [[Frame(NEVER, 0, row.copy())] for row in self.mask]
        self.registers = [program.kernel.max_registers or 0] * self.num_warps  # of a thread
        self.free_registers = [0] * num_blocks
        self.num_parted = 0  # frames beyond the first, of all warps
        self.num_steps = 0
        self.num_instructions = 0

    def functions(self, first_block: tuple[int, int, int]) -> list[Any]:
        """The segments' functions, with this machine's methods and registers as what they name."""
        names = namespace() | dict(self.program.constants)
        names |= {f"F_{kind}": array for kind, array in self.files.items()}
        names |= self._specials(first_block)
        shared, world, products, tensors = self.shared, self.global_access, self.products, self.tensor_copies
        methods = {
            "load_shared": shared.load, "store_shared": shared.store, "load_shared_cluster": shared.load,
            "store_shared_cluster": shared.store, "load_matrix": shared.load_matrix,
            "store_matrix": shared.store_matrix,
            "copy": shared.copy, "copy_commit": shared.commit, "copy_wait": shared.wait,
            "copy_arrive": self.copy_arrive,
            "load_global": world.load, "store_global": world.store, "load_local": world.load_local,
            "store_local": world.store_local, "load_param": world.load_param, "load_generic": world.load_generic,
            "store_generic": world.store_generic, "atomic": world.atomic,
            "product": products.product, "product_fence": products.fence, "product_commit": products.commit,
            "product_wait": products.wait, "tensor_load": tensors.load, "tensor_store": tensors.store,
            "bulk_commit": tensors.commit, "bulk_wait": tensors.wait, "proxy_fence": self.proxy_fence,
            "mbarrier_init": self.mbarrier_init, "mbarrier_invalidate": self.mbarrier_invalidate,
            "mbarrier_expect": self.mbarrier_expect, "mbarrier_arrive": self.mbarrier_arrive,
            "named_arrive": self.named_arrive, "cluster_arrive": self.cluster_arrive, "map_address": self.map_address,
            "rank_of_address": self.rank_of_address, "shuffle": lane_ops.shuffle, "elect": lane_ops.elect,
            "active": lane_ops.active_mask, "vote": lane_ops.vote, "reduce": lane_ops.reduce, "match": lane_ops.match,
            "trap": self.trap,
        }  # fmt: skip
        names |= {f"M_{name}": method for name, method in methods.items()}
        made: dict[str, Any] = {}  # apart from what they name: they would hold one another
        exec(self.program.code, names, made)
        return [made[f"s{segment.index}"] for segment in self.program.segments]

    def _specials(self, first_block: tuple[int, int, int]) -> dict[str, Array]:
        """%tid and the like, as (warps, 32) or (warps, 1)."""
        w, (bx, by, bz) = self.num_warps, self.block_shape
        thread = np.tile(np.arange(self.warps_per_block * 32).reshape(-1, 32), (self.num_blocks, 1))
        rank = self.block_of[:, None]
        column = np.zeros((w, 1), np.int64)
        values: dict[str, Any] = {
            "tid_x": thread % bx, "tid_y": thread // bx % by, "tid_z": thread // (bx * by), "ntid_x": column + bx,
            "ntid_y": column + by, "ntid_z": column + bz, "ctaid_x": first_block[0] + rank,
            "ctaid_y": column + first_block[1],
            "ctaid_z": column + first_block[2], "nctaid_x": column + self.grid[0], "nctaid_y": column + self.grid[1],
            "nctaid_z": column + self.grid[2], "laneid": np.broadcast_to(np.arange(32), (w, 32)),
            "warpid": column + np.arange(w)[:, None] % self.warps_per_block, "cluster_ctarank": rank,
            "cluster_nctarank": column + self.num_blocks, "cluster_ctaid_x": rank,
            "cluster_nctaid_x": column + self.num_blocks,
            "clusterid_x": column + first_block[0] // self.num_blocks,
            "nclusterid_x": column + self.grid[0] // self.num_blocks,
            "smid": column, "nsmid": column + 132, "lanemask_lt": np.broadcast_to((1 << np.arange(32)) - 1, (w, 32)),
            "lanemask_eq": np.broadcast_to(1 << np.arange(32), (w, 32)), "clock": column, "clock64": column,
            "globaltimer": column,
        }  # fmt: skip
        return {f"S_{name}": np.ascontiguousarray(value).astype(np.uint32) for name, value in values.items()}

    # The loop

    def run(self, first_block: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Until every warp has ended. Raises what went wrong, with the warp and instruction. Once."""
        try:
            self._run(first_block)
        finally:
            # The parts point back here. Python counts objects before it collects such rings, not the 15 MB of each.
            for part in (self.shared, self.products, self.global_access, self.tensor_copies):
                del part.machine

    def _run(self, first_block: tuple[int, int, int]) -> None:
        functions = self.functions(first_block)
        segments, schedule = self.program.segments, self.schedule
        together, unfair = schedule.order == "together", schedule.order == "unfair"
        if unfair:
            schedule.random.shuffle(self.favour)
        with np.errstate(all="ignore"):
            while True:
                group = self.rearmost() if together else self.most_favoured() if unfair else self.any_group()
                if group is None:
                    if all(pc == EXIT for pc in self.pc):
                        break
                    if not self.land_one():
                        raise Deadlock(self.describe())
                    continue
                a, z = group
                turns = 1 if together else schedule.random.choice((1, 1, 4, 16))
                for _ in range(turns):
                    self.step(a, z, functions, segments)
                    if not self.is_one_group(a, z):
                        break
                if schedule.landing == "random" and schedule.random.random() < 0.3:
                    self.land_one()
        self.finish()

    def finish(self) -> None:
        for party in (*self.shared.copy_groups, *self.shared.copies):
            if any(not copy.landed for copy in _flat(party)):
                raise BarrierError("the kernel ends with cp.async under way")
        self.tensor_copies.finish()

    def is_ready(self, warp: int) -> bool:
        pc = self.pc[warp]
        if pc == EXIT or self.blocked[warp]:
            return False
        if self.program.segments[pc].kind == "group":
            first = warp // 4 * 4
            return all(self.pc[w] == pc and not self.blocked[w] for w in range(first, first + 4))
        return True

    def rearmost(self) -> tuple[int, int] | None:
        ready = [w for w in range(self.num_warps) if self.is_ready(w)]
        if not ready:
            return None
        a = min(ready, key=lambda w: (self.pc[w], w))
        z = a + 1
        while (
            z < self.num_warps
            and self.pc[z] == self.pc[a]
            and self.is_ready(z)
            and self.block_of[z] == self.block_of[a]
        ):
            z += 1
        return a, z

    def most_favoured(self) -> tuple[int, int] | None:
        for group in self.favour:
            ready = [w for w in range(4 * group, min(4 * group + 4, self.num_warps)) if self.is_ready(w)]
            if ready:
                a = min(ready, key=lambda w: (self.pc[w], w))
                z = a + 1
                while z in ready and self.pc[z] == self.pc[a] and self.block_of[z] == self.block_of[a]:
                    z += 1
                return a, z
        return None

    def any_group(self) -> tuple[int, int] | None:
        ready = [w for w in range(self.num_warps) if self.is_ready(w)]
        if not ready:
            return None
        choose = self.schedule.random
        a = choose.choice(ready)
        if self.program.segments[self.pc[a]].kind == "group":
            return a // 4 * 4, a // 4 * 4 + 4
        z = a + 1
        if choose.random() < 0.5:
            standing = set(ready)
            while a - 1 in standing and self.pc[a - 1] == self.pc[a] and self.block_of[a - 1] == self.block_of[a]:
                a -= 1
            while z in standing and self.pc[z] == self.pc[a] and self.block_of[z] == self.block_of[a]:
                z += 1
        return a, z

    def is_one_group(self, a: int, z: int) -> bool:
        pc = self.pc[a]
        if pc == EXIT or any(self.pc[w] != pc or self.blocked[w] for w in range(a, z)):
            return False
        return self.program.segments[pc].kind != "group" or (a % 4 == 0 and z % 4 == 0)

    def step(self, a: int, z: int, functions: list[Any], segments: list[Segment]) -> None:
        segment = segments[self.pc[a]]
        self.num_steps += 1
        self.executed.add(segment.index)
        self.num_instructions += segment.last - segment.first
        if self.num_steps > self.schedule.max_steps:
            raise Deadlock(f"{self.num_steps} steps and no end; " + self.describe())
        try:
            if self.program.has_products:
                self.products.guard(a, z, segment.touched)
            m = None if all(self.is_full[a:z]) else self.mask[a:z]
            result = functions[segment.index](m, a, z)
            if segment.kind == "wait":
                self.wait(a, z, segment, result)
            elif segment.kind == "branch":
                self.branch(a, z, segment, result)
            else:
                self.go_all(a, z, self.after(a))
        except (AccessError, BarrierError, RuntimeError) as error:
            if not getattr(error, "placed", False):
                error.args = (f"{error} [warps {a} to {z - 1}, {self.text(segment)}, block {self.first_block(a)}]",)
                error.placed = True  # type: ignore[attr-defined]
            raise

    def first_block(self, warp: int) -> int:
        return int(self.block_of[warp])

    def text(self, segment: Segment) -> str:
        code = self.program.kernel.code
        return f"instructions {segment.first} to {segment.last - 1}, up to {code[segment.last - 1].text[:60]!r}"

    def go(self, warp: int, target: int) -> None:
        """To a segment; at the meeting point of lanes that parted, on with the other lanes or with all."""
        frames = self.frames[warp]
        while target == frames[-1].meets:
            frames.pop()
            self.num_parted -= 1
            target = frames[-1].pc
            self.mask[warp] = frames[-1].mask
            self.is_full[warp] = bool(frames[-1].mask.all())
        self.pc[warp] = target

    def go_all(self, a: int, z: int, target: int) -> None:
        if self.num_parted == 0:
            self.pc[a:z] = [target] * (z - a)
        else:
            for warp in range(a, z):
                self.go(warp, target)

    def branch(self, a: int, z: int, segment: Segment, result: Any) -> None:
        following = segment.next if segment.next < len(self.program.segments) else EXIT
        if segment.table:
            for warp in range(a, z):
                index = whole_number(result if np.ndim(result) == 0 else np.broadcast_to(result, (z - a, 32))[warp - a])
                self.go(warp, segment.table[index])
            return
        if result is None:
            self.go_all(a, z, segment.target)
            return
        taken = lane_ops.full(result, z - a)
        if self.num_parted == 0 and all(self.is_full[a:z]):
            number = int(np.count_nonzero(taken))
            if number == 0 or number == taken.size:
                self.pc[a:z] = [segment.target if number else following] * (z - a)
                return
        for warp in range(a, z):
            takes = taken[warp - a]
            active = self.mask[warp]
            if not self.is_full[warp]:
                takes = takes & active
                stays = active & ~takes
            elif takes.all():
                self.go(warp, segment.target)
                continue
            else:
                stays = ~takes
            if not stays.any():
                self.go(warp, segment.target)
            elif not takes.any():
                self.go(warp, following)
            else:
                self.part(warp, segment, takes.copy(), stays.copy(), following)

    def part(self, warp: int, segment: Segment, takes: Array, stays: Array, following: int) -> None:
        """Lanes go two ways, the taken one first. Those whose way is the meeting point wait there."""
        frames, meets = self.frames[warp], segment.meets
        frames[-1].pc = meets
        if frames[-1].meets == meets:
            frames.pop()
            self.num_parted -= 1
        for pc, mask in ((following, stays), (segment.target, takes)):
            if pc != meets:
                frames.append(Frame(meets, pc, mask))
                self.num_parted += 1
        self.mask[warp] = frames[-1].mask
        self.is_full[warp] = False
        self.pc[warp] = frames[-1].pc

    # Waits

    def wait(self, a: int, z: int, segment: Segment, result: Any) -> None:
        guard, kind, *operands = result
        for warp in range(a, z):
            row = warp - a
            if guard is not None and not (np.broadcast_to(guard, (z - a, 32))[row] & self.mask[warp]).any():
                self.go(warp, self.after(warp))
            elif kind == "named":
                number, count = operands
                self.named_wait(warp, _row(number, row), None if count is None else _row(count, row))
            elif kind == "cluster":
                self.cluster_wait(warp)
            elif kind == "registers":
                self.set_registers(warp, operands[0])
            else:
                lanes = self.mask[warp]
                address = whole_number(np.broadcast_to(operands[0], (z - a, 32))[row][lanes])
                parity = whole_number(np.broadcast_to(operands[1], (z - a, 32))[row][lanes])
                self.phase_wait(warp, kind, address, parity, operands[2])

    def after(self, warp: int) -> int:
        following = self.pc[warp] + 1
        return following if following < len(self.program.segments) else EXIT

    def named_wait(self, warp: int, number: int, count: int | None) -> None:
        barrier = self._named(warp, number, count)
        barrier.join(self.order.release(warp) if self.order else None)
        barrier.waiting.append(warp)
        self.blocked[warp] = f"barrier {number} of {barrier.count} threads"
        self._fill(warp, number, barrier)

    def _named(self, warp: int, number: int, count: int | None) -> NamedBarrier:
        count = 32 * self.warps_per_block if count is None else count
        key = (int(self.block_of[warp]), number)
        barrier = self.named.setdefault(key, NamedBarrier(count))
        if barrier.count != count:
            raise BarrierError(f"barrier {number}: {count} threads here, {barrier.count} where others wait")
        if count % 32 or not 0 < count <= 32 * self.warps_per_block or not 0 <= number < 16:
            raise BarrierError(f"barrier {number} of {count} threads; numbers 0 to 15, whole warps of the block")
        return barrier

    def _fill(self, warp: int, number: int, barrier: NamedBarrier) -> None:
        if not barrier.is_full():
            return
        del self.named[int(self.block_of[warp]), number]
        for other in barrier.waiting:
            if self.order is not None and barrier.given is not None:
                self.order.acquire(other, barrier.given)
            self.blocked[other] = ""
            self.go(other, self.after(other))

    def named_arrive(self, a: int, z: int, m: Any, guard: Any, number: Any, count: Any) -> None:
        for warp in range(a, z):
            n = whole_number(_row(number, warp - a))
            barrier = self._named(warp, n, whole_number(_row(count, warp - a)))
            barrier.join(self.order.release(warp) if self.order else None)
            self._fill(warp, n, barrier)

    def set_registers(self, warp: int, count: int) -> None:
        """setmaxnreg: what a warp gives back is free for others of its block; who asks for more waits until it is."""
        if count % 8 or not 24 <= count <= 256:
            raise BarrierError(f"setmaxnreg of {count}; multiples of 8 from 24 to 256")
        block = int(self.block_of[warp])
        if self.program.kernel.max_registers is not None:
            missing = 32 * (count - self.registers[warp])
            if missing > self.free_registers[block]:
                self.blocked[warp] = f"{missing} registers, of which {self.free_registers[block]} are free"
                return
            self.free_registers[block] -= missing
            self.registers[warp] = count
            for other in range(self.num_warps):
                if missing < 0 and self.blocked[other].endswith("are free"):
                    self.blocked[other] = ""
        self.go(warp, self.after(warp))

    def phase_wait(self, warp: int, kind: str, address: int, parity: int, target: int) -> None:
        barrier = self.use_mbarrier(warp, address, "a wait")
        complete = barrier.is_complete(parity)
        if not complete and kind == "try":
            gives_up = self.schedule.order != "together" and self.schedule.random.random() < 0.1
            if not gives_up:
                self.blocked[warp] = f"mbarrier {barrier.index}, phase {barrier.phase} of parity {parity}"
                self.waits[warp] = barrier
                return
        if complete and self.order is not None:
            if barrier.done is not None:
                self.order.acquire(warp, barrier.done)
            self.order.learn(warp, self.order.loads + barrier.index, barrier.done_landed)
        predicate = self.files["pred"][target, warp]
        predicate[self.mask[warp]] = complete
        self.go(warp, self.after(warp))

    def settle(self, barrier: MBarrier) -> None:
        if barrier.settle():
            for warp in range(self.num_warps):
                if self.waits[warp] is barrier:
                    self.waits[warp] = None
                    self.blocked[warp] = ""

    # mbarriers

    def place_in(self, address: int, block: int) -> int:
        """The byte of `shared.bytes` that an address of a block, or a shared::cluster one, names."""
        rank = address >> RANK_SHIFT
        if rank > self.num_blocks:
            raise AccessError(f"block {rank - 1} of a cluster of {self.num_blocks}")
        return (rank - 1 if rank else block) * self.shared.size + (address & ((1 << RANK_SHIFT) - 1))

    def address_in(self, place: int) -> int:
        """The shared::cluster address of a byte of `shared.bytes`."""
        return (place // self.shared.size + 1) << RANK_SHIFT | place % self.shared.size

    def mbarrier_at(self, place: int, what: str) -> MBarrier:
        if place not in self.mbarriers:
            raise BarrierError(f"{what}: no mbarrier at byte {place % self.shared.size} of shared memory")
        return self.mbarriers[place]

    def use_mbarrier(self, warp: int, address: int, what: str, *, proxy: bool = False) -> MBarrier:
        """The mbarrier at an address, which the warp must have seen made."""
        place = self.place_in(address, int(self.block_of[warp]))
        barrier = self.mbarrier_at(place, what)
        if self.order is not None:
            cells = self.shared.cells(np.array([place]), 8).reshape(-1)
            self.order.uses_barrier(warp, cells, what, proxy=proxy)
        return barrier

    def overwrite(self, at: Array, width: int) -> None:
        """Data is written where mbarriers were: they are no more. Compilers reuse the bytes of barriers left alone."""
        low, high = int(at.min()), int(at.max()) + width
        for place in [place for place in self.mbarriers if place < high and place + 8 > low]:
            if not ((at < place + 8) & (at + width > place)).any():
                continue
            barrier = self.mbarriers.pop(place)
            in_use = any(wait is barrier for wait in self.waits) or self.tensor_copies.uses(barrier)
            if in_use:
                raise AccessError(f"writes over the mbarrier at byte {place % self.shared.size}, which is in use")

    def _lanes(self, a: int, z: int, m: Any, guard: Any, *values: Any) -> list[tuple[int, list[int], int]]:
        """(warp, operands, how many lanes give them)"""
        lanes = lane_ops.active(m, guard, z - a)
        spread = [np.broadcast_to(np.asarray(value, np.int64), (z - a, 32)) for value in values]
        found = []
        for row in range(z - a):
            mine = np.ones(32, bool) if lanes is None else lanes[row]
            counts: dict[tuple[int, ...], int] = {}
            for key in zip(*(value[row][mine].tolist() for value in spread), strict=True):
                counts[key] = counts.get(key, 0) + 1
            found += [(a + row, list(key), count) for key, count in counts.items()]
        return found

    def mbarrier_init(self, a: int, z: int, m: Any, guard: Any, address: Any, count: Any) -> None:
        for warp, (place, expected), _ in self._lanes(a, z, m, guard, address, count):
            at = self.place_in(place, int(self.block_of[warp]))
            if at % 8 or not 0 < expected < 2**20 or at % self.shared.size + 8 > self.shared.limit:
                raise BarrierError(f"mbarrier at byte {at % self.shared.size} for {expected} arrivals: not possible")
            if at in self.mbarriers:
                raise BarrierError(f"mbarrier at byte {at % self.shared.size} made twice; mbarrier.inval comes between")
            if self.num_mbarriers == MAX_BARRIERS:
                raise BarrierError(f"more than {MAX_BARRIERS} mbarriers")
            self.mbarriers[at] = MBarrier(self.num_mbarriers, expected, expected)
            self.num_mbarriers += 1
            if self.order is not None:
                cells = self.shared.cells(np.array([at]), 8).reshape(-1)
                self.order.write(np.full(len(cells), warp), cells, "mbarrier.init")

    def mbarrier_invalidate(self, a: int, z: int, m: Any, guard: Any, address: Any) -> None:
        for warp, (place,), _ in self._lanes(a, z, m, guard, address):
            at = self.place_in(place, int(self.block_of[warp]))
            barrier = self.mbarrier_at(at, "mbarrier.inval")
            if any(wait is barrier for wait in self.waits):
                raise BarrierError(f"mbarrier at byte {at % self.shared.size} invalidated while a warp waits for it")
            del self.mbarriers[at]

    def mbarrier_expect(self, a: int, z: int, m: Any, guard: Any, address: Any, num_bytes: Any) -> None:
        for warp, (place, count), times in self._lanes(a, z, m, guard, address, num_bytes):
            self.use_mbarrier(warp, place, "mbarrier.expect_tx").bytes_due += count * times

    def mbarrier_arrive(self, a: int, z: int, m: Any, guard: Any, address: Any, number: Any, expects: bool) -> None:
        number = 1 if number is None else number
        for warp, (place, value), times in self._lanes(a, z, m, guard, address, number):
            barrier = self.use_mbarrier(warp, place, "mbarrier.arrive")
            given = self.order.release(warp) if self.order else None
            if expects:
                barrier.bytes_due += value * times
                barrier.arrive(times, given)
            else:
                barrier.arrive(value * times, given)
            self.settle(barrier)

    def copy_arrive(self, a: int, z: int, m: Any, guard: Any, address: Any, no_increase: bool) -> None:
        raise NotImplementedError("cp.async.mbarrier.arrive")

    def proxy_fence(self, a: int, z: int, m: Any, guard: Any) -> None:
        if self.order is not None:
            self.order.fence(a, z)

    # Clusters

    def cluster_arrive(self, a: int, z: int, m: Any, guard: Any) -> None:
        for warp in range(a, z):
            if warp in self.cluster_arrived:
                raise BarrierError("barrier.cluster.arrive twice without barrier.cluster.wait")
            self.cluster_arrived.add(warp)
            if self.order is not None:
                given = self.order.release(warp)
                self.cluster_given = given if self.cluster_given is None else np.maximum(self.cluster_given, given)
        if len(self.cluster_arrived) == self.num_warps:
            self.cluster_arrived.clear()
            self.cluster_phase += 1
            self.cluster_done = self.cluster_given
            for warp in range(self.num_warps):
                if self.blocked[warp] == "barrier.cluster":
                    self.blocked[warp] = ""

    def cluster_wait(self, warp: int) -> None:
        if self.cluster_phase == self.cluster_seen[warp]:
            self.blocked[warp] = "barrier.cluster"
            return
        self.cluster_seen[warp] += 1
        if self.order is not None and self.cluster_done is not None:
            self.order.acquire(warp, self.cluster_done)
        self.go(warp, self.after(warp))

    def map_address(self, address: Any, rank: Any) -> Any:
        inner = address & ((1 << RANK_SHIFT) - 1)
        return inner | ((np.asarray(rank).astype(np.asarray(address).dtype) + 1) << RANK_SHIFT)

    def rank_of_address(self, a: int, z: int, address: Any) -> Any:
        rank = np.asarray(address).astype(np.int64) >> RANK_SHIFT
        return np.where(rank > 0, rank - 1, self.block_of[a:z, None]).astype(np.uint32)

    def trap(self, a: int, z: int, m: Any, guard: Any, text: str) -> None:
        lanes = lane_ops.active(m, guard, z - a)
        if lanes is None or lanes.any():
            raise Trap(f"the kernel stops itself: {text}")

    # What is under way

    def land_one(self) -> bool:
        """Something that is under way takes place; False if there is nothing."""
        choose = self.schedule.random
        kinds = [0, 1, 2] if self.schedule.landing == "random" else [0]
        choose.shuffle(kinds)
        for kind in kinds:
            if kind == 0 and self.tensor_copies.land_some():
                return True
            if kind == 1:
                self.flying_copies = [copy for copy in self.flying_copies if not copy.landed]
                if self.flying_copies:
                    self.shared.land(choose.choice(self.flying_copies))
                    return True
            if kind == 2:
                group = choose.randrange(len(self.products.committed))
                if any(not p.landed for products in self.products.committed[group] for p in products):
                    self.products.land_some(group)
                    return True
        return False

    def describe(self) -> str:
        """Where each warp stands, for a deadlock."""
        code, lines = self.program.kernel.code, []
        for warp in range(self.num_warps):
            if self.pc[warp] != EXIT:
                instr = code[self.program.segments[self.pc[warp]].first]
                lines.append(f"warp {warp}: {self.blocked[warp] or 'waits for its warp group'} at {instr.text[:50]!r}")
        return "nothing can go on. " + "; ".join(lines)


def _row(value: Any, row: int) -> int:
    array = np.asarray(value)
    if array.ndim == 0 or array.shape[0] == 1:
        return whole_number(array)
    return whole_number(array[row])


def _flat(items: Any) -> list[Any]:
    return [x for item in items for x in _flat(item)] if isinstance(items, list) else [items]
