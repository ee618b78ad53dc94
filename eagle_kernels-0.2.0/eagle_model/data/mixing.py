"""Which samples an epoch shows, how often, and in which order: repeats, mixing weights and temperature.

    mix = Mix(source_of_N, repeats=[Fraction(1), Fraction(2)], weights=[1.0, 3.0], temperature=1.0, seed=0)
    mix.order(epoch=0)            # indices of samples, shuffled over all sources; as many in every epoch

Source s has m_s = floor(n_s * repeat_s) entries. An epoch shows M = sum of m_s samples, of which each source gets a
share in proportion to weight_s * m_s ** (1 / temperature): weights and temperature change who is shown, not how long an
epoch is. With equal weights and temperature 1 each entry is shown exactly once. A source that gets fewer than its
entries goes on in the next epoch where it stopped, through one shuffle of its entries after the other, so all come
equally often.

Source  Temperature as in multilingual training (Arivazhagan et al. 2019, arXiv:1907.05019): 1 keeps sizes, larger
        values bring sources closer to equal shares.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
_LOG_LIMIT = (
    300.0  # limit: weights and powers beyond e^300 come near what a float holds, e^709, and are compared as logs
)


def seeded(*numbers: int | str) -> np.random.RandomState:
    """A generator of its own for these values. RandomState: numpy keeps its numbers in all versions."""
    digest = hashlib.sha256(json.dumps(numbers).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, dtype=np.uint32))


class Mix:
    """Of the samples of a recipe. Not changed by use; equal arguments give equal orders, for ever.

    source_of_N: int (N), the source of each sample, 0 to S - 1.
    repeats, weights: of each of the S sources, above 0.  temperature: above 0.
    """

    def __init__(
        self,
        source_of_N: NDArray[np.integer],
        *,
        repeats: Sequence[Fraction],
        weights: Sequence[float],
        temperature: float = 1.0,
        seed: int = 0,
    ) -> None:
        self._seed = seed
        by_source = np.argsort(source_of_N, kind="stable")
        ends = np.cumsum(np.bincount(source_of_N, minlength=len(repeats)))
        self._entries: list[Indices] = []  # of each source, repeats as often as they are
        for end, size, repeat in zip(ends, np.diff(ends, prepend=0), repeats, strict=True):
            samples = by_source[end - size : end]
            self._entries.append(np.repeat(samples, _times(size, repeat)))
        self.shares = _shares([len(entries) for entries in self._entries], weights, temperature)

    @property
    def num_shown(self) -> int:
        """Samples that one epoch shows."""
        return sum(self.shares)

    def order(self, epoch: int) -> Indices:
        """The samples of an epoch (from 0) in the order in which they are packed."""
        shown = [self._shown(s, epoch) for s in range(len(self._entries))]
        together = np.concatenate(shown) if shown else np.empty(0, dtype=np.int64)
        return together[seeded(self._seed, epoch).permutation(len(together))]

    def _shown(self, s: int, epoch: int) -> Indices:
        """Entries epoch * share to (epoch + 1) * share of the source's endless row of shuffles."""
        entries, share = self._entries[s], self.shares[s]
        parts, at, end = [entries[:0]], epoch * share, (epoch + 1) * share
        while at < end:
            number, first = divmod(at, len(entries))
            last = min(len(entries), first + end - at)
            if last - first == len(entries):
                parts.append(entries)
            else:
                parts.append(entries[seeded(self._seed, "source", s, number).permutation(len(entries))[first:last]])
            at += last - first
        return np.concatenate(parts)


def _times(size: int, repeat: Fraction) -> NDArray[np.int64]:
    """How often each of a source's samples is an entry: floor((i + 1) * r) - floor(i * r)."""
    steps = np.arange(int(size) + 1, dtype=object)  # exact: digits of a decimal make long numerators
    if repeat.numerator < 1 << 31:
        steps = steps.astype(np.int64)
    return np.diff(steps * repeat.numerator // repeat.denominator).astype(np.int64)


def _shares(sizes: Sequence[int], weights: Sequence[float], temperature: float) -> list[int]:
    """Of an epoch, by the largest remainder; the sizes themselves where nothing is to be weighted."""
    used = [weight for size, weight in zip(sizes, weights, strict=True) if size]
    if not used or (temperature == 1 and len(set(used)) == 1):
        return list(sizes)
    total = sum(sizes)
    logs = [math.log(w) + math.log(size) / temperature if size else -math.inf for size, w in zip(sizes, weights)]
    if max(map(abs, filter(math.isfinite, logs))) < _LOG_LIMIT:
        wanted = np.array([w * size ** (1 / temperature) if size else 0.0 for size, w in zip(sizes, weights)])
    else:
        wanted = np.exp(np.array(logs) - max(logs))
    exact = wanted / wanted.sum() * total
    shares = np.floor(exact).astype(np.int64)
    most_left = np.argsort(shares - exact, kind="stable")
    shares[most_left[: total - shares.sum()]] += 1
    return [int(share) for share in shares]
