"""Share: which part of the data a process takes, and how processes agree on what all of them must know.

Loader(config, processor, share=ranks)       # train/ranks.py's Ranks is one: rows by data rank, tiles by context rank
Loader(config, processor)                    # ALONE: everything
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class Share(Protocol):
    """Process `data_rank * num_context + context_rank` of num_data * num_context, which all make the same calls."""

    @property
    def data_rank(self) -> int: ...

    @property
    def num_data(self) -> int: ...

    @property
    def context_rank(self) -> int: ...

    @property
    def num_context(self) -> int: ...

    def gather(self, value: Any, /) -> list[Any]:
        """What each process hands in, in their order, on every one of them; it is what JSON can say."""


@dataclass(frozen=True, slots=True)
class Alone:
    """The share of a process that has no other beside it."""

    data_rank: int = 0
    num_data: int = 1
    context_rank: int = 0
    num_context: int = 1

    def gather(self, value: Any, /) -> list[Any]:
        return [value]


ALONE = Alone()
