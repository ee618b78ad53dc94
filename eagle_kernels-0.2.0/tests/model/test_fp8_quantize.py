"""Rounding to FP8 and back: the bounds that the file states, blocks one by one, and numbers that are none."""

import pytest
import torch

from eagle_model.model.fp8_quantize import DTYPES, pad_rows, quantize

HALF_ULP = {"e4m3": 2**-4, "e5m2": 2**-3}
HALF_SUBNORMAL = {"e4m3": 2**-10 / 448, "e5m2": 2**-17 / 57344}
BLOCKS = [None, (1, 128), (128, 128), (128, 1), (1, 32), (32, 1)]


def matrix(seed: int = 0) -> torch.Tensor:
    """Numbers over ten orders of magnitude, whole rows and columns of other sizes, a block of zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(256, 384, generator=generator) * 10 ** (10 * torch.rand(256, 384, generator=generator) - 8)
    x[:, 7] *= 1e3
    x[130] *= 1e-4
    x[:128, 128:256] = 0
    return x


@pytest.mark.parametrize("format", DTYPES)
@pytest.mark.parametrize("power_of_2", [False, True])
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: "all" if block is None else f"{block[0]}x{block[1]}")
def test_the_error_is_within_its_bound_and_reaches_half_of_it(format, power_of_2, block):
    x = matrix()
    r, c = block or x.shape
    amax = x.unflatten(1, (-1, c)).unflatten(0, (-1, r)).abs().amax((1, 3), keepdim=True).expand(-1, r, -1, c)
    codes = quantize(x, format, block=block, power_of_2=power_of_2)
    assert codes.values.dtype == DTYPES[format]
    error = (codes.expanded().double() - x.double()).abs()
    tail = HALF_SUBNORMAL[format] * (2 if power_of_2 else 1)
    bound = HALF_ULP[format] * x.double().abs() + tail * amax.reshape(x.shape).double()
    slack = 1 + 1e-6 if not power_of_2 else 1  # a scale that is no power of 2 is rounded itself, in fp32
    assert (error <= slack * bound).all()
    assert (error > bound / 2).any(), "the bound says nothing"


@pytest.mark.parametrize("format", DTYPES)
def test_a_power_of_2_scales_without_an_error(format):
    """So that a number of few bits comes back as it was, whatever stands beside it."""
    x = torch.tensor([[0.75, -1.25, 3.0, 0.015625]])
    for largest in (3.0, 3.1, 100.0):
        row = torch.cat([x, torch.tensor([[largest]])], 1)
        codes = quantize(row, format, power_of_2=True)
        assert codes.scale.log2() == codes.scale.log2().round()
        assert torch.equal(codes.expanded()[:, :4], x)
        amax = row.abs().max() * codes.scale
        assert torch.finfo(DTYPES[format]).max / 2 < amax <= torch.finfo(DTYPES[format]).max


def test_a_scale_is_its_block_s_alone():
    """Changing one block changes no other."""
    x = matrix()
    before = quantize(x, "e4m3", block=(1, 128)).expanded()
    x[5, 130] = 1e9
    changed = (quantize(x, "e4m3", block=(1, 128)).expanded() != before).nonzero()
    assert set(changed[:, 0].tolist()) == {5}
    assert all(128 <= column < 256 for column in changed[:, 1].tolist())
    whole = quantize(matrix(), "e4m3").expanded()
    assert not torch.equal(quantize(x, "e4m3").expanded()[0], whole[0])


def test_codes_can_be_transposed():
    x = matrix()
    codes = quantize(x, "e4m3", block=(1, 128))
    assert torch.equal(codes.t().expanded(), codes.expanded().t())
    square = quantize(x, "e4m3", block=(128, 128)), quantize(x.t(), "e4m3", block=(128, 128))
    assert torch.equal(square[0].t().expanded(), square[1].expanded())


@pytest.mark.parametrize("block", [None, (1, 4)])
@pytest.mark.parametrize("power_of_2", [False, True])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_does_not_become_finite(bad, power_of_2, block):
    x = torch.ones(2, 8)
    x[1, 2] = bad
    found = quantize(x, "e4m3", block=block, power_of_2=power_of_2).expanded()
    assert found[1, 2].isnan()
    if block:
        assert torch.equal(found[0], x[0])
        assert torch.equal(found[1, 4:], x[1, 4:])


def test_zeros_and_a_size_that_does_not_fit():
    assert torch.equal(quantize(torch.zeros(2, 4), "e5m2").expanded(), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"the matrix is \(3, 130\); needs multiples of the block, 1 x 128"):
        quantize(torch.ones(3, 130), "e4m3", block=(1, 128))


@pytest.mark.parametrize(("num_rows", "padded"), [(0, 16), (1, 16), (15, 16), (16, 16), (17, 32)])
def test_rows_are_padded_with_zeros(num_rows, padded):
    x = torch.full((num_rows + 3, 4), torch.nan)[:num_rows]  # what lies next in memory is no number
    x.fill_(1)
    found = pad_rows(x, 16)
    assert len(found) == padded
    assert torch.equal(found[:num_rows], x)
    assert not found[num_rows:].any()
    assert (found is x) == (num_rows == 16)
