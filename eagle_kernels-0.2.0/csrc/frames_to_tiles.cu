// The CUDA code: two launches a call, however many images of however many sizes it is given. The first makes the filter
// weights, in double precision without fma, so they equal the CPU's. The second does all the rest: a block of threads
// makes kBlockX x kBlockY output pixels; what lies between the two passes stays in shared memory, as bytes.
//
// The second pass adds up its sums (integers, in registers) over pieces of the middle, so shared memory does not depend
// on the scale and no scale is too large. With columns first the same code runs with the axes swapped.
#include <algorithm>
#include <vector>

#include "frames_to_tiles.h"
#include "tiles.cuh"

namespace eagle {
namespace {

constexpr int kMiddlePixels = 4096;                   // between the passes; 12 KiB of shared memory
constexpr int kMiddleRows = kMiddlePixels / kBlockX;  // rows first: rows of the frame, kBlockX wide
constexpr int kMiddleCols = kMiddlePixels / kBlockY;  // columns first: columns of the frame, kBlockY high
constexpr int64_t kMaxBlocks = 1 << 20;
constexpr int kMaxJobs = 128;  // of one launch: they travel as its arguments, at most 32764 bytes

// One resize of the frames of one tensor.
struct Job {
  const uint8_t* frames;
  int64_t frame_bytes, row_bytes;
  void* out;  // the first image of frame 0 that this resize makes
  int64_t images_a_frame;
  Axis across_axis, down_axis;
  Taps across, down;
  int cols, blocks_across;
  bool columns_first;
  int64_t blocks_a_frame, end_block;  // the last block + 1, counted over all jobs before
};

struct Batch {
  Job jobs[kMaxJobs];
  int num_jobs, tile_px, patch_px;
  float mean[3], stddev[3];
};
static_assert(sizeof(Batch) <= 32764);

__global__ void taps_kernel(const __grid_constant__ Batch batch) {
  const int axis_number = static_cast<int>(blockIdx.x) / kTapsBlocks;
  const Job& job = batch.jobs[axis_number / 2];
  const Axis& axis = axis_number % 2 == 0 ? job.across_axis : job.down_axis;
  const Taps& taps = axis_number % 2 == 0 ? job.across : job.down;
  for (int64_t i = blockIdx.x % kTapsBlocks * kThreads + threadIdx.x; i < axis.out; i += kTapsBlocks * kThreads) {
    axis.taps(i, &taps.first[i], &taps.count[i], &taps.weights[i * taps.max_taps]);
  }
}

// One pixel of the first pass; neighbours along its axis lie `stride` bytes apart, the middle's planes kMiddlePixels.
__device__ void first_pass(const uint8_t* gPixels, int64_t stride, const Taps& taps, int64_t i, uint8_t* sPixel) {
  const int32_t* weights = taps.weights + i * taps.max_taps;
  const int32_t count = taps.count[i];
  gPixels += taps.first[i] * stride;
  int32_t red = kHalf, green = kHalf, blue = kHalf;
  for (int32_t k = 0; k < count; ++k, gPixels += stride) {
    red += gPixels[0] * weights[k];
    green += gPixels[1] * weights[k];
    blue += gPixels[2] * weights[k];
  }
  sPixel[0] = round_to_pixel(red);
  sPixel[kMiddlePixels] = round_to_pixel(green);
  sPixel[2 * kMiddlePixels] = round_to_pixel(blue);
}

// Output pixels x0 .. x0 + kBlockX - 1 of rows y0 .. y0 + kBlockY - 1.
template <bool kColumnsFirst, class T>
__device__ void make_block(const Batch& batch, const Job& job, int64_t frame, int64_t x0, int64_t y0,
                           const T (*sTable)[256], uint8_t* sMiddle) {
  const int64_t width = job.across_axis.out, height = job.down_axis.out;
  const int64_t end_x = x0 + kBlockX < width ? x0 + kBlockX : width;
  const int64_t end_y = y0 + kBlockY < height ? y0 + kBlockY : height;
  const uint8_t* gFrame = job.frames + frame * job.frame_bytes;
  const int column = static_cast<int>(threadIdx.x) % kBlockX, row = static_cast<int>(threadIdx.x) / kBlockX;
  const int64_t x = x0 + column;

  // The part of the frame that the second pass reads along its axis, piece by piece.
  constexpr int kPiece = kColumnsFirst ? kMiddleCols : kMiddleRows;
  const Taps& second = kColumnsFirst ? job.across : job.down;
  const int64_t last = (kColumnsFirst ? end_x : end_y) - 1;
  const int32_t from = second.first[kColumnsFirst ? x0 : y0], to = second.first[last] + second.count[last];

  int32_t rSums[kPixels][3];
  for (int j = 0; j < kPixels; ++j) {
    for (int c = 0; c < 3; ++c) rSums[j][c] = kHalf;
  }
  for (int32_t begin = from; begin < to; begin += kPiece) {
    const int32_t end = begin + kPiece < to ? begin + kPiece : to;
    for (int i = static_cast<int>(threadIdx.x); i < kMiddlePixels; i += kThreads) {
      if constexpr (kColumnsFirst) {
        const int32_t source_x = begin + i % kMiddleCols;
        const int64_t y = y0 + i / kMiddleCols;
        if (source_x < end && y < end_y) {
          first_pass(gFrame + source_x * int64_t{3}, job.row_bytes, job.down, y, sMiddle + i);
        }
      } else {
        const int32_t source_y = begin + i / kBlockX;
        if (source_y < end && x < end_x) first_pass(gFrame + source_y * job.row_bytes, 3, job.across, x, sMiddle + i);
      }
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
      const int block_y = row + j * kRowsAtOnce;
      if (x >= end_x || y0 + block_y >= end_y) continue;
      const int64_t at = kColumnsFirst ? x : y0 + block_y;
      const int32_t first = second.first[at], after = first + second.count[at];
      const int32_t* weights = second.weights + at * second.max_taps - first;
      const int32_t stop = after < end ? after : end;
      for (int32_t k = first > begin ? first : begin; k < stop; ++k) {
        const uint8_t* sPixel =
            sMiddle + (kColumnsFirst ? block_y * kMiddleCols + (k - begin) : (k - begin) * kBlockX + column);
        for (int c = 0; c < 3; ++c) rSums[j][c] += sPixel[c * kMiddlePixels] * weights[k];
      }
    }
    __syncthreads();
  }

  if (x >= end_x) return;
  const int tile_px = batch.tile_px, patch_px = batch.patch_px;
  const int64_t patch_values = int64_t{patch_px} * patch_px;
  T* gImages = static_cast<T*>(job.out) + frame * job.images_a_frame * 3 * tile_px * tile_px;
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    const int64_t y = y0 + row + j * kRowsAtOnce;
    if (y >= end_y) continue;
    T* to = pixel_of_tiles(gImages, y, x, job.cols, tile_px, patch_px);
    for (int c = 0; c < 3; ++c) to[c * patch_values] = sTable[c][round_to_pixel(rSums[j][c])];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) tiles_kernel(const __grid_constant__ Batch batch) {
  __shared__ uint8_t sMiddle[3 * kMiddlePixels];
  __shared__ T sTable[3][256];
  fill_table(batch.mean, batch.stddev, sTable);
  __syncthreads();
  const int64_t num_blocks = batch.jobs[batch.num_jobs - 1].end_block;
  for (int64_t b = blockIdx.x; b < num_blocks; b += gridDim.x) {
    int j = 0;
    while (b >= batch.jobs[j].end_block) ++j;
    const Job& job = batch.jobs[j];
    const int64_t in_job = b - (j == 0 ? 0 : batch.jobs[j - 1].end_block);
    const int64_t in_frame = in_job % job.blocks_a_frame;
    const int64_t x0 = in_frame % job.blocks_across * kBlockX, y0 = in_frame / job.blocks_across * kBlockY;
    if (job.columns_first) {
      make_block<true>(batch, job, in_job / job.blocks_a_frame, x0, y0, sTable, sMiddle);
    } else {
      make_block<false>(batch, job, in_job / job.blocks_a_frame, x0, y0, sTable, sMiddle);
    }
  }
}

template <class T>
void launch(const Batch& batch, cudaStream_t stream) {
  const int64_t num_blocks = batch.jobs[batch.num_jobs - 1].end_block;
  if (num_blocks == 0) return;
  taps_kernel<<<2 * kTapsBlocks * batch.num_jobs, kThreads, 0, stream>>>(batch);
  check_launch("frames_to_tiles, weights");
  tiles_kernel<T><<<static_cast<unsigned>(std::min(num_blocks, kMaxBlocks)), kThreads, 0, stream>>>(batch);
  check_launch("frames_to_tiles");
}

template <class T>
void run(const std::vector<FrameGroup>& groups, const TensorView& out, const TensorView& workspace,
         cudaStream_t stream) {
  T* images = static_cast<T*>(out.data);
  uint8_t* next = static_cast<uint8_t*>(workspace.data);
  Batch batch{};
  for (size_t g = 0; g < groups.size(); ++g) {
    const TensorView& frames = groups[g].frames;
    const Tiling& tiling = groups[g].tiling;
    batch.tile_px = tiling.tile_px;
    batch.patch_px = tiling.patch_px;
    for (int c = 0; c < 3; ++c) {
      batch.mean[c] = tiling.mean[c];
      batch.stddev[c] = tiling.stddev[c];
    }
    const int64_t image_values = 3 * int64_t{tiling.tile_px} * tiling.tile_px;
    for (const Target& target : make_targets(frames.shape[2], frames.shape[1], tiling)) {
      const int64_t blocks_across = (target.across.out + kBlockX - 1) / kBlockX;
      const int64_t blocks_a_frame = (target.down.out + kBlockY - 1) / kBlockY * blocks_across;
      const int64_t before = batch.num_jobs == 0 ? 0 : batch.jobs[batch.num_jobs - 1].end_block;
      batch.jobs[batch.num_jobs++] = {static_cast<const uint8_t*>(frames.data),
                                      frames.strides[0],
                                      frames.strides[1],
                                      images + target.first_image * image_values,
                                      tiling.num_images(),
                                      target.across,
                                      target.down,
                                      make_taps(target.across, next),
                                      make_taps(target.down, next),
                                      target.cols,
                                      static_cast<int>(blocks_across),
                                      target.columns_first,
                                      blocks_a_frame,
                                      before + blocks_a_frame * frames.shape[0]};
    }
    images += frames.shape[0] * tiling.num_images() * image_values;
    if (g + 1 == groups.size() || batch.num_jobs + 2 > kMaxJobs) {
      launch<T>(batch, stream);
      batch.num_jobs = 0;
    }
  }
}

}  // namespace

int64_t frames_to_tiles_workspace_bytes(const std::vector<FrameGroup>& groups) {
  int64_t bytes = 0;
  for (const FrameGroup& group : groups) {
    for (const Target& target : make_targets(group.frames.shape[2], group.frames.shape[1], group.tiling)) {
      bytes += taps_bytes(target.across) + taps_bytes(target.down);
    }
  }
  return bytes;
}

void frames_to_tiles_cuda(const std::vector<FrameGroup>& groups, const TensorView& out, const TensorView& workspace,
                          int device, uintptr_t stream) {
  check_frames_to_tiles(groups, out);
  check_workspace("frames_to_tiles", workspace, frames_to_tiles_workspace_bytes(groups));
  const DeviceGuard guard(device);
  with_type<uint8_t, Bfloat16, float>(
      out.dtype, [&]<class T>() { run<T>(groups, out, workspace, reinterpret_cast<cudaStream_t>(stream)); });
}

}  // namespace eagle
