// The CPU code. Threads first take (sequence, split, key head) from a counter, then (sequence, query head) to join the
// splits. A row of keys or values is widened to fp32 once and serves all query heads of its group.
#include "decode_attention.h"

#include <algorithm>
#include <vector>

#include "parallel.h"

namespace eagle {
namespace {

constexpr int kAhead = 16;  // rows asked for before their turn: they lie apart, and the processor would not guess them

// Numbers side by side: 8, or 16 where the CPU has AVX-512. A score is the sum of 8 running sums all the same, so in 16
// lanes there are two keys; that is why the bits do not depend on the width.
using Lanes8 = float __attribute__((vector_size(32)));
using Lanes16 = float __attribute__((vector_size(64)));

inline int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Of one thread. Rows of values and outs are as long as whole vectors, and zero beyond the head.
struct Scratch {
  int length;
  std::vector<float> queries, scores, outs, keys, values;

  template <class T>
  Scratch(const Decode<T>& d, int lanes)
      : length(round_up(d.head_width, lanes)),
        queries(d.group * d.head_width * (lanes / kVector)),
        scores(d.group * kSplit),
        outs(d.group * length),
        keys(4 * d.head_width * (lanes / kVector)),
        values(4 * length * (lanes / kVector)) {}
};

template <class Lanes>
inline __attribute__((always_inline)) Lanes load(const float* from) {
  Lanes lanes;
  memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}
template <class Lanes>
inline __attribute__((always_inline)) void store(float* to, Lanes lanes) {
  memcpy(to, &lanes, sizeof(lanes));
}

// Of lanes first .. first + 7.
template <class Lanes>
inline __attribute__((always_inline)) float sum_of(Lanes x, int first) {
  const auto at = [&](int lane) { return x[first + lane]; };
  return ((at(0) + at(4)) + (at(2) + at(6))) + ((at(1) + at(5)) + (at(3) + at(7)));
}

// Eight numbers as fp32, by vectors that every compiler makes of any width: to_float, number by number.
using Words8 = uint32_t __attribute__((vector_size(32)));
inline __attribute__((always_inline)) void widen_eight(const float* from, float* to) {
  memcpy(to, from, kVector * sizeof(float));
}
inline __attribute__((always_inline)) Words8 load_words(const void* from) {
  uint16_t halves __attribute__((vector_size(16)));
  memcpy(&halves, from, sizeof(halves));
  return __builtin_convertvector(halves, Words8);
}
inline __attribute__((always_inline)) void widen_eight(const Bfloat16* from, float* to) {
  const Words8 bits = load_words(from) << 16;
  memcpy(to, &bits, sizeof(bits));
}
inline __attribute__((always_inline)) void widen_eight(const Float16* from, float* to) {
  const Words8 words = load_words(from), magnitude = (words & 0x7fffu) << 13;
  Lanes8 value;
  memcpy(&value, &magnitude, sizeof(value));
  value *= 0x1p112f;
  Words8 bits;
  memcpy(&bits, &value, sizeof(bits));
  bits = (magnitude < 0x0f800000u ? bits : magnitude | 0x7f800000u) | (words & 0x8000u) << 16;
  memcpy(to, &bits, sizeof(bits));
}

// Rows j .. j + kRows - 1, which `row_at` finds, as fp32; zeros from row num_rows on. kKeys rows take turns, a
// vector of 8 each, in a block of kKeys * length numbers.
template <int kRows, int kKeys, class RowAt>
inline __attribute__((always_inline)) void widen(const RowAt& row_at, int j, int num_rows, int width, int length,
                                                 float* to) {
  for (int r = 0; r < kRows; ++r) {
    float* row = to + r / kKeys * kKeys * length + r % kKeys * kVector;
    if (j + r >= num_rows) {
      for (int e = 0; e < width; e += kVector) memset(row + e * kKeys, 0, kVector * sizeof(float));
      continue;
    }
    const auto* from = row_at(j + r);
    if (j + r + kAhead < num_rows) {
      const auto* ahead = row_at(j + r + kAhead);
      for (int e = 0; e < width; e += static_cast<int>(64 / sizeof(*from))) __builtin_prefetch(ahead + e);
    }
    for (int e = 0; e < width; e += kVector) widen_eight(from + e, row + e * kKeys);
  }
}

// One split for the query heads of one key head: their partial out and lse into the workspace.
template <class Lanes, class T>
inline __attribute__((always_inline)) void attend(const Decode<T>& d, int64_t sequence, int kv_head, int64_t split,
                                                  Scratch& scratch) {
  constexpr int kLanes = sizeof(Lanes) / sizeof(float), kKeys = kLanes / kVector;  // keys in a vector of products
  constexpr int kRows = 4 * kKeys;  // each number loaded serves four vectors
  static_assert(kSplit % kRows == 0);
  const int num_keys = d.keys_of(sequence, split), width = d.head_width, group = d.group, length = scratch.length;
  for (int g = 0; g < group; ++g) {
    for (int e = 0; e < width; ++e) {
      float* to = &scratch.queries[(g * width + e / kVector * kVector) * kKeys + e % kVector];
      for (int c = 0; c < kKeys; ++c) to[c * kVector] = d.query(sequence, kv_head * group + g, e);
    }
  }
  const auto key_at = [&](int j) { return d.key(sequence, split, kv_head, j); };
  const auto value_at = [&](int j) { return d.value(sequence, split, kv_head, j); };
  float* rows = scratch.keys.data();
  for (int j = 0; j < num_keys; j += kRows) {
    widen<kRows, kKeys>(key_at, j, num_keys, width, width, rows);
    for (int g = 0; g < group; ++g) {
      const float* query = &scratch.queries[g * width * kKeys];
      Lanes sums[4] = {};
      for (int e = 0; e < width * kKeys; e += kLanes) {
        const Lanes lanes = load<Lanes>(query + e);
        sums[0] += lanes * load<Lanes>(rows + e);
        sums[1] += lanes * load<Lanes>(rows + width * kKeys + e);
        sums[2] += lanes * load<Lanes>(rows + 2 * width * kKeys + e);
        sums[3] += lanes * load<Lanes>(rows + 3 * width * kKeys + e);
      }
      float* scores = &scratch.scores[g * kSplit + j];  // beyond num_keys: zeros that nobody reads
      for (int r = 0; r < kRows; ++r) scores[r] = sum_of(sums[r / kKeys], r % kKeys * kVector);
    }
  }
  for (int g = 0; g < group; ++g) {
    float* scores = &scratch.scores[g * kSplit];
    float max = -INFINITY, sum = 0;
    for (int j = 0; j < num_keys; ++j) max = scores[j] > max ? scores[j] : max;
    for (int j = 0; j < num_keys; ++j) sum += scores[j] = probability(scores[j], max);
    for (int j = 0; j < num_keys; ++j) scores[j] /= sum;
    for (int j = num_keys; j < kSplit; ++j) scores[j] = 0.0f;
    d.partial_lse[d.partial(sequence, kv_head * group + g, split)] = log_sum(max, sum);
  }
  std::fill(scratch.outs.begin(), scratch.outs.end(), 0.0f);
  rows = scratch.values.data();
  for (int j = 0; j < num_keys; j += kRows) {
    widen<kRows, 1>(value_at, j, num_keys, width, length, rows);
    for (int g = 0; g < group; ++g) {
      const float* p = &scratch.scores[g * kSplit + j];
      float* out = &scratch.outs[g * length];
      for (int e = 0; e < length; e += kLanes) {
        Lanes sum = load<Lanes>(out + e);
        for (int r = 0; r < kRows; ++r) sum += p[r] * load<Lanes>(rows + r * length + e);
        store(out + e, sum);
      }
    }
  }
  for (int g = 0; g < group; ++g) {
    std::copy_n(&scratch.outs[g * length], width,
                d.partial_out + d.partial(sequence, kv_head * group + g, split) * width);
  }
}

template <class T>
struct Attend {
  int lanes;
  void (*run)(const Decode<T>&, int64_t sequence, int kv_head, int64_t split, Scratch&);
};

template <class T>
void attend_plain(const Decode<T>& d, int64_t sequence, int kv_head, int64_t split, Scratch& scratch) {
  attend<Lanes8>(d, sequence, kv_head, split, scratch);
}

#if defined(__x86_64__) && defined(__GNUC__)
template <class T>
__attribute__((target("avx2"))) void attend_avx2(const Decode<T>& d, int64_t sequence, int kv_head, int64_t split,
                                                 Scratch& scratch) {
  attend<Lanes8>(d, sequence, kv_head, split, scratch);
}
template <class T>
__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl"))) void attend_avx512(const Decode<T>& d, int64_t sequence,
                                                                                 int kv_head, int64_t split,
                                                                                 Scratch& scratch) {
  attend<Lanes16>(d, sequence, kv_head, split, scratch);
}
template <class T>
Attend<T> choose_attend(bool simd) {
  if (simd && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    return {16, attend_avx512<T>};
  }
  return {8, simd && __builtin_cpu_supports("avx2") ? attend_avx2<T> : attend_plain<T>};
}
#else
template <class T>
Attend<T> choose_attend(bool) {
  return {8, attend_plain<T>};
}
#endif

// Joins the splits of one query head, from the first to the last.
template <class T>
void join(const Decode<T>& d, int64_t sequence, int head, std::vector<float>& out) {
  std::fill(out.begin(), out.end(), 0.0f);
  float lse = -INFINITY;
  for (int64_t split = 0; split < d.splits_of(sequence); ++split) {
    const int64_t partial = d.partial(sequence, head, split);
    const MergeWeights weights = merge_weights(lse, d.partial_lse[partial]);
    for (int e = 0; e < d.head_width; ++e) out[e] = weights.merge(out[e], d.partial_out[partial * d.head_width + e]);
    lse = weights.lse;
  }
  T* to = d.out + (sequence * d.num_heads + head) * d.head_width;
  for (int e = 0; e < d.head_width; ++e) to[e] = from_float<T>(out[e]);
  d.lse[head * d.num_sequences + sequence] = lse;
}

template <class T>
void run(const DecodeAttention& tensors, int num_threads, bool simd) {
  const Decode<T> d(tensors);
  const Attend<T> attend_split = choose_attend<T>(simd);
  parallel_for(d.num_sequences * d.num_kv_heads * d.num_splits, num_threads, [&] {
    return [&, scratch = Scratch(d, attend_split.lanes)](int64_t i) mutable {
      // A split's heads one after the other: their parts of a row lie side by side, and come from memory together.
      const int kv_head = static_cast<int>(i % d.num_kv_heads);
      const int64_t sequence = i / d.num_kv_heads / d.num_splits, split = i / d.num_kv_heads % d.num_splits;
      if (split < d.splits_of(sequence)) attend_split.run(d, sequence, kv_head, split, scratch);
    };
  });
  parallel_for(d.num_sequences, num_threads, [&] {
    return [&, out = std::vector<float>(d.head_width)](int64_t sequence) mutable {
      for (int head = 0; head < d.num_heads; ++head) join(d, sequence, head, out);
    };
  });
}

}  // namespace

int64_t decode_attention_workspace_floats(int64_t num_sequences, int64_t num_heads, int64_t head_width,
                                          int64_t max_k_len) {
  return num_sequences * num_heads * ((max_k_len + kSplit - 1) / kSplit) * (head_width + 1);
}

void check_decode_attention(const DecodeAttention& t) {
  const char* op = "decode_attention";
  check_heads(op, "q", t.q);
  check_heads(op, "k", t.k);
  check_heads(op, "v", t.v);
  const int64_t sequences = t.q.shape[0], heads = t.q.shape[1], width = t.q.shape[2];
  check(t.k.dtype == t.q.dtype && t.v.dtype == t.q.dtype && t.out.dtype == t.q.dtype,
        "decode_attention: q, k, v and out are ", dtype_name(t.q.dtype), ", ", dtype_name(t.k.dtype), ", ",
        dtype_name(t.v.dtype), " and ", dtype_name(t.out.dtype), "; needs one dtype.");
  check(t.k.shape == t.v.shape && t.k.shape[2] == width && t.k.shape[1] >= 1 && heads % t.k.shape[1] == 0,
        "decode_attention: k is (", t.k.shape[0], ", ", t.k.shape[1], ", ", t.k.shape[2], ") and v (", t.v.shape[0],
        ", ", t.v.shape[1], ", ", t.v.shape[2], "); needs one shape, q's head width ", width,
        " and heads that divide q's ", heads, ".");
  check(t.k_len.dtype == DType::kInt32 && t.k_len.num_dims == 1 && t.k_len.shape[0] == sequences &&
            t.k_len.is_contiguous(),
        "decode_attention: k_len needs contiguous int32 of shape (", sequences, ",).");
  check(t.k_start.dtype == DType::kInt32 && t.k_start.num_dims == 2 && t.k_start.shape[0] == sequences &&
            t.k_start.is_contiguous(),
        "decode_attention: k_start needs contiguous int32 of shape (", sequences, ", blocks).");
  check(t.block_rows == 0
            ? t.k_start.shape[1] == 1
            : t.block_rows >= kMinBlockRows && t.block_rows <= kMaxBlockRows &&
                  (t.block_rows & (t.block_rows - 1)) == 0 && t.max_k_len <= t.k_start.shape[1] * t.block_rows,
        "decode_attention: block_rows is ", t.block_rows, " with ", t.k_start.shape[1],
        " blocks a sequence; needs 0 with one, or a power of two from ", kMinBlockRows, " to ", kMaxBlockRows,
        " with enough blocks for max_k_len, ", t.max_k_len, ".");
  check(t.out.num_dims == 3 && t.out.shape == t.q.shape && t.out.is_contiguous(),
        "decode_attention: out needs q's shape, contiguous.");
  check(t.lse.dtype == DType::kFloat32 && t.lse.num_dims == 2 && t.lse.shape[0] == heads &&
            t.lse.shape[1] == sequences && t.lse.is_contiguous(),
        "decode_attention: lse needs contiguous float32 of shape (", heads, ", ", sequences, ").");
  check(t.max_k_len >= 0 && t.max_k_len <= t.k.shape[0], "decode_attention: max_k_len is ", t.max_k_len,
        "; needs 0 to k's rows, ", t.k.shape[0], ".");
  const int64_t needed = decode_attention_workspace_floats(sequences, heads, width, t.max_k_len);
  check(t.workspace.dtype == DType::kFloat32 && t.workspace.is_contiguous() && t.workspace.num_elements() >= needed,
        "decode_attention: workspace needs ", needed, " contiguous float32.");
}

void decode_attention_cpu(const DecodeAttention& t, int num_threads, bool simd) {
  check_decode_attention(t);
  check(num_threads >= 0, "decode_attention: num_threads is ", num_threads, "; needs >= 0 (0: one for each CPU).");
  const auto *start = static_cast<const int32_t*>(t.k_start.data), *len = static_cast<const int32_t*>(t.k_len.data);
  const int64_t num_blocks = t.k_start.shape[1], block_rows = t.block_rows > 0 ? t.block_rows : INT32_MAX;
  for (int64_t s = 0; s < t.q.shape[0]; ++s) {
    check(len[s] >= 0 && len[s] <= t.max_k_len, "decode_attention: sequence ", s, " has k_start ",
          start[s * num_blocks], " and k_len ", len[s], "; needs k_len from 0 to at most max_k_len = ", t.max_k_len,
          ".");
    for (int64_t b = 0; b * block_rows < len[s] || (b == 0 && t.block_rows == 0); ++b) {
      const int64_t first = start[s * num_blocks + b], rows = std::min(len[s] - b * block_rows, block_rows);
      check(first >= 0 && first + rows <= t.k.shape[0], "decode_attention: sequence ", s, " has k_start ", first,
            " and k_len ", len[s], "; needs every row within the ", t.k.shape[0], " rows of k.");
    }
  }
  with_type<Float16, Bfloat16, float>(t.q.dtype, [&]<class T>() { run<T>(t, num_threads, simd); });
}

}  // namespace eagle
