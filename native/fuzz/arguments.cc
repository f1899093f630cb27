// Arguments for ops, by type. Letters of a signature:
//   dtypes  f float32, h float32 or bfloat16 (one for all of an op), o the same for each tensor, d float64, u uint32,
//           b uint8, x any (one for all of an op), y any
//   sizes   m rows, n columns, t tokens, k any, e at most n, s segments, 1 one, T windows × sequence, p sequence,
//           q heads × headDim, v kvHeads × headDim, a headDim / 2, D headDim, w a small number, B windows,
//           l the last position of a sequence
#include <algorithm>
#include <sstream>

#include "ops.h"

namespace alps::fuzz {

namespace {
constexpr DType all[] = {DType::f32, DType::bf16, DType::f16, DType::f64, DType::u32, DType::u8};
}

void Arguments::begin(const char* signature) {
  rest_ = signature;
  uint8_t byte = bytes_.byte();
  floating_ = byte % 2 ? DType::bf16 : DType::f32;
  any_ = all[(byte >> 1) % 6];
  rowEnds_.clear();
}

std::string Arguments::nextWord() {
  size_t end = std::min(rest_.find(' '), rest_.size());
  std::string word = rest_.substr(0, end);
  rest_.erase(0, end + 1);
  return word;
}

int64_t Arguments::sizeOf(char letter) const {
  switch (letter) {
    case 'm':
      return sizes_.m;
    case 'n':
      return sizes_.n;
    case 't':
      return sizes_.t;
    case 'k':
      return sizes_.k;
    case 'e':
      return std::max<int64_t>(1, std::min(sizes_.k, sizes_.n));
    case 's':
      return static_cast<int64_t>(rowEnds_.size());
    case 'T':
      return sizes_.windows * sizes_.sequence;
    case 'p':
      return sizes_.sequence;
    case 'q':
      return sizes_.heads * sizes_.headDim;
    case 'v':
      return sizes_.kvHeads * sizes_.headDim;
    case 'a':
      return sizes_.headDim / 2;
    case 'D':
      return sizes_.headDim;
    case 'w':
      return 40;
    case 'B':
      return sizes_.windows;
    case 'l':
      return std::max<int64_t>(1, sizes_.sequence) - 1;
    default:
      return 1;
  }
}

DType Arguments::dtypeOf(char letter) {
  switch (letter) {
    case 'h':
      return floating_;
    case 'o':
      return bytes_.byte() % 2 ? DType::bf16 : DType::f32;
    case 'd':
      return DType::f64;
    case 'u':
      return DType::u32;
    case 'b':
      return DType::u8;
    case 'x':
      return any_;
    case 'y':
      return all[bytes_.byte() % 6];
    default:
      return DType::f32;
  }
}

// One that an op before has used, or a new one; some are views, which begin inside their memory.
Tensor Arguments::find(DType dtype, const test::Shape& shape) {
  std::vector<Tensor>& same = pool_[{dtype, shape}];
  uint8_t byte = bytes_.byte();
  if (!same.empty() && byte % 4 != 0) return same[byte / 4 % same.size()];
  Tensor tensor = test::zeros(dtype, shape);
  if (byte % 32 == 4) {
    tensor.byteOffset = 3 * alps::sizeOf(dtype);
    tensor.storage = std::make_shared<test::HeapStorage>(tensor.bytes() + tensor.byteOffset);
  }
  writeContents(bytes_, tensor);
  if (same.size() < 4) same.push_back(tensor);
  return tensor;
}

void Arguments::read(Tensor& out) {
  std::string word = nextWord();
  DType dtype = dtypeOf(word[0]);
  test::Shape shape;
  for (size_t i = 2; i < word.size(); i += 2) shape.push_back(sizeOf(word[i]));
  if (bytes_.rarely(48)) {  // something else: nothing, another dtype, another shape
    uint8_t byte = bytes_.byte();
    if (byte % 4 == 0) return;
    if (byte % 4 == 1) dtype = all[(byte >> 2) % 6];
    if (byte % 4 == 2 && !shape.empty()) shape[(byte >> 2) % shape.size()] = readSize(bytes_);
    if (byte % 4 == 3) shape.assign((byte >> 2) % 4, readSize(bytes_) % 34);
  }
  out = find(dtype, shape);
}

void Arguments::read(int64_t& out) {
  int64_t size = sizeOf(nextWord()[1]);
  uint8_t byte = bytes_.byte();
  out = byte % 32 == 31 ? readInteger(bytes_) : byte % 4 ? size : byte % (size + 1);
}

void Arguments::read(std::string& out) {
  constexpr const char* names[] = {"silu", "gelu", "gelu_tanh", "relu", ""};
  out = names[bytes_.byte() % 5];
}

void Arguments::read(Pattern& out) {
  constexpr int64_t groups[] = {1, 2, 3, 4, 5, 8, 16, 32, 33, 64};
  uint8_t byte = bytes_.byte();
  if (byte % 2 == 0) return;
  if (byte % 64 == 63) {
    out = {readInteger(bytes_), readInteger(bytes_)};
    return;
  }
  out.group = groups[byte / 2 % 10];
  if (sizes_.n > 0 && sizes_.n % out.group != 0) out.group = sizes_.n;
  out.kept = bytes_.byte() % (out.group + 1);
}

// The first of an op are the rows that segments end at, the second what they keep.
void Arguments::read(Counts& out) {
  bool wrong = bytes_.rarely(48);
  if (rowEnds_.empty()) {
    for (int i = bytes_.byte() % 3; i > 0; i--)
      out.push_back(static_cast<uint64_t>(bytes_.byte()) % static_cast<uint64_t>(sizes_.m + 1));
    std::sort(out.begin(), out.end());
    out.push_back(static_cast<uint64_t>(sizes_.m));
    if (wrong) out[bytes_.byte() % out.size()] = static_cast<uint64_t>(readInteger(bytes_));
    rowEnds_ = out;
    return;
  }
  uint64_t start = 0;
  for (uint64_t end : rowEnds_) {
    uint64_t size = (end - start) * static_cast<uint64_t>(sizes_.n);
    uint8_t byte = bytes_.byte();
    out.push_back(byte == 255 ? size : size * byte / 255);
    start = end;
  }
  if (wrong) out[bytes_.byte() % out.size()] = static_cast<uint64_t>(readInteger(bytes_));
}

}  // namespace alps::fuzz
