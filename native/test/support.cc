#include "support.h"

#include <algorithm>
#include <numeric>
#include <optional>

namespace alps::test {

namespace {

uint16_t bf16Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float fromBf16(uint16_t half) {
  uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

double fromF16(uint16_t half) {
  int exponent = (half >> 10) & 31, mantissa = half & 0x3ff;
  double value = exponent == 31  ? (mantissa ? NAN : INFINITY)
                 : exponent == 0 ? std::ldexp(mantissa, -24)
                                 : std::ldexp(mantissa + 1024, exponent - 25);
  return half & 0x8000 ? -value : value;
}

}  // namespace

Tensor zeros(DType dtype, const Shape& shape) {
  Tensor tensor{nullptr, 0, dtype, shape};
  tensor.storage = std::make_shared<HeapStorage>(tensor.bytes());
  return tensor;
}

Tensor tensorOf(DType dtype, const Shape& shape, const Numbers& numbers) {
  Tensor tensor = zeros(dtype, shape);
  for (size_t i = 0; i < numbers.size(); i++) {
    switch (dtype) {
      case DType::f32:
        tensor.as<float>()[i] = static_cast<float>(numbers[i]);
        break;
      case DType::bf16:
        tensor.as<uint16_t>()[i] = bf16Bits(static_cast<float>(numbers[i]));
        break;
      case DType::f64:
        tensor.as<double>()[i] = numbers[i];
        break;
      case DType::u32:
        tensor.as<uint32_t>()[i] = static_cast<uint32_t>(numbers[i]);
        break;
      case DType::u8:
        tensor.as<uint8_t>()[i] = static_cast<uint8_t>(numbers[i]);
        break;
      case DType::f16:
        fail("INTERNAL", "float16 is made by Backend::copy");
    }
  }
  return tensor;
}

Tensor normal(DType dtype, const Shape& shape, uint32_t seed, double scale) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> distribution(0, scale);
  Numbers numbers(static_cast<size_t>(zeros(dtype, shape).size()));
  for (double& number : numbers) number = distribution(generator);
  return tensorOf(dtype, shape, numbers);
}

Tensor randomMask(const Shape& shape, uint32_t seed, double share) {
  std::mt19937 generator(seed);
  std::bernoulli_distribution distribution(share);
  Tensor mask = zeros(DType::u8, shape);
  for (int64_t i = 0; i < mask.size(); i++) mask.as<uint8_t>()[i] = distribution(generator);
  return mask;
}

Numbers numbersOf(const Tensor& tensor) {
  Numbers numbers(static_cast<size_t>(tensor.size()));
  for (size_t i = 0; i < numbers.size(); i++) {
    switch (tensor.dtype) {
      case DType::f32:
        numbers[i] = tensor.as<float>()[i];
        break;
      case DType::bf16:
        numbers[i] = fromBf16(tensor.as<uint16_t>()[i]);
        break;
      case DType::f16:
        numbers[i] = fromF16(tensor.as<uint16_t>()[i]);
        break;
      case DType::f64:
        numbers[i] = tensor.as<double>()[i];
        break;
      case DType::u32:
        numbers[i] = tensor.as<uint32_t>()[i];
        break;
      case DType::u8:
        numbers[i] = tensor.as<uint8_t>()[i];
        break;
    }
  }
  return numbers;
}

std::vector<uint8_t> bytesOf(const Tensor& tensor) {
  const uint8_t* data = tensor.as<uint8_t>();
  return {data, data + tensor.bytes()};
}

double nmse(const Numbers& actual, const Numbers& expected) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); i++) {
    if (!std::isfinite(actual[i])) return NAN;
    error += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return norm == 0 ? error : error / norm;
}

Numbers product(const Numbers& a, const Numbers& b, int64_t m, int64_t n, int64_t k, bool transposeA, bool transposeB) {
  Numbers out(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++)
      for (int64_t l = 0; l < k; l++)
        out[static_cast<size_t>(i * n + j)] += a[static_cast<size_t>(transposeA ? l * m + i : i * k + l)] *
                                               b[static_cast<size_t>(transposeB ? j * k + l : l * n + j)];
  return out;
}

Tensor gramOf(int64_t n, int64_t tokens, uint32_t seed, double ridge) {
  Numbers x = numbersOf(normal(DType::f32, {tokens, n}, seed));
  Numbers gram = product(x, x, n, n, tokens, true);
  for (int64_t i = 0; i < n; i++) gram[static_cast<size_t>(i * n + i)] += ridge * static_cast<double>(tokens);
  return tensorOf(DType::f32, {n, n}, gram);
}

std::vector<int64_t> largest(const Numbers& scores, int64_t begin, int64_t end, int64_t keep) {
  std::vector<int64_t> order(static_cast<size_t>(end - begin));
  std::iota(order.begin(), order.end(), begin);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return std::fabs(scores[static_cast<size_t>(a)]) > std::fabs(scores[static_cast<size_t>(b)]);
  });
  order.resize(static_cast<size_t>(keep));
  return order;
}

const std::vector<NamedBackend>& backends() {
  static const std::vector<NamedBackend> all = [] {
    std::vector<NamedBackend> found;
    for (const char* isa : {"scalar", "avx2", "avx512", "avx512bf16"}) {
      for (int threads : {1, 3}) {
        try {
          found.push_back(
              {std::string(isa) + ", " + std::to_string(threads) + " threads", makeCpuBackend({threads, 0, isa})});
        } catch (const Error&) {  // the machine lacks it
        }
      }
    }
    return found;
  }();
  return all;
}

std::future<std::string> settled(Stream& stream) {
  auto answer = std::make_shared<std::promise<std::string>>();
  stream.settle(
      [answer](Backend&, const std::optional<Error>& error) { answer->set_value(error ? error->code() : "done"); });
  return answer->get_future();
}

namespace {

std::optional<Error> errorOf(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  return std::nullopt;
}

}  // namespace

std::string codeOf(const std::function<void()>& call) {
  auto error = errorOf(call);
  return error ? error->code() : "";
}

std::string messageOf(const std::function<void()>& call) {
  auto error = errorOf(call);
  return error ? error->what() : "";
}

}  // namespace alps::test
