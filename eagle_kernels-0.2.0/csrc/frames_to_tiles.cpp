// The CPU code, in bands of a tile's rows (tiles_cpu.h); a band keeps only the rows between the two passes that its
// next output row needs (a ring), so memory does not grow with the frame.
//
// Both passes read quads: four neighbours along the filtered axis lie in four neighbouring bytes, so that one
// instruction of a vector unit multiplies and adds all four. Quads start at multiples of four, whatever the filter; the
// weights before and after a filter's own are zero.
//
//   mixed    [quad of pixels][R, G, B, any][4 rows][4 pixels]  what the horizontal pass reads: four rows of the frame
//   planes   [R, G, B][plane_values][4 rows]                   what it writes and the vertical pass reads
//   line     [R, G, B][plane_values]                           one row of the tile
#include "frames_to_tiles.h"

#include <algorithm>

#include "tiles_cpu.h"

namespace eagle {
namespace {

constexpr int kQuad = 4;
constexpr int64_t kQuadBytes = 64;  // of mixed: 4 channels x 4 rows x 4 pixels

struct QuadTaps;

// The inner loops for one kind of CPU; all give the same bits, since all sums are integers.
struct InnerLoops {
  int words_per_quad;
  // Four weights in the form that across and down take.
  void (*encode)(const int32_t* weights, int32_t* words);
  // Four rows of RGB pixels -> mixed. The last quad may be incomplete.
  void (*mix)(const uint8_t* const* rows, int64_t num_pixels, uint8_t* mixed);
  // The horizontal pass for output pixels begin .. end - 1; `mixed` starts at the quad that begin's filter starts in.
  void (*across)(const uint8_t* mixed, const QuadTaps& taps, int64_t begin, int64_t end, int64_t plane_values,
                 uint8_t* planes);
  // line[i] = sum over quads and their four rows; num_values is a multiple of kBlock.
  void (*down)(const uint8_t* const* quads, const int32_t* words, int num_quads, int64_t num_values, uint8_t* line);
};

// The filters of one axis.
struct QuadTaps {
  std::vector<int32_t> first_quad, num_quads;  // of each output pixel
  std::vector<int32_t> words;                  // max_quads * words_per_quad for each; zero beyond num_quads
  int max_quads = 0, words_per_quad;

  QuadTaps(const Axis& axis, const InnerLoops& loops) : words_per_quad(loops.words_per_quad) {
    const int max_taps = axis.max_taps();
    const int most_quads = (max_taps + 2 * (kQuad - 1)) / kQuad;
    first_quad.resize(axis.out);
    num_quads.resize(axis.out);
    std::vector<int32_t> weights((most_quads + 1) * kQuad), all(axis.out * int64_t{most_quads} * words_per_quad);
    for (int64_t i = 0; i < axis.out; ++i) {
      int32_t first, count;
      std::fill(weights.begin(), weights.end(), 0);
      axis.taps(i, &first, &count, weights.data());
      const int shift = first % kQuad;
      std::copy_backward(weights.data(), weights.data() + count, weights.data() + count + shift);
      std::fill_n(weights.data(), shift, 0);
      first_quad[i] = first / kQuad;
      num_quads[i] = (shift + count + kQuad - 1) / kQuad;
      max_quads = std::max(max_quads, num_quads[i]);
      for (int q = 0; q < num_quads[i]; ++q) {
        loops.encode(&weights[q * kQuad], &all[(i * most_quads + q) * words_per_quad]);
      }
    }
    words.resize(axis.out * int64_t{max_quads} * words_per_quad);  // without the slack, for the cache's sake
    for (int64_t i = 0; i < axis.out; ++i) {
      std::copy_n(&all[i * most_quads * words_per_quad], max_quads * words_per_quad,
                  &words[i * max_quads * words_per_quad]);
    }
  }
  const int32_t* of(int64_t i) const { return words.data() + i * max_quads * words_per_quad; }
};

struct Resize {
  QuadTaps across, down;
  int cols;
  bool columns_first;

  Resize(const Target& target, const InnerLoops& loops)
      : across(target.across, loops),
        down(target.down, loops),
        cols(target.cols),
        columns_first(target.columns_first) {}
};

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

// Four rows side by side -> out[i][row].
void interleave(const uint8_t* const* rows, int64_t num_bytes, uint8_t* out) {
  for (int64_t i = 0; i < num_bytes; ++i) {
    for (int r = 0; r < kQuad; ++r) out[i * kQuad + r] = rows[r][i];
  }
}

void across_portable(const uint8_t* mixed, const QuadTaps& taps, int64_t begin, int64_t end, int64_t plane_values,
                     uint8_t* planes) {
  for (int64_t x = begin; x < end; ++x) {
    const uint8_t* from = mixed + (taps.first_quad[x] - taps.first_quad[begin]) * kQuadBytes;
    const int32_t* words = taps.of(x);
    for (int c = 0; c < 3; ++c) {
      for (int r = 0; r < kQuad; ++r) {
        int32_t sum = kHalf;
        for (int q = 0; q < taps.num_quads[x]; ++q) {
          for (int k = 0; k < kQuad; ++k) sum += from[q * kQuadBytes + c * 16 + r * 4 + k] * words[q * kQuad + k];
        }
        planes[(c * plane_values + x - begin) * kQuad + r] = round_to_pixel(sum);
      }
    }
  }
}

void down_portable(const uint8_t* const* quads, const int32_t* words, int num_quads, int64_t num_values,
                   uint8_t* line) {
  for (int64_t begin = 0; begin < num_values; begin += kBlock) {
    int32_t sums[kBlock];
    std::fill(sums, sums + kBlock, kHalf);
    for (int q = 0; q < num_quads; ++q) {
      const uint8_t* from = quads[q] + begin * kQuad;
      const int32_t* w = words + q * kQuad;
      for (int i = 0; i < kBlock; ++i, from += kQuad) {
        sums[i] += from[0] * w[0] + from[1] * w[1] + from[2] * w[2] + from[3] * w[3];
      }
    }
    for (int i = 0; i < kBlock; ++i) line[begin + i] = round_to_pixel(sums[i]);
  }
}

constexpr InnerLoops kPortable{kQuad, encode_portable, mix_portable, across_portable, down_portable};

#ifdef EAGLE_X86

// A shuffle of 16 bytes: four RGB pixels (and four bytes that are not used) -> RRRR GGGG BBBB.
#define EAGLE_SPLIT_RGB 0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, 12, 13, 14, 15

// A pixel more is read than a quad has, so the last quads of a row are not for vectors.
int64_t num_vector_quads(int64_t num_pixels) { return std::max<int64_t>(0, (num_pixels * 3 - 4) / 12); }

void mix_tail(const uint8_t* const* rows, int64_t num_pixels, int64_t quad, uint8_t* mixed) {
  const uint8_t* tails[kQuad];
  for (int r = 0; r < kQuad; ++r) tails[r] = rows[r] + quad * 12;
  mix_portable(tails, num_pixels - quad * kQuad, mixed + quad * kQuadBytes);
}

// ---- AVX2: pairs of 16 bits, so a weight is two numbers of 12 bits, w = 4096 * high + low
// ----------------------------

void encode_avx2(const int32_t* weights, int32_t* words) {
  for (int odd = 0; odd < 2; ++odd) {  // the even bytes of a quad are multiplied together, then the odd ones
    words[odd] = word_pair(weights[odd] & 4095, weights[odd + 2] & 4095);
    words[odd + 2] = word_pair(weights[odd] >> 12, weights[odd + 2] >> 12);
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
EAGLE_AVX2 inline __m256i rounded_avx2(const SumsAvx2& sums) {
  const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(sums.high, 12), sums.low);
  return _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(kHalf)), kWeightBits);
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

EAGLE_AVX2 void across_avx2(const uint8_t* mixed, const QuadTaps& taps, int64_t begin, int64_t end,
                            int64_t plane_values, uint8_t* planes) {
  const int num_quads = taps.max_quads;  // one count for all: the branch that ends the loop is then foreseen
  for (int64_t x = begin; x < end; x += kQuad) {
    __m256i red_green[kQuad], blue[kQuad];
    for (int j = 0; j < kQuad; ++j) {
      const int64_t i = std::min(x + j, end - 1);
      const uint8_t* from = mixed + (taps.first_quad[i] - taps.first_quad[begin]) * kQuadBytes;
      const int32_t* words = taps.of(i);
      SumsAvx2 sums_rg{_mm256_setzero_si256(), _mm256_setzero_si256()}, sums_b = sums_rg;
      for (int q = 0; q < num_quads; ++q, from += kQuadBytes, words += 4) {
        const __m256i weights[] = {_mm256_set1_epi32(words[0]), _mm256_set1_epi32(words[1]),
                                   _mm256_set1_epi32(words[2]), _mm256_set1_epi32(words[3])};
        add_avx2(sums_rg, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), weights);
        add_avx2(sums_b, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32)), weights);
      }
      red_green[j] = rounded_avx2(sums_rg);
      blue[j] = rounded_avx2(sums_b);
    }
    uint8_t* to = planes + (x - begin) * kQuad;
    const __m256i rg = pack_avx2(red_green);
    store_16(to, _mm256_castsi256_si128(rg));
    store_16(to + plane_values * kQuad, _mm256_extracti128_si256(rg, 1));
    store_16(to + plane_values * kQuad * 2, _mm256_castsi256_si128(pack_avx2(blue)));
  }
}

EAGLE_AVX2 void down_avx2(const uint8_t* const* quads, const int32_t* words, int num_quads, int64_t num_values,
                          uint8_t* line) {
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
    for (int j = 0; j < 4; ++j) values[j] = rounded_avx2(sums[j]);
    // The packs work in halves of 128 bits; the permutation puts the fours in order again.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(line + i), _mm256_permutevar8x32_epi32(pack_avx2(values), order));
  }
}

constexpr InnerLoops kAvx2{4, encode_avx2, mix_avx2, across_avx2, down_avx2};

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

EAGLE_AVX512 inline __m512i rounded_avx512(const SumsAvx512& sums) {
  __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(sums.digit[2], 8), sums.digit[1]);
  sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 8), sums.digit[0]);
  return _mm512_srai_epi32(_mm512_add_epi32(sum, _mm512_set1_epi32(kHalf)), kWeightBits);
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

template <int kNumQuads>  // 0: any number
EAGLE_AVX512 void across_quads_avx512(const uint8_t* mixed, const QuadTaps& taps, int64_t begin, int64_t end,
                                      int64_t plane_values, uint8_t* planes) {
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
      values[j] = rounded_avx512(sums);
    }
    // A channel is one part of 128 bits, and the packs work within those: the bytes come out as planes want them.
    const __m512i bytes = pack_avx512(values);
    uint8_t* to = planes + (x - begin) * kQuad;
    store_16(to, _mm512_castsi512_si128(bytes));
    store_16(to + plane_values * kQuad, _mm512_extracti32x4_epi32(bytes, 1));
    store_16(to + plane_values * kQuad * 2, _mm512_extracti32x4_epi32(bytes, 2));
  }
}

void across_avx512(const uint8_t* mixed, const QuadTaps& taps, int64_t begin, int64_t end, int64_t plane_values,
                   uint8_t* planes) {
  const auto run = taps.max_quads == 2   ? across_quads_avx512<2>
                   : taps.max_quads == 3 ? across_quads_avx512<3>
                                         : across_quads_avx512<0>;
  run(mixed, taps, begin, end, plane_values, planes);
}

EAGLE_AVX512 void down_avx512(const uint8_t* const* quads, const int32_t* words, int num_quads, int64_t num_values,
                              uint8_t* line) {
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
    for (int j = 0; j < 4; ++j) values[j] = rounded_avx512(sums[j]);
    _mm512_storeu_si512(line + i, _mm512_permutexvar_epi32(order, pack_avx512(values)));
  }
}

constexpr InnerLoops kAvx512{3, encode_avx512, mix_avx512, across_avx512, down_avx512};

#endif

const InnerLoops& inner_loops(const std::string& simd) {
#ifdef EAGLE_X86
  if (simd == "avx512") return kAvx512;
  if (simd == "avx2") return kAvx2;
#endif
  return kPortable;
}

// What one thread needs to make bands, its buffers between the passes included.
template <class T>
class Band {
 public:
  Band(const TensorView& frames, const TensorView& out, const Tiling& tiling, const std::vector<Resize>& resizes,
       const NormaliseTable<T>& table, const InnerLoops& loops)
      : frames_(frames),
        out_(out),
        tiling_(tiling),
        resizes_(resizes),
        loops_(loops),
        writer_(tiling, table),
        plane_values_(round_up(tiling.tile_px, kBlock)),
        line_(3 * plane_values_) {
    const int32_t one = 1 << kWeightBits;
    for (int r = 0; r < kQuad; ++r) {
      int32_t weights[kQuad] = {};
      weights[r] = one;
      loops_.encode(weights, row_alone_[r]);
    }
  }

  // Rows begin .. end - 1 of one image.
  void run(int64_t frame, int image, int begin, int end) {
    const bool is_thumbnail = image == tiling_.num_tiles();
    const Resize& resize = resizes_[is_thumbnail ? 1 : 0];
    const int tile = is_thumbnail ? 0 : image;
    const int64_t x = int64_t{tile % resize.cols} * tiling_.tile_px, y = int64_t{tile / resize.cols} * tiling_.tile_px;
    frame_ = static_cast<const uint8_t*>(frames_.data) + frame * frames_.strides[0];
    image_ = static_cast<T*>(out_.data) +
             (frame * tiling_.num_images() + image) * 3 * tiling_.tile_px * int64_t{tiling_.tile_px};
    const QuadTaps& across = resize.across;
    const int64_t first_quad = across.first_quad[x];
    const int64_t num_quads = across.first_quad[x + tiling_.tile_px - 1] + across.max_quads - first_quad;
    mixed_.resize(num_quads * kQuadBytes);
    const int64_t first_pixel = first_quad * kQuad;
    const int64_t num_pixels = std::min(num_quads * kQuad, frames_.shape[2] - first_pixel);
    if (resize.columns_first) {
      columns_then_rows(resize, x, y, first_pixel, num_pixels, begin, end);
    } else {
      rows_then_columns(resize, x, y, first_pixel, num_pixels, begin, end);
    }
  }

 private:
  // The four source rows of a quad; below the last row of the frame it stands in, with weights of zero.
  void source_rows(int64_t quad, int64_t first_pixel, const uint8_t** rows) const {
    for (int64_t r = 0; r < kQuad; ++r) {
      const int64_t y = std::min(quad * kQuad + r, frames_.shape[1] - 1);
      rows[r] = frame_ + y * frames_.strides[1] + first_pixel * 3;
    }
  }

  // Output row y of the vertical pass from a ring of quads; make(quad, memory) fills those that are not there yet.
  template <class Make>
  void next_row(const QuadTaps& down, int64_t y, int64_t num_values, int64_t& done, uint8_t* line, Make make) {
    const int64_t quad_bytes = num_values * kQuad;
    const auto slot = [&](int64_t quad) { return ring_.data() + quad % down.max_quads * quad_bytes; };
    const int64_t first = down.first_quad[y];
    const int count = down.num_quads[y];
    done = std::max(done, first);
    for (; done < first + count; ++done) make(done, slot(done));
    for (int q = 0; q < count; ++q) quads_[q] = slot(first + q);
    loops_.down(quads_.data(), down.of(y), count, num_values, line);
  }

  // Output rows y + begin .. y + end - 1 of columns x .. x + tile_px - 1.
  void rows_then_columns(const Resize& resize, int64_t x, int64_t y, int64_t first_pixel, int64_t num_pixels, int begin,
                         int end) {
    ring_.resize(resize.down.max_quads * 3 * plane_values_ * kQuad);
    quads_.resize(resize.down.max_quads);
    int64_t done = 0;
    for (int i = begin; i < end; ++i) {
      next_row(resize.down, y + i, 3 * plane_values_, done, line_.data(), [&](int64_t quad, uint8_t* planes) {
        const uint8_t* rows[kQuad];
        source_rows(quad, first_pixel, rows);
        loops_.mix(rows, num_pixels, mixed_.data());
        loops_.across(mixed_.data(), resize.across, x, x + tiling_.tile_px, plane_values_, planes);
      });
      writer_.write(line_.data(), i, image_);
    }
  }

  void columns_then_rows(const Resize& resize, int64_t x, int64_t y, int64_t first_pixel, int64_t num_pixels, int begin,
                         int end) {
    const int64_t num_values = round_up(num_pixels * 3, kBlock);
    ring_.resize(resize.down.max_quads * num_values * kQuad);
    quads_.resize(resize.down.max_quads);
    shrunk_.resize(kQuad * num_values);
    planes_.resize(3 * plane_values_ * kQuad);
    int64_t done = 0;
    for (int i = begin; i < end; i += kQuad) {
      const uint8_t* shrunk[kQuad];
      for (int r = 0; r < kQuad; ++r) {
        uint8_t* line = shrunk_.data() + r * num_values;
        shrunk[r] = line;
        const int64_t row = y + std::min(i + r, end - 1);
        next_row(resize.down, row, num_values, done, line, [&](int64_t quad, uint8_t* to) {
          const uint8_t* rows[kQuad];
          source_rows(quad, first_pixel, rows);
          interleave(rows, num_pixels * 3, to);
        });
      }
      loops_.mix(shrunk, num_pixels, mixed_.data());
      loops_.across(mixed_.data(), resize.across, x, x + tiling_.tile_px, plane_values_, planes_.data());
      const uint8_t* planes = planes_.data();
      for (int r = 0; r < kQuad && i + r < end; ++r) {  // one row out of the four: a filter of weight one
        loops_.down(&planes, row_alone_[r], 1, 3 * plane_values_, line_.data());
        writer_.write(line_.data(), i + r, image_);
      }
    }
  }

  const TensorView& frames_;
  const TensorView& out_;
  const Tiling& tiling_;
  const std::vector<Resize>& resizes_;
  const InnerLoops& loops_;
  PatchWriter<T> writer_;
  const int64_t plane_values_;  // of one channel of a line: tile_px in whole blocks
  const uint8_t* frame_ = nullptr;
  T* image_ = nullptr;
  int32_t row_alone_[kQuad][kQuad] = {};
  std::vector<uint8_t> mixed_, ring_, planes_, shrunk_, line_;
  std::vector<const uint8_t*> quads_;
};

template <class T>
void run(const TensorView& frames, const TensorView& out, const Tiling& tiling, int num_threads,
         const std::string& simd) {
  const InnerLoops& loops = inner_loops(simd);
  std::vector<Resize> resizes;
  for (const Target& target : make_targets(frames.shape[2], frames.shape[1], tiling)) {
    resizes.emplace_back(target, loops);
  }
  const NormaliseTable<T> table(tiling, simd);

  for_bands(frames.shape[0], tiling, num_threads, [&] { return Band<T>(frames, out, tiling, resizes, table, loops); });
}

}  // namespace

void check_frames_to_tiles(const std::vector<FrameGroup>& groups, const TensorView& out) {
  check(!groups.empty(), "frames_to_tiles: no frames are given; needs at least one tensor of them.");
  const Tiling& common = groups[0].tiling;
  int64_t num_images = 0;
  for (const auto& [frames, tiling] : groups) {
    check_tiling("frames_to_tiles", tiling);
    check(frames.num_dims == 4 && frames.dtype == DType::kUint8 && frames.shape[3] == 3 && frames.shape[1] >= 1 &&
              frames.shape[2] >= 1 && frames.shape[1] < kMaxSide && frames.shape[2] < kMaxSide,
          "frames_to_tiles: frames need uint8 of shape (L, Y, X, 3), Y and X from 1 to ", kMaxSide - 1, ".");
    check(frames.strides[3] == 1 && (frames.strides[2] == 3 || frames.shape[2] == 1),
          "frames_to_tiles: frames' last strides are (", frames.strides[2], ", ", frames.strides[3],
          "); needs (3, 1), the pixels of a row side by side.");
    check(tiling.tile_px == common.tile_px && tiling.patch_px == common.patch_px &&
              tiling.thumbnail == common.thumbnail && tiling.order == common.order &&
              std::equal(tiling.mean, tiling.mean + 3, common.mean) &&
              std::equal(tiling.stddev, tiling.stddev + 3, common.stddev),
          "frames_to_tiles: two groups of frames differ in more than their grids.");
    num_images += frames.shape[0] * tiling.num_images();
  }
  check_tiles_out("frames_to_tiles", out, common, num_images);
}

void frames_to_tiles_cpu(const TensorView& frames, const TensorView& out, const Tiling& tiling, int num_threads,
                         const std::string& simd) {
  check_frames_to_tiles({{frames, tiling}}, out);
  check(num_threads >= 0, "frames_to_tiles: num_threads is ", num_threads, "; needs >= 0 (0: one for each CPU).");
  check_simd("frames_to_tiles", simd);
  if (frames.shape[0] == 0) return;
  with_type<uint8_t, Bfloat16, float>(out.dtype, [&]<class T>() { run<T>(frames, out, tiling, num_threads, simd); });
}

}  // namespace eagle
