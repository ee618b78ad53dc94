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
