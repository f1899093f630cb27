// Copies by several threads: every byte, none beside them.
#include "cuda/copy_team.h"

#include <doctest/doctest.h>

using namespace alps;

TEST_CASE("copies of any size by any number of threads") {
  for (unsigned helpers : {0u, 1u, 3u}) {
    CopyTeam team(helpers);
    for (size_t bytes : {size_t{0}, size_t{1}, size_t{4095}, (size_t{1} << 20) - 1, size_t{1} << 20,
                         (size_t{1} << 20) + 1, (size_t{9} << 20) + 7}) {
      std::vector<char> from(bytes), to(bytes + 2, 'x');
      for (size_t i = 0; i < bytes; i++) from[i] = static_cast<char>(i * 2654435761u >> 13);
      team.copy(to.data() + 1, from.data(), bytes);
      CHECK(std::equal(from.begin(), from.end(), to.begin() + 1));
      CHECK(to.front() == 'x');
      CHECK(to.back() == 'x');
    }
  }
}
