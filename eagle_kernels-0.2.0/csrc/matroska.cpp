#include "matroska.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <limits>
#include <utility>

#include "error.h"

namespace eagle {
namespace {

constexpr int64_t kUnknown = -1;  // an element's size
constexpr int64_t kMaxTimestamp = int64_t{1} << 60;

// EBML IDs, with their length marker (RFC 9559, 5.1).
enum Id : uint32_t {
  kVoid = 0xEC,
  kCrc32 = 0xBF,
  kSeekHead = 0x114D9B74,
  kCluster = 0x1F43B675,
  kCues = 0x1C53BB6B,
  kChapters = 0x1043A770,
  kTags = 0x1254C367,
  kAttachments = 0x1941A469,
  kTimestamp = 0xE7,
  kPosition = 0xA7,
  kPrevSize = 0xAB,
  kSimpleBlock = 0xA3,
  kBlockGroup = 0xA0,
  kBlock = 0xA1,
  kBlockDuration = 0x9B,
  kReferenceBlock = 0xFB,
  kReferencePriority = 0xFA,
};
constexpr uint8_t kKeyFlag = 0x80, kInvisibleFlag = 0x08, kLacingFlags = 0x06;

// A window on the file: much of it where blocks are short, since copying a few KiB is cheaper than one more call, and
// on a disk than one more seek; a header's length where they are long. Measured: docs/notes/video.md.
class Window {
 public:
  Window(int fd, int64_t begin, const std::function<void()>& look) : fd_(fd), file_begin_(begin), look_(look) {}

  // `count` <= 8 bytes at `at`, which end at or before `limit`; valid until the next call.
  const uint8_t* bytes(int64_t at, int64_t count, int64_t limit) {
    check(count <= limit - at, "matroska: the element at byte ", at, " reaches out of its parent.");
    if (at < begin_ || at + count > begin_ + size_) fill(at, count);
    return buffer_.data() + (at - begin_);
  }

  int64_t num_elements = 0;  // so far

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr int64_t kShort = 256, kLong = 1 << 17, kShortElement = 8192;
  static constexpr std::chrono::milliseconds kBetweenLooks{50};  // a look may have to wait for Python's lock

  void fill(int64_t at, int64_t count) {
    if (Clock::now() - looked_ >= kBetweenLooks) {
      look_();
      looked_ = Clock::now();
    }
    const int64_t wanted = at - file_begin_ < num_elements * kShortElement ? kLong : kShort;
    begin_ = at;
    size_ = 0;
    while (size_ < count) {
      const ssize_t got = pread(fd_, buffer_.data() + size_, wanted - size_, at + size_);
      if (got < 0 && errno == EINTR) continue;
      check(got > 0, "matroska: the file cannot be read at byte ", at + size_, ", or it got shorter.");
      size_ += got;
    }
  }

  int fd_;
  int64_t file_begin_, begin_ = 0, size_ = 0;
  const std::function<void()>& look_;
  Clock::time_point looked_{};  // long ago: the first look is at once
  std::vector<uint8_t> buffer_ = std::vector<uint8_t>(kLong);
};

struct Element {
  uint32_t id;
  int64_t begin;  // of the content
  int64_t size;   // kUnknown, or what fits into the parent
};

class Scan {
 public:
  Scan(int fd, int64_t begin, uint64_t track_number, bool allow_invisible, const std::function<void()>& look)
      : window_(fd, begin, look), track_number_(track_number), allow_invisible_(allow_invisible) {}

  MatroskaBlocks run(int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end;) {
      const Element element = read_element(at, end);
      if (element.id == kCluster) {
        at = read_cluster(element, end);
        continue;
      }
      check(is_top(element.id) && element.size != kUnknown, "matroska: unexpected element ", element.id, " at byte ",
            at, " of a segment.");
      at = element.begin + element.size;
    }
    check(!blocks_.size.empty(), "matroska: track ", track_number_, " has no block.");
    return std::move(blocks_);
  }

 private:
  static bool is_top(uint32_t id) {  // what may follow a cluster
    return id == kSeekHead || id == kCluster || id == kCues || id == kChapters || id == kTags || id == kAttachments ||
           is_filler(id);
  }
  static bool is_filler(uint32_t id) { return id == kVoid || id == kCrc32; }

  // A number of 1 to 8 bytes, its length told by the zeros that it begins with; the marker after them is kept.
  uint64_t read_number(int64_t at, int64_t limit, int max_length, int* length) {
    const uint8_t first = *window_.bytes(at, 1, limit);
    *length = first == 0 ? 9 : __builtin_clz(static_cast<unsigned>(first)) - 23;
    check(*length <= max_length, "matroska: no element at byte ", at, '.');
    const uint8_t* bytes = window_.bytes(at, *length, limit);
    uint64_t number = 0;
    for (int i = 0; i < *length; ++i) number = number << 8 | bytes[i];
    return number;
  }

  static uint64_t without_marker(uint64_t number, int length) { return number ^ (uint64_t{1} << (7 * length)); }

  Element read_element(int64_t at, int64_t limit) {
    ++window_.num_elements;
    int id_length, size_length;
    const auto id = static_cast<uint32_t>(read_number(at, limit, 4, &id_length));
    uint64_t size = read_number(at + id_length, limit, 8, &size_length);
    size = without_marker(size, size_length);
    const int64_t begin = at + id_length + size_length;
    if (size == (uint64_t{1} << (7 * size_length)) - 1) return {id, begin, kUnknown};
    check(size <= static_cast<uint64_t>(limit - begin), "matroska: the element at byte ", at,
          " reaches out of its parent.");
    return {id, begin, static_cast<int64_t>(size)};
  }

  uint64_t read_unsigned(const Element& element) {
    check(element.size >= 0 && element.size <= 8, "matroska: no number at byte ", element.begin, '.');
    if (element.size == 0) return 0;
    const uint8_t* bytes = window_.bytes(element.begin, element.size, element.begin + element.size);
    uint64_t number = 0;
    for (int64_t i = 0; i < element.size; ++i) number = number << 8 | bytes[i];
    return number;
  }

  int64_t read_ticks(const Element& element) {
    const uint64_t ticks = read_unsigned(element);
    check(ticks < static_cast<uint64_t>(kMaxTimestamp), "matroska: the time at byte ", element.begin, " is too large.");
    return static_cast<int64_t>(ticks);
  }

  // Returns where the next element of the segment begins: after the cluster, or if its size is unknown at the first
  // element that none can hold.
  int64_t read_cluster(const Element& cluster, int64_t end) {
    const bool is_open = cluster.size == kUnknown;
    if (!is_open) end = cluster.begin + cluster.size;
    int64_t cluster_ticks = -1;
    for (int64_t at = cluster.begin; at < end;) {
      const Element element = read_element(at, end);
      if (is_open && is_top(element.id) && !is_filler(element.id)) return at;
      check(element.size != kUnknown, "matroska: the element at byte ", at, " has no size.");
      switch (element.id) {
        case kTimestamp:
          check(cluster_ticks < 0, "matroska: a second cluster time at byte ", at, '.');
          cluster_ticks = read_ticks(element);
          break;
        case kSimpleBlock:
          read_block(element, cluster_ticks, true);
          break;
        case kBlockGroup:
          read_group(element, cluster_ticks);
          break;
        case kVoid:
        case kCrc32:
        case kPosition:
        case kPrevSize:
          break;
        default:
          check(false, "matroska: unexpected element ", element.id, " at byte ", at, " of a cluster.");
      }
      at = element.begin + element.size;
    }
    return end;
  }

  void read_group(const Element& group, int64_t cluster_ticks) {
    const int64_t end = group.begin + group.size;
    const size_t num_before = blocks_.size.size();
    int num_blocks = 0;
    int64_t duration = 0;
    bool is_key = true;
    int64_t odd_at = -1;  // what would make a block of this track hard to read
    for (int64_t at = group.begin; at < end;) {
      const Element element = read_element(at, end);
      check(element.size != kUnknown, "matroska: the element at byte ", at, " has no size.");
      switch (element.id) {
        case kBlock:
          check(++num_blocks == 1, "matroska: a second block at byte ", at, " of a group.");
          read_block(element, cluster_ticks, false);
          break;
        case kBlockDuration:
          duration = read_ticks(element);
          break;
        case kReferenceBlock:
          is_key = false;
          break;
        case kVoid:
        case kCrc32:
        case kReferencePriority:
          break;
        default:
          odd_at = at;
      }
      at = element.begin + element.size;
    }
    if (blocks_.size.size() == num_before) return;
    check(odd_at < 0, "matroska: unexpected element at byte ", odd_at, " of a group.");
    blocks_.duration.back() = duration;
    blocks_.is_key.back() = is_key;
  }

  void read_block(const Element& block, int64_t cluster_ticks, bool is_simple) {
    const int64_t end = block.begin + block.size;
    int length;
    const uint64_t number = read_number(block.begin, end, 8, &length);
    if (without_marker(number, length) != track_number_) return;
    const int64_t begin = block.begin + length + 3, size = end - begin;
    const uint8_t* bytes = window_.bytes(block.begin + length, 4, end);
    const int64_t ticks = cluster_ticks + static_cast<int16_t>(bytes[0] << 8 | bytes[1]);
    check(cluster_ticks >= 0 && ticks >= 0, "matroska: the block at byte ", block.begin, " has no time.");
    check((bytes[2] & kLacingFlags) == 0, "matroska: the block at byte ", block.begin, " holds several frames.");
    check(allow_invisible_ || (bytes[2] & kInvisibleFlag) == 0, "matroska: the block at byte ", block.begin,
          " is invisible.");
    check(size <= std::numeric_limits<int32_t>::max(), "matroska: the block at byte ", block.begin, " is too large.");
    blocks_.timestamp.push_back(ticks);
    blocks_.duration.push_back(0);
    blocks_.offset.push_back(begin);
    blocks_.size.push_back(static_cast<int32_t>(size));
    blocks_.is_key.push_back(is_simple && (bytes[2] & kKeyFlag) != 0);
    blocks_.first_byte.push_back(bytes[3]);
  }

  Window window_;
  uint64_t track_number_;
  bool allow_invisible_;
  MatroskaBlocks blocks_;
};

}  // namespace

MatroskaBlocks matroska_blocks(int fd, int64_t begin, int64_t end, uint64_t track_number, bool allow_invisible,
                               const std::function<void()>& look) {
  check(0 <= begin && begin <= end, "matroska: bytes ", begin, " to ", end, " are no part of a file.");
  return Scan(fd, begin, track_number, allow_invisible, look).run(begin, end);
}

}  // namespace eagle
