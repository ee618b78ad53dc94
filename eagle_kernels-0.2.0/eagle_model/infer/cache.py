"""Blocks of the cache of keys and values: which are free, who holds which, and which prefixes they still hold.

    blocks = Blocks(num_blocks=1000)
    digests = block_digests(b"", parts)               # of a prompt's whole blocks, each with all that is before it
    held = blocks.find(digests)                       # those that are there already: their keys are not computed again
    held += blocks.take(3)                            # room for the rest, or None
    blocks.name(held[0], digests[0])                  # once its keys are computed: from now on it can be found
    blocks.release(held)                              # it still can, until its room is needed

A block holds the keys of as many neighbours of a sequence, of all layers. Several sequences may hold the same
one. Blocks that nobody holds are used again, least recently used first: those without a name before all others, and of
one sequence the last block first, since a prefix is found from its beginning.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence


def block_digests(before: bytes, parts: Iterable[bytes]) -> list[bytes]:
    """A digest for each block of a sequence, of what it and all blocks before it hold.

    before: the digest of the block before the first, or what else the keys depend on, as an adapter.
    """
    found = []
    for part in parts:
        before = hashlib.blake2b(before + part, digest_size=16).digest()
        found.append(before)
    return found


class Blocks:
    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._holders = [0] * num_blocks
        self._digest: list[bytes | None] = [None] * num_blocks
        self._found: dict[bytes, int] = {}  # digest -> block
        self._free = OrderedDict.fromkeys(range(num_blocks))  # that nobody holds, next to be used first

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, those included that still can be found."""
        return len(self._free)

    @property
    def num_named(self) -> int:
        return len(self._found)

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """The blocks of the longest run of digests, from the first, that are there. They are held from now on."""
        held = []
        for digest in digests:
            block = self._found.get(digest)
            if block is None:
                break
            self._free.pop(block, None)
            self._holders[block] += 1
            held.append(block)
        return held

    def take(self, num: int) -> list[int] | None:
        """So many blocks for new keys, held from now on; None, and nothing changes, where there are fewer."""
        if num > len(self._free):
            return None
        taken = [self._free.popitem(last=False)[0] for _ in range(num)]
        for block in taken:
            if (digest := self._digest[block]) is not None:
                del self._found[digest]
                self._digest[block] = None
            self._holders[block] = 1
        return taken

    def name(self, block: int, digest: bytes) -> None:
        """A held block's keys are computed and can be found. Of two blocks with the same keys, the first is."""
        if digest not in self._found and self._digest[block] is None:
            self._found[digest] = block
            self._digest[block] = digest

    def release(self, blocks: Sequence[int]) -> None:
        """Gives up a sequence's hold of its blocks, in its order."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free[block] = None
                if self._digest[block] is None:
                    self._free.move_to_end(block, last=False)
