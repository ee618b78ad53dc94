// The CUDA code: one launch of two blocks, one a table. Each thread owns a run of neighbouring items; what a thread
// needs from those before it comes from a scan over the block, so that nothing depends on who is first.
#include <algorithm>
#include <utility>

#include "attention_plan.h"

namespace eagle {
namespace {

constexpr int kThreads = 512;
constexpr int kDigitBits = 4;  // of a sort's pass: the counts of 16 digits and 512 threads fill shared memory
constexpr int kDigits = 1 << kDigitBits;

// One more word after every 16: threads that are 16 words apart find different banks.
EAGLE_HOST_DEVICE constexpr int padded(int i) { return i + i / 16; }

template <class T>
__device__ void swap_pointers(T*& a, T*& b) {
  T* const old = a;
  a = b;
  b = old;
}

template <int kNumThreads>
struct Block {
  int thread;
  int64_t* sScan;   // [2, kNumThreads]
  int32_t* sCount;  // [kDigits, kNumThreads], padded

  // Calls out(i, combination of value(0) .. value(i)) for all i < n and returns that of all; 0 must change nothing.
  // What the block wrote before the call and within it is visible after.
  template <class Value, class Combine, class Out>
  __device__ int64_t accumulate(int64_t n, const Value& value, const Combine& combine, const Out& out) const {
    const int64_t begin = first_of(n), end = first_after(n);
    int64_t mine = 0;
    for (int64_t i = begin; i < end; ++i) mine = combine(mine, value(i));
    int64_t *from = sScan, *to = sScan + kNumThreads;
    from[thread] = mine;
    __syncthreads();
    for (int step = 1; step < kNumThreads; step *= 2) {
      to[thread] = thread < step ? from[thread] : combine(from[thread - step], from[thread]);
      __syncthreads();
      swap_pointers(from, to);
    }
    int64_t running = thread > 0 ? from[thread - 1] : 0;
    for (int64_t i = begin; i < end; ++i) {
      running = combine(running, value(i));
      out(i, running);
    }
    const int64_t all = from[kNumThreads - 1];
    __syncthreads();
    return all;
  }

  // Sorts n items by their keys, stably, and returns where they are then, `items` or `spare`. Digits in which all keys
  // agree take no pass.
  __device__ Item* sort(Item* items, Item* spare, int64_t n) const {
    const auto varying = accumulate(
        n, [&](int64_t i) { return int64_t{items[i].key ^ items[0].key}; }, [](int64_t a, int64_t b) { return a | b; },
        [](int64_t, int64_t) {});
    for (int shift = 0; varying >> shift; shift += kDigitBits) {
      if ((varying >> shift) % kDigits == 0) continue;
      const auto count = [&](const Item& item) -> int32_t& {
        return sCount[padded((item.key >> shift) % kDigits * kNumThreads + thread)];
      };
      for (int digit = 0; digit < kDigits; ++digit) sCount[padded(digit * kNumThreads + thread)] = 0;
      for (int64_t i = first_of(n); i < first_after(n); ++i) ++count(items[i]);
      __syncthreads();
      accumulate(
          kDigits * kNumThreads, [&](int64_t i) { return sCount[padded(i)]; },
          [](int64_t a, int64_t b) { return a + b; },
          [&](int64_t i, int64_t sum) { sCount[padded(i)] = static_cast<int32_t>(sum) - sCount[padded(i)]; });
      for (int64_t i = first_of(n); i < first_after(n); ++i) {
        const Item item = items[i];
        spare[count(item)++] = item;
      }
      __syncthreads();
      swap_pointers(items, spare);
    }
    return items;
  }

  // A whole table. `ends` [num_ranges], `items` and `spare` [num_entries] are memory to work in.
  template <class Tiles>
  __device__ void build(const Tiles& tiles, int32_t* ends, Item* items, Item* spare) const {
    const int64_t total = accumulate(
        tiles.num_ranges, [&](int64_t range) { return num_tiles(tiles.num_rows(range)); },
        [](int64_t a, int64_t b) { return a + b; },
        [&](int64_t range, int64_t sum) { ends[range] = static_cast<int32_t>(min(sum, tiles.num_entries)); });
    const int64_t n = min(total, tiles.num_entries);
    for (int64_t tile = thread; tile < n; tile += kNumThreads) {
      items[tile] = {sort_key(tiles.work(place_of(tile, ends, tiles.num_ranges))), static_cast<int32_t>(tile)};
    }
    __syncthreads();
    items = sort(items, spare, n);
    for (int64_t entry = thread; entry < tiles.num_entries; entry += kNumThreads) {
      if (entry < n) {
        tiles.write(entry, place_of(items[entry].tile, ends, tiles.num_ranges));
      } else {
        tiles.write_idle(entry);
      }
    }
  }

 private:
  __device__ int64_t first_of(int64_t n) const { return min(n, thread * ((n + kNumThreads - 1) / kNumThreads)); }
  __device__ int64_t first_after(int64_t n) const {
    return min(n, (thread + 1) * ((n + kNumThreads - 1) / kNumThreads));
  }
};

struct Workspace {
  Item *q_items, *q_spare, *k_items, *k_spare, *edges, *edges_spare;
  int32_t *q_ends, *k_ends, *reach;

  Workspace(const QueryTiles& queries, const KeyTiles& keys, int32_t* next) {
    const auto take = [&](int64_t num_ints) { return std::exchange(next, next + num_ints); };
    const auto take_items = [&](int64_t n) { return reinterpret_cast<Item*>(take(2 * n)); };
    q_items = take_items(queries.num_entries);
    q_spare = take_items(queries.num_entries);
    k_items = take_items(keys.num_entries);
    k_spare = take_items(keys.num_entries);
    edges = take_items(keys.num_ranges + 1);
    edges_spare = take_items(keys.num_ranges + 1);
    q_ends = take(queries.num_ranges);
    k_ends = take(keys.num_ranges);
    reach = take(keys.num_segments);
  }
};

template <int kNumThreads>
__global__ void plan_kernel(QueryTiles queries, KeyTiles keys, Workspace workspace) {
  __shared__ int64_t sScan[2 * kNumThreads];
  __shared__ int32_t sCount[padded(kDigits * kNumThreads)];
  const Block<kNumThreads> block{static_cast<int>(threadIdx.x), sScan, sCount};
  if (blockIdx.x == 0) {
    block.build(queries, workspace.q_ends, workspace.q_items, workspace.q_spare);
    return;
  }
  block.accumulate(
      keys.num_segments, [&](int64_t s) { return keys.segments[s].k_end(); },
      [](int64_t a, int64_t b) { return a < b ? b : a; },
      [&](int64_t s, int64_t furthest) { workspace.reach[s] = static_cast<int32_t>(furthest); });
  for (int64_t i = block.thread; i <= keys.num_ranges; i += kNumThreads) workspace.edges[i] = keys.edge(i);
  __syncthreads();
  keys.edges = block.sort(workspace.edges, workspace.edges_spare, keys.num_ranges + 1);
  keys.reach = workspace.reach;
  block.build(keys, workspace.k_ends, workspace.k_items, workspace.k_spare);
}

template <int kNumThreads = kThreads>
void run(const AttentionPlan& plan, int32_t* memory, cudaStream_t stream) {
  const QueryTiles queries(plan);
  const KeyTiles keys(plan);
  const Workspace workspace(queries, keys, memory);
  plan_kernel<kNumThreads><<<2, kNumThreads, 0, stream>>>(queries, keys, workspace);
  check_launch("attention_plan");
}

}  // namespace

void attention_plan_cuda(const AttentionPlan& plan, const TensorView& workspace, int device, uintptr_t stream) {
  check_attention_plan(plan);
  const int64_t needed = attention_plan_workspace_ints(plan);
  check(workspace.dtype == DType::kInt32 && workspace.is_contiguous() && workspace.num_elements() >= needed &&
            reinterpret_cast<uintptr_t>(workspace.data) % sizeof(Item) == 0,
        "attention_plan: workspace needs ", needed, " contiguous int32 from an address divisible by ", sizeof(Item),
        ".");
  const DeviceGuard guard(device);
  run(plan, static_cast<int32_t*>(workspace.data), reinterpret_cast<cudaStream_t>(stream));
}

}  // namespace eagle
