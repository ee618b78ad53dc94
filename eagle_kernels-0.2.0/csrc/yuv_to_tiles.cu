// The CUDA code: two launches a call. The first makes the filter weights, in double precision without fma, so they
// equal the CPU's. The second does all the rest: a block of threads makes kBlockX x kBlockY output pixels, plane after
// plane; what lies between the two passes stays in shared memory, and the finished planes in registers, where they
// become RGB.
//
// The second pass adds up its sums (integers) over pieces of the middle, so shared memory does not depend on the scale
// and no scale is too large.
#include <algorithm>

#include "tiles.cuh"
#include "yuv_to_tiles.h"

namespace eagle {
namespace {

constexpr int kMiddleRows = 96;  // of a plane, between the passes, kBlockX wide; 12 KiB of shared memory
constexpr int kPlanes = 3;
constexpr int kMaxResizes = 2;  // to the grid and to the thumbnail
constexpr int kAxes = 4;        // luma across and down, chroma across and down
constexpr int64_t kMaxBlocks = 1 << 20;

struct Plane {
  const uint8_t* samples;
  int64_t frame_bytes, row_bytes, step_bytes;
};

// One resize of all frames.
struct Job {
  void* out;  // the first image of frame 0 that this resize makes
  Axis axes[kAxes];
  Taps taps[kAxes];
  int cols, blocks_across;
  int64_t blocks_a_frame, end_block;  // the last block + 1, counted over the job before too
};

struct Batch {
  Plane planes[kPlanes];
  Job jobs[kMaxResizes];
  int num_jobs, tile_px, patch_px;
  int64_t images_a_frame;
  Colours colours;
  float mean[3], stddev[3];
};
static_assert(sizeof(Batch) <= 4096);

__global__ void yuv_taps_kernel(const __grid_constant__ Batch batch) {
  const int axis_number = static_cast<int>(blockIdx.x) / kTapsBlocks;
  const Job& job = batch.jobs[axis_number / kAxes];
  const Axis& axis = job.axes[axis_number % kAxes];
  const Taps& taps = job.taps[axis_number % kAxes];
  for (int64_t i = blockIdx.x % kTapsBlocks * kThreads + threadIdx.x; i < axis.out; i += kTapsBlocks * kThreads) {
    plane_taps(axis, i, &taps.first[i], &taps.count[i], &taps.weights[i * taps.max_taps]);
  }
}

// One plane of output pixels (x, y0 + row), (x, y0 + row + kRowsAtOnce) and so on: rSums, not shifted yet.
__device__ void resize_plane(const Plane& plane, const Taps& across, const Taps& down, int64_t frame, int64_t x,
                             int64_t end_x, int64_t y0, int64_t end_y, int16_t* sMiddle, int32_t* rSums) {
  const int column = static_cast<int>(threadIdx.x) % kBlockX, row = static_cast<int>(threadIdx.x) / kBlockX;
  const bool is_inside = x < end_x;
  const int32_t across_count = is_inside ? across.count[x] : 0;
  const int32_t* gWeights = across.weights + x * across.max_taps;
  const uint8_t* gColumn =
      plane.samples + frame * plane.frame_bytes + (is_inside ? across.first[x] : 0) * plane.step_bytes;
  const int32_t from = down.first[y0], to = down.first[end_y - 1] + down.count[end_y - 1];
  const int64_t y = y0 + row;
  const int num_rows = is_inside ? static_cast<int>(end_y - y) : 0;  // of this thread's pixels and those between them
  const int32_t *gFirst = down.first + y, *gCount = down.count + y, *gDown = down.weights + y * down.max_taps;
  for (int j = 0; j < kPixels; ++j) rSums[j] = 1 << (kDownShift - 1);
  for (int32_t begin = from; begin < to; begin += kMiddleRows) {
    const int32_t end = begin + kMiddleRows < to ? begin + kMiddleRows : to;
    for (int32_t source_y = begin + row; source_y < end && is_inside; source_y += kRowsAtOnce) {
      const uint8_t* gSample = gColumn + source_y * plane.row_bytes;
      int32_t sum = 1 << (kAcrossShift - 1);
#pragma unroll 2  // more takes registers that a third block on sm_100 needs
      for (int32_t k = 0; k < across_count; ++k, gSample += plane.step_bytes) sum += *gSample * gWeights[k];
      sMiddle[(source_y - begin) * kBlockX + column] = static_cast<int16_t>(sum >> kAcrossShift);
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
      const int at = j * kRowsAtOnce;
      if (at >= num_rows) continue;
      const int32_t first = gFirst[at], after = first + gCount[at];
      const int32_t stop = after < end ? after : end;
      const int32_t start = first > begin ? first : begin;
      const int16_t* sValue = sMiddle + (start - begin) * kBlockX + column;
      const int32_t* gWeight = gDown + at * down.max_taps + (start - first);
      for (int32_t k = start; k < stop; ++k, sValue += kBlockX, ++gWeight) rSums[j] += *sValue * *gWeight;
    }
    __syncthreads();
  }
}

// Output pixels x0 .. x0 + kBlockX - 1 of rows y0 .. y0 + kBlockY - 1.
template <class T>
__device__ void make_block(const Batch& batch, const Job& job, int64_t frame, int64_t x0, int64_t y0,
                           const T (*sTable)[256], int16_t* sMiddle) {
  const int64_t width = job.axes[0].out, height = job.axes[1].out;
  const int64_t end_x = x0 + kBlockX < width ? x0 + kBlockX : width;
  const int64_t end_y = y0 + kBlockY < height ? y0 + kBlockY : height;
  const int64_t x = x0 + static_cast<int>(threadIdx.x) % kBlockX;
  const int row = static_cast<int>(threadIdx.x) / kBlockX;
  int32_t rSums[kPlanes][kPixels];
#pragma unroll
  for (int p = 0; p < kPlanes; ++p) {
    const int across = p == 0 ? 0 : 2;
    resize_plane(batch.planes[p], job.taps[across], job.taps[across + 1], frame, x, end_x, y0, end_y, sMiddle,
                 rSums[p]);
  }
  if (x >= end_x) return;
  const int tile_px = batch.tile_px, patch_px = batch.patch_px;
  const int64_t patch_values = int64_t{patch_px} * patch_px;
  T* gImages = static_cast<T*>(job.out) + frame * batch.images_a_frame * 3 * tile_px * tile_px;
#pragma unroll
  for (int j = 0; j < kPixels; ++j) {
    const int64_t y = y0 + row + j * kRowsAtOnce;
    if (y >= end_y) continue;
    uint8_t rgb[3];
    to_rgb(rSums[0][j] >> kDownShift, rSums[1][j] >> kDownShift, rSums[2][j] >> kDownShift, batch.colours, rgb);
    T* to = pixel_of_tiles(gImages, y, x, job.cols, tile_px, patch_px);
    for (int c = 0; c < 3; ++c) to[c * patch_values] = sTable[c][rgb[c]];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) yuv_tiles_kernel(const __grid_constant__ Batch batch) {
  __shared__ int16_t sMiddle[kMiddleRows * kBlockX];
  __shared__ T sTable[3][256];
  fill_table(batch.mean, batch.stddev, sTable);
  __syncthreads();
  const int64_t num_blocks = batch.jobs[batch.num_jobs - 1].end_block;
  for (int64_t b = blockIdx.x; b < num_blocks; b += gridDim.x) {
    const int j = b < batch.jobs[0].end_block ? 0 : 1;
    const Job& job = batch.jobs[j];
    const int64_t in_job = j == 0 ? b : b - batch.jobs[0].end_block;
    const int64_t in_frame = in_job % job.blocks_a_frame;
    const int64_t x0 = in_frame % job.blocks_across * kBlockX, y0 = in_frame / job.blocks_across * kBlockY;
    make_block(batch, job, in_job / job.blocks_a_frame, x0, y0, sTable, sMiddle);
  }
}

template <class T>
void run(const YuvFrames& frames, const TensorView& out, const Tiling& tiling, const TensorView& workspace,
         cudaStream_t stream) {
  Batch batch{};
  const TensorView* planes[kPlanes] = {&frames.y, &frames.u, &frames.v};
  for (int p = 0; p < kPlanes; ++p) {
    const TensorView& plane = *planes[p];
    batch.planes[p] = {static_cast<const uint8_t*>(plane.data), plane.strides[0], plane.strides[1], plane.strides[2]};
  }
  batch.tile_px = tiling.tile_px;
  batch.patch_px = tiling.patch_px;
  batch.images_a_frame = tiling.num_images();
  batch.colours = frames.colours;
  for (int c = 0; c < 3; ++c) {
    batch.mean[c] = tiling.mean[c];
    batch.stddev[c] = tiling.stddev[c];
  }
  uint8_t* next = static_cast<uint8_t*>(workspace.data);
  int64_t num_blocks = 0;
  for (const YuvTarget& target : make_yuv_targets(frames, tiling)) {
    Job& job = batch.jobs[batch.num_jobs++];
    job.out = static_cast<T*>(out.data) + target.first_image * 3 * int64_t{tiling.tile_px} * tiling.tile_px;
    const Axis axes[] = {target.luma_across, target.luma_down, target.chroma_across, target.chroma_down};
    for (int a = 0; a < kAxes; ++a) {
      job.axes[a] = axes[a];
      job.taps[a] = make_taps(axes[a], next);
    }
    job.cols = target.cols;
    const int64_t blocks_across = (target.luma_across.out + kBlockX - 1) / kBlockX;
    job.blocks_across = static_cast<int>(blocks_across);
    job.blocks_a_frame = (target.luma_down.out + kBlockY - 1) / kBlockY * blocks_across;
    num_blocks += job.blocks_a_frame * frames.y.shape[0];
    job.end_block = num_blocks;
  }
  if (num_blocks == 0) return;
  yuv_taps_kernel<<<kAxes * kTapsBlocks * batch.num_jobs, kThreads, 0, stream>>>(batch);
  check_launch("yuv_to_tiles, weights");
  yuv_tiles_kernel<T><<<static_cast<unsigned>(std::min(num_blocks, kMaxBlocks)), kThreads, 0, stream>>>(batch);
  check_launch("yuv_to_tiles");
}

}  // namespace

int64_t yuv_to_tiles_workspace_bytes(const YuvFrames& frames, const Tiling& tiling) {
  int64_t bytes = 0;
  for (const YuvTarget& t : make_yuv_targets(frames, tiling)) {
    bytes +=
        taps_bytes(t.luma_across) + taps_bytes(t.luma_down) + taps_bytes(t.chroma_across) + taps_bytes(t.chroma_down);
  }
  return bytes;
}

void yuv_to_tiles_cuda(const YuvFrames& frames, const TensorView& out, const Tiling& tiling,
                       const TensorView& workspace, int device, uintptr_t stream) {
  check_yuv_to_tiles(frames, out, tiling);
  check_workspace("yuv_to_tiles", workspace, yuv_to_tiles_workspace_bytes(frames, tiling));
  const DeviceGuard guard(device);
  with_type<uint8_t, Bfloat16, float>(
      out.dtype, [&]<class T>() { run<T>(frames, out, tiling, workspace, reinterpret_cast<cudaStream_t>(stream)); });
}

}  // namespace eagle
