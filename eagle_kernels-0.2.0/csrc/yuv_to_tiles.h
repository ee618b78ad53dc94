// Decoded 4:2:0 planes -> the normalised patches of their tiles, in one pass and without an RGB picture in between.
//
// Each plane is resized whole, rows first, by Pillow's filters in other numbers: weights have 14 fractional bits and
// add up to 1 exactly; what comes out of a pass has 6 and is not clipped. Then Colours makes RGB of the three, rounded
// once.
//
//   y    [L, Y, X]           u8               samples of a row contiguous, frames and rows free
//   u, v [L, H, W]           u8               halves, rounded up; samples of a row one apart (planar) or two (NV12)
//   out  [L * images, P, K]  u8 | bf16 | f32  see tiles.h
#pragma once

#include <string>
#include <vector>

#include "tiles.h"

namespace eagle {

// ---- the arithmetic, shared by the CPU and the CUDA code ---------------------------------------------------------

constexpr int kTapBits = 14;   // below the point of a weight, and
constexpr int kPlaneBits = 6;  // of a value between the passes and after them: both fit 16 bits, as no filter's weights
                               // add up to more than 1.26 without their signs: 255 * 64 * 1.26^2 < 2^15
constexpr int kAcrossShift = kTapBits - kPlaneBits, kDownShift = kTapBits;

// The weights of output pixel `i`. The running sum is rounded and not each weight, so that they add up to 2^14 however
// many they are: a plain picture stays what it is.
EAGLE_HOST_DEVICE void plane_taps(const Axis& axis, int64_t i, int32_t* first, int32_t* count, int32_t* taps) {
  double sum = 0.0;
  int32_t before = 0;
  axis.weights(i, first, count, [&](int64_t j, double w) {
    sum += w;
    const int32_t upto = static_cast<int32_t>(floor(sum * (1 << kTapBits) + 0.5));
    taps[j] = upto - before;
    before = upto;
  });
}

// Y'CbCr -> R'G'B' in integers: the matrix with kMatrixBits below the point, each number within 16 bits.
constexpr int kMatrixBits = 13;
constexpr int kColourShift = kMatrixBits + kPlaneBits;

struct Colours {
  int32_t y, v_to_red, u_to_green, v_to_green, u_to_blue;
  int32_t bias[3];  // rounds, and takes luma's black and chroma's 128 away
};

inline Colours make_colours(int y, int v_to_red, int u_to_green, int v_to_green, int u_to_blue, int black) {
  Colours colours{y, v_to_red, u_to_green, v_to_green, u_to_blue, {}};
  const int chroma[] = {v_to_red, u_to_green + v_to_green, u_to_blue};
  for (int c = 0; c < 3; ++c) {
    colours.bias[c] = (1 << (kColourShift - 1)) - (1 << kPlaneBits) * (y * black + chroma[c] * 128);
  }
  return colours;
}

EAGLE_HOST_DEVICE uint8_t round_to_colour(int32_t sum) {
  const int32_t value = sum >> kColourShift;
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// One pixel of resized planes.
EAGLE_HOST_DEVICE void to_rgb(int32_t y, int32_t u, int32_t v, const Colours& m, uint8_t* rgb) {
  rgb[0] = round_to_colour(m.bias[0] + m.y * y + m.v_to_red * v);
  rgb[1] = round_to_colour(m.bias[1] + m.y * y + m.u_to_green * u + m.v_to_green * v);
  rgb[2] = round_to_colour(m.bias[2] + m.y * y + m.u_to_blue * u);
}

// ---- the calls ---------------------------------------------------------------------------------------------------

struct YuvFrames {
  TensorView y, u, v;
  Colours colours;
  // Chroma samples lie on every second one of luma, across and down, and not between two.
  bool cosited_across, cosited_down;
};

// `num_threads`, `simd` and errors as for frames_to_tiles_cpu.
void yuv_to_tiles_cpu(const YuvFrames& frames, const TensorView& out, const Tiling& tiling, int num_threads,
                      const std::string& simd);

// Two launches. Asynchronous, and `workspace` used, as for frames_to_tiles_cuda.
int64_t yuv_to_tiles_workspace_bytes(const YuvFrames& frames, const Tiling& tiling);
void yuv_to_tiles_cuda(const YuvFrames& frames, const TensorView& out, const Tiling& tiling,
                       const TensorView& workspace, int device, uintptr_t stream);

// Throws unless frames, tiling and out agree.
void check_yuv_to_tiles(const YuvFrames& frames, const TensorView& out, const Tiling& tiling);

// One resize of the whole frame: to the grid, or to the thumbnail.
struct YuvTarget {
  Axis luma_across, luma_down, chroma_across, chroma_down;
  int first_image, cols;
};

std::vector<YuvTarget> make_yuv_targets(const YuvFrames& frames, const Tiling& tiling);

}  // namespace eagle
