// The tile tables of an attention plan: which rows each block of the attention kernels takes, the longest work first.
//
//   segments  [S, 4]  i32  contiguous: q_start, q_len, k_start, k_len; k_start ascends
//   q_tiles   [N, 2]  i32  contiguous, written: segment, first row within it
//   k_tiles   [M, 4]  i32  contiguous, written: first row in k, number of rows, first and last + 1 of the segments to
//                          look at
//
// A query tile is up to 128 rows of one segment. A key tile is up to 128 rows between two neighbouring ends of key
// ranges (0 and num_tokens_k count as ends), so that a segment sees all of its rows or none. Work is the number of keys
// that a query tile sees, and of queries that see the first row of a key tile; equal work keeps the order of the rows.
// Entries that are left over are idle: (-1, 0), and zeros.
#pragma once

#include <cstdint>

#include "device.cuh"
#include "tensor_view.h"

namespace eagle {

struct AttentionPlan {
  TensorView segments, q_tiles, k_tiles;
  int64_t num_tokens_k = 0;
  bool causal = true;  // query i of a segment sees its keys up to i + k_len - q_len
};

// Throws std::invalid_argument (Python: ValueError) when a tensor is not as above or a table has too few entries.
void attention_plan_cpu(const AttentionPlan& plan);

// What attention_plan_cuda needs beside the tables.
int64_t attention_plan_workspace_ints(const AttentionPlan& plan);

// Asynchronous on `stream` of `device`; keep all buffers alive until it ran. `workspace` is contiguous i32. Segments
// are not checked: wrong ones give wrong tables, and nothing is written outside them.
void attention_plan_cuda(const AttentionPlan& plan, const TensorView& workspace, int device, uintptr_t stream);

// Throws unless the tensors agree; segments are not read.
void check_attention_plan(const AttentionPlan& plan);

// ---- the arithmetic, shared by the CPU and the CUDA code ---------------------------------------------------------

constexpr int64_t kTile = 128;  // rows; TILE of eagle_kernels/attention.py

struct Segment {
  int32_t q_start, q_len, k_start, k_len;

  EAGLE_HOST_DEVICE int64_t k_end() const { return int64_t{k_start} + k_len; }
};

// What is sorted, by key alone and stably: tiles by sort_key(work), or the ends of key ranges.
struct Item {
  uint32_t key;
  int32_t tile;
};

EAGLE_HOST_DEVICE uint32_t sort_key(int64_t work) { return static_cast<uint32_t>(INT32_MAX - work); }  // longest first

EAGLE_HOST_DEVICE int64_t num_tiles(int64_t num_rows) { return num_rows > 0 ? (num_rows + kTile - 1) / kTile : 0; }

// The first i < n whose number(i) is above x, or n. number must not decrease.
template <class Number>
EAGLE_HOST_DEVICE int64_t first_above(int64_t x, int64_t n, const Number& number) {
  int64_t begin = 0, end = n;
  while (begin < end) {
    const int64_t middle = (begin + end) / 2;
    if (number(middle) > x) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  return begin;
}

// Where a tile begins: `row` rows into range `range`.
struct Place {
  int64_t range, row;
};

// ends[r]: the number of tiles in ranges 0 .. r.
EAGLE_HOST_DEVICE Place place_of(int64_t tile, const int32_t* ends, int64_t num_ranges) {
  const int64_t range = first_above(tile, num_ranges, [&](int64_t r) { return ends[r]; });
  return {range, (tile - (range > 0 ? ends[range - 1] : 0)) * kTile};
}

// Query rows; their ranges are the segments.
struct QueryTiles {
  const Segment* segments;
  int32_t* table;
  int64_t num_entries, num_ranges;
  bool causal;

  explicit QueryTiles(const AttentionPlan& plan)
      : segments(static_cast<const Segment*>(plan.segments.data)),
        table(static_cast<int32_t*>(plan.q_tiles.data)),
        num_entries(plan.q_tiles.shape[0]),
        num_ranges(plan.segments.shape[0]),
        causal(plan.causal) {}

  EAGLE_HOST_DEVICE int64_t num_rows(int64_t range) const { return segments[range].q_len; }

  EAGLE_HOST_DEVICE int64_t work(Place place) const {
    const Segment s = segments[place.range];
    const int64_t seen_by_last = place.row + kTile + s.k_len - s.q_len;  // of a whole tile's rows
    return causal && seen_by_last < s.k_len ? seen_by_last : s.k_len;
  }

  EAGLE_HOST_DEVICE void write(int64_t entry, Place place) const {
    table[2 * entry] = static_cast<int32_t>(place.range);
    table[2 * entry + 1] = static_cast<int32_t>(place.row);
  }
  EAGLE_HOST_DEVICE void write_idle(int64_t entry) const {
    table[2 * entry] = -1;
    table[2 * entry + 1] = 0;
  }
};

// Key rows; their ranges lie between neighbouring ends of the segments' key ranges.
struct KeyTiles {
  const Segment* segments;
  int32_t* table;
  int64_t num_entries, num_ranges, num_segments, num_tokens;
  bool causal;
  const Item* edges = nullptr;     // [num_ranges + 1], edge(i) in ascending order
  const int32_t* reach = nullptr;  // [num_segments]: the largest k_end of segments 0 .. s

  explicit KeyTiles(const AttentionPlan& plan)
      : segments(static_cast<const Segment*>(plan.segments.data)),
        table(static_cast<int32_t*>(plan.k_tiles.data)),
        num_entries(plan.k_tiles.shape[0]),
        num_ranges(2 * plan.segments.shape[0] + 1),
        num_segments(plan.segments.shape[0]),
        num_tokens(plan.num_tokens_k),
        causal(plan.causal) {}

  EAGLE_HOST_DEVICE Item edge(int64_t i) const {
    const int64_t row = i < num_segments       ? segments[i].k_start
                        : i < 2 * num_segments ? segments[i - num_segments].k_end()
                        : i < num_ranges       ? 0
                                               : num_tokens;
    return {static_cast<uint32_t>(row), 0};
  }

  EAGLE_HOST_DEVICE int64_t num_rows(int64_t range) const { return int64_t{edges[range + 1].key} - edges[range].key; }

  EAGLE_HOST_DEVICE int64_t work(Place place) const {
    const int64_t first = edges[place.range].key + place.row, end = end_segment(first);
    int64_t num_queries = 0;
    for (int64_t i = begin_segment(first, end); i < end; ++i) {
      const Segment s = segments[i];
      const int64_t left = s.k_end() - first;
      if (left > 0) num_queries += causal && left < s.q_len ? left : s.q_len;
    }
    return num_queries;
  }

  EAGLE_HOST_DEVICE void write(int64_t entry, Place place) const {
    const int64_t first = edges[place.range].key + place.row, left = edges[place.range + 1].key - first;
    const int64_t end = end_segment(first);
    table[4 * entry] = static_cast<int32_t>(first);
    table[4 * entry + 1] = static_cast<int32_t>(left < kTile ? left : kTile);
    table[4 * entry + 2] = static_cast<int32_t>(begin_segment(first, end));
    table[4 * entry + 3] = static_cast<int32_t>(end);
  }
  EAGLE_HOST_DEVICE void write_idle(int64_t entry) const {
    for (int i = 0; i < 4; ++i) table[4 * entry + i] = 0;
  }

 private:
  // Segments from here on begin after row `first`; those before begin_segment end at or before it.
  EAGLE_HOST_DEVICE int64_t end_segment(int64_t first) const {
    return first_above(first, num_segments, [&](int64_t s) { return segments[s].k_start; });
  }
  EAGLE_HOST_DEVICE int64_t begin_segment(int64_t first, int64_t end) const {
    return first_above(first, end, [&](int64_t s) { return reach[s]; });
  }
};

}  // namespace eagle
