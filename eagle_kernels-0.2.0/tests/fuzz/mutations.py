"""Seeded damage: of bytes, and of JSON values. What the fuzzers of this folder share."""

from __future__ import annotations

import copy
import random
from typing import Any

ODD_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, 1e999, float("nan"), 10**30, "", " ", "x", "\ud800", "\0", "../x", "a.png",
    "v.mp4", "<image>", "\\<video-1>", "<image-99>", "http://x/a.png", "x" * 5000, [], {}, [[]], [None], ["a.png"],
    {"a": []}, {"path": "a.png"}, [[[[[[[[[[]]]]]]]]]], "<|im_end|>", "data:image/png;base64,AA",
]  # fmt: skip
ODD_BYTES = [b"\0", b"\xff", b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\1", b"\1\0\0\0"]


def damaged(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """With one to four places changed: bits, bytes, lengths, pieces cut, doubled, moved or taken from another file."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        size = len(changed)
        if not size:
            break
        at = rng.randrange(size)
        if rng.random() < 0.5:
            at = min(at, rng.randrange(1, 200))  # headers are where decisions are made
        end = min(size, at + rng.choice([1, 2, 4, 8, 64, size]))
        kind = rng.randrange(7)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.randrange(256)
        elif kind == 2:
            odd = rng.choice(ODD_BYTES)
            changed[at : at + len(odd)] = odd
        elif kind == 3:
            del changed[at:end]
        elif kind == 4:
            changed[at:at] = changed[at:end]
        elif kind == 5:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            changed[at:end] = other[start : start + end - at]
        else:
            del changed[size - rng.choice([1, 2, 3, size // 2]) :]
    return bytes(changed)


def altered(value: Any, rng: random.Random, names: list[str]) -> Any:
    """A JSON value with one to three of its places replaced, taken out, doubled, or given a field more."""
    changed = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 2, 3])):
        places = list(_places(changed))
        if not places:
            break
        parent, key = rng.choice(places)
        kind = rng.randrange(4)
        if kind == 0:
            parent[key] = copy.deepcopy(rng.choice(ODD_VALUES))
        elif kind == 1:
            del parent[key]
        elif isinstance(parent, dict):
            odd = rng.choice(ODD_VALUES) if kind == 2 else parent[key]
            parent[rng.choice(names)] = copy.deepcopy(odd)
        else:
            parent.insert(key, copy.deepcopy(parent[key]))
    return changed


def _places(value: Any) -> Any:
    """(container, key) of everything in a JSON value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])
