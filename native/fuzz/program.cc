#include "program.h"

#include <limits>

namespace alps::fuzz {

namespace {

constexpr int64_t sizes[] = {1,  2,  3,  4, 5,  7,  8,  12, 13,  16,  17,  31,
                             32, 33, 48, 0, 64, 65, 67, 96, 127, 128, 130, 200};

// The program's own generator for contents (xorshift), so that a few bytes fill a tensor.
struct Generator {
  uint64_t state;
  uint64_t next() {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
  }
};

float special(uint64_t random) {
  constexpr float values[] = {0.0f,
                              -0.0f,
                              std::numeric_limits<float>::quiet_NaN(),
                              std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity(),
                              std::numeric_limits<float>::denorm_min(),
                              1e-40f,
                              -1e-40f,
                              std::numeric_limits<float>::max(),
                              std::numeric_limits<float>::lowest(),
                              1e-20f,
                              1e20f,
                              1.0f,
                              -1.0f,
                              0.5f,
                              3.0f};
  return values[random % 16];
}

float number(int kind, Generator& generator) {
  uint64_t random = generator.next();
  float small = static_cast<float>(static_cast<int32_t>(random & 0xffff) - 0x8000) / 8192.0f;
  switch (kind) {
    case 0:
      return 0;
    case 1:
      return static_cast<float>(random % 5) - 2;  // many ties
    case 2:
      return special(random);
    case 3:
      return random % 64 == 0 ? special(random >> 8) : small;
    default:
      return small;
  }
}

}  // namespace

int64_t readSize(Bytes& bytes) {
  uint8_t byte = bytes.byte();
  return sizes[byte < 160 ? byte % 16 : byte % std::size(sizes)];
}

Sizes readSizes(Bytes& bytes) {
  Sizes read{};
  read.m = readSize(bytes), read.n = readSize(bytes), read.t = readSize(bytes), read.k = readSize(bytes);
  uint8_t byte = bytes.byte();
  read.kvHeads = 1 + byte % 3, read.heads = read.kvHeads * (1 + (byte >> 2) % 3), read.windows = (byte >> 4) % 3;
  read.headDim = readSize(bytes), read.sequence = readSize(bytes);
  return read;
}

double readNumber(Bytes& bytes) {
  constexpr double values[] = {0,   1,    0.5,   -1,     1e-5,   0.01, 2,   1e-12,
                               100, 1e30, 1e300, -1e300, 1e-300, 0.1,  255, 4294967296.0};
  uint8_t byte = bytes.byte();
  if (byte == 254) return std::numeric_limits<double>::quiet_NaN();
  if (byte == 255) return std::numeric_limits<double>::infinity();
  return values[byte % 16];
}

int64_t readInteger(Bytes& bytes) {
  constexpr int64_t values[] = {-1,
                                std::numeric_limits<int64_t>::max(),
                                std::numeric_limits<int64_t>::min(),
                                std::numeric_limits<int32_t>::max(),
                                int64_t{1} << 32,
                                int64_t{1} << 52,
                                -64,
                                1000};
  uint8_t byte = bytes.byte();
  return byte < 240 ? byte % 80 : values[byte % 8];
}

void writeContents(Bytes& bytes, const Tensor& tensor) {
  uint8_t kind = bytes.byte();
  Generator generator{0x9e3779b97f4a7c15u ^ (uint64_t{bytes.byte()} + 1) * 0x2545f4914f6cdd1du};
  bool rawBits = kind % 16 == 15;
  bool gram = kind % 16 >= 8 && tensor.rank() == 2 && tensor.dim(0) == tensor.dim(1);  // positive definite
  for (int64_t i = 0; i < tensor.size(); i++) {
    switch (tensor.dtype) {
      case DType::f32: {
        uint32_t bits = static_cast<uint32_t>(generator.next());
        float value = number(kind % 8, generator);
        if (rawBits)
          std::memcpy(tensor.as<float>() + i, &bits, 4);
        else if (gram)
          tensor.as()[i] = i / tensor.dim(0) == i % tensor.dim(0) ? 4.0f + static_cast<float>(tensor.dim(0)) : 0.5f;
        else
          tensor.as()[i] = value;
        break;
      }
      case DType::f64:
        tensor.as<double>()[i] = number(kind % 8, generator);
        break;
      case DType::bf16: {
        float value = number(kind % 8, generator);
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        tensor.as<uint16_t>()[i] =
            rawBits ? static_cast<uint16_t>(generator.next()) : static_cast<uint16_t>(bits >> 16);
        break;
      }
      case DType::f16:
        tensor.as<uint16_t>()[i] = static_cast<uint16_t>(generator.next());
        break;
      case DType::u32:  // ids: mostly in range
        tensor.as<uint32_t>()[i] =
            static_cast<uint32_t>(rawBits ? generator.next() : generator.next() % (1 + kind % 24));
        break;
      case DType::u8:  // masks: mostly 0 and 1
        tensor.as<uint8_t>()[i] = static_cast<uint8_t>(rawBits ? generator.next() : generator.next() % 2);
        break;
    }
  }
}

}  // namespace alps::fuzz
