// What the CUDA code of frames_to_tiles and yuv_to_tiles have in common: how the output is cut into blocks of threads,
// the filter weights in the workspace, and where a pixel goes. Host compilers may include it after their own
// __device__.
#pragma once

#include "tiles.h"

namespace eagle {

constexpr int kThreads = 256;
constexpr int kBlockX = 64, kBlockY = 32;        // output pixels of a block of threads
constexpr int kRowsAtOnce = kThreads / kBlockX;  // a thread makes one pixel in each kRowsAtOnce-th row
constexpr int kPixels = kBlockY / kRowsAtOnce;   // output pixels of a thread
constexpr int kTapsBlocks = 8;                   // blocks for the weights of one axis
constexpr int64_t kAlignment = 256;              // bytes

inline int64_t align(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

struct Taps {
  int32_t *first, *count, *weights;  // in the workspace; max_taps weights for each output pixel
  int max_taps;
};

inline int64_t taps_bytes(const Axis& axis) {
  return align(axis.out * (2 + axis.max_taps()) * int64_t{sizeof(int32_t)});
}

// The axis' part of the workspace; `next` moves on.
inline Taps make_taps(const Axis& axis, uint8_t*& next) {
  int32_t* first = reinterpret_cast<int32_t*>(next);
  next += taps_bytes(axis);
  return Taps{first, first + axis.out, first + 2 * axis.out, axis.max_taps()};
}

inline void check_workspace(const std::string& op, const TensorView& workspace, int64_t needed) {
  check(workspace.dtype == DType::kUint8 && workspace.is_contiguous() && workspace.num_elements() >= needed &&
            reinterpret_cast<uintptr_t>(workspace.data) % kAlignment == 0,
        op, ": workspace has ", workspace.num_elements(), " bytes; needs ", needed,
        " contiguous ones at an address divisible by ", kAlignment, ".");
}

// What each byte becomes.
template <class T>
__device__ void fill_table(const float* mean, const float* stddev, T (*sTable)[256]) {
  for (int i = static_cast<int>(threadIdx.x); i < 3 * 256; i += kThreads) {
    normalise(static_cast<uint8_t>(i % 256), mean[i / 256], stddev[i / 256], &sTable[i / 256][i % 256]);
  }
}

// Channel 0 of pixel (y, x) of a resized frame, cut into `cols` tiles across.
template <class T>
__device__ T* pixel_of_tiles(T* gImages, int64_t y, int64_t x, int cols, int tile_px, int patch_px) {
  const int64_t tile = y / tile_px * cols + x / tile_px;
  return gImages + tile * 3 * tile_px * tile_px +
         patch_offset(static_cast<int>(y % tile_px), static_cast<int>(x % tile_px), tile_px, patch_px);
}

}  // namespace eagle
