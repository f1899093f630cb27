// A byte stream read as a program: numbers, shapes and contents that ops are called with.
#pragma once
#include <cstddef>
#include <cstdint>

#include "support.h"

namespace alps::fuzz {

// Reads bytes; past their end every one is 0.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}
  bool empty() const { return at_ == end_; }
  uint8_t byte() { return empty() ? 0 : *at_++; }
  // True for one of `of` bytes.
  bool rarely(int of) { return byte() % of == of - 1; }

 private:
  const uint8_t *at_, *end_;
};

// The sizes that the shapes of one program are made of, by the letters of op signatures (arguments.cc):
// m rows, n columns, t tokens, k any, 1 one.
struct Sizes {
  int64_t m, n, t, k, heads, kvHeads, headDim, windows, sequence;
};
Sizes readSizes(Bytes& bytes);

int64_t readSize(Bytes& bytes);     // 0, 1, primes, around the blocks of the kernels
double readNumber(Bytes& bytes);    // 0, 1, small, huge, negative, NaN, infinity
int64_t readInteger(Bytes& bytes);  // small, negative, the largest
// Contents: zeros, ones, small numbers, ties, NaN and infinity, subnormals, raw bits.
void writeContents(Bytes& bytes, const Tensor& tensor);

}  // namespace alps::fuzz
