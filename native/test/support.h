// What the tests and the fuzzer share: tensors over memory of their own, values in float64, the devices to test.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <future>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/stream.h"

namespace alps::test {

// Exactly the bytes asked for, from the heap, where sanitizers see every byte past the end. The CPU device takes whole
// pages from the system, which they do not watch.
class HeapStorage final : public Storage {
 public:
  explicit HeapStorage(size_t bytes) : bytes_(bytes), data_(::operator new(bytes, std::align_val_t{64})) {
    std::memset(data_, 0, bytes);
  }
  ~HeapStorage() override { ::operator delete(data_, std::align_val_t{64}); }
  void* data() override { return data_; }
  size_t bytes() const override { return bytes_; }

 private:
  size_t bytes_;
  void* data_;
};

using Shape = std::vector<int64_t>;
using Numbers = std::vector<double>;

// All zero.
Tensor zeros(DType dtype, const Shape& shape);
// The numbers, rounded to the dtype.
Tensor tensorOf(DType dtype, const Shape& shape, const Numbers& numbers);
// Normal numbers, the same for the same seed.
Tensor normal(DType dtype, const Shape& shape, uint32_t seed, double scale = 1);
// 0 or 1, with the given share of ones.
Tensor randomMask(const Shape& shape, uint32_t seed, double share = 0.5);
// Every dtype as float64.
Numbers numbersOf(const Tensor& tensor);
std::vector<uint8_t> bytesOf(const Tensor& tensor);

// Σ(a − b)² / Σb²; NaN when `actual` is not finite.
double nmse(const Numbers& actual, const Numbers& expected);
// op(a) op(b) in float64.
Numbers product(const Numbers& a, const Numbers& b, int64_t m, int64_t n, int64_t k, bool transposeA = false,
                bool transposeB = false);
// xᵀx of [tokens, n] plus `ridge` on the diagonal: positive definite.
Tensor gramOf(int64_t n, int64_t tokens, uint32_t seed, double ridge = 0.1);
// The indices of the `keep` largest magnitudes of [begin, end), ties to the lowest.
std::vector<int64_t> largest(const Numbers& scores, int64_t begin, int64_t end, int64_t keep);

struct NamedBackend {
  std::string name;  // "avx512, 3 threads"
  std::shared_ptr<Backend> backend;
  Backend* operator->() const { return backend.get(); }
};
// Every instruction set of this machine, on one thread and on three.
const std::vector<NamedBackend>& backends();

// A device of a test's own. Its thread is stopped before anything else of it goes, as stopDevices() does.
struct OwnDevice {
  std::shared_ptr<DeviceThread> thread;
  explicit OwnDevice(const BackendOptions& options) : thread(std::make_shared<DeviceThread>(makeCpuBackend(options))) {}
  ~OwnDevice() { thread->stop(); }
  OwnDevice(const OwnDevice&) = delete;
  Backend& backend() { return thread->backend(); }
  std::shared_ptr<Stream> stream() { return std::make_shared<Stream>(thread); }
};

// What the next settle() of the stream says: an error's code, or "done".
std::future<std::string> settled(Stream& stream);

// The code of the alps::Error that `call` throws; "" when it throws none.
std::string codeOf(const std::function<void()>& call);
// Its message.
std::string messageOf(const std::function<void()>& call);

}  // namespace alps::test
