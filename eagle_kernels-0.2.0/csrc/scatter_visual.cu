// The CUDA code, bound by memory: a warp takes a row. All of its threads look the row up, each step of which is one
// load for the warp, and then move neighbouring units of it, several on their way at once.
#undef NDEBUG  // the assertion belongs to the op: to look from the host would mean to wait

#include <cassert>

#include "scatter_visual.h"

namespace eagle {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kRows = kThreads / kWarp;  // of a block
constexpr int kLoads = 4;                // of a thread on their way
constexpr int64_t kMaxBlocks = 0x7fffffff;

struct alignas(16) Vector {
  uint32_t words[4];
};

template <class Unit>
__global__ void scatter_kernel(Scatter scatter) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t num_units = scatter.row_bytes / static_cast<int64_t>(sizeof(Unit));
  const int64_t t = blockIdx.x * int64_t{kRows} + threadIdx.x / kWarp;
  if (t >= scatter.num_rows) return;
  const int64_t n = t * kWarp + lane;
  if (!scatter.backward && n < scatter.num_visual) {
    const bool rows_ascend_strictly_and_lie_in_the_embeddings = scatter.is_in_order(n);
    assert(rows_ascend_strictly_and_lie_in_the_embeddings);
  }
  const RowMove move = scatter.at(t);
  if (move.copies) {
    const Unit* from = reinterpret_cast<const Unit*>(move.from);
    Unit* to = reinterpret_cast<Unit*>(move.to);
    for (int64_t first = lane; first < num_units; first += kLoads * kWarp) {
      Unit rUnits[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (first + i * kWarp < num_units) rUnits[i] = from[first + i * kWarp];
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (first + i * kWarp < num_units) to[first + i * kWarp] = rUnits[i];
      }
    }
  }
  if (move.clears) {
    Unit* zeros = reinterpret_cast<Unit*>(move.zeros);
    for (int64_t i = lane; i < num_units; i += kWarp) zeros[i] = Unit{};
  }
}

template <class Unit>
void run(const Scatter& scatter, cudaStream_t stream) {
  const int64_t num_blocks = (scatter.num_rows + kRows - 1) / kRows;
  check(num_blocks <= kMaxBlocks, "scatter_visual: ", scatter.num_rows, " rows in one call; needs at most ",
        kMaxBlocks * kRows, ".");
  scatter_kernel<Unit><<<static_cast<unsigned>(num_blocks), kThreads, 0, stream>>>(scatter);
  check_launch("scatter_visual");
}

// Divides the width, and all addresses of rows, into whole units of `bytes`.
bool comes_in(int64_t bytes, const ScatterVisual& tensors) {
  const auto whole = [&](const TensorView& view) {
    return view.num_elements() == 0 || (reinterpret_cast<uintptr_t>(view.data) % bytes == 0 &&
                                        (view.shape[0] == 1 || view.strides[0] % bytes == 0));
  };
  return tensors.whole.shape[1] % bytes == 0 && whole(tensors.whole) && whole(tensors.text) && whole(tensors.visual);
}

}  // namespace

void scatter_visual_cuda(const ScatterVisual& tensors, int device, uintptr_t stream_address) {
  check_scatter_visual(tensors);
  if (tensors.whole.num_elements() == 0) return;
  const DeviceGuard guard(device);
  const cudaStream_t stream = reinterpret_cast<cudaStream_t>(stream_address);
  const Scatter scatter(tensors);
  if (comes_in(16, tensors)) {
    run<Vector>(scatter, stream);
  } else if (comes_in(4, tensors)) {
    run<uint32_t>(scatter, stream);
  } else if (comes_in(2, tensors)) {
    run<uint16_t>(scatter, stream);
  } else {
    run<uint8_t>(scatter, stream);
  }
}

}  // namespace eagle
