// The CUDA backend: cuBLAS for products, own kernels for all else. One file an op family, as in cpu/; all of them are
// members of this class. Ops queue their launches and return; nothing waits for the device but download() and finish().
#pragma once
#include <atomic>
#include <map>

#include "core/backend.h"
#include "core/cuda_interface.h"
#include "cuda/platform.h"
#include "cuda/products.h"
#include "cuda/runtime.h"
#include "cuda/split.h"

namespace alps {

// What a kernel reports when an op fails on the device: the first report of a job stays.
struct Failure {
  uint32_t kind = 0;  // FailureKind
  uint32_t value = 0;
  uint32_t limit = 0;
  uint32_t reserved = 0;
};

enum FailureKind : uint32_t {
  noFailure = 0,
  notPositiveDefinite,  // value: the failing pivot, counted from 1; limit: rows of the matrix
  zeroPivot,            // the Cholesky factor has a zero on its diagonal
  supportNotPositive,   // backsolve; value: the row
  idPastTable,          // value: an offending id; limit: ids must be below; and so for the next two
  targetPastTable,
  rowPastTable,
};

#if defined(__CUDACC__) || defined(ALPS_CUDA_ON_HOST)
// Of several threads that report at once one is kept.
__device__ inline void report(Failure* failure, FailureKind kind, uint32_t value, uint32_t limit = 0) {
  if (atomicCAS(&failure->kind, 0u, static_cast<uint32_t>(kind)) != 0u) return;
  failure->value = value;
  failure->limit = limit;
}
#endif

class Selection;

class CudaBackend final : public Backend {
 public:
  CudaBackend(int device, const BackendOptions& options, const CudaHost& host);
  ~CudaBackend() override;

  DeviceInfo info() const override;
  void resetPeak() override;
  std::shared_ptr<Storage> allocate(size_t bytes, Contents contents) override;
  void upload(const void* from, Tensor out) override;
  void download(Tensor from, void* out) override;
  void enter(uint64_t job) override;
  void finish() override;

  void fill(Tensor out, double value) override;
  void copy(Tensor from, Tensor out) override;
  void axpby(Tensor x, Tensor y, double alpha, double beta) override;
  void addBias(Tensor x, Tensor bias) override;
  void scaleRowsColumns(Tensor a, Tensor row, Tensor column, Tensor out) override;
  void applyMask(Tensor x, Tensor mask) override;
  void nonZeroMask(Tensor x, Tensor mask) override;
  void countNonFinite(Tensor x, Tensor out) override;
  void rowDots(Tensor a, Tensor b, Tensor out) override;
  void quadraticForms(Tensor a, Tensor s, Tensor out) override;
  void columnSums(Tensor x, bool squares, Tensor out) override;
  void transpose(Tensor a, Tensor out) override;
  void gemm(Tensor a, Tensor b, Tensor out, bool transposeA, bool transposeB, double alpha, double beta,
            bool split = false) override;
  void gramAccumulate(Tensor x, Tensor gram) override;
  void symmetrize(Tensor a) override;
  void addDiagonal(Tensor a, double value) override;
  void addToDiagonal(Tensor a, Tensor values, double alpha) override;
  void diagonal(Tensor a, Tensor out) override;
  void cholesky(Tensor a) override;
  void choleskyInverse(Tensor l, bool split = false) override;
  void project(Tensor scores, Tensor mask, Pattern pattern, Counts rowEnds, Counts keep) override;
  void projectRows(Tensor scores, Tensor mask, int64_t keep) override;
  void maskChanges(Tensor mask, Tensor previous, Counts rowEnds, Tensor counts) override;
  void admmStart(Tensor base, Tensor mask, Tensor state, Tensor y) override;
  void admmUpdate(Tensor b, Tensor base, Tensor state, Tensor mask, Tensor y, double relaxation, Pattern pattern,
                  Counts rowEnds, Counts keep) override;
  void admmIterate(Tensor op, Tensor base, Tensor b, Tensor state, Tensor mask, Tensor y, double relaxation,
                   Pattern pattern, Counts rowEnds, Counts keep, int64_t count) override;
  void admmRescale(Tensor base, Tensor state, Tensor mask, Tensor y, double factor) override;
  void cgStart(Tensor residual, Tensor mask, Tensor direction, Tensor rr, Tensor rr0) override;
  void cgStep(Tensor q, Tensor mask, Tensor x, Tensor residual, Tensor direction, Tensor rr, Tensor rr0,
              double tolerance, Tensor active) override;
  void cgOnSupport(Tensor gram, Tensor mask, Tensor x, Tensor residual, double tolerance, int64_t kept,
                   Tensor active) override;
  void backsolve(Tensor gram, Tensor right, Tensor mask, Tensor x) override;
  void sparseGpt(Tensor weight, Tensor factor, Tensor mask, Pattern pattern, Counts rowEnds, Counts keep,
                 int64_t block) override;
  void dsnot(Tensor weight, Tensor metric, Tensor expected, Tensor variance, Tensor mask, Pattern pattern,
             int64_t cycles, double threshold, bool sameSign) override;
  void embedding(Tensor table, Tensor ids, Tensor out) override;
  void rmsNorm(Tensor x, Tensor weight, double eps, double offset, Tensor out) override;
  void layerNorm(Tensor x, Tensor weight, Tensor bias, double eps, Tensor out) override;
  void rope(Tensor x, Tensor cosine, Tensor sine, int64_t headDim, int64_t sequence) override;
  void attention(Tensor q, Tensor k, Tensor v, Tensor out, int64_t headDim, int64_t sequence, double scale,
                 int64_t window, double softCap) override;
  void attentionStep(Tensor q, Tensor k, Tensor v, Tensor keys, Tensor values, Tensor out, int64_t headDim,
                     int64_t position, double scale, int64_t window, double softCap) override;
  void gatedActivation(Tensor gate, Tensor up, Tensor out, std::string activation) override;
  void activate(Tensor x, Tensor out, std::string activation) override;
  void softCap(Tensor x, double cap) override;
  void topExperts(Tensor logits, Tensor ids, Tensor weights, bool normalise) override;
  void gatherRows(Tensor x, Tensor ids, Tensor out) override;
  void scatterAddRows(Tensor y, Tensor ids, Tensor weights, Tensor x) override;
  void addTo(Tensor y, Tensor x) override;
  void crossEntropy(Tensor logits, Tensor targets, Tensor out) override;
  void divergence(Tensor p, Tensor q, Tensor out) override;
  void sample(Tensor logits, Tensor draws, Tensor ids, double temperature) override;

 private:
  struct Account;  // bytes in use against the limit, shared with the storages

  Queue queue() const { return runtime_->queue(); }
  // Blocks of a loop over `count` elements by a grid of blockSize_ threads; each thread strides by the whole grid.
  Grid blocksFor(int64_t count) const;
  // By a kernel: the first one, which tells whether the library has code for this GPU.
  void clearFailures(int64_t count);
  // Where kernels of the running op report that it failed.
  Failure* failure();
  void throwIfCancelled() const;
  // Whether the product of [m, k] and [k, n] in float32 is worth splitting (split.h).
  bool splits(int64_t m, int64_t n, int64_t k) const;
  SplitFactor splitOf(const Factor& x, int64_t rows, int64_t columns, Side side, bf16_t* memory);
  // c [m, n] = alpha * a b + beta * c in float32.
  void productOf(int64_t m, int64_t n, int64_t k, float alpha, Factor a, Factor b, float beta, float* c, int64_t ldc,
                 bool split);
  void queueUpdate(const Tensor& b, const Tensor& base, const Tensor& state, const Tensor& mask, const Tensor& y,
                   double relaxation, const Pattern& pattern, const Selection* selection, bool storeB);
  template <typename T>
  Scratch<T> scratch(int64_t count) {
    return Scratch<T>(*runtime_, count);
  }

  int device_;
  BackendOptions options_;
  CudaHost host_;
  std::shared_ptr<Runtime> runtime_;  // storages keep it alive
  std::unique_ptr<Products> products_;
  std::shared_ptr<Account> account_;
  int blockSize_ = 256;  // threads a block of loops over elements
  bool splitsAlways_ = false;

  uint64_t job_ = 0;
  std::map<uint64_t, int> slots_;  // jobs that may have reported, by place in failures_
  std::vector<int> freeSlots_;
  Failure* failures_ = nullptr;  // device memory, [failureSlots]
};

}  // namespace alps
