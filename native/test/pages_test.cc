// Blocks that are kept for the next tensors of their size.
#include "cpu/pages.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

using alps::PagePool;

TEST_CASE("a block that was kept comes back zeroed, and only for its size") {
  PagePool pool(1 << 20);
  auto* first = static_cast<uint8_t*>(pool.take(5000));
  REQUIRE(first != nullptr);
  CHECK(reinterpret_cast<uintptr_t>(first) % 4096 == 0);
  for (int i = 0; i < 5000; i++) first[i] = 7;
  pool.give(first, 5000);
  auto* other = static_cast<uint8_t*>(pool.take(9000));
  CHECK(other != first);
  auto* again = static_cast<uint8_t*>(pool.take(8192));  // as many pages
  CHECK(again == first);
  for (int i = 0; i < 8192; i++) REQUIRE(again[i] == 0);
  auto* fresh = static_cast<uint8_t*>(pool.take(5000));
  CHECK(fresh != first);
  pool.give(other, 9000), pool.give(again, 8192), pool.give(fresh, 5000);
}

TEST_CASE("what is kept has a bound, and large blocks are not kept") {
  PagePool pool(1 << 20);
  std::vector<void*> blocks;
  for (int i = 0; i < 32; i++) blocks.push_back(pool.take(1 << 17));
  for (void* block : blocks) pool.give(block, 1 << 17);
  CHECK(pool.keptBytes() == 1 << 20);
  pool.give(pool.take(1 << 19), 1 << 19);
  CHECK(pool.keptBytes() == 1 << 20);
  void* last = pool.take(1 << 17);
  CHECK(last == blocks.back());  // the one that was used last is the likeliest in the caches
  pool.give(last, 1 << 17);
  CHECK(pool.take(size_t{1} << 55) == nullptr);
}

TEST_CASE("a pool that keeps nothing") {
  PagePool pool(0);
  pool.give(pool.take(0), 0);
  CHECK(pool.keptBytes() == 0);
}
