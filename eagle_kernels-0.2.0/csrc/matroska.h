// The blocks of one track of a Matroska or WebM file, in the order of storage.
//
// Every block's header is read and no payload: blocks are stepped over, and where they are large so is the file.
// Source: RFC 8794 (EBML) and RFC 9559 (Matroska), clusters 5.1.3, blocks 10.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace eagle {

struct MatroskaBlocks {
  std::vector<int64_t> timestamp;   // ticks of TimestampScale: the cluster's and the block's own
  std::vector<int64_t> duration;    // BlockDuration, ticks; 0 where none is stated
  std::vector<int64_t> offset;      // of the payload, bytes from the start of the file
  std::vector<int32_t> size;        // of the payload, bytes; at least 1
  std::vector<uint8_t> is_key;      // a SimpleBlock marked so, or a BlockGroup without a reference
  std::vector<uint8_t> first_byte;  // of the payload
};

// The elements of a Segment from `begin` up to `end`, bytes from the start of the file open as `fd`, which is read with
// pread. Sizes of clusters may be unknown. Memory grows with the blocks that are there, not with what sizes claim.
// Throws std::invalid_argument (Python: ValueError), naming the place, for whatever is not plain: an element that
// reaches out of its parent or does not belong there, a block before its cluster's time or at a time below 0, and of
// this track: lacing, an empty or invisible block, encrypted ones, block additions, codec state, discard padding, or no
// block. (VP8 has invisible blocks, and its payloads say the same; that flag is left to the caller, who has
// first_byte.) Also where the file cannot be read or got shorter.
// `look` is called some twenty times a second, and ends the reading by throwing: a slow disk may take minutes.
MatroskaBlocks matroska_blocks(int fd, int64_t begin, int64_t end, uint64_t track_number, bool allow_invisible,
                               const std::function<void()>& look);

}  // namespace eagle
