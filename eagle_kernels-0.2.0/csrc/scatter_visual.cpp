// The CPU code: threads take blocks of rows from a counter.
#include "scatter_visual.h"

#include <algorithm>
#include <cstring>

#include "parallel.h"

namespace eagle {
namespace {

constexpr int64_t kBlockBytes = 1 << 20;  // some 100 us of work: several times what a thread costs

}  // namespace

void check_scatter_visual(const ScatterVisual& t) {
  check(t.rows.num_dims == 1 && (t.rows.dtype == DType::kInt32 || t.rows.dtype == DType::kInt64),
        "scatter_visual: rows needs int32 or int64 and 1 dim.");
  const auto check_rows = [&](const char* name, const TensorView& view, int64_t num_rows) {
    check(view.num_dims == 2 && view.dtype == DType::kUint8 && (view.shape[1] == 1 || view.strides[1] == 1),
          "scatter_visual: ", name, " needs uint8 and 2 dims, the bytes of a row side by side.");
    const int64_t row_bytes = t.whole.shape[1];
    const bool unwanted = t.backward && view.shape[0] == 0 && view.shape[1] == 0;
    check(unwanted || (view.shape[0] == num_rows && view.shape[1] == row_bytes), "scatter_visual: ", name, " is (",
          view.shape[0], ", ", view.shape[1], "); needs (", num_rows, ", ", row_bytes, ")",
          t.backward ? ", or (0, 0) where it is not wanted." : ".");
  };
  check_rows("whole", t.whole, t.whole.shape[0]);
  check_rows("text", t.text, t.whole.shape[0]);
  check_rows("visual", t.visual, t.rows.shape[0]);
}

void scatter_visual_cpu(const ScatterVisual& tensors, int num_threads) {
  check_scatter_visual(tensors);
  check(num_threads >= 0, "scatter_visual: num_threads is ", num_threads, "; needs >= 0 (0: one for each CPU).");
  const Scatter scatter(tensors);
  for (int64_t n = 0; n < scatter.num_visual && !scatter.backward; ++n) {
    check(scatter.is_in_order(n), "scatter_visual: rows[", n, "] is ", scatter.row(n),
          "; needs rows strictly ascending and within 0 <= row < ", scatter.num_rows, ".");
  }
  if (tensors.whole.num_elements() == 0) return;
  const size_t row_bytes = static_cast<size_t>(scatter.row_bytes);
  const int64_t block_rows = std::max<int64_t>(1, kBlockBytes / scatter.row_bytes);
  parallel_for((scatter.num_rows + block_rows - 1) / block_rows, num_threads, [&] {
    return [&](int64_t block) {
      const int64_t end = std::min((block + 1) * block_rows, scatter.num_rows);
      for (int64_t t = block * block_rows; t < end; ++t) {
        const RowMove move = scatter.at(t);
        if (move.copies) std::memcpy(move.to, move.from, row_bytes);
        if (move.clears) std::memset(move.zeros, 0, row_bytes);
      }
    };
  });
}

}  // namespace eagle
