"""The one reader of bits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle_kernels.video.bitstream.bits import Bits, NotUnderstood


@given(st.binary(max_size=12), st.lists(st.integers(0, 20), max_size=12))
def test_reads_the_most_significant_first_and_never_past_the_end(content: bytes, widths: list[int]) -> None:
    whole = "".join(f"{byte:08b}" for byte in content)
    for form in (content, memoryview(content)):
        bits, at = Bits(form), 0
        for width in widths:
            if at + width > len(whole):
                with pytest.raises(NotUnderstood, match="cut short"):
                    bits.read(width)
                break
            assert bits.read(width) == int(whole[at : at + width] or "0", 2)
            at += width


@given(st.integers(0, 2**31))
def test_numbers_of_any_length(number: int) -> None:
    code = f"{number + 1:b}"
    text = "0" * (len(code) - 1) + code + "1"
    bits = Bits(int(text.ljust(72, "0"), 2).to_bytes(9, "big"))
    assert bits.read_golomb() == number
    assert bits.read(1) == 1


def test_a_number_ends_at_32_zeros() -> None:
    with pytest.raises(NotUnderstood, match="more than 32 bits"):
        Bits(bytes(1000)).read_golomb()
