// How the core refuses bad input: one sentence, thrown as std::invalid_argument (Python: ValueError).
#pragma once

#include <sstream>
#include <stdexcept>

namespace eagle {

// Throws std::invalid_argument with all `parts` joined, unless `ok`.
template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

}  // namespace eagle
