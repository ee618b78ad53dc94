#include "qkv_rope.h"

#include <vector>

#include "lanes.h"

namespace eagle {
namespace {

template <class T>
struct Rope {
  const T *qkv, *bias;  // bias: null where there is none
  const void* positions;
  const float* frequencies;
  T* outs[3];
  int64_t num_heads[3];
  int64_t num_tokens, half, qkv_row, position_stride, frequency_row;  // frequency_row: 0 where all tokens share one
  bool is_wide;                                                       // positions are 64 bits
  float scale;
};

// scale times the cosine and sine of `angle`, by series of what is left of it beside a multiple of pi / 2, in fp64.
EAGLE_INLINE void turn(float angle, float scale, float* cosine, float* sine) {
  constexpr double kQuarters = 0.63661977236758134308, kQuarter = 1.57079632679489661923;  // of a turn: pi / 2
  constexpr double kWhole = 6755399441055744.0;  // 1.5 * 2**52: a sum with it is rounded to a whole number
  const double sum = static_cast<double>(angle) * kQuarters + kWhole;
  const double r = static_cast<double>(angle) - (sum - kWhole) * kQuarter, s = r * r;
  const double sin =
      r * (1 + s * (-1.0 / 6 + s * (1.0 / 120 + s * (-1.0 / 5040 + s * (1.0 / 362880 - s * (1.0 / 39916800))))));
  const double cos =
      1 + s * (-0.5 + s * (1.0 / 24 + s * (-1.0 / 720 + s * (1.0 / 40320 + s * (-1.0 / 3628800 + s / 479001600)))));
  const uint64_t quarter = bits_as<uint64_t>(sum);
  const bool is_odd = (quarter & 1) != 0;
  const double c = is_odd ? sin : cos, n = is_odd ? cos : sin;
  *cosine = static_cast<float>(((quarter + 1) & 2) != 0 ? -c : c) * scale;
  *sine = static_cast<float>((quarter & 2) != 0 ? -n : n) * scale;
}

template <class T>
EAGLE_INLINE void rotate(const Rope<T>& rope, float* cosines, float* sines) {
  const int64_t half = rope.half;
  for (int64_t t = 0; t < rope.num_tokens; ++t) {
    const int64_t at = t * rope.position_stride;
    const float position = static_cast<float>(rope.is_wide ? static_cast<const int64_t*>(rope.positions)[at]
                                                           : static_cast<const int32_t*>(rope.positions)[at]);
    const float* frequencies = rope.frequencies + t * rope.frequency_row;
    for (int64_t i = 0; i < half; ++i) turn(position * frequencies[i], rope.scale, &cosines[i], &sines[i]);
    const T *from = rope.qkv + t * rope.qkv_row, *bias = rope.bias;
    for (int which = 0; which < 3; ++which) {
      T* to = rope.outs[which] + t * rope.num_heads[which] * 2 * half;
      for (int64_t head = 0; head < rope.num_heads[which]; ++head, from += 2 * half, to += 2 * half) {
        const auto number = [&](int64_t i) __attribute__((always_inline)) {
          return bias == nullptr ? to_float(from[i]) : to_float(from[i]) + to_float(bias[i]);
        };
        if (which == 2) {
          for (int64_t i = 0; i < 2 * half; ++i) to[i] = from_float<T>(number(i));
        } else {
          for (int64_t i = 0; i < half; ++i) {
            const float a = number(i), b = number(half + i);
            to[i] = from_float<T>(a * cosines[i] - b * sines[i]);
            to[half + i] = from_float<T>(b * cosines[i] + a * sines[i]);
          }
        }
        if (bias != nullptr) bias += 2 * half;
      }
    }
  }
}

template <class T>
void run(const QkvRope& t, bool simd) {
  Rope<T> rope;
  rope.qkv = static_cast<const T*>(t.qkv.data);
  rope.bias = t.bias.num_elements() > 0 ? static_cast<const T*>(t.bias.data) : nullptr;
  rope.positions = t.positions.data;
  rope.frequencies = static_cast<const float*>(t.frequencies.data);
  const TensorView* outs[3] = {&t.q, &t.k, &t.v};
  for (int i = 0; i < 3; ++i) {
    rope.outs[i] = static_cast<T*>(outs[i]->data);
    rope.num_heads[i] = outs[i]->shape[1];
  }
  rope.num_tokens = t.qkv.shape[0], rope.half = t.q.shape[2] / 2, rope.qkv_row = t.qkv.strides[0];
  rope.position_stride = t.positions.strides[0];
  rope.frequency_row = t.frequencies.num_dims == 2 ? rope.half : 0;
  rope.is_wide = t.positions.dtype == DType::kInt64;
  rope.scale = t.scale;
  std::vector<float> cosines(rope.half), sines(rope.half);
  with_lanes(simd, [&]<class Floats>() __attribute__((always_inline)) { rotate(rope, cosines.data(), sines.data()); });
}

}  // namespace

void qkv_rope_cpu(const QkvRope& t, bool simd) {
  check(t.qkv.dtype == DType::kBfloat16 || t.qkv.dtype == DType::kFloat32, "qkv_rope: qkv is ", dtype_name(t.qkv.dtype),
        "; needs bfloat16 or float32.");
  check(t.q.num_dims == 3 && t.q.shape[2] % 2 == 0, "qkv_rope: q needs three dims, the last of them even.");
  const int64_t tokens = t.qkv.shape[0], width = t.q.shape[2];
  for (const TensorView* out : {&t.q, &t.k, &t.v}) {
    check(out->dtype == t.qkv.dtype && out->num_dims == 3 && out->shape[0] == tokens && out->shape[2] == width &&
              out->is_contiguous(),
          "qkv_rope: q, k and v need ", tokens, " tokens of heads of one width, of qkv's dtype, contiguous.");
  }
  const int64_t features = (t.q.shape[1] + t.k.shape[1] + t.v.shape[1]) * width;
  check(t.qkv.num_dims == 2 && t.qkv.shape[1] == features && (features <= 1 || t.qkv.strides[1] == 1),
        "qkv_rope: qkv needs rows of ", features, " numbers side by side, as q, k and v have.");
  check(t.bias.dtype == t.qkv.dtype && t.bias.num_dims == 1 && t.bias.is_contiguous() &&
            (t.bias.shape[0] == 0 || t.bias.shape[0] == features),
        "qkv_rope: bias needs no numbers, or ", features, " of qkv's dtype, contiguous.");
  check((t.positions.dtype == DType::kInt32 || t.positions.dtype == DType::kInt64) && t.positions.num_dims == 1 &&
            t.positions.shape[0] == tokens,
        "qkv_rope: positions need ", tokens, " int32 or int64.");
  const TensorView& f = t.frequencies;
  check(f.dtype == DType::kFloat32 && f.is_contiguous() &&
            ((f.num_dims == 1 && f.shape[0] == width / 2) ||
             (f.num_dims == 2 && f.shape[0] == tokens && f.shape[1] == width / 2)),
        "qkv_rope: frequencies need ", width / 2, " contiguous float32, of all tokens or of each.");
  if (t.qkv.num_elements() == 0) return;
  with_type<Bfloat16, float>(t.qkv.dtype, [&]<class T>() { run<T>(t, simd); });
}

}  // namespace eagle
