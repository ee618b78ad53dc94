// The CPU code: threads take blocks of heads from a counter.
#include "merge_attention.h"

#include <algorithm>

#include "parallel.h"

namespace eagle {
namespace {

constexpr int64_t kBlockHeads = 1024;  // some 50 us of work: several times what a thread costs

}  // namespace

void check_merge_attention(const MergeAttention& t) {
  const auto check_out = [&](const char* name, const TensorView& view) {
    check_heads("merge_attention", name, view);
    check(view.shape == t.out.shape && view.dtype == t.out.dtype, "merge_attention: ", name, " is ",
          dtype_name(view.dtype), " (", view.shape[0], ", ", view.shape[1], ", ", view.shape[2], "); needs out's ",
          dtype_name(t.out.dtype), " (", t.out.shape[0], ", ", t.out.shape[1], ", ", t.out.shape[2], ").");
  };
  const auto check_lse = [&](const char* name, const TensorView& view) {
    check(view.num_dims == 2 && view.dtype == DType::kFloat32 && view.shape[0] == t.out.shape[1] &&
              view.shape[1] == t.out.shape[0],
          "merge_attention: ", name, " needs float32 of shape (", t.out.shape[1], ", ", t.out.shape[0], ").");
  };
  check_out("out", t.out);
  check_out("out_a", t.out_a);
  check_out("out_b", t.out_b);
  check_lse("lse", t.lse);
  check_lse("lse_a", t.lse_a);
  check_lse("lse_b", t.lse_b);
}

void merge_attention_cpu(const MergeAttention& tensors, int num_threads) {
  check_merge_attention(tensors);
  check(num_threads >= 0, "merge_attention: num_threads is ", num_threads, "; needs >= 0 (0: one for each CPU).");
  with_type<Float16, Bfloat16, float>(tensors.out.dtype, [&]<class T>() {
    const Merge<T> merge(tensors);
    const int64_t num_heads = tensors.out.shape[0] * tensors.out.shape[1];
    parallel_for((num_heads + kBlockHeads - 1) / kBlockHeads, num_threads, [&] {
      return [&](int64_t block) {
        const int64_t end = std::min((block + 1) * kBlockHeads, num_heads);
        for (int64_t i = block * kBlockHeads; i < end; ++i) merge.run(i, 0, merge.num_vectors);
      };
    });
  });
}

}  // namespace eagle
