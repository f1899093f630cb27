// Products of bfloat16 numbers by the loops of kernels_products.h, with float32 sums. oneDNN packs both factors for
// every tile; here what has to be packed is packed once, and a left factor whose rows lie as they are summed is read in
// place. An element's sum is in one order, whatever is computed beside it.
#pragma once
#include <algorithm>

#include "core/tensor.h"
#include "cpu/kernels_products.h"
#include "cpu/lines.h"

namespace alps {

constexpr int64_t pairsOf(int64_t k) { return (k + 1) / 2; }
constexpr int64_t panelsOf(int64_t columns) { return (columns + pairColumns - 1) / pairColumns; }
// Packed pairs of k numbers for some columns, in panels of `width`.
constexpr int64_t packedSize(int64_t columns, int64_t k, int64_t width = pairColumns) {
  return (columns + width - 1) / width * width * pairsOf(k);
}

// Pairs that are summed in one go: a panel's piece stays in the second cache, and long sums exact.
constexpr int64_t pairsTogether = 512;

// Rows of a product from which on packing its right factor is worth it.
constexpr int64_t enoughRows = 48;

// Bytes of packed pairs at a time, about.
constexpr int64_t mostPacked = int64_t{32} << 20;

// Room for so many numbers, such as packed pairs; what was there is of no further use.
template <typename T>
void makeRoom(Lines<T>& lines, int64_t size) {
  if (lines.size() >= static_cast<size_t>(size)) return;
  Lines<T>().swap(lines);  // not copied
  lines.resize(static_cast<size_t>(size));
}
// What one product needed beyond the usual is not kept for the next.
void dropLarge(Lines<uint32_t>& packed);

// A left factor: rows as they lie, of bf16 and `ld` apart, or packed, with `pairs` in each panel.
struct LeftPairs {
  const bf16_t* rows;
  int64_t ld;
  const uint32_t* packed;
  int64_t pairs;
  bool padded = false;  // rows of an odd length have a zero behind it
};

// A right factor, packed: panels of `width` from the first column and pair on that count, `pairs` in each.
struct RightPairs {
  const uint32_t* panels;
  int64_t pairs;
  int64_t width = pairColumns;
  const uint32_t* at(int64_t column, int64_t pair) const {
    return panels + (column / width * pairs + pair) * width + column % width;
  }
};

// out [rows, columns] = left · right over k numbers, of the left factor the rows from `row` on. The right one begins
// with a panel, or lies in one. To bfloat16 over at most 2 · pairsTogether numbers, and not from rows of an odd length
// that are not padded.
void multiplyPairs(const ProductKernels& kernels, const LeftPairs& left, int64_t row, int64_t rows, RightPairs right,
                   int64_t columns, int64_t k, const PairOutput& out);

}  // namespace alps
