"""Which tokens of which sequences are computed next. Numbers and blocks alone: no tensor, no model.

    scheduler = Scheduler(Blocks(1000), max_running=16, prefill_tokens=2048)
    scheduler.waiting.append(sequence)
    works = scheduler.next()                           # (sequence, first, end): tokens whose keys are computed now
    ...                                                # the forward
    scheduler.done(works)                              # their blocks can be found; whoever is at its end gets a token
    scheduler.finish(sequence)

Every running sequence that is past its prompt has one token in each step; prompts share what `prefill_tokens` leaves,
first come first served, in chunks. Where a new token finds no free block, the sequence that came last gives its blocks
up and waits, first in line; its keys are mostly found again when it resumes. A sequence that could use keys which
another one is just computing waits for them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import NamedTuple

from eagle_model.infer.cache import Blocks, block_digests

BLOCK_TOKENS = 16  # of a block: as much of a prompt is computed again at most where it parts from another


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt and its answer so far."""

    token_ids: list[int]
    num_prompt: int
    root: bytes = b""  # what else keys depend on, as an adapter
    tile_digests: Items[bytes] = ()
    visual_positions: Items[int] = ()  # of visual tokens, ascending, in the order of tiles
    tokens_per_tile: int = 1
    num_computed: int = 0  # tokens whose keys are in the cache
    num_cached: int = 0  # of the prompt: found when it first ran
    has_run: bool = False
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)  # of its whole blocks, as far as asked for
    num_named: int = 0  # of its blocks, from the first: those that can be found

    @property
    def is_decoding(self) -> bool:
        return self.num_computed == len(self.token_ids) - 1 and len(self.token_ids) > self.num_prompt

    def visual_range(self, first: int, end: int) -> tuple[int, int]:
        """Which visual tokens, counted from the sequence's first, are among its tokens first to end."""
        return bisect_left(self.visual_positions, first), bisect_left(self.visual_positions, end)

    def whole_digests(self) -> list[bytes]:
        """Of all blocks that are full; of one that holds visual tokens, their tiles' digests are part."""
        starts = range(len(self.digests) * BLOCK_TOKENS, len(self.token_ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS)
        before = self.digests[-1] if self.digests else self.root
        self.digests += block_digests(before, map(self._content, starts))
        return self.digests

    def _content(self, start: int) -> bytes:
        ids = array("q", self.token_ids[start : start + BLOCK_TOKENS]).tobytes()
        first, end = self.visual_range(start, start + BLOCK_TOKENS)
        if first == end:
            return ids
        tiles = range(first // self.tokens_per_tile, (end - 1) // self.tokens_per_tile + 1)
        return ids + b"".join(self.tile_digests[tile] for tile in tiles)


class Work(NamedTuple):
    sequence: Sequence
    first: int
    end: int

    @property
    def is_last(self) -> bool:
        """Whether the next token follows from it."""
        return self.end == len(self.sequence.token_ids)


class Scheduler:
    def __init__(
        self,
        blocks: Blocks,
        *,
        max_running: int,
        prefill_tokens: int,
        ready: Callable[[Sequence, int, int], int] = lambda sequence, first, end: end,
    ) -> None:
        """ready: of a sequence's tokens first to end, up to which they can be computed: pixels may be on their way."""
        self.blocks = blocks
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in the order in which they came
        self.num_preempted = 0
        self.num_found = 0  # tokens whose keys were there already
        self._max_running, self._prefill_tokens, self._ready = max_running, prefill_tokens, ready

    def next(self) -> list[Work]:
        """Those that decode first, then chunks of prompts. Empty where there is nothing to do, or nothing ready."""
        works = []
        for sequence in list(self.running):
            if sequence.is_decoding and sequence in self.running and self._make_room(sequence):
                works.append(Work(sequence, sequence.num_computed, len(sequence.token_ids)))
        works = [work for work in works if work.sequence in self.running]  # a later one may have pushed it out
        left = self._prefill_tokens
        for sequence in self.running:
            if not sequence.is_decoding and left > 0:
                left -= self._add_chunk(works, sequence, left)
        while self.waiting and len(self.running) < self._max_running and left > 0 and self._admit(self.waiting[0]):
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            left -= self._add_chunk(works, sequence, left)
        return works

    def done(self, works: Items[Work]) -> None:
        """Their keys are computed."""
        for sequence, _, end in works:
            sequence.num_computed = end
            num_full = end // BLOCK_TOKENS
            if num_full > sequence.num_named:
                digests = sequence.whole_digests()
                for i in range(sequence.num_named, num_full):
                    self.blocks.name(sequence.blocks[i], digests[i])
                sequence.num_named = num_full

    def finish(self, sequence: Sequence) -> None:
        """It is over: its blocks are free, and can be found until their room is needed."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._give_up(sequence)

    def _add_chunk(self, works: list[Work], sequence: Sequence, left: int) -> int:
        first = sequence.num_computed
        end = self._ready(sequence, first, min(len(sequence.token_ids), first + left))
        if end > first:
            works.append(Work(sequence, first, end))
        return max(end - first, 0)

    def _admit(self, sequence: Sequence) -> bool:
        """Blocks for all of its tokens, those with the same keys found; or nothing changes."""
        findable = sequence.whole_digests()[: (len(sequence.token_ids) - 1) // BLOCK_TOKENS]  # one is left to compute
        found = self.blocks.find(findable)
        need = -(-len(sequence.token_ids) // BLOCK_TOKENS) - len(found)
        taken = None if self._is_coming(findable, len(found)) else self.blocks.take(need)
        if taken is None:
            self.blocks.release(found)
            return False
        sequence.blocks = found + taken
        sequence.num_named = len(found)
        sequence.num_computed = len(found) * BLOCK_TOKENS
        self.num_found += sequence.num_computed
        if not sequence.has_run:
            sequence.has_run, sequence.num_cached = True, sequence.num_computed
        return True

    def _is_coming(self, digests: Items[bytes], num_found: int) -> bool:
        """Whether a running sequence is about to compute the first block that was not found."""
        if num_found == len(digests):
            return False
        return any(
            other.num_named <= num_found < len(other.digests) and other.digests[num_found] == digests[num_found]
            for other in self.running
            if not other.is_decoding
        )

    def _make_room(self, sequence: Sequence) -> bool:
        """A block for its new token, of others that came later if need be. False: it was pushed out itself."""
        while len(sequence.blocks) * BLOCK_TOKENS < len(sequence.token_ids):
            taken = self.blocks.take(1)
            if taken is not None:
                sequence.blocks += taken
                continue
            last = self.running.pop()
            self._give_up(last)
            self.waiting.appendleft(last)
            self.num_preempted += 1
            if last is sequence:
                return False
        return True

    def _give_up(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks, sequence.num_computed, sequence.num_named = [], 0, 0
