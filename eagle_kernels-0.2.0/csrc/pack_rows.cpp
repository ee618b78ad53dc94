#include "pack_rows.h"

#include <algorithm>
#include <bit>
#include <vector>

namespace eagle {
namespace {

constexpr int64_t kMaxCapacity = int64_t{1} << 26;  // limit: a table of 4 bytes a token of it is kept

// Rows by the tokens they have left. Which amounts occur is a tree of bits: a bit of a level is a word of the one
// below.
class Rooms {
 public:
  explicit Rooms(int64_t capacity) : top_(capacity + 1, -1) {
    for (int64_t bits = capacity + 1;; bits = (bits + 63) / 64) {
      levels_.emplace_back((bits + 63) / 64, 0);
      if (bits <= 64) break;
    }
  }

  void push(int64_t room, int32_t row) {
    if (static_cast<size_t>(row) >= below_.size()) below_.resize(row + 1);
    below_[row] = top_[room];
    top_[room] = row;
    for (auto& words : levels_) {
      const uint64_t word = words[room / 64];
      words[room / 64] = word | uint64_t{1} << room % 64;
      if (word != 0) break;
      room /= 64;
    }
  }

  int32_t pop(int64_t room) {
    const int32_t row = top_[room];
    top_[room] = below_[row];
    if (top_[room] < 0) {
      for (auto& words : levels_) {
        words[room / 64] &= ~(uint64_t{1} << room % 64);
        if (words[room / 64] != 0) break;
        room /= 64;
      }
    }
    return row;
  }

  // The least room of any row that is `room` or more, or -1.
  int64_t at_least(int64_t room) const {
    for (size_t level = 0; level < levels_.size(); ++level) {
      const auto& words = levels_[level];
      if (room / 64 >= static_cast<int64_t>(words.size())) return -1;
      const uint64_t found = words[room / 64] & (~uint64_t{0} << room % 64);
      if (found != 0) {
        room = room / 64 * 64 + std::countr_zero(found);
        while (level-- > 0) room = room * 64 + std::countr_zero(levels_[level][room]);
        return room;
      }
      room = room / 64 + 1;
    }
    return -1;
  }

  // The most room of any row, or -1.
  int64_t most() const {
    if (levels_.back()[0] == 0) return -1;
    int64_t room = 0;
    for (size_t level = levels_.size(); level-- > 0;) {
      room = room * 64 + 63 - std::countl_zero(levels_[level][room]);
    }
    return room;
  }

 private:
  std::vector<int32_t> top_;    // of each amount: the row that came to it last, or -1
  std::vector<int32_t> below_;  // of each row: the one that came to the same amount before it, or -1
  std::vector<std::vector<uint64_t>> levels_;
};

struct Problem {
  const int64_t* lengths;
  int64_t num_samples, capacity;

  // Best fit for the first `num_best`, worst fit for the others into num_rows rows, or as many as best fit takes where
  // that is 0. Returns the number of rows; 0 where one does not fit.
  int64_t pack(int64_t num_best, int64_t num_rows, int32_t* rows) const {
    Rooms rooms(capacity);
    int32_t n = 0;
    for (int64_t i = 0; i < num_best; ++i) {
      int64_t room = rooms.at_least(lengths[i]);
      rows[i] = room < 0 ? n++ : rooms.pop(room);
      if (room < 0) room = capacity;
      rooms.push(room - lengths[i], rows[i]);
    }
    for (; n < num_rows; ++n) rooms.push(capacity, n);
    for (int64_t i = num_best; i < num_samples; ++i) {
      const int64_t room = rooms.most();
      if (room < lengths[i]) return 0;
      rows[i] = rooms.pop(room);
      rooms.push(room - lengths[i], rows[i]);
    }
    return n;
  }
};

}  // namespace

int64_t pack_rows(const TensorView& lengths, int64_t capacity, const TensorView& rows) {
  check(lengths.dtype == DType::kInt64 && lengths.num_dims == 1 && lengths.is_contiguous(),
        "pack_rows: lengths needs contiguous int64 of shape (N,).");
  check(rows.dtype == DType::kInt32 && rows.num_dims == 1 && rows.is_contiguous() && rows.shape[0] == lengths.shape[0],
        "pack_rows: rows needs contiguous int32 of shape (", lengths.shape[0], ",).");
  check(capacity >= 1 && capacity <= kMaxCapacity, "pack_rows: capacity is ", capacity, "; needs 1 to ", kMaxCapacity,
        ".");
  const Problem problem{static_cast<const int64_t*>(lengths.data), lengths.shape[0], capacity};
  for (int64_t i = 0; i < problem.num_samples; ++i) {
    check(problem.lengths[i] >= 1 && problem.lengths[i] <= capacity, "pack_rows: sample ", i, " has ",
          problem.lengths[i], " tokens; needs 1 to ", capacity, ".");
  }
  auto* out = static_cast<int32_t*>(rows.data);
  const int64_t num_rows = problem.pack(problem.num_samples, 0, out);
  std::vector<int32_t> tried(problem.num_samples);
  int64_t low = -1, high = problem.num_samples;  // with `high` by best fit all fit; with `low` they did not
  while (high - low > 1 + problem.num_samples / 256) {
    const int64_t middle = (low + high) / 2;
    if (problem.pack(middle, num_rows, tried.data()) > 0) {
      high = middle;
      std::copy(tried.begin(), tried.end(), out);
    } else {
      low = middle;
    }
  }
  std::vector<int32_t> number(num_rows, 0);  // worst fit may leave a row empty where samples are few
  for (int64_t i = 0; i < problem.num_samples; ++i) number[out[i]] = 1;
  int32_t n = 0;
  for (int32_t& row : number) row = row ? n++ : -1;
  for (int64_t i = 0; i < problem.num_samples; ++i) out[i] = number[out[i]];
  return n;
}

}  // namespace eagle
