"""Reads bits of a coded header, the most significant first.

bits = Bits(bytes([0b10110000]))
bits.read(1), bits.read(3)                # 1, 3
"""

from __future__ import annotations


class NotUnderstood(Exception):
    """A header that is cut short, or uses what is not followed here. The message says what."""


class Bits:
    def __init__(self, content: bytes | memoryview) -> None:
        self._number = int.from_bytes(content, "big")
        self._num_left = 8 * len(content)

    def read(self, num_bits: int) -> int:
        """Raises NotUnderstood where there are not so many."""
        self._num_left -= num_bits
        if self._num_left < 0:
            raise NotUnderstood("a header that is cut short")
        return self._number >> self._num_left & (1 << num_bits) - 1
