// The CPU code: the steps of the CUDA code with the standard library's sorts.
#include "attention_plan.h"

#include <algorithm>
#include <vector>

namespace eagle {
namespace {

bool by_key(const Item& a, const Item& b) { return a.key < b.key; }

template <class Tiles>
void build(const char* name, const Tiles& tiles) {
  std::vector<int32_t> ends(tiles.num_ranges);
  int64_t total = 0;
  for (int64_t range = 0; range < tiles.num_ranges; ++range) {
    total += num_tiles(tiles.num_rows(range));
    check(total <= tiles.num_entries, "attention_plan: ", name, " has ", tiles.num_entries,
          " entries; the segments have more tiles.");
    ends[range] = static_cast<int32_t>(total);
  }
  std::vector<Item> items(total);
  for (int64_t tile = 0; tile < total; ++tile) {
    items[tile] = {sort_key(tiles.work(place_of(tile, ends.data(), tiles.num_ranges))), static_cast<int32_t>(tile)};
  }
  std::stable_sort(items.begin(), items.end(), by_key);
  for (int64_t entry = 0; entry < total; ++entry) {
    tiles.write(entry, place_of(items[entry].tile, ends.data(), tiles.num_ranges));
  }
  for (int64_t entry = total; entry < tiles.num_entries; ++entry) tiles.write_idle(entry);
}

}  // namespace

void check_attention_plan(const AttentionPlan& plan) {
  const auto check_table = [](const char* name, const TensorView& view, int64_t num_columns) {
    check(view.dtype == DType::kInt32 && view.num_dims == 2 && view.shape[0] <= INT32_MAX / 2 &&
              view.shape[1] == num_columns && view.is_contiguous(),
          "attention_plan: ", name, " needs contiguous int32 of shape (n, ", num_columns, "), n up to 2**30.");
  };
  check_table("segments", plan.segments, 4);
  check_table("q_tiles", plan.q_tiles, 2);
  check_table("k_tiles", plan.k_tiles, 4);
  check(plan.num_tokens_k >= 0 && plan.num_tokens_k <= INT32_MAX, "attention_plan: num_tokens_k is ", plan.num_tokens_k,
        "; needs 0 to 2**31 - 1.");
}

void attention_plan_cpu(const AttentionPlan& plan) {
  check_attention_plan(plan);
  build("q_tiles", QueryTiles(plan));

  KeyTiles keys(plan);
  std::vector<Item> edges(keys.num_ranges + 1);
  for (int64_t i = 0; i <= keys.num_ranges; ++i) edges[i] = keys.edge(i);
  std::sort(edges.begin(), edges.end(), by_key);
  std::vector<int32_t> reach(keys.num_segments);
  int64_t furthest = 0;
  for (int64_t s = 0; s < keys.num_segments; ++s) {
    furthest = std::max(furthest, keys.segments[s].k_end());
    reach[s] = static_cast<int32_t>(furthest);
  }
  keys.edges = edges.data();
  keys.reach = reach.data();
  build("k_tiles", keys);
}

int64_t attention_plan_workspace_ints(const AttentionPlan& plan) {
  const int64_t num_segments = plan.segments.shape[0], num_ranges = 2 * num_segments + 1;
  const int64_t num_items = 2 * (plan.q_tiles.shape[0] + plan.k_tiles.shape[0] + num_ranges + 1);  // each kind twice
  return 2 * num_items + num_segments + num_ranges + num_segments;
}

}  // namespace eagle
