// What the CPU code of frames_to_tiles and yuv_to_tiles have in common: filters, inner loops, and the way out.
//
// The work is cut into bands of a tile's rows, which threads take from a counter; a band keeps only the rows between
// the two passes that its next output row needs (a ring), so memory does not grow with the frame.
//
// Both passes read quads: four neighbours along the filtered axis lie in four neighbouring bytes, so that one
// instruction of a vector unit multiplies and adds all four. Quads start at multiples of four, whatever the filter; the
// weights before and after a filter's own are zero.
//
//   mixed    [quad of pixels][4 lanes][4 rows][4 pixels]  what the horizontal pass reads. Lanes are R, G, B and
//   nothing,
//                                                         or four rows each of planes that are resized alone
//   planes   [values][4 rows] for each lane               what it writes and the vertical pass reads
//   line     [R, G, B][plane_values]                      one row of the tile
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "parallel.h"
#include "tiles.h"

namespace eagle {

constexpr int kQuad = 4;
constexpr int kLanes = 4;
constexpr int64_t kQuadBytes = 64;  // of mixed: 4 lanes x 4 rows x 4 pixels
constexpr int64_t kBlock = 64;      // values of a line that the vertical pass makes at once
constexpr int kBandRows = 64;       // many bands for many threads; each repeats some four output rows of its first pass

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Four rows side by side -> out[i][row].
inline void interleave(const uint8_t* const* rows, int64_t num_bytes, uint8_t* out) {
  for (int64_t i = 0; i < num_bytes; ++i) {
    for (int r = 0; r < kQuad; ++r) out[i * kQuad + r] = rows[r][i];
  }
}

struct QuadTaps;

// The inner loops for one kind of CPU; all give the same bits, since all sums are integers. A "wide" second pass keeps
// kPlaneBits below the point and clips nothing.
struct InnerLoops {
  int words_per_quad;
  // Four weights in the form that across and down take.
  void (*encode)(const int32_t* weights, int32_t* words);
  // Four rows of RGB pixels, or 16 rows of single samples, lane by lane -> mixed. The last quad may be incomplete.
  void (*mix)(const uint8_t* const* rows, int64_t num_pixels, uint8_t* mixed);
  void (*mix_rows)(const uint8_t* const* rows, int64_t num_samples, uint8_t* mixed);
  // The horizontal pass for output pixels begin .. end - 1 of the first `num_lanes` lanes (3 or 4; wide: all);
  // `mixed` starts at the quad that begin's filter starts in. Up to three pixels more are written to each plane.
  void (*across)(const uint8_t* mixed, const QuadTaps& taps, int64_t begin, int64_t end, uint8_t* const* planes,
                 int num_lanes);
  void (*across_wide)(const uint8_t* mixed, const QuadTaps& taps, int64_t begin, int64_t end, int16_t* const* planes);
  // line[i] = sum over quads and their four rows; num_values is a multiple of kBlock.
  void (*down)(const uint8_t* const* quads, const int32_t* words, int num_quads, int64_t num_values, uint8_t* line);
  void (*down_wide)(const uint8_t* const* quads, const int32_t* words, int num_quads, int64_t num_values,
                    int16_t* line);
  // Wide lines of y, u and v -> line; num_values is a multiple of kBlock.
  void (*to_rgb)(const int16_t* y, const int16_t* u, const int16_t* v, const Colours& colours, int64_t num_values,
                 uint8_t* line);
  // out[i] = table[line[i]]; num_values is a multiple of kBlock.
  void (*look_up)(const uint8_t* line, const Bfloat16* table, int64_t num_values, Bfloat16* out);
};

// Those of `simd`: simd() or a lesser one. Throws, in the name of `op`, for another.
const InnerLoops& inner_loops(const std::string& op, const std::string& simd);

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

template <class T>
struct NormaliseTable {
  T of[3][256];

  explicit NormaliseTable(const Tiling& tiling) {
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
  PatchWriter(const Tiling& tiling, const NormaliseTable<T>& table, const InnerLoops& loops)
      : tiling_(tiling),
        table_(table),
        loops_(loops),
        plane_values_(round_up(tiling.tile_px, kBlock)),
        normalised_(plane_values_) {}

  // The line, as row y of the tile whose patches start at `image`.
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
      loops_.look_up(line, table_.of[c], plane_values_, normalised_.data());
    } else {
      for (int64_t i = 0; i < plane_values_; ++i) normalised_[i] = table_.of[c][line[i]];
    }
    return normalised_.data();
  }

  const Tiling& tiling_;
  const NormaliseTable<T>& table_;
  const InnerLoops& loops_;
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
