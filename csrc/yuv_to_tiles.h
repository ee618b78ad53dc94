// Decoded 4:2:0 planes -> the normalised patches of their tiles, in one pass and without an RGB picture in between.
//
// Each plane is resized whole, as tiles.h says, but for its second pass, which keeps kPlaneBits below the point and
// does not clip; then Colours makes RGB of the three, rounded once. The order of the passes follows the plane's own
// size.
//
//   y    [L, Y, X]            u8               samples of a row contiguous, frames and rows free
//   u, v [L, (Y+1)/2, (X+1)/2] u8              samples of a row one apart (planar) or two (NV12)
//   out  [L * images, P, K]   u8 | bf16 | f32  see tiles.h
#pragma once

#include <string>
#include <vector>

#include "tiles.h"

namespace eagle {

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

// Luma's resizes, to the grid and to the thumbnail, and chroma's.
struct YuvTarget {
  Target luma, chroma;
};

std::vector<YuvTarget> make_yuv_targets(const YuvFrames& frames, const Tiling& tiling);

}  // namespace eagle
