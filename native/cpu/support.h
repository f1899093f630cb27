// The support of a row: the columns of the weights that it keeps.
#pragma once
#include <cstdint>
#include <vector>

namespace alps {

// Ascending; replaces what was in `support`.
inline void readSupport(const uint8_t* mask, int64_t columns, std::vector<uint32_t>& support) {
  support.clear();
  for (int64_t j = 0; j < columns; j++)
    if (mask[j]) support.push_back(static_cast<uint32_t>(j));
}

}  // namespace alps
