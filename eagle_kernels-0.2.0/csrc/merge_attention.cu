// The CUDA code, bound by memory: one thread a vector, neighbours in a warp side by side in a head. Each thread works
// out its head's two weights anew, which costs less than to share them.
#include <algorithm>

#include "merge_attention.h"

namespace eagle {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;

template <class T>
__global__ void merge_kernel(Merge<T> merge, int64_t num_vectors) {
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < num_vectors; i += gridDim.x * int64_t{kThreads}) {
    const int v = static_cast<int>(i % merge.num_vectors);
    merge.run(i / merge.num_vectors, v, v + 1);
  }
}

template <class T>
void run(const MergeAttention& tensors, cudaStream_t stream) {
  const int64_t num_vectors = tensors.out.num_elements() / kVector;
  const unsigned num_blocks = static_cast<unsigned>(std::min((num_vectors + kThreads - 1) / kThreads, kMaxBlocks));
  merge_kernel<T><<<num_blocks, kThreads, 0, stream>>>(Merge<T>(tensors), num_vectors);
  check_launch("merge_attention");
}

}  // namespace

void merge_attention_cuda(const MergeAttention& tensors, int device, uintptr_t stream) {
  check_merge_attention(tensors);
  if (tensors.out.num_elements() == 0) return;
  const DeviceGuard guard(device);
  with_type<Float16, Bfloat16, float>(tensors.out.dtype,
                                      [&]<class T>() { run<T>(tensors, reinterpret_cast<cudaStream_t>(stream)); });
}

}  // namespace eagle
