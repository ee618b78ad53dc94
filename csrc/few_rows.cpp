// A tile is the products of some rows of x with some rows of the weight. Its sums, a vector each, stay in registers
// while columns go by; then they are added up, eight vectors at a time. This file alone is built with fused
// multiply-add.
#include "few_rows.h"

#include <algorithm>
#include <vector>

#include "lanes.h"
#include "parallel.h"

namespace eagle {
namespace {

constexpr int64_t kSliceRows = 48;            // of the weight, that a thread takes at a time: whole tiles of any kind
constexpr int64_t kThreadProducts = 1 << 22;  // multiplications that are worth a thread, which takes 30 us to start

// The sums of eight vectors, in their order: fourths 0 + 2 and 1 + 3 of each four numbers, those two, then the fours.
struct Wide8 {
  static constexpr int kLanes = 8;
  using Floats = Floats8;
  using Words = VectorOf<Floats8>::Words;

  static EAGLE_INLINE Floats two(Floats a, Floats b) {
    return EAGLE_PICK(a, b, Words, 0, 8, 1, 9, 4, 12, 5, 13) + EAGLE_PICK(a, b, Words, 2, 10, 3, 11, 6, 14, 7, 15);
  }
  static EAGLE_INLINE Floats four(Floats ab, Floats cd) {
    return EAGLE_PICK(ab, cd, Words, 0, 1, 8, 9, 4, 5, 12, 13) + EAGLE_PICK(ab, cd, Words, 2, 3, 10, 11, 6, 7, 14, 15);
  }
  static EAGLE_INLINE Floats8 eight(Floats a, Floats b) {
    return EAGLE_PICK(a, b, Words, 0, 1, 2, 3, 8, 9, 10, 11) + EAGLE_PICK(a, b, Words, 4, 5, 6, 7, 12, 13, 14, 15);
  }
};
struct Wide16 {
  static constexpr int kLanes = 16;
  using Floats = Floats16;
  using Words = VectorOf<Floats16>::Words;

  static EAGLE_INLINE Floats two(Floats a, Floats b) {
    return EAGLE_PICK(a, b, Words, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
           EAGLE_PICK(a, b, Words, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  }
  static EAGLE_INLINE Floats four(Floats ab, Floats cd) {
    return EAGLE_PICK(ab, cd, Words, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           EAGLE_PICK(ab, cd, Words, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
  static EAGLE_INLINE Floats8 eight(Floats a, Floats b) {
    const Floats halves = EAGLE_PICK(a, b, Words, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                          EAGLE_PICK(a, b, Words, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    const Floats whole =
        halves + EAGLE_PICK(halves, halves, Words, 4, 5, 6, 7, 4, 5, 6, 7, 12, 13, 14, 15, 12, 13, 14, 15);
    const Floats first = EAGLE_PICK(whole, whole, Words, 0, 1, 2, 3, 8, 9, 10, 11, 0, 1, 2, 3, 8, 9, 10, 11);
    return bits_as<Floats8>(first);
  }
};

template <class T>
struct Product {
  const float* x;  // rows of `length` numbers, zero from `width` on
  const T* weight;
  const T* bias;  // may be null
  T* out;
  int64_t num_rows, width, num_outs, length;
};

// kT rows of x from t on, with kF rows of the weight from f on.
template <class Wide, int kT, int kF, class T>
EAGLE_INLINE void tile(const Product<T>& p, int64_t t, int64_t f) {
  constexpr int kLanes = Wide::kLanes, kSums = (kT * kF + 7) / 8 * 8;
  typename Wide::Floats sums[kSums] = {};
  const float* x = p.x + t * p.length;
  const T* weight = p.weight + f * p.width;
  const auto add = [&](const typename Wide::Floats* weights, int64_t c) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int i = 0; i < kT; ++i) {
      const typename Wide::Floats numbers = load_floats<typename Wide::Floats>(x + i * p.length + c);
#pragma GCC unroll 8
      for (int j = 0; j < kF; ++j) sums[i * kF + j] += weights[j] * numbers;
    }
  };
  int64_t c = 0;
  for (; c + kLanes <= p.width; c += kLanes) {
    typename Wide::Floats weights[kF];
#pragma GCC unroll 8
    for (int j = 0; j < kF; ++j) weights[j] = load_floats<typename Wide::Floats>(weight + j * p.width + c);
    add(weights, c);
  }
  if (c < p.width) {
    typename Wide::Floats weights[kF];
    for (int j = 0; j < kF; ++j) {
      T last[kLanes] = {};
      memcpy(last, weight + j * p.width + c, (p.width - c) * sizeof(T));
      weights[j] = load_floats<typename Wide::Floats>(last);
    }
    add(weights, c);
  }
  float totals[kSums];
#pragma GCC unroll 8
  for (int i = 0; i < kSums; i += 8) {
    const auto* s = sums + i;
    const Floats8 eight = Wide::eight(Wide::four(Wide::two(s[0], s[1]), Wide::two(s[2], s[3])),
                                      Wide::four(Wide::two(s[4], s[5]), Wide::two(s[6], s[7])));
    memcpy(totals + i, &eight, sizeof(eight));
  }
  for (int i = 0; i < kT; ++i) {
    T* out = p.out + (t + i) * p.num_outs + f;
    for (int j = 0; j < kF; ++j) {
      const float total = totals[i * kF + j];
      out[j] = from_float<T>(p.bias == nullptr ? total : total + to_float(p.bias[f + j]));
    }
  }
}

template <class Wide, int kT, int kF, class T>
EAGLE_INLINE void tiles(const Product<T>& p, int64_t t, int64_t begin, int64_t end) {
  int64_t f = begin;
  for (; f + kF <= end; f += kF) tile<Wide, kT, kF>(p, t, f);
  for (; f < end; ++f) tile<Wide, kT, 1>(p, t, f);
}

// All rows of x with rows begin .. end - 1 of the weight. What a tile holds fits the registers: 32 where a vector is of
// 16, else 16.
template <class Wide, class T>
EAGLE_INLINE void slice(const Product<T>& p, int64_t begin, int64_t end) {
  int64_t t = 0;
  if constexpr (Wide::kLanes == 16) {
    for (; t + 8 <= p.num_rows; t += 8) tiles<Wide, 8, 3>(p, t, begin, end);
    for (; t + 4 <= p.num_rows; t += 4) tiles<Wide, 4, 4>(p, t, begin, end);
    for (; t + 2 <= p.num_rows; t += 2) tiles<Wide, 2, 8>(p, t, begin, end);
  } else {
    for (; t + 4 <= p.num_rows; t += 4) tiles<Wide, 4, 2>(p, t, begin, end);
    for (; t + 2 <= p.num_rows; t += 2) tiles<Wide, 2, 4>(p, t, begin, end);
  }
  for (; t < p.num_rows; ++t) tiles<Wide, 1, 8>(p, t, begin, end);
}

template <class T>
struct Slice {
  int lanes;
  void (*run)(const Product<T>&, int64_t begin, int64_t end);
};

template <class T>
void slice_plain(const Product<T>& p, int64_t begin, int64_t end) {
  slice<Wide8>(p, begin, end);
}

#if defined(__x86_64__) && defined(__GNUC__)
template <class T>
__attribute__((target("avx2,fma"))) void slice_avx2(const Product<T>& p, int64_t begin, int64_t end) {
  slice<Wide8>(p, begin, end);
}
template <class T>
__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl"))) void slice_avx512(const Product<T>& p, int64_t begin,
                                                                                int64_t end) {
  slice<Wide16>(p, begin, end);
}
template <class T>
Slice<T> choose_slice(const std::string& simd) {
  const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  check(has_avx2 || simd != "avx2", "few_rows: simd is 'avx2', which this CPU has not; needs '' or 'none'.");
  if (simd.empty() && has_avx512) return {16, slice_avx512<T>};
  return {8, has_avx2 && simd != "none" ? slice_avx2<T> : slice_plain<T>};
}
#else
template <class T>
Slice<T> choose_slice(const std::string& simd) {
  check(simd != "avx2", "few_rows: simd is 'avx2', which this CPU has not; needs '' or 'none'.");
  return {8, slice_plain<T>};
}
#endif

template <class T>
void run(const TensorView& x, const TensorView& weight, const TensorView& bias, const TensorView& out, int num_threads,
         const std::string& simd) {
  const Slice<T> way = choose_slice<T>(simd);
  Product<T> p;
  p.num_rows = x.shape[0], p.width = x.shape[1], p.num_outs = weight.shape[0];
  p.length = (p.width + way.lanes - 1) / way.lanes * way.lanes;
  p.weight = static_cast<const T*>(weight.data);
  p.bias = bias.num_elements() > 0 ? static_cast<const T*>(bias.data) : nullptr;
  p.out = static_cast<T*>(out.data);
  const T* from = static_cast<const T*>(x.data);
  std::vector<float> padded;
  if constexpr (std::is_same_v<T, float>) p.x = from;
  if (!std::is_same_v<T, float> || p.length != p.width) {
    padded.assign(p.num_rows * p.length, 0.0f);
    for (int64_t t = 0; t < p.num_rows; ++t) {
      std::transform(from + t * p.width, from + (t + 1) * p.width, padded.data() + t * p.length,
                     [](T number) { return to_float(number); });
    }
    p.x = padded.data();
  }
  const int64_t worth = p.num_rows * p.width * p.num_outs / kThreadProducts;
  const int threads = static_cast<int>(std::clamp<int64_t>(worth, 1, num_threads));
  parallel_for((p.num_outs + kSliceRows - 1) / kSliceRows, threads, [&] {
    return [&](int64_t i) { way.run(p, i * kSliceRows, std::min((i + 1) * kSliceRows, p.num_outs)); };
  });
}

}  // namespace

void few_rows_cpu(const TensorView& x, const TensorView& weight, const TensorView& bias, const TensorView& out,
                  int num_threads, const std::string& simd) {
  check(x.dtype == DType::kBfloat16 || x.dtype == DType::kFloat32, "few_rows: x is ", dtype_name(x.dtype),
        "; needs bfloat16 or float32.");
  check(weight.dtype == x.dtype && bias.dtype == x.dtype && out.dtype == x.dtype,
        "few_rows: x, weight, bias and out are ", dtype_name(x.dtype), ", ", dtype_name(weight.dtype), ", ",
        dtype_name(bias.dtype), " and ", dtype_name(out.dtype), "; needs one dtype.");
  const auto is_whole = [](const TensorView& t) { return t.num_elements() == 0 || t.is_contiguous(); };
  check(x.num_dims == 2 && is_whole(x) && x.shape[0] <= kFewRows, "few_rows: x needs at most ", kFewRows,
        " contiguous rows.");
  const int64_t num_outs = weight.shape[0];
  check(weight.num_dims == 2 && is_whole(weight) && weight.shape[1] == x.shape[1],
        "few_rows: weight needs contiguous rows of x's width, ", x.shape[1], ".");
  check(bias.num_dims == 1 && bias.is_contiguous() && (bias.shape[0] == 0 || bias.shape[0] == num_outs),
        "few_rows: bias needs no numbers, or one for each of the weight's ", num_outs, " rows.");
  check(out.num_dims == 2 && is_whole(out) && out.shape[0] == x.shape[0] && out.shape[1] == num_outs,
        "few_rows: out needs the shape (", x.shape[0], ", ", num_outs, "), contiguous.");
  check(num_threads >= 1, "few_rows: num_threads is ", num_threads, "; needs at least 1.");
  check(simd.empty() || simd == "avx2" || simd == "none", "few_rows: simd is '", simd,
        "'; needs '', 'avx2' or 'none'.");
  if (out.num_elements() == 0) return;
  with_type<Bfloat16, float>(x.dtype, [&]<class T>() { run<T>(x, weight, bias, out, num_threads, simd); });
}

}  // namespace eagle
