// What the attention kernels of the core share: number formats, vectors of 8 elements, and how partial results join.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "device.cuh"
#include "tensor_view.h"
#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace eagle {

constexpr int kVector = 8;                // elements that a thread moves at once; head widths are multiples of it
constexpr int kMaxHeadWidth = 256;        // elements
constexpr int64_t kVectorAlignment = 16;  // bytes

struct Float16 {
  uint16_t bits;
};

// The elements that one thread moves at once. 16-byte loads on a GPU.
template <class T>
struct alignas(16) Vector {
  T of[kVector];
};

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

// Two partial results, over keys that do not overlap, become one: out = a * out_a + b * out_b.
// A side without keys (lse = -inf) has weight 0, and its values are not looked at; without keys on either, out = 0.
struct MergeWeights {
  float a, b, lse;

  EAGLE_HOST_DEVICE float merge(float out_a, float out_b) const {
    return (a == 0 ? 0.0f : a * out_a) + (b == 0 ? 0.0f : b * out_b);
  }
};

EAGLE_HOST_DEVICE MergeWeights merge_weights(float lse_a, float lse_b) {
  if (lse_a == -INFINITY && lse_b == -INFINITY) return {0.0f, 0.0f, -INFINITY};
  const float larger = lse_a < lse_b ? lse_b : lse_a;  // a NaN on either side reaches the weights
  const float a = expf(lse_a - larger), b = expf(lse_b - larger);
  const float sum = a + b;  // from 1 to 2
  return {a / sum, b / sum, larger + logf(sum)};
}

// Throws unless `view` is [rows, heads, width] with a width of 16 to 256 that 8 divides, elements of a head side by
// side, and every head at an address of a vector. `op` and `name` begin the message.
void check_heads(const char* op, const char* name, const TensorView& view);

inline bool is_attention_dtype(DType dtype) {
  return dtype == DType::kFloat16 || dtype == DType::kBfloat16 || dtype == DType::kFloat32;
}

// Calls work.template operator()<T>() with the C++ type of `dtype`, which is_attention_dtype().
template <class Work>
void with_type(DType dtype, const Work& work) {
  if (dtype == DType::kFloat16) return work.template operator()<Float16>();
  if (dtype == DType::kBfloat16) return work.template operator()<Bfloat16>();
  work.template operator()<float>();
}

}  // namespace eagle
