// What frames_to_tiles and yuv_to_tiles have in common, on the CPU and on the GPU: the tiling and Pillow's filters.
//
// A frame of width x height is resized whole to (cols * tile_px, rows * tile_px) and cut into tiles, row by row; the
// thumbnail, the whole frame at tile_px x tile_px, comes last. Pillow's arithmetic, which frames_to_tiles keeps: filter
// weights as integers of 22 fractional bits, one pass along each axis, rounded and clipped to uint8 after each. Which
// axis comes first is visible in the last bits, so it is an argument.
//
//   out [L * images, P, K]  u8 | bf16 | f32  contiguous; images = cols * rows (+ 1 with a thumbnail),
//                           P = (tile_px / patch_px)^2 row by row, K = 3 * patch_px^2 as (channel, y, x);
//                           (x / 255 - mean) / stddev in fp32, rounded once; u8 is the resized image itself
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "number_types.h"

namespace eagle {

enum class PassOrder {
  kHorizontal,  // rows first, always: Pillow up to 12
  kPillow,      // Pillow 13 (its pull request 9549): columns first where that leaves the shorter second pass
};

struct Tiling {
  int cols = 1, rows = 1;
  int tile_px = 0, patch_px = 0;
  bool thumbnail = false;  // a grid of one tile is its own thumbnail and gets no second
  PassOrder order = PassOrder::kHorizontal;
  float mean[3] = {}, stddev[3] = {};

  int num_tiles() const { return cols * rows; }
  int num_images() const { return num_tiles() + (thumbnail && num_tiles() > 1 ? 1 : 0); }
};

// Throws std::invalid_argument (Python: ValueError), in the name of `op`, unless the numbers are in their ranges.
void check_tiling(const std::string& op, const Tiling& tiling);
// Throws unless out is as above, for `num_images` images.
void check_tiles_out(const std::string& op, const TensorView& out, const Tiling& tiling, int64_t num_images);

// The best vector code that this CPU and this build have: "avx512" (with VNNI), "avx2", or "", plain loops.
const char* simd();

constexpr int64_t kMaxSide = 1 << 24;  // of a frame: far beyond any use, and no product below leaves its type

constexpr int kWeightBits = 22;                    // 32 less 8 of the pixel and 2 for sums outside [0, 1]
constexpr int32_t kHalf = 1 << (kWeightBits - 1);  // rounds the sum to nearest

// Keys' cubic with a = -0.5, in the form that rounds as Pillow's does.
EAGLE_HOST_DEVICE double bicubic(double x) {
  constexpr double a = -0.5;
  x = x < 0.0 ? -x : x;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

// One axis of a resize: `in` pixels to `out`. When shrinking, the filter widens by the scale (antialiasing). The
// picture is `length` input pixels long and begins `shift` of them into the first.
struct Axis {
  int64_t in, out;
  double length = static_cast<double>(in), shift = 0.0;

  EAGLE_HOST_DEVICE double scale() const { return length / static_cast<double>(out); }
  EAGLE_HOST_DEVICE double stretch() const { return scale() < 1.0 ? 1.0 : scale(); }
  EAGLE_HOST_DEVICE int max_taps() const { return static_cast<int>(ceil(2.0 * stretch())) * 2 + 1; }

  // Calls each(j, weight) for the input pixels first + j of output pixel `i`; count <= max_taps(), and the weights add
  // up to 1.
  template <class Each>
  EAGLE_HOST_DEVICE void weights(int64_t i, int32_t* first, int32_t* count, Each each) const {
    const double center = (static_cast<double>(i) + 0.5) * scale() + shift;
    const double support = 2.0 * stretch();
    const double shrink = 1.0 / stretch();
    const int64_t from = static_cast<int64_t>(center - support + 0.5);
    const int64_t to = static_cast<int64_t>(center + support + 0.5);
    const int64_t begin = from < 0 ? 0 : from;
    const int64_t end = to > in ? in : to;
    double sum = 0.0;
    for (int64_t j = 0; j < end - begin; ++j) {
      sum += bicubic((static_cast<double>(j + begin) - center + 0.5) * shrink);
    }
    for (int64_t j = 0; j < end - begin; ++j) {
      each(j, bicubic((static_cast<double>(j + begin) - center + 0.5) * shrink) / sum);
    }
    *first = static_cast<int32_t>(begin);
    *count = static_cast<int32_t>(end - begin);
  }

  // The weights as Pillow's integers.
  EAGLE_HOST_DEVICE void taps(int64_t i, int32_t* first, int32_t* count, int32_t* taps) const {
    weights(i, first, count, [taps](int64_t j, double w) {
      taps[j] = static_cast<int32_t>((w < 0 ? -0.5 : 0.5) + w * (1 << kWeightBits));
    });
  }
};

// Whether the columns are resized before the rows.
inline bool columns_first(PassOrder order, const Axis& across, const Axis& down) {
  return order == PassOrder::kPillow && down.out < down.in && 2 * (across.in - across.out) < down.in - down.out;
}

// One resize of the whole frame: to the grid, or to the thumbnail.
struct Target {
  Axis across, down;
  int first_image, cols;
  bool columns_first;
};

std::vector<Target> make_targets(int64_t width_px, int64_t height_px, const Tiling& tiling);

// The end of one pass for one value: `sum` holds kHalf and all products.
EAGLE_HOST_DEVICE uint8_t round_to_pixel(int32_t sum) {
  const int32_t value = sum >> kWeightBits;
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

EAGLE_HOST_DEVICE void normalise(uint8_t value, float, float, uint8_t* out) { *out = value; }
EAGLE_HOST_DEVICE void normalise(uint8_t value, float mean, float stddev, float* out) {
  *out = (static_cast<float>(value) / 255.0f - mean) / stddev;
}
EAGLE_HOST_DEVICE void normalise(uint8_t value, float mean, float stddev, Bfloat16* out) {
  *out = to_bfloat16((static_cast<float>(value) / 255.0f - mean) / stddev);
}

// Where channel 0 of pixel (y, x) of a tile lies in the tile's patches; channel c lies c * patch_px^2 further.
EAGLE_HOST_DEVICE int64_t patch_offset(int y, int x, int tile_px, int patch_px) {
  const int64_t patch = static_cast<int64_t>(y / patch_px) * (tile_px / patch_px) + x / patch_px;
  return (patch * 3 * patch_px + y % patch_px) * patch_px + x % patch_px;
}

}  // namespace eagle
