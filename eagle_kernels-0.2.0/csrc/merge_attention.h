// Two partial attention outputs over keys that do not overlap -> the output over all of them.
//
//   out_a, out_b, out  [T, H, D]  bf16 | f16 | f32, one dtype; D side by side, the other strides multiples of 8
//   lse_a, lse_b, lse  [H, T]     f32, any strides; -inf: that side saw no key, and its out is not looked at
#pragma once

#include "attention_heads.h"

namespace eagle {

struct MergeAttention {
  TensorView out_a, lse_a, out_b, lse_b, out, lse;
};

// `num_threads` = 0: one for each CPU of this process. The bits of the result do not depend on it.
// Throws std::invalid_argument (Python: ValueError) when a size, stride or dtype is not as above.
void merge_attention_cpu(const MergeAttention& tensors, int num_threads);

// Asynchronous on `stream` of `device`; keep all buffers alive until it ran.
void merge_attention_cuda(const MergeAttention& tensors, int device, uintptr_t stream);

// Throws unless the tensors agree.
void check_merge_attention(const MergeAttention& tensors);

// ---- the arithmetic, shared by the CPU and the CUDA code ---------------------------------------------------------

template <class T>
struct HeadRows {  // [T, H, D] as vectors
  T* data;
  int64_t row_stride, head_stride;

  explicit HeadRows(const TensorView& view)
      : data(static_cast<T*>(view.data)), row_stride(view.strides[0]), head_stride(view.strides[1]) {}
  EAGLE_HOST_DEVICE Vector<T>* at(int64_t row, int64_t head) const {
    return reinterpret_cast<Vector<T>*>(data + row * row_stride + head * head_stride);
  }
};

struct HeadNumbers {  // [H, T]
  float* data;
  int64_t head_stride, row_stride;

  explicit HeadNumbers(const TensorView& view)
      : data(static_cast<float*>(view.data)), head_stride(view.strides[0]), row_stride(view.strides[1]) {}
  EAGLE_HOST_DEVICE float* at(int64_t row, int64_t head) const { return data + head * head_stride + row * row_stride; }
};

template <class T>
struct Merge {
  HeadRows<T> out_a, out_b, out;
  HeadNumbers lse_a, lse_b, lse;
  int64_t num_heads;
  int num_vectors;  // of a head

  explicit Merge(const MergeAttention& t)
      : out_a(t.out_a),
        out_b(t.out_b),
        out(t.out),
        lse_a(t.lse_a),
        lse_b(t.lse_b),
        lse(t.lse),
        num_heads(t.out.shape[1]),
        num_vectors(static_cast<int>(t.out.shape[2] / kVector)) {}

  // Vectors begin .. end - 1 of head i % num_heads of row i / num_heads; the first of a head writes its lse.
  EAGLE_HOST_DEVICE void run(int64_t i, int begin, int end) const {
    const int64_t row = i / num_heads, head = i % num_heads;
    const MergeWeights weights = merge_weights(*lse_a.at(row, head), *lse_b.at(row, head));
    const Vector<T>*a = out_a.at(row, head), *b = out_b.at(row, head);
    Vector<T>* to = out.at(row, head);
    for (int v = begin; v < end; ++v) {
      const Vector<T> from_a = a[v], from_b = b[v];
      Vector<T> result;
      for (int e = 0; e < kVector; ++e) {
        result.of[e] = from_float<T>(weights.merge(to_float(from_a.of[e]), to_float(from_b.of[e])));
      }
      to[v] = result;
    }
    if (begin == 0) *lse.at(row, head) = weights.lse;
  }
};

}  // namespace eagle
