// Visual tokens and text embeddings, row by row: joined into one tensor, or, which is the gradient, split again.
//
//   text    [T, B]  u8   embeddings;     backward: their gradient, 0 in the rows of visual tokens
//   visual  [N, B]  u8   visual tokens;  backward: their gradient
//   rows    [N]     i32 | i64, any stride: visual token n is row rows[n]; strictly ascending, 0 <= row < T
//   whole   [T, B]  u8   both;           backward: their gradient
//
// A copy looks at no value: B is the bytes of a row, side by side; rows may lie apart. In backward a [0, 0] gradient is
// not wanted, and nothing looks whether the rows ascend: forward did. Wrong ones reach no memory outside.
#pragma once

#include "device.cuh"
#include "tensor_view.h"

namespace eagle {

struct ScatterVisual {
  TensorView text, visual, rows, whole;
  bool backward = false;
};

// `num_threads` = 0: one for each CPU of this process. Throws std::invalid_argument (Python: ValueError), before
// anything is written, when a size, stride or dtype is not as above; in forward when the rows are not.
void scatter_visual_cpu(const ScatterVisual& tensors, int num_threads);

// Asynchronous on `stream` of `device`; keep all buffers alive until it ran. Forward asserts on the device that the
// rows ascend strictly within 0 <= row < T.
void scatter_visual_cuda(const ScatterVisual& tensors, int device, uintptr_t stream);

// Throws unless the tensors agree.
void check_scatter_visual(const ScatterVisual& tensors);

// ---- the arithmetic, shared by the CPU and the CUDA code ---------------------------------------------------------

struct ByteRows {
  bool is_wanted;
  char* data;
  int64_t stride;

  explicit ByteRows(const TensorView& view)
      : is_wanted(view.num_elements() > 0),
        data(static_cast<char*>(view.data)),
        stride(is_wanted ? view.strides[0] : 0) {}
  EAGLE_HOST_DEVICE char* at(int64_t row) const { return data + row * stride; }
};

// What one row asks for: a copy of its bytes, and a row of zeros.
struct RowMove {
  bool copies, clears;
  const char* from;
  char *to, *zeros;
};

struct Scatter {
  ByteRows text, visual, whole;
  const void* rows;
  int64_t rows_stride, num_visual, num_rows, row_bytes;
  bool is_wide, backward;  // 64-bit rows

  explicit Scatter(const ScatterVisual& t)
      : text(t.text),
        visual(t.visual),
        whole(t.whole),
        rows(t.rows.data),
        rows_stride(t.rows.strides[0]),
        num_visual(t.rows.shape[0]),
        num_rows(t.whole.shape[0]),
        row_bytes(t.whole.shape[1]),
        is_wide(t.rows.dtype == DType::kInt64),
        backward(t.backward) {}

  EAGLE_HOST_DEVICE int64_t row(int64_t n) const {
    const int64_t i = n * rows_stride;
    return is_wide ? static_cast<const int64_t*>(rows)[i] : static_cast<const int32_t*>(rows)[i];
  }
  EAGLE_HOST_DEVICE bool is_in_order(int64_t n) const {
    return row(n) < num_rows && row(n) > (n == 0 ? -1 : row(n - 1));
  }
  // Each row of `whole` looks itself up by halves, so that forward reads and writes each row once.
  EAGLE_HOST_DEVICE RowMove at(int64_t t) const {
    int64_t n = 0, end = num_visual;  // n becomes the first visual token with row(n) >= t
    while (n < end) {
      const int64_t middle = n + (end - n) / 2;
      if (row(middle) < t) {
        n = middle + 1;
      } else {
        end = middle;
      }
    }
    const bool is_visual = n < num_visual && row(n) == t;
    const bool clears = backward && is_visual && text.is_wanted;
    const bool copies = is_visual ? visual.is_wanted : text.is_wanted;
    char* part = is_visual ? visual.at(n) : text.at(t);
    return {copies, clears, backward ? whole.at(t) : part, backward ? part : whole.at(t), text.at(t)};
  }
};

}  // namespace eagle
