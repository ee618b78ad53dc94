"""What is shown in a bad sample's place: one of the same data set, no longer than it, the same whoever asks and when.

substitutes = Substitutes(source_of_N, tokens_N, tiles_N)
substitutes.of(7, attempt=0)      # the next shorter sample of 7's source with no more tiles; None where there is none
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

MAX_ATTEMPTS = 3  # substitutes that are tried for one sample: where these are bad too, it is left out
_NEIGHBOURS = 1024  # shorter samples that are looked at for one with few enough tiles


class Substitutes:
    """source_of_N, tokens_N, tiles_N: of each sample, as an Index has them."""

    def __init__(
        self, source_of_N: NDArray[np.integer], tokens_N: NDArray[np.integer], tiles_N: NDArray[np.integer]
    ) -> None:
        self._source_of, self._tokens, self._tiles = source_of_N, tokens_N, tiles_N

    @cached_property
    def _order(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All samples by source, then tokens, then place in the recipe; and where in that order each of them is.

        One value, as threads ask side by side: none sees the one without the other.
        """
        by_length = np.lexsort((self._tokens, self._source_of))
        place = np.empty_like(by_length)
        place[by_length] = np.arange(len(by_length))
        return by_length, place

    def of(self, sample: int, attempt: int) -> int | None:
        """The attempt-th (from 0) substitute for a sample: it fits wherever the sample does, in tokens and in tiles."""
        if attempt >= MAX_ATTEMPTS:
            return None
        by_length, place = self._order
        end = int(place[sample])
        before = by_length[max(0, end - _NEIGHBOURS) : end][::-1]
        fits = (self._source_of[before] == self._source_of[sample]) & (self._tiles[before] <= self._tiles[sample])
        found = before[fits]
        return int(found[attempt]) if attempt < len(found) else None
