"""Numbers as FP8 codes and scales, and back, in plain torch: what every FP8 product here means.

    codes = quantize(x_RC, "e4m3", block=(1, 128), power_of_2=True)
    codes.values, codes.scale                    # (R, C) float8_e4m3fn, (R, C / 128) float32
    codes.expanded()                             # (R, C) float32, near x_RC

Dims     R rows, C columns, a block of r x c numbers that share a scale.
Formula  scale = M / max |x| over the block, M = 448 (e4m3) or 57344 (e5m2); value = round(x * scale);
         x' = value / scale. power_of_2: the scale is the next lower power of 2, so that scaling is exact and only
         `value` is rounded.
Error    |x' - x| <= h |x| + t max|x|, the maximum over its block: half a unit in the last place where the value is a
         normal number, h = 2**-4 (e4m3) or 2**-3 (e5m2), and half the smallest subnormal below that: t = 2**-10 / 448
         or 2**-17 / 57344, twice that with power_of_2. A test holds it.
Finite   The largest number of a block is exact but for fp32. NaN stays NaN; an infinity makes its block NaN: nothing
         that is wrong becomes a plausible number. A block of zeros is zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Format = Literal["e4m3", "e5m2"]
DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
LEAST_MAXIMUM = 1e-12  # of a block: what is smaller is scaled as if it had this; torchao's bound, so that results agree


@dataclass(frozen=True, slots=True)
class Codes:
    values: Tensor  # (R, C), FP8
    scale: Tensor  # fp32: () for one of all, else (R / r, C / c)

    def t(self) -> Codes:
        return Codes(self.values.t(), self.scale.t())

    def expanded(self) -> Tensor:
        """What the codes stand for, (R, C) fp32."""
        scale = self.scale
        if scale.ndim:
            for dim in (0, 1):
                scale = scale.repeat_interleave(self.values.shape[dim] // scale.shape[dim], dim)
        return self.values.float() / scale


def quantize(x_RC: Tensor, format: Format, *, block: tuple[int, int] | None = None, power_of_2: bool = False) -> Codes:
    """FP8 codes of a matrix with at least one number. block: (r, c), whose numbers share a scale; None: all share one.

    Raises ValueError unless R and C are multiples of r and c.
    """
    x_RC, dtype = x_RC.float(), DTYPES[format]
    largest = torch.finfo(dtype).max
    if block is None:
        scale = _scale(x_RC.abs().amax(), largest, power_of_2)
        scaled_RC = x_RC * scale
    else:
        r, c = block
        if x_RC.shape[0] % r or x_RC.shape[1] % c:
            raise ValueError(f"quantize: the matrix is {tuple(x_RC.shape)}; needs multiples of the block, {r} x {c}.")
        blocks = x_RC.unflatten(1, (-1, c)).unflatten(0, (-1, r))  # R / r, r, C / c, c
        scale = _scale(blocks.abs().amax((1, 3)), largest, power_of_2)
        scaled_RC = (blocks * scale[:, None, :, None]).reshape(x_RC.shape)
    # torch before 2.12 does not saturate; x * scale may pass the largest by its rounding.
    return Codes(scaled_RC.clamp(-largest, largest).to(dtype), scale)


def _scale(amax: Tensor, largest: float, power_of_2: bool) -> Tensor:
    scale = (largest / amax.double().clamp(min=LEAST_MAXIMUM)).float()
    if power_of_2:
        mantissa, exponent = torch.frexp(scale)  # scale = mantissa * 2**exponent, mantissa from 0.5 to below 1
        rounded = torch.ldexp(torch.ones_like(scale), exponent - 1)
        return torch.where(torch.isfinite(scale) & (mantissa > 0), rounded, scale)
    return scale


def pad_rows(x_TC: Tensor, multiple: int) -> Tensor:
    """x with rows of zeros after its own, to a multiple above 0; x itself where it has one."""
    num_added = -len(x_TC) % multiple if len(x_TC) else multiple
    return F.pad(x_TC, (0, 0, 0, num_added)) if num_added else x_TC
