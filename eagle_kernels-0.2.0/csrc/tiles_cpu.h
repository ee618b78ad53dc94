// What the CPU code of frames_to_tiles and yuv_to_tiles have in common. The work is cut into bands of a tile's rows,
// which threads take from a counter; a row comes out as a line of bytes and goes through a table into its patches.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "parallel.h"
#include "tiles.h"

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

constexpr int kBandRows = 64;   // many bands for many threads; each repeats some four output rows of its first pass
constexpr int64_t kBlock = 64;  // lines are as long as whole blocks, so that vectors need no tail

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Throws, in the name of `op`, unless `wanted` is simd() or a lesser one.
void check_simd(const std::string& op, const std::string& wanted);

// out[i] = table[line[i]]; num_values is a multiple of kBlock.
using LookUp = void (*)(const uint8_t* line, const Bfloat16* table, int64_t num_values, Bfloat16* out);
LookUp look_up(const std::string& simd);

// Two neighbouring numbers of 16 bits, as the instructions that multiply and add pairs read them.
inline int32_t word_pair(int32_t first, int32_t second) {
  return static_cast<int32_t>((static_cast<uint32_t>(second) << 16) | (static_cast<uint32_t>(first) & 0xffffu));
}

#ifdef EAGLE_X86
inline __m128i load_16(const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); }
inline void store_16(void* to, __m128i value) { _mm_storeu_si128(static_cast<__m128i*>(to), value); }
#endif

template <class T>
struct NormaliseTable {
  T of[3][256];
  LookUp look_up_bfloat16;

  NormaliseTable(const Tiling& tiling, const std::string& simd) : look_up_bfloat16(look_up(simd)) {
    for (int c = 0; c < 3; ++c) {
      for (int v = 0; v < 256; ++v) normalise(static_cast<uint8_t>(v), tiling.mean[c], tiling.stddev[c], &of[c][v]);
    }
  }
};

// A call to memcpy costs as much as the 28 bytes of a patch's row themselves.
inline void copy_run(void* to, const void* from, size_t num_bytes) {
  if (num_bytes < 16 || num_bytes > 32) {
    memcpy(to, from, num_bytes);
    return;
  }
  const size_t rest = num_bytes - 16;  // the halves overlap
  memcpy(to, from, 16);
  memcpy(static_cast<char*>(to) + rest, static_cast<const char*>(from) + rest, 16);
}

// Rows of a tile into its patches.
template <class T>
class PatchWriter {
 public:
  PatchWriter(const Tiling& tiling, const NormaliseTable<T>& table)
      : tiling_(tiling), table_(table), plane_values_(round_up(tiling.tile_px, kBlock)), normalised_(plane_values_) {}

  // The line, [R, G, B][tile_px in whole blocks], as row y of the tile whose patches start at `image`.
  void write(const uint8_t* line, int y, T* image) {
    const int patch_px = tiling_.patch_px;
    const int64_t patch_stride = int64_t{3} * patch_px * patch_px;
    for (int c = 0; c < 3; ++c) {
      const T* values = normalised_line(line + c * plane_values_, c);
      T* patch = image + patch_offset(y, 0, tiling_.tile_px, patch_px) + int64_t{c} * patch_px * patch_px;
      for (int x = 0; x < tiling_.tile_px; x += patch_px, patch += patch_stride) {
        copy_run(patch, values + x, patch_px * sizeof(T));
      }
    }
  }

 private:
  const T* normalised_line(const uint8_t* line, int c) {
    if constexpr (std::is_same_v<T, uint8_t>) {
      return line;
    } else if constexpr (std::is_same_v<T, Bfloat16>) {
      table_.look_up_bfloat16(line, table_.of[c], plane_values_, normalised_.data());
    } else {
      for (int64_t i = 0; i < plane_values_; ++i) normalised_[i] = table_.of[c][line[i]];
    }
    return normalised_.data();
  }

  const Tiling& tiling_;
  const NormaliseTable<T>& table_;
  const int64_t plane_values_;
  std::vector<T> normalised_;
};

// Calls make_band()(frame, image, begin, end) for rows begin .. end - 1 of every image, from threads with a band each.
template <class MakeBand>
void for_bands(int64_t num_frames, const Tiling& tiling, int num_threads, MakeBand make_band) {
  const int64_t threads = num_threads != 0 ? num_threads : std::max(1u, std::thread::hardware_concurrency());
  const int64_t images = tiling.num_images();
  // A band repeats some rows of the one above it, so whole images are cut only where threads would go idle.
  const bool is_cut = threads > 1 && num_frames * images < 8 * threads;
  const int band_rows = is_cut ? kBandRows : tiling.tile_px;
  const int64_t bands = (tiling.tile_px + band_rows - 1) / band_rows;
  parallel_for(num_frames * images * bands, num_threads, [&] {
    return [&, band = make_band()](int64_t i) mutable {
      const int begin = static_cast<int>(i % bands) * band_rows;
      band.run(i / bands / images, static_cast<int>(i / bands % images), begin,
               std::min(begin + band_rows, tiling.tile_px));
    };
  });
}

}  // namespace eagle
