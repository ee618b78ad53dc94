// The CPU code. The work is cut into bands of a tile's rows, which threads take from a counter; a band keeps only the
// rows between the two passes that its next output row needs (a ring), so memory does not grow with the frame.
#include "frames_to_tiles.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

// One build for every x86-64: the loader picks the widest version that the CPU has. Integers, so the bits are the same.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define EAGLE_SIMD __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define EAGLE_SIMD
#endif

namespace eagle {
namespace {

constexpr int kBandRows = 64;  // enough bands for many threads; a band repeats about 4 output rows' worth of its first pass
constexpr int kLanes = 16;
constexpr int kGroup = 4;  // rows that the horizontal pass does at once: 4 rows x (R, G, B, unused) = 16 lanes

typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));

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

// One resize of the whole frame: to the grid, or to the thumbnail.
struct Target {
  AxisTaps across, down;
  int cols;
  bool columns_first;

  Target(int64_t width, int64_t height, int cols, int rows, const Tiling& tiling)
      : across({width, int64_t{cols} * tiling.tile_px}),
        down({height, int64_t{rows} * tiling.tile_px}),
        cols(cols),
        columns_first(vertical_first(tiling.order, width, height, int64_t{cols} * tiling.tile_px,
                                     int64_t{rows} * tiling.tile_px)) {}
};

inline Bytes to_pixels(Ints sums) {
  sums >>= kWeightBits;
  sums = sums < 0 ? Ints{} : sums;
  sums = sums > 255 ? Ints{} + 255 : sums;
  return __builtin_convertvector(sums, Bytes);
}

inline Ints load(const uint8_t* bytes) {
  Bytes values;
  memcpy(&values, bytes, sizeof(values));
  return __builtin_convertvector(values, Ints);
}

inline void store(uint8_t* bytes, Bytes values) { memcpy(bytes, &values, sizeof(values)); }

// line[i] = sum over k of rows[k][i] * weights[k], for `num_bytes` values side by side.
EAGLE_SIMD void resample_down(const uint8_t* const* rows, const int32_t* weights, int count, int64_t num_bytes,
                              uint8_t* line) {
  int64_t i = 0;
  for (; i + 2 * kLanes <= num_bytes; i += 2 * kLanes) {
    Ints left = Ints{} + kHalf, right = left;
    for (int k = 0; k < count; ++k) {
      left += load(rows[k] + i) * weights[k];
      right += load(rows[k] + i + kLanes) * weights[k];
    }
    store(line + i, to_pixels(left));
    store(line + i + kLanes, to_pixels(right));
  }
  for (; i < num_bytes; ++i) {
    int32_t sum = kHalf;
    for (int k = 0; k < count; ++k) sum += rows[k][i] * weights[k];
    line[i] = round_to_pixel(sum);
  }
}

// Four rows of RGB pixels, `num_pixels` each -> mixed[pixel][row][R, G, B, any].
void mix_rows(const uint8_t* const rows[kGroup], int64_t num_pixels, uint8_t* mixed) {
  for (int r = 0; r < kGroup; ++r) {
    uint8_t* to = mixed + r * 4;
    for (int64_t x = 0; x + 1 < num_pixels; ++x) memcpy(to + x * kLanes, rows[r] + x * 3, 4);
    memcpy(to + (num_pixels - 1) * kLanes, rows[r] + (num_pixels - 1) * 3, 3);  // the last one has no fourth byte
  }
}

// The horizontal pass of four mixed rows for output pixels begin .. end - 1; `mixed` starts at input pixel `origin`.
// Each line takes one byte more than its 3 * (end - begin).
EAGLE_SIMD void resample_across(const uint8_t* mixed, int64_t origin, const AxisTaps& taps, int64_t begin, int64_t end,
                                uint8_t* const lines[kGroup]) {
  for (int64_t x = begin; x < end; ++x) {
    const uint8_t* from = mixed + (taps.first[x] - origin) * kLanes;
    const int32_t* weights = taps.of(x);
    const int count = taps.count[x];
    Ints sums = Ints{} + kHalf;
    for (int k = 0; k < count; ++k) sums += load(from + k * kLanes) * weights[k];
    uint8_t pixels[kLanes];
    store(pixels, to_pixels(sums));
    for (int r = 0; r < kGroup; ++r) memcpy(lines[r] + (x - begin) * 3, pixels + r * 4, 4);  // the next one overwrites
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

// One frame's share of the work that a thread takes at a time, and its buffers.
template <class T>
class Band {
 public:
  Band(const TensorView& frames, const TensorView& out, const Tiling& tiling, const std::vector<Target>& targets,
       const NormaliseTable<T>& table)
      : frames_(frames), out_(out), tiling_(tiling), targets_(targets), table_(table) {}

  void run(int64_t frame, int image, int band) {
    const bool is_thumbnail = image == tiling_.num_tiles();
    const Target& target = targets_[is_thumbnail ? 1 : 0];
    const int tile = is_thumbnail ? 0 : image;
    const int64_t x = int64_t{tile % target.cols} * tiling_.tile_px, y = int64_t{tile / target.cols} * tiling_.tile_px;
    const int begin = band * kBandRows, end = std::min(begin + kBandRows, tiling_.tile_px);
    frame_ = static_cast<const uint8_t*>(frames_.data) + frame * frames_.strides[0];
    image_ = static_cast<T*>(out_.data) +
             (frame * tiling_.num_images() + image) * 3 * tiling_.tile_px * int64_t{tiling_.tile_px};
    if (target.columns_first) {
      columns_then_rows(target, x, y, begin, end);
    } else {
      rows_then_columns(target, x, y, begin, end);
    }
  }

 private:
  const uint8_t* source_row(int64_t y) const { return frame_ + y * frames_.strides[1]; }

  // Output rows y + begin .. y + end - 1 of columns x .. x + tile_px - 1.
  void rows_then_columns(const Target& target, int64_t x, int64_t y, int begin, int end) {
    const int64_t origin = target.across.first[x];
    const int64_t num_pixels = target.across.end(x + tiling_.tile_px - 1) - origin;
    const int64_t line_bytes = int64_t{tiling_.tile_px} * 3;
    // Rows y0 .. y0 + taps lie in whole groups, so up to three more at either end.
    const int64_t ring_rows = (target.down.max_taps + 2 * kGroup) / kGroup * kGroup;
    mixed_.resize(num_pixels * kLanes);
    ring_.resize(ring_rows * (line_bytes + 1));
    line_.resize(line_bytes);
    rows_.resize(target.down.max_taps);
    const auto ring_row = [&](int64_t row) { return ring_.data() + row % ring_rows * (line_bytes + 1); };

    int64_t done = target.down.first[y + begin] / kGroup * kGroup;
    for (int i = begin; i < end; ++i) {
      for (; done < target.down.end(y + i); done += kGroup) {
        const uint8_t* from[kGroup];
        uint8_t* to[kGroup];
        for (int r = 0; r < kGroup; ++r) {
          from[r] = source_row(std::min(done + r, frames_.shape[1] - 1)) + origin * 3;
          to[r] = ring_row(done + r);
        }
        mix_rows(from, num_pixels, mixed_.data());
        resample_across(mixed_.data(), origin, target.across, x, x + tiling_.tile_px, to);
      }
      const int count = target.down.count[y + i];
      for (int k = 0; k < count; ++k) rows_[k] = ring_row(target.down.first[y + i] + k);
      resample_down(rows_.data(), target.down.of(y + i), count, line_bytes, line_.data());
      emit(i, line_.data());
    }
  }

  void columns_then_rows(const Target& target, int64_t x, int64_t y, int begin, int end) {
    const int64_t origin = target.across.first[x];
    const int64_t num_pixels = target.across.end(x + tiling_.tile_px - 1) - origin;
    const int64_t line_bytes = int64_t{tiling_.tile_px} * 3;
    mixed_.resize(num_pixels * kLanes);
    ring_.resize(kGroup * num_pixels * 3);
    line_.resize(kGroup * (line_bytes + 1));
    rows_.resize(target.down.max_taps);

    for (int i = begin; i < end; i += kGroup) {
      const uint8_t* from[kGroup];
      uint8_t* to[kGroup];
      for (int r = 0; r < kGroup; ++r) {
        const int64_t row = y + std::min(i + r, end - 1);
        const int count = target.down.count[row];
        for (int k = 0; k < count; ++k) rows_[k] = source_row(target.down.first[row] + k) + origin * 3;
        uint8_t* shrunk = ring_.data() + r * num_pixels * 3;
        resample_down(rows_.data(), target.down.of(row), count, num_pixels * 3, shrunk);
        from[r] = shrunk;
        to[r] = line_.data() + r * (line_bytes + 1);
      }
      mix_rows(from, num_pixels, mixed_.data());
      resample_across(mixed_.data(), origin, target.across, x, x + tiling_.tile_px, to);
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
  const std::vector<Target>& targets_;
  const NormaliseTable<T>& table_;
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
void run(const TensorView& frames, const TensorView& out, const Tiling& tiling, int num_threads) {
  const int64_t width = frames.shape[2], height = frames.shape[1];
  std::vector<Target> targets;
  targets.emplace_back(width, height, tiling.cols, tiling.rows, tiling);
  if (tiling.num_images() > tiling.num_tiles()) targets.emplace_back(width, height, 1, 1, tiling);
  const NormaliseTable<T> table(tiling);

  const int64_t bands = (tiling.tile_px + kBandRows - 1) / kBandRows;
  const int64_t images = tiling.num_images();
  const int64_t num_items = frames.shape[0] * images * bands;
  if (num_threads == 0) num_threads = std::max(1u, std::thread::hardware_concurrency());
  parallel_for(num_items, static_cast<int>(std::min<int64_t>(num_threads, num_items)), [&] {
    return [&, band = Band<T>(frames, out, tiling, targets, table)](int64_t i) mutable {
      band.run(i / bands / images, static_cast<int>(i / bands % images), static_cast<int>(i % bands));
    };
  });
}

}  // namespace

void check_frames_to_tiles(const TensorView& frames, const TensorView& out, const Tiling& tiling) {
  constexpr int64_t kMaxSide = 1 << 24;  // pixels; keeps every product of a side and a weight index inside int64
  check(tiling.cols >= 1 && tiling.rows >= 1, "frames_to_tiles: grid is (", tiling.cols, ", ", tiling.rows,
        "); needs both >= 1.");
  check(tiling.patch_px >= 1 && tiling.tile_px >= 1 && tiling.tile_px % tiling.patch_px == 0,
        "frames_to_tiles: tile_px is ", tiling.tile_px, " and patch_px ", tiling.patch_px,
        "; needs a positive tile_px that patch_px divides.");
  check(int64_t{tiling.cols} * tiling.tile_px < kMaxSide && int64_t{tiling.rows} * tiling.tile_px < kMaxSide,
        "frames_to_tiles: a grid of (", tiling.cols, ", ", tiling.rows, ") tiles of ", tiling.tile_px,
        " px is too large; needs less than ", kMaxSide, " px a side.");
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

void frames_to_tiles_cpu(const TensorView& frames, const TensorView& out, const Tiling& tiling, int num_threads) {
  check_frames_to_tiles(frames, out, tiling);
  check(num_threads >= 0, "frames_to_tiles: num_threads is ", num_threads, "; needs >= 0 (0: one for each CPU).");
  if (frames.shape[0] == 0) return;
  switch (out.dtype) {
    case DType::kUint8: return run<uint8_t>(frames, out, tiling, num_threads);
    case DType::kBfloat16: return run<Bfloat16>(frames, out, tiling, num_threads);
    case DType::kFloat32: return run<float>(frames, out, tiling, num_threads);
  }
}

}  // namespace eagle
