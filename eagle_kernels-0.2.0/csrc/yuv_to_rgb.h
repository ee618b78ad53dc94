// A decoded 4:2:0 picture -> RGB of its own size: chroma enlarged between its samples, colours rounded once.
//
//   y    [Y, X]     u8  samples of a row contiguous, rows free
//   u, v [H, W]     u8  halves, rounded up; samples of a row one apart (planar) or two (NV12)
//   out  [Y, X, 3]  u8  contiguous
#pragma once

#include <string>

#include "yuv_to_tiles.h"

namespace eagle {

// In the caller's thread. `colours` as for yuv_to_tiles. Chroma samples lie between two rows of luma's; across on every
// second one of luma's (`cosited_across`), or between two. `simd`: the vector code to take, simd() or a lesser one; the
// bits do not depend on it.
// Throws std::invalid_argument (Python: ValueError) when a size, stride or dtype is not as above.
void yuv_to_rgb(const TensorView& y, const TensorView& u, const TensorView& v, const TensorView& out,
                const Colours& colours, bool cosited_across, const std::string& simd);

}  // namespace eagle
