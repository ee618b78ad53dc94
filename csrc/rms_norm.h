// RMSNorm, alone or of a sum: y = h / sqrt(mean(h^2) + eps) * weight, h = x or x + residual. CPU code.
//
//   x, residual  [T, C]  bf16 | f32   C side by side; residual may have no elements: there is none
//   weight       [C]     x's dtype    contiguous
//   y, h         [T, C]  x's dtype    contiguous, written; h has no elements where residual has none
//
// fp32 inside; the sum and the normalised number are rounded to x's dtype, as in rms_norm.py. The bits depend on no
// thread and no kind of CPU.
#pragma once

#include "tensor_view.h"

namespace eagle {

// Throws std::invalid_argument (Python: ValueError) unless the tensors are as above. simd = false: no vector code
// beyond what every CPU has.
void rms_norm_cpu(const TensorView& x, const TensorView& residual, const TensorView& weight, const TensorView& y,
                  const TensorView& h, float eps, bool simd);

}  // namespace eagle
