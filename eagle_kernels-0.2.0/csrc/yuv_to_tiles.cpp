// The CPU code, in bands of a tile's rows (tiles_cpu.h). Luma and the two chroma planes are resized each on its own,
// with a ring of the rows that the next output row needs; three finished rows make one line of RGB.
//
// The horizontal pass takes 16 rows at once (of luma, or eight each of the chroma planes) and reads quads: four
// neighbouring pixels lie in four neighbouring bytes, which one instruction multiplies and adds. The vertical pass
// reads pairs: two rows of 16 bits, side by side. Quads and pairs start at multiples of their length, whatever the
// filter; the weights before and after a filter's own are zero.
//
//   mixed    [quad of pixels][16 rows][4 pixels]  what the horizontal pass reads
//   pairs    [values][2 rows] for each two rows   what it writes and the vertical pass reads
//   line     [R, G, B][plane_values]              one row of the tile
#include "yuv_to_tiles.h"

#include <algorithm>
#include <utility>

#include "tiles_cpu.h"

namespace eagle {
namespace {

constexpr int kQuad = 4;           // pixels
constexpr int kRows = 16;          // of samples that the horizontal pass takes at once, one or two planes'
constexpr int kPairs = kRows / 2;  // of rows, that it makes of them
constexpr int kQuadBytes = kRows * kQuad;
constexpr int kQuadWords = 2;  // the weights of a quad, encoded
constexpr int32_t kAcrossHalf = 1 << (kAcrossShift - 1), kDownHalf = 1 << (kDownShift - 1);

// The filters of one axis, in units of quads or pairs.
struct UnitTaps {
  std::vector<int32_t> first, count;  // units of each output pixel
  std::vector<int32_t> words;         // max_units * unit_words for each; zero beyond count
  int max_units = 0, unit_words;

  // encode(weights of a unit, words)
  template <class Encode>
  UnitTaps(const Axis& axis, int unit, int words_a_unit, Encode encode)
      : first(axis.out), count(axis.out), unit_words(words_a_unit) {
    const int most_units = (axis.max_taps() + 2 * (unit - 1)) / unit;
    std::vector<int32_t> weights((most_units + 1) * unit);
    words.resize(axis.out * int64_t{most_units} * unit_words);
    for (int64_t i = 0; i < axis.out; ++i) {
      int32_t first_pixel, num_pixels;
      std::fill(weights.begin(), weights.end(), 0);
      plane_taps(axis, i, &first_pixel, &num_pixels, weights.data());
      const int shift = first_pixel % unit;
      std::copy_backward(weights.data(), weights.data() + num_pixels, weights.data() + num_pixels + shift);
      std::fill_n(weights.data(), shift, 0);
      first[i] = first_pixel / unit;
      count[i] = (shift + num_pixels + unit - 1) / unit;
      max_units = std::max(max_units, count[i]);
      for (int u = 0; u < count[i]; ++u) encode(&weights[u * unit], &words[(i * most_units + u) * unit_words]);
    }
    for (int64_t i = 0; i < axis.out; ++i) {  // without the slack, for the cache's sake
      std::copy_n(&words[i * most_units * unit_words], max_units * unit_words, &words[i * max_units * unit_words]);
    }
    words.resize(axis.out * int64_t{max_units} * unit_words);
  }
  const int32_t* of(int64_t i) const { return words.data() + i * max_units * unit_words; }
};

// The inner loops for one kind of CPU; all give the same bits, since all sums are integers.
struct InnerLoops {
  // Four weights in the form that across takes.
  void (*encode)(const int32_t* weights, int32_t* words);
  // 16 rows of samples -> mixed. The last quad may be incomplete.
  void (*mix)(const uint8_t* const* rows, int64_t num_samples, uint8_t* mixed);
  // The horizontal pass for output pixels begin .. end - 1; `mixed` starts at the quad that begin's filter starts in.
  // Up to three values more are written to each of the kPairs outputs.
  void (*across)(const uint8_t* mixed, const UnitTaps& taps, int64_t begin, int64_t end, int16_t* const* pairs);
  // line[i] = sum over pairs and their two rows; num_values is a multiple of kBlock.
  void (*down)(const int16_t* const* pairs, const int32_t* words, int num_pairs, int64_t num_values, int16_t* line);
  // Rows of y, u and v -> line; num_values is a multiple of kBlock.
  void (*to_rgb)(const int16_t* y, const int16_t* u, const int16_t* v, const Colours& colours, int64_t num_values,
                 uint8_t* line);
};

// ---- portable ------------------------------------------------------------------------------------------------------

void encode_portable(const int32_t* weights, int32_t* words) {
  words[0] = word_pair(weights[0], weights[1]);
  words[1] = word_pair(weights[2], weights[3]);
}

int32_t low(int32_t words) { return static_cast<int16_t>(words & 0xffff); }
int32_t high(int32_t words) { return words >> 16; }

void mix_portable(const uint8_t* const* rows, int64_t num_samples, uint8_t* mixed) {
  for (int64_t x = 0; x < num_samples; ++x) {
    uint8_t* to = mixed + x / kQuad * kQuadBytes + x % kQuad;
    for (int r = 0; r < kRows; ++r) to[r * kQuad] = rows[r][x];
  }
}

void across_portable(const uint8_t* mixed, const UnitTaps& taps, int64_t begin, int64_t end, int16_t* const* pairs) {
  for (int64_t x = begin; x < end; ++x) {
    const uint8_t* from = mixed + (taps.first[x] - taps.first[begin]) * kQuadBytes;
    int32_t sums[kRows];
    std::fill(sums, sums + kRows, kAcrossHalf);
    for (int q = 0; q < taps.count[x]; ++q, from += kQuadBytes) {
      const int32_t* w = taps.of(x) + q * kQuadWords;
      for (int r = 0; r < kRows; ++r) {
        const uint8_t* p = from + r * kQuad;
        sums[r] += p[0] * low(w[0]) + p[1] * high(w[0]) + p[2] * low(w[1]) + p[3] * high(w[1]);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      pairs[r / 2][(x - begin) * 2 + r % 2] = static_cast<int16_t>(sums[r] >> kAcrossShift);
    }
  }
}

void down_portable(const int16_t* const* pairs, const int32_t* words, int num_pairs, int64_t num_values,
                   int16_t* line) {
  for (int64_t begin = 0; begin < num_values; begin += kBlock) {
    int32_t sums[kBlock];
    std::fill(sums, sums + kBlock, kDownHalf);
    for (int p = 0; p < num_pairs; ++p) {
      const int16_t* from = pairs[p] + begin * 2;
      const int32_t first = low(words[p]), second = high(words[p]);
      for (int i = 0; i < kBlock; ++i) sums[i] += from[2 * i] * first + from[2 * i + 1] * second;
    }
    for (int i = 0; i < kBlock; ++i) line[begin + i] = static_cast<int16_t>(sums[i] >> kDownShift);
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

constexpr InnerLoops kPortable{encode_portable, mix_portable, across_portable, down_portable, to_rgb_portable};

#ifdef EAGLE_X86

void mix_tail(const uint8_t* const* rows, int64_t num_samples, int64_t begin, uint8_t* mixed) {
  const uint8_t* tails[kRows];
  for (int r = 0; r < kRows; ++r) tails[r] = rows[r] + begin;
  mix_portable(tails, num_samples - begin, mixed + begin / kQuad * kQuadBytes);
}

// ---- AVX2: the even bytes of a quad are multiplied and added together, then the odd ones
// -----------------------------

void encode_avx2(const int32_t* weights, int32_t* words) {
  words[0] = word_pair(weights[0], weights[2]);
  words[1] = word_pair(weights[1], weights[3]);
}

EAGLE_AVX2 void mix_avx2(const uint8_t* const* rows, int64_t num_samples, uint8_t* mixed) {
  int64_t x = 0;
  for (; x + 16 <= num_samples; x += 16) {
    for (int r = 0; r < kRows; r += 4) {
      const __m128i row[] = {load_16(rows[r] + x), load_16(rows[r + 1] + x), load_16(rows[r + 2] + x),
                             load_16(rows[r + 3] + x)};
      const __m128i first_01 = _mm_unpacklo_epi32(row[0], row[1]), first_23 = _mm_unpacklo_epi32(row[2], row[3]);
      const __m128i last_01 = _mm_unpackhi_epi32(row[0], row[1]), last_23 = _mm_unpackhi_epi32(row[2], row[3]);
      uint8_t* to = mixed + x / kQuad * kQuadBytes + r * kQuad;
      store_16(to, _mm_unpacklo_epi64(first_01, first_23));
      store_16(to + kQuadBytes, _mm_unpackhi_epi64(first_01, first_23));
      store_16(to + 2 * kQuadBytes, _mm_unpacklo_epi64(last_01, last_23));
      store_16(to + 3 * kQuadBytes, _mm_unpackhi_epi64(last_01, last_23));
    }
  }
  mix_tail(rows, num_samples, x, mixed);
}

EAGLE_AVX2 inline __m256i add_quads_avx2(__m256i sum, const uint8_t* from, __m256i even_weights, __m256i odd_weights) {
  const __m256i quads = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m256i even = _mm256_and_si256(quads, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(quads, 8);
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even, even_weights));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(odd, odd_weights));
}

// Four pixels of eight rows, 32 bits each -> the four outputs of two rows.
EAGLE_AVX2 inline void store_pairs_avx2(const __m256i* values, int64_t at, int16_t* const* pairs) {
  const __m256 first = _mm256_castsi256_ps(_mm256_packs_epi32(values[0], values[1]));  // rows 01, 23, 01, 23
  const __m256 last = _mm256_castsi256_ps(_mm256_packs_epi32(values[2], values[3]));
  const __m256i rows_01 = _mm256_castps_si256(_mm256_shuffle_ps(first, last, 0x88));
  const __m256i rows_23 = _mm256_castps_si256(_mm256_shuffle_ps(first, last, 0xdd));
  store_16(pairs[0] + at, _mm256_castsi256_si128(rows_01));
  store_16(pairs[1] + at, _mm256_castsi256_si128(rows_23));
  store_16(pairs[2] + at, _mm256_extracti128_si256(rows_01, 1));
  store_16(pairs[3] + at, _mm256_extracti128_si256(rows_23, 1));
}

EAGLE_AVX2 void across_avx2(const uint8_t* mixed, const UnitTaps& taps, int64_t begin, int64_t end,
                            int16_t* const* pairs) {
  const int num_quads = taps.max_units;  // one count for all: the branch that ends the loop is then foreseen
  for (int64_t x = begin; x < end; x += kQuad) {
    __m256i upper[kQuad], lower[kQuad];
    for (int j = 0; j < kQuad; ++j) {
      const int64_t i = std::min(x + j, end - 1);
      const uint8_t* from = mixed + (taps.first[i] - taps.first[begin]) * kQuadBytes;
      const int32_t* words = taps.of(i);
      __m256i sum = _mm256_set1_epi32(kAcrossHalf), lower_sum = sum;
      for (int q = 0; q < num_quads; ++q, from += kQuadBytes, words += kQuadWords) {
        const __m256i even = _mm256_set1_epi32(words[0]), odd = _mm256_set1_epi32(words[1]);
        sum = add_quads_avx2(sum, from, even, odd);
        lower_sum = add_quads_avx2(lower_sum, from + 32, even, odd);
      }
      upper[j] = _mm256_srai_epi32(sum, kAcrossShift);
      lower[j] = _mm256_srai_epi32(lower_sum, kAcrossShift);
    }
    store_pairs_avx2(upper, (x - begin) * 2, pairs);
    store_pairs_avx2(lower, (x - begin) * 2, pairs + kPairs / 2);
  }
}

EAGLE_AVX2 void down_avx2(const int16_t* const* pairs, const int32_t* words, int num_pairs, int64_t num_values,
                          int16_t* line) {
  for (int64_t i = 0; i < num_values; i += 32) {
    __m256i sums[4];
    for (__m256i& sum : sums) sum = _mm256_set1_epi32(kDownHalf);
    for (int p = 0; p < num_pairs; ++p) {
      const __m256i weights = _mm256_set1_epi32(words[p]);
      const __m256i* from = reinterpret_cast<const __m256i*>(pairs[p] + i * 2);
      for (int j = 0; j < 4; ++j) {
        sums[j] = _mm256_add_epi32(sums[j], _mm256_madd_epi16(_mm256_loadu_si256(from + j), weights));
      }
    }
    for (__m256i& sum : sums) sum = _mm256_srai_epi32(sum, kDownShift);
    for (int j = 0; j < 2; ++j) {  // the pack works in halves of 128 bits; the permutation puts them in order again
      const __m256i packed = _mm256_packs_epi32(sums[2 * j], sums[2 * j + 1]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(line + i) + j, _mm256_permute4x64_epi64(packed, 0xd8));
    }
  }
}

// One colour of 16 pixels: from pairs of y and a chroma plane, and for green from `more`, pairs with the other plane.
EAGLE_AVX2 inline __m256i colour_avx2(const __m256i* pairs, int32_t weights, int32_t bias, const __m256i* more,
                                      int32_t more_weights) {
  __m256i half[2];
  for (int h = 0; h < 2; ++h) {
    __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(pairs[h], _mm256_set1_epi32(weights)), _mm256_set1_epi32(bias));
    if (more != nullptr) sum = _mm256_add_epi32(sum, _mm256_madd_epi16(more[h], _mm256_set1_epi32(more_weights)));
    half[h] = _mm256_srai_epi32(sum, kColourShift);
  }
  return _mm256_packs_epi32(half[0], half[1]);
}

EAGLE_AVX2 void to_rgb_avx2(const int16_t* y, const int16_t* u, const int16_t* v, const Colours& m, int64_t num_values,
                            uint8_t* line) {
  for (int64_t i = 0; i < num_values; i += 32) {
    __m256i rgb[3][2];
    for (int j = 0; j < 2; ++j) {
      const int64_t at = i + j * 16;
      const __m256i ys = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(y + at));
      const __m256i us = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(u + at));
      const __m256i vs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + at));
      const __m256i yu[] = {_mm256_unpacklo_epi16(ys, us), _mm256_unpackhi_epi16(ys, us)};
      const __m256i yv[] = {_mm256_unpacklo_epi16(ys, vs), _mm256_unpackhi_epi16(ys, vs)};
      rgb[0][j] = colour_avx2(yv, word_pair(m.y, m.v_to_red), m.bias[0], nullptr, 0);
      rgb[1][j] = colour_avx2(yv, word_pair(m.y, m.v_to_green), m.bias[1], yu, word_pair(0, m.u_to_green));
      rgb[2][j] = colour_avx2(yu, word_pair(m.y, m.u_to_blue), m.bias[2], nullptr, 0);
    }
    for (int c = 0; c < 3; ++c) {
      const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(rgb[c][0], rgb[c][1]), 0xd8);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(line + c * num_values + i), bytes);
    }
  }
}

constexpr InnerLoops kAvx2{encode_avx2, mix_avx2, across_avx2, down_avx2, to_rgb_avx2};

// ---- AVX-512 with VNNI: quads of 8 bits, so a weight is two signed digits, w = 256 * d1 + d0
// -------------------------

void encode_avx512(const int32_t* weights, int32_t* words) {
  uint32_t digits[kQuadWords] = {};
  for (int k = 0; k < kQuad; ++k) {
    const int8_t low_digit = static_cast<int8_t>(weights[k] & 255);
    const int8_t high_digit = static_cast<int8_t>((weights[k] - low_digit) >> 8);
    digits[0] |= static_cast<uint32_t>(static_cast<uint8_t>(low_digit)) << (8 * k);
    digits[1] |= static_cast<uint32_t>(static_cast<uint8_t>(high_digit)) << (8 * k);
  }
  for (int d = 0; d < kQuadWords; ++d) words[d] = static_cast<int32_t>(digits[d]);
}

EAGLE_AVX512 void mix_avx512(const uint8_t* const* rows, int64_t num_samples, uint8_t* mixed) {
  int64_t x = 0;
  for (; x + 16 <= num_samples; x += 16) {
    __m512i row[4];  // rows r, r + 4, r + 8 and r + 12
    for (int r = 0; r < 4; ++r) {
      row[r] = _mm512_castsi128_si512(load_16(rows[r] + x));
      row[r] = _mm512_inserti32x4(row[r], load_16(rows[r + 4] + x), 1);
      row[r] = _mm512_inserti32x4(row[r], load_16(rows[r + 8] + x), 2);
      row[r] = _mm512_inserti32x4(row[r], load_16(rows[r + 12] + x), 3);
    }
    const __m512i first_01 = _mm512_unpacklo_epi32(row[0], row[1]), first_23 = _mm512_unpacklo_epi32(row[2], row[3]);
    const __m512i last_01 = _mm512_unpackhi_epi32(row[0], row[1]), last_23 = _mm512_unpackhi_epi32(row[2], row[3]);
    uint8_t* to = mixed + x / kQuad * kQuadBytes;
    _mm512_storeu_si512(to, _mm512_unpacklo_epi64(first_01, first_23));
    _mm512_storeu_si512(to + kQuadBytes, _mm512_unpackhi_epi64(first_01, first_23));
    _mm512_storeu_si512(to + 2 * kQuadBytes, _mm512_unpacklo_epi64(last_01, last_23));
    _mm512_storeu_si512(to + 3 * kQuadBytes, _mm512_unpackhi_epi64(last_01, last_23));
  }
  mix_tail(rows, num_samples, x, mixed);
}

template <int kNumQuads>  // 0: any number
EAGLE_AVX512 void across_quads_avx512(const uint8_t* mixed, const UnitTaps& taps, int64_t begin, int64_t end,
                                      int16_t* const* pairs) {
  const int num_quads = kNumQuads != 0 ? kNumQuads : taps.max_units;
  for (int64_t x = begin; x < end; x += kQuad) {
    __m512i values[kQuad];
    for (int j = 0; j < kQuad; ++j) {
      const int64_t i = std::min(x + j, end - 1);
      const uint8_t* from = mixed + (taps.first[i] - taps.first[begin]) * kQuadBytes;
      const int32_t* words = taps.words.data() + i * num_quads * kQuadWords;
      __m512i low_digit = _mm512_set1_epi32(kAcrossHalf), high_digit = _mm512_setzero_si512();
      for (int q = 0; q < num_quads; ++q, from += kQuadBytes, words += kQuadWords) {
        const __m512i pixels = _mm512_loadu_si512(from);
        low_digit = _mm512_dpbusd_epi32(low_digit, pixels, _mm512_set1_epi32(words[0]));
        high_digit = _mm512_dpbusd_epi32(high_digit, pixels, _mm512_set1_epi32(words[1]));
      }
      values[j] = _mm512_srai_epi32(_mm512_add_epi32(_mm512_slli_epi32(high_digit, 8), low_digit), kAcrossShift);
    }
    // Four rows are one part of 128 bits, and packs and shuffles work within those.
    const __m512 first = _mm512_castsi512_ps(_mm512_packs_epi32(values[0], values[1]));  // rows 01, 23, 01, 23
    const __m512 last = _mm512_castsi512_ps(_mm512_packs_epi32(values[2], values[3]));
    const __m512i rows_01 = _mm512_castps_si512(_mm512_shuffle_ps(first, last, 0x88));
    const __m512i rows_23 = _mm512_castps_si512(_mm512_shuffle_ps(first, last, 0xdd));
    const int64_t at = (x - begin) * 2;
    store_16(pairs[0] + at, _mm512_castsi512_si128(rows_01));
    store_16(pairs[1] + at, _mm512_castsi512_si128(rows_23));
    store_16(pairs[2] + at, _mm512_extracti32x4_epi32(rows_01, 1));
    store_16(pairs[3] + at, _mm512_extracti32x4_epi32(rows_23, 1));
    store_16(pairs[4] + at, _mm512_extracti32x4_epi32(rows_01, 2));
    store_16(pairs[5] + at, _mm512_extracti32x4_epi32(rows_23, 2));
    store_16(pairs[6] + at, _mm512_extracti32x4_epi32(rows_01, 3));
    store_16(pairs[7] + at, _mm512_extracti32x4_epi32(rows_23, 3));
  }
}

void across_avx512(const uint8_t* mixed, const UnitTaps& taps, int64_t begin, int64_t end, int16_t* const* pairs) {
  const auto run = taps.max_units == 2   ? across_quads_avx512<2>
                   : taps.max_units == 3 ? across_quads_avx512<3>
                   : taps.max_units == 4 ? across_quads_avx512<4>
                                         : across_quads_avx512<0>;
  run(mixed, taps, begin, end, pairs);
}

EAGLE_AVX512 void down_avx512(const int16_t* const* pairs, const int32_t* words, int num_pairs, int64_t num_values,
                              int16_t* line) {
  for (int64_t i = 0; i < num_values; i += kBlock) {
    __m512i sums[4];
    for (__m512i& sum : sums) sum = _mm512_set1_epi32(kDownHalf);
    for (int p = 0; p < num_pairs; ++p) {
      const __m512i weights = _mm512_set1_epi32(words[p]);
      const int16_t* from = pairs[p] + i * 2;
      for (int j = 0; j < 4; ++j) sums[j] = _mm512_dpwssd_epi32(sums[j], _mm512_loadu_si512(from + j * 32), weights);
    }
    for (int j = 0; j < 4; ++j) {
      const __m256i values = _mm512_cvtepi32_epi16(_mm512_srai_epi32(sums[j], kDownShift));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(line + i) + j, values);
    }
  }
}

// As colour_avx2, for 32 pixels, and stored.
EAGLE_AVX512 inline void colour_avx512(const __m512i* pairs, int32_t weights, int32_t bias, const __m512i* more,
                                       int32_t more_weights, uint8_t* to) {
  __m512i half[2];
  for (int h = 0; h < 2; ++h) {
    __m512i sum = _mm512_dpwssd_epi32(_mm512_set1_epi32(bias), pairs[h], _mm512_set1_epi32(weights));
    if (more != nullptr) sum = _mm512_dpwssd_epi32(sum, more[h], _mm512_set1_epi32(more_weights));
    half[h] = _mm512_srai_epi32(sum, kColourShift);
  }
  const __m512i values = _mm512_max_epi16(_mm512_packs_epi32(half[0], half[1]), _mm512_setzero_si512());
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtusepi16_epi8(values));
}

EAGLE_AVX512 void to_rgb_avx512(const int16_t* y, const int16_t* u, const int16_t* v, const Colours& m,
                                int64_t num_values, uint8_t* line) {
  for (int64_t i = 0; i < num_values; i += 32) {
    const __m512i ys = _mm512_loadu_si512(y + i), us = _mm512_loadu_si512(u + i), vs = _mm512_loadu_si512(v + i);
    const __m512i yu[] = {_mm512_unpacklo_epi16(ys, us), _mm512_unpackhi_epi16(ys, us)};
    const __m512i yv[] = {_mm512_unpacklo_epi16(ys, vs), _mm512_unpackhi_epi16(ys, vs)};
    uint8_t *red = line + i, *green = red + num_values, *blue = green + num_values;
    colour_avx512(yv, word_pair(m.y, m.v_to_red), m.bias[0], nullptr, 0, red);
    colour_avx512(yv, word_pair(m.y, m.v_to_green), m.bias[1], yu, word_pair(0, m.u_to_green), green);
    colour_avx512(yu, word_pair(m.y, m.u_to_blue), m.bias[2], nullptr, 0, blue);
  }
}

constexpr InnerLoops kAvx512{encode_avx512, mix_avx512, across_avx512, down_avx512, to_rgb_avx512};

#endif

const InnerLoops& inner_loops([[maybe_unused]] const std::string& simd) {
#ifdef EAGLE_X86
  if (simd == "avx512") return kAvx512;
  if (simd == "avx2") return kAvx2;
#endif
  return kPortable;
}

struct PlaneResize {
  UnitTaps across, down;  // quads, pairs
  int64_t width, height;  // samples

  PlaneResize(const Axis& across_axis, const Axis& down_axis, const InnerLoops& loops)
      : across(across_axis, kQuad, kQuadWords, loops.encode),
        down(down_axis, 2, 1, [](const int32_t* weights, int32_t* word) { *word = word_pair(weights[0], weights[1]); }),
        width(across_axis.in),
        height(down_axis.in) {}
};

struct YuvResize {
  PlaneResize luma, chroma;
  int cols;
};

// Luma, or the two chroma planes side by side: resized rows of one tile, one after the other.
class PlaneRows {
 public:
  PlaneRows(std::vector<const TensorView*> planes, int tile_px, const InnerLoops& loops)
      : planes_(std::move(planes)),
        plane_pairs_(kPairs / static_cast<int>(planes_.size())),
        tile_px_(tile_px),
        plane_values_(round_up(tile_px, kBlock)),
        loops_(loops),
        lines_(planes_.size() * plane_values_) {}

  // The rows that come are those of the tile whose first pixel is (y, x), from any on.
  void start(const PlaneResize& resize, int64_t frame, int64_t x, int64_t y) {
    resize_ = &resize;
    frame_ = frame;
    x_ = x;
    y_ = y;
    num_pairs_done_ = 0;
    const int64_t first_quad = resize.across.first[x];
    const int64_t num_quads = resize.across.first[x + tile_px_ - 1] + resize.across.max_units - first_quad;
    first_sample_ = first_quad * kQuad;
    num_samples_ = std::min(num_quads * kQuad, resize.width - first_sample_);
    mixed_.resize(num_quads * kQuadBytes);
    gathered_.resize(kRows * num_samples_);
    ring_pairs_ = round_up(resize.down.max_units + plane_pairs_ - 1, plane_pairs_);
    ring_.resize(planes_.size() * ring_pairs_ * plane_values_ * 2);
    pairs_.resize(resize.down.max_units);
  }

  // Row `i` of the tile for plane 0; that for plane 1 follows plane_values later. Rows come in their order.
  const int16_t* next(int i) {
    const UnitTaps& down = resize_->down;
    const int64_t y = y_ + i, first = down.first[y];
    num_pairs_done_ = std::max(num_pairs_done_, first / plane_pairs_ * plane_pairs_);
    for (; num_pairs_done_ < first + down.count[y]; num_pairs_done_ += plane_pairs_) fill_ring(num_pairs_done_);
    for (int plane = 0; plane < num_planes(); ++plane) {
      for (int p = 0; p < down.count[y]; ++p) pairs_[p] = slot(plane, first + p);
      loops_.down(pairs_.data(), down.of(y), down.count[y], plane_values_, lines_.data() + plane * plane_values_);
    }
    return lines_.data();
  }

 private:
  int num_planes() const { return static_cast<int>(planes_.size()); }

  int16_t* slot(int plane, int64_t pair) {
    return ring_.data() + (plane * ring_pairs_ + pair % ring_pairs_) * plane_values_ * 2;
  }

  // The horizontal pass for pairs first_pair .. first_pair + plane_pairs_ - 1 of rows, of each plane.
  void fill_ring(int64_t first_pair) {
    const uint8_t* rows[kRows];
    int16_t* pairs[kPairs];
    for (int p = 0; p < kPairs; ++p) {
      const int plane = p / plane_pairs_;
      const int64_t pair = first_pair + p % plane_pairs_;
      pairs[p] = slot(plane, pair);
      for (int r = 0; r < 2; ++r) {
        rows[p * 2 + r] = samples(plane, pair * 2 + r, gathered_.data() + (p * 2 + r) * num_samples_);
      }
    }
    loops_.mix(rows, num_samples_, mixed_.data());
    loops_.across(mixed_.data(), resize_->across, x_, x_ + tile_px_, pairs);
  }

  // num_samples_ samples of a row of the frame, side by side. The last row of the plane stands in below itself, where
  // weights are zero.
  const uint8_t* samples(int plane, int64_t row, uint8_t* memory) const {
    const TensorView& view = *planes_[plane];
    const int64_t step = view.shape[2] == 1 ? 1 : view.strides[2];
    const uint8_t* from = static_cast<const uint8_t*>(view.data) + frame_ * view.strides[0] +
                          std::min(row, resize_->height - 1) * view.strides[1] + first_sample_ * step;
    if (step == 1) return from;
    for (int64_t i = 0; i < num_samples_; ++i) memory[i] = from[2 * i];
    return memory;
  }

  const std::vector<const TensorView*> planes_;
  const int plane_pairs_;  // that the horizontal pass makes of one plane at once
  const int tile_px_;
  const int64_t plane_values_;  // of one line: tile_px in whole blocks
  const InnerLoops& loops_;
  const PlaneResize* resize_ = nullptr;
  int64_t frame_ = 0, x_ = 0, y_ = 0;
  int64_t num_pairs_done_ = 0, first_sample_ = 0, num_samples_ = 0, ring_pairs_ = 0;
  std::vector<uint8_t> gathered_, mixed_;
  std::vector<int16_t> ring_, lines_;
  std::vector<const int16_t*> pairs_;
};

// What one thread needs to make bands.
template <class T>
class YuvBand {
 public:
  YuvBand(const YuvFrames& frames, const TensorView& out, const Tiling& tiling, const std::vector<YuvResize>& resizes,
          const NormaliseTable<T>& table, const InnerLoops& loops)
      : frames_(frames),
        out_(out),
        tiling_(tiling),
        resizes_(resizes),
        loops_(loops),
        luma_({&frames.y}, tiling.tile_px, loops),
        chroma_({&frames.u, &frames.v}, tiling.tile_px, loops),
        writer_(tiling, table),
        plane_values_(round_up(tiling.tile_px, kBlock)),
        line_(3 * plane_values_) {}

  // Rows begin .. end - 1 of one image.
  void run(int64_t frame, int image, int begin, int end) {
    const bool is_thumbnail = image == tiling_.num_tiles();
    const YuvResize& resize = resizes_[is_thumbnail ? 1 : 0];
    const int tile = is_thumbnail ? 0 : image;
    const int64_t x = int64_t{tile % resize.cols} * tiling_.tile_px, y = int64_t{tile / resize.cols} * tiling_.tile_px;
    T* patches = static_cast<T*>(out_.data) +
                 (frame * tiling_.num_images() + image) * 3 * tiling_.tile_px * int64_t{tiling_.tile_px};
    luma_.start(resize.luma, frame, x, y);
    chroma_.start(resize.chroma, frame, x, y);
    for (int i = begin; i < end; ++i) {
      const int16_t *luma = luma_.next(i), *chroma = chroma_.next(i);
      loops_.to_rgb(luma, chroma, chroma + plane_values_, frames_.colours, plane_values_, line_.data());
      writer_.write(line_.data(), i, patches);
    }
  }

 private:
  const YuvFrames& frames_;
  const TensorView& out_;
  const Tiling& tiling_;
  const std::vector<YuvResize>& resizes_;
  const InnerLoops& loops_;
  PlaneRows luma_, chroma_;
  PatchWriter<T> writer_;
  const int64_t plane_values_;
  std::vector<uint8_t> line_;
};

template <class T>
void run(const YuvFrames& frames, const TensorView& out, const Tiling& tiling, int num_threads,
         const std::string& simd) {
  const InnerLoops& loops = inner_loops(simd);
  std::vector<YuvResize> resizes;
  for (const YuvTarget& target : make_yuv_targets(frames, tiling)) {
    resizes.push_back({PlaneResize(target.luma_across, target.luma_down, loops),
                       PlaneResize(target.chroma_across, target.chroma_down, loops), target.cols});
  }
  const NormaliseTable<T> table(tiling, simd);
  for_bands(frames.y.shape[0], tiling, num_threads,
            [&] { return YuvBand<T>(frames, out, tiling, resizes, table, loops); });
}

void check_plane(const char* name, const TensorView& plane, int64_t num_frames, int64_t height, int64_t width,
                 int64_t max_step) {
  check(plane.num_dims == 3 && plane.dtype == DType::kUint8 && plane.shape[0] == num_frames &&
            plane.shape[1] == height && plane.shape[2] == width,
        "yuv_to_tiles: ", name, " needs uint8 of shape (", num_frames, ", ", height, ", ", width, ").");
  check((plane.strides[2] >= 1 && plane.strides[2] <= max_step) || width == 1, "yuv_to_tiles: ", name,
        "'s stride along a row is ", plane.strides[2], "; needs 1 to ", max_step, ".");
}

}  // namespace

std::vector<YuvTarget> make_yuv_targets(const YuvFrames& frames, const Tiling& tiling) {
  const auto half = [](const Axis& axis, bool is_cosited) {
    return Axis{(axis.in + 1) / 2, axis.out, static_cast<double>(axis.in) / 2, is_cosited ? 0.25 : 0.0};
  };
  std::vector<YuvTarget> targets;
  for (const Target& t : make_targets(frames.y.shape[2], frames.y.shape[1], tiling)) {
    targets.push_back({t.across, t.down, half(t.across, frames.cosited_across), half(t.down, frames.cosited_down),
                       t.first_image, t.cols});
  }
  return targets;
}

void check_yuv_to_tiles(const YuvFrames& frames, const TensorView& out, const Tiling& tiling) {
  check_tiling("yuv_to_tiles", tiling);
  check(tiling.order == PassOrder::kHorizontal, "yuv_to_tiles: pass_order is 'pillow'; needs 'horizontal'.");
  const TensorView& y = frames.y;
  check(y.num_dims == 3 && y.shape[1] >= 1 && y.shape[2] >= 1 && y.shape[1] < kMaxSide && y.shape[2] < kMaxSide,
        "yuv_to_tiles: y needs shape (L, Y, X), Y and X from 1 to ", kMaxSide - 1, ".");
  const int64_t half_height = (y.shape[1] + 1) / 2, half_width = (y.shape[2] + 1) / 2;
  check_plane("y", y, y.shape[0], y.shape[1], y.shape[2], 1);
  check_plane("u", frames.u, y.shape[0], half_height, half_width, 2);
  check_plane("v", frames.v, y.shape[0], half_height, half_width, 2);
  const Colours& m = frames.colours;
  for (const int32_t number : {m.y, m.v_to_red, m.u_to_green, m.v_to_green, m.u_to_blue}) {
    check(number >= INT16_MIN && number <= INT16_MAX, "yuv_to_tiles: a number of the colour matrix is ", number,
          "; needs 16 bits.");
  }
  check_tiles_out("yuv_to_tiles", out, tiling, y.shape[0] * tiling.num_images());
}

void yuv_to_tiles_cpu(const YuvFrames& frames, const TensorView& out, const Tiling& tiling, int num_threads,
                      const std::string& simd) {
  check_yuv_to_tiles(frames, out, tiling);
  check(num_threads >= 0, "yuv_to_tiles: num_threads is ", num_threads, "; needs >= 0 (0: one for each CPU).");
  check_simd("yuv_to_tiles", simd);
  if (frames.y.shape[0] == 0) return;
  with_type<uint8_t, Bfloat16, float>(out.dtype, [&]<class T>() { run<T>(frames, out, tiling, num_threads, simd); });
}

}  // namespace eagle
