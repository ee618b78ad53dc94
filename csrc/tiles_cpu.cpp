#include "tiles_cpu.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define EAGLE_X86
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own header: gcc.gnu.org/PR105593
#include <immintrin.h>
#pragma GCC diagnostic pop
#define EAGLE_AVX2 __attribute__((target("avx2")))
#define EAGLE_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#endif

namespace eagle {
namespace {

// ---- portable ------------------------------------------------------------------------------------------------------

void encode_portable(const int32_t* weights, int32_t* words) { std::copy_n(weights, kQuad, words); }

void mix_portable(const uint8_t* const* rows, int64_t num_pixels, uint8_t* mixed) {
  for (int64_t x = 0; x < num_pixels; ++x) {
    uint8_t* to = mixed + x / kQuad * kQuadBytes + x % kQuad;
    for (int c = 0; c < 3; ++c) {
      for (int r = 0; r < kQuad; ++r) to[c * 16 + r * 4] = rows[r][x * 3 + c];
    }
  }
}

void mix_rows_portable(const uint8_t* const* rows, int64_t num_samples, uint8_t* mixed) {
  for (int64_t x = 0; x < num_samples; ++x) {
    uint8_t* to = mixed + x / kQuad * kQuadBytes + x % kQuad;
    for (int r = 0; r < kLanes * kQuad; ++r) to[r * 4] = rows[r][x];
  }
}

// The end of a pass: a pixel, or a value of a wide plane.
inline void round_to(int32_t sum, uint8_t* to) { *to = round_to_pixel(sum); }
inline void round_to(int32_t sum, int16_t* to) { *to = round_to_plane(sum); }

template <class T>
constexpr int kShift = std::is_same_v<T, uint8_t> ? kWeightBits : kPlaneShift;

template <class T>
void across_lanes_portable(const uint8_t* mixed, const QuadTaps& taps, int64_t begin, int64_t end, T* const* planes,
                           int num_lanes) {
  for (int64_t x = begin; x < end; ++x) {
    const uint8_t* from = mixed + (taps.first_quad[x] - taps.first_quad[begin]) * kQuadBytes;
    const int32_t* words = taps.of(x);
    for (int c = 0; c < num_lanes; ++c) {
      for (int r = 0; r < kQuad; ++r) {
        int32_t sum = 1 << (kShift<T> - 1);
        for (int q = 0; q < taps.num_quads[x]; ++q) {
          for (int k = 0; k < kQuad; ++k) sum += from[q * kQuadBytes + c * 16 + r * 4 + k] * words[q * kQuad + k];
        }
        round_to(sum, &planes[c][(x - begin) * kQuad + r]);
      }
    }
  }
}

void across_wide_portable(const uint8_t* mixed, const QuadTaps& taps, int64_t begin, int64_t end,
                          int16_t* const* planes) {
  across_lanes_portable(mixed, taps, begin, end, planes, kLanes);
}

template <class T>
void down_portable(const uint8_t* const* quads, const int32_t* words, int num_quads, int64_t num_values, T* line) {
  for (int64_t begin = 0; begin < num_values; begin += kBlock) {
    int32_t sums[kBlock];
    std::fill(sums, sums + kBlock, 1 << (kShift<T> - 1));
    for (int q = 0; q < num_quads; ++q) {
      const uint8_t* from = quads[q] + begin * kQuad;
      const int32_t* w = words + q * kQuad;
      for (int i = 0; i < kBlock; ++i, from += kQuad) {
        sums[i] += from[0] * w[0] + from[1] * w[1] + from[2] * w[2] + from[3] * w[3];
      }
    }
    for (int i = 0; i < kBlock; ++i) round_to(sums[i], &line[begin + i]);
  }
}

void to_rgb_portable(const int16_t* y, const int16_t* u, const int16_t* v, const Colours& colours, int64_t num_values,
                     uint8_t* line) {
  for (int64_t i = 0; i < num_values; ++i) {
    uint8_t rgb[3];
    to_rgb(y[i], u[i], v[i], colours, rgb);
    for (int c = 0; c < 3; ++c) line[c * num_values + i] = rgb[c];
  }
}

void look_up_portable(const uint8_t* line, const Bfloat16* table, int64_t num_values, Bfloat16* out) {
  for (int64_t i = 0; i < num_values; ++i) out[i] = table[line[i]];
}

constexpr InnerLoops kPortable{kQuad,
                               encode_portable,
                               mix_portable,
                               mix_rows_portable,
                               across_lanes_portable<uint8_t>,
                               across_wide_portable,
                               down_portable<uint8_t>,
                               down_portable<int16_t>,
                               to_rgb_portable,
                               look_up_portable};

#ifdef EAGLE_X86

// A shuffle of 16 bytes: four RGB pixels (and four bytes that are not used) -> RRRR GGGG BBBB.
#define EAGLE_SPLIT_RGB 0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, 12, 13, 14, 15

inline __m128i load_16(const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); }
inline void store_16(void* to, __m128i value) { _mm_storeu_si128(static_cast<__m128i*>(to), value); }

// A pixel more is read than a quad has, so the last quads of a row are not for vectors.
int64_t num_vector_quads(int64_t num_pixels) { return std::max<int64_t>(0, (num_pixels * 3 - 4) / 12); }

void mix_tail(const uint8_t* const* rows, int64_t num_pixels, int64_t quad, uint8_t* mixed) {
  const uint8_t* tails[kQuad];
  for (int r = 0; r < kQuad; ++r) tails[r] = rows[r] + quad * 12;
  mix_portable(tails, num_pixels - quad * kQuad, mixed + quad * kQuadBytes);
}

// As mix_tail, for single samples.
void mix_rows_tail(const uint8_t* const* rows, int64_t num_samples, int64_t begin, uint8_t* mixed) {
  const uint8_t* tails[kLanes * kQuad];
  for (int r = 0; r < kLanes * kQuad; ++r) tails[r] = rows[r] + begin;
  mix_rows_portable(tails, num_samples - begin, mixed + begin / kQuad * kQuadBytes);
}

// Two neighbouring numbers of 16 bits, as the instructions that multiply and add pairs read them.
int32_t pair(int32_t first, int32_t second) {
  return static_cast<int32_t>((static_cast<uint32_t>(second) << 16) | (static_cast<uint32_t>(first) & 0xffffu));
}

// ---- AVX2: pairs of 16 bits, so a weight is two numbers of 12 bits, w = 4096 * high + low
// ----------------------------

void encode_avx2(const int32_t* weights, int32_t* words) {
  for (int odd = 0; odd < 2; ++odd) {  // the even bytes of a quad are multiplied together, then the odd ones
    words[odd] = pair(weights[odd] & 4095, weights[odd + 2] & 4095);
    words[odd + 2] = pair(weights[odd] >> 12, weights[odd + 2] >> 12);
  }
}

struct SumsAvx2 {
  __m256i low, high;
};

EAGLE_AVX2 inline void add_avx2(SumsAvx2& sums, __m256i quads, const __m256i* weights) {
  const __m256i even = _mm256_and_si256(quads, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(quads, 8);
  const __m256i low = _mm256_add_epi32(_mm256_madd_epi16(even, weights[0]), _mm256_madd_epi16(odd, weights[1]));
  const __m256i high = _mm256_add_epi32(_mm256_madd_epi16(even, weights[2]), _mm256_madd_epi16(odd, weights[3]));
  sums.low = _mm256_add_epi32(sums.low, low);
  sums.high = _mm256_add_epi32(sums.high, high);
}

// What is left of round_to_pixel after this is clipping, which the packs do.
template <int kShift>
EAGLE_AVX2 inline __m256i rounded_avx2(const SumsAvx2& sums) {
  const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(sums.high, 12), sums.low);
  return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(1 << (kShift - 1))), kShift);
}

EAGLE_AVX2 inline __m256i pack_avx2(const __m256i* sums) {
  return _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]), _mm256_packs_epi32(sums[2], sums[3]));
}

EAGLE_AVX2 void mix_avx2(const uint8_t* const* rows, int64_t num_pixels, uint8_t* mixed) {
  const __m128i split = _mm_setr_epi8(EAGLE_SPLIT_RGB);
  const int64_t num_quads = num_vector_quads(num_pixels);
  for (int64_t q = 0; q < num_quads; ++q) {
    __m128i row[kQuad];
    for (int r = 0; r < kQuad; ++r) row[r] = _mm_shuffle_epi8(load_16(rows[r] + q * 12), split);
    const __m128i rg_01 = _mm_unpacklo_epi32(row[0], row[1]), rg_23 = _mm_unpacklo_epi32(row[2], row[3]);
    const __m128i b_01 = _mm_unpackhi_epi32(row[0], row[1]), b_23 = _mm_unpackhi_epi32(row[2], row[3]);
    store_16(mixed + q * kQuadBytes, _mm_unpacklo_epi64(rg_01, rg_23));
    store_16(mixed + q * kQuadBytes + 16, _mm_unpackhi_epi64(rg_01, rg_23));
    store_16(mixed + q * kQuadBytes + 32, _mm_unpacklo_epi64(b_01, b_23));
  }
  mix_tail(rows, num_pixels, num_quads, mixed);
}

EAGLE_AVX2 void mix_rows_avx2(const uint8_t* const* rows, int64_t num_samples, uint8_t* mixed) {
  int64_t x = 0;
  for (; x + 16 <= num_samples; x += 16) {
    for (int lane = 0; lane < kLanes; ++lane) {
      __m128i row[kQuad];
      for (int r = 0; r < kQuad; ++r) row[r] = load_16(rows[lane * kQuad + r] + x);
      const __m128i first_01 = _mm_unpacklo_epi32(row[0], row[1]), first_23 = _mm_unpacklo_epi32(row[2], row[3]);
      const __m128i last_01 = _mm_unpackhi_epi32(row[0], row[1]), last_23 = _mm_unpackhi_epi32(row[2], row[3]);
      uint8_t* to = mixed + x / kQuad * kQuadBytes + lane * 16;
      store_16(to, _mm_unpacklo_epi64(first_01, first_23));
      store_16(to + kQuadBytes, _mm_unpackhi_epi64(first_01, first_23));
      store_16(to + 2 * kQuadBytes, _mm_unpacklo_epi64(last_01, last_23));
      store_16(to + 3 * kQuadBytes, _mm_unpackhi_epi64(last_01, last_23));
    }
  }
  mix_rows_tail(rows, num_samples, x, mixed);
}

template <class T>
EAGLE_AVX2 void across_lanes_avx2(const uint8_t* mixed, const QuadTaps& taps, int64_t begin, int64_t end,
                                  T* const* planes, int num_lanes) {
  const int num_quads = taps.max_quads;  // one count for all: the branch that ends the loop is then foreseen
  for (int64_t x = begin; x < end; x += kQuad) {
    __m256i lanes_01[kQuad], lanes_23[kQuad];
    for (int j = 0; j < kQuad; ++j) {
      const int64_t i = std::min(x + j, end - 1);
      const uint8_t* from = mixed + (taps.first_quad[i] - taps.first_quad[begin]) * kQuadBytes;
      const int32_t* words = taps.of(i);
      SumsAvx2 sums_01{_mm256_setzero_si256(), _mm256_setzero_si256()}, sums_23 = sums_01;
      for (int q = 0; q < num_quads; ++q, from += kQuadBytes, words += 4) {
        const __m256i weights[] = {_mm256_set1_epi32(words[0]), _mm256_set1_epi32(words[1]),
                                   _mm256_set1_epi32(words[2]), _mm256_set1_epi32(words[3])};
        add_avx2(sums_01, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), weights);
        add_avx2(sums_23, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32)), weights);
      }
      lanes_01[j] = rounded_avx2<kShift<T>>(sums_01);
      lanes_23[j] = rounded_avx2<kShift<T>>(sums_23);
    }
    const int64_t at = (x - begin) * kQuad;
    if constexpr (std::is_same_v<T, uint8_t>) {
      const __m256i bytes_01 = pack_avx2(lanes_01), bytes_23 = pack_avx2(lanes_23);
      store_16(planes[0] + at, _mm256_castsi256_si128(bytes_01));
      store_16(planes[1] + at, _mm256_extracti128_si256(bytes_01, 1));
      store_16(planes[2] + at, _mm256_castsi256_si128(bytes_23));
      if (num_lanes == kLanes) store_16(planes[3] + at, _mm256_extracti128_si256(bytes_23, 1));
    } else {
      for (int half = 0; half < 2; ++half) {  // two pixels of each lane
        const __m256i words_01 = _mm256_packs_epi32(lanes_01[half * 2], lanes_01[half * 2 + 1]);
        const __m256i words_23 = _mm256_packs_epi32(lanes_23[half * 2], lanes_23[half * 2 + 1]);
        store_16(planes[0] + at + half * 8, _mm256_castsi256_si128(words_01));
        store_16(planes[1] + at + half * 8, _mm256_extracti128_si256(words_01, 1));
        store_16(planes[2] + at + half * 8, _mm256_castsi256_si128(words_23));
        store_16(planes[3] + at + half * 8, _mm256_extracti128_si256(words_23, 1));
      }
    }
  }
}

void across_wide_avx2(const uint8_t* mixed, const QuadTaps& taps, int64_t begin, int64_t end, int16_t* const* planes) {
  across_lanes_avx2(mixed, taps, begin, end, planes, kLanes);
}

template <class T>
EAGLE_AVX2 void down_avx2(const uint8_t* const* quads, const int32_t* words, int num_quads, int64_t num_values,
                          T* line) {
  for (int64_t i = 0; i < num_values; i += 32) {
    SumsAvx2 sums[4];
    for (SumsAvx2& s : sums) s = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int q = 0; q < num_quads; ++q) {
      const int32_t* w = words + q * 4;
      const __m256i weights[] = {_mm256_set1_epi32(w[0]), _mm256_set1_epi32(w[1]), _mm256_set1_epi32(w[2]),
                                 _mm256_set1_epi32(w[3])};
      const __m256i* from = reinterpret_cast<const __m256i*>(quads[q] + i * kQuad);
      for (int j = 0; j < 4; ++j) add_avx2(sums[j], _mm256_loadu_si256(from + j), weights);
    }
    __m256i values[4];
    for (int j = 0; j < 4; ++j) values[j] = rounded_avx2<kShift<T>>(sums[j]);
    // The packs work in halves of 128 bits; the permutations put their results in order again.
    __m256i* to = reinterpret_cast<__m256i*>(line + i);
    if constexpr (std::is_same_v<T, uint8_t>) {
      const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
      _mm256_storeu_si256(to, _mm256_permutevar8x32_epi32(pack_avx2(values), order));
    } else {
      for (int j = 0; j < 2; ++j) {
        const __m256i packed = _mm256_packs_epi32(values[2 * j], values[2 * j + 1]);
        _mm256_storeu_si256(to + j, _mm256_permute4x64_epi64(packed, 0xd8));
      }
    }
  }
}

// One colour of 16 pixels, in 16 bits: the sums of two products of each pair, and of two more where `more` is given.
EAGLE_AVX2 inline __m256i colour_avx2(const __m256i* pairs, int32_t weights, const __m256i* more, int32_t more_weights,
                                      int32_t bias) {
  __m256i half[2];
  for (int h = 0; h < 2; ++h) {
    __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(pairs[h], _mm256_set1_epi32(weights)), _mm256_set1_epi32(bias));
    if (more != nullptr) sum = _mm256_add_epi32(sum, _mm256_madd_epi16(more[h], _mm256_set1_epi32(more_weights)));
    half[h] = _mm256_srai_epi32(sum, kColourShift);
  }
  return _mm256_packs_epi32(half[0], half[1]);
}

EAGLE_AVX2 void to_rgb_avx2(const int16_t* y, const int16_t* u, const int16_t* v, const Colours& colours,
                            int64_t num_values, uint8_t* line) {
  const Colours& m = colours;
  for (int64_t i = 0; i < num_values; i += 32) {
    __m256i red[2], green[2], blue[2];
    for (int j = 0; j < 2; ++j) {
      const auto load = [&](const int16_t* from) EAGLE_AVX2 {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i + j * 16));
      };
      const __m256i ys = load(y), us = load(u), vs = load(v);
      const __m256i yu[] = {_mm256_unpacklo_epi16(ys, us), _mm256_unpackhi_epi16(ys, us)};
      const __m256i yv[] = {_mm256_unpacklo_epi16(ys, vs), _mm256_unpackhi_epi16(ys, vs)};
      red[j] = colour_avx2(yv, pair(m.y, m.v_to_red), nullptr, 0, m.bias[0]);
      green[j] = colour_avx2(yv, pair(m.y, m.v_to_green), yu, pair(0, m.u_to_green), m.bias[1]);
      blue[j] = colour_avx2(yu, pair(m.y, m.u_to_blue), nullptr, 0, m.bias[2]);
    }
    const auto store = [&](int c, const __m256i* values) EAGLE_AVX2 {
      const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(values[0], values[1]), 0xd8);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(line + c * num_values + i), bytes);
    };
    store(0, red);
    store(1, green);
    store(2, blue);
  }
}

constexpr InnerLoops kAvx2{4,
                           encode_avx2,
                           mix_avx2,
                           mix_rows_avx2,
                           across_lanes_avx2<uint8_t>,
                           across_wide_avx2,
                           down_avx2<uint8_t>,
                           down_avx2<int16_t>,
                           to_rgb_avx2,
                           look_up_portable};

// ---- AVX-512 with VNNI: quads of 8 bits, so a weight is three signed digits, w = 65536 * d2 + 256 * d1 + d0
// -----------

void encode_avx512(const int32_t* weights, int32_t* words) {
  for (int digit = 0; digit < 3; ++digit) words[digit] = 0;
  for (int k = 0; k < kQuad; ++k) {
    int32_t rest = weights[k];  // |weight| < 2**23, which kWeightBits guarantees
    for (int digit = 0; digit < 3; ++digit) {
      const int8_t d = static_cast<int8_t>(rest & 255);
      words[digit] |= static_cast<int32_t>(static_cast<uint32_t>(static_cast<uint8_t>(d)) << (8 * k));
      rest = (rest - d) >> 8;
    }
  }
}

struct SumsAvx512 {
  __m512i digit[3];
};

EAGLE_AVX512 inline SumsAvx512 zero_avx512() {
  return {{_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()}};
}

template <int kShift>
EAGLE_AVX512 inline __m512i rounded_avx512(const SumsAvx512& sums) {
  __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(sums.digit[2], 8), sums.digit[1]);
  sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8), sums.digit[0]);
  return _mm512_srai_epi32(_mm512_add_epi32(sum, _mm512_set1_epi32(1 << (kShift - 1))), kShift);
}

EAGLE_AVX512 inline __m512i pack_avx512(const __m512i* sums) {
  return _mm512_packus_epi16(_mm512_packs_epi32(sums[0], sums[1]), _mm512_packs_epi32(sums[2], sums[3]));
}

EAGLE_AVX512 void mix_avx512(const uint8_t* const* rows, int64_t num_pixels, uint8_t* mixed) {
  const __m512i split = _mm512_broadcast_i32x4(_mm_setr_epi8(EAGLE_SPLIT_RGB));
  const __m512i by_channel = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const int64_t num_quads = num_vector_quads(num_pixels);
  for (int64_t q = 0; q < num_quads; ++q) {
    __m512i pixels = _mm512_castsi128_si512(load_16(rows[0] + q * 12));
    pixels = _mm512_inserti32x4(pixels, load_16(rows[1] + q * 12), 1);
    pixels = _mm512_inserti32x4(pixels, load_16(rows[2] + q * 12), 2);
    pixels = _mm512_inserti32x4(pixels, load_16(rows[3] + q * 12), 3);
    const __m512i quads = _mm512_permutexvar_epi32(by_channel, _mm512_shuffle_epi8(pixels, split));
    _mm512_storeu_si512(mixed + q * kQuadBytes, quads);
  }
  mix_tail(rows, num_pixels, num_quads, mixed);
}

EAGLE_AVX512 void mix_rows_avx512(const uint8_t* const* rows, int64_t num_samples, uint8_t* mixed) {
  int64_t x = 0;
  for (; x + 16 <= num_samples; x += 16) {
    __m512i row[kQuad];  // each lane's own row r
    for (int r = 0; r < kQuad; ++r) {
      row[r] = _mm512_castsi128_si512(load_16(rows[r] + x));
      row[r] = _mm512_inserti32x4(row[r], load_16(rows[kQuad + r] + x), 1);
      row[r] = _mm512_inserti32x4(row[r], load_16(rows[2 * kQuad + r] + x), 2);
      row[r] = _mm512_inserti32x4(row[r], load_16(rows[3 * kQuad + r] + x), 3);
    }
    const __m512i first_01 = _mm512_unpacklo_epi32(row[0], row[1]), first_23 = _mm512_unpacklo_epi32(row[2], row[3]);
    const __m512i last_01 = _mm512_unpackhi_epi32(row[0], row[1]), last_23 = _mm512_unpackhi_epi32(row[2], row[3]);
    uint8_t* to = mixed + x / kQuad * kQuadBytes;
    _mm512_storeu_si512(to, _mm512_unpacklo_epi64(first_01, first_23));
    _mm512_storeu_si512(to + kQuadBytes, _mm512_unpackhi_epi64(first_01, first_23));
    _mm512_storeu_si512(to + 2 * kQuadBytes, _mm512_unpacklo_epi64(last_01, last_23));
    _mm512_storeu_si512(to + 3 * kQuadBytes, _mm512_unpackhi_epi64(last_01, last_23));
  }
  mix_rows_tail(rows, num_samples, x, mixed);
}

template <int kNumQuads, class T>  // 0: any number
EAGLE_AVX512 void across_quads_avx512(const uint8_t* mixed, const QuadTaps& taps, int64_t begin, int64_t end,
                                      T* const* planes, int num_lanes) {
  const int num_quads = kNumQuads != 0 ? kNumQuads : taps.max_quads;
  for (int64_t x = begin; x < end; x += kQuad) {
    __m512i values[kQuad];
    for (int j = 0; j < kQuad; ++j) {
      const int64_t i = std::min(x + j, end - 1);
      const uint8_t* from = mixed + (taps.first_quad[i] - taps.first_quad[begin]) * kQuadBytes;
      const int32_t* words = taps.words.data() + i * num_quads * 3;
      SumsAvx512 sums = zero_avx512();
      for (int q = 0; q < num_quads; ++q, from += kQuadBytes, words += 3) {
        const __m512i pixels = _mm512_loadu_si512(from);
        for (int d = 0; d < 3; ++d) {
          sums.digit[d] = _mm512_dpbusd_epi32(sums.digit[d], pixels, _mm512_set1_epi32(words[d]));
        }
      }
      values[j] = rounded_avx512<kShift<T>>(sums);
    }
    // A lane is one part of 128 bits, and the packs work within those: the values come out as planes want them.
    const int64_t at = (x - begin) * kQuad;
    const auto store = [&](int64_t offset, __m512i lanes) EAGLE_AVX512 {
      store_16(planes[0] + at + offset, _mm512_castsi512_si128(lanes));
      store_16(planes[1] + at + offset, _mm512_extracti32x4_epi32(lanes, 1));
      store_16(planes[2] + at + offset, _mm512_extracti32x4_epi32(lanes, 2));
      if (num_lanes == kLanes) store_16(planes[3] + at + offset, _mm512_extracti32x4_epi32(lanes, 3));
    };
    if constexpr (std::is_same_v<T, uint8_t>) {
      store(0, pack_avx512(values));
    } else {  // two pixels of each lane at once
      store(0, _mm512_packs_epi32(values[0], values[1]));
      store(8, _mm512_packs_epi32(values[2], values[3]));
    }
  }
}

template <class T>
void across_lanes_avx512(const uint8_t* mixed, const QuadTaps& taps, int64_t begin, int64_t end, T* const* planes,
                         int num_lanes) {
  const auto run = taps.max_quads == 2   ? across_quads_avx512<2, T>
                   : taps.max_quads == 3 ? across_quads_avx512<3, T>
                                         : across_quads_avx512<0, T>;
  run(mixed, taps, begin, end, planes, num_lanes);
}

void across_wide_avx512(const uint8_t* mixed, const QuadTaps& taps, int64_t begin, int64_t end,
                        int16_t* const* planes) {
  across_lanes_avx512(mixed, taps, begin, end, planes, kLanes);
}

template <class T>
EAGLE_AVX512 void down_avx512(const uint8_t* const* quads, const int32_t* words, int num_quads, int64_t num_values,
                              T* line) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  for (int64_t i = 0; i < num_values; i += kBlock) {
    SumsAvx512 sums[4];
    for (SumsAvx512& s : sums) s = zero_avx512();
    for (int q = 0; q < num_quads; ++q) {
      const uint8_t* from = quads[q] + i * kQuad;
      for (int d = 0; d < 3; ++d) {
        const __m512i weights = _mm512_set1_epi32(words[q * 3 + d]);
        for (int j = 0; j < 4; ++j) {
          sums[j].digit[d] = _mm512_dpbusd_epi32(sums[j].digit[d], _mm512_loadu_si512(from + j * 64), weights);
        }
      }
    }
    __m512i values[4];
    for (int j = 0; j < 4; ++j) values[j] = rounded_avx512<kShift<T>>(sums[j]);
    if constexpr (std::is_same_v<T, uint8_t>) {
      _mm512_storeu_si512(line + i, _mm512_permutexvar_epi32(order, pack_avx512(values)));
    } else {
      for (int j = 0; j < 4; ++j) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(line + i + j * 16), _mm512_cvtepi32_epi16(values[j]));
      }
    }
  }
}

// As colour_avx2, for 32 pixels, and stored.
EAGLE_AVX512 inline void colour_avx512(const __m512i* pairs, int32_t weights, const __m512i* more, int32_t more_weights,
                                       int32_t bias, uint8_t* to) {
  __m512i half[2];
  for (int h = 0; h < 2; ++h) {
    __m512i sum = _mm512_dpwssd_epi32(_mm512_set1_epi32(bias), pairs[h], _mm512_set1_epi32(weights));
    if (more != nullptr) sum = _mm512_dpwssd_epi32(sum, more[h], _mm512_set1_epi32(more_weights));
    half[h] = _mm512_srai_epi32(sum, kColourShift);
  }
  const __m512i values = _mm512_max_epi16(_mm512_packs_epi32(half[0], half[1]), _mm512_setzero_si512());
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtusepi16_epi8(values));
}

EAGLE_AVX512 void to_rgb_avx512(const int16_t* y, const int16_t* u, const int16_t* v, const Colours& colours,
                                int64_t num_values, uint8_t* line) {
  const Colours& m = colours;
  for (int64_t i = 0; i < num_values; i += 32) {
    const __m512i ys = _mm512_loadu_si512(y + i), us = _mm512_loadu_si512(u + i), vs = _mm512_loadu_si512(v + i);
    const __m512i yu[] = {_mm512_unpacklo_epi16(ys, us), _mm512_unpackhi_epi16(ys, us)};
    const __m512i yv[] = {_mm512_unpacklo_epi16(ys, vs), _mm512_unpackhi_epi16(ys, vs)};
    uint8_t* to = line + i;
    colour_avx512(yv, pair(m.y, m.v_to_red), nullptr, 0, m.bias[0], to);
    colour_avx512(yv, pair(m.y, m.v_to_green), yu, pair(0, m.u_to_green), m.bias[1], to + num_values);
    colour_avx512(yu, pair(m.y, m.u_to_blue), nullptr, 0, m.bias[2], to + 2 * num_values);
  }
}

// The whole table in eight registers; one instruction looks 32 values up in a quarter of it.
EAGLE_AVX512 void look_up_avx512(const uint8_t* line, const Bfloat16* table, int64_t num_values, Bfloat16* out) {
  __m512i part[8];
  for (int k = 0; k < 8; ++k) part[k] = _mm512_loadu_si512(table + k * 32);
  for (int64_t i = 0; i < num_values; i += 32) {
    const __m512i at = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(line + i)));
    const __mmask32 second = _mm512_test_epi16_mask(at, _mm512_set1_epi16(64));
    const __mmask32 upper = _mm512_test_epi16_mask(at, _mm512_set1_epi16(128));
    __m512i quarter[4];
    for (int k = 0; k < 4; ++k) quarter[k] = _mm512_permutex2var_epi16(part[2 * k], at, part[2 * k + 1]);
    const __m512i low = _mm512_mask_blend_epi16(second, quarter[0], quarter[1]);
    const __m512i high = _mm512_mask_blend_epi16(second, quarter[2], quarter[3]);
    _mm512_storeu_si512(out + i, _mm512_mask_blend_epi16(upper, low, high));
  }
}

constexpr InnerLoops kAvx512{3,
                             encode_avx512,
                             mix_avx512,
                             mix_rows_avx512,
                             across_lanes_avx512<uint8_t>,
                             across_wide_avx512,
                             down_avx512<uint8_t>,
                             down_avx512<int16_t>,
                             to_rgb_avx512,
                             look_up_avx512};

#endif

}  // namespace

const char* simd() {
#ifdef EAGLE_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni")) {
    return "avx512";
  }
  if (__builtin_cpu_supports("avx2")) return "avx2";
#endif
  return "";
}

const InnerLoops& inner_loops(const std::string& op, const std::string& simd) {
  check(simd.empty() || simd == "avx2" || simd == "avx512", op, ": simd is '", simd,
        "'; needs 'avx512', 'avx2' or ''.");
#ifdef EAGLE_X86
  const std::string widest = eagle::simd();
  check(simd.empty() || simd == widest || widest == "avx512", op, ": simd is '", simd, "'; this CPU has at most '",
        widest, "'.");
  if (simd == "avx512") return kAvx512;
  if (simd == "avx2") return kAvx2;
#else
  check(simd.empty(), op, ": simd is '", simd, "', and this build has none; needs ''.");
#endif
  return kPortable;
}

}  // namespace eagle
