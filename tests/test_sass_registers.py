"""Registers of products under way: what the check finds in a few lines of machine code, and in what ptxas made."""

import pytest

from bench import sass_registers
from bench.sass_clocks import Instruction

PRODUCT = "HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR8].tnspB, R24, gsb0"  # R4 to R7 by R24 to R87
OTHER = "HGMMA.64x32x16.F32.BF16 R100, R8, gdesc[UR8].tnspB, R100, gsb0"
WAIT, WAIT_FOR_ALL_BUT_ONE = "WARPGROUP.DEPBAR.LE gsb0, 0x0", "WARPGROUP.DEPBAR.LE gsb0, 0x1"


def found(*texts, labels=None):
    """Numbers of the instructions that are reported."""
    code = [
        Instruction(i, text.removeprefix("@P0 "), 1, 7, 7, 0, text.startswith("@P0 ")) for i, text in enumerate(texts)
    ]
    return [int(line.split()[0], 16) for line in sass_registers.find(code, labels or {})]


@pytest.mark.parametrize(
    "text",
    [
        "MOV R7, R1",
        "F2FP.BF16.F32.PACK_AB R5, R1, R2",
        "LDS.128 R0, [R200]; LDS.128 R4, [R200]",
        "LDS.128 R2, [R200]",
        "LDSM.16.M88.4 R1, [R200]",
        "IMAD.WIDE.U32 R3, R1, R2, R8",
        "SHFL.BFLY PT, R6, R1, 0x1, 0x1f",
        "CS2R R86, SRZ",
        "FADD R1, R87, R2",
        "STG.E.64 [R2.64], R22; STG.E.64 [R2.64], R23",
        "STS.128 [R200], R84",
        "HGMMA.64x16x16.F32.BF16 R120, R24, gdesc[UR8], R120, gsb0",
    ],
)
def test_what_comes_before_the_wait_is_reported(text):
    """The last of each, and not once it comes after the wait."""
    texts = text.split("; ")
    assert found(PRODUCT, *texts, "EXIT") == [len(texts)]
    assert found(PRODUCT, WAIT, *texts, "EXIT") == []


@pytest.mark.parametrize(
    "text",
    [
        "MOV R1, R7",  # an operand may be read
        "ISETP.GE.AND P0, PT, R6, R1, PT",  # which sets a predicate
        "LDS.128 R0, [R4]",
        "STS.128 [R4], R0",
        "IMAD.WIDE.U32 R2, R1, R2, R8",
        "UMOV UR4, 0x1",
        "HGMMA.64x128x16.F32.BF16 R24, R8, gdesc[UR8].tnspB, R24, gsb0",  # products run in order
        "SYNCS.ARRIVE.TRANS64.A1T0 RZ, [R4+URZ], RZ",
    ],
)
def test_what_does_no_harm(text):
    assert found(PRODUCT, text, "EXIT") == []


def test_a_wait_may_leave_the_last_groups():
    assert found(PRODUCT, OTHER, WAIT_FOR_ALL_BUT_ONE, "MOV R4, R1", "MOV R8, R1", "EXIT") == [4]
    assert found(PRODUCT.removesuffix(", gsb0"), OTHER, WAIT_FOR_ALL_BUT_ONE, "MOV R4, R1", "EXIT") == [3]  # one group


def test_every_way_is_followed():
    """A loop whose second turn writes what the first still reads; a branch around the wait."""
    loop = ("MOV R4, R1", PRODUCT, "@P0 BRA `(.L_x_0)", WAIT, "MOV R4, R1", "EXIT")
    assert found(*loop, labels={".L_x_0": 0}) == [0]
    branch = (PRODUCT, "@P0 BRA `(.L_x_1)", WAIT, "MOV R5, R1", "EXIT")
    assert found(*branch, labels={".L_x_1": 3}) == [3]
    assert found(PRODUCT, "BRA `(.L_x_1)", WAIT, "MOV R5, R1", "EXIT", labels={".L_x_1": 2}) == []


def test_a_product_that_is_not_known_is_an_error():
    with pytest.raises(ValueError, match="64 x N x 16"):
        found("QGMMA.64x32x32.F32.E4M3.E4M3 R24, gdesc[UR8], R24, gsb0".replace("QGMMA", "HGMMA"), "EXIT")
