// SwiGLU of a fused projection: out = silu(gate) * up, in one pass. CPU code.
//
//   gate_up  [T, 2F]  bf16 | f32       2F side by side: gate, then up
//   out      [T, F]   gate_up's dtype  contiguous, written
//
// fp32 inside, one rounding on store. The bits depend on no kind of CPU.
#pragma once

#include "tensor_view.h"

namespace eagle {

// Throws std::invalid_argument (Python: ValueError) unless the tensors are as above. simd = false: no vector code
// beyond what every CPU has.
void swiglu_halves_cpu(const TensorView& gate_up, const TensorView& out, bool simd);

}  // namespace eagle
