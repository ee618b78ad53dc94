"""What PTX arithmetic gives, in numpy: rounding, wrapping, and the cases that numpy leaves to C.

    to_bf16(np.array([1.0], np.float32))        # array([16256], dtype=uint16), round to nearest even

Denormals are kept also where PTX says .ftz; the approximate functions (ex2, lg2, sin, rcp, ...) give numpy's value.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray  # of whatever type the name says; scalars of numpy come along too

U16, U32, U64 = np.uint16, np.uint32, np.uint64
S32, S64, F32, F64 = np.int32, np.int64, np.float32, np.float64


def to_bf16(x: Array) -> Array:
    """fp32 to the bits of bf16, to nearest even; a NaN gives 0x7fff."""
    u = np.asarray(x, F32).view(U32)
    rounded = ((u + (U32(0x7FFF) + ((u >> U32(16)) & U32(1)))) >> U32(16)).astype(U16)
    return np.where(np.isnan(x), U16(0x7FFF), rounded)


def from_bf16(bits: Array) -> Array:
    """The bits of bf16 as fp32, exactly."""
    return (np.asarray(bits).astype(U32) << U32(16)).view(F32)


def to_f16(x: Array) -> Array:
    return np.asarray(x).astype(np.float16).view(U16)


def from_f16(bits: Array) -> Array:
    return np.asarray(bits, U16).view(np.float16).astype(F32)


HALF, SHIFT, ONE, TOP = (np.asarray(x, U32) for x in (0x7FFF, 16, 1, 0xFFFF0000))


def pack_bf16x2(high: Array, low: Array) -> Array:
    if np.isnan(high).any() or np.isnan(low).any():
        return (to_bf16(high).astype(U32) << SHIFT) | to_bf16(low)
    h, l = high.view(U32), low.view(U32)
    return ((h + HALF + ((h >> SHIFT) & ONE)) & TOP) | ((l + HALF + ((l >> SHIFT) & ONE)) >> SHIFT)


def pack_f16x2(high: Array, low: Array) -> Array:
    return (to_f16(high).astype(U32) << U32(16)) | to_f16(low)


def low_half(x: Array) -> Array:
    return np.asarray(x & U32(0xFFFF)).astype(U16)


def high_half(x: Array) -> Array:
    return np.asarray(x >> U32(16)).astype(U16)


def fma32(a: Array, b: Array, c: Array) -> Array:
    """One rounding but for ties that fp64 already rounded: the product of two fp32 is exact in fp64, the sum is not."""
    return np.add(np.multiply(a, b, dtype=F64), c, dtype=F64).astype(F32)


def fma32_down(a: Array, b: Array, c: Array) -> Array:
    """Rounded towards minus infinity (fma.rm)."""
    exact = np.add(np.multiply(a, b, dtype=F64), c, dtype=F64)
    near = exact.astype(F32)
    return np.where(near > exact, np.nextafter(near, F32(-np.inf)), near)


def fma32_zero(a: Array, b: Array, c: Array) -> Array:
    """Rounded towards zero (fma.rz)."""
    exact = np.add(np.multiply(a, b, dtype=F64), c, dtype=F64)
    near = exact.astype(F32)
    return np.where(np.abs(near) > np.abs(exact), np.nextafter(near, F32(0)), near)


def _split64(a: Array) -> tuple[Array, Array]:
    high = np.asarray(a, F64)
    scaled = high * 134217729.0  # 2**27 + 1: Dekker's splitting into two halves of 26 bits
    top = scaled - (scaled - high)
    return top, high - top


def fma64(a: Array, b: Array, c: Array) -> Array:
    """By two exact transformations: the error is far below one unit in the last place of the result."""
    p = a * b
    a_high, a_low = _split64(a)
    b_high, b_low = _split64(b)
    product_error = ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low
    s = p + c
    t = s - p
    sum_error = (p - (s - t)) + (c - t)
    total = s + (sum_error + product_error)
    return np.where(np.isfinite(s) & np.isfinite(product_error), total, s)


def saturate(x: Array) -> Array:
    """.sat: into [0, 1], NaN to 0."""
    return np.where(np.isnan(x), type(x.dtype.type(0))(0), np.clip(x, 0, 1)).astype(x.dtype)


def divide_int(x: Array, y: Array) -> Array:
    """Towards zero; by zero gives all ones, as the hardware does."""
    safe = np.where(y == 0, np.ones_like(y), y)
    quotient = (x - np.fmod(x, safe)) // safe
    return np.where(y == 0, ~np.zeros_like(x), quotient)


def remainder_int(x: Array, y: Array) -> Array:
    return np.where(y == 0, x, np.fmod(x, np.where(y == 0, np.ones_like(y), y)))


def shift_left(x: Array, k: Array) -> Array:
    bits = x.dtype.itemsize * 8
    return np.where(k < bits, x << (k & U32(bits - 1)).astype(x.dtype), x.dtype.type(0))


def shift_right(x: Array, k: Array) -> Array:
    """Signed types keep their sign."""
    bits = x.dtype.itemsize * 8
    return (
        x >> np.minimum(k, U32(bits - 1)).astype(x.dtype)
        if x.dtype.kind == "i"
        else np.where(k < bits, x >> (k & U32(bits - 1)).astype(x.dtype), x.dtype.type(0))
    )


def funnel_left(low: Array, high: Array, k: Array) -> Array:
    k = (k & U32(31)).astype(U64)
    both = (high.astype(U64) << U64(32)) | low
    return ((both << k) >> U64(32)).astype(U32)


def funnel_right(low: Array, high: Array, k: Array) -> Array:
    k = (k & U32(31)).astype(U64)
    both = (high.astype(U64) << U64(32)) | low
    return (both >> k).astype(U32)


def multiply_high(x: Array, y: Array) -> Array:
    if x.dtype.itemsize == 4:
        wide = S64 if x.dtype.kind == "i" else U64
        return ((x.astype(wide) * y.astype(wide)) >> wide(32)).astype(x.dtype)
    if x.dtype.kind == "i":
        high = multiply_high(x.view(U64), y.view(U64)).view(S64)
        return high - np.where(x < 0, y, 0) - np.where(y < 0, x, 0)
    mask, k = U64(0xFFFFFFFF), U64(32)
    x0, x1, y0, y1 = x & mask, x >> k, y & mask, y >> k
    middle = x1 * y0 + ((x0 * y0) >> k)
    return x1 * y1 + (middle >> k) + (((middle & mask) + x0 * y1) >> k)


def extract_bits(x: Array, position: int, length: int) -> Array:
    """bfe: with x's sign where x is signed."""
    bits = x.dtype.itemsize * 8
    length = min(length, bits - position) if position < bits else 0
    if length == 0:
        return np.zeros_like(x)
    shifted = x << x.dtype.type(bits - position - length)
    return shifted >> x.dtype.type(bits - length)


def insert_bits(field: Array, into: Array, position: int, length: int) -> Array:
    mask = into.dtype.type(((1 << length) - 1) << position)
    return (into & ~mask) | ((field << into.dtype.type(position)) & mask)


def permute_bytes(a: Array, b: Array, selector: Array) -> Array:
    """prmt in its default mode: byte i of the result is byte (selector >> 4 i) & 7 of {b, a}, or its sign."""
    both = (b.astype(U64) << U64(32)) | a
    out = np.zeros(np.broadcast(both, selector).shape, U32)
    for i in range(4):
        nibble = (selector >> U32(4 * i)) & U32(15)
        byte = ((both >> ((nibble & U32(7)).astype(U64) * U64(8))) & U64(255)).astype(U32)
        byte = np.where(nibble & U32(8), np.where(byte & U32(128), U32(255), U32(0)), byte)
        out |= byte << U32(8 * i)
    return out


def logic3(a: Array, b: Array, c: Array, table: int) -> Array:
    out = np.zeros_like(a | b | c)
    for i in range(8):
        if table >> i & 1:
            out |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return out


def count_leading_zeros(x: Array) -> Array:
    bits = x.dtype.itemsize * 8
    out = np.full(x.shape, bits, U32)
    for i in range(bits):
        out = np.where((x >> x.dtype.type(i)) & x.dtype.type(1), U32(bits - 1 - i), out)
    return out


def reverse_bits(x: Array) -> Array:
    bits = x.dtype.itemsize * 8
    one = x.dtype.type(1)
    out = np.zeros_like(x)
    for i in range(bits):
        out |= ((x >> x.dtype.type(i)) & one) << x.dtype.type(bits - 1 - i)
    return out


def round_float(x: Array, mode: str) -> Array:
    """To an integral value: rni to nearest even, rzi towards zero, rmi down, rpi up."""
    return {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode](x)


def float_to_int(x: Array, mode: str, kind: type[np.integer]) -> Array:
    """Clamped to the type's range; NaN gives 0 (of 64 bits the smallest number)."""
    info = np.iinfo(kind)
    rounded = round_float(x.astype(F64), mode)
    top = float(info.max)
    inside = np.clip(rounded, float(info.min), top if top < 2.0**62 else np.nextafter(top, 0))
    result = np.where(np.isnan(x), 0, inside).astype(kind)
    return np.where(rounded >= top, kind(info.max), result)


def clamp_int(x: Array, kind: type[np.integer]) -> Array:
    """cvt.sat between integers."""
    info, own = np.iinfo(kind), np.iinfo(x.dtype)
    return np.clip(x, max(info.min, own.min), min(info.max, own.max)).astype(kind)
