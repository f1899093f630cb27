// Exact refit of the weights on a support: one dense solve a row. It is what the batched conjugate gradient is compared
// with; each row costs (kept weights)³ / 3 operations.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <vector>

#include "core/old_libstdcxx.h"
#include "core/stream.h"
#include "cpu/cpu_backend.h"
#include "cpu/support.h"

extern "C" {  // LAPACK; the last argument is the length of the string
void spotrf_(const char* uplo, const int* n, float* a, const int* lda, int* info, size_t);
void spotrs_(const char* uplo, const int* n, const int* columns, const float* a, const int* lda, float* b,
             const int* ldb, int* info, size_t);
void openblas_set_num_threads(int);
}

namespace alps {

namespace {
// OpenBLAS's own threads would only fight with the pool's.
void useOneThread() {
  static std::once_flag once;
  std::call_once(once, [] { openblas_set_num_threads(1); });
}

// One of few places in OpenBLAS, whose work buffers are as many as it was built for, in the whole process: more callers
// at once write past them.
class Place {
 public:
  Place() {
    std::unique_lock lock(mutex_);
    left_.wait(lock, [] { return free_ > 0; });
    free_--;
  }
  ~Place() {
    {
      std::lock_guard lock(mutex_);
      free_++;
    }
    left_.notify_one();
  }
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

 private:
  static inline std::mutex mutex_;
  static inline std::condition_variable left_;
  static inline int free_ = 32;
};

// b [size] := a⁻¹ b, a := its Cholesky factor; the failing pivot, counted from 1, or 0.
int solveInPlace(std::vector<float>& a, std::vector<float>& b) {
  int order = static_cast<int>(b.size()), one = 1, info = 0;
  if (order == 0) return 0;
  Place place;
  spotrf_("U", &order, a.data(), &order, &info, 1);
  if (info == 0) spotrs_("U", &order, &one, a.data(), &order, b.data(), &order, &info, 1);
  if (info < 0) fail("INTERNAL", "LAPACK refused argument ", -info);
  return info;
}
}  // namespace

void CpuBackend::backsolve(Tensor gram, Tensor right, Tensor mask, Tensor x) {
  int64_t n = gram.dim(0);
  useOneThread();
  constexpr int64_t rowsPerTask = 8;
  std::atomic<int64_t> failed{right.dim(0)};  // the first row that could not be solved, whatever the threads
  pool_.ranges(right.dim(0), rowsPerTask, [&](int64_t begin, int64_t end) {
    std::vector<uint32_t> support;
    std::vector<float> a, b;
    for (int64_t i = begin; i < end; i++) {
      throwIfCancelled();
      if (i > failed) return;
      readSupport(mask.as<uint8_t>() + i * n, n, support);
      size_t size = support.size();
      a.resize(size * size);
      b.resize(size);
      for (size_t r = 0; r < size; r++) {
        const float* row = gram.as() + support[r] * n;
        for (size_t c = 0; c <= r; c++) a[r * size + c] = row[support[c]];  // row-major lower is LAPACK's upper
        b[r] = right.as()[i * n + support[r]];
      }
      if (solveInPlace(a, b) > 0) {
        for (int64_t first = failed; i < first && !failed.compare_exchange_weak(first, i);) {
        }
        return;
      }
      float* out = x.as() + i * n;
      std::fill_n(out, n, 0.0f);
      for (size_t r = 0; r < size; r++) out[support[r]] = b[r];
    }
  });
  if (failed < right.dim(0))
    fail("NOT_POSITIVE_DEFINITE", "The Gram matrix on the support of row ", failed.load(), " is not positive definite");
}

}  // namespace alps
