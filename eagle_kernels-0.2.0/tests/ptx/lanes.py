"""What the 32 lanes of a warp do together: shuffles, votes, reductions, the choice of one lane."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Mask = NDArray[np.bool_] | None
LANES = np.arange(32, dtype=np.int64)


def active(m: Mask, guard: Any, count: int) -> Mask:
    """Lanes that are active and whose guard holds, (count, 32); None where that is all of them."""
    if guard is None:
        return m
    if m is None:
        both = full(guard, count)
    else:
        both = m & guard
    return None if both.all() else both


def full(values: Any, count: int) -> Array:
    if isinstance(values, np.ndarray) and values.shape == (count, 32):
        return values
    return np.broadcast_to(values, (count, 32))


@cache
def _sources(mode: str, amount: int, clamp: int) -> tuple[Array, Array]:
    """For an amount that all lanes share: the lane that each takes its value from, and whether it lies within."""
    source, inside = _shuffle_sources(mode, np.full((1, 32), amount), np.full((1, 32), clamp))
    return source[0], inside


def shuffle(count: int, mode: str, values: Any, amount: Any, clamp: Any) -> tuple[Array, Array]:
    """shfl.sync: each lane takes the value of another. Also whether that lane lies within its segment."""
    values = full(values, count)
    if np.ndim(amount) == 0 and np.ndim(clamp) == 0:
        lanes, inside = _sources(mode, int(amount), int(clamp))
        return values[:, lanes], inside
    source, inside = _shuffle_sources(mode, full(amount, count), full(clamp, count))
    return np.take_along_axis(values, source, axis=1), inside


def _shuffle_sources(mode: str, amount: Array, clamp: Array) -> tuple[Array, Array]:
    amount = amount.astype(np.int64) & 31
    bound = clamp.astype(np.int64) & 31
    segment = (clamp.astype(np.int64) >> 8) & 31
    low, high = LANES & segment, (LANES & segment) | (bound & ~segment)
    if mode == "up":
        source = LANES - amount
        inside = source >= high
    elif mode == "down":
        source = LANES + amount
        inside = source <= high
    elif mode == "bfly":
        source = LANES ^ amount
        inside = source <= high
    else:
        source = low | (amount & ~segment)
        inside = source <= high
    return np.where(inside, source, LANES), inside


def elect(a: int, z: int, m: Mask, members: Any) -> Array:
    """True for the first active lane of each warp."""
    chosen = np.zeros((z - a, 32), bool)
    if m is None:
        chosen[:, 0] = True
    else:
        chosen[np.arange(z - a), m.argmax(axis=1)] = m.any(axis=1)
    return chosen


def active_mask(a: int, z: int, m: Mask) -> Array:
    if m is None:
        return np.full((z - a, 1), 0xFFFFFFFF, np.uint32)
    return (m << LANES).sum(axis=1, keepdims=True).astype(np.uint32)


def vote(a: int, z: int, m: Mask, guard: Any, mode: str, predicate: Any) -> Any:
    lanes = active(m, guard, z - a)
    values = full(predicate, z - a)
    members = np.ones_like(values) if lanes is None else lanes
    if mode == "ballot":
        return ((values & members) << LANES).sum(axis=1, keepdims=True).astype(np.uint32)
    if mode == "all":
        return (values | ~members).all(axis=1, keepdims=True)
    if mode == "any":
        return (values & members).any(axis=1, keepdims=True)
    return (values | ~members).all(axis=1, keepdims=True) | ~(values & members).any(axis=1, keepdims=True)  # uni


def reduce(a: int, z: int, m: Mask, guard: Any, mode: str, values: Any) -> Array:
    """redux.sync: one result for all active lanes."""
    lanes = active(m, guard, z - a)
    values = full(values, z - a)
    function = {
        "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
        "xor": np.bitwise_xor
    }[mode]  # fmt: skip
    if lanes is not None:
        info = np.iinfo(values.dtype)
        neutral = {"add": 0, "min": info.max, "max": info.min, "and": -1 if info.min else info.max, "or": 0, "xor": 0}[
            mode
        ]
        values = np.where(lanes, values, values.dtype.type(neutral))
    return function.reduce(values, axis=1, keepdims=True, dtype=values.dtype)


def match(a: int, z: int, m: Mask, guard: Any, mode: str, values: Any) -> Array:
    """match.any.sync: the lanes that hold the same value."""
    if mode != "any":
        raise NotImplementedError("match.all.sync")
    lanes = active(m, guard, z - a)
    values = full(values, z - a)
    same = values[:, :, None] == values[:, None, :]
    if lanes is not None:
        same = same & lanes[:, None, :]
    return (same << LANES).sum(axis=2).astype(np.uint32)
