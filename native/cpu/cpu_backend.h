// The CPU backend: oneDNN for products, LAPACK for the exact refit, own loops for the rest.
// One file an op family; all of them are members of this class.
#pragma once
#include "core/backend.h"
#include "cpu/kernels.h"
#include "cpu/lines.h"
#include "cpu/pairs.h"
#include "cpu/parallel.h"

namespace alps {

struct Expected;

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& options);

  DeviceInfo info() const override;
  void resetPeak() override;
  std::shared_ptr<Storage> allocate(size_t bytes, Contents contents) override;
  void upload(const void* from, Tensor out) override;
  void download(Tensor from, void* out) override;

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
  void differenceSquares(Tensor x, Tensor y, Tensor out) override;
  void transpose(Tensor a, Tensor out) override;
  void gemm(Tensor a, Tensor b, Tensor out, bool transposeA, bool transposeB, double alpha, double beta,
            bool split = false) override;
  void int8Gemm(Tensor a, Tensor b, Tensor out) override;
  void gramAccumulate(Tensor x, Tensor gram) override;
  void differenceSums(Tensor x, Tensor y, Tensor cross, Tensor gram) override;
  void differenceSumsInt8(Tensor x, Tensor y, Tensor cross, Tensor gram) override;
  void symmetrize(Tensor a) override;
  void addDiagonal(Tensor a, double value) override;
  void addToDiagonal(Tensor a, Tensor values, double alpha) override;
  void diagonal(Tensor a, Tensor out) override;
  void cholesky(Tensor a) override;
  void choleskyInverse(Tensor l, bool split = false) override;
  void inverseFactor(Tensor a) override;
  void inverseDiagonal(Tensor a, Tensor out) override;
  void project(Tensor scores, Tensor mask, Pattern pattern, Counts rowEnds, Counts keep) override;
  void projectRows(Tensor scores, Tensor mask, int64_t keep) override;
  void maskChanges(Tensor mask, Tensor previous, Counts rowEnds, Tensor counts) override;
  void admmStart(Tensor base, Tensor mask, Tensor state, Tensor y) override;
  void admmUpdate(Tensor b, Tensor base, Tensor state, Tensor mask, Tensor y, double relaxation, Pattern pattern,
                  Counts rowEnds, Counts keep) override;
  void admmIterate(Tensor op, Tensor base, Tensor b, Tensor state, Tensor mask, Tensor y, double relaxation,
                   Pattern pattern, Counts rowEnds, Counts keep, int64_t count) override;
  void admmIterateInt8(Tensor op, Tensor base, Tensor b, Tensor state, Tensor mask, Tensor y, double relaxation,
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
  // Widest layers whose ADMM goes by stripes: what belongs to one stays in the second cache.
  static constexpr int64_t stripeColumns = 2048;

  bool bf16InHardware() const;
  void narrowGemm(const Tensor& a, const Tensor& b, const Tensor& out, float alpha, float beta);
  void packColumns(const bf16_t* x, const bf16_t* minus, int64_t ld, int64_t columns, int64_t k,
                   Lines<uint32_t>& packed);
  void packRows(const bf16_t* x, int64_t ld, int64_t columns, int64_t k, Lines<uint32_t>& packed);
  LeftPairs leftFactor(const Tensor& a, bool transposed, int64_t row, int64_t rows, int64_t from, int64_t k);
  bool goesByPairs(const Tensor& a, int64_t rows, int64_t k) const;
  bool packsWhole(const Tensor& a) const;
  void pairTiles(const LeftPairs& left, int64_t rows, int64_t columns, int64_t k, const PairOutput& out);
  void pairProduct(const Tensor& a, const Tensor& b, const Tensor& out, bool transposeA, bool transposeB, float alpha,
                   float beta);
  static int64_t int8Columns(int64_t k);
  bool goesByInt8(const Tensor& a) const;
  void packInt8(const Tensor& b, int64_t column, int64_t columns);
  void int8Product(const Tensor& a, const Tensor& b, const Tensor& out, bool again);
  void multiplyInt8(const Tensor& y, const Tensor& out, int64_t column, int64_t columns);
  float roundRow(const bf16_t* x, int64_t n, int8_t* out, int32_t* sums) const;
  int64_t stripeRows(int64_t rows) const;
  void updateStripe(int64_t rows, int64_t n, QuadUpdate out);
  void admmStripes(const Tensor& op, const Tensor& base, const Tensor& b, const Tensor& state, const Tensor& mask,
                   const Tensor& y, float relaxation, Pattern pattern, const Counts& rowEnds, const Counts& keep,
                   int64_t count);
  void pairSums(const Tensor& x, const bf16_t* minus, const Tensor& cross, const Tensor& gram);
  void admmPass(Tensor b, Tensor base, Tensor state, Tensor mask, Tensor y, double relaxation, Pattern pattern,
                Counts rowEnds, Counts keep, bool storeB, std::vector<Expected>* expected);

  struct Account;  // bytes in use against the limit, shared with the storages
  BackendOptions options_;
  std::shared_ptr<Account> account_;
  const Kernels& kernels_;                  // the loops for this machine's instruction set
  const ProductKernels* products_;          // null: oneDNN multiplies bfloat16
  const Int8Kernels* int8_;                 // null: 8-bit integers are not multiplied
  Lines<uint32_t> leftPairs_, rightPairs_;  // packed factors of the product that runs, kept for the next
  Lines<float> rowScales_, columnScales_;   // of integers among them; [pieces, columns]
  Lines<float> diagonal_;                   // of the right factor, beside its integers
  Lines<int32_t> rowSums_;
  ThreadPool pool_;
};

}  // namespace alps
