// Products of few rows with a weight: out = x weight^T + bias. CPU code alone.
//
//   x       [T, C]  bf16 | f32   contiguous, T from 0 to 16
//   weight  [F, C]  x's dtype    contiguous; read once for up to 8 rows of x, which is what the time goes to
//   bias    [F]     x's dtype    contiguous, or no elements: there is none
//   out     [T, F]  x's dtype    contiguous, written
//
// fp32 inside, one rounding on store. A number of `out` is the same whatever the other rows are and however many
// threads there are; CPUs with other vectors (16 lanes, 8, or no fused multiply-add) add in another order.
#pragma once

#include "tensor_view.h"

namespace eagle {

constexpr int kFewRows = 16;  // the most of x

// num_threads: at most so many; fewer where the product is small. simd: "" (the widest that the CPU has), "avx2" or
// "none". Throws std::invalid_argument (Python: ValueError) unless the tensors are as above and the CPU has `simd`.
void few_rows_cpu(const TensorView& x, const TensorView& weight, const TensorView& bias, const TensorView& out,
                  int num_threads, const std::string& simd);

}  // namespace eagle
