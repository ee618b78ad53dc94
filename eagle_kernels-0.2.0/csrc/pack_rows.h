// Which row each sample goes to: rows of `capacity` tokens, nearly as few as can be, filled about equally.
//
//   lengths  [N]  i64  contiguous, 1 to capacity, in the order in which samples are placed: longest first packs best
//   rows     [N]  i32  contiguous, written: the row of each, rows counted from 0, none of them empty
//
// Best fit (the fullest row with room; of several the one that came to this much room last) says how many rows there
// are. Then as few samples as possible, from the first on, are placed by it, and the rest by worst fit (the emptiest
// row) into as many rows: that levels them. "As few" is found by bisection, to N / 256.
#pragma once

#include <cstdint>

#include "tensor_view.h"

namespace eagle {

// Returns the number of rows. Throws std::invalid_argument (Python: ValueError) unless the tensors are as above and
// capacity is 1 to 2**26.
int64_t pack_rows(const TensorView& lengths, int64_t capacity, const TensorView& rows);

}  // namespace eagle
