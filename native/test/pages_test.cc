// Memory that was freed and is kept for the next tensors.
#include "cpu/pages.h"

#include <doctest/doctest.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <random>
#include <vector>

using alps::Contents;
using alps::PagePool;

namespace {

constexpr size_t page = 4096, MB = 1 << 20;

uint8_t* take(PagePool& pool, size_t bytes, Contents contents = Contents::any) {
  auto* data = static_cast<uint8_t*>(pool.take(bytes, contents));
  REQUIRE(data != nullptr);
  CHECK(reinterpret_cast<uintptr_t>(data) % page == 0);
  return data;
}

size_t addressSpace() {  // bytes
  std::ifstream file("/proc/self/statm");
  size_t pages = 0;
  file >> pages;
  return pages * page;
}

bool isMapped(const void* data) {
  unsigned char resident;
  return mincore(const_cast<void*>(data), page, &resident) == 0;
}

}  // namespace

TEST_CASE("memory that was freed is taken again, zeroed where zeros are asked for") {
  PagePool pool(4 * MB, 4 * MB);
  auto* held = take(pool, page);
  auto* first = take(pool, 5000);
  std::memset(first, 7, 5000);
  pool.give(first, 5000);
  auto* again = take(pool, 8192, Contents::zero);  // as many pages
  CHECK(again == first);
  for (int i = 0; i < 8192; i++) REQUIRE(again[i] == 0);
  auto* other = take(pool, 5000);
  CHECK(other != again);
  pool.give(other, 5000), pool.give(again, 8192), pool.give(held, page);
}

TEST_CASE("blocks side by side become one, and a larger one is cut") {
  PagePool pool(4 * MB, 4 * MB);
  std::vector<uint8_t*> blocks;
  for (int i = 0; i < 4; i++) blocks.push_back(take(pool, MB / 4));
  for (int i : {0, 2, 1, 3}) pool.give(blocks[static_cast<size_t>(i)], MB / 4);
  auto* whole = take(pool, MB);
  CHECK(whole == blocks[0]);
  auto* rest = take(pool, MB);  // the rest of the huge page
  CHECK(rest == whole + MB);
  pool.give(whole, MB);
  auto* part = take(pool, MB / 2);
  CHECK(part == whole);
  pool.give(part, MB / 2), pool.give(rest, MB);
}

TEST_CASE("what is always kept has a bound, and a block is at most a quarter of it") {
  PagePool pool(4 * MB, 0);
  auto* held = take(pool, page);
  std::vector<uint8_t*> blocks;
  for (int i = 0; i < 32; i++) blocks.push_back(take(pool, MB / 2));
  for (auto* block : blocks) pool.give(block, MB / 2);
  CHECK(pool.keptBytes() <= 4 * MB);
  CHECK(pool.keptBytes() > 2 * MB);
  size_t before = pool.keptBytes();
  auto* large = take(pool, 8 * MB);
  pool.give(large, 8 * MB);
  CHECK_FALSE(isMapped(large));
  CHECK(pool.keptBytes() <= before);
  CHECK(pool.keptBytes() > 0);
  pool.give(held, page);
  CHECK(pool.take(size_t{1} << 55, Contents::zero) == nullptr);
}

TEST_CASE("more is kept where no more is held with it than was in use before, until nothing is in use") {
  PagePool pool(2 * MB, 64 * MB);
  auto* held = take(pool, page);
  auto* large = take(pool, 32 * MB);
  pool.give(large, 32 * MB);
  CHECK(pool.keptBytes() >= 32 * MB);
  auto* half = take(pool, 16 * MB);
  CHECK(half == large);
  auto* beyond = take(pool, 24 * MB);  // does not fit: what is kept makes room
  CHECK(pool.keptBytes() <= 2 * MB);
  pool.give(half, 16 * MB), pool.give(beyond, 24 * MB);
  CHECK(pool.keptBytes() > 32 * MB);
  pool.give(held, page);
  CHECK(pool.keptBytes() <= 2 * MB);
}

TEST_CASE("a block that was the largest so far is found again, whatever its size") {
  PagePool pool(2 * MB, 64 * MB);
  auto* held = take(pool, page);
  for (size_t bytes : {33 * MB, 16 * MB + 5, 9 * MB + page}) {
    auto* first = take(pool, bytes);
    pool.give(first, bytes);
    for (int i = 0; i < 3; i++) {
      auto* again = take(pool, bytes);
      CHECK(again == first);
      pool.give(again, bytes);
    }
  }
  pool.give(held, page);
}

TEST_CASE("large zeros are the system's own") {
  PagePool pool(2 * MB, 128 * MB);
  auto* held = take(pool, page);
  auto* first = take(pool, 32 * MB);
  pool.give(first, 32 * MB);
  auto* zeros = take(pool, 32 * MB, Contents::zero);
  CHECK(zeros != first);
  CHECK(pool.keptBytes() <= 2 * MB);  // both would be more than was in use before
  pool.give(zeros, 32 * MB), pool.give(held, page);
}

TEST_CASE("what is kept makes room when the system refuses more") {
  PagePool pool(2 * MB, 256 * MB);
  std::vector<uint8_t*> blocks;
  for (int i = 0; i < 100; i++) blocks.push_back(take(pool, MB));
  for (size_t i = 0; i < blocks.size(); i++)
    if (i % 4 != 0) pool.give(blocks[i], MB);
  CHECK(pool.keptBytes() > 50 * MB);
  rlimit before{}, narrow{};
  REQUIRE(getrlimit(RLIMIT_AS, &before) == 0);
  narrow = {addressSpace() + 8 * MB, before.rlim_max};
  REQUIRE(setrlimit(RLIMIT_AS, &narrow) == 0);
  void* data = pool.take(40 * MB, Contents::any);
  setrlimit(RLIMIT_AS, &before);
  REQUIRE(data != nullptr);
  pool.give(data, 40 * MB);
  for (size_t i = 0; i < blocks.size(); i += 4) pool.give(blocks[i], MB);
}

TEST_CASE("any order of taking and giving back keeps contents apart and the bound") {
  PagePool pool(3 * MB, 16 * MB);
  struct Block {
    uint8_t* data;
    size_t bytes;
    uint8_t mark;
  };
  std::vector<Block> blocks;
  std::mt19937 random(7);
  size_t used = 0, highest = 0;
  auto counted = [](size_t bytes) {
    size_t unit = bytes > 2 * MB - page ? 2 * MB : page;
    return (bytes + unit - 1) / unit * unit;
  };
  for (int i = 0; i < 4000; i++) {
    if (blocks.size() < 24 && random() % 2) {
      size_t bytes = 1 + random() % (random() % 8 ? 300000 : 5000000);
      bool zero = random() % 2;
      auto* data = take(pool, bytes, zero ? Contents::zero : Contents::any);
      if (zero)
        for (size_t at = 0; at < bytes; at += 97) REQUIRE(data[at] == 0);
      auto mark = static_cast<uint8_t>(random());
      std::memset(data, mark, bytes);
      blocks.push_back({data, bytes, mark});
      used += counted(bytes);
      highest = std::max(highest, used);
    } else if (!blocks.empty()) {
      std::swap(blocks[random() % blocks.size()], blocks.back());
      Block block = blocks.back();
      blocks.pop_back();
      for (size_t at = 0; at < block.bytes; at += 97) REQUIRE(block.data[at] == block.mark);
      pool.give(block.data, block.bytes);
      used -= counted(block.bytes);
      if (used == 0) highest = 0;
    }
    REQUIRE(pool.keptBytes() <= std::max(3 * MB, std::min(16 * MB, highest - used)));
  }
  for (auto& block : blocks) pool.give(block.data, block.bytes);
}

TEST_CASE("a pool that keeps nothing") {
  PagePool pool(0, 0);
  auto* data = take(pool, 0);
  pool.give(data, 0);
  CHECK(pool.keptBytes() == 0);
  CHECK_FALSE(isMapped(data));
}
