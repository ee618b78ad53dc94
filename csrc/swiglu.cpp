#include "swiglu.h"

#include <algorithm>

#include "lanes.h"

namespace eagle {
namespace {

constexpr float kLog2E = 1.44269504088896341f;

template <class Floats, class T>
EAGLE_INLINE void gate_rows(const TensorView& gate_up, const TensorView& out) {
  constexpr int kLanes = kLanesOf<Floats>;
  const int64_t width = out.shape[1];
  for (int64_t t = 0; t < out.shape[0]; ++t) {
    const T* gates = static_cast<const T*>(gate_up.data) + t * gate_up.strides[0];
    T* to = static_cast<T*>(out.data) + t * width;
    for (int64_t f = 0; f < width; f += kLanes) {
      const int num = static_cast<int>(std::min<int64_t>(kLanes, width - f));
      T some[2][kLanes] = {};
      const T *gate_at = gates + f, *up_at = gates + width + f;
      if (num < kLanes) {
        memcpy(some[0], gate_at, num * sizeof(T)), memcpy(some[1], up_at, num * sizeof(T));
        gate_at = some[0], up_at = some[1];
      }
      const Floats gate = load_floats<Floats>(gate_at), up = load_floats<Floats>(up_at);
      const Floats product = gate / (1.0f + exp2_of(-gate * kLog2E)) * up;
      float numbers[kLanes];
      store_floats(numbers, product);
      if (num == kLanes) {
        for (int i = 0; i < kLanes; ++i) to[f + i] = from_float<T>(numbers[i]);
      } else {
        for (int i = 0; i < num; ++i) to[f + i] = from_float<T>(numbers[i]);
      }
    }
  }
}

}  // namespace

void swiglu_halves_cpu(const TensorView& gate_up, const TensorView& out, bool simd) {
  check(gate_up.dtype == DType::kBfloat16 || gate_up.dtype == DType::kFloat32, "swiglu_halves: gate_up is ",
        dtype_name(gate_up.dtype), "; needs bfloat16 or float32.");
  check(gate_up.num_dims == 2 && gate_up.shape[1] % 2 == 0 && (gate_up.shape[1] <= 1 || gate_up.strides[1] == 1),
        "swiglu_halves: gate_up needs rows of an even number of numbers side by side.");
  check(out.dtype == gate_up.dtype && out.num_dims == 2 && out.shape[0] == gate_up.shape[0] &&
            out.shape[1] == gate_up.shape[1] / 2 && out.is_contiguous(),
        "swiglu_halves: out needs half of gate_up's width and its dtype, contiguous.");
  if (out.num_elements() == 0) return;
  with_type<Bfloat16, float>(gate_up.dtype, [&]<class T>() {
    with_lanes(simd, [&]<class Floats>() __attribute__((always_inline)) { gate_rows<Floats, T>(gate_up, out); });
  });
}

}  // namespace eagle
