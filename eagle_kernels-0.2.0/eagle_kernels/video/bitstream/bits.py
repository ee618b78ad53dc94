"""Reads bits of a coded header, the most significant first.

bits = Bits(bytes([0b10110000]))          # a header, not the whole unit: a read costs as much as there are bytes
bits.read(1), bits.read(3)                # 1, 3
"""

from __future__ import annotations

MAX_ZEROS = 32  # before a variable-length number: both standards stop there


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

    def read_golomb(self) -> int:
        """ue(v) of ITU-T H.264, 9.1, and uvlc() of AV1, 4.10.3. Raises NotUnderstood after MAX_ZEROS zeros."""
        num_zeros = 0
        while not self.read(1):
            num_zeros += 1
            if num_zeros == MAX_ZEROS:
                raise NotUnderstood("a number of more than 32 bits")
        return (1 << num_zeros) - 1 + self.read(num_zeros)
