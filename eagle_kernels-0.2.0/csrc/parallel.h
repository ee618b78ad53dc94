// Work shared out among CPU threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace eagle {

// Calls work(i) for 0 <= i < num_items from `num_threads` threads (0: one for each CPU; never more than items), each
// with a `work` of its own from make_work(). The first exception of any of them is thrown here.
template <class MakeWork>
void parallel_for(int64_t num_items, int num_threads, MakeWork make_work) {
  if (num_threads == 0) num_threads = std::max(1u, std::thread::hardware_concurrency());
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto loop = [&] {
    try {
      auto work = make_work();
      for (int64_t i; (i = next.fetch_add(1)) < num_items;) work(i);
    } catch (...) {
      next = num_items;
      const std::lock_guard<std::mutex> lock(error_mutex);
      error = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  try {
    for (int64_t t = 1; t < std::min<int64_t>(num_threads, num_items); ++t) threads.emplace_back(loop);
  } catch (...) {
    next = num_items;
    for (std::thread& thread : threads) thread.join();
    throw;
  }
  loop();
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace eagle
