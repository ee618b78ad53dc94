// One new query a sequence against its rows in a packed cache of keys and values: a run of them, or blocks.
//
//   q           [S, H, D]  bf16 | f16 | f32    D side by side, the other strides multiples of 8
//   k, v        [L, K, D]  q's dtype           the same; query heads h * H / K .. share key head h
//   k_start     [S, B]     i32                 contiguous; key j of sequence s is row k_start[s, j / block_rows] +
//                                              j % block_rows. block_rows = 0 and B = 1: k_start[s] + j
//   k_len       [S]        i32                 contiguous; from 0 to max_k_len
//   out, lse    [S, H, D], [H, S] f32          contiguous; no key: out = 0, lse = -inf
//   workspace   f32                            contiguous, of at least decode_attention_workspace_floats
//
// The keys of a sequence are cut into splits of kSplit. Each is a softmax of its own, in fp32, and the splits join as
// merge_attention's partials do. Where the cuts lie depends on the sequence's own length alone, so that its bits do not
// depend on who shares the batch.
#pragma once

#include "attention_heads.h"

namespace eagle {

constexpr int kSplit = 256;                                 // keys
constexpr int kMinBlockRows = 16, kMaxBlockRows = 1 << 20;  // of a block of the cache

struct DecodeAttention {
  TensorView q, k, v, k_start, k_len, out, lse, workspace;
  int64_t max_k_len = 0;
  int64_t block_rows = 0;  // of a block of the cache, a power of two; 0: a sequence has one run of rows
  float softmax_scale = 1.0f;

  int64_t num_splits() const { return (max_k_len + kSplit - 1) / kSplit; }  // of the longest sequence
};

int64_t decode_attention_workspace_floats(int64_t num_sequences, int64_t num_heads, int64_t head_width,
                                          int64_t max_k_len);

// `num_threads` = 0: one for each CPU of this process. `simd` = false: no vector code beyond what every CPU has. The
// bits of the result depend on neither.
// Throws std::invalid_argument (Python: ValueError) when a size, stride, dtype, or a sequence's rows are not as above.
void decode_attention_cpu(const DecodeAttention& tensors, int num_threads, bool simd);

// Asynchronous on `stream` of `device`; keep all buffers alive until it ran. k_start and k_len are not checked.
void decode_attention_cuda(const DecodeAttention& tensors, int device, uintptr_t stream);

// Throws unless the tensors agree; k_start and k_len are not read.
void check_decode_attention(const DecodeAttention& tensors);

// ---- the arithmetic, shared by the CPU and the CUDA code ---------------------------------------------------------

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.693147180559945309f;

inline int shift_of(int64_t block_rows) {
  int shift = 31;  // no block: of every key number, nothing is left
  if (block_rows > 0) {
    for (shift = 0; (int64_t{1} << shift) < block_rows;) ++shift;
  }
  return shift;
}

// The tensors as numbers; scores are in units of log 2, so that exp2 serves.
template <class T>
struct Decode {
  const T *q, *k, *v;
  const int32_t *k_start, *k_len;
  T* out;
  float* lse;
  float* partial_out;                                   // [S, H, num_splits, D]
  float* partial_lse;                                   // [S, H, num_splits]
  int64_t q_row, q_head, k_row, k_head, v_row, v_head;  // strides
  int64_t num_sequences, num_splits, num_blocks;
  int block_shift, block_mask;
  int num_heads, num_kv_heads, group, head_width;  // group: query heads of a key head
  float scale_log2;

  explicit Decode(const DecodeAttention& t)
      : q(static_cast<const T*>(t.q.data)),
        k(static_cast<const T*>(t.k.data)),
        v(static_cast<const T*>(t.v.data)),
        k_start(static_cast<const int32_t*>(t.k_start.data)),
        k_len(static_cast<const int32_t*>(t.k_len.data)),
        out(static_cast<T*>(t.out.data)),
        lse(static_cast<float*>(t.lse.data)),
        partial_out(static_cast<float*>(t.workspace.data)),
        partial_lse(partial_out + t.q.num_elements() * t.num_splits()),
        q_row(t.q.strides[0]),
        q_head(t.q.strides[1]),
        k_row(t.k.strides[0]),
        k_head(t.k.strides[1]),
        v_row(t.v.strides[0]),
        v_head(t.v.strides[1]),
        num_sequences(t.q.shape[0]),
        num_splits(t.num_splits()),
        num_blocks(t.k_start.shape[1]),
        block_shift(shift_of(t.block_rows)),
        block_mask(t.block_rows > 0 ? static_cast<int>(t.block_rows) - 1 : INT32_MAX),
        num_heads(static_cast<int>(t.q.shape[1])),
        num_kv_heads(static_cast<int>(t.k.shape[1])),
        group(num_heads / num_kv_heads),
        head_width(static_cast<int>(t.q.shape[2])),
        scale_log2(t.softmax_scale * kLog2E) {}

  EAGLE_HOST_DEVICE int64_t splits_of(int64_t sequence) const {
    const int64_t splits = (int64_t{k_len[sequence]} + kSplit - 1) / kSplit;
    return splits < num_splits ? splits : num_splits;  // a wrong k_len on a GPU stays within the workspace
  }
  EAGLE_HOST_DEVICE int keys_of(int64_t sequence, int64_t split) const {
    const int64_t left = k_len[sequence] - split * kSplit;
    return static_cast<int>(left < 0 ? 0 : left < kSplit ? left : kSplit);
  }
  EAGLE_HOST_DEVICE float query(int64_t sequence, int head, int d) const {
    return to_float(q[sequence * q_row + head * q_head + d]) * scale_log2;
  }
  // The cache's row of key `j` of a split. Of a run, all keys are in block 0.
  EAGLE_HOST_DEVICE int64_t row(int64_t sequence, int64_t split, int j) const {
    const int key = static_cast<int>(split) * kSplit + j;
    return int64_t{k_start[sequence * num_blocks + (key >> block_shift)]} + (key & block_mask);
  }
  // Key (or value) `j` of a split.
  EAGLE_HOST_DEVICE const T* key(int64_t sequence, int64_t split, int kv_head, int j) const {
    return k + row(sequence, split, j) * k_row + kv_head * k_head;
  }
  EAGLE_HOST_DEVICE const T* value(int64_t sequence, int64_t split, int kv_head, int j) const {
    return v + row(sequence, split, j) * v_row + kv_head * v_head;
  }
  // Where a partial result lies: its lse here, its out head_width times as far.
  EAGLE_HOST_DEVICE int64_t partial(int64_t sequence, int head, int64_t split) const {
    return (sequence * num_heads + head) * num_splits + split;
  }
};

// exp(score - max), both in units of log 2.
EAGLE_HOST_DEVICE float probability(float score, float max) { return exp2f(score - max); }

// The log of a sum of exponentials, from the largest score in units of log 2 and the sum relative to it.
EAGLE_HOST_DEVICE float log_sum(float max, float sum) { return (max + log2f(sum)) * kLn2; }

}  // namespace eagle
