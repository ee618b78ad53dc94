// The types of numbers in memory, their way to fp32 and back, and how code is chosen for one of them.
#pragma once

#include <cstdint>
#include <cstring>

#include "device.cuh"
#include "tensor_view.h"
#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace eagle {

struct Bfloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

template <class T>
constexpr DType dtype_of();
template <>
constexpr DType dtype_of<uint8_t>() {
  return DType::kUint8;
}
template <>
constexpr DType dtype_of<Float16>() {
  return DType::kFloat16;
}
template <>
constexpr DType dtype_of<Bfloat16>() {
  return DType::kBfloat16;
}
template <>
constexpr DType dtype_of<float>() {
  return DType::kFloat32;
}

// Calls work.template operator()<T>() with the T of `Types` that `dtype` names; the caller has checked that one does.
template <class... Types, class Work>
void with_type(DType dtype, const Work& work) {
  static_cast<void>(((dtype == dtype_of<Types>() && (work.template operator()<Types>(), true)) || ...));
}

// Round to nearest, ties to even; as torch's .to(torch.bfloat16), for every value that is not NaN.
EAGLE_HOST_DEVICE Bfloat16 to_bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return {static_cast<uint16_t>(bits >> 16)};
}

EAGLE_HOST_DEVICE float to_float(float value) { return value; }
EAGLE_HOST_DEVICE float to_float(Bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  memcpy(&result, &bits, sizeof(result));
  return result;
}
EAGLE_HOST_DEVICE float to_float(Float16 value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  // The exponent's bias grows from 15 to 127 by a multiplication, which also normalises what was subnormal.
  const uint32_t magnitude = (value.bits & 0x7fffu) << 13;
  const bool is_finite = magnitude < 0x0f800000u;
  float result;
  memcpy(&result, &magnitude, sizeof(result));
  result *= 0x1p112f;
  uint32_t bits;
  memcpy(&bits, &result, sizeof(bits));
  bits = (is_finite ? bits : magnitude | 0x7f800000u) | (value.bits & 0x8000u) << 16;
  memcpy(&result, &bits, sizeof(result));
  return result;
#endif
}

// Round to nearest, ties to even; NaN stays NaN.
template <class T>
EAGLE_HOST_DEVICE T from_float(float value);
template <>
EAGLE_HOST_DEVICE float from_float<float>(float value) {
  return value;
}
template <>
EAGLE_HOST_DEVICE Bfloat16 from_float<Bfloat16>(float value) {
  return value != value ? Bfloat16{0x7fc0} : to_bfloat16(value);
}
template <>
EAGLE_HOST_DEVICE Float16 from_float<Float16>(float value) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(value))};
#else
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = bits & 0x80000000u, magnitude = bits ^ sign;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x47800000u) {  // 65536 and more
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // 2^-14: fp16's smallest normal number
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  } else {  // beside 0.5 the last place of fp32 is fp16's smallest number, 2^-24: the sum rounds as it must
    float sum;
    memcpy(&sum, &magnitude, sizeof(sum));
    sum += 0.5f;
    memcpy(&half, &sum, sizeof(half));
    half -= 0x3f000000u;
  }
  return {static_cast<uint16_t>(half | sign >> 16)};
#endif
}

// a * b + c: one rounding on a GPU, two in the CPU build, where fma is not in every machine.
EAGLE_HOST_DEVICE float multiply_add(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return a * b + c;
#endif
}

}  // namespace eagle
