// The CUDA code, straightforward: one thread a pixel. The weights are computed once a call, in double precision without
// fma, so they equal the CPU's; then each frame takes two kernels a resize: the first pass into the workspace, the
// second straight into patches. Frames follow one another on the stream, so one frame's workspace serves them all.
#include <algorithm>
#include <vector>

#include "frames_to_tiles.h"

namespace eagle {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;
constexpr int64_t kAlignment = 256;  // bytes

int64_t align(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

unsigned num_blocks(int64_t num_threads) {
  return static_cast<unsigned>(std::min((num_threads + kThreads - 1) / kThreads, kMaxBlocks));
}

struct Taps {
  int32_t *first, *count, *weights;  // in the workspace
  int max_taps;
};

// Pixels between the two passes.
int64_t middle_width(const Target& target) { return target.columns_first ? target.across.in : target.across.out; }
int64_t middle_height(const Target& target) { return target.columns_first ? target.down.out : target.down.in; }

int64_t taps_bytes(const Axis& axis) { return align(axis.out * (2 + axis.max_taps()) * int64_t{sizeof(int32_t)}); }

int64_t middle_bytes(const std::vector<Target>& targets) {
  int64_t bytes = 0;
  for (const Target& target : targets) bytes = std::max(bytes, 3 * middle_width(target) * middle_height(target));
  return align(bytes);
}

__global__ void taps_kernel(Axis axis, Taps taps) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < axis.out; i += gridDim.x * int64_t{kThreads}) {
    axis.taps(i, &taps.first[i], &taps.count[i], &taps.weights[i * taps.max_taps]);
  }
}

// One value of a pass over `gPixels`, rows of RGB pixels `row_bytes` apart: along x, or along y.
template <bool kAlongX>
__device__ uint8_t value_at(const uint8_t* gPixels, int64_t row_bytes, const Taps& taps, int64_t y, int64_t x, int c) {
  const int64_t i = kAlongX ? x : y;
  const uint8_t* from =
      gPixels + (kAlongX ? y * row_bytes + taps.first[i] * int64_t{3} : taps.first[i] * row_bytes + x * 3) + c;
  return resample(from, kAlongX ? 3 : row_bytes, taps.weights + i * taps.max_taps, taps.count[i]);
}

template <bool kAlongX>
__global__ void first_pass_kernel(const uint8_t* gPixels, int64_t row_bytes, Taps taps, int64_t width, int64_t height,
                                  uint8_t* gMiddle) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < width * height;
       i += gridDim.x * int64_t{kThreads}) {
    for (int c = 0; c < 3; ++c) {
      gMiddle[i * 3 + c] = value_at<kAlongX>(gPixels, row_bytes, taps, i / width, i % width, c);
    }
  }
}

// The second pass, normalisation and the move into patches; `gTiles` starts at the frame's first image of this resize.
template <bool kAlongX, class T>
__global__ void second_pass_kernel(const uint8_t* gMiddle, int64_t row_bytes, Taps taps, int64_t width, int64_t height,
                                   Tiling tiling, int cols, T* gTiles) {
  const int tile_px = tiling.tile_px, patch_px = tiling.patch_px;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < width * height;
       i += gridDim.x * int64_t{kThreads}) {
    const int64_t y = i / width, x = i % width;
    const int64_t tile = y / tile_px * cols + x / tile_px;
    T* to = gTiles + tile * 3 * tile_px * tile_px +
            patch_offset(static_cast<int>(y % tile_px), static_cast<int>(x % tile_px), tile_px, patch_px);
    for (int c = 0; c < 3; ++c) {
      const uint8_t value = value_at<kAlongX>(gMiddle, row_bytes, taps, y, x, c);
      normalise(value, tiling.mean[c], tiling.stddev[c], to + int64_t{c} * patch_px * patch_px);
    }
  }
}

template <bool kColumnsFirst, class T>
void resize(const uint8_t* frame, int64_t row_bytes, const Target& target, const Taps& across, const Taps& down,
            const Tiling& tiling, uint8_t* middle, T* tiles, cudaStream_t stream) {
  const int64_t width = middle_width(target), height = middle_height(target);
  first_pass_kernel<!kColumnsFirst><<<num_blocks(width * height), kThreads, 0, stream>>>(
      frame, row_bytes, kColumnsFirst ? down : across, width, height, middle);
  check_launch("frames_to_tiles, first pass");
  const int64_t out_width = target.across.out, out_height = target.down.out;
  second_pass_kernel<kColumnsFirst><<<num_blocks(out_width * out_height), kThreads, 0, stream>>>(
      middle, 3 * width, kColumnsFirst ? across : down, out_width, out_height, tiling, target.cols, tiles);
  check_launch("frames_to_tiles, second pass");
}

template <class T>
void run(const TensorView& frames, const TensorView& out, const TensorView& workspace, const Tiling& tiling,
         cudaStream_t stream) {
  const std::vector<Target> targets = make_targets(frames.shape[2], frames.shape[1], tiling);
  uint8_t* middle = static_cast<uint8_t*>(workspace.data);
  uint8_t* next = middle + middle_bytes(targets);
  const auto make_taps = [&](const Axis& axis) {
    int32_t* first = reinterpret_cast<int32_t*>(next);
    const Taps taps{first, first + axis.out, first + 2 * axis.out, axis.max_taps()};
    next += taps_bytes(axis);
    taps_kernel<<<num_blocks(axis.out), kThreads, 0, stream>>>(axis, taps);
    check_launch("frames_to_tiles, weights");
    return taps;
  };
  for (const Target& target : targets) {
    const Taps across = make_taps(target.across), down = make_taps(target.down);
    for (int64_t l = 0; l < frames.shape[0]; ++l) {
      const uint8_t* frame = static_cast<const uint8_t*>(frames.data) + l * frames.strides[0];
      T* tiles = static_cast<T*>(out.data) +
                 (l * tiling.num_images() + target.first_image) * 3 * tiling.tile_px * int64_t{tiling.tile_px};
      const auto resize_frame = target.columns_first ? resize<true, T> : resize<false, T>;
      resize_frame(frame, frames.strides[1], target, across, down, tiling, middle, tiles, stream);
    }
  }
}

}  // namespace

int64_t frames_to_tiles_workspace_bytes(int64_t width_px, int64_t height_px, const Tiling& tiling) {
  const std::vector<Target> targets = make_targets(width_px, height_px, tiling);
  int64_t bytes = middle_bytes(targets);
  for (const Target& target : targets) bytes += taps_bytes(target.across) + taps_bytes(target.down);
  return bytes;
}

void frames_to_tiles_cuda(const TensorView& frames, const TensorView& out, const TensorView& workspace,
                          const Tiling& tiling, int device, uintptr_t stream) {
  check_frames_to_tiles(frames, out, tiling);
  const int64_t needed = frames_to_tiles_workspace_bytes(frames.shape[2], frames.shape[1], tiling);
  check(workspace.dtype == DType::kUint8 && workspace.is_contiguous() && workspace.num_elements() >= needed &&
            reinterpret_cast<uintptr_t>(workspace.data) % kAlignment == 0,
        "frames_to_tiles: workspace has ", workspace.num_elements(), " bytes; needs ", needed,
        " contiguous ones at an address divisible by ", kAlignment, ".");
  if (frames.shape[0] == 0) return;
  const DeviceGuard guard(device);
  const auto cuda_stream = reinterpret_cast<cudaStream_t>(stream);
  switch (out.dtype) {
    case DType::kUint8:
      return run<uint8_t>(frames, out, workspace, tiling, cuda_stream);
    case DType::kBfloat16:
      return run<Bfloat16>(frames, out, workspace, tiling, cuda_stream);
    case DType::kFloat32:
      return run<float>(frames, out, workspace, tiling, cuda_stream);
  }
}

}  // namespace eagle
