// The CUDA code. A block takes one split of one sequence for up to eight query heads of one key head, so that a group
// of eight or fewer reads the cache once. First each thread owns keys, and the block's queries lie in shared memory;
// then threads own columns of the values, and groups of them every n-th row. A second kernel joins the splits.
#include <algorithm>

#include "decode_attention.h"

namespace eagle {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 16;  // threads that share the softmax of one head
constexpr int64_t kMaxBlocks = 0x7fffffff;
static_assert(kThreads * kVector >= 2 * kMaxHeadWidth && kMaxHeadWidth >= kSplit);  // queries and scores fit in sMemory

// How threads share rows of head_width: by columns of one vector, and by groups that take every num_groups-th row.
// Threads beyond the last whole group are idle.
struct Place {
  int column, group, num_groups;

  __device__ Place(int thread, int head_width) {
    const int num_columns = head_width / kVector;
    column = thread % num_columns;
    group = thread / num_columns;
    num_groups = kThreads / num_columns;
  }
  __device__ bool is_idle() const { return group >= num_groups; }
};

template <class T, int kHeads>
__global__ void split_kernel(Decode<T> d, int num_chunks) {
  alignas(16) __shared__ float sMemory[kHeads * kThreads * kVector];  // queries and scores; then sums of values
  __shared__ float sMax[kHeads * kLanes], sSum[kHeads * kLanes];
  const int thread = static_cast<int>(threadIdx.x), width = d.head_width;
  int64_t block = blockIdx.x;
  const int first = static_cast<int>(block % num_chunks) * kHeads;  // of the block's heads, within the group
  block /= num_chunks;
  const int64_t split = block % d.num_splits;
  block /= d.num_splits;
  const int kv_head = static_cast<int>(block % d.num_kv_heads);
  const int64_t sequence = block / d.num_kv_heads;
  if (split >= d.splits_of(sequence)) return;
  const int num_keys = d.keys_of(sequence, split), num_heads = min(kHeads, d.group - first);
  const int first_head = kv_head * d.group + first;

  float *sQuery = sMemory, *sScore = sMemory + kHeads * kMaxHeadWidth;  // [kHeads, width], [kHeads, kSplit]
  for (int i = thread; i < kHeads * width; i += kThreads) {
    sQuery[i] = i / width < num_heads ? d.query(sequence, first_head + i / width, i % width) : 0.0f;
  }
  __syncthreads();
  for (int j = thread; j < num_keys; j += kThreads) {
    const Vector<T>* gKey = reinterpret_cast<const Vector<T>*>(d.key(sequence, split, kv_head, j));
    float rScore[kHeads] = {};
#pragma unroll 4
    for (int c = 0; c < width / kVector; ++c) {
      const Vector<T> key = gKey[c];
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const Vector<float> query = *reinterpret_cast<const Vector<float>*>(sQuery + h * width + c * kVector);
        float sum = query.of[0] * to_float(key.of[0]);  // of the vector alone: shorter chains, smaller errors
#pragma unroll
        for (int e = 1; e < kVector; ++e) sum = multiply_add(query.of[e], to_float(key.of[e]), sum);
        rScore[h] += sum;
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) sScore[h * kSplit + j] = rScore[h];
  }
  __syncthreads();

  const int h = thread / kLanes, lane = thread % kLanes;
  float* sMine = sScore + h * kSplit;
  if (h < kHeads) {
    float max = -INFINITY;
    for (int j = lane; j < num_keys; j += kLanes) max = sMine[j] > max ? sMine[j] : max;
    sMax[thread] = max;
  }
  __syncthreads();
  if (h < kHeads) {
    float max = -INFINITY, sum = 0.0f;
    for (int l = 0; l < kLanes; ++l) max = fmaxf(max, sMax[h * kLanes + l]);
    for (int j = lane; j < num_keys; j += kLanes) sum += sMine[j] = probability(sMine[j], max);
    sSum[thread] = sum;
  }
  __syncthreads();

  const Place place(thread, width);
  float rOut[kHeads][kVector] = {};
  if (!place.is_idle()) {
#pragma unroll 4
    for (int j = place.group; j < num_keys; j += place.num_groups) {
      const Vector<T> value = reinterpret_cast<const Vector<T>*>(d.value(sequence, split, kv_head, j))[place.column];
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const float p = sScore[h * kSplit + j];
#pragma unroll
        for (int e = 0; e < kVector; ++e) rOut[h][e] = multiply_add(p, to_float(value.of[e]), rOut[h][e]);
      }
    }
  }
  __syncthreads();  // every score was read
  if (!place.is_idle()) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float* sOut = sMemory + (place.group * kHeads + h) * width + place.column * kVector;
#pragma unroll
      for (int e = 0; e < kVector; ++e) sOut[e] = rOut[h][e];
    }
  }
  __syncthreads();
  for (int i = thread; i < num_heads * width; i += kThreads) {
    float out = 0.0f, sum = 0.0f;
    for (int g = 0; g < place.num_groups; ++g) out += sMemory[g * kHeads * width + i];
    for (int l = 0; l < kLanes; ++l) sum += sSum[i / width * kLanes + l];
    d.partial_out[d.partial(sequence, first_head + i / width, split) * width + i % width] = out / sum;
  }
  if (thread < num_heads) {
    float max = -INFINITY, sum = 0.0f;
    for (int l = 0; l < kLanes; ++l) max = fmaxf(max, sMax[thread * kLanes + l]);
    for (int l = 0; l < kLanes; ++l) sum += sSum[thread * kLanes + l];
    d.partial_lse[d.partial(sequence, first_head + thread, split)] = log_sum(max, sum);
  }
}

// A block joins the splits of one query head of one sequence: each group of threads its own, then the groups.
template <class T>
__global__ void join_kernel(Decode<T> d) {
  alignas(16) __shared__ float sOut[kThreads * kVector];
  __shared__ float sLse[kThreads];
  const int width = d.head_width;
  const int64_t sequence = blockIdx.x / d.num_heads;
  const int head = static_cast<int>(blockIdx.x % d.num_heads);
  const int64_t num_splits = d.splits_of(sequence);
  const Place place(static_cast<int>(threadIdx.x), width);

  float rLse = -INFINITY, rOut[kVector] = {};
  if (!place.is_idle()) {
    for (int64_t split = place.group; split < num_splits; split += place.num_groups) {
      const int64_t partial = d.partial(sequence, head, split);
      const MergeWeights weights = merge_weights(rLse, d.partial_lse[partial]);
      const float* gOut = d.partial_out + partial * width + place.column * kVector;
#pragma unroll
      for (int e = 0; e < kVector; ++e) rOut[e] = weights.merge(rOut[e], gOut[e]);
      rLse = weights.lse;
    }
#pragma unroll
    for (int e = 0; e < kVector; ++e) sOut[place.group * width + place.column * kVector + e] = rOut[e];
    sLse[place.group] = rLse;  // of all columns alike
  }
  __syncthreads();
  if (place.group > 0) return;
  for (int g = 1; g < place.num_groups; ++g) {
    const MergeWeights weights = merge_weights(rLse, sLse[g]);
#pragma unroll
    for (int e = 0; e < kVector; ++e) rOut[e] = weights.merge(rOut[e], sOut[g * width + place.column * kVector + e]);
    rLse = weights.lse;
  }
  Vector<T> result;
#pragma unroll
  for (int e = 0; e < kVector; ++e) result.of[e] = from_float<T>(rOut[e]);
  reinterpret_cast<Vector<T>*>(d.out + (sequence * d.num_heads + head) * width)[place.column] = result;
  if (place.column == 0) d.lse[head * d.num_sequences + sequence] = rLse;
}

template <class T, int kHeads>
void launch_splits(const Decode<T>& d, cudaStream_t stream) {
  const int num_chunks = (d.group + kHeads - 1) / kHeads;
  const int64_t num_blocks = d.num_sequences * d.num_kv_heads * d.num_splits * num_chunks;
  if (num_blocks == 0) return;
  check(num_blocks <= kMaxBlocks, "decode_attention: ", num_blocks, " splits in one call; needs at most ", kMaxBlocks,
        ". Give a smaller max_k_len.");
  split_kernel<T, kHeads><<<static_cast<unsigned>(num_blocks), kThreads, 0, stream>>>(d, num_chunks);
  check_launch("decode_attention, splits");
}

template <class T>
void run(const DecodeAttention& tensors, cudaStream_t stream) {
  const Decode<T> d(tensors);
  const auto launch_group = d.group == 1   ? launch_splits<T, 1>
                            : d.group <= 4 ? launch_splits<T, 4>
                                           : launch_splits<T, 8>;
  launch_group(d, stream);
  join_kernel<T><<<static_cast<unsigned>(d.num_sequences * d.num_heads), kThreads, 0, stream>>>(d);
  check_launch("decode_attention, join");
}

}  // namespace

void decode_attention_cuda(const DecodeAttention& tensors, int device, uintptr_t stream) {
  check_decode_attention(tensors);
  if (tensors.q.num_elements() == 0) return;
  const DeviceGuard guard(device);
  with_type<Float16, Bfloat16, float>(tensors.q.dtype,
                                      [&]<class T>() { run<T>(tensors, reinterpret_cast<cudaStream_t>(stream)); });
}

}  // namespace eagle
