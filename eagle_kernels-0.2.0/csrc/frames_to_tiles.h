// RGB frames -> the normalised patches of their tiles, with Pillow's bicubic arithmetic, in one pass.
//
//   frames [L, Y, X, 3]        u8               pixels of a row contiguous (strides ..., 3, 1), frames and rows free
//   out    [L * images, P, K]  u8 | bf16 | f32  see tiles.h
#pragma once

#include <string>
#include <vector>

#include "tiles.h"

namespace eagle {

// `num_threads` = 0: one for each CPU of this process. `simd`: the vector code to take, simd() or a lesser one. The
// bits of the result depend on neither. Throws std::invalid_argument (Python: ValueError) when a size, stride or dtype
// is not as above, or the CPU lacks simd.
void frames_to_tiles_cpu(const TensorView& frames, const TensorView& out, const Tiling& tiling, int num_threads,
                         const std::string& simd);

// Frames of one size and their grid. `frames` is as above.
struct FrameGroup {
  TensorView frames;
  Tiling tiling;
};

// The images of all groups, one group after the other, in `out`; the tilings may differ in grid alone. Two launches for
// up to 64 groups. Asynchronous on `stream` of `device`; keep all buffers alive until it ran. `workspace` is u8,
// contiguous, of at least frames_to_tiles_workspace_bytes; its contents do not matter.
int64_t frames_to_tiles_workspace_bytes(const std::vector<FrameGroup>& groups);
void frames_to_tiles_cuda(const std::vector<FrameGroup>& groups, const TensorView& out, const TensorView& workspace,
                          int device, uintptr_t stream);

// Throws unless frames, tilings and out agree.
void check_frames_to_tiles(const std::vector<FrameGroup>& groups, const TensorView& out);

}  // namespace eagle
