// The CPU code. The work is cut into bands of a tile's rows, which threads take from a counter; a band keeps only the
// rows between the two passes that its next output row needs (a ring), so memory does not grow with the frame.
#include "frames_to_tiles.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define EAGLE_AVX2
#include <immintrin.h>
#endif

namespace eagle {
namespace {

constexpr int kBandRows = 64;  // many bands for many threads; each repeats some four output rows of its first pass
constexpr int kLanes = 16;
constexpr int kGroup = 4;  // rows that the horizontal pass does at once: 4 rows x (R, G, B, unused) = 16 lanes

struct AxisTaps {
  std::vector<int32_t> first, count, weights;  // weights: max_taps for each output pixel
  int max_taps = 0;

  explicit AxisTaps(const Axis& axis) : first(axis.out), count(axis.out), max_taps(axis.max_taps()) {
    weights.resize(axis.out * static_cast<int64_t>(max_taps));
    for (int64_t i = 0; i < axis.out; ++i) axis.taps(i, &first[i], &count[i], &weights[i * max_taps]);
  }
  const int32_t* of(int64_t i) const { return weights.data() + i * max_taps; }
  int32_t end(int64_t i) const { return first[i] + count[i]; }
};

struct Resize {
  AxisTaps across, down;
  int cols;
  bool columns_first;

  explicit Resize(const Target& target)
      : across(target.across), down(target.down), cols(target.cols), columns_first(target.columns_first) {}
};

// line[i] = sum over k of rows[k][i] * weights[k], for `num_bytes` values side by side.
void resample_down(const uint8_t* const* rows, const int32_t* weights, int count, int64_t num_bytes, uint8_t* line) {
  constexpr int64_t kBlock = 256;
  for (int64_t begin = 0; begin < num_bytes; begin += kBlock) {
    const int64_t size = std::min(kBlock, num_bytes - begin);
    int32_t sums[kBlock];
    std::fill(sums, sums + size, kHalf);
    for (int k = 0; k < count; ++k) {
      for (int64_t i = 0; i < size; ++i) sums[i] += rows[k][begin + i] * weights[k];
    }
    for (int64_t i = 0; i < size; ++i) line[begin + i] = round_to_pixel(sums[i]);
  }
}

// The horizontal pass of four mixed rows (see mix_rows) for output pixels begin .. end - 1; `mixed` starts at input
// pixel `origin`. Each line takes one byte more than its 3 * (end - begin).
void resample_across(const uint8_t* mixed, int64_t origin, const AxisTaps& taps, int64_t begin, int64_t end,
                     uint8_t* const* lines) {
  for (int64_t x = begin; x < end; ++x) {
    const uint8_t* from = mixed + (taps.first[x] - origin) * kLanes;
    for (int r = 0; r < kGroup; ++r) {
      for (int c = 0; c < 3; ++c) {
        lines[r][(x - begin) * 3 + c] = resample(from + r * 4 + c, kLanes, taps.of(x), taps.count[x]);
      }
    }
  }
}

#ifdef EAGLE_AVX2

// The same two loops with 16 values at a time; integers, so the same bits. Written out because the compilers make
// poor code of either loop by themselves.
struct Sums {
  __m256i low, high;
};

__attribute__((target("avx2"))) inline void add(Sums& sums, const uint8_t* values, __m256i weight) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  const __m256i low = _mm256_cvtepu8_epi32(bytes), high = _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8));
  sums.low = _mm256_add_epi32(sums.low, _mm256_mullo_epi32(low, weight));
  sums.high = _mm256_add_epi32(sums.high, _mm256_mullo_epi32(high, weight));
}

// round_to_pixel of 16 sums. The packs clip to [0, 255]; they work in halves of 128 bits, which the permutation undoes.
__attribute__((target("avx2"))) inline __m128i to_pixels(const Sums& sums) {
  const __m256i words =
      _mm256_packs_epi32(_mm256_srai_epi32(sums.low, kWeightBits), _mm256_srai_epi32(sums.high, kWeightBits));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0b11011000);
  return _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
}

__attribute__((target("avx2"))) void resample_down_avx2(const uint8_t* const* rows, const int32_t* weights, int count,
                                                        int64_t num_bytes, uint8_t* line) {
  const __m256i half = _mm256_set1_epi32(kHalf);
  int64_t i = 0;
  for (; i + 3 * kLanes <= num_bytes; i += 3 * kLanes) {
    Sums a{half, half}, b = a, c = a;
    for (int k = 0; k < count; ++k) {
      const __m256i weight = _mm256_set1_epi32(weights[k]);
      add(a, rows[k] + i, weight);
      add(b, rows[k] + i + kLanes, weight);
      add(c, rows[k] + i + 2 * kLanes, weight);
    }
    __m128i* to = reinterpret_cast<__m128i*>(line + i);
    _mm_storeu_si128(to, to_pixels(a));
    _mm_storeu_si128(to + 1, to_pixels(b));
    _mm_storeu_si128(to + 2, to_pixels(c));
  }
  for (; i < num_bytes; ++i) {
    int32_t sum = kHalf;
    for (int k = 0; k < count; ++k) sum += rows[k][i] * weights[k];
    line[i] = round_to_pixel(sum);
  }
}

__attribute__((target("avx2"))) void resample_across_avx2(const uint8_t* mixed, int64_t origin, const AxisTaps& taps,
                                                          int64_t begin, int64_t end, uint8_t* const* lines) {
  for (int64_t x = begin; x < end; ++x) {
    const uint8_t* from = mixed + (taps.first[x] - origin) * kLanes;
    const int32_t* weights = taps.of(x);
    const int count = taps.count[x];
    const __m256i half = _mm256_set1_epi32(kHalf);
    Sums sums{half, half};
    for (int k = 0; k < count; ++k) add(sums, from + k * kLanes, _mm256_set1_epi32(weights[k]));
    uint8_t pixels[kLanes];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(pixels), to_pixels(sums));
    for (int r = 0; r < kGroup; ++r) memcpy(lines[r] + (x - begin) * 3, pixels + r * 4, 4);  // the next one overwrites
  }
}

#endif

struct InnerLoops {
  decltype(&resample_down) down = resample_down;
  decltype(&resample_across) across = resample_across;

  explicit InnerLoops(bool simd) {
#ifdef EAGLE_AVX2
    if (simd && has_simd()) {
      down = resample_down_avx2;
      across = resample_across_avx2;
    }
#endif
  }
};

// Four rows of RGB pixels, `num_pixels` each -> mixed[pixel][row][R, G, B, any].
void mix_rows(const uint8_t* const rows[kGroup], int64_t num_pixels, uint8_t* mixed) {
  for (int r = 0; r < kGroup; ++r) {
    uint8_t* to = mixed + r * 4;
    for (int64_t x = 0; x + 1 < num_pixels; ++x) memcpy(to + x * kLanes, rows[r] + x * 3, 4);
    memcpy(to + (num_pixels - 1) * kLanes, rows[r] + (num_pixels - 1) * 3, 3);  // the last one has no fourth byte
  }
}

template <class T>
struct NormaliseTable {
  T of[3][256];

  explicit NormaliseTable(const Tiling& tiling) {
    for (int c = 0; c < 3; ++c) {
      for (int v = 0; v < 256; ++v) normalise(static_cast<uint8_t>(v), tiling.mean[c], tiling.stddev[c], &of[c][v]);
    }
  }
};

// What one thread needs to make bands, its buffers between the passes included.
template <class T>
class Band {
 public:
  Band(const TensorView& frames, const TensorView& out, const Tiling& tiling, const std::vector<Resize>& resizes,
       const NormaliseTable<T>& table, bool simd)
      : frames_(frames), out_(out), tiling_(tiling), resizes_(resizes), table_(table), inner_loops_(simd) {}

  void run(int64_t frame, int image, int band) {
    const bool is_thumbnail = image == tiling_.num_tiles();
    const Resize& resize = resizes_[is_thumbnail ? 1 : 0];
    const int tile = is_thumbnail ? 0 : image;
    const int64_t x = int64_t{tile % resize.cols} * tiling_.tile_px, y = int64_t{tile / resize.cols} * tiling_.tile_px;
    const int begin = band * kBandRows, end = std::min(begin + kBandRows, tiling_.tile_px);
    frame_ = static_cast<const uint8_t*>(frames_.data) + frame * frames_.strides[0];
    image_ = static_cast<T*>(out_.data) +
             (frame * tiling_.num_images() + image) * 3 * tiling_.tile_px * int64_t{tiling_.tile_px};
    if (resize.columns_first) {
      columns_then_rows(resize, x, y, begin, end);
    } else {
      rows_then_columns(resize, x, y, begin, end);
    }
  }

 private:
  const uint8_t* source_row(int64_t y) const { return frame_ + y * frames_.strides[1]; }

  // Output rows y + begin .. y + end - 1 of columns x .. x + tile_px - 1.
  void rows_then_columns(const Resize& resize, int64_t x, int64_t y, int begin, int end) {
    const int64_t origin = resize.across.first[x];
    const int64_t num_pixels = resize.across.end(x + tiling_.tile_px - 1) - origin;
    const int64_t line_bytes = int64_t{tiling_.tile_px} * 3;
    // Rows y0 .. y0 + taps lie in whole groups, so up to three more at either end.
    const int64_t ring_rows = (resize.down.max_taps + 2 * kGroup) / kGroup * kGroup;
    mixed_.resize(num_pixels * kLanes);
    ring_.resize(ring_rows * (line_bytes + 1));
    line_.resize(line_bytes);
    rows_.resize(resize.down.max_taps);
    const auto ring_row = [&](int64_t row) { return ring_.data() + row % ring_rows * (line_bytes + 1); };

    int64_t done = resize.down.first[y + begin] / kGroup * kGroup;
    for (int i = begin; i < end; ++i) {
      for (; done < resize.down.end(y + i); done += kGroup) {
        const uint8_t* from[kGroup];
        uint8_t* to[kGroup];
        for (int r = 0; r < kGroup; ++r) {
          from[r] = source_row(std::min(done + r, frames_.shape[1] - 1)) + origin * 3;
          to[r] = ring_row(done + r);
        }
        mix_rows(from, num_pixels, mixed_.data());
        inner_loops_.across(mixed_.data(), origin, resize.across, x, x + tiling_.tile_px, to);
      }
      const int count = resize.down.count[y + i];
      for (int k = 0; k < count; ++k) rows_[k] = ring_row(resize.down.first[y + i] + k);
      inner_loops_.down(rows_.data(), resize.down.of(y + i), count, line_bytes, line_.data());
      emit(i, line_.data());
    }
  }

  void columns_then_rows(const Resize& resize, int64_t x, int64_t y, int begin, int end) {
    const int64_t origin = resize.across.first[x];
    const int64_t num_pixels = resize.across.end(x + tiling_.tile_px - 1) - origin;
    const int64_t line_bytes = int64_t{tiling_.tile_px} * 3;
    mixed_.resize(num_pixels * kLanes);
    ring_.resize(kGroup * num_pixels * 3);
    line_.resize(kGroup * (line_bytes + 1));
    rows_.resize(resize.down.max_taps);

    for (int i = begin; i < end; i += kGroup) {
      const uint8_t* from[kGroup];
      uint8_t* to[kGroup];
      for (int r = 0; r < kGroup; ++r) {
        const int64_t row = y + std::min(i + r, end - 1);
        const int count = resize.down.count[row];
        for (int k = 0; k < count; ++k) rows_[k] = source_row(resize.down.first[row] + k) + origin * 3;
        uint8_t* shrunk = ring_.data() + r * num_pixels * 3;
        inner_loops_.down(rows_.data(), resize.down.of(row), count, num_pixels * 3, shrunk);
        from[r] = shrunk;
        to[r] = line_.data() + r * (line_bytes + 1);
      }
      mix_rows(from, num_pixels, mixed_.data());
      inner_loops_.across(mixed_.data(), origin, resize.across, x, x + tiling_.tile_px, to);
      for (int r = 0; r < kGroup && i + r < end; ++r) emit(i + r, to[r]);
    }
  }

  // Row y of the tile, as RGB bytes, into its patches.
  void emit(int y, const uint8_t* line) {
    const int patch_px = tiling_.patch_px;
    for (int x = 0; x < tiling_.tile_px; x += patch_px) {
      T* patch = image_ + patch_offset(y, x, tiling_.tile_px, patch_px);
      for (int c = 0; c < 3; ++c, patch += patch_px * patch_px) {
        for (int dx = 0; dx < patch_px; ++dx) patch[dx] = table_.of[c][line[(x + dx) * 3 + c]];
      }
    }
  }

  const TensorView& frames_;
  const TensorView& out_;
  const Tiling& tiling_;
  const std::vector<Resize>& resizes_;
  const NormaliseTable<T>& table_;
  const InnerLoops inner_loops_;
  const uint8_t* frame_ = nullptr;
  T* image_ = nullptr;
  std::vector<uint8_t> mixed_, ring_, line_;
  std::vector<const uint8_t*> rows_;
};

// Calls work(i) for 0 <= i < num_items from `num_threads` threads, each with a `work` of its own from make_work().
template <class MakeWork>
void parallel_for(int64_t num_items, int num_threads, MakeWork make_work) {
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto loop = [&] {
    try {
      auto work = make_work();
      for (int64_t i; (i = next.fetch_add(1)) < num_items;) work(i);
    } catch (...) {
      next = num_items;
      const std::lock_guard<std::mutex> lock(error_mutex);
      error = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  try {
    for (int t = 1; t < num_threads; ++t) threads.emplace_back(loop);
  } catch (...) {
    next = num_items;
    for (std::thread& thread : threads) thread.join();
    throw;
  }
  loop();
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

template <class T>
void run(const TensorView& frames, const TensorView& out, const Tiling& tiling, int num_threads, bool simd) {
  std::vector<Resize> resizes;
  for (const Target& target : make_targets(frames.shape[2], frames.shape[1], tiling)) resizes.emplace_back(target);
  const NormaliseTable<T> table(tiling);

  const int64_t bands = (tiling.tile_px + kBandRows - 1) / kBandRows;
  const int64_t images = tiling.num_images();
  const int64_t num_items = frames.shape[0] * images * bands;
  if (num_threads == 0) num_threads = std::max(1u, std::thread::hardware_concurrency());
  parallel_for(num_items, static_cast<int>(std::min<int64_t>(num_threads, num_items)), [&] {
    return [&, band = Band<T>(frames, out, tiling, resizes, table, simd)](int64_t i) mutable {
      band.run(i / bands / images, static_cast<int>(i / bands % images), static_cast<int>(i % bands));
    };
  });
}

}  // namespace

std::vector<Target> make_targets(int64_t width_px, int64_t height_px, const Tiling& tiling) {
  std::vector<Target> targets;
  const auto add = [&](int first_image, int cols, int rows) {
    const Axis across{width_px, int64_t{cols} * tiling.tile_px}, down{height_px, int64_t{rows} * tiling.tile_px};
    targets.push_back({across, down, first_image, cols, columns_first(tiling.order, across, down)});
  };
  add(0, tiling.cols, tiling.rows);
  if (tiling.num_images() > tiling.num_tiles()) add(tiling.num_tiles(), 1, 1);
  return targets;
}

void check_frames_to_tiles(const TensorView& frames, const TensorView& out, const Tiling& tiling) {
  // Far beyond any use, and small enough that no product below leaves its type.
  constexpr int64_t kMaxSide = 1 << 24, kMaxTiles = 1 << 20, kMaxTile = 1 << 14;
  check(tiling.cols >= 1 && tiling.rows >= 1 && int64_t{tiling.cols} * tiling.rows <= kMaxTiles,
        "frames_to_tiles: grid is (", tiling.cols, ", ", tiling.rows, "); needs both >= 1 and at most ", kMaxTiles,
        " tiles.");
  check(tiling.patch_px >= 1 && tiling.tile_px >= 1 && tiling.tile_px <= kMaxTile &&
            tiling.tile_px % tiling.patch_px == 0,
        "frames_to_tiles: tile_px is ", tiling.tile_px, " and patch_px ", tiling.patch_px,
        "; needs a tile_px from 1 to ", kMaxTile, " that patch_px divides.");
  for (int c = 0; c < 3; ++c) {
    check(std::isfinite(tiling.mean[c]) && std::isfinite(tiling.stddev[c]) && tiling.stddev[c] != 0,
          "frames_to_tiles: mean and std of channel ", c, " are ", tiling.mean[c], " and ", tiling.stddev[c],
          "; needs finite numbers and std != 0.");
  }
  check(frames.num_dims == 4 && frames.dtype == DType::kUint8 && frames.shape[3] == 3 && frames.shape[1] >= 1 &&
            frames.shape[2] >= 1 && frames.shape[1] < kMaxSide && frames.shape[2] < kMaxSide,
        "frames_to_tiles: frames need uint8 of shape (L, Y, X, 3), Y and X from 1 to ", kMaxSide - 1, ".");
  check(frames.strides[3] == 1 && (frames.strides[2] == 3 || frames.shape[2] == 1),
        "frames_to_tiles: frames' last strides are (", frames.strides[2], ", ", frames.strides[3],
        "); needs (3, 1), the pixels of a row side by side.");
  const int64_t grid = tiling.tile_px / tiling.patch_px;
  check(out.num_dims == 3 && out.shape[0] == frames.shape[0] * tiling.num_images() && out.shape[1] == grid * grid &&
            out.shape[2] == int64_t{3} * tiling.patch_px * tiling.patch_px && out.is_contiguous(),
        "frames_to_tiles: out needs contiguous (", frames.shape[0] * tiling.num_images(), ", ", grid * grid, ", ",
        int64_t{3} * tiling.patch_px * tiling.patch_px, ").");
}

bool has_simd() {
#ifdef EAGLE_AVX2
  return __builtin_cpu_supports("avx2");
#else
  return false;
#endif
}

void frames_to_tiles_cpu(const TensorView& frames, const TensorView& out, const Tiling& tiling, int num_threads,
                         bool simd) {
  check_frames_to_tiles(frames, out, tiling);
  check(num_threads >= 0, "frames_to_tiles: num_threads is ", num_threads, "; needs >= 0 (0: one for each CPU).");
  if (frames.shape[0] == 0) return;
  switch (out.dtype) {
    case DType::kUint8:
      return run<uint8_t>(frames, out, tiling, num_threads, simd);
    case DType::kBfloat16:
      return run<Bfloat16>(frames, out, tiling, num_threads, simd);
    case DType::kFloat32:
      return run<float>(frames, out, tiling, num_threads, simd);
  }
}

}  // namespace eagle
