// Numbers side by side, as GCC's and Clang's vectors: 8 on every CPU, 16 where there is AVX-512. Functions that use
// them are compiled once for each kind of CPU (__attribute__((target))), so all here is inlined into them.
#pragma once

#include <cstdint>
#include <cstring>

#include "number_types.h"

#define EAGLE_INLINE inline __attribute__((always_inline))
// Numbers of a, and of b after them, by their places.
#if defined(__clang__)
#define EAGLE_PICK(a, b, words, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define EAGLE_PICK(a, b, words, ...) __builtin_shuffle(a, b, words{__VA_ARGS__})
#endif

namespace eagle {

using Floats8 = float __attribute__((vector_size(32)));
using Floats16 = float __attribute__((vector_size(64)));

template <class Floats>
struct VectorOf;
template <>
struct VectorOf<Floats8> {
  using Words = uint32_t __attribute__((vector_size(32)));
  using Halves = uint16_t __attribute__((vector_size(16)));
};
template <>
struct VectorOf<Floats16> {
  using Words = uint32_t __attribute__((vector_size(64)));
  using Halves = uint16_t __attribute__((vector_size(32)));
};
template <class Floats>
constexpr int kLanesOf = sizeof(Floats) / sizeof(float);

// The same bits as another type, or the first of them.
template <class To, class From>
EAGLE_INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) <= sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <class Floats>
EAGLE_INLINE Floats load_floats(const float* from) {
  Floats floats;
  memcpy(&floats, from, sizeof(floats));
  return floats;
}
template <class Floats>
EAGLE_INLINE Floats load_floats(const Bfloat16* from) {
  typename VectorOf<Floats>::Halves halves;
  memcpy(&halves, from, sizeof(halves));
  return bits_as<Floats>(__builtin_convertvector(halves, typename VectorOf<Floats>::Words) << 16);
}
template <class Floats>
EAGLE_INLINE void store_floats(float* to, Floats floats) {
  memcpy(to, &floats, sizeof(floats));
}

#if defined(__x86_64__) && defined(__GNUC__)
template <class Work>
__attribute__((target("avx2"))) void with_avx2(const Work& work) {
  work.template operator()<Floats8>();
}
template <class Work>
__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl"))) void with_avx512(const Work& work) {
  work.template operator()<Floats16>();
}
// Calls work.template operator()<Floats>(), which is inlined, in code for this CPU; `simd` = false: for any CPU.
template <class Work>
void with_lanes(bool simd, const Work& work) {
  if (simd && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    return with_avx512(work);
  }
  if (simd && __builtin_cpu_supports("avx2")) return with_avx2(work);
  work.template operator()<Floats8>();
}
#else
template <class Work>
void with_lanes(bool, const Work& work) {
  work.template operator()<Floats8>();
}
#endif

// 2**x, to 2 ulp; 0 below 2**-126, infinity from 2**128 on, NaN of NaN. The same bits in any number of lanes, where the
// compiler may not contract.
template <class Floats>
EAGLE_INLINE Floats exp2_of(Floats x) {
  using Words = typename VectorOf<Floats>::Words;
  constexpr float kWhole = 12582912.0f;  // 1.5 * 2**23: a sum with it is rounded to a whole number
  const Floats sum = x + kWhole, r = x - (sum - kWhole);
  Floats p = 1.52527338e-5f * r + 1.54035304e-4f;  // the series of 2**r, |r| <= 1/2: what is left out is 5e-9
  p = p * r + 1.33335581e-3f;
  p = p * r + 9.61812911e-3f;
  p = p * r + 5.55041087e-2f;
  p = p * r + 2.40226507e-1f;
  p = p * r + 6.93147181e-1f;
  p = p * r + 1.0f;
  const Words scaled = bits_as<Words>(p) + (bits_as<Words>(sum) << 23);  // kWhole's bits are shifted out
  Floats result = bits_as<Floats>(scaled);
  result = x < -126.0f ? Floats{} : result;
  result = x >= 128.0f ? Floats{} + __builtin_inff() : result;
  return x != x ? x : result;
}

}  // namespace eagle
