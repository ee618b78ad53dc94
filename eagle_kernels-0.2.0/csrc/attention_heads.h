// What merge_attention and decode_attention share: heads as vectors of 8 elements, and how partial results join.
#pragma once

#include <cmath>

#include "number_types.h"

namespace eagle {

constexpr int kVector = 8;                // elements that a thread moves at once; head widths are multiples of it
constexpr int kMaxHeadWidth = 256;        // elements
constexpr int64_t kVectorAlignment = 16;  // bytes

// The elements that one thread moves at once. 16-byte loads on a GPU.
template <class T>
struct alignas(16) Vector {
  T of[kVector];
};

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

}  // namespace eagle
