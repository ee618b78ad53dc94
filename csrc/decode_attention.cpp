// The CPU code. Threads first take (sequence, key head, split) from a counter, then (sequence, query head) to join the
// splits. A row of keys or values is widened to fp32 once and serves all query heads of its group.
#include "decode_attention.h"

#include <algorithm>
#include <vector>

#include "parallel.h"

namespace eagle {
namespace {

// Eight sums side by side; without AVX2 the compiler makes two halves of them, with the same bits.
using Lanes = float __attribute__((vector_size(32)));

constexpr int kRows = 4;  // keys or values at once: each sum is loaded once for four of them

struct Scratch {
  std::vector<float> queries, scores, outs, rows;  // [G, D], [G, kSplit], [G, D], [kRows, D]

  template <class T>
  explicit Scratch(const Decode<T>& d)
      : queries(d.group * d.head_width),
        scores(d.group * kSplit),
        outs(d.group * d.head_width),
        rows(kRows * d.head_width) {}
};

inline __attribute__((always_inline)) Lanes load(const float* from) {
  Lanes lanes;
  memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}
inline __attribute__((always_inline)) void store(float* to, Lanes lanes) { memcpy(to, &lanes, sizeof(lanes)); }

inline __attribute__((always_inline)) float sum_of(Lanes x) {
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

// Rows j .. j + kRows - 1, `stride` elements apart, as fp32; zeros from row num_rows on.
template <class T>
inline __attribute__((always_inline)) void widen(const T* first, int64_t stride, int j, int num_rows, int width,
                                                 float* to) {
  for (int r = 0; r < kRows; ++r, to += width) {
    const T* from = first + (j + r) * stride;
    if (j + r < num_rows) {
      for (int e = 0; e < width; ++e) to[e] = to_float(from[e]);
    } else {
      for (int e = 0; e < width; ++e) to[e] = 0.0f;
    }
  }
}

// One split for the query heads of one key head: their partial out and lse into the workspace.
template <class T>
inline __attribute__((always_inline)) void attend(const Decode<T>& d, int64_t sequence, int kv_head, int64_t split,
                                                  Scratch& scratch) {
  static_assert(kSplit % kRows == 0 && kRows == 4);
  const int num_keys = d.keys_of(sequence, split), width = d.head_width, group = d.group;
  float* rows = scratch.rows.data();
  for (int g = 0; g < group; ++g) {
    for (int e = 0; e < width; ++e) scratch.queries[g * width + e] = d.query(sequence, kv_head * group + g, e);
  }
  for (int j = 0; j < num_keys; j += kRows) {
    widen(d.key(sequence, split, kv_head, 0), d.k_row, j, num_keys, width, rows);
    for (int g = 0; g < group; ++g) {
      const float* query = &scratch.queries[g * width];
      Lanes a{}, b{}, c{}, f{};
      for (int e = 0; e < width; e += kVector) {
        const Lanes lanes = load(query + e);
        a += lanes * load(rows + e);
        b += lanes * load(rows + width + e);
        c += lanes * load(rows + 2 * width + e);
        f += lanes * load(rows + 3 * width + e);
      }
      float* scores = &scratch.scores[g * kSplit + j];  // beyond num_keys: zeros that nobody reads
      scores[0] = sum_of(a);
      scores[1] = sum_of(b);
      scores[2] = sum_of(c);
      scores[3] = sum_of(f);
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
  for (int j = 0; j < num_keys; j += kRows) {
    widen(d.value(sequence, split, kv_head, 0), d.v_row, j, num_keys, width, rows);
    for (int g = 0; g < group; ++g) {
      const float* p = &scratch.scores[g * kSplit + j];
      float* out = &scratch.outs[g * width];
      for (int e = 0; e < width; e += kVector) {
        Lanes sum = load(out + e) + p[0] * load(rows + e);
        sum += p[1] * load(rows + width + e);
        sum += p[2] * load(rows + 2 * width + e);
        store(out + e, sum + p[3] * load(rows + 3 * width + e));
      }
    }
  }
  for (int g = 0; g < group; ++g) {
    std::copy_n(&scratch.outs[g * width], width,
                d.partial_out + d.partial(sequence, kv_head * group + g, split) * width);
  }
}

template <class T>
void attend_plain(const Decode<T>& d, int64_t sequence, int kv_head, int64_t split, Scratch& scratch) {
  attend(d, sequence, kv_head, split, scratch);
}
template <class T>
using Attend = void (*)(const Decode<T>&, int64_t, int, int64_t, Scratch&);

#if defined(__x86_64__) && defined(__GNUC__)
template <class T>
__attribute__((target("avx2"))) void attend_avx2(const Decode<T>& d, int64_t sequence, int kv_head, int64_t split,
                                                 Scratch& scratch) {
  attend(d, sequence, kv_head, split, scratch);
}
template <class T>
Attend<T> choose_attend(bool simd) {
  return simd && __builtin_cpu_supports("avx2") ? attend_avx2<T> : attend_plain<T>;
}
#else
template <class T>
Attend<T> choose_attend(bool) {
  return attend_plain<T>;
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
    return [&, scratch = Scratch(d)](int64_t i) mutable {
      const int64_t sequence = i / d.num_splits / d.num_kv_heads, split = i % d.num_splits;
      if (split >= d.splits_of(sequence)) return;
      attend_split(d, sequence, static_cast<int>(i / d.num_splits % d.num_kv_heads), split, scratch);
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
  for (const auto& [name, view] : {std::pair{"k_start", &t.k_start}, std::pair{"k_len", &t.k_len}}) {
    check(view->dtype == DType::kInt32 && view->num_dims == 1 && view->shape[0] == sequences && view->is_contiguous(),
          "decode_attention: ", name, " needs contiguous int32 of shape (", sequences, ",).");
  }
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
  for (int64_t s = 0; s < t.q.shape[0]; ++s) {
    check(start[s] >= 0 && len[s] >= 0 && len[s] <= t.max_k_len && int64_t{start[s]} + len[s] <= t.k.shape[0],
          "decode_attention: sequence ", s, " has k_start ", start[s], " and k_len ", len[s],
          "; needs both >= 0, k_len at most max_k_len = ", t.max_k_len, " and an end within the ", t.k.shape[0],
          " rows of k.");
  }
  with_type<Float16, Bfloat16, float>(t.q.dtype, [&]<class T>() { run<T>(t, num_threads, simd); });
}

}  // namespace eagle
