// A fused projection becomes rotated q and k, and v: split, bias and rotary embedding in one pass. CPU code.
//
//   qkv          [T, F]          bf16 | f32   F side by side: heads of q, of k, of v, each D wide, D even
//   bias         [F]             qkv's dtype  contiguous; no elements: there is none
//   positions    [T]             i32 | i64    0 or more
//   frequencies  [D/2] | [T, D/2]  f32        contiguous: radians a position of each pair, of all tokens or each
//   q, k, v      [T, H|K|K, D]   qkv's dtype  contiguous, written
//
// fp32 inside, one rounding on store; angles are rounded to fp32, their cosines and sines right to it. The bits depend
// on no kind of CPU.
#pragma once

#include "tensor_view.h"

namespace eagle {

struct QkvRope {
  TensorView qkv, bias, positions, frequencies, q, k, v;
  float scale = 1.0f;  // of cosines and sines
};

// Throws std::invalid_argument (Python: ValueError) unless the tensors are as above. simd = false: no vector code
// beyond what every CPU has.
void qkv_rope_cpu(const QkvRope& tensors, bool simd);

}  // namespace eagle
